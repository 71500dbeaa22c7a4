//! Those who wait for memory, first come, first served, with one exception.
//!
//! The first one may need more than is free while somebody behind it needs less, and may even wait for
//! memory that only comes back when that one goes on. So whoever needs less than everybody in front of it
//! gets what those have looked at in vain, but overtakes nobody more than [`MAX_OVERTAKEN`] times, so that
//! the large ones get their turn, too. (Those that leave a share of the pool to all others let them pass always.)
//! And whoever is woken and does not look loses its turn, or it would hold up all others for good.
//!
//! ```text
//! memory comes back -> wakes the first -> finds too little -> wakes the next that needs less -> ...
//! ```

use super::classes::{class_len, class_of};
use super::shared::Shared;
use crate::memory::Deferral;
use crate::memory::sync::Mutex;
use crate::memory::sync::atomic::{AtomicUsize, Ordering};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::task::Waker;

/// Set in the rank of those that leave a share of the pool to others: all others go first, however often.
const PATIENT: usize = 1 << (usize::BITS - 1);

/// The rank of those that wait for `need` bytes: where one finds nothing, no higher one does.
pub(super) fn rank(need: usize, spares: bool) -> usize {
    let need = class_of(need).map_or(need, class_len);
    if spares { PATIENT | need } else { need & !PATIENT }
}

/// How often one that waits is overtaken by such as need less, before all behind it wait.
pub const MAX_OVERTAKEN: u32 = 64;
/// How often memory comes back while one that was woken does not look, before all behind it pass until it does.
pub const MAX_MISSED: u32 = 16;

/// The queue of a pool. Bounded by the number of live [`AllocWaiter`]s (M9).
#[derive(Default)]
pub(super) struct Waiters {
    count: AtomicUsize,
    queue: Mutex<Queue>,
}

/// Tickets in the order in which they were drawn.
#[derive(Default)]
struct Queue {
    drawn: u64,
    /// How often memory came back.
    returns: u64,
    /// Those that memory which comes back is for: all but the fleeting ones that were woken.
    expecting: usize,
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    rank: usize,
    /// Whether it may be left alone, so that nobody waits for it to look.
    fleeting: bool,
    /// None: woken since it last looked.
    waker: Option<Waker>,
    overtaken: u32,
    /// The returns of memory before it was woken.
    woken_at: u64,
}

impl Waiting {
    /// Whether one of `rank` may pass: this one has looked in vain and needs more, or does not look.
    fn lets_pass(&self, rank: usize, returns: u64) -> bool {
        let gives_way = self.rank & PATIENT != 0 && rank & PATIENT == 0;
        let in_vain = self.waker.is_some() && self.rank > rank;
        in_vain && (gives_way || self.overtaken < MAX_OVERTAKEN) || self.is_absent(returns)
    }

    /// Whether it was woken and does not look.
    fn is_absent(&self, returns: u64) -> bool {
        self.waker.is_none() && (self.fleeting || returns - self.woken_at >= MAX_MISSED.into())
    }

    /// Whether memory that comes back is for it.
    fn is_expecting(&self) -> bool {
        self.waker.is_some() || !self.fleeting
    }
}

/// Those to be woken: one of whom it is known that it looks, and the fleeting ones in front of it.
type Woken = SmallVec<[Waker; 2]>;

impl Queue {
    /// The first one, when memory came back or another left; not one that does not look.
    fn first(&mut self) -> Woken {
        self.wake_each(|_, _| Some(true))
    }

    /// The next one that may pass all in front of it.
    fn next_after(&mut self, ticket: u64) -> Woken {
        let returns = self.returns;
        let (mut least, mut most) = (usize::MAX, usize::MAX);
        self.wake_each(|id, waiting| {
            if id > ticket && waiting.rank < least.min(most) {
                return Some(true);
            }
            if !waiting.lets_pass(0, returns) {
                return None;
            }
            least = least.min(waiting.rank);
            if waiting.overtaken >= MAX_OVERTAKEN {
                most = PATIENT;
            }
            Some(false)
        })
    }

    /// In their order, those of whom `choose` says so, until one will look; `None`: until here.
    fn wake_each(&mut self, mut choose: impl FnMut(u64, &Waiting) -> Option<bool>) -> Woken {
        let mut woken = Woken::new();
        for (id, waiting) in &mut self.waiting {
            if waiting.is_absent(self.returns) {
                continue;
            }
            match choose(*id, waiting) {
                Some(true) => {}
                Some(false) => continue,
                None => break,
            }
            if let Some(waker) = waiting.waker.take() {
                waiting.woken_at = self.returns;
                woken.push(waker);
            }
            if !waiting.fleeting {
                break;
            }
            self.expecting -= 1;
        }
        woken
    }

    /// It looks now, and is to be woken again. What it was before comes back.
    fn insert(&mut self, id: u64, rank: usize, fleeting: bool, waker: Waker) -> Option<Waiting> {
        let overtaken = self.waiting.get(&id).map_or(0, |waiting| waiting.overtaken);
        let waiting = Waiting { rank, fleeting, waker: Some(waker), overtaken, woken_at: self.returns };
        let old = self.waiting.insert(id, waiting);
        self.expecting += usize::from(!old.as_ref().is_some_and(Waiting::is_expecting));
        old
    }

