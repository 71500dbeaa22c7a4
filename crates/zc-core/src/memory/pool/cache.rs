//! The free blocks that one thread keeps, so that most allocations meet nobody else.
//!
//! Other threads enter a cache only when the pool is exhausted and collects what the caches hold,
//! when it is counted, and when it closes.

use super::classes::{CLASS_COUNT, class_len};
use super::owner_lock::OwnerLock;
use super::shared::Shared;
use super::stats::Tallies;
use crate::memory::block::OwnedBlock;
use std::cell::RefCell;
use std::sync::{Arc, Weak};

/// Per class and thread, at most this many blocks ...
const CACHE_MAX_BLOCKS: usize = 64;
/// ... and at most this many bytes, or one block if that is more (in all classes together 16.8 MiB
/// per thread and pool).
const CACHE_MAX_BYTES: usize = 256 << 10;

/// How many blocks of a class a thread keeps. One at least: a large message that goes to and fro takes
/// the block that is still in the processor's cache.
const fn cache_limit(class: usize) -> usize {
    let fit = CACHE_MAX_BYTES / class_len(class);
    if fit < 1 {
        1
    } else if fit > CACHE_MAX_BLOCKS {
        CACHE_MAX_BLOCKS
    } else {
        fit
    }
}

/// [`cache_limit`] of each class.
const LIMITS: [usize; CLASS_COUNT] = {
    let mut limits = [0; CLASS_COUNT];
    let mut class = 0;
    while class < CLASS_COUNT {
        limits[class] = cache_limit(class);
        class += 1;
    }
    limits
};

/// What one thread keeps of one pool.
#[derive(Default)]
pub(super) struct CacheInner {
    free: [Vec<OwnedBlock>; CLASS_COUNT],
    pub(super) tallies: Tallies,
    closed: bool,
}

impl CacheInner {
    /// An empty one, in which blocks find room without an allocation: that would happen within the lock.
    pub(super) fn new() -> Self {
        Self { free: std::array::from_fn(|class| Vec::with_capacity(LIMITS[class])), ..Self::default() }
    }

    /// One that takes no more.
    pub(super) fn closed() -> Self {
        Self { closed: true, ..Self::default() }
    }

    /// The blocks, by class.
    pub(super) fn into_free(self) -> impl Iterator<Item = (usize, Vec<OwnedBlock>)> {
        self.free.into_iter().enumerate()
    }
}

