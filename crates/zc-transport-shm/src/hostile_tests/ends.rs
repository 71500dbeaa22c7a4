//! How a peer goes, and what it still reads then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zc_core::transport::*;

use super::{join, send_arenas, send_own};
use crate::common::{End, Setup, body, data, run};
use crate::layout::{ACK, BY_REFERENCE, Descriptor, Grow, Head, Kind, Return};
use crate::words::WriteWords;

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A peer that dies with as many descriptors under way as it may have is noticed all the same.
#[test]
fn the_end_of_a_peer_with_descriptors_under_way() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        send_arenas(&mut evil, crate::MAX_PENDING_DESCRIPTORS).await;
        let mut cx = Context::from_waker(Waker::noop());
        assert!(good.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
        drop(evil.link);
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
    });
}

/// More of them is a lie; and a lie is not the end of those who read: what they may read stays ours to keep.
#[test]
fn a_lie_releases_nothing_and_the_end_does() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let keep = send_own(&mut good, 4000).await;
        send_arenas(&mut evil, crate::MAX_PENDING_DESCRIPTORS + 1).await;
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::Protocol(_)), "{error}");
        assert!(good.send(data(2, body(9, 0))).await.is_err());
        let mut keep = keep.try_into_mut().expect_err("writable while the peer reads it");
        drop(evil.link);
        while let Err(shared) = keep.try_into_mut() {
            keep = shared;
            let mut cx = Context::from_waker(Waker::noop());
            good.drive(&mut cx);
            assert!(good.lane.tx.poll_flush(&mut cx).is_ready());
            tokio::task::yield_now().await;
        }
    });
}

/// The end of the peer's stream is heard behind a descriptor for which there is no room, also by a lane that had ended before.
/// In a process of its own, since the limit is the process's.
#[test]
fn the_end_behind_what_can_not_be_opened() {
    const CHILD: &str = "ZC_SHM_TEST_WITHOUT_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "hostile_tests::ends::the_end_behind_what_can_not_be_opened";
        let done = child.args(["--exact", name]).env(CHILD, "1").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        return;
    }
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let keep = send_own(&mut good, 4000).await;
        send_arenas(&mut evil, 1).await;
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..limit }).unwrap();
        // Until it has seen that there is something it can't open.
        let mut cx = Context::from_waker(Waker::noop());
        let mut drive =
            |good: &mut End| good.lane.drive.as_mut().unwrap().poll_drive(&mut cx, Instant::now());
        while drive(&mut good).unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        evil.slot(Head::new(Kind::Close, ACK, 0), 0, &[]);
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::Protocol(_)), "{error}");
        let mut keep = Some(keep.try_into_mut().expect_err("writable while the peer reads it"));
        drop(evil.link);
        // Driven only when it asks to be.
        std::future::poll_fn(|cx| {
            good.drive(cx);
            assert!(good.lane.tx.poll_flush(cx).is_ready());
            keep = keep.take().and_then(|keep| keep.try_into_mut().err());
            if keep.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        // What looks for leaks at the end opens files.
        setrlimit(Resource::Nofile, limit).unwrap();
    });
}

/// The lane of the peer is gone and an application of it still reads, so the link does not end: when what lies on it is given up, the
/// receiving half is told that it waits for nothing.
#[test]
fn who_waits_for_what_can_not_be_opened_is_told_when_it_is_given_up() {
    const CHILD: &str = "ZC_SHM_TEST_GIVEN_UP";
    if std::env::var_os(CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "hostile_tests::ends::who_waits_for_what_can_not_be_opened_is_told_when_it_is_given_up";
        let done = child.args(["--exact", name]).env(CHILD, "1").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        return;
    }
    run(async {
        let (mut good, mut evil) = join(Trust::Untrusted).await;
        // As long as that may come back, whoever wants memory waits.
        let _lent = send_own(&mut good, 4000).await;
        // One comes by the reserve.
        send_arenas(&mut evil, 2).await;
        std::future::poll_fn(|cx| evil.link.poll_send_descriptors(cx, &[])).await.unwrap();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..limit }).unwrap();
        for slab in 1..3 {
            let grow = Grow { slab, block_len: 4096, blocks: 1 };
            evil.slot(Head::new(Kind::Grow, 0, 16), 0, &grow.pack());
        }
        let mut cx = Context::from_waker(Waker::noop());
        let is_waiting = |good: &mut End, cx: &mut Context<'_>| {
            let polled = good.lane.rx.poll_recv(cx, &mut Batch::new());
            assert!(polled.is_pending());
            good.lane.drive.as_mut().unwrap().poll_drive(cx, Instant::now()).unwrap().is_some()
        };
        while !is_waiting(&mut good, &mut cx) {
            tokio::task::yield_now().await;
        }
        // Our bell has no other end any more: the sending half hears of it.
        evil.theirs.clear();
        assert!(std::future::poll_fn(|cx| good.lane.tx.poll_alloc(cx, 100_000)).await.is_err());
        let woken = std::sync::Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        assert!(good.lane.rx.poll_recv(&mut Context::from_waker(&waker), &mut Batch::new()).is_pending());
        assert!(!woken.0.load(Ordering::Relaxed));
        good.drive(&mut cx);
        assert!(woken.0.load(Ordering::Relaxed), "it is not told");
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
        setrlimit(Resource::Nofile, limit).unwrap();
    });
}

