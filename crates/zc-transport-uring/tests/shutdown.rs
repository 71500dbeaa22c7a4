//! The end of engines and runtimes, and threads that go.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use futures::FutureExt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;
use zc_transport_uring::{EngineOptions, Flavour};

async fn shut_down(flavour: Flavour) {
    let pool = common::busy::big_pool();
    let Some(engine) = engine(&pool, flavour) else { return };
    let busy = common::busy::busy(&engine, &pool).await;
    engine.shutdown().await;
    for task in busy.tasks {
        assert!(task.await.unwrap().is_err());
    }
    drop(busy.peers);
    assert_eq!(engine.nop().await.unwrap_err().kind(), io::ErrorKind::NotConnected);
    let (a, _b) = unix_pair();
    let (tx, mut rx) = engine.socket(a).unwrap();
    assert_eq!(rx.recv().await.unwrap_err().kind(), io::ErrorKind::NotConnected);
    assert_eq!(rx.recv().await.unwrap_err().kind(), io::ErrorKind::NotConnected);
    let mut send = tx.send_zero_copy(bytes(10, 0), true);
    for _ in 0..2 {
        assert!(std::future::poll_fn(|cx| send.poll_sent(cx)).await.is_err());
    }
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
}

#[test]
fn everything_in_flight_is_told() {
    FLAVOURS.into_iter().for_each(|flavour| on_one_thread(shut_down(flavour)));
    on_many_threads(shut_down(Flavour::ManyThreads));
}

/// A ring for one thread says so when its runtime goes on in another one; nothing is touched that must not be.
#[test]
fn a_runtime_that_moves_ends_an_engine_for_one_thread() {
    let pool = pool();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = pool.clone();
    // The thread ends, and with it what it submitted.
    let started = std::thread::spawn(move || {
        let engine = runtime.block_on(async {
            let engine = engine(&handle, Flavour::OneThread)?;
            engine.nop().await.unwrap();
            Some(engine)
        });
        (runtime, engine)
    });
    let (runtime, Some(engine)) = started.join().unwrap() else { return };
    if engine.features().setup() != "single_issuer+defer_taskrun" {
        return;
    }
    let error = runtime.block_on(async { engine.nop().await.unwrap_err() });
    assert!(error.to_string().contains("another thread"), "{error}");
    drop((runtime, engine));
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
}

/// Whoever computes for long, having begun an operation, holds up nobody: another thread takes over.
#[test]
fn block_in_place_holds_nobody_up() {
    on_many_threads(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::ManyThreads) else { return };
        let (a, b) = unix_pair();
        let mut peer = std::os::unix::net::UnixStream::from(a);
        let (_tx, mut rx) = engine.socket(b).unwrap();
        let (ready, done) =
            (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
        let (at, over) = (ready.clone(), done.clone());
        let other = engine.clone();
        let blocker = tokio::spawn(async move {
            for _ in 0..10 {
                other.nop().await.unwrap();
                at.add_permits(1);
                tokio::task::block_in_place(|| {
                    wait_until("the other one is served", || over.try_acquire().map(|p| p.forget()).is_ok());
                });
            }
        });
        for n in 0..10u8 {
            ready.acquire().await.unwrap().forget();
            peer.write_all(&[n]).unwrap();
            assert_eq!(rx.recv().await.unwrap()[..], [n]);
            done.add_permits(1);
        }
        blocker.await.unwrap();
    });
}

/// The one thread that submitted computes without a system call: what came for others is there at the next tick.
#[test]
fn one_who_computes_holds_nobody_up() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let task = runtime.spawn(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::ManyThreads) else { return };
        let (a, b) = unix_pair();
        let mut peer = std::os::unix::net::UnixStream::from(a);
        let (_tx, mut rx) = engine.socket(b).unwrap();
        let served = Arc::new(AtomicU8::new(0));
        let count = served.clone();
        let reader = tokio::spawn(async move {
            for n in 0..5 {
                assert_eq!(rx.recv().await.unwrap()[..], [n]);
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        for n in 0..5 {
            // The receive is under way, from this thread.
            while engine.stats().in_flight == 0 {
                tokio::task::yield_now().await;
            }
            engine.nop().await.unwrap();
            tokio::task::block_in_place(|| {
                peer.write_all(&[n]).unwrap();
                let until = Instant::now() + GUARD;
                while served.load(Ordering::SeqCst) <= n {
                    assert!(Instant::now() < until, "nobody was served");
                    std::hint::spin_loop();
                }
            });
        }
        reader.await.unwrap();
    });
    runtime.block_on(task).unwrap();
}

/// Requests die with the thread that submitted them; those that nobody cancelled are begun anew.
#[test]
fn operations_survive_the_thread_that_submitted_them() {
    let pool = pool();
    let moved = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = pool.clone();
    let (a, b) = unix_pair();
    let (c, d) = unix_pair();
    // A runtime of one thread that moves stands for a worker that ends: the ring is one for many.
    let begun = std::thread::spawn(move || {
        let all = moved.block_on(async {
            let options = EngineOptions::new(Flavour::ManyThreads);
            let engine = engine_with(&handle, options)?;
            let (tx, mut rx) = engine.socket(b).unwrap();
            assert!(rx.recv().now_or_never().is_none());
            let (other_tx, mut other) = engine.socket(d).unwrap();
            let mut op = other.recv_into(handle.try_alloc(10).unwrap(), 10, true);
            assert!((&mut op).now_or_never().is_none());
            while engine.stats().in_flight < 2 {
                tokio::task::yield_now().await;
            }
            engine.nop().await.unwrap();
            Some((engine, tx, rx, other_tx, other, op))
        });
        (moved, all)
    });
    let (runtime, Some((engine, tx, mut rx, other_tx, other, op))) = begun.join().unwrap() else { return };
    runtime.block_on(async {
        std::os::unix::net::UnixStream::from(a).write_all(b"abc").unwrap();
        std::os::unix::net::UnixStream::from(c).write_all(b"0123456789").unwrap();
        let got = tokio::time::timeout(GUARD, async { (rx.recv().await.unwrap(), op.await.unwrap()) });
        let (piece, buf) = got.await.unwrap();
        assert_eq!((&piece[..], &buf[..]), (&b"abc"[..], &b"0123456789"[..]));
        assert!(engine.stats().repeated >= 1);
        drop((tx, rx, other_tx, other, piece, buf));
        engine.shutdown().await;
    });
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
}

/// Operations begin in one thread and end in another all the time, as they do when tasks move.
#[test]
fn tasks_that_move_find_their_operations() {
    on_many_threads(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::ManyThreads) else { return };
        let tasks = (0..16).map(|n| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let (a, b) = if n % 2 == 0 { unix_pair() } else { tcp_pair() };
                let ((tx, _rx), (_tx, mut rx)) = (engine.socket(a).unwrap(), engine.socket(b).unwrap());
                let runtime = tokio::runtime::Handle::current();
                for round in 0..200 {
                    let len = 1 + (round * 37 + n) % 5000;
                    let mut send = tx.send(bytes(len, round), true);
                    assert!((&mut send).now_or_never().is_none());
                    let elsewhere = runtime.clone();
                    let moved = tokio::task::spawn_blocking(move || {
                        elsewhere.block_on(async {
                            assert_eq!(send.await.unwrap(), len);
                            let mut got = Vec::new();
                            while got.len() < len {
                                got.extend(rx.recv().await.unwrap().iter().copied());
                            }
                            (rx, got)
                        })
                    });
                    let got;
                    (rx, got) = moved.await.unwrap();
                    assert_eq!(got, pattern(len, round));
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        engine.shutdown().await;
    });
}
