//! Small messages allocate nothing in steady state, neither to send nor to receive.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zc_core::memory::{BufPool, CopyLedger, PinnedBuf};
use zc_core::transport::{Frame, FrameKind, SendToken};
use zc_transport_xdp::protocol::{Memory, Offer, Session, SessionOptions, Side, Transmit};

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

/// The datagram in memory of the pool, as a frame of the device would be.
fn received(pool: &BufPool, out: &Transmit) -> PinnedBuf {
    let mut buf = pool.try_alloc(out.len()).unwrap();
    buf.put_slice(out.head());
    out.payload().iter().for_each(|slice| buf.put_slice(slice));
    buf.freeze()
}

#[test]
fn small_messages_allocate_nothing() {
    let pool = BufPool::builder().max_bytes(64 << 20).build();
    let (options, mut now) = (SessionOptions::default(), Instant::now());
    let offers = [Offer::new(&options, &[1; 36]), Offer::new(&options, &[2; 36])];
    let memory = || Memory { pool: pool.clone(), ledger: Arc::new(CopyLedger::new()) };
    let mut ends = [(Side::Client, 0, 1), (Side::Server, 1, 0)].map(|(side, mine, theirs)| {
        Session::new(side, &offers[mine], &offers[theirs], &options, memory(), 1, now).unwrap()
    });
    let mut out = Transmit::default();
    let mut seqs = [0, 0];
    let mut round = |messages: u64| {
        now += Duration::from_micros(100);
        for from in 0..2 {
            for _ in 0..messages {
                let mut buf = pool.try_alloc(64).unwrap();
                buf.put_slice(&[7; 64]);
                seqs[from] += 1;
                let seq = seqs[from];
                let frame = Frame { kind: FrameKind::Data, ack: false, seq, payload: buf.into() };
                ends[from].send(frame, Some(SendToken(seq))).unwrap();
            }
            ends[from].handle_timeout(now);
            while ends[from].poll_transmit(now, &mut out) {
                ends[1 - from].handle(now, received(&pool, &out)).unwrap();
            }
            while let Some(frame) = ends[1 - from].recv() {
                ends[1 - from].release(frame.payload.len());
            }
            while ends[from].poll_completion().is_some() {}
        }
    };
    (0..5000).for_each(|i| round(1 + i % 20));
    let before = COUNT.with(Cell::get);
    (0..2000).for_each(|i| round(1 + i % 20));
    assert_eq!(COUNT.with(Cell::get), before);
    assert!(ends.iter().all(|end| end.stats().delivered_messages > 70_000 && end.stats().lost_packets == 0));
}
