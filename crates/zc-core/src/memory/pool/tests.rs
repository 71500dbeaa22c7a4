#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::memory::{Backing, PinnedBuf, RegionId, RegisterError, Registrar, RegistrarId, RegistrarSlot};
use futures::executor::block_on;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::Wake;
use std::task::Waker;

fn pool(max: usize) -> BufPool {
    BufPool::builder().max_bytes(max).build()
}

#[test]
fn starts_empty_and_returns_to_zero_across_threads() {
    let p = pool(8 << 20);
    assert_eq!(p.stats().reserved_bytes, 0);
    let bufs: Vec<_> = (0..1000).map(|i| p.try_alloc(i).unwrap().freeze()).collect();
    assert_eq!(p.stats().in_use_buffers, 1000);
    let copies = bufs.clone();
    let t = std::thread::spawn(move || drop(copies));
    drop(bufs);
    t.join().unwrap();
    let s = p.stats();
    assert_eq!((s.in_use_bytes, s.in_use_buffers), (0, 0));
    assert!(s.by_class.is_empty() && s.by_origin.is_empty() && s.peak > 0);
}

#[test]
fn exhausts_trims_and_recovers() {
    let p = pool(1 << 20);
    assert!(matches!(p.try_alloc(2 << 20), Err(AllocError::TooLarge { .. })));
    let mut held = Vec::new();
    let error = loop {
        match p.try_alloc(1000) {
            Ok(b) => held.push(b),
            Err(e) => break e,
        }
    };
    assert!(matches!(error, AllocError::Exhausted { in_use, .. } if in_use == 1 << 20));
    assert_eq!(held.len(), 1024);
    drop(held);
    // Memory of one class becomes memory of another.
    let big = p.try_alloc(1 << 20).unwrap();
    assert_eq!(p.stats().reserved_bytes, 1 << 20);
    drop(big);
    p.try_alloc(10).unwrap();
}

#[test]
fn large_buffers_are_reused_and_bounded() {
    let p = BufPool::builder().max_bytes(256 << 20).large_cache_bytes(10 << 20).build();
    let a = p.try_alloc(5 << 20).unwrap();
    let at = a.as_ptr();
    let b = p.try_alloc(6 << 20).unwrap();
    drop((a, b));
    assert!(p.stats().reserved_bytes <= 10 << 20);
    assert_eq!(p.try_alloc(5 << 20).unwrap().as_ptr(), at);
}

#[test]
fn buffers_outlive_the_pool() {
    let p = pool(1 << 20);
    let mut b = p.try_alloc(100).unwrap();
    let weak = Arc::downgrade(p.shared());
    let q = p.clone();
    std::thread::spawn(move || drop(q.try_alloc(7).unwrap())).join().unwrap();
    b.put_slice(b"still here");
    drop(p);
    let b = b.freeze();
    assert_eq!(&b[..], b"still here");
    drop(b);
    // Only thread caches' weak handles remain.
    assert!(weak.upgrade().is_none());
}

#[test]
fn another_threads_cache_does_not_outlive_the_pool() {
    let p = pool(1 << 20);
    let weak = Arc::downgrade(p.shared());
    let (tx, rx) = std::sync::mpsc::channel::<()>();
    let (ready, is_ready) = std::sync::mpsc::channel::<()>();
    let q = p.clone();
    let t = std::thread::spawn(move || {
        drop(q.try_alloc(7).unwrap());
        drop(q);
        ready.send(()).unwrap();
        rx.recv().unwrap();
    });
    is_ready.recv().unwrap();
    drop(p);
    assert!(weak.upgrade().is_none());
    tx.send(()).unwrap();
    t.join().unwrap();
}

