//! Messages around and beyond the bound of the arenas.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::task::{Context, Poll, Waker};

use common::*;
use proptest::prelude::*;
use zc_conformance::exchange;
use zc_core::memory::{AllocError, BufPool, CopyPlace, Message, PinnedBuf};
use zc_core::transport::*;
use zc_transport_shm::{MAX_PARTS, MAX_PENDING_DESCRIPTORS, PART_BYTES, PARTS_TURN_BYTES};

const BOUND: u64 = 2 << 20;

/// Arenas of at most `bytes`, and whether longer messages go in parts.
fn bounded(bytes: u64, longer_in_parts: bool) -> Setup {
    let mut setup = Setup::default();
    setup.options.max_arena_bytes = bytes;
    setup.options.longer_in_parts = longer_in_parts;
    setup
}

fn untrusted(setup: Setup) -> Setup {
    Setup { trust: Trust::Untrusted, ..setup }
}

/// What fits goes whole and without a copy; what does not is refused, and the lane goes on.
#[test]
fn beyond_the_bound_it_is_refused() {
    run(async {
        let (mut a, mut b) = pair(&bounded(BOUND, false)).await;
        let max = a.lane.caps.max_message as usize;
        assert!(max < BOUND as usize && max > BOUND as usize - (256 << 10), "{max}");
        let mut cx = Context::from_waker(Waker::noop());
        let refused = a.lane.tx.poll_alloc(&mut cx, max + 1);
        let too_large = AllocError::TooLarge { need: max + 1, max };
        let Poll::Ready(Err(AllocFailure::Pool(error))) = refused else { panic!("{refused:?}") };
        assert_eq!(error.to_string(), too_large.to_string());
        assert!(matches!(a.lane.tx.poll_ready(&mut cx, max + 1), Poll::Ready(Err(LaneError::Other(_)))));
        let back = a.lane.tx.start_send(data(1, vec![0; max + 1]), false).unwrap_err();
        assert_eq!(back.frame.payload.len(), max + 1);
        let mut buf = a.alloc(max).await;
        buf.put_slice(&body(max, 1));
        a.send(data(1, buf.freeze())).await.unwrap();
        assert!(b.recv().await.unwrap()[0].payload == body(max, 1)[..]);
        assert_eq!(a.ledger.snapshot().copied_bytes(), 0);
        assert!(!b.lane.drive.as_mut().unwrap().heard(), "it went in parts");
    });
}

#[test]
fn beyond_the_bound_it_goes_in_parts() {
    for setup in [bounded(BOUND, true), untrusted(bounded(BOUND, true)), bounded(0, true)] {
        run(async {
            let (mut a, mut b) = pair(&setup).await;
            assert_eq!(a.lane.caps.max_message, setup.limits.send_max_message);
            let bound = setup.options.max_arena_bytes as usize;
            let lens = [60, bound + 1, 4000, 3 * bound + 12_345, 5 * bound, 100];
            let expect: Vec<_> = lens.iter().enumerate().map(|(i, n)| body(*n, i)).collect();
            let (copied, got) = (a.ledger.snapshot(), b.ledger.snapshot());
            for _ in 0..2 {
                let messages = expect.iter().cloned().map(Message::from).collect();
                exchange(&mut a.lane, &mut b.lane, &TokioReactor::new(), messages, &expect).await;
            }
            if bound > 0 {
                let large: usize = 2 * lens.iter().filter(|n| **n > bound).sum::<usize>();
                let copied =
                    a.ledger.snapshot().copied_at(CopyPlace::Foreign) - copied.copied_at(CopyPlace::Foreign);
                let got =
                    b.ledger.snapshot().copied_at(CopyPlace::CopyOut) - got.copied_at(CopyPlace::CopyOut);
                assert!(copied as usize >= large && got as usize >= large, "{copied} {got} {large}");
            }
            assert_eq!(b.lane.leases.outstanding_bytes(), 0);
        });
    }
}

