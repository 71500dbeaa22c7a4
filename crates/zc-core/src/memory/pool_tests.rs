use super::*;
use futures::executor::block_on;
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
    for i in 0..100 {
        drop(p.with_origin(String::leak(format!("{i}"))).try_alloc(1));
    }
    assert!(p.shared().origins.read().len() <= MAX_ORIGINS);
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
    assert!(!p.shared().waiters.any());
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
