//! Processes killed with -9 in the middle of a message in parts: what was sent to its end arrives, what was not does not, and
//! nothing is left of it.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use common::process::{Killed, Tally, again, as_child, descriptors, mappings};
use common::*;
use zc_core::memory::BufPool;
use zc_core::transport::*;
use zc_transport_shm::{MAX_PARTS, PART_BYTES};
use zc_transport_tcp::StreamLinks;

/// ... and to anything, if it is the one that receives.
const RECEIVES: &str = "ZC_SHM_LARGE_KILL_RECEIVES";
/// A guard against hanging, no bound on speed.
const GUARD: Duration = Duration::from_secs(60);
/// Kills of one run, of either side; many times that many under `ZC_SOAK`.
const KILLS: usize = 20;
/// Of a message in parts: more than what is taken in one turn and a few parts.
const LARGE_BYTES: usize = 14 << 20;
/// Killed when this much of it has been taken.
const THRESHOLDS: [u64; 4] = [0, 1, 3 << 20, 5 << 20];

/// Every other one goes in parts. A window of one pattern that is soon made, of no length that parts have.
fn message(seq: u64) -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let pattern = PATTERN.get_or_init(|| body((1 << 20) + 4099, 0).repeat(LARGE_BYTES >> 20));
    let at = (seq % 4096) as usize;
    let len = if seq.is_multiple_of(2) { LARGE_BYTES } else { 1000 };
    &pattern[at..at + len]
}

fn setup() -> Setup {
    let mut setup = Setup::default();
    setup.options.max_arena_bytes = 4 << 20;
    setup.options.longer_in_parts = true;
    setup
}

/// Not a test of its own: the process that is killed. As a sender it says what is sent to its end.
#[test]
fn child() {
    as_child(&setup(), async |mut end| {
        if std::env::var_os(RECEIVES).is_some() {
            while let Ok(frames) = end.recv().await {
                frames.iter().for_each(|frame| end.lane.rx.release(frame.payload.len()));
            }
            return;
        }
        let tally = Tally::given();
        for seq in 1.. {
            if end.send(data(seq, message(seq).to_vec())).await.is_err() {
                return;
            }
            tally.set(seq);
        }
    });
}

fn kill(child: &mut Killed) {
    child.0.kill().unwrap();
    child.0.wait().unwrap();
}

fn spawn(name: &str, receives: bool, tally: &Tally) -> Killed {
    let mut command = again(name);
    tally.give(&mut command);
    if receives {
        command.env(RECEIVES, "1");
    }
    Killed(command.spawn().unwrap())
}

/// Whether the memory for a message in parts is taken.
fn has_begun(end: &End) -> bool {
    end.pool.stats().in_use_bytes > LARGE_BYTES as u64 / 2
}

/// Receives until so much of a message in parts is here, and `before` messages. How many messages came.
async fn receive_into(end: &mut End, before: u64, threshold: u64) -> u64 {
    let (mut seen, mut whole_bytes) = (0, 0);
    let mut batch = Batch::new();
    loop {
        let _ = std::future::poll_fn(|cx| {
            end.drive(cx);
            match end.lane.rx.poll_recv(cx, &mut batch) {
                Poll::Ready(got) => Poll::Ready(got.map(drop)),
                // A turn over: looked at as well.
                Poll::Pending if has_begun(end) => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
        .map_err(|error| panic!("{error}"));
        for frame in batch.drain() {
            seen += 1;
            assert_eq!(frame.seq, seen, "out of order");
            assert!(frame.payload == *message(seen), "message {seen} is not whole");
            end.lane.rx.release(frame.payload.len());
            whole_bytes += if seen.is_multiple_of(2) { LARGE_BYTES as u64 } else { 0 };
        }
        let copied = end.ledger.snapshot().copied_bytes() - whole_bytes;
        if seen >= before && has_begun(end) && copied >= threshold {
            assert!(copied + ((MAX_PARTS * PART_BYTES) as u64) < LARGE_BYTES as u64, "{copied} is too late");
            return seen;
        }
        tokio::task::yield_now().await;
    }
}

async fn with_child<F: AsyncFnMut(usize, &mut End, &mut Killed)>(receives: bool, tally: &Tally, mut each: F) {
    let kills = if std::env::var_os("ZC_SOAK").is_some() { 20 * KILLS } else { KILLS };
    let name = format!("zc-shm-large-kill-{}-{receives}", std::process::id());
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let mut listener = StreamLinks.bind(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
    let before = descriptors();
    for at in 0..kills {
        let mut child = spawn(&name, receives, tally);
        let mut end = tokio::time::timeout(GUARD, accepted(&mut *listener, &setup())).await.expect("no peer");
        let round = tokio::time::timeout(GUARD, each(at, &mut end, &mut child));
        round.await.expect("the end of the peer is not noticed");
        assert!(end.send(data(1, vec![0; 10])).await.is_err());
        let pool = end.pool.clone();
        drop((end, child));
        assert_eq!(pool.stats().in_use_bytes, 0, "the pool keeps something of kill {at}");
        assert_eq!(mappings(), 0, "memory is left after kill {at}");
    }
    assert_eq!(descriptors(), before, "descriptors are left");
}

/// One after the other, since both count what this process has.
#[test]
fn killed_in_the_middle_of_a_message() {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tally = Tally::new();
    rt.block_on(with_child(false, &tally, async |at, end, child| {
        let seen = receive_into(end, (at % 3) as u64, THRESHOLDS[at % 4]).await;
        kill(child);
        let sent = tally.count();
        assert!(sent <= seen, "{sent} messages were sent to their end, and {seen} came");
        let error = end.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
        assert_eq!(end.pool.stats().in_use_bytes, 0, "the begun message is kept");
        assert_eq!(end.lane.leases.outstanding_bytes(), 0);
    }));
    let source = BufPool::builder().max_bytes(64 << 20).build();
    rt.block_on(with_child(true, &tally, async |at, end, child| {
        let mut buf = source.try_alloc(LARGE_BYTES).unwrap();
        buf.put_slice(message(2));
        end.lane.tx.start_send(data(1, buf.freeze()), true).unwrap();
        let sent = std::future::poll_fn(|cx| {
            end.drive(cx);
            match end.lane.tx.poll_flush(cx) {
                Poll::Pending if end.ledger.snapshot().copied_bytes() <= THRESHOLDS[at % 4] => Poll::Pending,
                flushed => Poll::Ready(flushed.is_ready()),
            }
        });
        assert!(!sent.await, "too late");
        kill(child);
        let error = std::future::poll_fn(|cx| {
            end.drive(cx);
            end.lane.tx.poll_flush(cx)
        });
        assert!(matches!(error.await, Err(LaneError::PeerGone(_))));
        let mut ends = Batch::new();
        let polled = end.lane.tx.poll_completions(&mut Context::from_waker(Waker::noop()), &mut ends);
        assert!(polled.is_ready() && ends.drain().all(|(_, how)| how == SendReport::Failed));
        assert_eq!(source.stats().in_use_bytes, 0, "the sender keeps it");
    }));
}
