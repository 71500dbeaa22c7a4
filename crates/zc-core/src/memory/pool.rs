//! The pool: size classes over regions that are mapped lazily, up to a bound.
//!
//! ```text
//! try_alloc: thread cache -> shared list of the class -> map more -> collect all caches,
//!            unmap what is wholly free, map again -> Exhausted
//! ```
//!
//! Blocks are reused last in, first out. Their content is not cleared: it may be stale.

use super::block::{Home, OwnedBlock, Table};
use super::cache::{self, Cache, cache_limit};
use super::classes::{CLASS_COUNT, class_len, class_of};
use super::stats::{MAX_ORIGINS, PoolStats, Tallies, Usage};
use super::waiters::{AllocWaiter, Waiters};
use super::{Backing, PinnedBufMut, Region, RegionError, limits};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// How many bytes of free dedicated regions a pool keeps for reuse by default.
pub const LARGE_CACHE_BYTES: usize = 64 << 20;
/// The pool maps about this many bytes at a time for a class.
const GROWTH_BYTES: usize = 256 << 10;
/// Dedicated regions are multiples of this, so that they are reused for similar lengths.
const LARGE_STEP_BYTES: usize = 1 << 20;
/// The index of dedicated regions in the per-class counts.
const LARGE: usize = CLASS_COUNT;

/// Why there is no buffer.
#[derive(Debug, thiserror::Error)]
pub enum AllocError {
    /// The bound is reached; waiting helps.
    #[error("pool exhausted: {need} bytes needed, {in_use} of {max} in use")]
    Exhausted {
        /// The bytes needed, headroom included.
        need: usize,
        /// The bytes in use.
        in_use: u64,
        /// The bound.
        max: usize,
    },
    /// More than the pool may ever hold; waiting does not help.
    #[error("{need} bytes exceed the pool's bound of {max}")]
    TooLarge {
        /// The bytes needed.
        need: usize,
        /// The bound.
        max: usize,
    },
    /// The system refused a region.
    #[error(transparent)]
    Os(#[from] RegionError),
}

#[derive(Default)]
struct Common {
    tallies: Tallies,
    caches: Vec<Arc<Cache>>,
}

/// The state that blocks in use keep alive.
pub(super) struct Shared {
    name: &'static str,
    backing: Backing,
    max_bytes: usize,
    large_cache_bytes: usize,
    reserved: AtomicUsize,
    peak: AtomicUsize,
    closed: AtomicBool,
    free: [Mutex<Vec<OwnedBlock>>; CLASS_COUNT + 1],
    common: Mutex<Common>,
    origins: RwLock<Vec<&'static str>>,
    waiters: Waiters,
}

/// Where the blocks of one region of a pool go.
struct Chunk {
    pool: Arc<Shared>,
    class: usize,
    bytes: usize,
}

impl Home for Chunk {
    fn take_back(&self, block: OwnedBlock) {
        self.pool.put(self.class, block);
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.pool.reserved.fetch_sub(self.bytes, Ordering::SeqCst);
        self.pool.waiters.memory_came_back();
    }
}

impl Shared {
    pub(super) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Makes and remembers a cache for the calling thread, unless the pool is closed.
    pub(super) fn new_cache(&self) -> Option<Arc<Cache>> {
        let mut common = self.common.lock();
        if self.closed.load(Ordering::SeqCst) {
            return None;
        }
        let cache = Arc::new(Cache::default());
        common.caches.push(cache.clone());
        Some(cache)
    }

    /// Takes over what the cache of an ending thread holds.
    pub(super) fn absorb(&self, cache: &Arc<Cache>) {
        let mut common = self.common.lock();
        common.caches.retain(|c| !Arc::ptr_eq(c, cache));
        let inner = std::mem::take(&mut *cache.lock());
        common.tallies.merge(&inner.tallies);
        drop(common);
        for (class, blocks) in inner.free.into_iter().enumerate() {
            self.put_shared(class, blocks);
        }
        self.waiters.memory_came_back();
    }

    /// Adds to a shared list; a closed pool lets the blocks go.
    fn put_shared(&self, class: usize, blocks: impl IntoIterator<Item = OwnedBlock>) {
        for block in blocks {
            let mut free = self.free[class].lock();
            if self.closed.load(Ordering::SeqCst) {
                drop(free);
                drop(block);
            } else {
                free.push(block);
            }
        }
    }

