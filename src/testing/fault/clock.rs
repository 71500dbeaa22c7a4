//! Time and chance of one half of a lane.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::testing::random::Random;
use crate::time::later;
use crate::transport::{Reactor, Timer};

pub(super) struct Clock {
    reactor: Arc<dyn Reactor>,
    pub(super) random: Random,
    stall: Stall,
    /// The last poll was too early on purpose; the next one is not.
    was_early: bool,
}

/// A stretch of time in which nothing crosses, once.
struct Stall {
    plan: Option<(u64, Duration)>,
    until: Option<Instant>,
    timer: Box<dyn Timer>,
}

impl Clock {
    pub(super) fn new(
        reactor: &Arc<dyn Reactor>,
        random: Random,
        stall: Option<(u64, Duration)>,
    ) -> io::Result<Self> {
        let stall = Stall { plan: stall, until: None, timer: reactor.timer()? };
        Ok(Self { reactor: reactor.clone(), random, stall, was_early: false })
    }

    pub(super) fn now(&self) -> Instant {
        self.reactor.now()
    }

    /// So many data frames have crossed: the planned stall may begin.
    pub(super) fn crossed(&mut self, frames: u64) {
        if let Some((_, time)) = self.stall.plan.take_if(|(after, _)| frames >= *after) {
            self.stall.until = Some(later(self.now(), time));
        }
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stall.until.is_some_and(|until| self.now() < until)
    }

    /// Ready when no planned stall is under way.
    pub(super) fn poll_running(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.stall.until {
            None => Poll::Ready(()),
            Some(until) => {
                let done = poll_until(&mut self.stall.timer, self.reactor.now(), until, cx);
                if done.is_ready() {
                    self.stall.until = None;
                }
                done
            }
        }
    }

    /// Pending by chance, never twice in a row; the task is woken at once.
    pub(super) fn poll_early(&mut self, cx: &Context<'_>, one_in: u32) -> Poll<()> {
        self.was_early = !self.was_early && self.random.one_in(one_in);
        if self.was_early {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// Ready once `deadline` has passed; otherwise the timer wakes the task then.
pub(super) fn poll_until(
    timer: &mut Box<dyn Timer>,
    now: Instant,
    deadline: Instant,
    cx: &mut Context<'_>,
) -> Poll<()> {
    if now >= deadline {
        return Poll::Ready(());
    }
    timer.reset(deadline);
    timer.poll_expired(cx)
}
