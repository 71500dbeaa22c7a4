//! The small unsafe core: who may touch a block of memory, and where it goes when nobody does.
//!
//! A [`Table`] describes one piece of memory cut in equal blocks; the metadata of all its blocks is
//! allocated once, on the heap. A block in circulation owns one `Arc` of its table, so the memory
//! outlives every buffer, whoever drops it and wherever.
//!
//! ```text
//! OwnedBlock (unique: free list, PinnedBufMut) --share--> SharedBlock (PinnedBuf, counted)
//!      ^                                                        |
//!      +----------------- the last one dropped -----------------+--> Home::take_back
//! ```

use super::{lease::LeaseBudget, refcount::RefCount, region::Region};
use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

/// Where the blocks of a table go when the last user is done.
pub(crate) trait Home: Send + Sync {
    /// Takes the block back; may be called from any thread.
    fn take_back(&self, block: OwnedBlock);
}

/// What only the unique owner of a block touches.
#[derive(Default)]
struct Private {
    table: Option<Arc<Table>>,
    lease: Option<Arc<LeaseBudget>>,
    origin: u16,
    writable: bool,
}

/// The metadata of one block.
pub(crate) struct Block {
    refs: RefCount,
    base: NonNull<u8>,
    capacity: usize,
    index: u32,
    private: UnsafeCell<Private>,
}

// SAFETY: `base` is only dereferenced through OwnedBlock (unique) or SharedBlock (read only), and
// `private` is only written by the unique owner; the reference count orders the two (M5).
unsafe impl Send for Block {}
// SAFETY: as for Send.
unsafe impl Sync for Block {}

/// One piece of memory cut into blocks.
pub(crate) struct Table {
    // Dropped first: unmapped before `home` gives the bytes back to a budget.
    region: OnceLock<Option<Region>>,
    blocks: Box<[Block]>,
    home: Arc<dyn Home>,
}

impl Table {
    /// Cuts `region` into `count` blocks of `block_len` bytes.
    ///
    /// The caller has checked that they fit.
    pub(crate) fn of_region(
        region: Region,
        block_len: usize,
        count: usize,
        home: Arc<dyn Home>,
    ) -> Arc<Self> {
        assert!(block_len.checked_mul(count).is_some_and(|n| n <= region.len()));
        let base = region.base_mut();
        let blocks = (0..count)
            .map(|i| Block {
                refs: RefCount::new(0),
                // SAFETY: i * block_len is within the region by the assertion above.
                base: unsafe { base.add(i * block_len) },
                capacity: block_len,
                index: i as u32,
                private: UnsafeCell::default(),
            })
            .collect();
        Arc::new(Self { region: OnceLock::from(Some(region)), blocks, home })
    }

    /// One read-only block over foreign memory that `home` keeps alive.
    ///
    /// # Safety
    /// `len` bytes at `base` stay valid and unchanged for as long as `home` lives.
    pub(crate) unsafe fn foreign(base: NonNull<u8>, len: usize, home: Arc<dyn Home>) -> Arc<Self> {
        let block = Block {
            refs: RefCount::new(0),
            base,
            capacity: len,
            index: 0,
            private: UnsafeCell::default(),
        };
        Arc::new(Self { region: OnceLock::new(), blocks: Box::new([block]), home })
    }

    /// How many blocks the table has.
    pub(crate) fn count(&self) -> usize {
        self.blocks.len()
    }

    /// The length of each block.
    pub(crate) fn block_len(&self) -> usize {
        self.blocks.first().map_or(0, |b| b.capacity)
    }

    /// Whether the block is with its owner.
    #[cfg(test)]
    pub(crate) fn is_idle(self: &Arc<Self>, index: u32) -> bool {
        match self.take(index, false) {
            Some(block) => {
                block.retire();
                true
            }
            None => false,
        }
    }

    /// Takes an idle block into circulation; `None` if it is not idle or does not exist.
    pub(crate) fn take(self: &Arc<Self>, index: u32, writable: bool) -> Option<OwnedBlock> {
        let block = self.blocks.get(index as usize)?;
        if !block.refs.claim() {
            return None;
        }
        // SAFETY: claim() made this the unique owner of an idle block.
        let private = unsafe { &mut *block.private.get() };
        private.table = Some(self.clone());
        private.writable = writable;
        Some(OwnedBlock(NonNull::from(block)))
    }

    fn region_at(&self, base: NonNull<u8>, len: usize) -> Option<&Region> {
        self.region.get_or_init(|| super::directory::region_of(base.as_ptr(), len)).as_ref()
    }
}

/// A block with exactly one owner, who may write it.
pub(crate) struct OwnedBlock(NonNull<Block>);

// SAFETY: unique ownership of a Send block.
unsafe impl Send for OwnedBlock {}
// SAFETY: through `&OwnedBlock` memory is only read.
unsafe impl Sync for OwnedBlock {}