    fn put(self: &Arc<Self>, class: usize, block: OwnedBlock) {
        let (origin, bytes) = (block.origin(), block.capacity());
        if class == LARGE {
            self.common.lock().tallies.count(class, origin, bytes, -1);
            self.put_large(block);
        } else {
            let mut block = Some(block);
            let counted = cache::with(self, |cache| {
                cache.tallies.count(class, origin, bytes, -1);
                let list = &mut cache.free[class];
                if list.len() < cache_limit(class)
                    && !self.waiters.any()
                    && let Some(block) = block.take()
                {
                    list.push(block);
                }
            });
            if counted.is_none() {
                self.common.lock().tallies.count(class, origin, bytes, -1);
            }
            self.put_shared(class, block);
        }
        self.waiters.memory_came_back();
    }

    fn put_large(&self, block: OwnedBlock) {
        let kept: usize = self.free[LARGE].lock().iter().map(OwnedBlock::capacity).sum();
        if kept + block.capacity() <= self.large_cache_bytes {
            self.put_shared(LARGE, Some(block));
        }
    }

    fn take(self: &Arc<Self>, need: usize, origin: u16) -> Result<OwnedBlock, AllocError> {
        if need > self.max_bytes {
            return Err(AllocError::TooLarge { need, max: self.max_bytes });
        }
        let Some(class) = class_of(need) else {
            return self.take_large(need, origin);
        };
        let bytes = class_len(class);
        let cached = cache::with(self, |cache| {
            let block = cache.free[class].pop()?;
            cache.tallies.count(class, origin, bytes, 1);
            Some(block)
        });
        let mut block = match cached.flatten() {
            Some(block) => block,
            None => {
                let block = self.take_slow(class)?;
                self.count_out(class, origin, bytes);
                block
            }
        };
        block.set_origin(origin);
        Ok(block)
    }

    fn count_out(self: &Arc<Self>, class: usize, origin: u16, bytes: usize) {
        if cache::with(self, |c| c.tallies.count(class, origin, bytes, 1)).is_none() {
            self.common.lock().tallies.count(class, origin, bytes, 1);
        }
    }

    fn take_slow(self: &Arc<Self>, class: usize) -> Result<OwnedBlock, AllocError> {
        let pop = || self.free[class].lock().pop();
        if let Some(block) = pop() {
            return Ok(block);
        }
        if let Some(block) = self.grow(class)? {
            return Ok(block);
        }
        self.collect();
        if let Some(block) = pop() {
            return Ok(block);
        }
        self.trim();
        match self.grow(class)?.or_else(pop) {
            Some(block) => Ok(block),
            None => Err(self.exhausted(class_len(class))),
        }
    }

    fn take_large(self: &Arc<Self>, need: usize, origin: u16) -> Result<OwnedBlock, AllocError> {
        let bytes = need.checked_next_multiple_of(LARGE_STEP_BYTES).unwrap_or(need);
        let bytes = bytes.min(self.max_bytes).max(need);
        let reuse = || {
            let mut free = self.free[LARGE].lock();
            let at = free.iter().rposition(|b| b.capacity() >= need && b.capacity() / 2 <= bytes)?;
            Some(free.remove(at))
        };
        let found = match reuse() {
            Some(block) => Some(block),
            None => match self.map(bytes, 1, LARGE)? {
                Some(block) => Some(block),
                None => {
                    self.collect();
                    self.trim();
                    self.map(bytes, 1, LARGE)?
                }
            },
        };
        let Some(mut block) = found else {
            return Err(self.exhausted(need));
        };
        block.set_origin(origin);
        self.common.lock().tallies.count(LARGE, origin, block.capacity(), 1);
        Ok(block)
    }

    /// Maps a region for a class; the first block is the caller's. `None`: the bound is reached.
    fn grow(self: &Arc<Self>, class: usize) -> Result<Option<OwnedBlock>, AllocError> {
        let len = class_len(class);
        let mut count = (GROWTH_BYTES / len).max(1);
        if matches!(self.backing, Backing::Huge2M | Backing::Huge1G) {
            count = count.max(super::sys::HUGE_2M / len);
        }
        while count > 0 {
            if let Some(block) = self.map(len, count, class)? {
                return Ok(Some(block));
            }
            count /= 2;
        }
        Ok(None)
    }

    fn map(
        self: &Arc<Self>,
        len: usize,
        count: usize,
        class: usize,
    ) -> Result<Option<OwnedBlock>, AllocError> {
        let bytes = len * count;
        let fits = |used: usize| used.checked_add(bytes).filter(|n| *n <= self.max_bytes);
        let Ok(before) = self.reserved.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits) else {
            return Ok(None);
        };
        self.peak.fetch_max(before + bytes, Ordering::Relaxed);
        let home = Arc::new(Chunk { pool: self.clone(), class, bytes });
        // If this fails, dropping `home` gives the reservation back.
        let region = Region::builder(bytes).backing(self.backing).name(self.name).build()?;
        let table = Table::of_region(region, len, count, home);
        let first = table.take(0, true);
        // Lowest address on top of the list.
        self.put_shared(class, (1..count as u32).rev().filter_map(|i| table.take(i, true)));
        if count > 1 {
            self.waiters.memory_came_back();
        }
        Ok(first)
    }

