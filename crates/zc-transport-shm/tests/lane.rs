//! Lanes over shared memory, both ends in one process.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::task::{Context, Poll, Waker};

use common::*;
use proptest::prelude::*;
use zc_conformance::exchange;
use zc_core::memory::{CopyPlace, Message, PinnedBuf};
use zc_core::transport::*;
use zc_transport_shm::{INLINE_MAX, REAP_BATCH};

fn untrusted() -> Setup {
    Setup { trust: Trust::Untrusted, ..Setup::default() }
}

const SIZES: [usize; 17] = [
    0,
    1,
    64,
    INLINE_MAX,
    INLINE_MAX + 1,
    4096,
    4160,
    4161,
    65535,
    65536,
    1 << 20,
    10 << 20,
    3,
    10 << 20,
    1 << 20,
    8,
    0,
];

#[test]
fn sizes_in_order() {
    for setup in [Setup::default(), untrusted()] {
        run(async {
            let (mut a, mut b) = pair(&setup).await;
            let expect: Vec<_> = SIZES.iter().enumerate().map(|(i, n)| body(*n, i)).collect();
            for _ in 0..3 {
                let messages = expect.iter().cloned().map(Message::from).collect();
                exchange(&mut a.lane, &mut b.lane, &TokioReactor::new(), messages, &expect).await;
            }
            assert_eq!(b.lane.leases.outstanding_bytes(), 0);
        });
    }
}

#[test]
fn from_alloc_to_the_reader_nothing_is_copied() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        for (i, len) in [200, 4096, 65536, 1 << 20, 10 << 20].into_iter().enumerate() {
            let expect = body(len, i);
            let mut buf = a.alloc(len).await;
            buf.put_slice(&expect);
            a.send(data(i as u64 + 1, buf.freeze())).await.unwrap();
            let got = b.recv().await.unwrap();
            assert!(got[0].payload == expect[..]);
            b.lane.rx.release(len);
        }
        for end in [&a, &b] {
            assert_eq!(end.ledger.snapshot().copied_bytes(), 0);
            assert_eq!(end.ledger.snapshot().inline_bytes, 0);
        }
    });
}

#[test]
fn small_messages_count_as_inline_and_foreign_ones_as_copied() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        a.send(data(1, body(64, 1))).await.unwrap();
        a.send(data(2, body(5000, 1))).await.unwrap();
        assert_eq!(b.recv().await.unwrap().len(), 2);
        assert_eq!(a.ledger.snapshot().inline_bytes, 64);
        assert_eq!(b.ledger.snapshot().inline_bytes, 64);
        assert_eq!(a.ledger.snapshot().copied_at(CopyPlace::Foreign), 5000);
        assert_eq!(b.ledger.snapshot().copied_bytes(), 0);
    });
}

#[test]
fn an_untrusted_peers_messages_are_copied_out() {
    run(async {
        let (mut a, mut b) = pair_of(&Setup::default(), &untrusted()).await;
        let mut buf = a.alloc(10_000).await;
        buf.put_slice(&body(10_000, 3));
        a.send(data(1, buf.freeze())).await.unwrap();
        let got = b.recv().await.unwrap();
        assert!(got[0].payload == body(10_000, 3)[..]);
        assert_eq!(b.ledger.snapshot().copied_at(CopyPlace::CopyOut), 10_000);
        assert_eq!(a.ledger.snapshot().copied_bytes(), 0);
        // And the other way, where the reader trusts.
        let mut buf = b.alloc(10_000).await;
        buf.put_slice(&body(10_000, 4));
        b.send(data(1, buf.freeze())).await.unwrap();
        assert!(a.recv().await.unwrap()[0].payload == body(10_000, 4)[..]);
        assert_eq!(a.ledger.snapshot().copied_bytes(), 0);
    });
}

#[test]
fn buffers_come_back_and_are_reused_last_in_first_out() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        for (len, blocks) in [(4096, REAP_BATCH as usize), (65536, 1)] {
            let mut addresses = std::collections::HashSet::new();
            for seq in 1..=300 {
                let mut buf = a.alloc(len).await;
                addresses.insert(buf.as_ptr().addr());
                buf.put_slice(&body(len, seq as usize));
                a.send(data(seq, buf.freeze())).await.unwrap();
                let got = b.recv().await.unwrap();
                assert!(got[0].payload == body(len, seq as usize)[..]);
                b.lane.rx.release(len);
            }
            assert!(addresses.len() <= blocks, "{len} bytes in {} places", addresses.len());
        }
    });
}