#[test]
fn origins_are_told_apart() {
    let p = pool(1 << 20);
    let q = p.with_origin("q");
    let _b = q.try_alloc(300).unwrap();
    assert_eq!(p.outstanding_by_origin(), [("q", Usage { buffers: 1, bytes: 384 })]);
    let names = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for i in 0..names.len() {
        drop(p.with_origin(&names[i..=i]).try_alloc(1));
    }
    assert!(p.shared().origins.count() <= MAX_ORIGINS);
}

#[test]
fn waiters_are_served_in_order_and_stale_ones_do_not_block() {
    let p = pool(1 << 20);
    let held = p.try_alloc(1 << 20).unwrap();
    let cx = &mut Context::from_waker(Waker::noop());
    let (mut a, mut b) = (AllocWaiter::new(), AllocWaiter::new());
    assert!(p.poll_alloc(10, &mut a, cx).is_pending());
    assert!(p.poll_alloc(10, &mut b, cx).is_pending());
    drop(held);
    assert!(p.poll_alloc(10, &mut b, cx).is_pending(), "not its turn");
    drop(a); // Woken, never polled.
    assert!(p.poll_alloc(10, &mut b, cx).is_ready());
    assert!(!p.shared().waiters().any());
}

#[test]
fn waiting_ends_when_another_thread_drops() {
    let p = pool(64 << 10);
    let held: Vec<_> = std::iter::from_fn(|| p.try_alloc(4096).ok()).collect();
    assert_eq!(held.len(), 16);
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let p = p.clone();
            std::thread::spawn(move || {
                for _ in 0..200 {
                    let b = block_on(p.alloc(4096)).unwrap();
                    std::thread::yield_now();
                    drop(b);
                }
            })
        })
        .collect();
    drop(held);
    tasks.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(p.stats().in_use_bytes, 0);
}

#[test]
fn the_bound_is_exact_whatever_the_pages() {
    let backings =
        [Backing::Anonymous, Backing::Memfd, Backing::MemfdHuge2M, Backing::Huge2M, Backing::Huge1G];
    for backing in backings {
        // Neither a multiple of 2 MiB nor of a chunk.
        let max = (5 << 20) + (12 << 10);
        let p = BufPool::builder().max_bytes(max).backing(backing).build();
        let mut held = Vec::new();
        for len in [3 << 20, 1000, 100_000] {
            held.extend(std::iter::from_fn(|| p.try_alloc(len).ok()));
            assert!(p.stats().reserved_bytes <= max && p.stats().peak <= max);
        }
        let mapped: usize = p.regions().iter().map(Region::len).sum();
        assert_eq!(mapped, p.stats().reserved_bytes);
        assert!(mapped > max - (8 << 10), "{backing:?}: the bound can be used up");
        drop(held);
        p.trim();
        assert_eq!(p.stats().reserved_bytes, 0, "{backing:?}");
    }
}

#[test]
fn lengths_near_the_end_of_the_address_space_are_refused() {
    let p = pool(usize::MAX);
    for len in [usize::MAX, usize::MAX - 10, isize::MAX as usize, isize::MAX as usize + 1] {
        assert!(p.try_alloc_with_headroom(len, 64).is_err());
    }
    assert_eq!(p.stats().reserved_bytes, 0);
}

#[test]
fn regions_are_few() {
    let p = pool(1 << 30);
    let held: Vec<_> = (0..1024).map(|_| p.try_alloc(64 << 10).unwrap()).collect();
    let regions = p.regions();
    assert!(regions.len() <= 40, "{} regions for 64 MiB", regions.len());
    drop(regions);
    assert!(p.stats().reserved_bytes <= (64 << 20) * 5 / 4);
    drop(held);
    let long = BufPool::builder().max_bytes(64 << 20).region_bytes(32 << 20).build();
    let _held: Vec<_> = [100, 5000, 6 << 20].map(|n| long.try_alloc(n).unwrap()).into();
    assert_eq!(long.regions().len(), 1);
}

