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
    /// Has the line of a word brought here, without waiting for it.
    fn ask_for(&self, _at: usize) {}
    /// Relaxed, one by one.
    #[inline]
    fn load_all(&self, at: usize, out: &mut [u64]) {
        out.iter_mut().enumerate().for_each(|(i, word)| *word = self.load(at + i));
    }
}

/// Fewer than eight bytes, filled up with zeros.
#[inline]
fn last_word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte)).to_le()
}

/// Words that only we write.
pub(crate) trait WriteWords {
    /// Relaxed.
    fn store(&self, at: usize, value: u64);
    /// Relaxed, one by one.
    #[inline]
    fn store_all(&self, at: usize, values: &[u64]) {
        values.iter().enumerate().for_each(|(i, word)| self.store(at + i, *word));
    }
    /// Bytes as words, relaxed, one by one; the last word is filled up with zeros.
    #[inline]
    fn store_bytes(&self, at: usize, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().enumerate().for_each(|(i, word)| self.store(at + i, u64::from_ne_bytes(*word)));
        if !rest.is_empty() {
            self.store(at + words.len(), last_word(rest));
        }
    }
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
        // Page aligned, so aligned for words.
        Self { base: region.base_mut().cast(), count: bytes / 8, _region: region.clone() }
    }

    #[inline]
    fn at(&self, at: usize) -> &AtomicU64 {
        &self.range(at, 1)[0]
    }

    #[inline]
    fn range(&self, at: usize, count: usize) -> &[AtomicU64] {
        assert!(at <= self.count && count <= self.count - at, "words outside of the mapping");
        // SAFETY: inside of the mapping, which `_region` keeps, and only ever accessed atomically; on
        // a read-only mapping only relaxed loads are made (M5).
        unsafe { std::slice::from_raw_parts(self.base.add(at).as_ptr(), count) }
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
    fn store_all(&self, at: usize, values: &[u64]) {
        let words = self.0.range(at, values.len());
        words.iter().zip(values).for_each(|(word, value)| word.store(*value, Ordering::Relaxed));
    }
    #[inline]
    fn store_bytes(&self, at: usize, bytes: &[u8]) {
        let (from, rest) = bytes.as_chunks::<8>();
        let to = self.0.range(at, bytes.len().div_ceil(8));
        let pairs = to.iter().zip(from);
        pairs.for_each(|(word, bytes)| word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed));
        if let Some(last) = to.get(from.len()) {
            last.store(last_word(rest), Ordering::Relaxed);
        }
    }
    #[inline]
    fn publish(&self, at: usize, value: u64) {
        self.0.at(at).store(value, Ordering::Release);
    }
}

impl PeerWords {
    /// Copies words into memory of ours.
    #[inline]
    pub(crate) fn copy_to(&self, at: usize, to: &OwnWords, to_at: usize, count: usize) {
        let pairs = to.0.range(to_at, count).iter().zip(self.0.range(at, count));
        pairs.for_each(|(to, from)| to.store(from.load(Ordering::Relaxed), Ordering::Relaxed));
    }
}

impl ReadWords for PeerWords {
    #[inline]
    fn load(&self, at: usize) -> u64 {
        self.0.at(at).load(Ordering::Relaxed)
    }
    #[inline]
    fn ask_for(&self, at: usize) {
        // Nothing depends on the value, so the processor goes on.
        std::hint::black_box(self.load(at));
    }
    #[inline]
    fn load_all(&self, at: usize, out: &mut [u64]) {
        let words = self.0.range(at, out.len());
        out.iter_mut().zip(words).for_each(|(value, word)| *value = word.load(Ordering::Relaxed));
    }
}