#[test]
fn completions_wait_for_the_reader() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let mut cx = Context::from_waker(Waker::noop());
        let mut out = Batch::new();
        let tokens: Vec<_> = [8, 5000]
            .into_iter()
            .enumerate()
            .map(|(i, n)| a.lane.tx.start_send(data(i as u64 + 1, body(n, 0)), true).unwrap())
            .collect();
        assert!(a.lane.tx.poll_flush(&mut cx).is_ready());
        assert!(a.lane.tx.poll_completions(&mut cx, &mut out).is_ready());
        assert_eq!(out.drain().collect::<Vec<_>>(), [(tokens[0], SendReport::Sent)]);
        assert!(a.lane.tx.poll_completions(&mut cx, &mut out).is_pending());
        let got = b.recv().await.unwrap();
        assert!(a.lane.tx.poll_completions(&mut cx, &mut out).is_pending(), "still lent");
        let later = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(got);
        });
        std::future::poll_fn(|cx| a.lane.tx.poll_completions(cx, &mut out)).await.unwrap();
        assert_eq!(out.drain().collect::<Vec<_>>(), [(tokens[1], SendReport::Sent)]);
        later.join().unwrap();
    });
}

#[test]
fn a_full_ring_stalls_and_goes_on() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let mut cx = Context::from_waker(Waker::noop());
        let mut sent = 0;
        while a.lane.tx.poll_ready(&mut cx, 8).is_ready() {
            sent += 1;
            a.lane.tx.start_send(data(sent, body(8, 0)), false).unwrap();
        }
        assert!((200..256).contains(&sent), "{sent}");
        let waits = std::future::poll_fn(|cx| {
            a.drive(cx);
            a.lane.tx.poll_ready(cx, 8)
        });
        let reads = async {
            let mut got = 0;
            while got < sent {
                got += b.recv().await.unwrap().len() as u64;
                tokio::task::yield_now().await;
            }
        };
        let (ready, ()) = futures::future::join(waits, reads).await;
        ready.unwrap();
    });
}

#[test]
fn credit_stalls_and_comes_back() {
    run(async {
        let mut setup = Setup::default();
        (setup.limits.send_window, setup.limits.recv_window) = (1000, 1000);
        let (mut a, mut b) = pair(&setup).await;
        let mut cx = Context::from_waker(Waker::noop());
        a.send(data(1, body(5000, 1))).await.unwrap();
        assert!(a.lane.tx.poll_ready(&mut cx, 1).is_pending());
        // Records need no credit.
        let record = Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: body(500, 2).into() };
        a.lane.tx.start_send(record, false).unwrap();
        assert!(a.lane.tx.poll_flush(&mut cx).is_ready());
        let got = b.recv().await.unwrap();
        assert_eq!((got.len(), got[1].kind), (2, FrameKind::Session));
        assert!(got[1].payload == body(500, 2)[..]);
        drop(got);
        assert!(a.lane.tx.poll_ready(&mut cx, 1).is_pending());
        b.lane.rx.release(5000);
        std::future::poll_fn(|cx| a.lane.tx.poll_ready(cx, 1)).await.unwrap();
    });
}

/// Past the soft limit messages are copied out; past the hard one the ring is read on and credit is withheld
/// until the application drops some, from wherever.
#[test]
fn leases_copy_out_and_then_withhold_credit() {
    run(async {
        let mut setup = Setup::default();
        (setup.limits.lease_soft, setup.limits.lease_hard) = (8_000, 20_000);
        (setup.limits.send_window, setup.limits.recv_window) = (24_000, 24_000);
        let (mut a, mut b) = pair(&setup).await;
        let mut kept = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        let mut out = Batch::new();
        for seq in 1..=6 {
            a.send(data(seq, body(4000, seq as usize))).await.unwrap();
        }
        assert!(a.lane.tx.poll_ready(&mut cx, 1).is_pending(), "the window is used up");
        while b.lane.rx.poll_recv(&mut cx, &mut out).is_ready() {
            kept.extend(out.drain());
        }
        assert_eq!(kept.len(), 6);
        assert_eq!(b.ledger.snapshot().copied_at(CopyPlace::CopyOut), 4 * 4000);
        kept.iter().for_each(|f| b.lane.rx.release(f.payload.len()));
        b.drive(&mut cx);
        assert!(a.lane.tx.poll_ready(&mut cx, 1).is_pending(), "credit is withheld");
        // Records get through, in slots and otherwise.
        for len in [40, 400] {
            let record = Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: body(len, 1).into() };
            a.lane.tx.start_send(record, false).unwrap();
            assert!(a.lane.tx.poll_flush(&mut cx).is_ready());
            assert!(b.recv().await.unwrap()[0].payload == body(len, 1)[..]);
        }
        let drops = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(kept.iter().all(|f| f.payload == body(4000, f.seq as usize)[..]));
        });
        // Below the hard limit, and not only when nothing is kept any more, its side is woken.
        let ready = std::future::poll_fn(|cx| {
            b.drive(cx);
            a.lane.tx.poll_ready(cx, 1)
        });
        ready.await.unwrap();
        drops.join().unwrap();
        assert_eq!(b.lane.leases.outstanding_bytes(), 0);
    });
}

