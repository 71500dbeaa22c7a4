//! Shared memory as the protocols see it: 64-bit words with one writer each.
//!
//! Every access is atomic, so that a peer that writes at any time causes wrong values, which are
//! checked (M6), but no data race. Loads are relaxed, which is what works on read-only mappings; who
//! needs more adds a fence.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use zc_core::memory::Region;

/// Words that somebody else may write.
pub(crate) trait ReadWords {
    /// Relaxed.
    fn load(&self, at: usize) -> u64;
}

/// Words that only we write.
pub(crate) trait WriteWords {
    /// Relaxed.
    fn store(&self, at: usize, value: u64);
    /// Release: who sees it sees everything stored before.
    fn publish(&self, at: usize, value: u64);
}

/// The words of our own memory.
#[derive(Clone)]
pub(crate) struct OwnWords(Words);

/// The words of the peer's memory, mapped read-only.
#[derive(Clone)]
pub(crate) struct PeerWords(Words);

#[derive(Clone)]
struct Words {
    base: NonNull<AtomicU64>,
    count: usize,
    _region: Region,
}

// SAFETY: the words are atomics in memory that `_region` keeps mapped.
unsafe impl Send for Words {}
// SAFETY: as for Send.
unsafe impl Sync for Words {}

impl Words {
    fn new(region: &Region, bytes: usize) -> Self {
        assert!(bytes <= region.len());
        // Page aligned, so aligned for words; a mapping is never at null.
        let base = NonNull::new(region.base().cast_mut().cast()).unwrap_or(NonNull::dangling());
        Self { base, count: bytes / 8, _region: region.clone() }
    }

    #[inline]
    fn at(&self, at: usize) -> &AtomicU64 {
        assert!(at < self.count, "a word outside of the mapping");
        // SAFETY: inside of the mapping, which `_region` keeps, and only ever accessed atomically; on
        // a read-only mapping only relaxed loads are made (M5).
        unsafe { self.base.add(at).as_ref() }
    }
}

impl OwnWords {
    /// The first `bytes` of a writable region.
    pub(crate) fn new(region: &Region, bytes: usize) -> Self {
        assert!(!region.is_read_only());
        Self(Words::new(region, bytes))
    }
}

impl PeerWords {
    /// The first `bytes` of the peer's region.
    pub(crate) fn new(region: &Region, bytes: usize) -> Self {
        Self(Words::new(region, bytes))
    }
}

impl WriteWords for OwnWords {
    #[inline]
    fn store(&self, at: usize, value: u64) {
        self.0.at(at).store(value, Ordering::Relaxed);
    }
    #[inline]
    fn publish(&self, at: usize, value: u64) {
        self.0.at(at).store(value, Ordering::Release);
    }
}

impl ReadWords for PeerWords {
    #[inline]
    fn load(&self, at: usize) -> u64 {
        self.0.at(at).load(Ordering::Relaxed)
    }
}
