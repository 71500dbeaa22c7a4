//! What goes on while the application polls neither half: memory comes back, and what waited for it, for room or for the lease
//! goes out.

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use zc_core::memory::Deferral;
use zc_core::transport::{LaneDrive, LaneError};

use super::core::Shared;
use crate::limits::RETRY_MS;

pub(super) struct Drive {
    shared: Arc<Shared>,
}

impl Drive {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl LaneDrive for Drive {
    fn poll_drive(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, LaneError> {
        let _deferral = Deferral::begin();
        let core = &mut *self.shared.core.lock();
        self.shared.wakers.drive.register(cx.waker());
        core.await_work(!core.is_flushed());
        core.starving.drive_begins();
        // The end is told by the halves: what came before it is handed out first.
        let looked = core.look(None);
        if core.starving.fetches() {
            let _ = core.poll_memory(None);
        }
        let _ = looked.and_then(|()| core.pump());
        Ok(core.starving.drive_ends().then(|| now + Duration::from_millis(RETRY_MS)))
    }

    fn heard(&mut self) -> bool {
        self.shared.core.lock().life.take()
    }
}
