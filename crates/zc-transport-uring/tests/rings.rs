//! Several rings for one runtime.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use common::*;
use std::sync::Arc;
use zc_core::memory::BufPool;
use zc_transport_uring::{EngineOptions, Engines, Flavour};

fn engines(pool: &BufPool, flavour: Flavour, rings: usize) -> Option<Engines> {
    engine(pool, flavour)?;
    Some(Engines::start(Arc::new(zc::TokioReactor::new()), pool, EngineOptions::new(flavour), rings).unwrap())
}

#[test]
fn sockets_are_dealt_out_evenly() {
    on_many_threads(async {
        let pool = pool();
        let Some(engines) = engines(&pool, Flavour::ManyThreads, 3) else { return };
        let counts = || engines.all().iter().map(|engine| engine.stats().sockets).collect::<Vec<_>>();
        let add = |sockets: &mut Vec<_>| sockets.push(engines.pick().socket(unix_pair().0).unwrap());
        let mut sockets = Vec::new();
        (0..9).for_each(|_| add(&mut sockets));
        assert_eq!((counts(), engines.stats().sockets), (vec![3; 3], 9));
        // Those that go make room where they were.
        drop(sockets.drain(..4));
        (0..4).for_each(|_| add(&mut sockets));
        assert_eq!(counts(), [3; 3]);
        // One that has ended gets no more.
        engines.all()[1].shutdown().await;
        assert!(engines.all()[1].has_ended());
        (0..4).for_each(|_| add(&mut sockets));
        assert_eq!(counts(), [5, 3, 5]);
        engines.shutdown().await;
        assert!(engines.pick().has_ended());
    });
}

#[test]
fn one_thread_has_one() {
    on_one_thread(async {
        let pool = pool();
        let Some(engines) = engines(&pool, Flavour::OneThread, 8) else { return };
        assert_eq!((engines.all().len(), engines.why_fewer()), (1, None));
        engines.shutdown().await;
    });
}

/// Both ends of a connection on different rings, in tasks that move and block.
#[test]
fn all_of_them_work_at_once() {
    on_many_threads(async {
        let pool = BufPool::builder().max_bytes(128 << 20).build();
        let Some(engines) = engines(&pool, Flavour::ManyThreads, 4) else { return };
        let tasks: Vec<_> = (0..12)
            .map(|n| {
                let engines = engines.clone();
                tokio::spawn(async move {
                    let (a, b) = if n % 2 == 0 { tcp_pair() } else { unix_pair() };
                    let (tx, _rx) = engines.pick().socket(a).unwrap();
                    let (_tx, mut rx) = engines.pick().socket(b).unwrap();
                    for round in 0..50 {
                        let len = 1 + (round * 997 + n) % 20_000;
                        assert_eq!(tx.send(bytes(len, round), true).await.unwrap(), len);
                        let mut got = Vec::new();
                        while got.len() < len {
                            got.extend_from_slice(&rx.recv().await.unwrap());
                        }
                        assert_eq!(got, pattern(len, round));
                        if round % 10 == 0 {
                            tokio::task::block_in_place(|| {
                                std::thread::sleep(std::time::Duration::from_millis(1))
                            });
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(engines.all().iter().all(|engine| engine.stats().turns > 0));
        assert_eq!(engines.stats().unknown, 0);
        engines.shutdown().await;
    });
}

/// With operations in flight on each of them.
#[test]
fn all_of_them_end_with_the_runtime() {
    let pool = BufPool::builder().max_bytes(256 << 20).build();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let Some((engines, busy)) = runtime.block_on(async {
        let engines = engines(&pool, Flavour::ManyThreads, 3)?;
        let mut busy = Vec::new();
        for engine in engines.all() {
            busy.push(common::busy::busy(engine, &pool).await);
        }
        Some((engines, busy))
    }) else {
        return;
    };
    drop(runtime);
    assert!(engines.all().iter().all(|engine| engine.has_ended()));
    drop((busy, engines));
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
}
