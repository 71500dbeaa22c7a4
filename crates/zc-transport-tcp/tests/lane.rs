//! Lanes over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::task::Poll;
use std::time::{Duration, Instant};

use common::*;
use proptest::prelude::*;
use zc_conformance::exchange;
use zc_core::memory::Message;
use zc_core::transport::*;
use zc_transport_tcp::StreamLink;

/// Returns when no memory is in use; whoever runs this guards it.
async fn settle(a: &mut End, b: &End) {
    loop {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        a.lane.drive.as_mut().unwrap().poll_drive(&mut cx, Instant::now()).unwrap();
        if a.pool.stats().in_use_bytes == 0 && b.pool.stats().in_use_bytes == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn sizes_in_order() {
    let sizes =
        [0, 1, 16, 511, 512, 513, 4096, 16384, 65520, 65536, 65537, 1 << 20, 8 << 20, 3, 8 << 20, 1 << 20];
    for addr in [tcp(), LinkAddr::UnixAbstract(format!("zc-test-{}", std::process::id()))] {
        run(async {
            let (mut a, mut b) = pair(addr, LaneLimits::default()).await;
            let expect: Vec<_> = sizes.iter().enumerate().map(|(i, n)| body(*n, i)).collect();
            let messages = expect.iter().cloned().map(Message::from).collect();
            exchange(&mut a.lane, &mut b.lane, &TokioReactor::new(), messages, &expect).await;
            settle(&mut a, &b).await;
            assert_eq!(b.lane.leases.outstanding_bytes(), 0);
        });
    }
}

#[test]
fn large_stream_is_not_copied_by_us() {
    run(async {
        let (mut a, mut b) = pair(tcp(), LaneLimits::default()).await;
        let expect: Vec<_> = (0..10).map(|i| body(1 << 20, i)).collect();
        let messages = expect.iter().cloned().map(Message::from).collect();
        exchange(&mut a.lane, &mut b.lane, &TokioReactor::new(), messages, &expect).await;
        let warm_up = b.ledger.snapshot().copied_bytes();
        assert!(warm_up <= 65536, "{:?}", b.ledger.snapshot());
        assert_eq!(a.ledger.snapshot().copied_bytes(), 0);
        settle(&mut a, &b).await;
    });
}

#[test]
fn credit_stalls_and_comes_back() {
    run(async {
        let mut limits = LaneLimits::default();
        (limits.send_window, limits.recv_window) = (1000, 1000);
        let (mut a, mut b) = pair(tcp(), limits).await;
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(a.lane.tx.poll_ready(&mut cx, 5000).is_ready());
        let token = a.lane.tx.start_send(frame(1, vec![7u8; 5000].into()), true).unwrap();
        assert!(a.lane.tx.poll_ready(&mut cx, 1).is_pending());
        std::future::poll_fn(|cx| a.lane.tx.poll_flush(cx)).await.unwrap();
        let mut out = Batch::new();
        std::future::poll_fn(|cx| a.lane.tx.poll_completions(cx, &mut out)).await.unwrap();
        assert_eq!(out.drain().collect::<Vec<_>>(), [(token, SendReport::Sent)]);
        let mut got = Batch::new();
        std::future::poll_fn(|cx| b.lane.rx.poll_recv(cx, &mut got)).await.unwrap();
        got.drain().for_each(|f| b.lane.rx.release(f.payload.len()));
        b.lane.drive.as_mut().unwrap().poll_drive(&mut cx, Instant::now()).unwrap();
        std::future::poll_fn(|cx| {
            assert!(a.lane.rx.poll_recv(cx, &mut got).is_pending());
            a.lane.tx.poll_ready(cx, 1)
        })
        .await
        .unwrap();
        // Half-close: `a` ends, `b` may go on.
        std::future::poll_fn(|cx| a.lane.tx.poll_close(cx)).await.unwrap();
        let end = std::future::poll_fn(|cx| b.lane.rx.poll_recv(cx, &mut got)).await.unwrap();
        assert_eq!(end, Received::Closed);
        b.lane.tx.start_send(frame(1, vec![1u8; 9].into()), false).unwrap();
        std::future::poll_fn(|cx| b.lane.tx.poll_flush(cx)).await.unwrap();
        let more = std::future::poll_fn(|cx| a.lane.rx.poll_recv(cx, &mut got)).await.unwrap();
        assert_eq!((more, got.len()), (Received::Some, 1));
    });
}

async fn raw(bytes: &[u8], step: usize) -> Result<usize, LaneError> {
    let (mut a, b) = links(tcp()).await;
    let mut b = end(b, LaneLimits::default()).await;
    let feed = async {
        for part in bytes.chunks(step.max(1)) {
            let mut part = part;
            while !part.is_empty() {
                let n = std::future::poll_fn(|cx| a.poll_write(cx, part)).await.unwrap_or(part.len());
                part = &part[n..];
            }
            tokio::task::yield_now().await;
        }
        let _ = std::future::poll_fn(|cx| a.poll_shutdown(cx)).await;
    };
    let mut feed = Box::pin(feed);
    let (mut fed, mut count, mut out) = (false, 0, Batch::new());
    std::future::poll_fn(|cx| {
        fed = fed || feed.as_mut().poll(cx).is_ready();
        loop {
            match b.lane.rx.poll_recv(cx, &mut out) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Ready(Ok(Received::Closed)) => return Poll::Ready(Ok(count)),
                Poll::Ready(Ok(Received::Some)) => count += out.drain().count(),
            }
        }
    })
    .await
}

#[test]
fn dribble_and_torn_frame() {
    let mut bytes = Vec::new();
    for seq in 1..=5u64 {
        bytes.extend(zc_core::wire::FrameHeader::data(40, seq).encode());
        bytes.extend([9u8; 40]);
    }
    assert_eq!(run(raw(&bytes, 1)).unwrap(), 5);
    bytes.pop();
    assert!(matches!(run(raw(&bytes, 7)), Err(LaneError::PeerGone(_))));
    let huge = zc_core::wire::FrameHeader::data(u32::MAX, 1).encode();
    assert!(matches!(run(raw(&huge, 16)), Err(LaneError::Protocol(_))));
}

#[test]
fn descriptors_pass() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, mut b) = links(LinkAddr::UnixPath(dir.path().join("s"))).await;
        assert!(!dir.path().join("s").exists());
        assert_eq!(a.peer_cred().unwrap().pid, std::process::id() as i32);
        let file = std::fs::File::open("/dev/null").unwrap();
        let fds = [std::os::fd::AsFd::as_fd(&file); 3];
        std::future::poll_fn(|cx| a.poll_send_descriptors(cx, &fds)).await.unwrap();
        let got = std::future::poll_fn(|cx| b.poll_recv_descriptors(cx, 3)).await.unwrap();
        assert_eq!(got.len(), 3);
        std::future::poll_fn(|cx| a.poll_send_descriptors(cx, &fds)).await.unwrap();
        assert!(std::future::poll_fn(|cx| b.poll_recv_descriptors(cx, 2)).await.is_err());
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn hostile_bytes(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), any::<u8>()], 0..300), step in 1usize..64) {
        let _ = run(raw(&bytes, step));
    }

    #[test]
    fn ropes_arrive_whole(ropes in prop::collection::vec(prop::collection::vec(0usize..40_000, 0..6), 1..12)) {
        run(async {
            let (mut a, mut b) = pair(tcp(), LaneLimits::default()).await;
            let mut expect = Vec::new();
            let mut messages = Vec::new();
            for rope in &ropes {
                let (mut m, mut all) = (Message::new(), Vec::new());
                for (i, n) in rope.iter().enumerate() {
                    let part = body(*n, i);
                    all.extend(&part);
                    m.push(part).unwrap();
                }
                expect.push(all);
                messages.push(m);
            }
            exchange(&mut a.lane, &mut b.lane, &TokioReactor::new(), messages, &expect).await;
            settle(&mut a, &b).await;
        });
    }
}

