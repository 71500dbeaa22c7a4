//! Where pieces go of which too much is lent: out of the area into which a NIC receives, so that who keeps them stalls nobody
//! else.

use std::sync::Arc;

use bytes::Bytes;
use zc_core::memory::{BufPool, CopyLedger, CopyPlace, PinnedBuf, copy_payload};

use super::places::{Places, Spilled};
use crate::sys::{Piece, Pieces};

/// Memory of the pool, else a bounded part of the heap.
pub(crate) struct Relief {
    pool: BufPool,
    on_heap: Places,
    /// Bytes that were copied.
    pub(super) copied_bytes: u64,
}

/// A piece on the heap, and what it has of what may lie there.
struct OnHeap {
    bytes: Vec<u8>,
    _share: Spilled,
}

impl AsRef<[u8]> for OnHeap {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Relief {
    /// With so many bytes of the heap.
    pub(super) fn new(pool: &BufPool, heap_bytes: usize) -> Self {
        Self { pool: pool.with_origin("uring rx"), on_heap: Places::new(heap_bytes), copied_bytes: 0 }
    }

    /// The same bytes, elsewhere; where there is no room, the piece stays.
    pub(super) fn copy_out(&mut self, pieces: Pieces, ledger: Option<&CopyLedger>) -> Pieces {
        pieces.into_iter().map(|piece| self.copy_one(piece, ledger)).collect()
    }

    fn copy_one(&mut self, piece: Piece, ledger: Option<&CopyLedger>) -> Piece {
        let unseen = CopyLedger::new();
        let (ledger, len) = (ledger.unwrap_or(&unseen), piece.bytes.len());
        let bytes: PinnedBuf = if let Ok(mut own) = self.pool.try_alloc_spare(len) {
            copy_payload(&mut own.unfilled_mut()[..len], &piece.bytes, ledger, CopyPlace::CopyOut);
            own.advance(len);
            own.freeze()
        } else {
            let mut share = Spilled::of(&self.on_heap);
            if !share.set(len) {
                return piece;
            }
            let mut bytes = vec![0; len];
            copy_payload(&mut bytes, &piece.bytes, ledger, CopyPlace::CopyOut);
            Bytes::from_owner(OnHeap { bytes, _share: share }).into()
        };
        self.copied_bytes += len as u64;
        Piece { bytes, buffer: piece.buffer }
    }
}

/// Who is told of what is copied.
pub(super) type Ledger = Option<Arc<CopyLedger>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(len: usize) -> Pieces {
        std::iter::once(Piece { bytes: vec![7; len].into(), buffer: 3 }).collect()
    }

    #[test]
    fn pieces_go_to_the_pool_then_to_the_heap_then_stay() {
        let pool = BufPool::builder().max_bytes(8 << 10).build();
        let mut relief = Relief::new(&pool, 5000);
        let ledger = CopyLedger::new();
        let mut held = Vec::new();
        let mut last = pieces(4096);
        while pool.stats().in_use_bytes < pool.max_bytes() as u64 && held.len() < 8 {
            held.push(relief.copy_out(last, Some(&ledger)));
            last = pieces(4096);
        }
        let in_pool = held.iter().filter(|held| held[0].bytes.region().is_some()).count();
        assert!(in_pool > 0);
        let from = last[0].bytes.as_ptr();
        let on_heap = relief.copy_out(last, Some(&ledger));
        assert!(on_heap[0].bytes[..] == [7; 4096] && on_heap[0].buffer == 3);
        assert_ne!(on_heap[0].bytes.as_ptr(), from);
        let copied = relief.copied_bytes;
        assert_eq!(ledger.snapshot().copied_at(CopyPlace::CopyOut), copied);
        let stays = pieces(4096);
        let from = stays[0].bytes.as_ptr();
        assert_eq!(relief.copy_out(stays, None)[0].bytes.as_ptr(), from);
        assert_eq!(relief.copied_bytes, copied);
        // What is let go of can be used again.
        drop((held, on_heap));
        assert_ne!(relief.copy_out(pieces(4096), None)[0].bytes.as_ptr(), from);
    }
}
