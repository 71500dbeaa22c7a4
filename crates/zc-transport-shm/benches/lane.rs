//! The lane driven directly by two processes that spin, each on a core of its own, next to one cache line
//! bounced between them, and
//! next to the bare memory: a flag and a payload in one place that both write.
//!
//! ```text
//! cargo bench -p zc-transport-shm --bench lane            nothing else should run
//! cargo bench -p zc-transport-shm --bench lane costs      processor time only
//! cargo bench -p zc-transport-shm --bench lane costs NAME where the name contains that
//! ZC_SHM_BENCH_SIZE=64 cargo bench ...                    one size only, for a profiler
//! ```
//!
//! Payload is written and read in full. A round counts when the line bounced at the same speed before and
//! after it; the figures are medians of those.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark"
)]

#[path = "../tests/common/mod.rs"]
mod common;
mod measure;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use common::{End, Setup, TokioReactor, try_end};
use measure::{CHILD, median};
use zc_core::memory::{Backing, PeerMapping, Region, Sealing};
use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

const ROUNDS: usize = 31;
const SIZES: [usize; 6] = [64, 1024, 4096, 65536, 1 << 20, 10 << 20];
/// Only this size.
const ONE_SIZE: &str = "ZC_SHM_BENCH_SIZE";
/// Probes of one round may differ by this factor.
const SAME: f64 = 1.25;
const LAST: u64 = u64::MAX;

fn main() {
    measure::two_processes(parent, child);
}

fn sizes() -> Vec<usize> {
    std::env::var(ONE_SIZE).map_or(SIZES.into(), |size| vec![size.parse().expect("a size in bytes")])
}

fn setup() -> Setup {
    let mut setup = Setup::default();
    (setup.limits.recv_window, setup.limits.send_window) = (64 << 20, 64 << 20);
    (setup.limits.lease_soft, setup.limits.lease_hard) = (256 << 20, 512 << 20);
    setup
}

/// How many round trips or messages of a size make one measurement.
fn count(len: usize) -> u64 {
    (20_000 / (10 + len as u64 / 1024)).clamp(4, 2_000)
}

fn mapped(fd: OwnedFd) -> Region {
    let both =
        PeerMapping { max_bytes: BARE_BYTES, sealing: Sealing::AnyoneWrites, writable: true, prefault: true };
    both.map(fd).unwrap()
}

fn line(region: &Region) -> &AtomicU64 {
    // SAFETY: aligned, inside of the region, and accessed atomically only.
    unsafe { &*region.base().cast() }
}

const BOUNCES: u64 = 2_000;

fn bounce(line: &AtomicU64, base: u64, first: bool) -> f64 {
    let start = Instant::now();
    for n in 0..BOUNCES {
        let (mine, theirs) = (base + 2 * n + 1, base + 2 * n + 2);
        if first {
            line.store(mine, Ordering::Release);
            while line.load(Ordering::Acquire) != theirs {
                std::hint::spin_loop();
            }
        } else {
            while line.load(Ordering::Acquire) != mine {
                std::hint::spin_loop();
            }
            line.store(theirs, Ordering::Release);
        }
    }
    start.elapsed().as_nanos() as f64 / BOUNCES as f64
}

/// The line, and behind it a place for the largest payload of each side.
const BARE_BYTES: usize = 4096 + 2 * (10 << 20);

