//! The ring: one producer, one consumer, a turn in every slot.
//!
//! A slot is free once the consumer's count says so, and full once its turn is that of the position:
//! the number of the lap, from 1. So the consumer of a small message touches the slot and nothing
//! else, and counts come back in batches.
//!
//! The producer publishes in batches too: the first slot of a batch last. A consumer that waits for it
//! leaves the lines of the others alone, so they don't move between the cores while they are filled.

use crate::lap::lap;
use crate::layout::{Head, SLOT_WORDS};
use crate::limits::BATCH_SLOTS;
use crate::sync::{Ordering, fence};
use crate::words::{ReadWords, WriteWords};

/// First payload word of a slot; before it the head and the sequence number.
const PAYLOAD: usize = 2;

#[inline]
fn slot(first: usize, position: u64, slots: u64) -> usize {
    first + (position & (slots - 1)) as usize * SLOT_WORDS
}

/// The side that writes.
pub(crate) struct Producer<W> {
    words: W,
    first: usize,
    slots: u64,
    next: u64,
    /// What the consumer is known to be done with.
    consumed: u64,
    /// The first slot of the batch: word, value, and its position.
    held: Option<(usize, u64, u64)>,
}

impl<W: WriteWords> Producer<W> {
    /// Slots from word `first`; their number is a power of two.
    pub(crate) fn new(words: W, first: usize, slots: u32) -> Self {
        Self { words, first, slots: slots.into(), next: 0, consumed: 0, held: None }
    }

    /// Slots known to be free.
    #[inline]
    pub(crate) fn free(&self) -> u64 {
        self.slots - (self.next - self.consumed)
    }

    /// What the consumer is known to be done with.
    #[inline]
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// How many slots have been filled.
    #[inline]
    pub(crate) fn count(&self) -> u64 {
        self.next
    }

    /// Takes the consumer's count over; false if it is a lie.
    #[must_use]
    pub(crate) fn update(&mut self, consumed: u64) -> bool {
        // What the slots held has been read: it may be overwritten from here on.
        fence(Ordering::Acquire);
        let plausible = consumed >= self.consumed && consumed <= self.next;
        if plausible {
            self.consumed = consumed;
        }
        plausible
    }

    /// Fills the next slot. The consumer sees it after [`Producer::publish`], or after more of them.
    ///
    /// # Panics
    /// When no slot is free or the payload has more words than a slot.
    #[inline]
    pub(crate) fn push(&mut self, head: Head, seq: u64, payload: &[u64]) {
        assert!(payload.len() <= SLOT_WORDS - PAYLOAD);
        self.push_with(head, seq, |words, at| words.store_all(at, payload));
    }

    /// The same with bytes; what is left of the last word is zero.
    #[inline]
    pub(crate) fn push_bytes(&mut self, head: Head, seq: u64, payload: &[u8]) {
        assert!(payload.len() <= 8 * (SLOT_WORDS - PAYLOAD));
        self.push_with(head, seq, |words, at| words.store_bytes(at, payload));
    }

    #[inline(always)]
    fn push_with(&mut self, head: Head, seq: u64, fill: impl FnOnce(&W, usize)) {
        assert!(self.free() > 0);
        let at = slot(self.first, self.next, self.slots);
        self.words.store(at + 1, seq);
        fill(&self.words, at + PAYLOAD);
        let word = head.pack(lap(self.next, self.slots) as u32);
        match self.held {
            None => self.held = Some((at, word, self.next)),
            Some((.., first)) => {
                self.words.publish(at, word);
                if self.next - first >= BATCH_SLOTS {
                    self.publish();
                }
            }
        }
        self.next += 1;
    }

    /// Shows the consumer all slots that were filled.
    #[inline]
    pub(crate) fn publish(&mut self) {
        if let Some((at, word, _)) = self.held.take() {
            self.words.publish(at, word);
        }
    }
}

/// The side that reads.
pub(crate) struct Consumer<R> {
    words: R,
    first: usize,
    slots: u64,
    next: u64,
}

impl<R: ReadWords> Consumer<R> {
    /// Slots from word `first`; their number is a power of two.
    pub(crate) fn new(words: R, first: usize, slots: u32) -> Self {
        Self { words, first, slots: slots.into(), next: 0 }
    }

