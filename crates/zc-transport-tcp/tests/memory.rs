//! Receive memory: leases, exhausted pools.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::*;
use zc_core::memory::{AllocError, BufPool, CopyPlace, PinnedBufMut};
use zc_core::transport::*;
use zc_core::wire::FrameHeader;
use zc_transport_tcp::{CHUNK_BYTES, MAX_QUEUED_RECORD_BYTES, STAGE_BYTES};

#[test]
fn past_the_soft_lease_messages_are_copied_out_and_counted() {
    run(async {
        let mut limits = LaneLimits::default();
        (limits.lease_soft, limits.lease_hard) = (2 * CHUNK_BYTES, 100 * CHUNK_BYTES);
        let (mut a, mut b) = pair(tcp(), limits).await;
        let mut held = Vec::new();
        for i in 0..50 {
            a.send(i + 1, body(1000, i as usize)).await;
            let got = b.recv().await.unwrap();
            assert_eq!(got[0].payload, body(1000, i as usize)[..]);
            held.extend(got);
        }
        let copied = b.ledger.snapshot().copied_at(CopyPlace::CopyOut);
        assert!((40_000..50_000).contains(&copied), "{copied}");
        // What was copied out holds its own memory only, not a chunk each.
        assert!(b.lane.leases.outstanding_bytes() < 4 * CHUNK_BYTES);
        drop(held);
        assert_eq!(b.lane.leases.outstanding_bytes(), 0);
    });
}

/// The application holds too much: no credit goes back until it drops some, from wherever; records get through.
#[test]
fn past_the_hard_lease_credit_is_withheld_and_records_get_through() {
    run(async {
        let mut limits = LaneLimits::default();
        (limits.lease_soft, limits.lease_hard) = (1 << 20, 1 << 20);
        (limits.recv_window, limits.send_window) = (64 << 10, 64 << 10);
        let (mut a, mut b) = pair(tcp(), limits).await;
        let (held, ()) = futures::future::join(b.recv(), a.send(1, body(1 << 20, 1))).await;
        let held = held.unwrap();
        b.lane.rx.release(1 << 20);
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(woken.clone());
        let drive = |b: &mut End| {
            let cx = &mut Context::from_waker(&waker);
            b.lane.drive.as_mut().unwrap().poll_drive(cx, tokio::time::Instant::now().into_std()).unwrap()
        };
        drive(&mut b);
        let record = Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: vec![7u8; 9].into() };
        a.lane.tx.start_send(record, false).unwrap();
        std::future::poll_fn(|cx| a.lane.tx.poll_flush(cx)).await.unwrap();
        assert_eq!(b.recv().await.unwrap()[0].kind, FrameKind::Session, "records get through");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(a.look().is_none());
        let ready = std::future::poll_fn(|cx| Poll::Ready(a.lane.tx.poll_ready(cx, 1))).await;
        assert!(ready.is_pending(), "nothing was granted");
        woken.0.store(false, SeqCst);
        std::thread::spawn(move || drop(held)).join().unwrap();
        assert!(woken.0.load(SeqCst), "whoever drops it wakes the lane");
        drive(&mut b);
        let mut none = Batch::new();
        std::future::poll_fn(|cx| {
            assert!(a.lane.rx.poll_recv(cx, &mut none).is_pending());
            a.lane.tx.poll_ready(cx, 1)
        })
        .await
        .unwrap();
    });
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// The beginning of a frame must not hold the lease that reading its rest waits for.
#[test]
fn a_frame_under_way_does_not_block_itself() {
    run(async {
        let mut limits = LaneLimits::default();
        (limits.lease_soft, limits.lease_hard) = (CHUNK_BYTES, CHUNK_BYTES);
        let (mut a, mut b) = pair(tcp(), limits).await;
        let sending = async {
            for i in 0..200u64 {
                a.send(i + 1, body(3000, i as usize)).await;
            }
        };
        let receiving = async {
            let mut next = 1;
            while next <= 200 {
                for f in b.recv().await.unwrap() {
                    assert_eq!((f.seq, f.payload == body(3000, next as usize - 1)[..]), (next, true));
                    next += 1;
                }
            }
        };
        futures::future::join(sending, receiving).await;
    });
}

