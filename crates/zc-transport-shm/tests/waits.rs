//! No wake-up is lost, however each side waits: asleep at once, after a look or some, or never. Nothing but wake-ups moves them
//! on: a lane has no timer that would.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use common::*;
use zc_core::transport::*;
use zc_transport_shm::RING_SLOTS;
use zc_transport_tcp::StreamLinks;

/// As `zc::Polling` has a receiver wait.
#[derive(Debug, Clone, Copy)]
enum Wait {
    /// `Interrupt`.
    Sleeps,
    /// `Adaptive`, so many times; with no time for it a look is one as well.
    Looks(u32),
    /// `Busy`.
    Never,
}

const WAITS: [Wait; 4] = [Wait::Sleeps, Wait::Looks(1), Wait::Looks(20), Wait::Never];
/// Of one pair of ways to wait.
const ROUNDS: usize = 12;
/// The sender waits for slots.
const BURST: usize = RING_SLOTS as usize * 3;

/// Small ones in slots, and every other time each way some that wait for blocks.
fn len_of(seq: usize, round: usize) -> usize {
    if round % 4 < 2 && seq.is_multiple_of(5) { 9000 } else { 40 }
}

async fn next(end: &mut End, wait: Wait, got: &mut Batch<Frame>) {
    let mut looks = 0;
    let done = std::future::poll_fn(|cx| {
        end.drive(cx);
        let goes_on = match wait {
            Wait::Sleeps => false,
            Wait::Looks(most) => looks < most,
            Wait::Never => true,
        };
        if !goes_on {
            return end.lane.rx.poll_recv(cx, got);
        }
        looks += 1;
        match end.lane.rx.try_recv(got) {
            Ok(None) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Ok(Some(received)) => Poll::Ready(Ok(received)),
            Err(error) => Poll::Ready(Err(error)),
        }
    });
    assert!(matches!(done.await, Ok(Received::Some)));
}

async fn send_burst(end: &mut End, round: usize) {
    for seq in 0..BURST {
        end.send(data(seq as u64, window(len_of(seq, round), seq + round).to_vec())).await.unwrap();
    }
}

async fn receive_burst(end: &mut End, round: usize, wait: Wait) {
    let (mut seq, mut got) = (0, Batch::new());
    while seq < BURST {
        next(end, wait, &mut got).await;
        for frame in got.drain() {
            assert!(frame.seq == seq as u64 && frame.payload == *window(len_of(seq, round), seq + round));
            end.lane.rx.release(frame.payload.len());
            seq += 1;
        }
    }
}

/// In turns, and now and then late: the other sleeps by then.
async fn talk(mut end: End, begins: bool, wait: Wait) -> End {
    for round in 0..ROUNDS {
        if begins == round.is_multiple_of(2) {
            if round % 3 == 0 {
                std::thread::sleep(Duration::from_micros(300));
            }
            send_burst(&mut end, round).await;
        } else {
            receive_burst(&mut end, round, wait).await;
        }
    }
    end
}

#[test]
fn none_is_lost_however_a_side_waits() {
    for (n, one) in WAITS.into_iter().enumerate() {
        for (m, other) in WAITS.into_iter().enumerate() {
            let addr = LinkAddr::UnixAbstract(format!("zc-shm-waits-{}-{n}-{m}", std::process::id()));
            let (bound, is_bound) = std::sync::mpsc::channel();
            let (done, is_done) = std::sync::mpsc::channel::<()>();
            let reactor = || -> Arc<dyn Reactor> { Arc::new(TokioReactor::new()) };
            let to = addr.clone();
            let client = std::thread::spawn(move || {
                is_bound.recv().unwrap();
                run(async {
                    let link = StreamLinks.connect(&to, &reactor()).await.unwrap();
                    let end = try_end(link, Role::Client, &Setup::default(), None).await.unwrap();
                    let end = talk(end, true, one).await;
                    // Its end would be told to the other, who may still be at its last burst.
                    is_done.recv().unwrap();
                    drop(end);
                });
            });
            run(async {
                let mut listener = StreamLinks.bind(&addr, &reactor()).await.unwrap();
                bound.send(()).unwrap();
                let end = accepted(&mut *listener, &Setup::default()).await;
                drop(talk(end, false, other).await);
                done.send(()).unwrap();
            });
            client.join().unwrap_or_else(|_| panic!("{one:?} and {other:?}"));
        }
    }
}