    /// The next slot, if it is full.
    #[inline]
    pub(crate) fn peek(&self) -> Option<Head> {
        let at = slot(self.first, self.next, self.slots);
        let word = self.words.load(at);
        // Both lines of the slot travel at the same time; otherwise the second is asked for once the first is here.
        self.words.ask_for(at + SLOT_WORDS / 2);
        let (mark, head) = Head::unpack(word);
        if mark != lap(self.next, self.slots) as u32 {
            return None;
        }
        fence(Ordering::Acquire);
        Some(head)
    }

    /// The sequence number of the slot that was peeked at.
    #[inline]
    pub(crate) fn seq(&self) -> u64 {
        self.words.load(slot(self.first, self.next, self.slots) + 1)
    }

    /// Where the payload of the slot that was peeked at lies.
    #[inline]
    pub(crate) fn payload(&self) -> (&R, usize) {
        (&self.words, slot(self.first, self.next, self.slots) + PAYLOAD)
    }

    /// Copies the first words of the payload of the slot that was peeked at.
    #[inline]
    pub(crate) fn read(&self, out: &mut [u64]) {
        let at = slot(self.first, self.next, self.slots) + PAYLOAD;
        assert!(out.len() <= SLOT_WORDS - PAYLOAD);
        self.words.load_all(at, out);
    }

    /// Goes on to the next slot. The producer hears of it when [`Consumer::count`] is published.
    #[inline]
    pub(crate) fn advance(&mut self) {
        self.next += 1;
    }

    /// How many slots have been read.
    #[inline]
    pub(crate) fn count(&self) -> u64 {
        self.next
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing::Cells;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// The turn is 32 bits of the number of the lap: it runs over, and nothing else happens.
    #[test]
    fn turns_run_over() {
        let cells = Cells::new(2 * SLOT_WORDS);
        let (mut tx, mut rx) = (Producer::new(cells.clone(), 0, 2), Consumer::new(cells, 0, 2));
        let start = u64::from(u32::MAX - 1) * 2;
        (tx.next, tx.consumed, rx.next) = (start, start, start);
        for n in 0..10 {
            assert_eq!(rx.peek(), None);
            let head = Head { kind: 1, flags: 0, count: n };
            tx.push(head, n.into(), &[]);
            tx.publish();
            assert_eq!(rx.peek(), Some(head));
            rx.advance();
            assert!(tx.update(rx.count()));
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_queue(steps in prop::collection::vec((any::<bool>(), 0usize..14, any::<u64>()), 0..400)) {
            let cells = Cells::new(3 + 8 * SLOT_WORDS);
            let (mut tx, mut rx) = (Producer::new(cells.clone(), 3, 8), Consumer::new(cells, 3, 8));
            let mut oracle = VecDeque::new();
            for (push, words, seed) in steps {
                if push && tx.free() == 0 {
                    prop_assert!(tx.update(rx.count()));
                }
                prop_assert!(tx.free() >= 8 - oracle.len() as u64 || !tx.update(rx.count()) || tx.free() > 0 || oracle.len() == 8);
                if push && tx.free() > 0 {
                    let payload: Vec<u64> = (0..words as u64).map(|i| seed ^ i).collect();
                    let head = Head { kind: 1, flags: seed as u8, count: words as u8 };
                    tx.push(head, seed, &payload);
                    prop_assert!(!oracle.is_empty() || rx.peek().is_none());
                    if seed % 3 == 0 {
                        tx.publish();
                    }
                    oracle.push_back((head, seed, payload));
                } else if !push {
                    tx.publish();
                    match oracle.pop_front() {
                        None => prop_assert_eq!(rx.peek(), None),
                        Some((head, seq, payload)) => {
                            prop_assert_eq!(rx.peek(), Some(head));
                            prop_assert_eq!(rx.seq(), seq);
                            let mut got = vec![0; payload.len()];
                            rx.read(&mut got);
                            prop_assert_eq!(got, payload);
                            rx.advance();
                        }
                    }
                }
            }
            prop_assert!(!tx.update(u64::MAX));
        }
    }
}