    fn remove(&mut self, id: u64) -> Option<Waiting> {
        let old = self.waiting.remove(&id);
        self.expecting -= usize::from(old.as_ref().is_some_and(Waiting::is_expecting));
        old
    }
}

impl Waiters {
    /// Memory came back: wakes the first one.
    pub(super) fn memory_came_back(&self) {
        if self.any() {
            self.update(|queue| {
                queue.returns += 1;
                queue.first()
            });
        }
    }

    /// Whether memory that comes back is for anyone here.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Queues or refreshes; true if the caller may look for memory now.
    fn enqueue(&self, ticket: &mut Option<u64>, rank: usize, fleeting: bool, waker: &Waker) -> bool {
        let waker = waker.clone();
        let (mut may_look, mut old) = (false, None);
        self.update(|queue| {
            let id = match *ticket {
                Some(id) => id,
                None => {
                    queue.drawn += 1;
                    *ticket.insert(queue.drawn)
                }
            };
            old = queue.insert(id, rank, fleeting, waker);
            may_look = queue.waiting.range(..id).all(|(_, waiting)| waiting.lets_pass(rank, queue.returns));
            // It was woken, and meanwhile others go first: the wake-up may be of use to one behind it.
            let was_woken = old.as_ref().is_some_and(|old| old.waker.is_none());
            if was_woken && !may_look { queue.next_after(id) } else { Woken::new() }
        });
        old.and_then(|old| old.waker).into_iter().for_each(Deferral::discard);
        may_look
    }

    /// The caller has looked in vain: wakes the next one for which there may be enough.
    fn in_vain(&self, ticket: u64) {
        self.update(|queue| queue.next_after(ticket));
    }

    /// Leaves the queue, `served` or not; whoever is first then is woken, for it may find memory.
    fn leave(&self, ticket: u64, served: bool) {
        let mut old = None;
        self.update(|queue| {
            old = queue.remove(ticket);
            if served {
                queue.waiting.range_mut(..ticket).for_each(|(_, passed)| passed.overtaken += 1);
            }
            queue.first()
        });
        old.and_then(|old| old.waker).into_iter().for_each(Deferral::discard);
    }

    /// Changes the queue, and calls the wakers that `change` takes out of it without the lock: they are foreign code.
    fn update(&self, change: impl FnOnce(&mut Queue) -> Woken) {
        let mut queue = self.queue.lock();
        let woken = change(&mut queue);
        self.count.store(queue.expecting, Ordering::SeqCst);
        drop(queue);
        woken.into_iter().for_each(Deferral::wake);
    }
}

/// A place in the queue of those who wait for a pool; dropping it leaves the queue.
///
/// For callers of [`BufPool::poll_alloc`](super::BufPool::poll_alloc) that are not a future
/// themselves. Whoever is woken must poll again, or drop its place: until then those behind it wait, at most
/// until memory has come back [`MAX_MISSED`] times more. Who can't promise that takes a [fleeting](Self::fleeting) one.
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
    fleeting: bool,
    place: Option<Place>,
}

struct Place {
    pool: Weak<Shared>,
    rank: usize,
    ticket: Option<u64>,
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

    /// As [`new`](Self::new), for one that may be left alone at any time, like a stream that is polled: once it is
    /// woken nobody waits for it to look, and it has its turn again when it does.
    pub fn fleeting() -> Self {
        Self { fleeting: true, place: None }
    }

    /// Whether it waits.
    pub fn is_queued(&self) -> bool {
        self.place.is_some()
    }

    /// Queues at `pool` (leaving any other place); true if the caller may look now.
    pub(super) fn queue_at(&mut self, pool: &Arc<Shared>, rank: usize, waker: &Waker) -> bool {
        let stays =
            |place: &Place| std::ptr::eq(place.pool.as_ptr(), Arc::as_ptr(pool)) && place.rank == rank;
        if self.place.as_ref().is_some_and(|place| !stays(place)) {
            self.leave(false);
        }
        let new = || Place { pool: Arc::downgrade(pool), rank, ticket: None };
        let place = self.place.get_or_insert_with(new);
        pool.waiters().enqueue(&mut place.ticket, rank, self.fleeting, waker)
    }

    /// There was not enough; it keeps its place.
    pub(super) fn in_vain(&self) {
        if let Some(Place { pool, ticket: Some(ticket), .. }) = &self.place
            && let Some(pool) = pool.upgrade()
        {
            pool.waiters().in_vain(*ticket);
        }
    }

    /// Leaves the queue, `served` or not.
    pub(super) fn leave(&mut self, served: bool) {
        if let Some(Place { pool, ticket: Some(ticket), .. }) = self.place.take()
            && let Some(pool) = pool.upgrade()
        {
            pool.waiters().leave(ticket, served);
        }
    }
}

impl Drop for AllocWaiter {
    fn drop(&mut self) {
        self.leave(false);
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
            let first = pool.waiters.enqueue(&mut ticket, 1, false, &Waker::from(flag.clone()));
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
            assert!(pool.waiters.enqueue(&mut first, 1, false, Waker::noop()));
            assert!(!pool.waiters.enqueue(&mut second, 1, false, &Waker::from(flag.clone())));
            let owner = {
                let pool = pool.clone();
                thread::spawn(move || pool.put())
            };
            pool.waiters.leave(first.unwrap(), false);
            owner.join().unwrap();
            assert!(flag.0.load(Ordering::SeqCst));
        });
    }
}
