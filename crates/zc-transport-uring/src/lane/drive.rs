//! What goes on while the application polls neither half: credit, and frames that were queued while others flew.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use zc_core::transport::{LaneDrive, LaneError};

use super::tx::Shared;

pub(super) struct Drive {
    shared: Arc<Shared>,
}

impl Drive {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl LaneDrive for Drive {
    fn poll_drive(&mut self, cx: &mut Context<'_>, _now: Instant) -> Result<Option<Instant>, LaneError> {
        self.shared.wakers.drive.register(cx.waker());
        let mut core = self.shared.core.lock();
        let before = core.progress();
        let flushed = core.poll_flush(&self.shared.waker);
        let news = core.progress() != before || matches!(flushed, Poll::Ready(Err(_)));
        drop(core);
        if news {
            self.shared.wakers.tx.wake();
        }
        match flushed {
            Poll::Ready(Err(e)) => Err(e),
            _ => Ok(None),
        }
    }

    fn heard(&mut self) -> bool {
        self.shared.life.take()
    }
}