/// Its own buffers are taken as they lie, and are reported when the peer has given them back.
#[test]
fn parts_in_the_arena_are_not_copied_by_the_sender() {
    run(async {
        let (mut a, mut b) = pair(&bounded(BOUND, true)).await;
        let mut own = a.alloc(1 << 20).await;
        own.put_slice(&body(1 << 20, 1));
        let mut message = Message::from(body(1 << 20, 2));
        message.push(own.freeze()).unwrap();
        message.push(PinnedBuf::from(body(700, 3))).unwrap();
        let expect = [body(1 << 20, 2), body(1 << 20, 1), body(700, 3)].concat();
        let token = a.lane.tx.start_send(data(1, message), true).unwrap();
        let flush = std::future::poll_fn(|cx| {
            a.drive(cx);
            a.lane.tx.poll_flush(cx)
        });
        let (flushed, got) = futures::future::join(flush, b.recv()).await;
        flushed.unwrap();
        assert!(got.unwrap()[0].payload == expect[..]);
        assert_eq!(a.ledger.snapshot().copied_bytes(), (1 << 20) + 700);
        let mut out = Batch::new();
        std::future::poll_fn(|cx| a.lane.tx.poll_completions(cx, &mut out)).await.unwrap();
        assert_eq!(out.drain().collect::<Vec<_>>(), [(token, SendReport::Sent)]);
    });
}

/// All memory of the arenas is in the message itself, behind what must be copied.
#[test]
fn a_message_that_holds_all_memory_gets_through() {
    run(async {
        let (mut a, mut b) = pair(&bounded(512 << 10, true)).await;
        let mut cx = Context::from_waker(Waker::noop());
        let (mut message, mut expect) = (Message::from(body(300_000, 9)), body(300_000, 9));
        for len in [100_000, 4000] {
            while message.segments().len() < 60
                && let Poll::Ready(Ok(mut buf)) = a.lane.tx.poll_alloc(&mut cx, len)
            {
                let bytes = body(len, message.segments().len());
                buf.put_slice(&bytes);
                expect.extend(bytes);
                message.push(buf.freeze()).unwrap();
            }
        }
        assert!(expect.len() > 512 << 10 && a.lane.tx.poll_alloc(&mut cx, 4000).is_pending());
        let (sent, got) = futures::future::join(a.send(data(1, message)), b.recv()).await;
        sent.unwrap();
        assert!(got.unwrap()[0].payload == expect[..]);
        assert!(a.ledger.snapshot().inline_bytes > 0);
    });
}

/// Records of the session and messages that come meanwhile are behind it.
#[test]
fn what_is_sent_meanwhile_comes_after_it() {
    run(async {
        let (mut a, mut b) = pair(&bounded(BOUND, true)).await;
        let mut cx = Context::from_waker(Waker::noop());
        let len = 3 * BOUND as usize;
        a.lane.tx.start_send(data(1, body(len, 1)), false).unwrap();
        assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
        assert!(a.lane.tx.poll_ready(&mut cx, 1).is_pending());
        let record = Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: body(50, 2).into() };
        a.lane.tx.start_send(record, false).unwrap();
        let sends = a.send(data(2, body(60, 3)));
        let receives = async {
            let mut got = Vec::new();
            while got.len() < 3 {
                for frame in b.recv().await.unwrap() {
                    if frame.kind == FrameKind::Data {
                        b.lane.rx.release(frame.payload.len());
                    }
                    got.push(frame);
                }
            }
            got
        };
        let (sent, got) = futures::future::join(sends, receives).await;
        sent.unwrap();
        assert!(got[0].payload == body(len, 1)[..] && got[2].payload == body(60, 3)[..]);
        assert_eq!((got[1].kind, got[1].payload.len()), (FrameKind::Session, 50));
    });
}