#[test]
fn a_region_that_somebody_holds_counts_and_is_used_again() {
    let p = pool(1 << 20);
    let region = p.try_alloc(1 << 20).unwrap().region().unwrap().clone();
    p.trim();
    assert_eq!(p.stats().reserved_bytes, 1 << 20);
    assert!(p.regions().iter().any(|r| r.id() == region.id()));
    let held: Vec<_> = std::iter::from_fn(|| p.try_alloc(4096).ok()).collect();
    assert_eq!(held.len(), 256, "all of it is cut again");
    assert!(held.iter().all(|buf| buf.region().unwrap().id() == region.id()));
    drop(held);
    p.trim();
    drop(region);
    assert_eq!(p.stats().reserved_bytes, 0);
    p.try_alloc(1).unwrap();
}

/// Registrars and wakers run foreign code: it may use the pool that called it.
#[test]
fn nothing_foreign_runs_under_a_lock() {
    struct Nosy(RegistrarSlot, BufPool);
    impl Registrar for Nosy {
        fn id(&self) -> RegistrarId {
            self.0.id()
        }
        fn register(&self, _: &Region) -> Result<u64, RegisterError> {
            Ok(self.1.stats().reserved_bytes as u64)
        }
        fn deregister(&self, _: RegionId, _: u64) -> std::io::Result<()> {
            self.1.trim();
            drop(self.1.try_alloc(1 << 20));
            Ok(())
        }
    }
    struct NosyWaker(BufPool, AtomicUsize);
    impl Wake for NosyWaker {
        fn wake(self: Arc<Self>) {
            self.1.fetch_add(1, SeqCst);
            self.0.trim();
            drop(self.0.try_alloc(1));
            drop(self.0.stats());
        }
    }
    let p = pool(1 << 20);
    let registrar: Arc<dyn Registrar> = Arc::new(Nosy(RegistrarSlot::allocate().unwrap(), p.clone()));
    let small: Vec<_> = std::iter::from_fn(|| p.try_alloc(1000).ok()).collect();
    assert!(small.iter().all(|b| b.region().unwrap().register_with(&registrar).is_ok()));
    let waker = Arc::new(NosyWaker(p.clone(), AtomicUsize::new(0)));
    let mut waiter = AllocWaiter::new();
    let cx_waker = Waker::from(waker.clone());
    assert!(p.poll_alloc(2000, &mut waiter, &mut Context::from_waker(&cx_waker)).is_pending());
    drop(small);
    assert!(waker.1.load(SeqCst) > 0);
    // Unmaps, so deregisters and wakes, from within an allocation.
    drop(p.try_alloc(1 << 20));
    assert!(p.poll_alloc(2000, &mut waiter, &mut Context::from_waker(&cx_waker)).is_ready());
}

/// Dropping the last waker of a task may drop the task with its buffers.
#[test]
fn dropping_a_waker_may_give_memory_back() {
    struct Holder(#[allow(dead_code)] Mutex<Option<PinnedBufMut>>);
    impl Wake for Holder {
        fn wake(self: Arc<Self>) {}
    }
    let p = pool(4096);
    let all = p.try_alloc(4096).unwrap();
    let holder = Waker::from(Arc::new(Holder(Mutex::new(Some(all)))));
    let mut waiter = AllocWaiter::new();
    assert!(p.poll_alloc(1, &mut waiter, &mut Context::from_waker(&holder)).is_pending());
    drop(holder);
    let cx = &mut Context::from_waker(Waker::noop());
    let _ = p.poll_alloc(1, &mut waiter, cx);
    assert!(p.poll_alloc(1, &mut waiter, cx).is_ready());
}

#[test]
fn cancelled_waiters_lose_nothing() {
    let p = pool(8 << 10);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for seed in 0..3u32 {
            let (p, stop) = (&p, &stop);
            s.spawn(move || {
                let mut n = seed;
                while !stop.load(SeqCst) {
                    n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let mut alloc = Box::pin(p.alloc(4096));
                    let mut cx = Context::from_waker(Waker::noop());
                    for _ in 0..n >> 30 {
                        if alloc.as_mut().poll(&mut cx).is_ready() {
                            break;
                        }
                        std::thread::yield_now();
                    }
                }
            });
        }
        // In spite of those that come, wait and go, this one is served every time.
        (0..200).for_each(|_| drop(block_on(p.alloc(4096)).unwrap()));
        stop.store(true, SeqCst);
    });
    assert_eq!(p.stats().in_use_bytes, 0);
    assert!(!p.shared().waiters().any());
    drop([p.try_alloc(4096).unwrap(), p.try_alloc(4096).unwrap()]);
}