/// What is kept of small messages is bounded too: chunks first, then the pool under the lease.
#[test]
fn small_messages_that_are_kept_come_to_the_lease() {
    run(async {
        let mut setup = Setup::default();
        (setup.limits.lease_soft, setup.limits.lease_hard) = (8 << 10, 16 << 10);
        let (mut a, mut b) = pair(&setup).await;
        let mut kept = Vec::new();
        for seq in 1..=3000 {
            a.send(data(seq, body(60, seq as usize))).await.unwrap();
            for frame in b.recv().await.unwrap() {
                b.lane.rx.release(frame.payload.len());
                kept.push(frame);
            }
            if b.lane.leases.pressure() == zc_core::memory::Pressure::Hard {
                break;
            }
        }
        assert!((2000..3000).contains(&kept.len()), "{}", kept.len());
        assert!(kept.iter().all(|f| f.payload == body(60, f.seq as usize)[..]));
        drop(kept);
        assert_eq!(b.lane.leases.outstanding_bytes(), 0);
    });
}

/// However small a message is, it costs a least amount of credit.
#[test]
fn unread_messages_are_bounded_in_number() {
    run(async {
        let mut setup = Setup::default();
        (setup.limits.send_window, setup.limits.recv_window) = (64 * 512, 64 * 512);
        let (mut a, mut b) = pair(&setup).await;
        let mut cx = Context::from_waker(Waker::noop());
        let mut sent = 0;
        while a.lane.tx.poll_ready(&mut cx, 1).is_ready() {
            sent += 1;
            a.lane.tx.start_send(data(sent, body(1, 0)), false).unwrap();
        }
        assert_eq!(sent, 64);
        assert!(a.lane.tx.poll_flush(&mut cx).is_ready());
        assert_eq!(b.recv().await.unwrap().len(), 64);
        (0..64).for_each(|_| b.lane.rx.release(1));
        std::future::poll_fn(|cx| a.lane.tx.poll_ready(cx, 1)).await.unwrap();
    });
}

#[test]
fn waiting_for_memory_ends_when_the_reader_gives_some_back() {
    run(async {
        let mut setup = Setup::default();
        setup.options.max_arena_bytes = 0;
        // The reader copies out rather than keep all blocks, and has no memory for that yet.
        let (mut a, mut b) = pair_of(&setup, &Setup { pool_bytes: 4096, ..setup.clone() }).await;
        let all = b.pool.try_alloc(4096).unwrap();
        for seq in 1..=13 {
            let mut buf = a.alloc(4000).await;
            buf.put_slice(&body(4000, 1));
            a.send(data(seq, buf.freeze())).await.unwrap();
        }
        let mut cx = Context::from_waker(Waker::noop());
        assert!(b.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
        assert!(a.lane.tx.poll_alloc(&mut cx, 4000).is_pending());
        // A message from elsewhere is taken, and waits.
        assert!(a.lane.tx.poll_ready(&mut cx, 4000).is_ready());
        a.lane.tx.start_send(data(14, body(4000, 9)), false).unwrap();
        assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
        assert!(a.lane.tx.poll_ready(&mut cx, 4000).is_pending());
        let back = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(all);
        });
        let reads = async {
            for seq in 1..=14 {
                let got = b.recv().await.unwrap();
                assert!(got.len() == 1 && got[0].payload == body(4000, if seq == 14 { 9 } else { 1 })[..]);
            }
        };
        let flushes = std::future::poll_fn(|cx| a.lane.tx.poll_flush(cx));
        futures::future::join(flushes, reads).await.0.unwrap();
        drop(a.alloc(4000).await);
        back.join().unwrap();
        let error = a.lane.tx.poll_ready(&mut cx, 5000);
        assert!(matches!(error, Poll::Ready(Err(LaneError::Other(_)))), "too long: {error:?}");
        assert_eq!(a.lane.caps.max_message, 4160);
    });
}

