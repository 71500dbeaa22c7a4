//! Bytes go round, whatever the runtime, the socket and the kernel's way of filling buffers.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use zc_core::memory::{BufPool, Message};
use zc_transport_uring::{Engine, EngineOptions, Flavour, SocketRx, SocketTx};

/// Sends back what comes until the end.
async fn echo(tx: SocketTx, mut rx: SocketRx) {
    loop {
        let piece = rx.recv().await.unwrap();
        if piece.is_empty() {
            break;
        }
        let len = piece.len();
        assert_eq!(tx.send(piece, true).await.unwrap(), len);
    }
    rustix::net::shutdown(&tx, rustix::net::Shutdown::Write).unwrap();
}

/// Sends `lens` while it receives, and compares.
async fn exchange(tx: SocketTx, mut rx: SocketRx, lens: &[usize]) {
    let total: usize = lens.iter().sum();
    let send = async {
        let mut at = 0;
        for (n, len) in lens.iter().enumerate() {
            let part = bytes(*len, at);
            let sent = if n % 2 == 0 {
                tx.send(part, true).await
            } else {
                let (a, b) = (part.slice(..len / 2), part.slice(len / 2..));
                let mut message = Message::from(a);
                message.push(b).unwrap();
                tx.send_message(message, true).await
            };
            assert_eq!(sent.unwrap(), *len);
            at += len;
        }
        rustix::net::shutdown(&tx, rustix::net::Shutdown::Write).unwrap();
    };
    let receive = async {
        let expected = pattern(total, 0);
        let mut at = 0;
        loop {
            let piece = rx.recv().await.unwrap();
            if piece.is_empty() {
                break;
            }
            assert_eq!(piece[..], expected[at..at + piece.len()], "at {at}");
            at += piece.len();
        }
        assert_eq!(at, total);
    };
    futures::join!(send, receive);
}

const LENS: [usize; 9] = [1, 64, 100, 4096, 65_536, 3, 200_000, 1 << 20, 17];

async fn round_trips(engine: Engine, pairs: Vec<(OwnedFd, OwnedFd)>) {
    let tasks = pairs.into_iter().map(|(a, b)| {
        let (near, far) = (engine.socket(a).unwrap(), engine.socket(b).unwrap());
        let server = tokio::spawn(echo(far.0, far.1));
        tokio::spawn(async move {
            exchange(near.0, near.1, &LENS).await;
            server.await.unwrap();
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    engine.shutdown().await;
    assert_eq!(engine.stats().unknown, 0);
}

fn pairs() -> Vec<(OwnedFd, OwnedFd)> {
    (0..4).flat_map(|_| [unix_pair(), tcp_pair()]).collect()
}

fn with_options(options: EngineOptions) -> impl Future<Output = ()> + Send + 'static {
    with_pairs(options, pairs)
}

async fn with_pairs(options: EngineOptions, pairs: fn() -> Vec<(OwnedFd, OwnedFd)>) {
    let pool = pool();
    let Some(engine) = engine_with(&pool, options) else { return };
    round_trips(engine, pairs()).await;
    assert_back(&pool);
}

fn assert_back(pool: &BufPool) {
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
}

#[test]
fn on_a_runtime_of_one_thread() {
    for flavour in FLAVOURS {
        on_one_thread(with_options(EngineOptions::new(flavour)));
    }
}

#[test]
fn on_a_runtime_of_many_threads() {
    on_many_threads(with_options(EngineOptions::new(Flavour::ManyThreads)));
}

/// Few and small buffers: they run out all the time, and receiving goes on.
#[test]
fn with_every_way_to_fill_buffers() {
    for (incremental, bundles) in [(false, false), (false, true), (true, false), (true, true)] {
        for (count, len) in [(2, 1000), (8, 4096)] {
            let mut options = EngineOptions::new(Flavour::OneThread);
            (options.incremental, options.bundles) = (incremental, bundles);
            (options.recv_buffers, options.recv_buffer_bytes) = (count, Some(len));
            let pairs = || vec![unix_pair(), tcp_pair()];
            on_one_thread(with_pairs(options.clone(), pairs));
            options.flavour = Flavour::ManyThreads;
            on_many_threads(with_pairs(options, pairs));
        }
    }
}

#[test]
fn while_it_spins() {
    let longest = std::time::Duration::from_micros(100);
    let mut options = EngineOptions::new(Flavour::OneThread);
    options.spin = Some(zc_transport_uring::Spin { longest, share_percent: 50 });
    on_one_thread(with_options(options.clone()));
    options.flavour = Flavour::ManyThreads;
    on_many_threads(with_options(options));
}

/// What is long goes straight to where the caller wants it, after what came before.
#[test]
fn into_a_buffer_of_the_callers() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            let Some(engine) = engine(&pool, flavour) else { return };
            let (a, b) = tcp_pair();
            let (tx, _keep) = engine.socket(a).unwrap();
            let (_, mut rx) = engine.socket(b).unwrap();
            tx.send(bytes(10, 0), true).await.unwrap();
            assert_eq!(rx.recv().await.unwrap()[..], pattern(10, 0));
            std::future::poll_fn(|cx| rx.poll_quiet(cx)).await;
            assert!(rx.try_recv().is_pending());
            let send = tx.send(bytes(1 << 20, 7), true);
            let receive = rx.recv_into(pool.try_alloc(1 << 20).unwrap(), 1 << 20, true);
            let (sent, received) = futures::join!(send, receive);
            assert_eq!(sent.unwrap(), 1 << 20);
            assert_eq!(received.unwrap()[..], pattern(1 << 20, 7));
            // And back to receiving by itself.
            tx.send(bytes(5, 3), true).await.unwrap();
            assert_eq!(rx.recv().await.unwrap()[..], pattern(5, 3));
            let busy = rx.recv_into(pool.try_alloc(1).unwrap(), 1, false).await;
            assert_eq!(busy.err().unwrap().kind(), std::io::ErrorKind::InvalidInput);
        });
    }
}

