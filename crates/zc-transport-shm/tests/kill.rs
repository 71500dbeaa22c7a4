//! Peers killed with -9 at random points: what was sent arrives, whole and in order, and nothing is left.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::process::{Killed, Tally, again, as_child, descriptors, mappings};
use common::*;
use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

/// Set for a child whose side is wary as well, which both have to be told.
const WARY: &str = "ZC_SHM_KILL_WARY";
/// A guard against hanging, no bound on speed.
const GUARD: Duration = Duration::from_secs(60);
/// Kills of one run; many times that many under `ZC_SOAK`.
const KILLS: usize = 200;

/// Sizes that use the slots, the first arena, later ones, and ropes of copies.
fn size_of_message(seq: u64) -> usize {
    [8, 64, 112, 113, 4000, 30_000, 200_000][(seq.wrapping_mul(2_654_435_761) >> 7) as usize % 7]
}

/// A window of one pattern: told from its neighbours, and made as fast as memory is copied, so that
/// the kills meet the lane at work and not the making of messages.
fn message(seq: u64) -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let pattern = PATTERN.get_or_init(|| body(200_000 + 4096, 0));
    let at = (seq % 4096) as usize;
    &pattern[at..at + size_of_message(seq)]
}

/// Nothing is lent between wary sides: what arrives is copied out into the pool.
fn setup(is_wary: bool) -> Setup {
    let trust = if is_wary { Trust::Untrusted } else { Trust::Cooperative };
    Setup { trust, ..Setup::default() }
}

/// Sends as fast as it can, and says up to which number all is sent; and reads whatever comes, until the other side goes or it is killed.
async fn talk(end: &mut End, sent: impl Fn(u64), check: impl Fn(&Frame, u64)) -> LaneError {
    let (mut seq, mut seen) = (0, 0);
    let mut batch = Batch::new();
    let mut held = Vec::new();
    loop {
        let done: Result<(), LaneError> = std::future::poll_fn(|cx| {
            end.drive(cx);
            let mut worked = false;
            while let std::task::Poll::Ready(got) = end.lane.rx.poll_recv(cx, &mut batch) {
                match got {
                    Ok(Received::Some) => {}
                    Ok(Received::Closed) => return std::task::Poll::Ready(Err(LaneError::Closed)),
                    Err(error) => return std::task::Poll::Ready(Err(error)),
                }
                for frame in batch.drain() {
                    seen += 1;
                    check(&frame, seen);
                    end.lane.rx.release(frame.payload.len());
                    held.push(frame);
                }
                // Some are kept for a while: the peer dies while they are lent.
                held.drain(..held.len().saturating_sub(5));
                worked = true;
            }
            for _ in 0..8 {
                let len = size_of_message(seq + 1);
                match end.lane.tx.poll_ready(cx, len) {
                    std::task::Poll::Ready(Ok(())) => {}
                    // What was sent before the end is read first.
                    _ => break,
                }
                seq += 1;
                if end.lane.tx.start_send(data(seq, message(seq).to_vec()), false).is_err() {
                    break;
                }
                worked = true;
            }
            if let std::task::Poll::Ready(Ok(())) = end.lane.tx.poll_flush(cx) {
                sent(seq);
            }
            if worked { std::task::Poll::Ready(Ok(())) } else { std::task::Poll::Pending }
        })
        .await;
        if let Err(error) = done {
            return error;
        }
    }
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    as_child(&setup(std::env::var_os(WARY).is_some()), async |mut end| {
        let tally = Tally::given();
        talk(&mut end, |seq| tally.set(seq), |_, _| ()).await;
    });
}

#[test]
fn killed_peers_leave_whole_messages_and_nothing_else() {
    let kills = if std::env::var_os("ZC_SOAK").is_some() { 20 * KILLS } else { KILLS };
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let name = format!("zc-shm-kill-{}", std::process::id());
        let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
        let mut listener = StreamLinks.bind(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
        let tally = Tally::new();
        let (before, mut sent_in_all) = (descriptors(), 0);
        for at in 0..kills {
            let is_wary = at % 3 == 0;
            let mut command = again(&name);
            tally.give(&mut command);
            if is_wary {
                command.env(WARY, "1");
            }
            let child = Killed(command.spawn().unwrap());
            let mut end = tokio::time::timeout(GUARD, accepted(&mut *listener, &setup(is_wary)))
                .await
                .expect("no peer");
            let (arrived, killer) = kill_later(at, child);
            let last = std::cell::Cell::new(0);
            let check = |frame: &Frame, seen: u64| {
                assert_eq!(frame.seq, seen, "out of order");
                assert!(frame.payload == *message(seen), "message {seen} is not whole");
                last.set(seen);
                let _ = arrived.send(());
            };
            let end_of_it = tokio::time::timeout(GUARD, talk(&mut end, |_| (), check));
            let error = end_of_it.await.expect("the end of the peer is not noticed");
            assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
            killer.join().unwrap();
            let (sent, seen) = (tally.count(), last.get());
            assert!(at % 2 == 0 || seen > 0, "kill {at} met no message");
            assert!(sent <= seen, "{sent} messages were sent before kill {at}, and {seen} came");
            sent_in_all += sent;
            // A send to the dead fails at once.
            assert!(end.send(data(1, vec![0; 10])).await.is_err());
            assert_eq!(end.lane.leases.outstanding_bytes(), 0, "counted as lent after kill {at}");
            let pool = end.pool.clone();
            drop(end);
            assert_eq!(pool.stats().in_use_bytes, 0, "the pool keeps something of kill {at}");
            assert_eq!(mappings(), 0, "memory is left after kill {at}");
            assert_eq!(descriptors(), before, "descriptors are left after kill {at}");
        }
        assert!(sent_in_all > kills as u64, "{sent_in_all} messages in {kills} kills");
    });
}

/// Kills the child at some moment of round `at`: from before the first message to many later. Every other time it is the first
/// message that starts the clock, however slow the machine is; that one has arrived is to be said.
fn kill_later(at: usize, mut child: Killed) -> (mpsc::Sender<()>, JoinHandle<()>) {
    let after = Duration::from_micros((at as u64).wrapping_mul(7919) % 12_000);
    let (arrived, first) = mpsc::channel();
    if at.is_multiple_of(2) {
        arrived.send(()).unwrap();
    }
    let killer = std::thread::spawn(move || {
        first.recv_timeout(GUARD).unwrap();
        let start = Instant::now();
        while start.elapsed() < after {
            std::hint::spin_loop();
        }
        child.0.kill().unwrap();
        child.0.wait().unwrap();
    });
    (arrived, killer)
}