/// A reader that found memory while spinning, or reads no more, is not in front of others that wait for some.
#[test]
fn who_was_served_or_reads_no_more_has_no_place_in_the_queue_for_memory() {
    for stops in [false, true] {
        run(async {
            let reader = Setup { pool_bytes: 4096, ..untrusted() };
            let (mut a, mut b) = pair_of(&Setup::default(), &reader).await;
            let all = b.pool.try_alloc(4096).unwrap();
            a.send(data(1, body(1000, 1))).await.unwrap();
            let (mut cx, mut out) = (Context::from_waker(Waker::noop()), Batch::new());
            assert!(b.lane.rx.poll_recv(&mut cx, &mut out).is_pending());
            let pool = b.pool.clone();
            let mut second = Box::pin(pool.alloc(100));
            assert!(second.as_mut().poll(&mut cx).is_pending());
            if stops {
                b.lane.rx.stop();
                drop(all);
            } else {
                drop(all);
                assert!(matches!(b.lane.rx.try_recv(&mut out), Ok(Some(Received::Some))));
                drop(out.drain().collect::<Vec<_>>());
            }
            assert!(second.as_mut().poll(&mut cx).is_ready(), "nobody is in front of it");
        });
    }
}

#[test]
fn buffers_dropped_by_the_application_wake_whoever_waits_for_memory() {
    run(async {
        let mut setup = Setup::default();
        setup.options.max_arena_bytes = 0;
        let (mut a, _b) = pair(&setup).await;
        let mut all = Vec::new();
        for _ in 0..13 {
            all.push(a.alloc(4000).await);
        }
        let back = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            all
        });
        let waits = async {
            drop(a.alloc(4000).await);
        };
        let drops = async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            std::thread::spawn(move || drop(back.join().unwrap())).join().unwrap();
        };
        futures::future::join(waits, drops).await;
    });
}

#[test]
fn one_buffer_sent_twice_arrives_twice() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let mut buf = a.alloc(4000).await;
        buf.put_slice(&body(4000, 1));
        let buf = buf.freeze();
        let mut both = Message::from(buf.slice(..1000));
        both.push(buf.slice(1000..)).unwrap();
        a.send(data(1, buf)).await.unwrap();
        a.send(data(2, both)).await.unwrap();
        let got = b.recv().await.unwrap();
        assert!(got.iter().all(|f| f.payload == body(4000, 1)[..]));
        assert_eq!(a.ledger.snapshot().copied_at(CopyPlace::Foreign), 4000);
    });
}

#[test]
fn grows_and_shrinks() {
    run(async {
        let mut setup = Setup::default();
        setup.options.max_arena_bytes = 8 << 20;
        let (mut a, mut b) = pair(&setup).await;
        for seq in 1..=4 {
            for len in [20_000, 1 << 20, 3 << 20, 6 << 20] {
                let mut buf = a.alloc(len).await;
                buf.put_slice(&body(len, seq as usize));
                a.send(data(seq, buf.freeze())).await.unwrap();
                let got = b.recv().await.unwrap();
                assert!(got[0].payload == body(len, seq as usize)[..]);
                b.lane.rx.release(len);
            }
        }
        // Two looks after the last use, at simulated times, everything is given back.
        let mut cx = Context::from_waker(Waker::noop());
        let mut now = std::time::Instant::now();
        let mut left = Some(now);
        for _ in 0..4 {
            now += std::time::Duration::from_secs(2);
            left = a.lane.drive.as_mut().unwrap().poll_drive(&mut cx, now).unwrap();
            assert!(a.lane.tx.poll_flush(&mut cx).is_ready());
            assert!(b.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
        }
        assert_eq!(left, None, "arenas are left");
        // And it goes on.
        a.send(data(9, body(2 << 20, 1))).await.unwrap();
        assert!(b.recv().await.unwrap()[0].payload == body(2 << 20, 1)[..]);
    });
}

#[test]
fn half_close_then_the_other_way_goes_on() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        a.send(data(1, body(9, 0))).await.unwrap();
        std::future::poll_fn(|cx| a.lane.tx.poll_close(cx)).await.unwrap();
        assert_eq!(b.recv().await.unwrap().len(), 1);
        assert!(b.recv().await.unwrap().is_empty());
        b.send(data(1, body(9, 0))).await.unwrap();
        assert_eq!(a.recv().await.unwrap().len(), 1);
        let refused = a.lane.tx.start_send(data(2, body(9, 0)), false).unwrap_err();
        assert!(matches!(refused.error, LaneError::Closed));
    });
}

