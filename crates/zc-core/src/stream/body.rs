//! The payload of a frame under way.

use super::limits::{ROPE_KEEPS, ROPE_MIN_BLOCKS};
use crate::memory::{CopyLedger, CopyPlace, MAX_SEGMENTS, Message, PinnedBuf, PinnedBufMut, copy_payload};

/// A payload that is not whole yet: memory of exactly its length that is being filled, or the pieces that have come.
pub(super) struct Body {
    store: Store,
    filled_bytes: usize,
    len: usize,
    kept: Kept,
}

/// The blocks that the pieces of a rope keep.
#[derive(Default)]
struct Kept {
    bytes: usize,
    blocks: usize,
}

/// Where a payload lies.
pub(super) enum Store {
    Pool(PinnedBufMut),
    /// For a record while the pool is exhausted: records must get through.
    Heap(Vec<u8>),
    /// As it was fed.
    Rope(Message),
    /// What has come of it, while the pool is exhausted: it waits for memory and has none of the pool's in hand.
    Spilled(Vec<u8>),
    /// The engine has the memory.
    Away,
}

impl Body {
    #[inline]
    pub(super) fn in_pool(buf: PinnedBufMut, len: usize) -> Self {
        Self { store: Store::Pool(buf), filled_bytes: 0, len, kept: Kept::default() }
    }

    pub(super) fn on_heap(len: usize) -> Self {
        Self { store: Store::Heap(vec![0; len]), filled_bytes: 0, len, kept: Kept::default() }
    }

    pub(super) fn rope(len: usize) -> Self {
        Self { store: Store::Rope(Message::new()), filled_bytes: 0, len, kept: Kept::default() }
    }

    /// What is still to be filled.
    #[inline]
    pub(super) fn space(&mut self) -> &mut [u8] {
        match &mut self.store {
            Store::Pool(buf) => &mut buf.unfilled_mut()[..self.len - self.filled_bytes],
            Store::Heap(bytes) => &mut bytes[self.filled_bytes..],
            Store::Rope(_) | Store::Spilled(_) | Store::Away => &mut [],
        }
    }

    /// The memory, for an engine that fills it while nobody waits.
    pub(super) fn lend(&mut self) -> Option<PinnedBufMut> {
        match std::mem::replace(&mut self.store, Store::Away) {
            Store::Pool(buf) => Some(buf),
            other => {
                self.store = other;
                None
            }
        }
    }

    /// It is back, with more in it.
    pub(super) fn give_back(&mut self, buf: PinnedBufMut) {
        self.filled_bytes = buf.len().min(self.len);
        self.store = Store::Pool(buf);
    }

    pub(super) fn is_rope(&self) -> bool {
        matches!(self.store, Store::Rope(_))
    }

    /// Whether the pieces are so many, or keep so much, that it takes memory of its own to go on.
    pub(super) fn is_full_rope(&self) -> bool {
        let keeps_too_much =
            self.kept.blocks > ROPE_MIN_BLOCKS && self.kept.bytes > self.len.saturating_mul(ROPE_KEEPS);
        let is_full = |rope: &Message| keeps_too_much || rope.segments().len() == MAX_SEGMENTS;
        matches!(&self.store, Store::Rope(rope) if is_full(rope)) && !self.is_whole()
    }

    /// Whether it waits for memory on the heap.
    pub(super) fn is_spilled(&self) -> bool {
        matches!(self.store, Store::Spilled(_)) && !self.is_whole()
    }

    pub(super) fn spilled_bytes(&self) -> usize {
        if let Store::Spilled(bytes) = &self.store { bytes.len() } else { 0 }
    }

    /// Goes on in memory of its own, to which what has come is copied.
    pub(super) fn gather(&mut self, buf: PinnedBufMut, ledger: Option<&CopyLedger>) {
        let before = std::mem::replace(&mut self.store, Store::Pool(buf));
        self.filled_bytes = 0;
        match before {
            Store::Rope(rope) => rope.segments().iter().for_each(|piece| self.begin(piece, ledger)),
            Store::Spilled(bytes) => self.begin(&bytes, ledger),
            Store::Pool(_) | Store::Heap(_) | Store::Away => {}
        }
    }

    /// Lets go of the pieces: what has come goes on on the heap.
    pub(super) fn spill(&mut self, ledger: Option<&CopyLedger>) {
        match std::mem::replace(&mut self.store, Store::Away) {
            Store::Rope(rope) => {
                self.store = Store::Spilled(Vec::with_capacity(self.filled_bytes));
                self.filled_bytes = 0;
                rope.segments().iter().for_each(|piece| self.begin(piece, ledger));
            }
            other => self.store = other,
        }
    }

    /// Takes as much of `bytes` as is missing.
    pub(super) fn absorb(&mut self, bytes: &mut PinnedBuf, ledger: Option<&CopyLedger>) {
        let n = self.missing_bytes().min(bytes.len());
        if let Store::Rope(rope) = &mut self.store {
            if n == 0 || rope.segments().len() == MAX_SEGMENTS {
                return;
            }
            let keeps =
                rope.segments().last().map_or(bytes.kept_bytes(), |last| bytes.kept_bytes_beside(last));
            if rope.push(bytes.split_to(n)).is_ok() {
                self.filled_bytes += n;
                self.kept.bytes += keeps;
                self.kept.blocks += usize::from(keeps > 0);
            }
        } else {
            let part = bytes.split_to(n);
            self.begin(&part, ledger);
        }
    }

    /// `n` more bytes are filled.
    #[inline]
    pub(super) fn advance(&mut self, n: usize) {
        if let Store::Pool(buf) = &mut self.store {
            buf.advance(n);
        }
        self.filled_bytes += n;
    }

    /// Takes over the first bytes, which came in a chunk.
    #[inline]
    #[allow(clippy::disallowed_methods, reason = "without a ledger it is a session record, not payload")]
    pub(super) fn begin(&mut self, begun: &[u8], ledger: Option<&CopyLedger>) {
        let at = self.filled_bytes;
        if let Store::Spilled(bytes) = &mut self.store {
            bytes.resize(at + begun.len(), 0);
        }
        let space = match &mut self.store {
            Store::Spilled(bytes) => &mut bytes[at..],
            _ => &mut self.space()[..begun.len()],
        };
        match ledger {
            Some(ledger) => copy_payload(space, begun, ledger, CopyPlace::Split),
            None => space.copy_from_slice(begun),
        }
        self.advance(begun.len());
    }

    #[inline]
    pub(super) fn missing_bytes(&self) -> usize {
        self.len - self.filled_bytes
    }

    #[inline]
    pub(super) fn is_begun(&self) -> bool {
        self.filled_bytes > 0
    }

    #[inline]
    pub(super) fn is_whole(&self) -> bool {
        self.filled_bytes == self.len
    }

    #[inline]
    pub(super) fn into_store(self) -> Store {
        self.store
    }
}
