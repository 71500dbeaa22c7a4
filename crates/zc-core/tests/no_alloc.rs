//! The message path allocates nothing on the heap in steady state.

#![allow(clippy::unwrap_used, reason = "a test")]

use bytes::Bytes;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use zc_core::memory::*;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: forwards to the system allocator, which keeps the contract (no M applies).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn one(pool: &BufPool, len: usize) {
    let mut buf = pool.try_alloc_with_headroom(len, 64).unwrap();
    buf.put_slice(&[1; 32]);
    let buf = buf.freeze();
    let mut message = Message::from(buf.slice(1..));
    bytes::Buf::advance(&mut message, 1);
    assert_eq!(message.len(), 30);
}

#[test]
fn steady_state_allocates_nothing() {
    let pool = BufPool::builder().max_bytes(64 << 20).build();
    for len in [64, 4000, 100_000, 5 << 20] {
        one(&pool, len);
        one(&pool, len);
        let before = COUNT.with(Cell::get);
        for _ in 0..1000 {
            one(&pool, len);
        }
        assert_eq!(COUNT.with(Cell::get), before, "length {len}");
    }
}

/// How many allocations `f` makes.
fn allocations<R>(f: impl FnOnce() -> R) -> (u64, R) {
    let before = COUNT.with(Cell::get);
    let result = f();
    (COUNT.with(Cell::get) - before, result)
}

/// Taking a cache's blocks away leaves it the room for them: else it would allocate inside its lock.
#[test]
fn a_cache_that_was_emptied_needs_no_new_room() {
    let pool = BufPool::builder().max_bytes(64 << 20).build();
    let take = |n| Vec::from_iter((0..n).map(|_| pool.try_alloc(64).unwrap()));
    // The shared list has room for all, and no chunk is wholly free.
    let all = take(10 * 1024);
    let _held: Vec<_> = all.into_iter().step_by(2).collect();
    pool.trim();
    let mut some = take(60);
    assert_eq!(allocations(|| some.clear()).0, 0);
}

#[test]
fn conversions_allocate_once_at_most() {
    let pool = BufPool::builder().max_bytes(64 << 20).build();
    let mut buf = pool.try_alloc(1000).unwrap();
    buf.put_slice(&[1; 1000]);
    let buf = buf.freeze();
    let (count, bytes) = allocations(|| buf.clone().into_bytes());
    assert_eq!((count, bytes.len()), (1, 1000));
    let (count, part) = allocations(|| bytes.slice(10..20));
    assert_eq!(count, 0);
    let (count, back) = allocations(|| PinnedBuf::from(part));
    assert_eq!(count, 1);
    let (count, id) = allocations(|| back.region().map(Region::id));
    assert_eq!((count, id), (0, buf.region().map(Region::id)));
    let (count, _) = allocations(|| (PinnedBuf::from(&b"static"[..]), PinnedBuf::from(Bytes::new())));
    assert_eq!(count, 0);
    let (count, message) = allocations(|| Message::from(back));
    assert_eq!((count, message.len()), (0, 10));
}

#[test]
fn lending_allocates_nothing() {
    struct Nobody;
    impl Reclaim for Nobody {
        fn reclaim(&self, _: u32) {}
    }
    let region = Region::builder(64 << 10).build().unwrap();
    let lease = LeaseBudget::new(1 << 10, 1 << 20);
    // SAFETY: nobody writes the region (M5).
    let frames = unsafe { FrameTable::new(region, 2048, 32, Arc::new(Nobody)) }.unwrap();
    let (count, ()) = allocations(|| {
        for i in 0..100 {
            drop(frames.lend(i % 32, 256, 64, Some(&lease)).unwrap());
        }
    });
    assert_eq!((count, lease.outstanding_bytes()), (0, 0));
}
