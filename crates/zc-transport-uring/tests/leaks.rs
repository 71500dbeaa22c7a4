//! Memory and descriptors are back at the end. One test at a time: descriptors are the process's.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::busy::*;
use common::*;
use futures::FutureExt;
use std::io::{self, Read, Write};
use std::time::Duration;
use zc_transport_uring::Flavour;

static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

#[test]
fn a_thousand_sockets_leave_nothing_behind() {
    let _alone = ALONE.lock();
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            let Some(engine) = engine(&pool, flavour) else { return };
            let before = open_descriptors();
            for round in 0..20 {
                let mut all = Vec::new();
                for n in 0..50 {
                    let (a, b) = if n % 2 == 0 { unix_pair() } else { tcp_pair() };
                    let (a, mut b) = (engine.socket(a).unwrap(), engine.socket(b).unwrap());
                    a.0.send(bytes(n + 1, round), true).await.unwrap();
                    if n % 3 > 0 {
                        assert_eq!(b.1.recv().await.unwrap()[..], pattern(n + 1, round));
                    }
                    if n % 3 > 1 {
                        assert!(b.1.recv().now_or_never().is_none());
                    }
                    all.push((a, b));
                }
            }
            let until = std::time::Instant::now() + GUARD;
            while open_descriptors() > before || engine.stats().in_flight > 0 {
                assert!(std::time::Instant::now() < until, "{} of {before}", open_descriptors());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            engine.shutdown().await;
            wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
        });
    }
}

/// The runtime is dropped, here or in another thread: all memory comes back, and who still waits is told.
#[test]
fn a_runtime_that_goes_leaves_nothing_behind() {
    let _alone = ALONE.lock();
    let pool = big_pool();
    // With its signals compiled in, tokio's first runtime opens two descriptors that the process keeps.
    on_one_thread(async {});
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
    wait_for_descriptors(before);
}

/// The runtime of one thread is dropped in another one, which cannot take the ring down: peers see the end at once.
#[test]
fn peers_see_the_end_while_the_thread_lives_on() {
    let _alone = ALONE.lock();
    let pool = pool();
    let before = open_descriptors();
    let in_thread = pool.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let Some((halves, mut peer)) = runtime.block_on(async {
            let engine = engine(&in_thread, Flavour::OneThread)?;
            let (a, b) = tcp_pair();
            let (tx, mut rx) = engine.socket(a).unwrap();
            assert!(rx.recv().now_or_never().is_none());
            while engine.stats().in_flight == 0 {
                tokio::task::yield_now().await;
            }
            engine.nop().await.unwrap();
            Some(((tx, rx), std::net::TcpStream::from(b)))
        }) else {
            return;
        };
        std::thread::spawn(move || drop((runtime, halves))).join().unwrap();
        peer.set_read_timeout(Some(GUARD)).unwrap();
        assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap(), 0);
    });
    thread.join().unwrap();
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
    wait_for_descriptors(before);
}

/// The runtime of one thread is dropped in another one: what was to be closed, and never came to the kernel, is.
#[test]
fn what_was_to_be_closed_is_closed() {
    let _alone = ALONE.lock();
    let pool = pool();
    let before = open_descriptors();
    for flavour in FLAVOURS {
        let in_thread = pool.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let Some((engine, op, mut peer)) = runtime.block_on(async {
                let engine = engine(&in_thread, flavour)?;
                engine.nop().await.unwrap();
                let (a, b) = unix_pair();
                let mut op = engine.close(a);
                assert!((&mut op).now_or_never().is_none());
                Some((engine, op, std::os::unix::net::UnixStream::from(b)))
            }) else {
                return;
            };
            std::thread::spawn(move || drop(runtime)).join().unwrap();
            peer.set_read_timeout(Some(GUARD)).unwrap();
            assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap(), 0);
            drop((engine, op));
        });
        thread.join().unwrap();
    }
    wait_for_descriptors(before);
}

/// The last handle ends the engine, in any thread.
#[test]
fn the_last_handle_ends_it() {
    let _alone = ALONE.lock();
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
    wait_for_descriptors(before);
}