    /// Moves what all caches hold to the shared lists.
    fn collect(&self) {
        let caches = self.common.lock().caches.clone();
        for cache in caches {
            let free = std::mem::take(&mut cache.lock().free);
            for (class, blocks) in free.into_iter().enumerate() {
                self.put_shared(class, blocks);
            }
        }
    }

    /// Unmaps every region whose blocks are all free.
    fn trim(&self) {
        for list in &self.free {
            let mut gone = Vec::new();
            let mut free = list.lock();
            let mut counts: HashMap<(usize, usize), usize> = HashMap::new();
            free.iter().for_each(|b| *counts.entry(b.table_key()).or_default() += 1);
            for block in std::mem::take(&mut *free) {
                let key = block.table_key();
                let whole = counts.get(&key) == Some(&key.1);
                if whole { gone.push(block) } else { free.push(block) }
            }
            drop(free); // Unmapping happens outside of the lock.
            drop(gone);
        }
    }

    /// Lets go of everything that is free; what is in use follows when it comes back.
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let caches = std::mem::take(&mut self.common.lock().caches);
        for cache in caches {
            let inner = {
                let mut cache = cache.lock();
                let closed = cache::CacheInner { closed: true, ..Default::default() };
                std::mem::replace(&mut *cache, closed)
            };
            self.common.lock().tallies.merge(&inner.tallies);
        }
        for list in &self.free {
            let blocks = std::mem::take(&mut *list.lock());
            drop(blocks);
        }
    }

    fn tallies(&self) -> Tallies {
        let common = self.common.lock();
        let mut sum = common.tallies.clone();
        common.caches.iter().for_each(|c| sum.merge(&c.lock().tallies));
        sum
    }

    fn exhausted(&self, need: usize) -> AllocError {
        let in_use = self.tallies().class.iter().map(|t| t.usage().bytes).sum();
        AllocError::Exhausted { need, in_use, max: self.max_bytes }
    }

    fn origin(&self, name: &'static str) -> u16 {
        let mut origins = self.origins.write();
        if let Some(at) = origins.iter().position(|o| *o == name) {
            return at as u16;
        }
        if origins.len() + 1 < MAX_ORIGINS {
            origins.push(name);
        } else if origins.len() + 1 == MAX_ORIGINS {
            origins.push("(others)");
        }
        (origins.len() - 1) as u16
    }
}

/// Closes the pool when the last handle goes.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Lends buffers of pinned memory. Cloning gives another handle to the same pool.
///
/// Dropping the last handle frees what is free; buffers in use keep their own region alive.
#[derive(Clone)]
pub struct BufPool {
    handle: Arc<Handle>,
    origin: u16,
    headroom: usize,
}

impl std::fmt::Debug for BufPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufPool").field("name", &self.shared().name).finish_non_exhaustive()
    }
}

/// How to make a [`BufPool`].
#[derive(Debug, Clone)]
pub struct BufPoolBuilder {
    max_bytes: Option<usize>,
    large_cache_bytes: usize,
    backing: Backing,
    headroom: usize,
    name: &'static str,
}

impl BufPoolBuilder {
    /// The most bytes to map; by default a share of the cgroup's or the machine's memory, see
    /// [`DEFAULT_POOL_DIVISOR`](super::DEFAULT_POOL_DIVISOR).
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// How many bytes of free dedicated regions to keep; [`LARGE_CACHE_BYTES`] by default.
    pub fn large_cache_bytes(mut self, bytes: usize) -> Self {
        self.large_cache_bytes = bytes;
        self
    }

    /// What the regions are made of.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// The headroom of every buffer.
    pub fn headroom(mut self, bytes: usize) -> Self {
        self.headroom = bytes;
        self
    }

    /// A name for people.
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Makes the pool. It starts empty: nothing is mapped yet.
    pub fn build(self) -> BufPool {
        let shared = Shared {
            name: self.name,
            backing: self.backing,
            max_bytes: self.max_bytes.unwrap_or_else(limits::default_max_bytes),
            large_cache_bytes: self.large_cache_bytes,
            reserved: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            free: std::array::from_fn(|_| Mutex::default()),
            common: Mutex::default(),
            origins: RwLock::new(vec![self.name]),
            waiters: Waiters::default(),
        };
        let handle = Arc::new(Handle(Arc::new(shared)));
        BufPool { handle, origin: 0, headroom: self.headroom }
    }
}