/// What memory alone allows: a flag and a payload in memory that both write, always in the same place.
fn bare(region: &Region, base: u64, len: usize, first: bool) -> f64 {
    let flag = |at: usize| {
        // SAFETY: aligned, inside of the region, and accessed atomically only.
        unsafe { &*region.base().add(1024 + 512 * at).cast::<AtomicU64>() }
    };
    let place = |at: usize| region.base_mut().as_ptr().wrapping_add(4096 + at * (10 << 20));
    let (mine, theirs) = if first { (0, 1) } else { (1, 0) };
    let n = count(len);
    let start = Instant::now();
    for i in 1..=n {
        let write = || {
            // SAFETY: inside of the region, and ours to write until the flag says so.
            unsafe { place(mine).write_bytes(i as u8, len) };
            flag(mine).store(base + i, Ordering::Release);
        };
        if first {
            write();
        }
        while flag(theirs).load(Ordering::Acquire) != base + i {
            std::hint::spin_loop();
        }
        // SAFETY: inside of the region, and not written until our flag says so.
        std::hint::black_box(sum_of(unsafe { std::slice::from_raw_parts(place(theirs), len) }));
        if !first {
            write();
        }
    }
    start.elapsed().as_nanos() as f64 / n as f64
}

struct Spinner {
    end: End,
    batch: Batch<Frame>,
    seq: u64,
}

fn sum_of(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(0u64, |s, w| s.wrapping_add(u64::from_ne_bytes(*w)));
    rest.iter().fold(sum, |s, b| s.wrapping_add(u64::from(*b)))
}

fn sum(frame: &Frame) -> u64 {
    frame.payload.segments().iter().fold(0, |sum, segment| sum.wrapping_add(sum_of(segment)))
}

impl Spinner {
    async fn idle(&mut self) {
        std::future::poll_fn(|cx| {
            self.end.drive(cx);
            Poll::Ready(())
        })
        .await;
        tokio::task::yield_now().await;
    }

    #[inline]
    async fn send(&mut self, len: usize, byte: u8, flush: bool) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut spins = 0u32;
        loop {
            if let Poll::Ready(ready) = self.end.lane.tx.poll_ready(&mut cx, len) {
                ready.unwrap();
                break;
            }
            spins += 1;
            if spins.is_multiple_of(1000) {
                self.idle().await;
            }
        }
        let mut buf = loop {
            if let Poll::Ready(buf) = self.end.lane.tx.poll_alloc(&mut cx, len) {
                break buf.unwrap();
            }
            spins += 1;
            if spins.is_multiple_of(1000) {
                self.idle().await;
            }
        };
        buf.resize(len, byte);
        self.seq += 1;
        let frame = Frame { kind: FrameKind::Data, ack: false, seq: self.seq, payload: buf.freeze().into() };
        self.end.lane.tx.start_send(frame, false).unwrap();
        if flush {
            assert!(self.end.lane.tx.poll_flush(&mut cx).is_ready());
        }
    }

    /// Takes what is there, at least one.
    #[inline]
    async fn recv(&mut self) -> u64 {
        let mut spins = 0u32;
        loop {
            if self.end.lane.rx.try_recv(&mut self.batch).unwrap().is_some() {
                break;
            }
            spins += 1;
            if spins.is_multiple_of(100_000) {
                self.idle().await;
            }
            std::hint::spin_loop();
        }
        let mut got = 0;
        for frame in self.batch.drain() {
            got += 1;
            self.end.lane.rx.release(frame.payload.len());
            std::hint::black_box(sum(&frame));
        }
        got
    }

    /// Nanoseconds of a round trip.
    async fn ping(&mut self, len: usize) -> f64 {
        let n = count(len);
        let start = Instant::now();
        for i in 0..n {
            self.send(len, i as u8, true).await;
            self.recv().await;
        }
        start.elapsed().as_nanos() as f64 / n as f64
    }

    async fn pong(&mut self, len: usize) {
        for i in 0..count(len) {
            self.recv().await;
            self.send(len, i as u8, true).await;
        }
    }

    /// Nanoseconds per message, one way.
    async fn stream(&mut self, len: usize) -> f64 {
        let n = 4 * count(len);
        let start = Instant::now();
        for i in 0..n {
            self.send(len, i as u8, i % 16 == 15 || len > 4096).await;
        }
        self.send(0, 0, true).await;
        self.recv().await;
        start.elapsed().as_nanos() as f64 / n as f64
    }

    async fn sink(&mut self, len: usize) {
        let n = 4 * count(len) + 1;
        let mut got = 0;
        while got < n {
            got += self.recv().await;
        }
        self.send(0, 0, true).await;
    }
}

