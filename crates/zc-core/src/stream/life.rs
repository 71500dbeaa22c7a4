//! Signs of life between whole frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the peer goes on with a long frame. Held by both halves; the driver takes it.
///
/// ```
/// let life = zc_core::stream::Life::default();
/// life.clone().show();
/// assert!(life.take() && !life.take());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Life(Arc<AtomicBool>);

impl Life {
    /// There was a sign.
    #[inline]
    pub fn show(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether there was a sign since the last call.
    #[inline]
    pub fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}