impl BufPool {
    /// Describes a new pool.
    pub fn builder() -> BufPoolBuilder {
        BufPoolBuilder {
            max_bytes: None,
            large_cache_bytes: LARGE_CACHE_BYTES,
            backing: Backing::Anonymous,
            headroom: 0,
            name: "pool",
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.0
    }

    /// A handle whose allocations are counted under `name`.
    pub fn with_origin(&self, name: &'static str) -> Self {
        Self { origin: self.shared().origin(name), ..self.clone() }
    }

    /// The most bytes it may map.
    pub fn max_bytes(&self) -> usize {
        self.shared().max_bytes
    }

    /// An empty buffer with room for at least `len` bytes. Does not wait, and does not queue behind
    /// those who do.
    pub fn try_alloc(&self, len: usize) -> Result<PinnedBufMut, AllocError> {
        self.try_alloc_with_headroom(len, self.headroom)
    }

    /// As [`try_alloc`](Self::try_alloc), with `headroom` bytes in front.
    pub fn try_alloc_with_headroom(
        &self,
        len: usize,
        headroom: usize,
    ) -> Result<PinnedBufMut, AllocError> {
        let need = len.saturating_add(headroom);
        let block = self.shared().take(need, self.origin)?;
        Ok(PinnedBufMut::from_block(block, headroom, 0))
    }

    /// An empty buffer with room for at least `len` bytes, as soon as the pool can.
    pub async fn alloc(&self, len: usize) -> Result<PinnedBufMut, AllocError> {
        self.alloc_with_headroom(len, self.headroom).await
    }

    /// As [`alloc`](Self::alloc), with `headroom` bytes in front. Cancellation-safe.
    pub async fn alloc_with_headroom(
        &self,
        len: usize,
        headroom: usize,
    ) -> Result<PinnedBufMut, AllocError> {
        let mut waiter = AllocWaiter::new();
        std::future::poll_fn(|cx| self.poll_with_headroom(len, headroom, &mut waiter, cx)).await
    }

    /// As [`alloc`](Self::alloc), for a caller that keeps its place in the queue itself.
    pub fn poll_alloc(
        &self,
        len: usize,
        waiter: &mut AllocWaiter,
        cx: &mut Context<'_>,
    ) -> Poll<Result<PinnedBufMut, AllocError>> {
        self.poll_with_headroom(len, self.headroom, waiter, cx)
    }

    fn poll_with_headroom(
        &self,
        len: usize,
        headroom: usize,
        waiter: &mut AllocWaiter,
        cx: &mut Context<'_>,
    ) -> Poll<Result<PinnedBufMut, AllocError>> {
        let wait_first = waiter.is_queued() || self.shared().waiters.any();
        if !wait_first {
            match self.try_alloc_with_headroom(len, headroom) {
                Err(AllocError::Exhausted { .. }) => {}
                done => return Poll::Ready(done),
            }
        }
        // Queued first, then tried again: whoever gives memory back now sees the queue.
        if !waiter.queue_at(self.shared(), cx.waker()) {
            return Poll::Pending;
        }
        match self.try_alloc_with_headroom(len, headroom) {
            Err(AllocError::Exhausted { .. }) => Poll::Pending,
            done => {
                waiter.leave();
                Poll::Ready(done)
            }
        }
    }

    /// What is mapped and in use.
    pub fn stats(&self) -> PoolStats {
        let shared = self.shared();
        let tallies = shared.tallies();
        let used = |u: &Usage| u.buffers > 0;
        let by_class: Vec<_> = tallies
            .class
            .iter()
            .enumerate()
            .map(|(i, t)| ((i != LARGE).then(|| class_len(i)), t.usage()))
            .filter(|(_, u)| used(u))
            .collect();
        let origins = shared.origins.read();
        let by_origin = origins
            .iter()
            .zip(&tallies.origin)
            .map(|(name, t)| (*name, t.usage()))
            .filter(|(_, u)| used(u))
            .collect();
        PoolStats {
            reserved_bytes: shared.reserved.load(Ordering::SeqCst),
            in_use_bytes: by_class.iter().map(|(_, u)| u.bytes).sum(),
            in_use_buffers: by_class.iter().map(|(_, u)| u.buffers).sum(),
            by_class,
            by_origin,
            peak: shared.peak.load(Ordering::Relaxed),
        }
    }

    /// Who has buffers outstanding: the leak report.
    pub fn outstanding_by_origin(&self) -> Vec<(&'static str, Usage)> {
        self.stats().by_origin
    }
}

#[cfg(all(test, not(loom)))]
#[path = "pool_tests.rs"]
mod tests;
