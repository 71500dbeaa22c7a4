//! The engine's task. It lives as long as there are sessions.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use zc_core::memory::Deferral;
use zc_core::transport::{LaneError, Timer};

use super::looks::{Leaving, Turn};
use super::{Engine, Intake};
use crate::limits::RECEIVES_PER_TURN;

pub(super) struct Driver {
    engine: Arc<Engine>,
    timer: Box<dyn Timer>,
    /// When it goes off.
    timer_at: Option<Instant>,
    /// Whether somebody spins.
    leaving: Leaving,
    /// Since when there has been no session.
    idle_since: Option<Instant>,
    /// It ended as it should.
    done: bool,
}

impl Driver {
    pub(super) fn new(engine: Arc<Engine>) -> io::Result<Self> {
        let timer = engine.reactor.timer()?;
        Ok(Self { engine, timer, timer_at: None, leaving: Leaving::new(), idle_since: None, done: false })
    }

    /// False: there may be more.
    fn receive(&self, cx: &mut Context<'_>) -> io::Result<bool> {
        for _ in 0..RECEIVES_PER_TURN {
            let mut intake = Intake::new(&self.engine, None);
            let received = self.engine.port.poll_receive(cx, &mut |datagram| intake.take(datagram));
            intake.settle();
            match received {
                Poll::Ready(received) => received?,
                Poll::Pending => return Ok(true),
            }
        }
        Ok(false)
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let begun = self.engine.now();
        let was_asking = self.leaving.is_asking();
        let turn = self.leaving.turn(&self.engine.looks, begun);
        let leaves_it = turn != Turn::Receive;
        let (is_drained, leaves_it_until) = match turn {
            Turn::Receive => (self.receive(cx)?, None),
            Turn::Leave(until) => (true, Some(until)),
            Turn::LeaveOnce => (false, None),
        };
        let engine = &self.engine;
        if leaves_it_until.is_some() && was_asking {
            // Who still spins after a while does so for long.
            engine.port.leave_it();
        }
        let now = if leaves_it { begun } else { engine.now() };
        let mut next = engine.run_timers(now);
        if !engine.blocked.lock().is_empty()
            && let Poll::Ready(sent) = engine.port.poll_send(cx, &mut || engine.unblock(now))
        {
            sent?;
        }
        let stays_until = self.idle_since.map(|since| since + engine.port.stays_for());
        let someone_waits = !engine.blocked.lock().is_empty();
        let again = engine.port.again_in(someone_waits).map(|pause| now + pause);
        next = [next, again, stays_until, leaves_it_until].into_iter().flatten().min();
        if !is_drained {
            engine.reactor.yield_now(cx);
        }
        if let Some(next) = next
            && self.timer_at.is_none_or(|at| next < at)
        {
            self.timer.reset(next);
            self.timer_at = Some(next);
        }
        if self.timer_at.is_some() && self.timer.poll_expired(cx).is_ready() {
            self.timer_at = None;
            cx.waker().wake_by_ref();
        }
        Ok(())
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let _deferral = Deferral::begin();
        this.engine.waker.register(cx.waker());
        if let Err(error) = this.turn(cx) {
            this.engine.fail(&LaneError::os("receive", &error));
        }
        let now = this.engine.now();
        let mut table = this.engine.table.lock();
        if !table.conns.is_empty() {
            this.idle_since = None;
            return Poll::Pending;
        }
        let mut since = *this.idle_since.get_or_insert(now);
        let stays_for = this.engine.port.stays_for();
        // Others have offered sessions; the last of them may just have been withdrawn.
        let is_offered = Arc::strong_count(&this.engine) > 1;
        if is_offered && !stays_for.is_zero() && now >= since + stays_for {
            since = now;
            this.idle_since = Some(now);
        }
        if table.failed.is_none() && now < since + stays_for {
            if now == since {
                // The timer is not set for that yet.
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        table.runs = false;
        this.done = true;
        Poll::Ready(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.done {
            let _deferral = Deferral::begin();
            self.engine.fail(&LaneError::Other("the runtime has ended".into()));
        }
    }
}
