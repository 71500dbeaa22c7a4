//! What goes on while the application polls neither half: credit, queued frames, returned buffers.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use zc_core::transport::{LaneDrive, LaneError};

use super::tx::Shared;
use crate::limits::REAP_INTERVAL_MS;

pub(super) struct Drive(pub(super) Arc<Shared>);

impl LaneDrive for Drive {
    fn poll_drive(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, LaneError> {
        self.0.wakers.drive.register(cx.waker());
        let mut core = self.0.core.lock();
        let before = core.progress();
        let flushed = core.poll_flush(&self.0.waker);
        let news = core.progress() != before || matches!(flushed, Poll::Ready(Err(_)));
        let next = core.holds_buffers().then(|| now + Duration::from_millis(REAP_INTERVAL_MS));
        drop(core);
        if news {
            self.0.wakers.tx.wake();
        }
        match flushed {
            Poll::Ready(Err(e)) => Err(e),
            _ => Ok(next),
        }
    }
}
