//! The end of engines and runtimes, and threads that go.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use futures::FutureExt;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use zc_core::memory::BufPool;
use zc_transport_uring::{Engine, EngineOptions, Flavour};

/// Operations of every kind, none of which ends by itself.
struct Busy {
    tasks: Vec<tokio::task::JoinHandle<io::Result<()>>>,
    _peers: Vec<std::os::fd::OwnedFd>,
}

async fn busy(engine: &Engine, pool: &BufPool) -> Busy {
    let (mut tasks, mut peers) = (Vec::new(), Vec::new());
    for pair in [unix_pair, tcp_pair] {
        let (a, b) = pair();
        let (tx, mut rx) = engine.socket(a).unwrap();
        tasks.push(tokio::spawn(async move { rx.recv().await.map(drop) }));
        let mut full = pool.try_alloc(16 << 20).unwrap();
        full.set_len(16 << 20);
        let full = full.freeze();
        tasks.push(tokio::spawn(async move { tx.send(full, true).await.and_then(whole(16 << 20)) }));
        peers.push(b);
    }
    let (a, b) = unix_pair();
    let (_, mut rx) = engine.socket(a).unwrap();
    let op = rx.recv_into(pool.try_alloc(10).unwrap(), 10, true);
    tasks.push(tokio::spawn(async move { op.await.map(drop) }));
    let (read, write) = rustix::pipe::pipe().unwrap();
    let read = engine.file(read);
    let op = read.read_at(pool.try_alloc(10).unwrap(), 10, 0);
    tasks.push(tokio::spawn(async move { op.await.map(drop) }));
    peers.extend([b, write]);
    while engine.stats().in_flight < tasks.len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Busy { tasks, _peers: peers }
}

/// A send that was cut short is no success.
fn whole(len: usize) -> impl Fn(usize) -> io::Result<()> {
    move |n| if n == len { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

fn big_pool() -> BufPool {
    BufPool::builder().max_bytes(128 << 20).build()
}

async fn shut_down(flavour: Flavour) {
    let pool = big_pool();
    let Some(engine) = engine(&pool, flavour) else { return };
    let busy = busy(&engine, &pool).await;
    engine.shutdown().await;
    for task in busy.tasks {
        assert!(task.await.unwrap().is_err());
    }
    assert_eq!(engine.nop().await.unwrap_err().kind(), io::ErrorKind::NotConnected);
    let (a, _b) = unix_pair();
    let (_, mut rx) = engine.socket(a).unwrap();
    assert_eq!(rx.recv().await.unwrap_err().kind(), io::ErrorKind::NotConnected);
    assert_eq!(rx.recv().await.unwrap_err().kind(), io::ErrorKind::NotConnected);
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
}

#[test]
fn everything_in_flight_is_told() {
    FLAVOURS.into_iter().for_each(|flavour| on_one_thread(shut_down(flavour)));
    on_many_threads(shut_down(Flavour::ManyThreads));
}

/// The runtime is dropped, here or in another thread: all memory comes back, and who still waits is told.
#[test]
fn a_runtime_that_goes_leaves_nothing_behind() {
    let pool = big_pool();
    let before = open_descriptors();
    for (flavour, workers, elsewhere) in [
        (Flavour::OneThread, 0, false),
        (Flavour::OneThread, 0, true),
        (Flavour::ManyThreads, 0, false),
        (Flavour::ManyThreads, 2, false),
        (Flavour::ManyThreads, 2, true),
    ] {
        // In a thread of its own: a ring's number stays with the thread that has it.
        let in_thread = pool.clone();
        let thread = std::thread::spawn(move || {
            let mut builder = match workers {
                0 => tokio::runtime::Builder::new_current_thread(),
                _ => tokio::runtime::Builder::new_multi_thread(),
            };
            let runtime = builder.worker_threads(workers.max(1)).enable_all().build().unwrap();
            let Some((engine, busy)) = runtime.block_on(async {
                let engine = engine(&in_thread, flavour)?;
                let busy = busy(&engine, &in_thread).await;
                Some((engine, busy))
            }) else {
                return;
            };
            if elsewhere {
                std::thread::spawn(move || drop(runtime)).join().unwrap();
            } else {
                drop(runtime);
            }
            drop(busy);
            let error = engine.nop().now_or_never().unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        });
        thread.join().unwrap();
        wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
    }
    wait_until("all descriptors are closed", || open_descriptors() == before);
}

/// The last handle ends the engine, in any thread.
#[test]
fn the_last_handle_ends_it() {
    let pool = pool();
    let before = open_descriptors();
    for flavour in FLAVOURS {
        on_one_thread(async {
            let Some(engine) = engine(&pool, flavour) else { return };
            let (a, b) = unix_pair();
            let (_tx, mut rx) = engine.socket(a).unwrap();
            assert!(rx.recv().now_or_never().is_none());
            engine.nop().await.unwrap();
            drop(engine);
            // The socket keeps it.
            std::os::unix::net::UnixStream::from(b).write_all(b"x").unwrap();
            assert_eq!(rx.recv().await.unwrap()[..], b"x"[..]);
            std::thread::spawn(move || drop((_tx, rx))).join().unwrap();
            while pool.stats().in_use_bytes > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    wait_until("all descriptors are closed", || open_descriptors() == before);
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
        let (ready, done) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
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

/// Tasks move between workers all the time while their operations are under way.
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
                let mut threads = std::collections::HashSet::new();
                for round in 0..200 {
                    let len = 1 + (round * 37 + n) % 5000;
                    assert_eq!(tx.send(bytes(len, round), true).await.unwrap(), len);
                    let mut got = Vec::new();
                    while got.len() < len {
                        got.extend(rx.recv().await.unwrap().iter().copied());
                        threads.insert(std::thread::current().id());
                    }
                    assert_eq!(got, pattern(len, round));
                    tokio::task::yield_now().await;
                }
                threads.len()
            })
        });
        let mut most = 0;
        for task in tasks.collect::<Vec<_>>() {
            most = most.max(task.await.unwrap());
        }
        assert!(most > 1, "no task has moved");
        engine.shutdown().await;
    });
}
