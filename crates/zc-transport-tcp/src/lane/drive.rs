//! What goes on while the application polls neither half: credit, queued frames, returned buffers.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use zc_core::transport::{LaneDrive, LaneError};

use super::tx::Shared;
use crate::limits::{REAP_INTERVAL_MS, REAP_PAUSE_MS};

pub(super) struct Drive {
    shared: Arc<Shared>,
    /// When the error queue is looked at again, and how long that wait is.
    reap_at: Option<Instant>,
    pause: Duration,
}

impl Drive {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, reap_at: None, pause: Duration::ZERO }
    }

    /// The next look at the error queue, the later the longer nothing came.
    fn next_look(&mut self, freed: bool, now: Instant) -> Instant {
        match self.reap_at {
            Some(at) if at > now && !freed => return at,
            Some(_) if !freed => self.pause = (2 * self.pause).min(Duration::from_millis(REAP_PAUSE_MS)),
            _ => self.pause = Duration::from_millis(REAP_INTERVAL_MS),
        }
        now + self.pause
    }
}

impl LaneDrive for Drive {
    fn poll_drive(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, LaneError> {
        self.shared.wakers.drive.register(cx.waker());
        let mut core = self.shared.core.lock();
        let before = core.progress();
        let flushed = core.poll_flush(&self.shared.waker);
        let after = core.progress();
        let reaps = core.goes_on_reaping();
        drop(core);
        if after != before || matches!(flushed, Poll::Ready(Err(_))) {
            self.shared.wakers.tx.wake();
        }
        self.reap_at = if reaps { Some(self.next_look(after.1 != before.1, now)) } else { None };
        match flushed {
            Poll::Ready(Err(e)) => Err(e),
            _ => Ok(self.reap_at),
        }
    }

    fn heard(&mut self) -> bool {
        self.shared.life.take()
    }
}