/// Whichever end goes in the middle: nothing is delivered, nothing is kept.
#[test]
fn an_end_in_the_middle_leaves_nothing() {
    run(async {
        for reader_goes in [false, true] {
            let (mut a, mut b) = pair(&bounded(BOUND, true)).await;
            let mut cx = Context::from_waker(Waker::noop());
            let mut out = Batch::new();
            let pool = BufPool::builder().max_bytes(64 << 20).build();
            let mut buf = pool.try_alloc(4 * BOUND as usize).unwrap();
            buf.put_slice(&body(4 * BOUND as usize, 1));
            a.lane.tx.start_send(data(1, buf.freeze()), true).unwrap();
            assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
            b.drive(&mut cx);
            assert!(b.lane.rx.poll_recv(&mut cx, &mut out).is_pending());
            assert!(b.pool.stats().in_use_bytes > 0 && b.ledger.snapshot().copied_bytes() > 0);
            if reader_goes {
                let theirs = b.pool.clone();
                drop(b);
                assert_eq!(theirs.stats().in_use_bytes, 0);
                let error = std::future::poll_fn(|cx| {
                    a.drive(cx);
                    a.lane.tx.poll_flush(cx)
                });
                assert!(matches!(error.await, Err(LaneError::PeerGone(_))));
                let mut ends = Batch::new();
                std::future::poll_fn(|cx| a.lane.tx.poll_completions(cx, &mut ends)).await.unwrap();
                assert!(ends.drain().all(|(_, how)| how == SendReport::Failed));
                drop(a);
            } else {
                drop(a);
                assert!(matches!(b.recv().await, Err(LaneError::PeerGone(_))));
                assert_eq!(b.pool.stats().in_use_bytes, 0);
                assert_eq!(b.lane.leases.outstanding_bytes(), 0);
            }
            assert!(out.is_empty());
            assert_eq!(pool.stats().in_use_bytes, 0, "the sender keeps it");
        }
    });
}

/// The receiver waits for memory, of which it leaves a part to others, and takes nothing that it can never hold.
#[test]
fn it_waits_for_the_receivers_pool() {
    run(async {
        let setup = Setup { pool_bytes: 16 << 20, ..bounded(BOUND, true) };
        let (mut a, mut b) = pair(&setup).await;
        let kept = b.pool.try_alloc(6 << 20).unwrap();
        let len = 8 << 20;
        a.lane.tx.start_send(data(1, body(len, 1)), false).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut out = Batch::new();
        let _ = a.lane.tx.poll_flush(&mut cx);
        b.drive(&mut cx);
        assert!(b.lane.rx.poll_recv(&mut cx, &mut out).is_pending());
        assert!(b.pool.try_alloc(1 << 20).is_ok(), "some is left to others");
        drop(kept);
        let flush = std::future::poll_fn(|cx| {
            a.drive(cx);
            a.lane.tx.poll_flush(cx)
        });
        let (flushed, got) = futures::future::join(flush, b.recv()).await;
        flushed.unwrap();
        assert!(got.unwrap()[0].payload == body(len, 1)[..]);
        b.lane.rx.release(len);
        // Three quarters of the pool are 12 MiB.
        a.lane.tx.start_send(data(2, body(14 << 20, 1)), false).unwrap();
        let _ = a.lane.tx.poll_flush(&mut cx);
        assert!(matches!(b.recv().await, Err(LaneError::Memory(_))));
    });
}

/// Looks a few times at what came: descriptors take their time, and one arena is mapped a turn.
async fn look(end: &mut End) -> Vec<Frame> {
    let mut out = Batch::new();
    for _ in 0..20 {
        tokio::task::yield_now().await;
        end.drive(&mut Context::from_waker(Waker::noop()));
        if end.lane.rx.try_recv(&mut out).unwrap().is_some() {
            break;
        }
    }
    out.drain().collect()
}

/// Sends and takes one message at the same time.
async fn through(a: &mut End, b: &mut End, message: impl Into<Message>) -> Message {
    let (sent, got) = futures::future::join(a.send(data(1, message)), b.recv()).await;
    sent.unwrap();
    got.unwrap().pop().unwrap().payload
}