/// Nothing is copied once it flows, whatever travels in between.
#[test]
fn large_messages_amid_records_and_small_ones_are_not_copied() {
    for addr in [tcp(), LinkAddr::UnixAbstract(format!("zc-amid-{}", std::process::id()))] {
        run(async {
            let (mut a, mut b) = pair(addr, LaneLimits::default()).await;
            let sizes = [1 << 20, 65536, 40, 65536, 300_000, 5000, 16384, 0, 700, 1 << 20];
            let mut warm = 0;
            for i in 0..200usize {
                let len = sizes[i % sizes.len()];
                {
                    let (from, to) = (&mut a, &mut b);
                    let record =
                        Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: vec![3; 12].into() };
                    from.lane.tx.start_send(record, false).unwrap();
                    let sent = body(len, i);
                    let mut send = Box::pin(from.send(i as u64 + 1, sent.clone()));
                    let (mut got, mut sent_all) = (Vec::new(), false);
                    std::future::poll_fn(|cx| {
                        sent_all = sent_all || send.as_mut().poll(cx).is_ready();
                        let mut out = Batch::new();
                        while to.lane.rx.poll_recv(cx, &mut out).map(Result::unwrap).is_ready() {
                            got.extend(out.drain());
                        }
                        if sent_all && got.len() == 2 { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                    assert!(got[0].kind == FrameKind::Session && got[1].payload == sent[..]);
                    to.lane.rx.release(len);
                    to.drive();
                }
                a.look();
                if i == 0 {
                    warm = b.ledger.snapshot().copied_bytes();
                }
            }
            assert!(warm <= 65536);
            assert_eq!(b.ledger.snapshot().copied_bytes(), warm);
        });
    }
}

/// A lane to a bare, blocking socket.
async fn with_socket() -> (End, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let link = StreamLink::new(TokioReactor::new().register(socket.into()).unwrap(), tcp());
    (end(Box::new(link), LaneLimits::default()).await, listener.accept().unwrap().0)
}

#[test]
fn half_close_in_both_orders_and_reset() {
    run(async {
        for first in [0, 1] {
            let (a, b) = pair(tcp(), LaneLimits::default()).await;
            let mut ends = if first == 0 { [a, b] } else { [b, a] };
            for i in [0, 1] {
                std::future::poll_fn(|cx| ends[i].lane.tx.poll_close(cx)).await.unwrap();
                std::future::poll_fn(|cx| ends[i].lane.tx.poll_close(cx)).await.unwrap();
                assert!(matches!(
                    std::future::poll_fn(|cx| ends[i].lane.tx.poll_ready(cx, 1)).await,
                    Err(LaneError::Closed)
                ));
                assert!(ends[1 - i].recv().await.unwrap().is_empty());
                if i == 0 {
                    // The other direction goes on.
                    ends[1].send(1, vec![5u8; 100_000]).await;
                    assert_eq!(ends[0].recv().await.unwrap()[0].payload.len(), 100_000);
                }
            }
            assert!(ends[0].recv().await.unwrap().is_empty());
        }
        // A peer that goes with our bytes unread resets the connection.
        let (mut a, peer) = with_socket().await;
        a.send(1, vec![1u8; 100]).await;
        peer.peek(&mut [0]).unwrap();
        drop(peer);
        assert!(matches!(a.recv().await, Err(LaneError::PeerGone(_))));
        assert!(matches!(a.recv().await, Err(LaneError::PeerGone(_))), "it stays that way");
    });
}
