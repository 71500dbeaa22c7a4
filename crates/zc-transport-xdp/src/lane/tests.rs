//! Who is told of what comes.

use std::sync::Arc;
use std::task::{Context, Poll};

use zc_core::memory::Message;
use zc_core::transport::{Batch, Caps, Frame, FrameKind, Lane, Received};

use super::start;
use crate::engine::scripted::{Calls, Scripted};
use crate::limits::TURNS_LOOKED_AT;

fn lane(scripted: &Scripted) -> Lane {
    start(scripted.engine.clone(), scripted.conn.clone(), Caps::stream(), &scripted.cx)
}

/// He looks each time that the task has a turn; nothing is there.
fn looks_often(scripted: &mut Scripted, lane: &mut Lane) {
    for _ in 0..3 * TURNS_LOOKED_AT {
        assert!(lane.rx.try_recv(&mut Batch::new()).unwrap().is_none());
        scripted.turn();
    }
}

/// A `recv` that spins, and is dropped while another one waits; or who only looks whether there is something, and then waits for an
/// answer to what he sends. Neither says that he has gone.
#[test]
fn who_waits_to_be_woken_is_woken_whoever_looks_meanwhile() {
    let mut scripted = Scripted::new();
    let mut lane = lane(&scripted);
    let waits = Arc::<Calls>::default();
    let mut batch = Batch::new();
    for _ in 0..3 {
        let polled = lane.rx.poll_recv(&mut Context::from_waker(&waits.waker()), &mut batch);
        assert!(matches!(polled, Poll::Pending));
        looks_often(&mut scripted, &mut lane);
        scripted.comes();
        assert_eq!(scripted.calls.take(), 1);
        scripted.turn();
        assert!(!scripted.lies_there() && waits.take() == 1, "the task receives it, and he is woken");
        assert!(matches!(lane.rx.try_recv(&mut batch), Ok(Some(Received::Some))));
        batch.drain().for_each(drop);
    }
    // To who spins and is awaited by nobody it is left.
    looks_often(&mut scripted, &mut lane);
    scripted.comes();
    scripted.turn();
    assert!(scripted.lies_there());
    // Until he is about to sleep, or another one is.
    let polled = lane.rx.poll_recv(&mut Context::from_waker(&waits.waker()), &mut batch);
    assert!(matches!(polled, Poll::Pending) && scripted.calls.take() == 1);
    scripted.turn();
    assert!(!scripted.lies_there() && waits.take() == 1);
}

/// What comes for others must not wait for who has gone.
#[test]
fn who_spun_and_goes_hands_over_to_the_task() {
    for stops in [false, true] {
        let mut scripted = Scripted::new();
        let mut lane = lane(&scripted);
        looks_often(&mut scripted, &mut lane);
        scripted.comes();
        scripted.turn();
        assert!(scripted.lies_there());
        scripted.calls.take();
        if stops {
            lane.rx.stop();
        } else {
            drop(lane);
        }
        assert!(scripted.calls.take() > 0);
        scripted.turn();
        assert!(!scripted.lies_there());
    }
}

#[test]
fn no_lock_is_held_while_frames_are_handed_out() {
    let mut scripted = Scripted::new();
    let mut lane = lane(&scripted);
    for seq in 1..=3 {
        let payload = Message::from(vec![5; 100]);
        let frame = Frame { kind: FrameKind::Data, ack: false, seq, payload };
        lane.tx.start_send(frame, false).unwrap();
    }
    scripted.breaks();
    scripted.turn();
    let mut back = Vec::new();
    lane.tx.abandon(&mut |frame| {
        assert!(scripted.conn.state.try_lock().is_some());
        back.push(frame.seq);
    });
    assert_eq!(back, [1, 2, 3]);
}
