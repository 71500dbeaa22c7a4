//! Those who wait for memory, first come, first served.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;

/// The queue of a pool. Bounded by the number of live [`AllocWaiter`]s.
#[derive(Default)]
pub(super) struct Waiters {
    count: AtomicUsize,
    queue: Mutex<(u64, VecDeque<(u64, Waker)>)>,
}

impl Waiters {
    /// Memory came back: wakes the first one.
    pub(super) fn memory_came_back(&self) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let first = self.queue.lock().1.front().map(|(_, w)| w.clone());
        if let Some(waker) = first {
            waker.wake();
        }
    }

    /// Whether anyone waits.
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Queues or refreshes; true if the caller is first.
    pub(super) fn enqueue(&self, ticket: &mut Option<u64>, waker: &Waker) -> bool {
        let mut guard = self.queue.lock();
        let (next, queue) = &mut *guard;
        match ticket.and_then(|t| queue.iter().position(|(id, _)| *id == t)) {
            Some(at) => {
                queue[at].1.clone_from(waker);
                at == 0
            }
            None => {
                *next += 1;
                *ticket = Some(*next);
                queue.push_back((*next, waker.clone()));
                self.count.store(queue.len(), Ordering::SeqCst);
                queue.len() == 1
            }
        }
    }

    /// Leaves the queue; whoever is first then is woken, for it may find memory.
    fn leave(&self, ticket: u64) {
        {
            let mut guard = self.queue.lock();
            guard.1.retain(|(id, _)| *id != ticket);
            self.count.store(guard.1.len(), Ordering::SeqCst);
        }
        self.memory_came_back();
    }
}

/// A place in the queue of those who wait for a pool; dropping it leaves the queue.
#[derive(Default)]
pub struct AllocWaiter {
    place: Option<(Weak<super::pool::Shared>, Option<u64>)>,
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
    pub(super) fn queue_at(&mut self, pool: &Arc<super::pool::Shared>, waker: &Waker) -> bool {
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
