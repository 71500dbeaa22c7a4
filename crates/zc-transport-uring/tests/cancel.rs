//! Futures that are dropped: no byte is lost, and all memory and descriptors come back.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use futures::FutureExt;
use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use zc_core::memory::BufPool;
use zc_transport_uring::{Engine, EngineOptions, Flavour, SocketRx};

/// Polls `future` at most `polls` times, with as many turns of the runtime in between; then it is dropped.
async fn poll_some<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        if let Some(done) = poll_fn(|cx| {
            Poll::Ready(match future.as_mut().poll(cx) {
                Poll::Ready(done) => Some(done),
                Poll::Pending => None,
            })
        })
        .await
        {
            return Some(done);
        }
        tokio::task::yield_now().await;
    }
    None
}

async fn read_all(rx: &mut SocketRx, len: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < len {
        let piece = rx.recv().await.unwrap();
        assert!(!piece.is_empty(), "the end after {} of {len}", got.len());
        got.extend(piece.iter().copied());
    }
    got
}

async fn settled(engine: &Engine, pool: &BufPool) {
    engine.shutdown().await;
    assert_eq!((engine.stats().in_flight, engine.stats().unknown), (0, 0));
    let until = std::time::Instant::now() + GUARD;
    while pool.stats().in_use_bytes > 0 {
        assert!(std::time::Instant::now() < until, "{:?}", pool.stats());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Each receive is given up after every possible number of polls, before or after bytes have come.
async fn receives(flavour: Flavour, direct: bool) {
    let pool = pool();
    let Some(engine) = engine(&pool, flavour) else { return };
    let (a, b) = unix_pair();
    let mut peer = std::os::unix::net::UnixStream::from(a);
    let (_tx, mut rx) = engine.socket(b).unwrap();
    let (mut sent, mut got) = (0, Vec::new());
    for polls in 0..6 {
        for before in [true, false] {
            let mut write = || {
                peer.write_all(&pattern(100, sent)).unwrap();
                sent += 100;
            };
            if direct {
                poll_fn(|cx| rx.poll_quiet(cx)).await;
                while let Poll::Ready(piece) = rx.try_recv() {
                    got.extend(piece.unwrap().iter().copied());
                }
            }
            if before {
                write();
            }
            if direct {
                let op = rx.recv_into(pool.try_alloc(4096).unwrap(), 4096, !before);
                if let Some(piece) = poll_some(op, polls).await {
                    got.extend(piece.unwrap().iter().copied());
                }
            } else if let Some(piece) = poll_some(rx.recv(), polls).await {
                got.extend(piece.unwrap().iter().copied());
            }
            if !before {
                write();
            }
        }
    }
    let rest = read_all(&mut rx, sent - got.len()).await;
    got.extend(rest);
    assert_eq!(got, pattern(sent, 0));
    drop((rx, _tx, peer));
    settled(&engine, &pool).await;
}

#[test]
fn a_receive_loses_no_byte() {
    for direct in [false, true] {
        FLAVOURS.into_iter().for_each(|flavour| on_one_thread(receives(flavour, direct)));
        on_many_threads(receives(Flavour::ManyThreads, direct));
    }
}

/// A receive of a whole buffer that has a part of it: the part is there for the next one.
#[test]
fn a_part_of_what_was_asked_for_is_kept() {
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::OneThread) else { return };
        let (a, b) = tcp_pair();
        let mut peer = std::net::TcpStream::from(a);
        let (_tx, mut rx) = engine.socket(b).unwrap();
        let mut op = rx.recv_into(pool.try_alloc(1000).unwrap(), 1000, true);
        peer.write_all(&pattern(600, 0)).unwrap();
        assert!(poll_some(&mut op, 20).await.is_none());
        drop(op);
        peer.write_all(&pattern(400, 600)).unwrap();
        assert_eq!(read_all(&mut rx, 1000).await, pattern(1000, 0));
    });
}

/// A buffer that had something in it: only what was received is there for the next one.
#[test]
fn what_was_in_the_buffer_is_no_part_of_the_stream() {
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::OneThread) else { return };
        let (a, b) = unix_pair();
        let mut peer = std::os::unix::net::UnixStream::from(a);
        let (_tx, mut rx) = engine.socket(b).unwrap();
        let mut buf = pool.try_alloc(1000).unwrap();
        buf.put_slice(b"head");
        let mut op = rx.recv_into(buf, 900, true);
        assert!(poll_some(&mut op, 5).await.is_none());
        peer.write_all(b"abc").unwrap();
        assert!(poll_some(&mut op, 20).await.is_none());
        drop(op);
        peer.write_all(b"def").unwrap();
        assert_eq!(read_all(&mut rx, 6).await, b"abcdef");
    });
}

