//! What of the peer's arenas is lent to us, as the sending half knows it: that goes back to its owner as it lies.

use std::sync::Arc;

use parking_lot::Mutex;
use zc_core::memory::{PinnedBuf, Region};

use crate::layout::{BACK, Descriptor, Return};
use crate::limits::MAX_SENT_BACK;
use crate::sync::{AtomicU32, Ordering};

/// Above the generation of a loan: how often it was sent back ...
const SENT_BACK_AT: u32 = 16;
/// ... and that it counts as kept.
const COUNTED: u32 = 1 << 24;

/// The loans of one arena, by block.
pub(crate) struct Loans(Box<[AtomicU32]>);

impl Loans {
    pub(crate) fn new(blocks: u32) -> Arc<Self> {
        Arc::new(Self((0..blocks).map(|_| AtomicU32::new(0)).collect()))
    }

    /// A loan begins, which nobody else knows yet.
    #[inline]
    pub(crate) fn begin(&self, block: u32, generation: u16, counted: bool) {
        let counted = if counted { COUNTED } else { 0 };
        self.0[block as usize].store(u32::from(generation) | counted, Ordering::Relaxed);
    }

    /// The loan is sent back once more. Whoever gives it back does so after us, for we have the buffer.
    pub(crate) fn count(&self, block: u32) {
        // Below what fits, by `MAX_SENT_BACK`.
        self.0[block as usize].fetch_add(1 << SENT_BACK_AT, Ordering::Relaxed);
    }

    /// What says that a loan is over, and whether it counted; nobody has it any more. The number fits: the caller has seen
    /// that.
    #[inline]
    pub(crate) fn end(&self, slab: u8, block: u32) -> (Return, bool) {
        let word = self.0[block as usize].load(Ordering::Relaxed);
        let back = Return {
            slab,
            generation: word as u16,
            block: block as u16,
            sent_back: sent_back_of(word) as u8,
        };
        (back, word & COUNTED != 0)
    }
}

fn sent_back_of(word: u32) -> u32 {
    (word & (COUNTED - 1)) >> SENT_BACK_AT
}

/// An arena of the peer.
struct Slab {
    /// Keeps the addresses its own.
    region: Region,
    block_len: usize,
    loans: Arc<Loans>,
}

/// All arenas of which something may be lent to us, by number.
#[derive(Default)]
pub(crate) struct Borrowed(Mutex<Vec<Option<Slab>>>);

/// A buffer that its owner is to be told the place of.
pub(crate) struct Back {
    at: Descriptor,
    loans: Arc<Loans>,
}

impl Back {
    /// It goes out now: counts it, and says how the owner is told. The buffer must be there until then.
    pub(crate) fn send(self) -> Descriptor {
        self.loans.count(self.at.block);
        self.at
    }
}

impl Borrowed {
    pub(crate) fn add(&self, at: u8, region: Region, block_len: u32, loans: Arc<Loans>) {
        let slab = Slab { region, block_len: block_len as usize, loans };
        let mut slabs = self.0.lock();
        let at = usize::from(at);
        let len = slabs.len().max(at + 1);
        slabs.resize_with(len, || None);
        slabs[at] = Some(slab);
    }

    pub(crate) fn remove(&self, at: u8) {
        let gone = self.0.lock().get_mut(usize::from(at)).and_then(Option::take);
        drop(gone);
    }

    /// What names a buffer to its owner, if that is the peer. Whatever lies there is of the loan that is out now: who has
    /// the buffer, has it.
    pub(crate) fn find(&self, buf: &PinnedBuf) -> Option<Back> {
        let slabs = self.0.lock();
        let (ptr, len) = (buf.as_ptr(), buf.len());
        let place = |slab: &Slab| slab.region.offset_of(ptr, len);
        let mut known = slabs.iter().enumerate().filter_map(|(at, slab)| Some((at, slab.as_ref()?)));
        let (at, slab, place) = known.find_map(|(at, slab)| Some((at, slab, place(slab)?)))?;
        let (block, offset) = (place / slab.block_len, place % slab.block_len);
        let word = slab.loans.0.get(block)?.load(Ordering::Relaxed);
        if offset + len > slab.block_len || sent_back_of(word) > MAX_SENT_BACK {
            return None;
        }
        let at = Descriptor {
            slab: BACK | at as u8,
            generation: word as u16,
            block: block as u32,
            offset: offset as u32,
            len: len as u32,
        };
        Some(Back { at, loans: slab.loans.clone() })
    }
}
