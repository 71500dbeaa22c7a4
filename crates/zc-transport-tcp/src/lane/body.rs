//! The payload of a frame under way, in memory of its own.
//!
//! It lies in one piece up to `at_once` bytes. A header alone must not make us take a gigabyte from a pool
//! that others use, too: of a longer payload the first piece is taken, and when it is full another as long as
//! all that has come, so that what is taken is at most twice what the peer has sent.

use smallvec::SmallVec;
use zc_core::memory::{CopyLedger, CopyPlace, PinnedBufMut, copy_payload};

/// Memory of exactly the payload's length, being filled.
pub(super) struct Body {
    store: Store,
    /// Free in the last piece.
    space: usize,
    /// What comes after the last piece.
    left: usize,
}

enum Store {
    Pool(Pieces),
    /// For a session record while the pool is exhausted: records must get through.
    Heap(Vec<u8>),
}

/// The pieces of a payload; each is filled before the next is added.
pub(super) type Pieces = SmallVec<[PinnedBufMut; 1]>;

/// A payload that is whole.
pub(super) enum Whole {
    Pool(Pieces),
    Heap(Vec<u8>),
}

/// The length of the next piece of a payload of which `come` bytes are there and `left` are not.
pub(super) fn next_piece(come: usize, left: usize, at_once: usize) -> usize {
    left.min(at_once.max(come))
}

impl Body {
    pub(super) fn in_pool(len: usize) -> Self {
        Self { store: Store::Pool(Pieces::new()), space: 0, left: len }
    }

    pub(super) fn on_heap(len: usize) -> Self {
        Self { store: Store::Heap(vec![0; len]), space: len, left: 0 }
    }

    /// The next `len` bytes belong into `buf`.
    pub(super) fn add(&mut self, buf: PinnedBufMut, len: usize) {
        if let Store::Pool(pieces) = &mut self.store {
            pieces.push(buf);
            (self.space, self.left) = (len, self.left - len);
        }
    }

    /// How much is still without memory, if the memory is full.
    pub(super) fn lacks(&self) -> Option<usize> {
        (self.space == 0 && self.left > 0).then_some(self.left)
    }

    /// Whether what is still to be filled is the end of it.
    pub(super) fn is_last(&self) -> bool {
        self.left == 0
    }

    /// What is still to be filled.
    pub(super) fn space(&mut self) -> &mut [u8] {
        match &mut self.store {
            Store::Pool(pieces) => match pieces.last_mut() {
                Some(buf) => &mut buf.unfilled_mut()[..self.space],
                None => &mut [],
            },
            Store::Heap(bytes) => {
                let filled = bytes.len() - self.space;
                &mut bytes[filled..]
            }
        }
    }

    /// `n` more bytes are filled.
    pub(super) fn advance(&mut self, n: usize) {
        if let Store::Pool(pieces) = &mut self.store
            && let Some(buf) = pieces.last_mut()
        {
            buf.advance(n);
        }
        self.space -= n;
    }

    /// Takes over the first bytes, which came in a chunk.
    #[allow(clippy::disallowed_methods, reason = "without a ledger it is a session record, not payload")]
    pub(super) fn begin(&mut self, begun: &[u8], ledger: Option<&CopyLedger>) {
        let space = &mut self.space()[..begun.len()];
        match ledger {
            Some(ledger) => copy_payload(space, begun, ledger, CopyPlace::Split),
            None => space.copy_from_slice(begun),
        }
        self.advance(begun.len());
    }

    pub(super) fn is_whole(&self) -> bool {
        self.space == 0 && self.left == 0
    }

    pub(super) fn into_whole(self) -> Whole {
        match self.store {
            Store::Pool(pieces) => Whole::Pool(pieces),
            Store::Heap(bytes) => Whole::Heap(bytes),
        }
    }
}
