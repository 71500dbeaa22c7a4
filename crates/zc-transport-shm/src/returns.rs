//! The ring on which blocks come back to their owner.
//!
//! It has as many entries as the owner has blocks at most, and a block that is out comes back once
//! before it goes out again: so it can't overflow and needs no count of what was read. A peer that
//! breaks this overwrites its own entries. Eight entries share a cache line, so the owner looks at them in
//! batches while it has blocks left.

use std::sync::Arc;

use crate::bell::PeerBell;
use crate::lane::Readers;
use crate::lap::lap;
use crate::layout::Return;
use crate::sleep::Ringer;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::words::{OwnWords, PeerWords, ReadWords, WriteWords};

/// The side that gives back; used from any thread.
pub(crate) struct Returning<W> {
    next: AtomicU64,
    words: W,
    first: usize,
    entries: u64,
}

impl<W: WriteWords> Returning<W> {
    /// Entries from word `first`; their number is a power of two.
    pub(crate) fn new(words: W, first: usize, entries: u32) -> Self {
        Self { next: AtomicU64::new(0), words, first, entries: entries.into() }
    }

    pub(crate) fn push(&self, back: Return) {
        // Entries that others fill meanwhile are read in order, after this one.
        let position = self.next.fetch_add(1, Ordering::Relaxed);
        let at = self.first + (position & (self.entries - 1)) as usize;
        self.words.publish(at, back.pack(lap(position, self.entries) as u16));
    }
}

/// What gives back and wakes the owner. While it lives, so does our stream to the owner: he takes its end for
/// the end of all readers.
pub(crate) struct Returns {
    pub(crate) ring: Returning<OwnWords>,
    pub(crate) waiter: Arc<Ringer<PeerWords>>,
    pub(crate) bell: Arc<PeerBell>,
    pub(crate) _reader: Arc<Readers>,
}

impl Returns {
    /// Gives a block back and wakes the owner if it waits.
    #[inline]
    pub(crate) fn push(&self, back: Return) {
        self.ring.push(back);
        if self.waiter.must_ring() {
            self.bell.ring();
        }
    }
}

/// The owner's side.
pub(crate) struct Returned<R> {
    words: R,
    first: usize,
    entries: u64,
    next: u64,
}

impl<R: ReadWords> Returned<R> {
    pub(crate) fn new(words: R, first: usize, entries: u32) -> Self {
        Self { words, first, entries: entries.into(), next: 0 }
    }

    /// The next block that came back; not checked yet (M6).
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Return> {
        let word = self.words.load(self.first + (self.next & (self.entries - 1)) as usize);
        let (mark, back) = Return::unpack(word);
        if mark != lap(self.next, self.entries) as u16 {
            return None;
        }
        // The peer's last read of the block happened before.
        fence(Ordering::Acquire);
        self.next += 1;
        Some(back)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing::Cells;

    /// The lap is 16 bits in an entry: it runs over, and nothing else happens.
    #[test]
    fn laps_run_over() {
        let cells = Cells::new(4);
        let start = u64::from(u16::MAX - 1) * 4;
        let (ring, mut owner) = (Returning::new(cells.clone(), 0, 4), Returned::new(cells, 0, 4));
        ring.next.store(start, Ordering::Relaxed);
        owner.next = start;
        for block in 0..20 {
            assert_eq!(owner.next(), None);
            let back = Return { slab: 1, sent_back: 0, generation: block, block };
            ring.push(back);
            assert_eq!(owner.next(), Some(back));
        }
    }
}