/// Takes all blocks out of a cache, class by class, and hands them to `f` outside of it. Within it nothing
/// is allocated, and the cache keeps the room for its blocks.
pub(super) fn drain(cache: &Cache, mut f: impl FnMut(usize, std::vec::Drain<'_, OwnedBlock>)) {
    let mut blocks = Vec::with_capacity(CACHE_MAX_BLOCKS);
    for class in 0..CLASS_COUNT {
        cache.with(|cache| blocks.append(&mut cache.free[class]));
        f(class, blocks.drain(..));
    }
}

/// A cache, seen by its thread and by its pool.
pub(super) type Cache = OwnerLock<CacheInner>;

struct Entry {
    /// Only compared. The address is not reused while `weak` exists.
    pool: *const Shared,
    cache: Arc<Cache>,
    weak: Weak<Shared>,
}

struct Local(Vec<Entry>);

impl Drop for Local {
    fn drop(&mut self) {
        for entry in self.0.drain(..) {
            if let Some(pool) = entry.weak.upgrade() {
                pool.absorb(&entry.cache);
            }
        }
    }
}

thread_local! {
    static LOCAL: RefCell<Local> = const { RefCell::new(Local(Vec::new())) };
}

/// Runs `f` on this thread's cache of `pool`, if there is one and it can be entered now.
///
/// `f` must not call out: it runs inside the cache.
#[inline]
fn enter<R>(pool: *const Shared, f: impl FnOnce(&mut CacheInner) -> R) -> Option<R> {
    let found = LOCAL.try_with(|local| {
        let local = local.try_borrow().ok()?;
        let entry = local.0.iter().find(|e| std::ptr::eq(e.pool, pool))?;
        entry.cache.try_with(|cache| if cache.closed { None } else { Some(f(cache)) }).flatten()
    });
    found.ok().flatten()
}

/// A block of the class out of this thread's cache, counted.
#[inline]
pub(super) fn take(pool: &Arc<Shared>, class: usize, origin: u16) -> Option<OwnedBlock> {
    enter(Arc::as_ptr(pool), |cache| {
        let block = cache.free[class].pop()?;
        cache.tallies.count(class, origin, class_len(class), 1);
        Some(block)
    })
    .flatten()
}

/// Puts the block into this thread's cache and counts it; `None` if it went.
///
/// `pool` is the pool of the block. It is a bare pointer because the block may be what keeps the
/// pool alive: once it lies in the cache, another thread may take it out and let both go.
#[inline]
pub(in crate::memory) fn put(pool: *const Shared, class: usize, block: OwnedBlock) -> Option<OwnedBlock> {
    let (origin, bytes) = (block.origin(), block.capacity());
    let mut block = Some(block);
    enter(pool, |cache| {
        let list = cache.free.get_mut(class)?;
        // SAFETY: the block is still ours and keeps its table, which keeps the pool (M2).
        let awaited = unsafe { &*pool }.waiters().any();
        // Someone who waits from now on looks into this cache after we have left it.
        if list.len() >= LIMITS[class] || awaited {
            return None;
        }
        list.push(block.take()?);
        cache.tallies.count(class, origin, bytes, -1);
        Some(())
    });
    block
}

/// Counts in this thread's cache, which is made if need be. False if that is not possible: the
/// thread is ending, the pool is closed, or someone else is inside.
pub(super) fn count(pool: &Arc<Shared>, class: usize, origin: u16, bytes: usize, sign: i64) -> bool {
    let once = || enter(Arc::as_ptr(pool), |cache| cache.tallies.count(class, origin, bytes, sign));
    once().is_some() || (make(pool) && once().is_some())
}

/// Makes this thread's cache of `pool`; false if there is one already or there can be none.
fn make(pool: &Arc<Shared>) -> bool {
    let made = LOCAL.try_with(|local| {
        let mut local = local.try_borrow_mut().ok()?;
        let known = local.0.iter().any(|e| std::ptr::eq(e.pool, Arc::as_ptr(pool)));
        if known {
            return None;
        }
        local.0.retain(|e| e.weak.strong_count() > 0);
        let cache = pool.new_cache()?;
        local.0.push(Entry { pool: Arc::as_ptr(pool), cache, weak: Arc::downgrade(pool) });
        Some(())
    });
    made.ok().flatten().is_some()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::BufPool;

    /// What the documentation of [`CACHE_MAX_BYTES`] says.
    #[test]
    fn a_thread_keeps_what_the_limits_say() {
        let bytes: Vec<usize> = (0..CLASS_COUNT).map(|class| LIMITS[class] * class_len(class)).collect();
        assert!((0..CLASS_COUNT).all(|class| bytes[class] <= CACHE_MAX_BYTES.max(class_len(class))));
        assert_eq!(bytes.iter().sum::<usize>() * 10 / (1 << 20), 167, "16.8 MiB, rounded");

        let pool = BufPool::builder().max_bytes(256 << 20).build();
        let get = |len| (0..3).map(|_| pool.try_alloc(len).unwrap()).collect::<Vec<_>>();
        for class in 0..CLASS_COUNT {
            get(class_len(class)).clear();
            get(class_len(class)).clear();
        }
        let kept = LOCAL.with(|local| {
            let local = local.borrow();
            let entry = local.0.last().unwrap();
            entry.cache.with(|cache| cache.free.each_ref().map(Vec::len))
        });
        assert!((0..CLASS_COUNT).all(|class| kept[class] > 0 && kept[class] <= LIMITS[class]), "{kept:?}");
    }
}
