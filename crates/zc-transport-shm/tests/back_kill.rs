//! Peers that send back what they get, killed with -9 at random points: what came back is whole and in order, and what they had
//! is ours again.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use common::process::{Killed, again, as_child};
use common::*;
use zc_core::memory::PinnedBuf;
use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

/// A guard against hanging, no bound on speed.
const GUARD: Duration = Duration::from_secs(60);
/// Kills of one run; many times that many under `ZC_SOAK`.
const KILLS: usize = 60;

/// Frames of one look.
fn take(end: &mut End, cx: &mut std::task::Context<'_>) -> Result<Vec<Frame>, LaneError> {
    end.drive(cx);
    let mut batch = Batch::new();
    match end.lane.rx.poll_recv(cx, &mut batch) {
        Poll::Ready(Ok(Received::Some)) => {}
        Poll::Ready(Ok(Received::Closed)) => return Err(LaneError::Closed),
        Poll::Ready(Err(error)) => return Err(error),
        Poll::Pending => return Ok(Vec::new()),
    }
    let frames: Vec<_> = batch.drain().collect();
    frames.iter().for_each(|frame| end.lane.rx.release(frame.payload.len()));
    Ok(frames)
}

/// Not a test of its own: the process that is killed. It keeps some of what it sends back.
#[test]
fn child() {
    as_child(&Setup::default(), async |mut end| {
        let mut kept = Vec::new();
        loop {
            let Ok(frames) = std::future::poll_fn(|cx| match take(&mut end, cx) {
                Ok(frames) if frames.is_empty() => Poll::Pending,
                done => Poll::Ready(done),
            })
            .await
            else {
                return;
            };
            for frame in frames {
                kept.push(frame.payload.clone());
                kept.drain(..kept.len().saturating_sub(3));
                if end.send(frame).await.is_err() {
                    return;
                }
            }
        }
    });
}

/// Sends until the peer is gone. All that was sent, how much of it came back, and the last of that.
async fn talk(end: &mut End, name: usize) -> (Vec<PinnedBuf>, u64, Vec<Frame>) {
    let (mut sent, mut seq, mut seen, mut last) = (Vec::new(), 0, 0_u64, Vec::new());
    let error = std::future::poll_fn(|cx| {
        loop {
            let mut worked = false;
            match take(end, cx) {
                Err(error) => return Poll::Ready(error),
                Ok(frames) => {
                    for frame in frames {
                        seen += 1;
                        worked = true;
                        assert_eq!(frame.seq, seen, "out of order");
                        assert!(
                            frame.payload == body(size_of(seen), seen as usize ^ name)[..],
                            "{seen} is not whole"
                        );
                        last.push(frame);
                    }
                    last.drain(..last.len().saturating_sub(5));
                }
            }
            // What was sent before the end is read first.
            if let Poll::Ready(Ok(())) = end.lane.tx.poll_ready(cx, size_of(seq + 1))
                && seq < seen + 40
                && let Poll::Ready(Ok(mut buf)) = end.lane.tx.poll_alloc(cx, size_of(seq + 1))
            {
                seq += 1;
                buf.put_slice(&body(size_of(seq), seq as usize ^ name));
                let buf = buf.freeze();
                sent.push(buf.clone());
                sent.drain(..sent.len().saturating_sub(30));
                worked |= end.lane.tx.start_send(data(seq, buf), false).is_ok();
            }
            let _ = end.lane.tx.poll_flush(cx);
            if !worked {
                return Poll::Pending;
            }
        }
    })
    .await;
    assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
    (sent, seen, last)
}

fn size_of(seq: u64) -> usize {
    [113, 4000, 30_000, 200_000][(seq.wrapping_mul(2_654_435_761) >> 7) as usize % 4]
}

#[test]
fn what_killed_peers_sent_back_is_whole_and_the_rest_is_ours_again() {
    let kills = if std::env::var_os("ZC_SOAK").is_some() { 20 * KILLS } else { KILLS };
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let name = format!("zc-shm-back-kill-{}", std::process::id());
        let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
        let mut listener = StreamLinks.bind(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
        let mut answered = 0;
        for at in 0..kills {
            let mut child = Killed(again(&name).spawn().unwrap());
            let mut end = tokio::time::timeout(GUARD, accepted(&mut *listener, &Setup::default()))
                .await
                .expect("no peer");
            let after = Duration::from_micros((at as u64).wrapping_mul(7919) % 30_000);
            let killer = std::thread::spawn(move || {
                let start = Instant::now();
                while start.elapsed() < after {
                    std::thread::yield_now();
                }
                child.0.kill().unwrap();
                child.0.wait().unwrap();
            });
            let (sent, seen, last) = tokio::time::timeout(GUARD, talk(&mut end, at)).await.expect("hangs");
            killer.join().unwrap();
            answered += seen;
            assert_eq!(end.ledger.snapshot().copied_bytes(), 0);
            drop(last);
            // A send to the dead fails, and what it had is nobody's but ours, when its link has been seen to end.
            let mut left = sent;
            let start = Instant::now();
            while !left.is_empty() {
                assert!(end.send(data(1, vec![0; 10])).await.is_err());
                left = left.into_iter().filter_map(|buf| buf.try_into_mut().err()).collect();
                assert!(start.elapsed() < Duration::from_secs(30), "kill {at}: {} are left", left.len());
                tokio::task::yield_now().await;
            }
        }
        assert!(answered > 0, "no kill met an answer");
    });
}
