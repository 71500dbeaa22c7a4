//! Signs of life between whole frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the peer goes on with a long frame. Held by both halves; the driver takes it.
#[derive(Clone, Default)]
pub(super) struct Life(Arc<AtomicBool>);

impl Life {
    pub(super) fn show(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether there was a sign since the last call.
    pub(super) fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}
