//! What of the peer's memory we keep: never so much that it has nothing left to send from.
//!
//! A block that is lent keeps its whole arena from being taken away, so arenas are what counts. Those in which nothing is
//! kept can be replaced by one of any size.

use std::sync::Arc;

use crate::limits::{MAX_ARENA_BLOCKS, MAX_KEPT_BLOCKS, MAX_KEPT_SLABS, MAX_SLABS};
use crate::sync::{AtomicU64, Ordering};

/// Arenas count in whole pages: their bytes are.
const PAGE_BYTES: u64 = 4096;
/// Bits of the sum that count arenas ...
const SLAB_BITS: u32 = 8;
/// ... and their blocks; those above count pages.
const BLOCK_BITS: u32 = 12;
const BLOCKS_AT: u32 = SLAB_BITS;
const PAGES_AT: u32 = SLAB_BITS + BLOCK_BITS;
const _: () = assert!(MAX_SLABS < 1 << SLAB_BITS && MAX_ARENA_BLOCKS < 1 << BLOCK_BITS);
/// More pages than the sum can count need not be told apart.
const MAX_PAGES: u64 = (1 << (64 - PAGES_AT)) - 1;

/// Arenas, their blocks and their pages, which count together: one word, so that one addition counts all.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(u64);

impl Size {
    /// An arena of so many blocks and bytes.
    pub(crate) fn of_arena(blocks: u32, bytes: u64) -> Self {
        Self(1 | u64::from(blocks) << BLOCKS_AT | bytes.div_ceil(PAGE_BYTES).min(MAX_PAGES / 2) << PAGES_AT)
    }

    /// Of different arenas of one peer, of which there are no more than may be.
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    fn slabs(self) -> u64 {
        self.0 & ((1 << SLAB_BITS) - 1)
    }

    fn blocks(self) -> u64 {
        self.0 >> BLOCKS_AT & ((1 << BLOCK_BITS) - 1)
    }

    fn pages(self) -> u64 {
        self.0 >> PAGES_AT
    }
}

/// All arenas of one peer in which something is kept.
pub(crate) struct Kept {
    /// A [`Size`].
    sum: AtomicU64,
    max_slabs: u64,
    max_blocks: u64,
    /// Of what may be made beside the first arena.
    max_pages: u64,
}

/// How much of one side's arenas may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// By the peer, to whom it was lent.
    Half,
    /// By our own application, to whom it was sent back. What the peer keeps at the same time may be all other arenas: so a quarter
    /// is left to send from.
    Quarter,
}

impl Kept {
    /// Nothing yet, of a side that makes arenas of so many bytes beside its first.
    pub(crate) fn new(spare_bytes: u64, part: Part) -> Arc<Self> {
        let of_half = match part {
            Part::Half => 1,
            Part::Quarter => 2,
        };
        Arc::new(Self {
            sum: AtomicU64::new(0),
            max_slabs: MAX_KEPT_SLABS as u64 / of_half,
            max_blocks: u64::from(MAX_KEPT_BLOCKS) / of_half,
            max_pages: (spare_bytes / 2 / of_half / PAGE_BYTES).min(MAX_PAGES / 2),
        })
    }

    /// Arenas of which something is kept.
    #[cfg(all(test, loom))]
    pub(crate) fn slabs(&self) -> u64 {
        Size(self.sum.load(Ordering::Relaxed)).slabs()
    }

    /// Whether as much as this may be kept, whatever else is.
    pub(crate) fn ever_takes(&self, bytes: u64) -> bool {
        bytes.div_ceil(PAGE_BYTES) <= self.max_pages
    }

    /// Whether something may be kept in more arenas, of this size in all.
    pub(crate) fn takes(&self, more: Size) -> bool {
        let now = Size(self.sum.load(Ordering::Relaxed));
        now.slabs() + more.slabs() <= self.max_slabs
            && now.blocks() + more.blocks() <= self.max_blocks
            && now.pages() + more.pages() <= self.max_pages
    }
}

/// What is kept of one arena. The first is not counted: it always stays.
pub(crate) struct KeptOf {
    all: Arc<Kept>,
    size: Size,
    blocks: AtomicU64,
}

impl KeptOf {
    pub(crate) fn new(all: Arc<Kept>, size: Size) -> Self {
        Self { all, size, blocks: AtomicU64::new(0) }
    }

    /// What one more block adds.
    pub(crate) fn cost(&self) -> Option<Size> {
        (self.blocks.load(Ordering::Relaxed) == 0).then_some(self.size)
    }

    /// A block is kept, before anyone can give it back.
    pub(crate) fn add(&self) {
        if self.blocks.fetch_add(1, Ordering::Relaxed) == 0 {
            self.all.sum.fetch_add(self.size.0, Ordering::Relaxed);
        }
    }

    /// A block goes back.
    pub(crate) fn sub(&self) {
        // Whoever added to the sum gave its own block back before: so nothing is taken off that was not added.
        if self.blocks.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all.sum.fetch_sub(self.size.0, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_arena_counts_while_a_block_of_it_is_kept() {
        const PAGE: u64 = PAGE_BYTES;
        let all = Kept::new(2000 * PAGE, Part::Half);
        let size = |blocks, pages| Size::of_arena(blocks, pages * PAGE);
        let (one, other) =
            (KeptOf::new(all.clone(), size(300, 600)), KeptOf::new(all.clone(), size(50, 400)));
        assert!(all.takes(size(384, 1000)) && !all.takes(size(385, 1)) && !all.takes(size(1, 1001)));
        let many = |count| (0..count).fold(Size::default(), |sum: Size, _| sum.and(size(0, 0)));
        assert!(all.takes(many(MAX_KEPT_SLABS)) && !all.takes(many(MAX_KEPT_SLABS + 1)));
        one.add();
        one.add();
        assert_eq!((one.cost(), other.cost()), (None, Some(size(50, 400))));
        assert!(all.takes(size(84, 400)) && !all.takes(size(85, 1)) && !all.takes(size(1, 401)));
        other.add();
        one.sub();
        assert!(all.takes(size(34, 0)) && !all.takes(size(35, 0)));
        one.sub();
        other.sub();
        assert!(all.takes(size(384, 1000)));
    }

    /// As much as a peer can have at a time, all kept: no count runs into its neighbour.
    #[test]
    fn counts_stay_apart() {
        let all = Kept::new(u64::MAX, Part::Half);
        let blocks = MAX_ARENA_BLOCKS / MAX_SLABS as u32;
        let one = Size::of_arena(blocks, (MAX_PAGES / 2 - 1) / MAX_SLABS as u64 * PAGE_BYTES);
        let kept: Vec<_> = (0..MAX_SLABS).map(|_| KeptOf::new(all.clone(), one)).collect();
        kept.iter().for_each(KeptOf::add);
        let sum = Size(all.sum.load(Ordering::Relaxed));
        assert_eq!((sum.slabs(), sum.blocks()), (MAX_SLABS as u64, u64::from(blocks) * MAX_SLABS as u64));
        assert_eq!(sum.pages(), one.pages() * MAX_SLABS as u64);
        kept.iter().for_each(KeptOf::sub);
        assert_eq!(all.sum.load(Ordering::Relaxed), 0);
        assert!(all.ever_takes(1 << 40) && !Kept::new(2 * PAGE_BYTES - 1, Part::Half).ever_takes(1));
        assert_eq!(Size::of_arena(1, u64::MAX).blocks(), 1);
    }
}
