//! How a pool is made.

use super::shared::Shared;
use super::slabs::Slabs;
use super::{BufPool, Handle, LARGE_CACHE_BYTES, limits};
use crate::memory::{Backing, GroupId, Region, RegionBuilder};
use std::sync::Arc;

/// How to make a [`BufPool`].
///
/// ```
/// use zc_core::memory::{Backing, BufPool};
///
/// let pool = BufPool::builder()
///     .name("receive")
///     .max_bytes(16 << 20)
///     .backing(Backing::Huge2M) // Falls back to smaller pages and says why.
///     .headroom(64)
///     .build();
/// assert_eq!(pool.stats().reserved_bytes, 0);
/// assert_eq!(pool.try_alloc(100)?.headroom(), 64);
/// # Ok::<(), zc_core::memory::AllocError>(())
/// ```
#[derive(Debug, Clone)]
pub struct BufPoolBuilder {
    max_bytes: Option<usize>,
    large_cache_bytes: usize,
    region_bytes: usize,
    template: RegionBuilder,
    headroom: usize,
    name: &'static str,
}

impl Default for BufPoolBuilder {
    fn default() -> Self {
        Self {
            max_bytes: None,
            large_cache_bytes: LARGE_CACHE_BYTES,
            region_bytes: 0,
            template: Region::builder(0),
            headroom: 0,
            name: "pool",
        }
    }
}

impl BufPoolBuilder {
    /// The most bytes to map; by default a share of the cgroup's or the machine's memory, see
    /// [`DEFAULT_POOL_DIVISOR`](crate::memory::DEFAULT_POOL_DIVISOR).
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// How many bytes of free dedicated blocks to keep; [`LARGE_CACHE_BYTES`] by default.
    pub fn large_cache_bytes(mut self, bytes: usize) -> Self {
        self.large_cache_bytes = bytes;
        self
    }

    /// The least length of a region while the bound has room for it. By default regions start small
    /// and grow with the pool; a transport for which each region is dear asks for long ones.
    pub fn region_bytes(mut self, bytes: usize) -> Self {
        self.region_bytes = bytes;
        self
    }

    /// What the regions are made of. Memfds are sealed so that nobody else can write them: a pool
    /// lends `&mut [u8]` (M5).
    pub fn backing(mut self, backing: Backing) -> Self {
        self.template = self.template.backing(backing);
        self
    }

    /// Faults the pages of each region in when it is mapped; reserved huge pages always are.
    pub fn prefault(mut self, prefault: bool) -> Self {
        self.template = self.template.prefault(prefault);
        self
    }

    /// Locks the pages of each region, within the process's
    /// [`MemlockBudget`](crate::memory::MemlockBudget).
    pub fn lock(mut self, lock: bool) -> Self {
        self.template = self.template.lock(lock);
        self
    }

    /// Binds the regions to a NUMA node.
    pub fn numa_node(mut self, node: Option<u32>) -> Self {
        self.template = self.template.numa_node(node);
        self
    }

    /// The headroom of every buffer.
    pub fn headroom(mut self, bytes: usize) -> Self {
        self.headroom = bytes;
        self
    }

    /// A name for people.
    pub fn name(mut self, name: &'static str) -> Self {
        self.template = self.template.name(name);
        self.name = name;
        self
    }

    /// The group that the regions belong to.
    pub(in crate::memory) fn group(mut self, group: GroupId) -> Self {
        self.template = self.template.group(group);
        self
    }

    /// Makes the pool. It starts empty: nothing is mapped yet.
    pub fn build(self) -> BufPool {
        let max_bytes = self.max_bytes.unwrap_or_else(limits::default_max_bytes);
        let slabs = Slabs::new(self.template, self.region_bytes, max_bytes);
        let shared = Shared::new(self.name, slabs, self.large_cache_bytes);
        let handle = Arc::new(Handle(Arc::new(shared)));
        BufPool { handle, origin: 0, headroom: self.headroom }
    }
}
