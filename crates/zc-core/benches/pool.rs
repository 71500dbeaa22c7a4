//! What a buffer costs: nanoseconds per operation, the median of several runs.
//!
//! `cargo bench -p zc-core --bench pool`

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::{Barrier, mpsc};
use std::time::Instant;
use zc_core::memory::{BufPool, Message, PinnedBuf};

const ROUNDS: usize = 9;

fn report(name: &str, ops: u32, mut run: impl FnMut()) {
    run(); // Warm: maps the regions, fills the caches.
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_nanos() as f64 / f64::from(ops)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name:44} {:8.1} ns/op  (best {:.1})", times[ROUNDS / 2], times[0]);
}

fn one_thread(pool: &BufPool) {
    const N: u32 = 1_000_000;
    for len in [64, 4096, 65_536] {
        report(&format!("alloc + drop, {len} B"), N, || {
            for _ in 0..N {
                black_box(pool.try_alloc(black_box(len)).unwrap());
            }
        });
        report(&format!("alloc + freeze + drop, {len} B"), N, || {
            for _ in 0..N {
                black_box(pool.try_alloc(black_box(len)).unwrap().freeze());
            }
        });
    }
    let buf = pool.try_alloc(4096).unwrap().freeze();
    report("clone + drop", N, || {
        for _ in 0..N {
            black_box(buf.clone());
        }
    });
    let mut held = Vec::with_capacity(256);
    report("alloc 256, then drop 256 (past the cache)", N, || {
        for _ in 0..N / 256 {
            held.extend((0..256).map(|_| pool.try_alloc(64).unwrap()));
            held.clear();
        }
    });
    let whole = PinnedBuf::from_static(&[7; 64]);
    report("message of one segment: make, slice, drop", N, || {
        for _ in 0..N {
            black_box(Message::from(whole.clone()).slice(1..33));
        }
    });
}

/// The way of a received message: allocated here, dropped by another thread.
fn across_threads(pool: &BufPool) {
    const N: u32 = 200_000;
    let (tx, rx) = mpsc::sync_channel::<PinnedBuf>(1024);
    let dropper = std::thread::spawn(move || rx.into_iter().for_each(drop));
    report("alloc here, drop on another thread", N, || {
        for _ in 0..N {
            tx.send(pool.try_alloc(64).unwrap().freeze()).unwrap();
        }
    });
    drop(tx);
    dropper.join().unwrap();
}

fn two_threads(pool: &BufPool) {
    const N: u32 = 1_000_000;
    let gate = Barrier::new(2);
    report("alloc + freeze + drop, 64 B, two threads", N, || {
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    gate.wait();
                    for _ in 0..N {
                        black_box(pool.try_alloc(black_box(64)).unwrap().freeze());
                    }
                });
            }
        });
    });
}

fn main() {
    let pool = BufPool::builder().max_bytes(256 << 20).build();
    one_thread(&pool);
    across_threads(&pool);
    two_threads(&pool);
}