/// Blocks of the size of parts that others keep are no parts.
#[test]
fn blocks_that_others_keep_hold_up_no_message() {
    run(async {
        for bound in [3 << 20, 8 << 20] {
            let (mut a, mut b) = pair(&bounded(bound, true)).await;
            let mut own = a.alloc(4000).await;
            own.put_slice(&body(4000, 1));
            let kept_there = through(&mut a, &mut b, own.freeze()).await;
            let mut cx = Context::from_waker(Waker::noop());
            let mut kept_here = Vec::new();
            while kept_here.len() < 12
                && let Poll::Ready(Ok(buf)) = a.lane.tx.poll_alloc(&mut cx, 256 << 10)
            {
                kept_here.push(buf);
                look(&mut b).await;
            }
            assert!(kept_here.len() >= 8);
            let len = bound as usize + 300_000;
            assert!(through(&mut a, &mut b, body(len, 2)).await == body(len, 2)[..]);
            assert_eq!(kept_there.len(), 4000);
        }
    });
}

/// However many blocks there are, the peer has only a few of a message in parts.
#[test]
fn few_parts_are_out_at_a_time() {
    run(async {
        let (mut a, mut b) = pair(&bounded(32 << 20, true)).await;
        let mut cx = Context::from_waker(Waker::noop());
        let len = 40 << 20;
        a.lane.tx.start_send(data(1, body(len, 1)), false).unwrap();
        let few = (MAX_PARTS * PART_BYTES) as u64;
        for _ in 0..20 {
            assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
            assert!(a.ledger.snapshot().copied_bytes() <= few);
        }
        assert_eq!(a.ledger.snapshot().copied_bytes(), few);
        look(&mut b).await;
        assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
        assert_eq!(a.ledger.snapshot().copied_bytes(), 2 * few);
    });
}

/// What has room when somebody else drops something waits for that, and goes whole.
#[test]
fn a_message_waits_for_the_buffers_of_others() {
    for longer_in_parts in [false, true] {
        run(async {
            let (mut a, mut b) = pair(&bounded(BOUND, longer_in_parts)).await;
            let others = a.alloc(1_500_000).await;
            let mut own = a.alloc(4000).await;
            own.put_slice(&body(4000, 1));
            let mut message = Message::from(body(600_000, 2));
            message.push(own.freeze()).unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            a.lane.tx.start_send(data(1, message), false).unwrap();
            for _ in 0..5 {
                assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
                assert!(look(&mut b).await.is_empty());
            }
            drop(others);
            let flush = std::future::poll_fn(|cx| {
                a.drive(cx);
                a.lane.tx.poll_flush(cx)
            });
            let (flushed, got) = futures::future::join(flush, b.recv()).await;
            flushed.unwrap();
            assert!(got.unwrap()[0].payload == [body(600_000, 2), body(4000, 1)].concat()[..]);
            assert_eq!(a.ledger.snapshot().copied_bytes(), 600_000);
            assert!(!b.lane.drive.as_mut().unwrap().heard(), "it went in parts");
        });
    }
}

/// So does what only waits for the peer to hear of earlier arenas.
#[test]
fn a_message_waits_for_the_peer_to_look() {
    run(async {
        let (mut a, mut b) = pair(&bounded(64 << 20, false)).await;
        let mut cx = Context::from_waker(Waker::noop());
        for step in 0..MAX_PENDING_DESCRIPTORS {
            let Poll::Ready(Ok(_)) = a.lane.tx.poll_alloc(&mut cx, 5000 << step) else { panic!("{step}") };
        }
        let mut own = a.alloc(4000).await;
        own.put_slice(&body(4000, 1));
        let mut message = Message::from(body(3 << 20, 2));
        message.push(own.freeze()).unwrap();
        a.lane.tx.start_send(data(1, message), false).unwrap();
        assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
        let flush = std::future::poll_fn(|cx| {
            a.drive(cx);
            a.lane.tx.poll_flush(cx)
        });
        let (flushed, got) = futures::future::join(flush, b.recv()).await;
        flushed.unwrap();
        assert!(got.unwrap()[0].payload == [body(3 << 20, 2), body(4000, 1)].concat()[..]);
        assert!(!b.lane.drive.as_mut().unwrap().heard(), "it went in parts");
    });
}

