//! What `ShmOptions::streaming_copies` gains: payload that is not of the connection, and so is copied into the arena, there
//! and back between two processes that spin, each on a core of its own. Two lanes in turns, with the option and without.
//!
//! ```text
//! cargo bench -p zc-transport-shm --bench foreign         nothing else should run
//! ZC_SHM_BENCH_ROUNDS=9 cargo bench ...                   shorter
//! ```
//!
//! Payload is read in full. A round counts when a cache line bounced between the cores at the same speed before
//! and after it, and by that speed the cores are near or far, or one that plays two. Ratios are to the lane without, in the same round.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark"
)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "measure/line.rs"]
mod line;
mod measure;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use common::{End, Setup, TokioReactor, try_end};
use line::{APART, Line, apart};
use measure::{CHILD, median};
use zc_core::memory::{CopyPlace, PinnedBuf};
use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

const SIZES: [usize; 7] = [32 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20, 4 << 20, 10 << 20];
const ROUNDS: &str = "ZC_SHM_BENCH_ROUNDS";
/// Trips of the round that warms up: both ways were tried in it.
const WARM_UP_TRIPS: u64 = 96;
/// Probes of one round may differ by this factor.
const SAME: f64 = 1.3;
/// Without the option, and with it.
const LANES: [bool; 2] = [false, true];

fn main() {
    measure::two_processes(parent, child);
}

fn rounds() -> usize {
    1 + std::env::var(ROUNDS).map_or(15, |n| n.parse().expect("a number of rounds"))
}

fn trips(len: usize, round: usize) -> u64 {
    let trips = ((64 << 20) / len as u64).clamp(12, 512);
    if round == 0 { trips.max(WARM_UP_TRIPS) } else { trips }
}

/// Which lane comes first changes from round to round.
fn in_turns(round: usize) -> [usize; 2] {
    if round.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

fn setup(streaming_copies: bool) -> Setup {
    let mut setup = Setup::default();
    setup.options.streaming_copies = streaming_copies;
    (setup.limits.recv_window, setup.limits.send_window) = (64 << 20, 64 << 20);
    (setup.limits.lease_soft, setup.limits.lease_hard) = (256 << 20, 512 << 20);
    setup
}

struct Side {
    end: End,
    batch: Batch<Frame>,
    seq: u64,
}

impl Side {
    async fn idle(&mut self) {
        std::future::poll_fn(|cx| {
            self.end.drive(cx);
            Poll::Ready(())
        })
        .await;
        tokio::task::yield_now().await;
    }

    async fn send(&mut self, foreign: &PinnedBuf) {
        let mut cx = Context::from_waker(Waker::noop());
        while !self.end.lane.tx.poll_ready(&mut cx, foreign.len()).is_ready() {
            self.idle().await;
        }
        self.seq += 1;
        let frame = common::data(self.seq, foreign.clone());
        self.end.lane.tx.start_send(frame, false).unwrap();
        while !self.end.lane.tx.poll_flush(&mut cx).is_ready() {
            self.idle().await;
        }
    }

    async fn recv(&mut self) {
        let mut spins = 0u32;
        while self.end.lane.rx.try_recv(&mut self.batch).unwrap().is_none() {
            spins += 1;
            if spins.is_multiple_of(100_000) {
                self.idle().await;
            }
            std::hint::spin_loop();
        }
        for frame in self.batch.drain() {
            self.end.lane.rx.release(frame.payload.len());
            for segment in frame.payload.segments() {
                let (words, _) = segment.as_chunks::<8>();
                std::hint::black_box(words.iter().fold(0u64, |sum, word| sum ^ u64::from_ne_bytes(*word)));
            }
        }
    }

    /// Microseconds of a round trip.
    async fn ping(&mut self, foreign: &PinnedBuf, n: u64) -> f64 {
        let start = Instant::now();
        for _ in 0..n {
            self.send(foreign).await;
            self.recv().await;
        }
        start.elapsed().as_nanos() as f64 / 1e3 / n as f64
    }

    async fn pong(&mut self, foreign: &PinnedBuf, n: u64) {
        for _ in 0..n {
            self.recv().await;
            self.send(foreign).await;
        }
    }
}

async fn sides(role: Role, mut link: impl AsyncFnMut() -> Box<dyn ControlLink>) -> Vec<Side> {
    let mut sides = Vec::new();
    for streaming_copies in LANES {
        let end = try_end(link().await, role, &setup(streaming_copies), None).await.unwrap();
        sides.push(Side { end, batch: Batch::new(), seq: 0 });
    }
    sides
}

async fn child(name: String) {
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let addr = LinkAddr::UnixAbstract(name);
    let mut sides = sides(Role::Client, async || StreamLinks.connect(&addr, &reactor).await.unwrap()).await;
    let mut line = Line::inherited();
    for round in 0..rounds() {
        for len in SIZES {
            let foreign = PinnedBuf::from(vec![3; len]);
            line.bounce();
            for at in in_turns(round) {
                sides[at].pong(&foreign, trips(len, round)).await;
            }
            line.bounce();
        }
    }
}

async fn parent() {
    let name = format!("zc-shm-bench-{}", std::process::id());
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let mut listener = StreamLinks.bind(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut line = Line::shared_with(&mut command);
    let mut child = command.env(CHILD, &name).stdin(Stdio::null()).spawn().unwrap();
    let accept = async || std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
    let mut sides = sides(Role::Server, accept).await;
    let (mut rows, mut changed) = ([const { [const { Vec::new() }; APART.len()] }; SIZES.len()], 0);
    let mut copied = 0;
    for round in 0..rounds() {
        for (at, len) in SIZES.into_iter().enumerate() {
            let foreign = PinnedBuf::from(vec![7; len]);
            let before = line.bounce();
            let mut trip_us = [0.0; 2];
            for at in in_turns(round) {
                trip_us[at] = sides[at].ping(&foreign, trips(len, round)).await;
            }
            copied += len as u64 * trips(len, round);
            let after = line.bounce();
            let same = before.max(after) / before.min(after) <= SAME && apart(before) == apart(after);
            match round {
                0 => {}
                _ if same => rows[at][apart(before)].push(Figures { bounce_ns: before, trip_us }),
                _ => changed += 1,
            }
        }
    }
    assert!(child.wait().unwrap().success());
    for side in &sides {
        assert_eq!(side.end.ledger.snapshot().copied_at(CopyPlace::Foreign), copied);
    }
    print(&rows);
    println!("{changed} rounds do not count");
}

/// What one round says of a size.
struct Figures {
    bounce_ns: f64,
    trip_us: [f64; 2],
}

type Rows = [[Vec<Figures>; APART.len()]; SIZES.len()];

fn print(rows: &Rows) {
    println!("{:>10} {:>5} {:>7} {:>10} {:>14} {:>10}", "bytes", "", "rounds", "line", "memcpy", "streaming");
    for (len, row) in SIZES.into_iter().zip(rows) {
        for (of, name) in row.iter().zip(APART).filter(|(of, _)| !of.is_empty()) {
            let column =
                |figure: &dyn Fn(&Figures) -> f64| median(&mut of.iter().map(figure).collect::<Vec<_>>());
            println!(
                "{len:>10} {name:>5} {:>7} {:>7.0} ns {:>11.1} us {:>10.2}",
                of.len(),
                column(&|row| row.bounce_ns),
                column(&|row| row.trip_us[0]),
                column(&|row| row.trip_us[1] / row.trip_us[0]),
            );
        }
    }
}
