//! The small unsafe core: who may touch a block of memory, and where it goes when nobody does.
//!
//! A [`Table`] describes one piece of memory and the blocks in it; the metadata of all its blocks is
//! allocated once, on the heap, and never moves. A block in circulation owns one `Arc` of its
//! table, so the memory outlives every buffer, whoever drops it and wherever.
//!
//! ```text
//!         take                        share
//! idle --------> OwnedBlock (unique) --------> SharedBlock (PinnedBuf, counted)
//!   ^            free list, PinnedBufMut                |
//!   |                 ^                                 |
//!   +---- retire -----+------ the last one dropped -----+
//! ```

use super::frames::Reclaim;
use super::pool::{Chunk, cache};
use super::{LeaseBudget, Region, deferral, refcount::RefCount, region_of};
use bytes::Bytes;
use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

/// Where the blocks of a table go when the last user is done.
pub(super) enum Home {
    /// To a pool.
    Pool(Chunk),
    /// To the transport that lent them.
    Frames(Arc<dyn Reclaim>),
    /// Nowhere: it stands for a block of another table, which it keeps.
    Nowhere,
    /// Nowhere: the owner of the bytes lets them go.
    Foreign(#[allow(dead_code, reason = "keeps the bytes alive")] Bytes),
}

/// What only the unique owner of a block writes, and nobody while the block is shared.
struct Private {
    base: NonNull<u8>,
    capacity: usize,
    table: Option<Arc<Table>>,
    lease: Option<Arc<LeaseBudget>>,
    /// The block of another table that this one stands for.
    behind: Option<SharedBlock>,
    origin: u16,
    writable: bool,
}

/// The metadata of one block.
pub(super) struct Block {
    refs: RefCount,
    index: u32,
    private: UnsafeCell<Private>,
}

impl Block {
    fn new(base: NonNull<u8>, capacity: usize, index: u32) -> Self {
        let (table, lease, behind) = (None, None, None);
        let private = Private { base, capacity, table, lease, behind, origin: 0, writable: false };
        Self { refs: RefCount::idle(), index, private: UnsafeCell::new(private) }
    }
}

// SAFETY: `private` is only written by the unique owner and only read by it or by counted
// references, and the reference count orders the two; the bytes at `base` likewise (M5).
unsafe impl Send for Block {}
// SAFETY: as for Send (M5).
unsafe impl Sync for Block {}

/// A block that shares no cache line with its neighbour, which may be in use by another thread.
#[repr(align(64))]
struct Apart(Block);

/// The blocks of a table.
enum Blocks {
    /// One, which needs no allocation beside that of the table.
    One(Block),
    Many(Box<[Apart]>),
}

impl Blocks {
    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(blocks) => blocks.len(),
        }
    }

    #[inline]
    fn at(&self, index: usize) -> Option<&Block> {
        match self {
            Self::One(block) => (index == 0).then_some(block),
            Self::Many(blocks) => blocks.get(index).map(|block| &block.0),
        }
    }
}

/// One piece of memory and its blocks.
pub(super) struct Table {
    region: OnceLock<Option<Region>>,
    blocks: Blocks,
    /// Dropped last: it may give the memory back.
    home: Home,
}

impl Table {
    /// Cuts `region`, from `offset` on, into `count` blocks of `block_len` bytes.
    ///
    /// # Panics
    /// If they do not fit.
    pub(super) fn of_region(
        region: Region,
        offset: usize,
        block_len: usize,
        count: u32,
        home: Home,
    ) -> Arc<Self> {
        let end = block_len.checked_mul(count as usize).and_then(|n| n.checked_add(offset));
        assert!(end.is_some_and(|n| n <= region.len()), "the blocks do not fit");
        let base = region.base_mut();
        let blocks = (0..count)
            .map(|i| {
                // SAFETY: within the region by the assertion above; the region lives as long as the
                // table does (M2).
                let base = unsafe { base.add(offset + i as usize * block_len) };
                Apart(Block::new(base, block_len, i))
            })
            .collect();
        Arc::new(Self { region: OnceLock::from(Some(region)), blocks: Blocks::Many(blocks), home })
    }

    /// `count` blocks, of which each becomes any part of `region` when it is taken with
    /// [`take_window`](Self::take_window).
    pub(super) fn of_windows(region: Region, count: u32, home: Home) -> Arc<Self> {
        let base = region.base_mut();
        let blocks = (0..count).map(|i| Apart(Block::new(base, 0, i))).collect();
        Arc::new(Self { region: OnceLock::from(Some(region)), blocks: Blocks::Many(blocks), home })
    }

    /// One read-only block over foreign memory; with its table it is one allocation.
    pub(super) fn foreign(bytes: Bytes) -> Option<OwnedBlock> {
        let (base, len) = (NonNull::from_ref(&bytes[..]).cast(), bytes.len());
        let blocks = Blocks::One(Block::new(base, len, 0));
        let table = Arc::new(Self { region: OnceLock::new(), blocks, home: Home::Foreign(bytes) });
        // `Bytes` is immutable, does not move its content, and lives as long as the table.
        table.take(0, false)
    }

