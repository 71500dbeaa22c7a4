//! What of the peer's memory we keep: never so much that it has nothing left to send from.
//!
//! A block that is lent keeps its whole arena from being taken away, so arenas are what counts. Those in which nothing is
//! kept can be replaced by one of any size.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::{MAX_KEPT_BLOCKS, MAX_KEPT_SLABS};

/// An arena, as it counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
}

/// All arenas of one peer in which something is kept.
pub(crate) struct Kept {
    slabs: AtomicU64,
    blocks: AtomicU64,
    bytes: AtomicU64,
    /// Half of what the peer may make beside its first arena.
    max_bytes: u64,
}

impl Kept {
    /// Nothing yet, of a peer that makes arenas of so many bytes beside its first.
    pub(crate) fn new(spare_bytes: u64) -> Arc<Self> {
        let [slabs, blocks, bytes] = [const { AtomicU64::new(0) }; 3];
        Arc::new(Self { slabs, blocks, bytes, max_bytes: spare_bytes / 2 })
    }

    /// Whether as much as this may be kept, whatever else is.
    pub(crate) fn ever_takes(&self, bytes: u64) -> bool {
        bytes <= self.max_bytes
    }

    /// Whether something may be kept in so many more arenas, of this size in all.
    pub(crate) fn takes(&self, slabs: u64, more: Size) -> bool {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        now(&self.slabs) + slabs <= MAX_KEPT_SLABS as u64
            && now(&self.blocks) + more.blocks <= u64::from(MAX_KEPT_BLOCKS)
            && now(&self.bytes) + more.bytes <= self.max_bytes
    }

    fn add(&self, size: Size) {
        self.slabs.fetch_add(1, Ordering::Relaxed);
        self.blocks.fetch_add(size.blocks, Ordering::Relaxed);
        self.bytes.fetch_add(size.bytes, Ordering::Relaxed);
    }

    fn sub(&self, size: Size) {
        self.slabs.fetch_sub(1, Ordering::Relaxed);
        self.blocks.fetch_sub(size.blocks, Ordering::Relaxed);
        self.bytes.fetch_sub(size.bytes, Ordering::Relaxed);
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
            self.all.add(self.size);
        }
    }

    /// A block goes back.
    pub(crate) fn sub(&self) {
        if self.blocks.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.all.sub(self.size);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_arena_counts_while_a_block_of_it_is_kept() {
        let all = Kept::new(2000);
        let size = |blocks, bytes| Size { blocks, bytes };
        let (one, other) =
            (KeptOf::new(all.clone(), size(300, 600)), KeptOf::new(all.clone(), size(50, 400)));
        assert!(all.takes(1, size(384, 1000)) && !all.takes(1, size(385, 1)) && !all.takes(1, size(1, 1001)));
        assert!(!all.takes(MAX_KEPT_SLABS as u64 + 1, size(0, 0)));
        one.add();
        one.add();
        assert_eq!((one.cost(), other.cost()), (None, Some(size(50, 400))));
        assert!(all.takes(1, size(84, 400)) && !all.takes(1, size(85, 1)) && !all.takes(1, size(1, 401)));
        other.add();
        one.sub();
        assert!(all.takes(1, size(34, 0)) && !all.takes(1, size(35, 0)));
        one.sub();
        other.sub();
        assert!(all.takes(1, size(384, 1000)));
    }
}