/// What can never have room beside itself goes in parts, whatever the option, and whatever the peer keeps.
#[test]
fn a_message_in_its_own_way_waits_for_nobody() {
    run(async {
        let (mut a, mut b) = pair(&bounded(1 << 20, false)).await;
        let mut small = a.alloc(4000).await;
        small.put_slice(&body(4000, 1));
        let kept = through(&mut a, &mut b, small.freeze()).await;
        let mut own = a.alloc(500_000).await;
        own.put_slice(&body(500_000, 2));
        let mut message = Message::from(body(430_000, 3));
        message.push(own.freeze()).unwrap();
        let got = through(&mut a, &mut b, message).await;
        assert!(got == [body(430_000, 3), body(500_000, 2)].concat()[..]);
        assert_eq!(kept.len(), 4000);
    });
}

/// A few short blocks do, where there are no long ones.
#[test]
fn short_blocks_are_used_before_slots() {
    run(async {
        let (mut a, mut b) = pair(&bounded(512 << 10, true)).await;
        let mut cx = Context::from_waker(Waker::noop());
        let mut all = Vec::new();
        for len in [100_000, 4000] {
            while let Poll::Ready(Ok(buf)) = a.lane.tx.poll_alloc(&mut cx, len) {
                all.push(buf);
            }
        }
        all.truncate(all.len() - 3);
        assert!(through(&mut a, &mut b, body(600_000, 2)).await == body(600_000, 2)[..]);
        assert_eq!(a.ledger.snapshot().inline_bytes, 0);
        // And where there are none at all, slots.
        while let Poll::Ready(Ok(buf)) = a.lane.tx.poll_alloc(&mut cx, 4000) {
            all.push(buf);
        }
        assert!(through(&mut a, &mut b, body(600_000, 3)).await == body(600_000, 3)[..]);
        assert_eq!(a.ledger.snapshot().inline_bytes, 600_000);
    });
}

/// One call sends no more than one turn's bytes.
#[test]
fn one_call_is_one_turn() {
    run(async {
        let (mut a, mut b) = pair(&bounded(20 << 20, true)).await;
        let mut cx = Context::from_waker(Waker::noop());
        let mut message = Message::new();
        for n in 0..56 {
            let mut buf = a.alloc(256 << 10).await;
            buf.put_slice(&body(256 << 10, n));
            message.push(buf.freeze()).unwrap();
            look(&mut b).await;
        }
        message.push(body(8 << 20, 99)).unwrap();
        for turn in 1..4 {
            if turn > 1 {
                assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
            } else {
                a.lane.tx.start_send(data(1, std::mem::take(&mut message)), false).unwrap();
            }
            // One part a look.
            for _ in 0..3 {
                assert!(look(&mut b).await.is_empty());
            }
            assert_eq!(b.ledger.snapshot().copied_bytes() as usize, turn * PARTS_TURN_BYTES);
        }
    });
}