#[test]
fn an_exhausted_pool_makes_the_receiver_wait_and_grants_still_arrive() {
    run(async {
        let (a, b) = links(tcp()).await;
        let mut limits = LaneLimits::default();
        (limits.send_window, limits.recv_window) = (1000, 1000);
        let mut a = end(a, limits).await;
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let mut b = end_with(b, limits, pool.clone()).await;
        let mut all = Vec::new();
        while let Ok(buf) = pool.try_alloc(CHUNK_BYTES) {
            all.push(buf);
        }
        while let Ok(buf) = pool.try_alloc(1) {
            all.push(buf);
        }
        // `b` has spent its credit; `a` gives some back, and a record, and then a message.
        b.send(1, vec![1u8; 1000]).await;
        for f in a.recv().await.unwrap() {
            a.lane.rx.release(f.payload.len());
        }
        let record = Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: vec![9; 12].into() };
        a.lane.tx.start_send(record, false).unwrap();
        a.send(1, body(5000, 1)).await;
        a.drive();
        let got = b.recv().await.unwrap();
        assert!(got.len() == 1 && got[0].kind == FrameKind::Session && got[0].payload == [9u8; 12][..]);
        let mut waiting = Box::pin(b.recv());
        for _ in 0..3 {
            assert!(std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(all);
        assert_eq!(waiting.await.unwrap()[0].payload, body(5000, 1)[..]);
        std::future::poll_fn(|cx| {
            let mut none = Batch::new();
            let _ = b.lane.rx.poll_recv(cx, &mut none);
            b.lane.tx.poll_ready(cx, 1)
        })
        .await
        .unwrap();
    });
}

#[test]
fn grants_are_read_while_nothing_can_be_allocated() {
    run(async {
        let (a, b) = links(tcp()).await;
        let mut limits = LaneLimits::default();
        (limits.send_window, limits.recv_window) = (1000, 1000);
        let mut a = end(a, limits).await;
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let mut b = end_with(b, limits, pool.clone()).await;
        b.send(1, vec![1u8; 1000]).await;
        let mut all = Vec::new();
        while let Ok(buf) = pool.try_alloc(1) {
            all.push(buf);
        }
        for f in a.recv().await.unwrap() {
            a.lane.rx.release(f.payload.len());
        }
        a.drive();
        std::future::poll_fn(|cx| {
            assert!(b.lane.rx.poll_recv(cx, &mut Batch::new()).is_pending());
            b.lane.tx.poll_ready(cx, 1)
        })
        .await
        .unwrap();
        drop(all);
    });
}

/// The headers of long messages take their memory at once, but not all of the pool.
#[test]
fn headers_alone_leave_memory_to_others() {
    const POOL: usize = 64 << 20;
    run(async {
        let pool = BufPool::builder().max_bytes(POOL).build();
        let mut limits = LaneLimits::default();
        limits.recv_window = 64 << 10;
        let mut ends = Vec::new();
        for _ in 0..4 {
            let (link, mut peer) = links(unix()).await;
            let mut end = end_with(link, limits, pool.clone()).await;
            let header = FrameHeader::data(20 << 20, 1).encode();
            std::future::poll_fn(|cx| peer.poll_write(cx, &header)).await.unwrap();
            for _ in 0..20 {
                assert!(end.look().is_none());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            ends.push((end, peer));
        }
        // Two of them have theirs, the others wait, and let those pass that ask for less.
        assert_eq!(pool.stats().in_use_bytes, 40 << 20);
        let mut asking = Box::pin(pool.alloc(20 << 20));
        let got = std::future::poll_fn(|cx| {
            assert!(ends.iter_mut().all(|(end, _)| end.look().is_none()));
            asking.as_mut().poll(cx)
        });
        drop(got.await.unwrap());
        // The first one goes: the third one gets its memory.
        drop(ends.remove(0));
        assert!(ends[1].0.look().is_none());
        assert_eq!(pool.stats().in_use_bytes, 40 << 20);
    });
}

/// What can never be had is an error, not a wait.
#[test]
fn a_message_that_the_pool_has_no_room_for_ends_the_lane() {
    run(async {
        let (link, mut peer) = links(unix()).await;
        let mut b =
            end_with(link, LaneLimits::default(), BufPool::builder().max_bytes(16 << 20).build()).await;
        let header = FrameHeader::data(13 << 20, 1).encode();
        std::future::poll_fn(|cx| peer.poll_write(cx, &header)).await.unwrap();
        assert!(matches!(b.recv().await, Err(LaneError::Memory(_))));
    });
}

/// A pool of one block, which is taken; and what is to be read from a peer is given byte by byte.
const BLOCK: usize = 4096;

async fn say(peer: &mut Box<dyn ControlLink>, bytes: &[u8]) {
    let n = std::future::poll_fn(|cx| peer.poll_write(cx, bytes)).await.unwrap();
    assert_eq!(n, bytes.len());
}

/// Looks until the lane has taken in what was sent; nothing is whole.
async fn take_in(end: &mut End) {
    for _ in 0..20 {
        assert!(end.look().is_none());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Polls once.
async fn is_served(alloc: &mut (impl Future<Output = Result<PinnedBufMut, AllocError>> + Unpin)) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *alloc).poll(cx))).await.is_ready()
}

