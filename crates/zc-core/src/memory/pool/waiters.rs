//! Those who wait for memory, first come, first served.

use super::shared::Shared;
use crate::memory::sync::Mutex;
use crate::memory::sync::atomic::{AtomicUsize, Ordering};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::task::Waker;

/// The queue of a pool. Bounded by the number of live [`AllocWaiter`]s (M9).
#[derive(Default)]
pub(super) struct Waiters {
    count: AtomicUsize,
    queue: Mutex<Queue>,
}

/// Tickets in the order in which they were drawn; no waker: woken since it last looked.
#[derive(Default)]
struct Queue {
    drawn: u64,
    waiting: BTreeMap<u64, Option<Waker>>,
}

impl Waiters {
    /// Memory came back: wakes the first one.
    pub(super) fn memory_came_back(&self) {
        if !self.any() {
            return;
        }
        let first = self.queue.lock().waiting.first_entry().and_then(|mut e| e.get_mut().take());
        if let Some(waker) = first {
            waker.wake();
        }
    }

    /// Whether anyone waits.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Queues or refreshes; true if the caller is first.
    pub(super) fn enqueue(&self, ticket: &mut Option<u64>, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut queue = self.queue.lock();
        let id = match *ticket {
            Some(id) => id,
            None => {
                queue.drawn += 1;
                *ticket.insert(queue.drawn)
            }
        };
        let old = queue.waiting.insert(id, Some(waker));
        self.count.store(queue.waiting.len(), Ordering::SeqCst);
        let first = queue.waiting.first_key_value().is_some_and(|(first, _)| *first == id);
        drop(queue);
        drop(old); // Wakers are foreign code: not under the lock, not even dropping one.
        first
    }

    /// Leaves the queue; whoever is first then is woken, for it may find memory.
    fn leave(&self, ticket: u64) {
        let mut queue = self.queue.lock();
        let old = queue.waiting.remove(&ticket);
        self.count.store(queue.waiting.len(), Ordering::SeqCst);
        drop(queue);
        drop(old);
        self.memory_came_back();
    }
}

/// A place in the queue of those who wait for a pool; dropping it leaves the queue.
///
/// For callers of [`BufPool::poll_alloc`](super::BufPool::poll_alloc) that are not a future
/// themselves. The queue is strictly in order, so whoever is woken must poll again, or drop its
/// place: until then those behind it wait.
///
/// ```
/// use std::task::{Context, Waker};
/// use zc_core::memory::{AllocWaiter, BufPool};
///
/// let pool = BufPool::builder().max_bytes(4096).build();
/// let all = pool.try_alloc(4096)?;
/// let (mut waiter, cx) = (AllocWaiter::new(), &mut Context::from_waker(Waker::noop()));
/// assert!(pool.poll_alloc(100, &mut waiter, cx).is_pending());
/// assert!(waiter.is_queued());
/// drop(all);
/// assert!(pool.poll_alloc(100, &mut waiter, cx).is_ready());
/// # Ok::<(), zc_core::memory::AllocError>(())
/// ```
#[derive(Default)]
pub struct AllocWaiter {
    place: Option<(Weak<Shared>, Option<u64>)>,
}

impl std::fmt::Debug for AllocWaiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AllocWaiter").field("queued", &self.place.is_some()).finish()
    }
}

impl AllocWaiter {
    /// Not in any queue yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it waits.
    pub fn is_queued(&self) -> bool {
        self.place.is_some()
    }

    /// Queues at `pool` (leaving any other); true if first.
    pub(super) fn queue_at(&mut self, pool: &Arc<Shared>, waker: &Waker) -> bool {
        if self.place.as_ref().is_some_and(|(p, _)| !std::ptr::eq(p.as_ptr(), Arc::as_ptr(pool))) {
            self.leave();
        }
        let (_, ticket) = self.place.get_or_insert_with(|| (Arc::downgrade(pool), None));
        pool.waiters().enqueue(ticket, waker)
    }

    /// Leaves the queue.
    pub(super) fn leave(&mut self) {
        if let Some((pool, Some(ticket))) = self.place.take()
            && let Some(pool) = pool.upgrade()
        {
            pool.waiters().leave(ticket);
        }
    }
}

impl Drop for AllocWaiter {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::super::owner_lock::OwnerLock;
    use super::*;
    use loom::sync::atomic::AtomicBool;
    use loom::thread;
    use std::task::Wake;

    /// A pool of one block, with the steps of the real one: a thread cache and a shared list.
    #[derive(Default)]
    struct Pool {
        cache: OwnerLock<u32>,
        shared: Mutex<u32>,
        waiters: Waiters,
    }

    impl Pool {
        fn put(&self) {
            let cached = self.cache.try_with(|n| {
                let stays = !self.waiters.any();
                *n += u32::from(stays);
                stays
            });
            if cached != Some(true) {
                *self.shared.lock() += 1;
                self.waiters.memory_came_back();
            }
        }

        fn take(&self) -> bool {
            let collected = self.cache.with(std::mem::take);
            let mut shared = self.shared.lock();
            *shared += collected;
            let found = *shared > 0;
            *shared -= u32::from(found);
            found
        }
    }

    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn loom_memory_given_back_is_found_or_wakes() {
        loom::model(|| {
            let pool = loom::sync::Arc::new(Pool::default());
            let flag = std::sync::Arc::new(Flag(AtomicBool::new(false)));
            let owner = {
                let pool = pool.clone();
                thread::spawn(move || pool.put())
            };
            let mut ticket = None;
            let first = pool.waiters.enqueue(&mut ticket, &Waker::from(flag.clone()));
            assert!(first);
            let found = pool.take();
            owner.join().unwrap();
            let woken = flag.0.load(Ordering::SeqCst);
            assert!(found || woken, "the block came back and nobody was told");
            assert!(found || pool.take());
        });
    }

    #[test]
    fn loom_who_leaves_passes_the_wake_on() {
        loom::model(|| {
            let pool = loom::sync::Arc::new(Pool::default());
            let flag = std::sync::Arc::new(Flag(AtomicBool::new(false)));
            let (mut first, mut second) = (None, None);
            assert!(pool.waiters.enqueue(&mut first, Waker::noop()));
            assert!(!pool.waiters.enqueue(&mut second, &Waker::from(flag.clone())));
            let owner = {
                let pool = pool.clone();
                thread::spawn(move || pool.put())
            };
            pool.waiters.leave(first.unwrap());
            owner.join().unwrap();
            assert!(flag.0.load(Ordering::SeqCst));
        });
    }
}