    /// One block that can stand for one of another table, see [`take_for`](Self::take_for).
    pub(super) fn standing() -> Arc<Self> {
        let blocks = Blocks::One(Block::new(NonNull::dangling(), 0, 0));
        Arc::new(Self { region: OnceLock::from(None), blocks, home: Home::Nowhere })
    }

    /// Takes a [`standing`](Self::standing) block into circulation: the same bytes as `block`, read-only, which stays out
    /// as long as this one. `None` if it is not idle.
    #[inline]
    pub(super) fn take_for(self: &Arc<Self>, block: SharedBlock) -> Option<OwnedBlock> {
        let mut taken = self.take(0, false)?;
        let private = taken.private_mut();
        // Never for one that stands for another itself: what stands in a row would be dropped by recursion.
        let behind = block.behind().clone();
        // They stay where they are, and nobody writes what is lent of them, as long as `behind` is kept (M2, M5).
        (private.base, private.capacity) = (behind.base(), behind.capacity());
        private.behind = Some(behind);
        Some(taken)
    }

    /// How many blocks the table has.
    #[inline]
    pub(super) fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Takes an idle block into circulation; `None` if it is not idle or does not exist.
    #[inline]
    pub(super) fn take(self: &Arc<Self>, index: u32, writable: bool) -> Option<OwnedBlock> {
        let block = self.blocks.at(index as usize)?;
        if !block.refs.claim() {
            return None;
        }
        // SAFETY: `claim` made this the unique owner of an idle block (M5).
        let private = unsafe { &mut *block.private.get() };
        private.table = Some(self.clone());
        private.writable = writable;
        Some(OwnedBlock(InUse(NonNull::from(block))))
    }

    /// Takes an idle block into circulation as `len` bytes at `offset` of the region; `None` if it is not idle
    /// or they do not lie inside.
    pub(super) fn take_window(self: &Arc<Self>, index: u32, offset: usize, len: usize) -> Option<OwnedBlock> {
        let region = self.region.get()?.as_ref()?;
        if offset.checked_add(len)? > region.len() {
            return None;
        }
        let mut block = self.take(index, false)?;
        let private = block.private_mut();
        // SAFETY: within the region, as was just checked; the region lives as long as the table does (M2).
        private.base = unsafe { region.base_mut().add(offset) };
        private.capacity = len;
        Some(block)
    }

    fn region_at(&self, base: NonNull<u8>, len: usize) -> Option<&Region> {
        self.region.get_or_init(|| region_of(base.as_ptr(), len)).as_ref()
    }
}

/// A block in circulation, with which its table is kept.
struct InUse(NonNull<Block>);

// SAFETY: a block is Send and Sync, and who may do what with it is up to the two types below (M5).
unsafe impl Send for InUse {}
// SAFETY: as for Send (M5).
unsafe impl Sync for InUse {}

impl InUse {
    #[inline]
    fn block(&self) -> &Block {
        // SAFETY: a block in circulation holds an Arc of its table, which holds the block (M2).
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn private(&self) -> &Private {
        // SAFETY: only a unique owner writes it, through `&mut OwnedBlock`: while that is borrowed there is
        // no other way here, and while a counted reference is, there is no unique owner (M5).
        unsafe { &*self.block().private.get() }
    }

    fn region(&self) -> Option<&Region> {
        let private = self.private();
        if let Some(behind) = &private.behind {
            return behind.region();
        }
        private.table.as_ref()?.region_at(private.base, private.capacity)
    }
}

/// A block with exactly one owner, who may write it.
pub(super) struct OwnedBlock(InUse);

impl OwnedBlock {
    #[inline]
    fn private(&self) -> &Private {
        self.0.private()
    }

    #[inline]
    fn private_mut(&mut self) -> &mut Private {
        // SAFETY: unique owner and `&mut self` (M5).
        unsafe { &mut *self.0.block().private.get() }
    }

    /// The number of usable bytes.
    #[inline]
    pub(super) fn capacity(&self) -> usize {
        self.private().capacity
    }

    /// Identifies the table, with its number of blocks.
    pub(super) fn table_key(&self) -> (usize, usize) {
        match &self.private().table {
            Some(t) => (Arc::as_ptr(t).addr(), t.count()),
            None => (0, usize::MAX),
        }
    }

    /// The region the block lies in.
    pub(super) fn region(&self) -> Option<&Region> {
        self.0.region()
    }

    /// All bytes of the block; never uninitialised, possibly stale.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        let Private { base, capacity, .. } = self.private();
        // SAFETY: base and capacity describe mapped, initialised memory that the table keeps (M2),
        // and nobody writes it while `&self` lives (M5).
        unsafe { std::slice::from_raw_parts(base.as_ptr(), *capacity) }
    }

