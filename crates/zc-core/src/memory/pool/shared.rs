//! The state of a pool that its handles and its blocks in use share.

use super::cache::{self, Cache, CacheInner};
use super::classes::{CLASS_COUNT, class_len, class_of};
use super::slabs::{Extent, Slabs};
use super::stats::{LARGE, Origins, Tallies};
use super::waiters::Waiters;
use super::{AllocError, LARGE_STEP_BYTES};
use crate::memory::block::{Home, OwnedBlock, Table};
use crate::memory::region::page_size;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Blocks of a class are cut about this many bytes at a time.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Default)]
struct Common {
    tallies: Tallies,
    caches: Vec<Arc<Cache>>,
}

/// The state of a pool.
///
/// Lock order: `slow`, then `common`, then a cache; a free list is taken alone. No lock is held
/// while a block is let go: that may unmap a region, which calls registrars and wakes waiters.
pub(in crate::memory) struct Shared {
    pub(super) name: &'static str,
    pub(super) large_cache_bytes: usize,
    pub(super) origins: Origins,
    slabs: Slabs,
    closed: AtomicBool,
    free: [Mutex<Vec<OwnedBlock>>; CLASS_COUNT + 1],
    common: Mutex<Common>,
    waiters: Waiters,
    /// Held while blocks are collected, and by who looks for the last time: nobody finds the lists empty
    /// only because blocks are on their way from a cache. Chunks that are given back are on their way
    /// without it, since that runs foreign code; who waits then is woken when they are there.
    slow: Mutex<()>,
    /// Called when nobody has a handle or a block any more.
    end: Mutex<Option<AtEnd>>,
}

pub(in crate::memory) type AtEnd = Box<dyn FnOnce() + Send>;

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(end) = self.end.get_mut().take() {
            end();
        }
    }
}

/// Where the blocks of one piece of a region go.
pub(in crate::memory) struct Chunk {
    class: usize,
    // First the piece goes back, then those who wait hear of it.
    _extent: Extent,
    pool: PoolRef,
}

/// The system's first refusal, and whether nothing of the pool was in use then.
struct Refused {
    error: AllocError,
    was_idle: bool,
}

struct PoolRef(Arc<Shared>);

impl Drop for PoolRef {
    fn drop(&mut self) {
        self.0.waiters.memory_came_back();
    }
}

impl Chunk {
    /// The pool, to be compared and to be used while the chunk lives.
    pub(in crate::memory) fn pool(&self) -> *const Shared {
        Arc::as_ptr(&self.pool.0)
    }

    /// The class of its blocks.
    pub(in crate::memory) fn class(&self) -> usize {
        self.class
    }

    /// Takes a block back that did not go into the cache.
    pub(in crate::memory) fn take_back(&self, block: OwnedBlock) {
        self.pool.0.put(self.class, block);
    }
}

impl Shared {
    pub(super) fn new(name: &'static str, slabs: Slabs, large_cache_bytes: usize) -> Self {
        Self {
            name,
            large_cache_bytes,
            origins: Origins::new(name),
            slabs,
            closed: AtomicBool::new(false),
            free: std::array::from_fn(|_| Mutex::default()),
            common: Mutex::default(),
            waiters: Waiters::default(),
            slow: Mutex::default(),
            end: Mutex::default(),
        }
    }

    pub(super) fn at_end(&self, end: AtEnd) {
        *self.end.lock() = Some(end);
    }

    pub(super) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    pub(super) fn slabs(&self) -> &Slabs {
        &self.slabs
    }

    /// Makes and remembers a cache for the calling thread, unless the pool is closed.
    pub(super) fn new_cache(&self) -> Option<Arc<Cache>> {
        let mut common = self.common.lock();
        if self.closed.load(Ordering::SeqCst) {
            return None;
        }
        let cache = Arc::new(Cache::default());
        cache.with(|inner| *inner = CacheInner::new());
        common.caches.push(cache.clone());
        Some(cache)
    }

