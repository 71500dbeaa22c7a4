//! Atomics, or loom's model of them.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// Between two sequentially consistent accesses, which need no fence: their order is the single one of all such. Loom
/// takes them for acquire and release, so there it is a fence.
#[inline]
pub(crate) fn between_seq_cst() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// A sequentially consistent fence. On x86 a locked instruction is one, and a good deal faster than the
/// `mfence` that the compiler emits.
#[inline]
pub(crate) fn full_fence() {
    #[cfg(any(loom, not(target_arch = "x86_64")))]
    fence(Ordering::SeqCst);
    #[cfg(all(not(loom), target_arch = "x86_64"))]
    crate::sys::locked_instruction();
}
