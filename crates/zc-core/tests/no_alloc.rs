//! The message path allocates nothing on the heap in steady state.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use zc_core::memory::{BufPool, Message};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: forwards to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
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

/// Prints the cost of a small allocation; run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn alloc_and_drop_cost() {
    let pool = BufPool::builder().max_bytes(64 << 20).build();
    const N: u32 = 5_000_000;
    let start = std::time::Instant::now();
    for _ in 0..N {
        std::hint::black_box(pool.try_alloc(64).unwrap());
    }
    println!("{:?} per try_alloc + drop", start.elapsed() / N);
}
