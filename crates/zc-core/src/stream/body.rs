//! The payload of a frame under way, in a buffer of its own.

use crate::memory::{CopyLedger, CopyPlace, PinnedBufMut, copy_payload};

/// Memory of exactly the payload's length, being filled.
pub(super) struct Body {
    store: Store,
    filled_bytes: usize,
    len: usize,
}

/// Where a payload lies.
pub(super) enum Store {
    Pool(PinnedBufMut),
    /// For a record while the pool is exhausted: records must get through.
    Heap(Vec<u8>),
}

impl Body {
    #[inline]
    pub(super) fn in_pool(buf: PinnedBufMut, len: usize) -> Self {
        Self { store: Store::Pool(buf), filled_bytes: 0, len }
    }

    pub(super) fn on_heap(len: usize) -> Self {
        Self { store: Store::Heap(vec![0; len]), filled_bytes: 0, len }
    }

    /// What is still to be filled.
    #[inline]
    pub(super) fn space(&mut self) -> &mut [u8] {
        match &mut self.store {
            Store::Pool(buf) => &mut buf.unfilled_mut()[..self.len - self.filled_bytes],
            Store::Heap(bytes) => &mut bytes[self.filled_bytes..],
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
        let space = &mut self.space()[..begun.len()];
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
    pub(super) fn is_whole(&self) -> bool {
        self.filled_bytes == self.len
    }

    #[inline]
    pub(super) fn into_store(self) -> Store {
        self.store
    }
}