#[test]
fn what_was_sent_before_the_peer_went_is_delivered() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        for seq in 1..=100 {
            a.send(data(seq, body(if seq % 9 == 0 { 4000 } else { 30 }, seq as usize))).await.unwrap();
        }
        drop(a);
        let mut seen = 0;
        let end = loop {
            match b.recv().await {
                Ok(frames) => {
                    for f in frames {
                        seen += 1;
                        assert_eq!(f.seq, seen);
                        assert!(f.payload == body(if seen % 9 == 0 { 4000 } else { 30 }, seen as usize)[..]);
                    }
                }
                Err(error) => break error,
            }
        };
        assert_eq!(seen, 100);
        assert!(matches!(end, LaneError::PeerGone(_)), "{end}");
        assert!(matches!(b.send(data(1, body(9, 0))).await, Err(LaneError::PeerGone(_))));
    });
}

#[test]
fn a_sender_that_waits_hears_of_the_end() {
    run(async {
        let (mut a, b) = pair(&Setup::default()).await;
        let fill = async {
            let mut seq = 0;
            loop {
                seq += 1;
                if let Err(error) = a.send(data(seq, body(4000, 0))).await {
                    return error;
                }
            }
        };
        let go = async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            drop(b);
        };
        let (error, ()) = futures::future::join(fill, go).await;
        assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
    });
}

#[test]
fn messages_outlive_the_lanes() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let keep = PinnedBuf::from({
            let mut buf = a.alloc(4000).await;
            buf.put_slice(&body(4000, 1));
            buf.freeze().into_bytes()
        });
        a.send(data(1, keep.clone())).await.unwrap();
        a.send(data(2, body(60, 1))).await.unwrap();
        let got = b.recv().await.unwrap();
        drop((a, b));
        assert!(got[0].payload == body(4000, 1)[..] && got[1].payload == body(60, 1)[..]);
        assert_eq!(&keep[..], body(4000, 1));
        drop(got);
    });
}

#[test]
fn strangers_are_refused_and_the_link_stays_in_step() {
    run(async {
        let (link_a, link_b) = links().await;
        let refused = Err(Unavailable::PeerUid { uid: 1 });
        let wary = Setup { same_host: refused, ..Setup::default() };
        let open = Setup::default();
        let ends = futures::future::join(
            try_end(link_a, Role::Client, &wary, None),
            try_end(link_b, Role::Server, &open, None),
        );
        let (a, b) = ends.await;
        assert!(matches!(a.err(), Some(WireupError::Unavailable(Unavailable::PeerUid { .. }))));
        assert!(matches!(b.err(), Some(WireupError::Unavailable(Unavailable::PeerFailed { .. }))));
    });
}

/// Few are long: a message has many.
fn size_of_part() -> impl Strategy<Value = usize> {
    prop_oneof![80 => 0usize..9_000, 1 => 9_000..=1usize << 20]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn ropes_arrive_whole(
        ropes in prop::collection::vec(prop::collection::vec((any::<bool>(), size_of_part()), 0..64), 1..12),
        untrust: bool,
    ) {
        run(async {
            let setup = if untrust { untrusted() } else { Setup::default() };
            let (mut a, mut b) = pair(&setup).await;
            let mut expect = Vec::new();
            for (at, rope) in ropes.iter().enumerate() {
                let (mut m, mut all) = (Message::new(), Vec::new());
                for (i, (own, n)) in rope.iter().enumerate() {
                    let part = window(*n, i);
                    all.extend(part);
                    if *own {
                        let mut buf = a.alloc(*n).await;
                        buf.put_slice(part);
                        m.push(buf.freeze()).unwrap();
                    } else {
                        m.push(part.to_vec()).unwrap();
                    }
                }
                expect.push(all);
                exchange(&mut a.lane, &mut b.lane, &TokioReactor::new(), vec![Message::new(), m], &[vec![], expect[at].clone()]).await;
            }
        });
    }
}