    /// Takes over what the cache of an ending thread holds.
    pub(super) fn absorb(&self, cache: &Arc<Cache>) {
        let mut common = self.common.lock();
        common.caches.retain(|c| !Arc::ptr_eq(c, cache));
        let inner = cache.with(std::mem::take);
        common.tallies.merge(&inner.tallies);
        drop(common);
        for (class, blocks) in inner.into_free() {
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
        self.count(class, origin, bytes, -1);
        if class == LARGE {
            self.put_large(block);
        } else {
            self.put_shared(class, Some(block));
        }
        self.waiters.memory_came_back();
    }

    /// Keeps the block if the dedicated ones that are kept stay below their bound.
    fn put_large(&self, block: OwnedBlock) {
        let mut free = self.free[LARGE].lock();
        let kept: usize = free.iter().map(OwnedBlock::capacity).sum();
        let fits = kept.saturating_add(block.capacity()) <= self.large_cache_bytes;
        if fits && !self.closed.load(Ordering::SeqCst) {
            free.push(block);
        } else {
            drop(free);
            drop(block);
        }
    }

    fn count(self: &Arc<Self>, class: usize, origin: u16, bytes: usize, sign: i64) {
        if class == LARGE || !cache::count(self, class, origin, bytes, sign) {
            self.common.lock().tallies.count(class, origin, bytes, sign);
        }
    }

    #[inline]
    pub(super) fn take(self: &Arc<Self>, need: usize, origin: u16) -> Result<OwnedBlock, AllocError> {
        let class = class_of(need);
        if let Some(class) = class
            && let Some(mut block) = cache::take(self, class, origin)
        {
            block.set_origin(origin);
            return Ok(block);
        }
        self.take_uncached(need, class, origin)
    }

    #[cold]
    fn take_uncached(
        self: &Arc<Self>,
        need: usize,
        class: Option<usize>,
        origin: u16,
    ) -> Result<OwnedBlock, AllocError> {
        if need > self.slabs.max_bytes() {
            return Err(AllocError::TooLarge { need, max: self.slabs.max_bytes() });
        }
        let (class, mut block) = match class {
            Some(class) => self.take_slow(class)?,
            None => (LARGE, self.take_large(need)?),
        };
        self.count(class, origin, block.capacity(), 1);
        block.set_origin(origin);
        Ok(block)
    }

    fn pop(&self, class: usize) -> Option<OwnedBlock> {
        self.free[class].lock().pop()
    }

    /// A block of the class, or when the pool is exhausted of the next larger one that is free.
    fn take_slow(self: &Arc<Self>, class: usize) -> Result<(usize, OwnedBlock), AllocError> {
        if let Some(block) = self.pop(class) {
            return Ok((class, block));
        }
        let mut refused = None;
        if let Some(block) = self.grow(class, &mut refused) {
            return Ok((class, block));
        }
        let slow = self.slow.lock();
        self.collect();
        if let Some(block) = self.pop(class) {
            return Ok((class, block));
        }
        let unused = self.unused();
        drop(slow);
        drop(unused);
        if let Some(block) = self.grow(class, &mut refused) {
            return Ok((class, block));
        }
        // What is free now lies in chunks of which other blocks are in use, so it can't be cut anew.
        let slow = self.slow.lock();
        let found = (class..CLASS_COUNT).find_map(|larger| Some((larger, self.pop(larger)?)));
        drop(slow);
        found.ok_or_else(|| self.why_none(class_len(class), refused))
    }

    fn take_large(self: &Arc<Self>, need: usize) -> Result<OwnedBlock, AllocError> {
        let max = self.slabs.max_bytes();
        // In steps, so that it can be used again for similar lengths; in whole pages, at the least.
        let step = need.checked_next_multiple_of(LARGE_STEP_BYTES).filter(|n| *n <= max);
        let bytes = match step.or_else(|| need.checked_next_multiple_of(page_size())) {
            Some(bytes) if bytes <= max => bytes,
            _ => return Err(AllocError::TooLarge { need, max }),
        };
        if let Some(block) = self.reuse_large(need, bytes) {
            return Ok(block);
        }
        let mut refused = None;
        if let Some(block) = self.cut(bytes, 1, LARGE, &mut refused) {
            return Ok(block);
        }
        self.trim();
        self.reuse_large(need, bytes)
            .or_else(|| self.cut(bytes, 1, LARGE, &mut refused))
            .ok_or_else(|| self.why_none(need, refused))
    }

    fn reuse_large(&self, need: usize, bytes: usize) -> Option<OwnedBlock> {
        let mut free = self.free[LARGE].lock();
        let at = free.iter().rposition(|b| b.capacity() >= need && b.capacity() / 2 <= bytes)?;
        Some(free.remove(at))
    }

    /// Cuts more blocks of a class; the first one is the caller's. `None`: the bound is reached, or the
    /// system has refused.
    fn grow(self: &Arc<Self>, class: usize, refused: &mut Option<Refused>) -> Option<OwnedBlock> {
        let len = class_len(class);
        let counts = std::iter::successors(Some((CHUNK_BYTES / len).max(1) as u32), |count| Some(count / 2));
        counts.take_while(|count| *count > 0).find_map(|count| self.cut(len, count, class, refused))
    }

    fn cut(
        self: &Arc<Self>,
        len: usize,
        count: u32,
        class: usize,
        refused: &mut Option<Refused>,
    ) -> Option<OwnedBlock> {
        // Whole pages are what it really takes; neither step overflows, as `len` is within the bound
        // or a class.
        let bytes = (len * count as usize).next_multiple_of(page_size());
        let extent = match self.slabs.take(self, bytes) {
            Ok(extent) => extent?,
            Err(error) => {
                let is_idle = || self.tallies().in_use_bytes() == 0;
                refused.get_or_insert_with(|| Refused { error, was_idle: is_idle() });
                return None;
            }
        };
        let (region, offset) = (extent.region().clone(), extent.offset());
        let home = Home::Pool(Chunk { class, _extent: extent, pool: PoolRef(self.clone()) });
        let table = Table::of_region(region, offset, len, count, home);
        let first = table.take(0, true);
        if count > 1 {
            // Lowest address on top of the list.
            self.put_shared(class, (1..count).rev().filter_map(|i| table.take(i, true)));
            self.waiters.memory_came_back();
        }
        first
    }

    /// Moves what all caches hold to the shared lists.
    fn collect(&self) {
        let caches = self.common.lock().caches.clone();
        for cache in caches {
            cache::drain(&cache, |class, blocks| self.put_shared(class, blocks));
        }
    }

    /// Takes all blocks out of circulation whose chunk is wholly free. The caller lets them go when
    /// it holds no lock.
    fn unused(&self) -> Vec<OwnedBlock> {
        let mut unused = Vec::new();
        for list in &self.free {
            let mut free = list.lock();
            let mut counts: HashMap<(usize, usize), usize> = HashMap::new();
            free.iter().for_each(|b| *counts.entry(b.table_key()).or_default() += 1);
            let whole = |b: &mut OwnedBlock| counts.get(&b.table_key()) == Some(&b.table_key().1);
            unused.extend(free.extract_if(.., whole));
        }
        unused
    }

    /// Gives back all memory that nobody uses.
    pub(super) fn trim(&self) {
        let slow = self.slow.lock();
        self.collect();
        let unused = self.unused();
        drop(slow);
        drop(unused);
    }

    /// Lets go of everything that is free; what is in use follows when it comes back.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let caches = std::mem::take(&mut self.common.lock().caches);
        for cache in caches {
            let inner = cache.with(|c| std::mem::replace(c, CacheInner::closed()));
            self.common.lock().tallies.merge(&inner.tallies);
        }
        for list in &self.free {
            let blocks = std::mem::take(&mut *list.lock());
            drop(blocks);
        }
    }

    pub(super) fn tallies(&self) -> Tallies {
        let common = self.common.lock();
        let mut sum = common.tallies.clone();
        common.caches.iter().for_each(|c| c.with(|c| sum.merge(&c.tallies)));
        sum
    }

    /// Why there is no memory. Waiting helps where some is in use, also if it came back just now.
    fn why_none(&self, need: usize, refused: Option<Refused>) -> AllocError {
        let in_use = self.tallies().in_use_bytes();
        match refused {
            Some(Refused { error, was_idle: true }) if in_use == 0 => error,
            Some(Refused { error, .. }) => {
                tracing::debug!(pool = self.name, need, in_use, %error, "no more memory for now");
                AllocError::Exhausted { need, in_use, max: self.slabs.max_bytes() }
            }
            None => AllocError::Exhausted { need, in_use, max: self.slabs.max_bytes() },
        }
    }
}
