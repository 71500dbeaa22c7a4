//! Atomics, or loom's model of them.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// A sequentially consistent fence. On x86 a locked instruction is one, and a good deal faster than the
/// `mfence` that the compiler emits.
#[inline]
pub(crate) fn full_fence() {
    #[cfg(any(loom, not(target_arch = "x86_64")))]
    fence(Ordering::SeqCst);
    #[cfg(all(not(loom), target_arch = "x86_64"))]
    crate::sys::locked_instruction();
}
