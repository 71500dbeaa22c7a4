//! Sends out of the memory itself.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use futures::FutureExt;
use std::future::poll_fn;
use std::time::Instant;
use zc_core::memory::Message;
use zc_transport_uring::{
    Engine, EngineOptions, Flavour, PeerPlace, SocketRx, Usage, ZERO_COPY_MIN_BYTES, ZeroCopyMode,
    ZeroCopyPolicy, ZeroCopySend,
};

async fn finish(mut send: ZeroCopySend) -> (usize, Usage) {
    let n = poll_fn(|cx| send.poll_sent(cx)).await.unwrap();
    (n, poll_fn(|cx| send.poll_released(cx)).await.unwrap())
}

async fn expect(rx: &mut SocketRx, expected: &[u8]) {
    let mut at = 0;
    while at < expected.len() {
        let piece = rx.recv().await.unwrap();
        assert!(!piece.is_empty());
        assert_eq!(piece[..], expected[at..at + piece.len()]);
        at += piece.len();
    }
}

fn message(lens: &[usize]) -> (Message, Vec<u8>) {
    let (mut message, mut all) = (Message::new(), Vec::new());
    for (seed, len) in lens.iter().enumerate() {
        message.push(bytes(*len, seed)).unwrap();
        all.extend(pattern(*len, seed));
    }
    (message, all)
}

/// Loopback copies, and says so. Each sends several pieces, more than fit into the description without memory of its own.
async fn vectored(engine: Engine) {
    let (a, b) = tcp_pair();
    let ((tx, _rx), (_tx, mut rx)) = (engine.socket(a).unwrap(), engine.socket(b).unwrap());
    for lens in [&[1][..], &[100_000, 1, 70_000], &[3000; 16], &[1 << 20, 1 << 20]] {
        let (message, all) = message(lens);
        let send = finish(tx.send_message_zero_copy(message, true));
        let ((n, usage), ()) = futures::join!(send, expect(&mut rx, &all));
        assert_eq!((n, usage), (all.len(), Usage::Copied));
    }
    engine.shutdown().await;
}

#[test]
fn messages_go_out_of_the_memory_itself() {
    for flavour in FLAVOURS {
        let pool = pool();
        on_one_thread(async {
            if let Some(engine) = engine(&pool, flavour) {
                vectored(engine).await;
            }
        });
        wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
    }
}

/// The pieces stay with the engine until the notification, whoever has gone meanwhile.
#[test]
fn the_notification_owns_the_pieces() {
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::OneThread) else { return };
        for polls in 0..3 {
            let (a, b) = tcp_pair();
            let ((tx, _rx), (_tx, mut rx)) = (engine.socket(a).unwrap(), engine.socket(b).unwrap());
            let mut one = pool.try_alloc(300_000).unwrap();
            one.put_slice(&pattern(300_000, 7));
            let mut pieces = Message::from(one.freeze());
            pieces.push(bytes(1000, 8)).unwrap();
            let mut send = tx.send_message_zero_copy(pieces, true);
            match polls {
                // It never began.
                0 => drop(send),
                // Under way, perhaps in part: what came is the beginning of it.
                1 => {
                    assert!(poll_fn(|cx| send.poll_sent(cx)).now_or_never().is_none());
                    drop(send);
                }
                _ => {
                    let expected = [pattern(300_000, 7), pattern(1000, 8)].concat();
                    let sent = async {
                        assert_eq!(poll_fn(|cx| send.poll_sent(cx)).await.unwrap(), 301_000);
                        drop(send);
                    };
                    futures::join!(sent, expect(&mut rx, &expected));
                }
            }
            drop((tx, _rx, _tx, rx));
            let until = Instant::now() + GUARD;
            // The receive buffers are the engine's.
            while pool
                .outstanding_by_origin()
                .iter()
                .any(|(origin, usage)| *origin != "uring rx" && usage.buffers > 0)
            {
                assert!(Instant::now() < until, "{:?}", pool.outstanding_by_origin());
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
        engine.shutdown().await;
    });
}

/// As the lane uses it: where nothing is known of the peer it is tried, and given up since loopback copies.
#[test]
fn the_policy_turns_itself_off_where_the_kernel_copies() {
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::OneThread) else { return };
        let (a, b) = tcp_pair();
        let ((tx, _rx), (_tx, mut rx)) = (engine.socket(a).unwrap(), engine.socket(b).unwrap());
        assert!(!tx.zero_copy_policy().is_on());
        assert_eq!(tx.zero_copy_policy().attempt(1 << 20, Instant::now()), None, "an address of this host");
        let mut policy = ZeroCopyPolicy::new(ZeroCopyMode::Probe, PeerPlace::Elsewhere);
        let (start, mut copied) = (Instant::now(), 0);
        let len = ZERO_COPY_MIN_BYTES;
        for seed in 0..50 {
            let send = async {
                let Some(attempt) = policy.attempt(len, start) else {
                    assert_eq!(tx.send(bytes(len, seed), true).await.unwrap(), len);
                    return;
                };
                let (n, usage) = finish(tx.send_zero_copy(bytes(len, seed), true)).await;
                policy.report(attempt, usage, start);
                copied += usize::from(usage == Usage::Copied);
                assert_eq!(n, len);
            };
            let expected = pattern(len, seed);
            futures::join!(send, expect(&mut rx, &expected));
        }
        assert_eq!((copied, policy.is_on()), (1, false));
        engine.shutdown().await;
        let mut forced = EngineOptions::new(Flavour::OneThread);
        forced.zero_copy = ZeroCopyMode::Always;
        let engine = engine_with(&pool, forced).unwrap();
        let (a, _b) = tcp_pair();
        assert!(engine.socket(a).unwrap().0.zero_copy_policy().is_on());
        engine.shutdown().await;
    });
}

/// Nothing of it is there on Unix sockets: refused, and what was to be sent comes back to the pool.
#[test]
fn unix_sockets_refuse() {
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::ManyThreads) else { return };
        let (a, _b) = unix_pair();
        let (tx, _rx) = engine.socket(a).unwrap();
        let mut send = tx.send_message_zero_copy(message(&[10, 10]).0, true);
        let error = poll_fn(|cx| send.poll_sent(cx)).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(poll_fn(|cx| send.poll_released(cx)).await.unwrap(), Usage::Unused);
        assert_eq!(tx.zero_copy_policy().attempt(1 << 20, Instant::now()), None);
        engine.shutdown().await;
    });
}