/// Processor time of this thread, nanoseconds.
fn cpu_ns() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}

const COSTS: u64 = 64 * 4000;

/// Median processor time per call, in batches of 64.
fn cost(what: &str, mut batch: impl FnMut()) {
    if std::env::args().skip_while(|arg| arg != "costs").nth(1).is_some_and(|part| !what.contains(&part)) {
        return;
    }
    let mut each: Vec<f64> = (0..11)
        .map(|_| {
            let start = cpu_ns();
            for _ in 0..COSTS / 64 / 10 {
                batch();
            }
            (cpu_ns() - start) / (COSTS / 10) as f64
        })
        .collect();
    println!("{what:>44} {:>7.1} ns", median(&mut each));
}

/// What the calls themselves cost: both ends in one thread, no cache line moves between cores.
async fn costs() {
    let (mut a, mut b) = common::pair(&setup()).await;
    let mut cx = Context::from_waker(Waker::noop());
    let mut batch = Batch::new();
    let mut seq = 0;
    println!("processor time per message, both ends in one thread");
    let (tx, rx) = (&mut a.lane.tx, &mut b.lane.rx);
    let word = AtomicU64::new(0);
    cost("for scale: one atomic addition", || {
        for _ in 0..64 {
            std::hint::black_box(&word).fetch_add(1, Ordering::Relaxed);
        }
    });
    cost("try_recv of nothing", || {
        for _ in 0..64 {
            assert!(rx.try_recv(&mut batch).unwrap().is_none());
        }
    });
    cost("poll_alloc + drop, 64 B", || {
        for _ in 0..64 {
            let Poll::Ready(buf) = tx.poll_alloc(&mut cx, 64) else { continue };
            std::hint::black_box(buf.unwrap().len());
        }
    });
    cost("poll_alloc + drop, 4 KiB", || {
        for _ in 0..64 {
            let Poll::Ready(buf) = tx.poll_alloc(&mut cx, 4096) else { continue };
            std::hint::black_box(buf.unwrap().len());
        }
    });
    let frame = |seq: &mut u64, payload| {
        *seq += 1;
        Frame { kind: FrameKind::Data, ack: false, seq: *seq, payload }
    };
    for every in [1, 64] {
        cost(&format!("send 64 B, flush every {every}, receive 64"), || {
            for n in 0..64 {
                assert!(tx.poll_ready(&mut cx, 64).is_ready());
                let payload = zc_core::memory::Message::from(&[7u8; 64][..]);
                tx.start_send(frame(&mut seq, payload), false).unwrap();
                if n % every == every - 1 {
                    assert!(tx.poll_flush(&mut cx).is_ready());
                }
            }
            rx.try_recv(&mut batch).unwrap();
            batch.drain().for_each(|f| rx.release(f.payload.len()));
        });
    }
    cost("the same one by one", || {
        for _ in 0..64 {
            assert!(tx.poll_ready(&mut cx, 64).is_ready());
            let payload = zc_core::memory::Message::from(&[7u8; 64][..]);
            tx.start_send(frame(&mut seq, payload), false).unwrap();
            assert!(tx.poll_flush(&mut cx).is_ready());
            rx.try_recv(&mut batch).unwrap();
            batch.drain().for_each(|f| rx.release(f.payload.len()));
        }
    });
    cost("4 KiB from alloc, not touched, one by one", || {
        for _ in 0..64 {
            assert!(tx.poll_ready(&mut cx, 4096).is_ready());
            let Poll::Ready(buf) = tx.poll_alloc(&mut cx, 4096) else { continue };
            let mut buf = buf.unwrap();
            buf.set_len(4096);
            tx.start_send(frame(&mut seq, buf.freeze().into()), false).unwrap();
            assert!(tx.poll_flush(&mut cx).is_ready());
            rx.try_recv(&mut batch).unwrap();
            batch.drain().for_each(|f| rx.release(f.payload.len()));
        }
    });
}

