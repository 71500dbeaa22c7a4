//! What a pool does when the system grants it less than its bound.

use super::*;
use crate::memory::alone::alone;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::task::{Wake, Waker};

const MIB: usize = 1 << 20;

/// From now on this process gets `spare` more bytes of address space. Like a limit of locked memory it
/// makes mappings fail, and holds root to it, too.
fn leave_address_space(spare: usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split_whitespace().next().unwrap().parse().unwrap();
    let current = Some((pages * rustix::param::page_size() + spare) as u64);
    setrlimit(Resource::As, Rlimit { current, ..getrlimit(Resource::As) }).unwrap();
}

fn all_of(pool: &BufPool, len: usize) -> Vec<PinnedBufMut> {
    let mut held = Vec::with_capacity(1024);
    held.extend(std::iter::from_fn(|| pool.try_alloc(len).ok()));
    held
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_long_region_that_is_refused_is_mapped_shorter() {
    alone("memory::pool::refused_tests::a_long_region_that_is_refused_is_mapped_shorter", || {
        let pool = BufPool::builder().max_bytes(1 << 30).region_bytes(512 * MIB).build();
        leave_address_space(64 * MIB);
        let _small = pool.try_alloc(100).unwrap();
        let _large = pool.try_alloc(6 * MIB).unwrap();
        let reserved = pool.stats().reserved_bytes;
        assert!(reserved < 8 * MIB, "what was refused does not count: {reserved}");
    });
}

#[test]
fn what_is_refused_is_waited_for_while_some_is_in_use() {
    alone("memory::pool::refused_tests::what_is_refused_is_waited_for_while_some_is_in_use", || {
        let pool = BufPool::builder().max_bytes(1 << 30).build();
        leave_address_space(64 * MIB);
        for len in [3 * MIB, 6 * MIB] {
            let mut held = all_of(&pool, len);
            assert!(held.len() > 2);
            assert!(matches!(pool.try_alloc(len), Err(AllocError::Exhausted { .. })));
            let (wakes, mut waiter) = (Arc::new(Wakes::default()), AllocWaiter::new());
            let waker = Waker::from(wakes.clone());
            let cx = &mut Context::from_waker(&waker);
            assert!(pool.poll_alloc(len, &mut waiter, cx).is_pending());
            assert_eq!(wakes.0.load(SeqCst), 0, "it would look in vain for ever");
            drop(held.pop());
            assert_eq!(wakes.0.load(SeqCst), 1);
            let served = pool.poll_alloc(len, &mut waiter, cx);
            assert!(matches!(served, Poll::Ready(Ok(_))), "{served:?}");
        }
    });
}

#[test]
fn what_is_free_elsewhere_is_found_in_spite_of_a_refusal() {
    alone("memory::pool::refused_tests::what_is_free_elsewhere_is_found_in_spite_of_a_refusal", || {
        let pool = BufPool::builder().max_bytes(1 << 30).build();
        let (give, given) = mpsc::channel::<PinnedBufMut>();
        let (done, dropped) = mpsc::channel();
        std::thread::spawn(move || {
            for buf in given {
                drop(buf);
                done.send(()).unwrap();
            }
        });
        let drop_elsewhere = |buf| {
            give.send(buf).unwrap();
            dropped.recv().unwrap();
        };
        // The first drop makes the other thread's cache (and heap), later ones fill it.
        drop_elsewhere(pool.try_alloc(100).unwrap());
        leave_address_space(64 * MIB);
        // A chunk of two blocks, of which one stays in use.
        let [first, _second] = [(); 2].map(|()| pool.try_alloc(100_000).unwrap());
        let mut held = all_of(&pool, 3 * MIB);
        let _rest = [100_000, 60_000].map(|len| all_of(&pool, len));
        drop_elsewhere(held.pop().unwrap());
        held.push(pool.try_alloc(3 * MIB).unwrap());
        // A block of the next class, whose neighbour keeps it from being cut anew.
        drop(first);
        assert_eq!(pool.try_alloc(60_000).unwrap().capacity(), 128 << 10);
        // Memory of one class that becomes memory of a larger one.
        drop(held);
        let _six = pool.try_alloc(6 * MIB).unwrap();
    });
}

#[test]
fn a_refusal_is_an_error_where_nothing_can_come_back() {
    alone("memory::pool::refused_tests::a_refusal_is_an_error_where_nothing_can_come_back", || {
        let pool = BufPool::builder().max_bytes(1 << 30).build();
        leave_address_space(0);
        for len in [3 * MIB, 6 * MIB] {
            assert!(matches!(pool.try_alloc(len), Err(AllocError::Os(_))));
            let waited =
                pool.poll_alloc(len, &mut AllocWaiter::new(), &mut Context::from_waker(Waker::noop()));
            assert!(matches!(waited, Poll::Ready(Err(AllocError::Os(_)))));
        }
        assert_eq!(pool.stats().reserved_bytes, 0);
    });
}