/// Who has passed our messages on may be gone while others read them: nothing that it did not give back is written again,
/// neither while the lane is there nor after.
#[test]
fn what_was_passed_on_is_not_written_when_the_peer_is_gone() {
    for lane_goes_first in [false, true] {
        run(async {
            let (mut good, mut evil) = join(Trust::Cooperative).await;
            let mut kept = Vec::new();
            for seq in 1..3 {
                let mut buf = good.alloc(4000).await;
                buf.put_slice(&body(4000, 1));
                kept.push(buf.freeze());
                good.send(data(seq, kept[kept.len() - 1].clone())).await.unwrap();
            }
            evil.words.store(crate::layout::PASSED_ON, 1);
            // It gives the second back, as the last thing it does.
            let (_, offset) = kept[1].place().unwrap();
            let block = (offset / crate::FIRST_BLOCK_BYTES as usize) as u16;
            evil.give_back(Return { slab: 0, sent_back: 0, generation: 0, block });
            if lane_goes_first {
                drop(good);
                drop(evil.link);
            } else {
                drop(evil.link);
                assert!(matches!(good.recv().await, Err(LaneError::PeerGone(_))));
                assert!(good.send(data(3, body(9, 0))).await.is_err());
                drop(good);
            }
            assert!(kept.pop().unwrap().try_into_mut().is_ok(), "it came back");
            for _ in 0..10 {
                drop(crate::common::pair(&Setup::default()).await);
                kept = vec![kept.pop().unwrap().try_into_mut().expect_err("others may read it")];
            }
        });
    }
}

/// The sending half may find out first that the peer is gone: the memory in which a message lies that was sent before is still on
/// the link.
#[test]
fn what_was_sent_comes_though_the_sending_half_knows_of_the_end() {
    for trust in [Trust::Cooperative, Trust::Untrusted] {
        run(async {
            let (mut good, mut evil) = join(trust).await;
            send_arenas(&mut evil, 1).await;
            let grow = Grow { slab: 1, block_len: 4096, blocks: 1 };
            evil.slot(Head::new(Kind::Grow, 0, 16), 0, &grow.pack());
            let at = Descriptor { slab: 1, generation: 0, block: 0, offset: 0, len: 4000 };
            evil.slot(Head::new(Kind::Data, BY_REFERENCE, 1), 1, &at.pack());
            drop(evil.link);
            // It has no memory for that, and can announce none.
            let alloc = std::future::poll_fn(|cx| good.lane.tx.poll_alloc(cx, 100_000)).await;
            assert!(alloc.is_err());
            // Nobody has read the link yet.
            let mut cx = Context::from_waker(Waker::noop());
            assert!(good.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
            assert!(good.lane.rx.try_recv(&mut Batch::new()).unwrap().is_none());
            assert!(good.recv().await.unwrap()[0].payload == vec![0; 4000][..]);
            assert!(matches!(good.recv().await, Err(LaneError::PeerGone(_))));
        });
    }
}

/// A message whose memory was announced and never comes, from a peer that lives on: who receives is told of the end at once when it
/// lied, and else after a bounded time.
#[test]
fn memory_that_never_comes_is_not_waited_for_after_the_end() {
    for lies in [true, false] {
        run(async {
            let (mut good, mut evil) = join(Trust::Untrusted).await;
            let grow = Grow { slab: 1, block_len: 4096, blocks: 1 };
            evil.slot(Head::new(Kind::Grow, 0, 16), 0, &grow.pack());
            let mut cx = Context::from_waker(Waker::noop());
            assert!(good.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
            if lies {
                evil.words.store(crate::layout::CONSUMED, 1 << 40);
                sending_ends(&mut good).await;
                let end = good.lane.rx.poll_recv(&mut cx, &mut Batch::new());
                assert!(matches!(end, Poll::Ready(Err(LaneError::Protocol(_)))));
                return;
            }
            evil.theirs.clear();
            sending_ends(&mut good).await;
            assert!(good.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
            let now = Instant::now();
            let mut drive = |now| good.lane.drive.as_mut().unwrap().poll_drive(&mut cx, now).unwrap();
            let until = drive(now).expect("it is waited for without a bound");
            assert_eq!(until, now + std::time::Duration::from_millis(crate::DESCRIPTOR_WAIT_MS));
            assert_eq!(drive(until), None);
            let end = good.lane.rx.poll_recv(&mut cx, &mut Batch::new());
            assert!(matches!(end, Poll::Ready(Err(LaneError::PeerGone(_)))));
        });
    }
}

/// Takes all memory that there is, until the sending half hears of the end.
async fn sending_ends(good: &mut End) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut all = Vec::new();
    loop {
        match good.lane.tx.poll_alloc(&mut cx, 1 << 20) {
            Poll::Ready(Ok(buf)) => all.push(buf),
            Poll::Ready(Err(_)) => return,
            Poll::Pending => tokio::task::yield_now().await,
        }
    }
}