    /// All bytes of the block, writable.
    #[inline]
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let Private { base, capacity, writable, .. } = self.private();
        assert!(writable, "the block is read-only");
        // SAFETY: as for `bytes`, and the block is writable, uniquely owned and `&mut self` (M5).
        unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), *capacity) }
    }

    /// Who asked for this block, as an index into the pool's origins.
    #[inline]
    pub(super) fn origin(&self) -> u16 {
        self.private().origin
    }

    /// Tags the block.
    #[inline]
    pub(super) fn set_origin(&mut self, origin: u16) {
        self.private_mut().origin = origin;
    }

    /// Counts the block against a lease while it is out, instead of the one before.
    #[inline]
    pub(super) fn attach_lease(&mut self, lease: Arc<LeaseBudget>) {
        let capacity = self.capacity();
        lease.add(capacity);
        if let Some(old) = self.private_mut().lease.replace(lease) {
            old.sub(capacity);
        }
    }

    /// Turns the unique owner into the first shared one.
    #[inline]
    pub(super) fn share(self) -> SharedBlock {
        let block = InUse(self.0.0);
        std::mem::forget(self);
        SharedBlock(block)
    }

    /// Returns the block to its home.
    #[inline]
    pub(super) fn go_home(mut self) {
        let capacity = self.capacity();
        let lease = self.private_mut().lease.take();
        if let Some(block) = self.go_to_cache() {
            block.go_all_the_way();
        }
        // The memory is back before anyone is told that there is room.
        if let Some(lease) = lease {
            lease.sub(capacity);
        }
    }

    /// The short way: into this thread's cache of the pool. `None` if it went.
    #[inline]
    fn go_to_cache(self) -> Option<Self> {
        match self.private().table.as_deref() {
            Some(Table { home: Home::Pool(chunk), .. }) => {
                let (pool, class) = (chunk.pool(), chunk.class());
                cache::put(pool, class, self)
            }
            _ => Some(self),
        }
    }

    #[cold]
    #[inline(never)]
    fn go_all_the_way(self) {
        // The block may be gone, with the table, before its home is done with it.
        let Some(table) = self.private().table.clone() else { return };
        match &table.home {
            Home::Pool(chunk) => chunk.take_back(self),
            Home::Frames(owner) => {
                let index = self.0.block().index;
                // Idle first: the owner may lend the frame again from inside `reclaim`.
                drop(self);
                owner.reclaim(index);
            }
            Home::Nowhere => drop(self),
            Home::Foreign(_) => {
                drop(self);
                deferral::let_go(table);
            }
        }
    }
}

impl Drop for OwnedBlock {
    /// Takes the block out of circulation (does not send it home).
    #[inline]
    fn drop(&mut self) {
        let private = self.private_mut();
        let (table, lease, capacity) = (private.table.take(), private.lease.take(), private.capacity);
        let behind = private.behind.take();
        self.0.block().refs.retire();
        drop(behind);
        // The block may be gone from here on.
        drop(table);
        if let Some(lease) = lease {
            lease.sub(capacity);
        }
    }
}

/// A counted, read-only reference to a block.
pub(super) struct SharedBlock(InUse);

impl SharedBlock {
    /// The first byte of the block.
    #[inline]
    pub(super) fn base(&self) -> NonNull<u8> {
        self.0.private().base
    }

    /// The number of its bytes.
    pub(super) fn capacity(&self) -> usize {
        self.0.private().capacity
    }

    /// The region the block lies in.
    pub(super) fn region(&self) -> Option<&Region> {
        self.0.region()
    }

    /// The block that this one stands for, or itself. Either keeps the same bytes.
    #[inline]
    fn behind(&self) -> &Self {
        self.0.private().behind.as_ref().unwrap_or(self)
    }

    /// Whether both are, or stand for, the same block.
    #[inline]
    pub(super) fn covers_the_same(&self, other: &Self) -> bool {
        self.behind().0.0 == other.behind().0.0
    }

    /// The bytes that it keeps from being used again. What went around as `Bytes` does not say of which block it is a part, so it
    /// may be anything up to all of its region.
    pub(super) fn kept_bytes(&self) -> usize {
        let is_foreign =
            matches!(self.0.private().table.as_deref(), Some(Table { home: Home::Foreign(_), .. }));
        let region = self.region().filter(|_| is_foreign);
        region.map_or_else(|| self.capacity(), Region::len)
    }

    /// The unique owner, if this is the only reference and the block is writable.
    #[inline]
    pub(super) fn try_unique(self) -> Result<OwnedBlock, Self> {
        if !self.0.private().writable || !self.0.block().refs.is_unique() {
            return Err(self);
        }
        let block = InUse(self.0.0);
        std::mem::forget(self);
        Ok(OwnedBlock(block))
    }
}

impl Clone for SharedBlock {
    #[inline]
    fn clone(&self) -> Self {
        self.0.block().refs.acquire();
        Self(InUse(self.0.0))
    }
}

impl Drop for SharedBlock {
    #[inline]
    fn drop(&mut self) {
        if self.0.block().refs.release_is_last() {
            OwnedBlock(InUse(self.0.0)).go_home();
        }
    }
}
