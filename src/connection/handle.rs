//! Counts who still uses a connection; when nobody does, the driver closes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::Core;

pub(super) struct Handle(Arc<Core>);

impl Handle {
    pub(super) fn new(core: Arc<Core>) -> Self {
        core.handles.fetch_add(1, Ordering::Relaxed);
        Self(core)
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.0
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.0.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.watch.look();
        }
    }
}