impl OwnedBlock {
    fn block(&self) -> &Block {
        // SAFETY: a block in circulation holds an Arc of its table, which holds the block.
        unsafe { self.0.as_ref() }
    }

    fn private(&self) -> &Private {
        // SAFETY: unique owner; `&self` excludes `private_mut`.
        unsafe { &*self.block().private.get() }
    }

    fn private_mut(&mut self) -> &mut Private {
        // SAFETY: unique owner and `&mut self`.
        unsafe { &mut *self.0.as_ref().private.get() }
    }

    /// The number of usable bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.block().capacity
    }

    /// The index in the table.
    pub(crate) fn index(&self) -> u32 {
        self.block().index
    }

    /// Identifies the table, for grouping.
    pub(crate) fn table_key(&self) -> (usize, usize) {
        match &self.private().table {
            Some(t) => (Arc::as_ptr(t) as usize, t.count()),
            None => (0, usize::MAX),
        }
    }

    /// The region the block lies in.
    pub(crate) fn region(&self) -> Option<&Region> {
        let block = self.block();
        self.private().table.as_ref()?.region_at(block.base, block.capacity)
    }

    /// All bytes of the block; never uninitialised, possibly stale.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: base and capacity describe mapped, initialised memory kept alive by the table, and
        // nobody writes while `&self` lives (M5).
        unsafe { std::slice::from_raw_parts(self.block().base.as_ptr(), self.capacity()) }
    }

    /// All bytes of the block, writable.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(self.private().writable, "the block is read-only");
        // SAFETY: as for `bytes`, and the block is writable, uniquely owned and `&mut self` (M5).
        unsafe { std::slice::from_raw_parts_mut(self.block().base.as_ptr(), self.capacity()) }
    }

    /// Who asked for this block, as an index into the pool's origins.
    pub(crate) fn origin(&self) -> u16 {
        self.private().origin
    }

    /// Tags the block.
    pub(crate) fn set_origin(&mut self, origin: u16) {
        self.private_mut().origin = origin;
    }

    /// Counts the block against a lease while it is out; returns the previous lease's bytes.
    pub(crate) fn attach_lease(&mut self, lease: Arc<LeaseBudget>) {
        let capacity = self.capacity();
        lease.add(capacity);
        if let Some(old) = self.private_mut().lease.replace(lease) {
            old.sub(capacity);
        }
    }

    /// Turns the unique owner into the first shared one.
    pub(crate) fn share(self) -> SharedBlock {
        let block = self.0;
        std::mem::forget(self);
        SharedBlock(block)
    }

    /// Returns the block to its home.
    pub(crate) fn go_home(mut self) {
        let capacity = self.capacity();
        if let Some(lease) = self.private_mut().lease.take() {
            lease.sub(capacity);
        }
        let Some(home) = self.private().table.as_ref().map(|t| t.home.clone()) else {
            return;
        };
        home.take_back(self);
    }

    /// Makes the block idle again; hands out what kept its table alive.
    pub(crate) fn retire(mut self) -> Option<Arc<Table>> {
        let table = self.private_mut().table.take();
        self.block().refs.retire();
        std::mem::forget(self);
        table
    }
}

impl Drop for OwnedBlock {
    /// Takes the block out of circulation (does not send it home).
    fn drop(&mut self) {
        let table = self.private_mut().table.take();
        self.block().refs.retire();
        drop(table);
    }
}

/// A counted, read-only reference to a block.
pub(crate) struct SharedBlock(NonNull<Block>);

// SAFETY: shared blocks are only read, and the count is atomic.
unsafe impl Send for SharedBlock {}
// SAFETY: as for Send.
unsafe impl Sync for SharedBlock {}

impl SharedBlock {
    fn block(&self) -> &Block {
        // SAFETY: a counted reference keeps the block in circulation, which keeps its table.
        unsafe { self.0.as_ref() }
    }

    /// The first byte of the block.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.block().base
    }

    /// The region the block lies in.
    pub(crate) fn region(&self) -> Option<&Region> {
        let block = self.block();
        // SAFETY: `table` is only changed by a unique owner, and none exists while this reference
        // is counted and borrowed.
        let private = unsafe { &*block.private.get() };
        private.table.as_ref()?.region_at(block.base, block.capacity)
    }

    /// The unique owner, if this is the only reference and the block is writable.
    pub(crate) fn try_unique(self) -> Result<OwnedBlock, Self> {
        // SAFETY: `writable` is only changed by a unique owner; see `region`.
        let writable = unsafe { (*self.block().private.get()).writable };
        if !writable || !self.block().refs.is_unique() {
            return Err(self);
        }
        let block = self.0;
        std::mem::forget(self);
        Ok(OwnedBlock(block))
    }
}

impl Clone for SharedBlock {
    fn clone(&self) -> Self {
        self.block().refs.acquire();
        Self(self.0)
    }
}

impl Drop for SharedBlock {
    fn drop(&mut self) {
        if self.block().refs.release_is_last() {
            OwnedBlock(self.0).go_home();
        }
    }
}