/// However fast blocks come back while it lasts.
#[test]
fn one_call_is_one_turn_beside_a_fast_peer() {
    run(async {
        let (mut a, mut b) = pair(&bounded(20 << 20, true)).await;
        // All arenas are there.
        let first = through(&mut a, &mut b, body(24 << 20, 1)).await;
        b.lane.rx.release(first.len());
        let len = 48 << 20;
        let mut rx = b.lane.rx;
        std::thread::scope(|threads| {
            let reader = threads.spawn(move || {
                let mut batch = Batch::new();
                let end = std::time::Instant::now() + std::time::Duration::from_secs(50);
                while rx.try_recv(&mut batch).unwrap().is_none() {
                    assert!(std::time::Instant::now() < end, "hangs");
                }
                batch.drain().next().unwrap().payload.len()
            });
            let mut cx = Context::from_waker(Waker::noop());
            a.lane.tx.start_send(data(2, vec![7; len]), false).unwrap();
            let mut before = a.ledger.snapshot().copied_bytes();
            while a.lane.tx.poll_flush(&mut cx).is_pending() && !reader.is_finished() {
                let now = a.ledger.snapshot().copied_bytes();
                assert!(now - before <= PARTS_TURN_BYTES as u64, "{} bytes in one call", now - before);
                before = now;
            }
            assert_eq!(reader.join().unwrap(), len);
        });
    });
}

/// A peer that is gone will never send the rest of what waits for memory.
#[test]
fn the_end_is_told_while_memory_is_waited_for() {
    for waits in [false, true] {
        run(async {
            let setup = Setup { pool_bytes: 16 << 20, ..bounded(BOUND, true) };
            let (mut a, mut b) = pair(&setup).await;
            let kept = b.pool.try_alloc(10 << 20).unwrap();
            a.lane.tx.start_send(data(1, body(8 << 20, 1)), false).unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
            assert!(look(&mut b).await.is_empty());
            drop(a);
            let error = match waits {
                true => b.recv().await.unwrap_err(),
                false => loop {
                    b.drive(&mut cx);
                    match b.lane.rx.try_recv(&mut Batch::new()) {
                        Ok(_) => tokio::task::yield_now().await,
                        Err(error) => break error,
                    }
                },
            };
            assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
            drop(kept);
        });
    }
}

/// Neither side takes the other for dead while it goes on with a message.
#[test]
fn who_goes_on_with_a_message_is_heard() {
    run(async {
        let (mut a, mut b) = pair(&bounded(BOUND, true)).await;
        let mut cx = Context::from_waker(Waker::noop());
        let heard = |end: &mut End| end.lane.drive.as_mut().unwrap().heard();
        through(&mut a, &mut b, body(100_000, 1)).await;
        assert!(!heard(&mut a) && !heard(&mut b), "there are frames for it");
        a.lane.tx.start_send(data(1, body(8 << 20, 1)), false).unwrap();
        assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
        heard(&mut a); // The last block of the message before.
        assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
        assert!(!heard(&mut a) && !heard(&mut b), "nobody has looked");
        for _ in 0..2 {
            assert!(look(&mut b).await.is_empty());
            assert!(heard(&mut b) && !heard(&mut b));
            assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
            assert!(heard(&mut a) && !heard(&mut a));
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn ropes_arrive_whole(
        ropes in prop::collection::vec(prop::collection::vec((any::<bool>(), 0usize..90_000), 0..40), 1..5),
        bound in prop_oneof![Just(0u64), Just(300 << 10), Just(1 << 20)],
        untrust: bool,
    ) {
        run(async {
            let setup = bounded(bound, true);
            let (mut a, mut b) = pair(&if untrust { untrusted(setup) } else { setup }).await;
            let mut cx = Context::from_waker(Waker::noop());
            for rope in &ropes {
                let (mut m, mut all) = (Message::new(), Vec::new());
                for (i, (own, n)) in rope.iter().enumerate() {
                    let part = body(*n, i);
                    all.extend(&part);
                    match own.then(|| a.lane.tx.poll_alloc(&mut cx, *n)) {
                        Some(Poll::Ready(Ok(mut buf))) => {
                            buf.put_slice(&part);
                            m.push(buf.freeze()).unwrap();
                        }
                        _ => m.push(part).unwrap(),
                    }
                }
                exchange(&mut a.lane, &mut b.lane, &TokioReactor::new(), vec![Message::new(), m], &[vec![], all]).await;
            }
        });
    }
}
