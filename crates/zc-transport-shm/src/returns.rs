//! The ring on which blocks come back to their owner.
//!
//! It has as many entries as the owner has blocks at most, and a block that is out comes back once
//! before it goes out again: so it can't overflow and needs no count of what was read. A peer that
//! breaks this overwrites its own entries. Eight entries share a cache line, so the owner looks at them in
//! batches while it has blocks left.

use std::sync::Arc;

use crate::bell::PeerBell;
use crate::layout::Return;
use crate::sleep::Ringer;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::words::{OwnWords, PeerWords, ReadWords, WriteWords};

#[inline]
fn turn(position: u64, entries: u64) -> u16 {
    (position >> entries.trailing_zeros()) as u16 + 1
}

/// The side that gives back; used from any thread.
pub(crate) struct Returns {
    next: AtomicU64,
    words: OwnWords,
    first: usize,
    entries: u64,
    waiter: Arc<Ringer<PeerWords>>,
    bell: Arc<PeerBell>,
}

impl Returns {
    pub(crate) fn new(
        words: OwnWords,
        first: usize,
        entries: u32,
        waiter: Arc<Ringer<PeerWords>>,
        bell: Arc<PeerBell>,
    ) -> Self {
        Self { next: AtomicU64::new(0), words, first, entries: entries.into(), waiter, bell }
    }

    /// Gives a block back and wakes the owner if it waits.
    pub(crate) fn push(&self, back: Return) {
        // Entries that others fill meanwhile are read in order, after this one.
        let position = self.next.fetch_add(1, Ordering::Relaxed);
        let at = self.first + (position & (self.entries - 1)) as usize;
        self.words.publish(at, back.pack(turn(position, self.entries)));
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
        if mark != turn(self.next, self.entries) {
            return None;
        }
        // The peer's last read of the block happened before.
        fence(Ordering::Acquire);
        self.next += 1;
        Some(back)
    }
}