#[test]
fn a_record_in_parts_does_not_hold_up_others_that_wait_for_memory() {
    run(async {
        let pool = BufPool::builder().max_bytes(BLOCK).build();
        let (link, mut peer) = links(unix()).await;
        let mut first = end_with(link, LaneLimits::default(), pool.clone()).await;
        let all = pool.try_alloc(BLOCK).unwrap();
        say(&mut peer, &FrameHeader::session(12).encode()).await;
        take_in(&mut first).await;
        say(&mut peer, &[1; 5]).await;
        take_in(&mut first).await;
        // And then silence.
        let mut second = Box::pin(pool.alloc(100));
        assert!(!is_served(&mut second).await);
        drop(all);
        assert!(is_served(&mut second).await, "nobody is in front of it");
        say(&mut peer, &[2; 7]).await;
        assert_eq!(first.recv().await.unwrap()[0].payload, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2][..]);
    });
}

#[test]
fn memory_found_while_spinning_leaves_no_place_in_the_queue() {
    run(async {
        let pool = BufPool::builder().max_bytes(BLOCK).build();
        let (link, mut peer) = links(unix()).await;
        let mut first = end_with(link, LaneLimits::default(), pool.clone()).await;
        let all = pool.try_alloc(BLOCK).unwrap();
        say(&mut peer, &FrameHeader::data(1000, 1).encode()).await;
        take_in(&mut first).await;
        let mut second = Box::pin(pool.alloc(100));
        assert!(!is_served(&mut second).await);
        drop(all);
        let mut out = Batch::new();
        assert!(matches!(first.lane.rx.try_recv(&mut out), Ok(None)));
        assert_eq!(pool.stats().in_use_bytes, 1024, "it has its memory");
        assert!(is_served(&mut second).await, "nobody is in front of it");
    });
}

