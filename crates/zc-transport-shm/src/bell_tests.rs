//! How often bells ring: never while both sides are awake, once per batch to one that sleeps.

use std::task::{Context, Poll, Waker};

use zc_core::transport::*;

use crate::bell::RINGS;
use crate::common::{End, Setup, body, data, pair, run};

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Puts a message out without pushing it.
fn put(end: &mut End, len: usize) {
    assert!(end.lane.tx.poll_ready(&mut cx(), len).is_ready());
    let Poll::Ready(Ok(mut buf)) = end.lane.tx.poll_alloc(&mut cx(), len) else { panic!("no memory") };
    buf.put_slice(&body(len, 1));
    end.lane.tx.start_send(data(1, buf.freeze()), false).unwrap();
}

fn push(end: &mut End) {
    assert!(end.lane.tx.poll_flush(&mut cx()).is_ready());
}

/// All that has come, without going to sleep.
fn take(end: &mut End) -> usize {
    let (mut batch, mut count) = (Batch::new(), 0);
    while end.lane.rx.try_recv(&mut batch).unwrap().is_some() {
        for frame in batch.drain() {
            count += 1;
            end.lane.rx.release(frame.payload.len());
        }
    }
    count
}

fn sleep(end: &mut End) {
    assert!(end.lane.rx.poll_recv(&mut cx(), &mut Batch::new()).is_pending());
}

/// What is done rings so often.
fn rings(what: impl FnOnce()) -> usize {
    let before = RINGS.get();
    what();
    RINGS.get() - before
}

#[test]
fn nobody_who_is_awake_is_rung_for() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        // Until there is memory for the longest, of which the peer is told by its drive.
        for len in [20_000, 300_000] {
            a.send(data(1, body(len, 1))).await.unwrap();
            b.recv().await.unwrap().iter().for_each(|frame| b.lane.rx.release(frame.payload.len()));
            b.send(data(1, body(len, 1))).await.unwrap();
            a.recv().await.unwrap().iter().for_each(|frame| a.lane.rx.release(frame.payload.len()));
        }
        // They slept meanwhile; whoever finds something is awake.
        for _ in 0..2 {
            put(&mut a, 60);
            push(&mut a);
            assert_eq!(take(&mut b), 1);
            put(&mut b, 60);
            push(&mut b);
            assert_eq!(take(&mut a), 1);
        }
        // More than all slots, all entries of returns and all credit, several times over.
        let rung = rings(|| {
            for round in 0..1400 {
                let len = [1, 60, 112, 113, 4000, 20_000, 300_000][round % 7];
                put(&mut a, len);
                push(&mut a);
                assert_eq!(take(&mut b), 1);
                put(&mut b, len);
                push(&mut b);
                assert_eq!(take(&mut a), 1);
            }
        });
        assert_eq!(rung, 0);
    });
}

#[test]
fn who_sleeps_is_rung_for_once_per_batch() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        for _ in 0..20 {
            // The ring of before is heard.
            sleep(&mut b);
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            sleep(&mut b);
            let rung = rings(|| {
                (0..10).for_each(|_| put(&mut a, 60));
            });
            assert_eq!(rung, 0, "before it is pushed");
            assert_eq!(rings(|| push(&mut a)), 1);
            let more = rings(|| {
                for len in [60, 4000, 60] {
                    put(&mut a, len);
                    push(&mut a);
                }
            });
            assert_eq!(more, 0, "it was rung for");
            assert_eq!(rings(|| assert_eq!(take(&mut b), 13)), 0, "nobody waits on the other side");
        }
    });
}

/// A sender that waits for slots is rung for once they are free, and not for each.
#[test]
fn who_waits_for_room_is_rung_for_once() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        sleep(&mut b);
        let mut sent = 0;
        while a.lane.tx.poll_ready(&mut cx(), 60).is_ready() {
            put(&mut a, 60);
            push(&mut a);
            sent += 1;
        }
        assert_eq!(rings(|| assert_eq!(take(&mut b), sent)), 1);
        assert!(a.lane.tx.poll_ready(&mut cx(), 60).is_ready());
    });
}