#[derive(Debug, Clone)]
enum Step {
    Alloc(usize),
    Freeze(usize),
    Slice(usize),
    Thaw(usize),
    Drop(usize),
    DropElsewhere(usize),
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0usize..16;
    prop_oneof![
        6 => prop_oneof![0usize..600, 4000usize..70_000, Just(3 << 20)].prop_map(Step::Alloc),
        2 => at().prop_map(Step::Freeze),
        2 => at().prop_map(Step::Slice),
        1 => at().prop_map(Step::Thaw),
        3 => at().prop_map(Step::Drop),
        2 => at().prop_map(Step::DropElsewhere),
        1 => Just(Step::Trim),
    ]
}

/// What a thread of the test holds: each buffer is filled with its own byte.
#[derive(Default)]
struct Holding {
    unique: Vec<(PinnedBufMut, u8)>,
    shared: Vec<(PinnedBuf, u8)>,
}

impl Holding {
    fn check(&self) {
        // Both ends show any overlap by more than a few bytes; the ranges below show the rest.
        let intact = |b: &[u8], fill: &u8| {
            let ends = [&b[..b.len().min(64)], &b[b.len().saturating_sub(64)..]];
            ends.iter().all(|end| end.iter().all(|x| x == fill))
        };
        assert!(self.unique.iter().all(|(b, fill)| intact(b, fill)));
        assert!(self.shared.iter().all(|(b, fill)| intact(b, fill)));
        // No two writable buffers, nor a writable and a shared one, share a byte.
        let range = |b: &[u8]| (b.as_ptr().addr(), b.as_ptr().addr() + b.len());
        let mut ranges: Vec<_> = self.unique.iter().map(|(b, _)| (range(b), true)).collect();
        ranges.extend(self.shared.iter().map(|(b, _)| (range(b), false)));
        ranges.retain(|((start, end), _)| start < end);
        for (i, ((start, end), unique)) in ranges.iter().enumerate() {
            for ((other_start, other_end), other_unique) in &ranges[i + 1..] {
                let apart = end <= other_start || other_end <= start;
                assert!(apart || !(unique | other_unique), "two owners of one byte");
            }
        }
    }