#[test]
fn who_reads_no_more_gives_up_memory_and_its_place_in_the_queue() {
    run(async {
        let pool = BufPool::builder().max_bytes(BLOCK).build();
        let (link, mut peer) = links(unix()).await;
        let mut first = end_with(link, LaneLimits::default(), pool.clone()).await;
        let all = pool.try_alloc(BLOCK).unwrap();
        say(&mut peer, &FrameHeader::data(1000, 1).encode()).await;
        take_in(&mut first).await;
        let mut second = Box::pin(pool.alloc(100));
        assert!(!is_served(&mut second).await);
        first.lane.rx.stop();
        drop(all);
        assert!(is_served(&mut second).await, "nobody is in front of it");
        drop(second);
        assert!(matches!(first.recv().await, Err(LaneError::Closed)));
        // One that has its memory gives it back.
        let (link, mut peer) = links(unix()).await;
        let mut third = end_with(link, LaneLimits::default(), pool.clone()).await;
        say(&mut peer, &FrameHeader::data(1000, 1).encode()).await;
        take_in(&mut third).await;
        assert_eq!(pool.stats().in_use_bytes, 1024);
        third.lane.rx.stop();
        assert_eq!(pool.stats().in_use_bytes, 0);
    });
}

/// Many messages begin while there is little memory: the chunks in which they begin must not take all of it.
#[test]
fn chunks_leave_memory_for_the_bodies_that_begin_in_them() {
    const BODY: usize = 200 << 10;
    run(async {
        let pool = BufPool::builder().max_bytes(4 << 20).build();
        let mut all: Vec<_> = std::iter::from_fn(|| pool.try_alloc(CHUNK_BYTES).ok()).collect();
        let (mut ends, peers) = (Vec::new(), 2 * all.len());
        let mut begin = FrameHeader::data(BODY as u32, 1).encode().to_vec();
        begin.extend(&body(BODY, 1)[..100]);
        for _ in 0..peers {
            let (link, mut peer) = links(unix()).await;
            let mut end = end_with(link, LaneLimits::default(), pool.clone()).await;
            say(&mut peer, &begin).await;
            // Just enough for another chunk comes back.
            all.pop();
            for _ in 0..3 {
                assert!(end.look().is_none());
                tokio::task::yield_now().await;
            }
            ends.push((end, peer));
        }
        assert!(all.is_empty());
        // All are woken, in whatever order; some get memory for their bodies.
        for _ in 0..4 {
            assert!(ends.iter_mut().all(|(end, _)| end.look().is_none()));
        }
        // Their messages come through, one after the other.
        for (i, (end, peer)) in ends.iter_mut().enumerate() {
            let rest = body(BODY, 1).split_off(100);
            let sending = async {
                let mut rest = &rest[..];
                while !rest.is_empty() {
                    let n = std::future::poll_fn(|cx| peer.poll_write(cx, rest)).await.unwrap();
                    rest = &rest[n..];
                }
            };
            let (got, ()) = futures::future::join(end.recv(), sending).await;
            assert!(got.unwrap()[0].payload == body(BODY, 1)[..], "peer {i}");
        }
    });
}

/// What answers a peer that floods us and reads nothing is bounded; data that waits for it is no reason to refuse.
#[test]
fn records_for_a_peer_that_does_not_read_are_bounded() {
    run(async {
        let (mut a, b) = pair(tcp(), LaneLimits::default()).await;
        let record = || Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: vec![1u8; 12].into() };
        let cx = &mut Context::from_waker(Waker::noop());
        a.lane.tx.start_send(frame(1, body(16 << 20, 1).into()), false).unwrap();
        let mut taken = 0;
        let refused = loop {
            match a.lane.tx.start_send(record(), false) {
                Ok(_) => taken += 1,
                Err(refused) => break refused,
            }
            assert!(a.lane.tx.poll_flush(cx).is_pending());
            assert!(taken < 1_000_000);
        };
        assert!(matches!(refused.error, LaneError::Other(_)));
        assert_eq!(taken, MAX_QUEUED_RECORD_BYTES.div_ceil(28));
        let held = a.pool.stats().in_use_bytes as usize;
        assert!(held <= MAX_QUEUED_RECORD_BYTES + STAGE_BYTES, "{held}");
        drop(b);
    });
}