/// Sends are given up at every point: the peer gets a beginning of the bytes, and all memory comes back.
#[test]
fn sends_give_their_memory_back() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            let Some(engine) = engine(&pool, flavour) else { return };
            for polls in 0..6 {
                for zero_copy in [false, true] {
                    let (a, b) = tcp_pair();
                    let (tx, rx) = engine.socket(a).unwrap();
                    let mut buf = pool.try_alloc(4 << 20).unwrap();
                    buf.put_slice(&pattern(4 << 20, 0));
                    let buf = buf.freeze();
                    if zero_copy {
                        let mut send = tx.send_zero_copy(buf, true);
                        poll_some(poll_fn(|cx| send.poll_sent(cx)), polls).await;
                    } else {
                        poll_some(tx.send(buf, true), polls).await;
                    }
                    drop((tx, rx));
                    let reader = tokio::task::spawn_blocking(move || {
                        let mut got = Vec::new();
                        std::net::TcpStream::from(b).read_to_end(&mut got).unwrap();
                        assert_eq!(got, pattern(got.len(), 0));
                    });
                    reader.await.unwrap();
                }
            }
            settled(&engine, &pool).await;
        });
    }
}

/// The same for files, through a pipe that has nothing to read.
#[test]
fn reads_that_wait_are_cancelled() {
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::OneThread) else { return };
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (read, write) = (engine.file(read), engine.file(write));
        for polls in 0..4 {
            let op = read.read_at(pool.try_alloc(100).unwrap(), 100, 0);
            assert!(poll_some(op, polls).await.is_none());
            let (other, _keep) = rustix::pipe::pipe().unwrap();
            let other = engine.file(other);
            assert!(poll_some(other.splice_to(None, &write, None, 100), polls).await.is_none());
        }
        settled(&engine, &pool).await;
    });
}

/// Buffers that the application keeps are missing in the ring; receiving waits for memory, and goes on.
#[test]
fn receiving_waits_for_memory() {
    for incremental in [false, true] {
        on_one_thread(async {
            let pool = BufPool::builder().max_bytes(256 << 10).build();
            let mut options = EngineOptions::new(Flavour::OneThread);
            (options.recv_buffers, options.recv_buffer_bytes) = (4, Some(64 << 10));
            options.incremental = incremental;
            let Some(engine) = engine_with(&pool, options) else { return };
            let (a, b) = unix_pair();
            let (tx, _rx) = engine.socket(a).unwrap();
            let (_, mut rx) = engine.socket(b).unwrap();
            let total = 1 << 20;
            let sender = tokio::spawn(async move { tx.send(bytes(total, 0), true).await.unwrap() });
            let mut kept = Vec::new();
            let (mut at, mut waits) = (0, 0);
            let expected = pattern(total, 0);
            while at < total {
                match tokio::time::timeout(Duration::from_millis(100), rx.recv()).await {
                    Ok(piece) => {
                        let piece = piece.unwrap();
                        assert_eq!(piece[..], expected[at..at + piece.len()]);
                        at += piece.len();
                        kept.push(piece);
                    }
                    // All of the pool is kept here, or the machine is slow.
                    Err(_) => {
                        waits += usize::from(!kept.is_empty());
                        kept.clear();
                    }
                }
            }
            assert!(waits > 0, "more was kept than there is");
            assert_eq!(sender.await.unwrap(), total);
        });
    }
}

/// Receiving waits for memory that this task has: it can be stopped, and a socket that is dropped is closed.
#[test]
fn what_waits_for_memory_can_be_stopped() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = BufPool::builder().max_bytes(256 << 10).build();
            let Some(engine) = engine(&pool, flavour) else { return };
            engine.nop().await.unwrap();
            let mut kept = Vec::new();
            while let Ok(buf) = pool.try_alloc(4 << 10) {
                kept.push(buf);
            }
            let (a, b) = unix_pair();
            let mut peer = std::os::unix::net::UnixStream::from(a);
            let (tx, mut rx) = engine.socket(b).unwrap();
            assert!(poll_some(rx.recv(), 10).await.is_none());
            assert_eq!(engine.stats().in_flight, 0);
            poll_fn(|cx| rx.poll_quiet(cx)).await;
            peer.write_all(b"abc").unwrap();
            let buf = kept.pop().unwrap();
            assert_eq!(rx.recv_into(buf, 3, true).await.unwrap()[..], b"abc"[..]);
            assert!(poll_some(rx.recv(), 10).await.is_none());
            drop((tx, rx));
            peer.set_nonblocking(true).unwrap();
            while !matches!(peer.read(&mut [0]), Ok(0)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(kept);
            settled(&engine, &pool).await;
        });
    }
}