    fn run(&mut self, p: &BufPool, step: Step, fill: u8, away: &std::sync::mpsc::Sender<PinnedBuf>) {
        match step {
            Step::Alloc(len) => match p.try_alloc(len) {
                Ok(mut b) => {
                    b.resize(len, fill);
                    self.unique.push((b, fill));
                }
                Err(AllocError::Exhausted { .. }) => {}
                Err(e) => panic!("{e}"),
            },
            Step::Freeze(i) if i < self.unique.len() => {
                let (b, fill) = self.unique.swap_remove(i);
                self.shared.push((b.freeze(), fill));
            }
            Step::Slice(i) if i < self.shared.len() => {
                let (b, fill) = &self.shared[i];
                let part = b.slice(b.len() / 3..b.len() / 2);
                self.shared.push((part, *fill));
            }
            Step::Thaw(i) if i < self.shared.len() => {
                let (b, fill) = self.shared.swap_remove(i);
                match b.try_into_mut() {
                    Ok(mut b) => {
                        let len = b.len();
                        b.fill(fill.wrapping_add(1));
                        assert_eq!(b.len(), len);
                        self.unique.push((b, fill.wrapping_add(1)));
                    }
                    Err(b) => self.shared.push((b, fill)),
                }
            }
            Step::Drop(i) if i < self.unique.len() => drop(self.unique.swap_remove(i)),
            Step::Drop(i) if i < self.shared.len() => drop(self.shared.swap_remove(i)),
            Step::DropElsewhere(i) if i < self.shared.len() => {
                away.send(self.shared.swap_remove(i).0).unwrap();
            }
            Step::Trim => p.trim(),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Threads allocate, freeze, slice, thaw, drop and trim; every byte has one writer or none.
    #[test]
    fn no_byte_has_two_owners(
        scripts in prop::collection::vec(prop::collection::vec(step(), 0..80), 1..4),
    ) {
        let p = pool(6 << 20);
        let (away, elsewhere) = std::sync::mpsc::channel::<PinnedBuf>();
        std::thread::scope(|s| {
            let mut threads = vec![s.spawn(move || elsewhere.into_iter().for_each(drop))];
            for (thread, script) in scripts.into_iter().enumerate() {
                let (p, away) = (&p, away.clone());
                threads.push(s.spawn(move || {
                    let mut holding = Holding::default();
                    for (i, step) in script.into_iter().enumerate() {
                        holding.run(p, step, (i * 4 + thread) as u8, &away);
                        holding.check();
                    }
                }));
            }
            drop(away);
            // A scope ends before its threads have let their caches go; joining waits for that, too.
            threads.into_iter().for_each(|t| t.join().unwrap());
        });
        prop_assert_eq!(p.stats().in_use_bytes, 0);
        p.trim();
        prop_assert_eq!(p.stats().reserved_bytes, 0);
    }
}

/// A task that waits for a buffer and then keeps it.
struct Waits<'a> {
    len: usize,
    spares: bool,
    alloc: std::pin::Pin<Box<dyn Future<Output = Result<PinnedBufMut, AllocError>> + 'a>>,
    woken: Arc<Woken>,
    got: Option<PinnedBufMut>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl<'a> Waits<'a> {
    fn new(pool: &'a BufPool, len: usize) -> Self {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        Self { len, spares: false, alloc: Box::pin(pool.alloc(len)), woken, got: None }
    }

    /// One that leaves a share of the pool to others.
    fn sparing(pool: &'a BufPool, len: usize) -> Self {
        let mut waiter = AllocWaiter::new();
        let alloc = std::future::poll_fn(move |cx| pool.poll_alloc_sparing(len, &mut waiter, cx));
        Self { spares: true, alloc: Box::pin(alloc), ..Self::new(pool, len) }
    }

    fn is_due(&self) -> bool {
        self.got.is_none() && self.woken.0.load(SeqCst)
    }

    fn poll(&mut self) {
        self.woken.0.store(false, SeqCst);
        let waker = Waker::from(self.woken.clone());
        if let Poll::Ready(got) = self.alloc.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.got = Some(got.unwrap());
        }
    }
}

fn pick<T>(items: &mut Vec<T>, random: &mut impl Iterator<Item = usize>) -> Option<T> {
    let at = random.next().unwrap_or(0).checked_rem(items.len())?;
    Some(items.swap_remove(at))
}

/// Polls those that were woken, in any order, until none is.
fn settle(tasks: &mut [Waits<'_>], random: &mut impl Iterator<Item = usize>) {
    loop {
        let mut due: Vec<_> = tasks.iter_mut().filter(|task| task.is_due()).collect();
        let Some(task) = pick(&mut due, random) else { break };
        task.poll();
    }
}

fn any_len() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..2000, 4000usize..70_000, 90_000usize..200_000, Just(1 << 20)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// All finish in the end, and none waits while what is free would do for it.
    #[test]
    fn waiters_of_all_sizes_are_served_from_a_tiny_pool(
        held in prop::collection::vec(any_len(), 1..60),
        wanted in prop::collection::vec((any_len(), any::<bool>()), 1..24),
        random in prop::collection::vec(any::<usize>(), 64),
    ) {
        let p = pool(1 << 20);
        let mut random = random.into_iter().cycle();
        let mut held: Vec<_> = held.into_iter().filter_map(|len| p.try_alloc(len).ok()).collect();
        let task = |(len, spares): (usize, bool)| match spares {
            true => Waits::sparing(&p, len.min(700_000)),
            false => Waits::new(&p, len),
        };
        let mut tasks: Vec<_> = wanted.iter().copied().map(task).collect();
        settle(&mut tasks, &mut random);
        while tasks.iter().any(|task| task.got.is_none()) {
            for task in tasks.iter().filter(|task| task.got.is_none() && !task.spares) {
                prop_assert!(p.try_alloc(task.len).is_err(), "{} bytes are free and waited for", task.len);
            }
            // Something is given back, by who held it before or by who was served, in any order.
            held.extend(tasks.extract_if(.., |task| task.got.is_some()).filter_map(|task| task.got));
            drop(pick(&mut held, &mut random));
            settle(&mut tasks, &mut random);
        }
    }
}

/// Small ones pass a large one for which there is never enough, but not for ever.
#[test]
fn who_needs_much_is_not_overtaken_for_ever() {
    let p = pool(1 << 20);
    let _half = p.try_alloc(512 << 10).unwrap();
    let mut held: Vec<_> = std::iter::from_fn(|| p.try_alloc(64 << 10).ok()).collect();
    let mut random = std::iter::repeat(0);
    let mut tasks = vec![Waits::new(&p, 512 << 10)];
    settle(&mut tasks, &mut random);
    for _ in 0..MAX_OVERTAKEN {
        tasks.push(Waits::new(&p, 64 << 10));
        settle(&mut tasks, &mut random);
        drop(held.pop());
        settle(&mut tasks, &mut random);
        held.push(tasks.pop().unwrap().got.expect("it passes"));
    }
    tasks.push(Waits::new(&p, 64 << 10));
    while !held.is_empty() {
        assert!(tasks.iter().all(|task| task.got.is_none()), "now all wait for the large one");
        drop(held.pop());
        settle(&mut tasks, &mut random);
    }
    assert!(tasks[0].got.is_some() && tasks[1].got.is_none());
    tasks.remove(0);
    settle(&mut tasks, &mut random);
    assert!(tasks[0].got.is_some());
}

/// A place that nobody looks after holds the others up for a while only, and keeps its turn if it comes back soon.
#[test]
fn who_is_woken_and_does_not_look_loses_its_turn() {
    let p = pool(1 << 20);
    let mut held: Vec<_> = std::iter::from_fn(|| p.try_alloc(16 << 10).ok()).collect();
    let (mut absent, mut waiter) = (AllocWaiter::new(), AllocWaiter::new());
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(p.poll_alloc(1, &mut absent, cx).is_pending());
    let mut second = Waits::new(&p, 16 << 10);
    second.poll();
    for _ in 0..MAX_MISSED {
        drop(held.pop());
        assert!(!second.is_due(), "it is not the first one's fault yet");
        assert!(p.poll_alloc(1, &mut waiter, cx).is_pending(), "and all keep their order");
    }
    drop(waiter);
    drop(held.pop());
    assert!(second.is_due(), "the first one does not look");
    second.poll();
    assert!(second.got.is_some());
    // Others that come pass as well, until it is back.
    let mut third = Waits::new(&p, 16 << 10);
    third.poll();
    assert!(third.got.is_some());
    assert!(p.poll_alloc(1, &mut absent, cx).is_ready());
}

/// Also where one in front of it looks each time, and always in vain.
#[test]
fn who_does_not_look_loses_its_turn_wherever_it_stands() {
    let p = pool(1 << 20);
    let mut held: Vec<_> = std::iter::from_fn(|| p.try_alloc(16 << 10).ok()).collect();
    let mut large = Waits::new(&p, 1 << 20);
    large.poll();
    let (mut absent, mut other) = (AllocWaiter::new(), AllocWaiter::new());
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(p.poll_alloc(32 << 10, &mut absent, cx).is_pending());
    let mut small = Waits::new(&p, 16 << 10);
    small.poll();
    for _ in 0..=MAX_MISSED {
        assert!(!small.is_due(), "it is not the others' fault yet");
        // Those who give up bring no memory, however many.
        assert!(p.poll_alloc(1, &mut other, cx).is_pending());
        other = AllocWaiter::new();
        drop(held.pop());
        assert!(large.is_due());
        large.poll();
    }
    assert!(small.is_due());
    small.poll();
    assert!(small.got.is_some());
}

/// Nobody waits for one that may be left alone, and the pool keeps its caches beside it.
#[test]
fn who_is_fleeting_holds_up_nobody() {
    let p = pool(1 << 20);
    let mut held: Vec<_> = std::iter::from_fn(|| p.try_alloc(16 << 10).ok()).collect();
    let mut streams = [AllocWaiter::fleeting(), AllocWaiter::fleeting()];
    let cx = &mut Context::from_waker(Waker::noop());
    for stream in &mut streams {
        assert!(p.poll_alloc(16 << 10, stream, cx).is_pending());
    }
    let (mut first, mut second) = (Waits::new(&p, 16 << 10), Waits::new(&p, 16 << 10));
    first.poll();
    second.poll();
    drop(held.pop());
    assert!(first.is_due() && !second.is_due(), "one that looks is told");
    first.poll();
    assert!(first.got.is_some());
    // It is back in its old place.
    assert!(p.poll_alloc(16 << 10, &mut streams[1], cx).is_pending());
    drop(held.pop());
    assert!(second.is_due(), "both are told");
    let Poll::Ready(Ok(_taken)) = p.poll_alloc(16 << 10, &mut streams[1], cx) else {
        panic!("it was in front")
    };
    second.poll();
    assert!(second.got.is_none());
    drop(held.pop());
    assert!(second.is_due());
    second.poll();
    assert!(second.got.is_some());
    assert!(!p.shared().waiters().any(), "memory that comes back is for nobody who waits");
    assert!(p.poll_alloc(16 << 10, &mut streams[0], cx).is_pending());
    assert!(p.shared().waiters().any());
}

/// A free block that is a little too large serves, where its neighbours keep it from being cut anew.
#[test]
fn an_exhausted_pool_lends_larger_blocks() {
    let p = pool(1 << 20);
    let mut held: Vec<_> = std::iter::from_fn(|| p.try_alloc(100_000).ok()).collect();
    held.truncate(held.len() - 1);
    let mut small = Waits::new(&p, 60_000);
    small.poll();
    let lent = small.got.expect("a block of the next class is free");
    assert_eq!(lent.capacity(), 128 << 10);
    drop((lent, held));
    assert_eq!(p.stats().in_use_bytes, 0);
    assert!(p.try_alloc(1 << 20).is_ok());
}

/// What transports that lend memory of a pool say in their `Caps`.
#[test]
fn blocks_of_all_lengths_are_aligned() {
    let alignment = crate::transport::Caps::stream().alignment;
    let p = pool(256 << 20);
    for len in (MIN_CLASS_BYTES..).step_by(640).take_while(|len| *len < 100_000).chain([1 << 20, 5 << 20]) {
        let bufs = [len, len, len].map(|len| p.try_alloc(len).unwrap());
        assert!(bufs.iter().all(|buf| buf.as_ptr().addr().is_multiple_of(alignment)), "{len}");
    }
}