async fn exchange_line(link: &mut dyn ControlLink, mine: Option<BorrowedFd<'_>>) -> Option<OwnedFd> {
    match mine {
        Some(fd) => {
            std::future::poll_fn(|cx| link.poll_send_descriptors(cx, &[fd])).await.unwrap();
            None
        }
        None => std::future::poll_fn(|cx| link.poll_recv_descriptors(cx, 1)).await.unwrap().pop(),
    }
}

async fn child(name: String) {
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let mut link = StreamLinks.connect(&LinkAddr::UnixAbstract(name), &reactor).await.unwrap();
    let fd = exchange_line(&mut *link, None).await.unwrap();
    let region = mapped(fd);
    let end = try_end(link, Role::Client, &setup(), None).await.unwrap();
    let mut s = Spinner { end, batch: Batch::new(), seq: 0 };
    let line = line(&region);
    let mut base = 0;
    for _ in 0..=ROUNDS {
        for len in sizes() {
            bounce(line, base, false);
            bare(&region, base, len, false);
            s.pong(len).await;
            s.sink(len).await;
            base += 2 * BOUNCES;
            bounce(line, base, false);
            base += 2 * BOUNCES;
        }
    }
    while line.load(Ordering::Acquire) != LAST {
        std::hint::spin_loop();
    }
}

async fn parent() {
    costs().await;
    if std::env::args().any(|arg| arg == "costs") {
        return;
    }
    let name = format!("zc-shm-bench-{}", std::process::id());
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let mut listener = StreamLinks.bind(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, &name)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut link = std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
    let region = Region::builder(BARE_BYTES).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites);
    let region = region.prefault(true).build().unwrap();
    exchange_line(&mut *link, region.fd()).await;
    let end = try_end(link, Role::Server, &setup(), None).await.unwrap();
    let mut s = Spinner { end, batch: Batch::new(), seq: 0 };
    let line = line(&region);
    let mut base = 0;
    let mut rows: Vec<Vec<[f64; 4]>> = vec![Vec::new(); sizes().len()];
    for round in 0..=ROUNDS {
        for (at, len) in sizes().into_iter().enumerate() {
            let before = bounce(line, base, true);
            let bare = bare(&region, base, len, true);
            let ping = s.ping(len).await;
            let way = s.stream(len).await;
            base += 2 * BOUNCES;
            let after = bounce(line, base, true);
            base += 2 * BOUNCES;
            let same = before.max(after) / before.min(after) < SAME;
            // The first round warms up.
            if round > 0 && same {
                rows[at].push([(before + after) / 2.0, ping, way, bare]);
            }
        }
    }
    line.store(LAST, Ordering::Release);
    child.wait().unwrap();
    print(&mut rows);
    println!("elsewhere busy cores make these figures worse; ledger: {:?}", s.end.ledger.snapshot());
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn print(rows: &mut [Vec<[f64; 4]>]) {
    println!(
        "{:>9} {:>7} {:>8} {:>12} {:>7} {:>7} {:>12} {:>9} {:>9}",
        "bytes", "rounds", "bare", "round trip", "x bare", "x line", "one way", "M msg/s", "GB/s"
    );
    for (len, row) in sizes().into_iter().zip(rows) {
        let column = |at: usize| median(&mut row.iter().map(|r| r[at]).collect::<Vec<_>>());
        let (line, ping, way, bare) = (column(0), column(1), column(2), column(3));
        println!(
            "{len:>9} {:>7} {bare:>8.0} {ping:>9.0} ns {:>7.2} {:>7.2} {way:>9.1} ns {:>9.2} {:>9.1}",
            row.len(),
            ping / bare,
            ping / line,
            1e3 / way,
            len as f64 / way
        );
    }
}
