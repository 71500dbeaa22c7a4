//! How a task that accepts links waits, when there is no point in trying at once.

use std::io;
use std::task::Context;
use std::time::{Duration, Instant};

use zc_core::transport::{Reactor, Timer};

/// Pause after a link could not be accepted, for instance for want of a descriptor.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What such a task waits with.
pub(crate) struct Pause {
    timer: Box<dyn Timer>,
    paused: bool,
}

impl Pause {
    pub(crate) fn new(reactor: &dyn Reactor) -> io::Result<Self> {
        Ok(Self { timer: reactor.timer()?, paused: false })
    }

    /// Accepts nothing for [`ACCEPT_RETRY`].
    pub(crate) fn begin(&mut self, cx: &mut Context<'_>, now: Instant) {
        self.paused = self.wake_at(cx, now + ACCEPT_RETRY);
    }

    /// Whether it lasts; if so, the task is woken at its end.
    pub(crate) fn lasts(&mut self, cx: &mut Context<'_>) -> bool {
        self.paused = self.paused && self.timer.poll_expired(cx).is_pending();
        self.paused
    }

    /// Has the task woken, without a pause. False if it is time already, and it is woken at once.
    pub(crate) fn wake_at(&mut self, cx: &mut Context<'_>, at: Instant) -> bool {
        self.timer.reset(at);
        let later = self.timer.poll_expired(cx).is_pending();
        if !later {
            cx.waker().wake_by_ref();
        }
        later
    }
}
