//! The free blocks that one thread keeps, so that most allocations meet nobody else.
//!
//! The lock of a cache is nearly always uncontended: only its thread takes it, except when a pool is
//! dropped or exhausted and collects what the caches hold.

use super::block::OwnedBlock;
use super::classes::{CLASS_COUNT, class_len};
use super::pool::Shared;
use super::stats::Tallies;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::{Arc, Weak};

/// Per class and thread, at most this many blocks ...
const CACHE_MAX_BLOCKS: usize = 64;
/// ... and about this many bytes.
const CACHE_MAX_BYTES: usize = 256 << 10;

/// How many blocks of a class a thread keeps.
pub(super) fn cache_limit(class: usize) -> usize {
    (CACHE_MAX_BYTES / class_len(class)).clamp(2, CACHE_MAX_BLOCKS)
}

/// What one thread keeps of one pool.
#[derive(Default)]
pub(super) struct CacheInner {
    pub(super) free: [Vec<OwnedBlock>; CLASS_COUNT],
    pub(super) tallies: Tallies,
    pub(super) closed: bool,
}

/// A cache, seen by its thread and by its pool.
pub(super) type Cache = Mutex<CacheInner>;

struct Entry {
    pool: *const Shared,
    cache: Arc<Cache>,
    weak: Weak<Shared>,
}

#[derive(Default)]
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
    static LOCAL: RefCell<Local> = RefCell::default();
}

/// Runs `f` on this thread's cache of `pool`; `None` if the thread is ending or the pool closed.
pub(super) fn with<R>(pool: &Arc<Shared>, f: impl FnOnce(&mut CacheInner) -> R) -> Option<R> {
    LOCAL
        .try_with(|local| {
            let mut local = local.try_borrow_mut().ok()?;
            let id = Arc::as_ptr(pool);
            let at = match local.0.iter().position(|e| std::ptr::eq(e.pool, id)) {
                Some(at) => at,
                None => {
                    // The address of a pool is not reused while a Weak to it exists.
                    local.0.retain(|e| e.weak.strong_count() > 0);
                    let cache = pool.new_cache()?;
                    let weak = Arc::downgrade(pool);
                    local.0.push(Entry { pool: id, cache, weak });
                    local.0.len() - 1
                }
            };
            let mut cache = local.0[at].cache.lock();
            if cache.closed { None } else { Some(f(&mut cache)) }
        })
        .ok()
        .flatten()
}