/// More operations than there are places.
#[test]
fn operations_wait_for_a_place() {
    on_one_thread(async {
        let pool = pool();
        let mut options = EngineOptions::new(Flavour::OneThread);
        options.max_operations = 2;
        let Some(engine) = engine_with(&pool, options) else { return };
        let all = (0..100).map(|_| engine.nop());
        futures::future::try_join_all(all).await.unwrap();
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let read = engine.file(read);
        let mut waits: Vec<_> =
            (0..2).map(|_| Box::pin(read.read_at(pool.try_alloc(1).unwrap(), 1, 0))).collect();
        waits.iter_mut().for_each(|wait| assert!(wait.now_or_never().is_none()));
        assert!(poll_some(engine.nop(), 5).await.is_none());
        waits.pop();
        engine.nop().await.unwrap();
        drop(waits);
        settled(&engine, &pool).await;
    });
}

/// Who gives up waiting for a place leaves nothing behind.
#[test]
fn who_waits_for_a_place_can_leave() {
    struct Counted;
    impl Wake for Counted {
        fn wake(self: Arc<Self>) {}
    }
    on_one_thread(async {
        let pool = pool();
        let mut options = EngineOptions::new(Flavour::OneThread);
        options.max_operations = 1;
        let Some(engine) = engine_with(&pool, options) else { return };
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let mut wait = engine.file(read).read_at(pool.try_alloc(1).unwrap(), 1, 0);
        assert!((&mut wait).now_or_never().is_none());
        let (stays, goes) = (Arc::new(Counted), Arc::new(Counted));
        let poll = |op: &mut zc_transport_uring::Op<()>, task: &Arc<Counted>| {
            let waker = Waker::from(task.clone());
            assert!(op.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        };
        // Two of one task: one of them leaves, and the other is still waited for.
        let (mut first, mut second) = (engine.nop(), engine.nop());
        poll(&mut first, &stays);
        poll(&mut second, &stays);
        for _ in 0..3 {
            let mut op = engine.nop();
            poll(&mut op, &goes);
            poll(&mut op, &goes);
        }
        assert_eq!(Arc::strong_count(&goes), 1);
        drop(first);
        assert_eq!(Arc::strong_count(&stays), 2);
        drop(wait);
        second.await.unwrap();
        assert_eq!(Arc::strong_count(&stays), 1);
        settled(&engine, &pool).await;
    });
}

/// Sockets that receive take no place of other operations, however few there are.
#[test]
fn sockets_that_receive_leave_places() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            let mut options = EngineOptions::new(flavour);
            (options.max_operations, options.max_sockets) = (1, 4);
            let Some(engine) = engine_with(&pool, options) else { return };
            let sockets: Vec<_> = [unix_pair(), unix_pair()].into_iter().flat_map(|(a, b)| [a, b]).collect();
            let mut sockets: Vec<_> = sockets.into_iter().map(|s| engine.socket(s).unwrap()).collect();
            let (more, _peer) = unix_pair();
            let refused = engine.socket(more.try_clone().unwrap()).err().unwrap();
            assert_eq!(refused.kind(), std::io::ErrorKind::ResourceBusy);
            for (_, rx) in &mut sockets {
                assert!(poll_some(rx.recv(), 5).await.is_none());
            }
            // Each has one that receives and one for its end.
            assert_eq!(engine.stats().in_flight, 8);
            for n in 0..4 {
                sockets[n].0.send(bytes(100, n), true).await.unwrap();
                assert_eq!(read_all(&mut sockets[n ^ 1].1, 100).await, pattern(100, n));
            }
            drop(sockets);
            while engine.stats().in_flight > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            engine.socket(more).unwrap();
            settled(&engine, &pool).await;
        });
    }
}

/// A task that is dropped inside of the engine, with the last waker, may use the engine.
#[test]
fn wakers_that_hold_operations_are_dropped_outside_of_the_lock() {
    struct Holds(#[allow(dead_code)] parking_lot::Mutex<Option<zc_transport_uring::Op<()>>>);
    impl Wake for Holds {
        fn wake(self: Arc<Self>) {}
    }
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::OneThread) else { return };
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let read = engine.file(read);
        let mut op = read.read_at(pool.try_alloc(1).unwrap(), 1, 0);
        {
            let mut inner = engine.nop();
            assert!((&mut inner).now_or_never().is_none());
            let waker = Waker::from(Arc::new(Holds(parking_lot::Mutex::new(Some(inner)))));
            assert!(op.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        }
        // The last reference to that waker goes.
        assert!((&mut op).now_or_never().is_none());
        drop(op);
        settled(&engine, &pool).await;
    });
}