/// Receiving pauses when nobody takes, so the sender is held up; then all of it is there.
#[test]
fn a_reader_that_is_slow_holds_the_sender_up() {
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::OneThread) else { return };
        let (a, b) = unix_pair();
        let (tx, _keep) = engine.socket(a).unwrap();
        let (_, mut rx) = engine.socket(b).unwrap();
        let total = 5 * zc_transport_uring::MAX_INBOX_BYTES;
        let sender = tokio::spawn(async move { tx.send(bytes(total, 0), true).await.unwrap() });
        let expected = pattern(total, 0);
        let mut at = rx.recv().await.unwrap().len();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        assert!(!sender.is_finished());
        assert!(pool.stats().in_use_bytes < 3 * zc_transport_uring::MAX_INBOX_BYTES as u64);
        while at < total {
            let piece = rx.recv().await.unwrap();
            assert_eq!(piece[..], expected[at..at + piece.len()]);
            at += piece.len();
        }
        assert_eq!(sender.await.unwrap(), total);
    });
}

#[test]
fn zero_copy_sends_tell_what_the_kernel_did() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            let Some(engine) = engine(&pool, flavour) else { return };
            let (a, b) = tcp_pair();
            let (tx, _keep) = engine.socket(a).unwrap();
            let (_, mut rx) = engine.socket(b).unwrap();
            let mut buf = pool.try_alloc(100_000).unwrap();
            buf.put_slice(&pattern(100_000, 1));
            let mut send = tx.send_zero_copy(buf.freeze(), true);
            let n = std::future::poll_fn(|cx| send.poll_sent(cx)).await.unwrap();
            assert_eq!(n, 100_000);
            let mut got = Vec::new();
            while got.len() < n {
                got.extend(rx.recv().await.unwrap().iter().copied());
            }
            assert_eq!(got, pattern(100_000, 1));
            let usage = std::future::poll_fn(|cx| send.poll_released(cx)).await.unwrap();
            assert_eq!(usage, zc_transport_uring::Usage::Copied, "the loopback device always does");
            // Dropped after its result: the memory comes back by itself.
            let mut buf = pool.try_alloc(10).unwrap();
            buf.put_slice(b"0123456789");
            let mut send = tx.send_zero_copy(buf.freeze(), true);
            std::future::poll_fn(|cx| send.poll_sent(cx)).await.unwrap();
            drop((send, got));
            assert_eq!(rx.recv().await.unwrap()[..], b"0123456789"[..]);
            // On a socket that can't.
            let (a, _b) = unix_pair();
            let (tx, _keep2) = engine.socket(a).unwrap();
            let mut send = tx.send_zero_copy(bytes(10, 0), true);
            let error = std::future::poll_fn(|cx| send.poll_sent(cx)).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
            let usage = std::future::poll_fn(|cx| send.poll_released(cx)).await.unwrap();
            assert_eq!(usage, zc_transport_uring::Usage::Unused);
            engine.shutdown().await;
            drop(rx);
            assert_back(&pool);
        });
    }
}

/// Who looks finds what has come although the engine's task does not run meanwhile; when nobody looks any more it sleeps.
#[test]
fn looking_needs_no_task() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            let Some(engine) = engine(&pool, flavour) else { return };
            let (peer, b) = tcp_pair();
            let (_keep, mut rx) = engine.socket(b).unwrap();
            assert!(futures::poll!(std::pin::pin!(rx.recv())).is_pending());
            while engine.stats().in_flight == 0 {
                tokio::task::yield_now().await;
            }
            rustix::io::write(&peer, &pattern(100, 0)).unwrap();
            // This thread is the runtime's only one, and stays here.
            let mut found = std::task::Poll::Pending;
            wait_until("something is found", || {
                found = rx.try_recv();
                found.is_ready()
            });
            let std::task::Poll::Ready(piece) = found else { panic!("nothing came") };
            assert_eq!(piece.unwrap()[..], pattern(100, 0));
            let mut before = u64::MAX;
            while std::mem::replace(&mut before, engine.stats().turns) != engine.stats().turns {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        });
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Counts(AtomicUsize);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Who looks for what has come and finds it has it in hand: to be woken for it as well would be a poll in vain.
#[test]
fn who_finds_something_is_not_woken_for_it() {
    on_one_thread(async {
        let Some(engine) = engine(&pool(), Flavour::OneThread) else { return };
        let (near, far) = unix_pair();
        let (tx, mut rx) = engine.socket(near).unwrap();
        let counts = Arc::new(Counts::default());
        let waker = Waker::from(counts.clone());
        let mut cx = Context::from_waker(&waker);
        for n in 1..=10 {
            assert!(rx.poll_recv(&mut cx).is_pending());
            // The engine's task arms.
            while engine.stats().in_flight == 0 {
                tokio::task::yield_now().await;
            }
            rustix::io::write(&far, &[n]).unwrap();
            // Nobody else looks meanwhile: this is the only thread.
            let piece = loop {
                if let Poll::Ready(piece) = rx.poll_recv(&mut cx) {
                    break piece.unwrap();
                }
            };
            assert_eq!((&piece[..], counts.0.load(Ordering::Relaxed)), (&[n][..], 0));
        }
        // The same for operations: one is found by who waits for it, in its own poll.
        let mut op = engine.nop();
        while Pin::new(&mut op).poll(&mut cx).is_pending() {}
        assert_eq!(counts.0.load(Ordering::Relaxed), 0);
        drop((tx, rx));
        engine.shutdown().await;
    });
}
