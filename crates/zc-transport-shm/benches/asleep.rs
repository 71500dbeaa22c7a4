//! Round trips between two processes that sleep, on tokio: the lane with either kind of bell, next to a bare
//! pair of eventfds.
//!
//! ```text
//! cargo bench -p zc-transport-shm --bench asleep          nothing else should run
//! ```

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

use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use common::{End, Setup, TokioReactor, data, try_end};
use measure::{CHILD, median, pin};
use tokio::io::unix::AsyncFd;
use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

const ROUNDS: usize = 15;
/// Round trips of one measurement.
const TRIPS: usize = 300;

fn main() {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match std::env::var(CHILD) {
        Ok(name) => rt.block_on(child(name)),
        Err(_) => {
            pin(0);
            for core in [1, 0] {
                rt.block_on(parent(core));
            }
        }
    }
}

/// Two eventfds, each silent or rung.
struct Pair {
    mine: AsyncFd<OwnedFd>,
    theirs: OwnedFd,
}

impl Pair {
    fn new(mine: OwnedFd, theirs: OwnedFd) -> Self {
        // SAFETY: an OwnedFd stays open and is the same descriptor until it is dropped.
        Self { mine: unsafe { AsyncFd::register(mine) }.unwrap(), theirs }
    }

    fn ring(&self) {
        rustix::io::write(&self.theirs, &1u64.to_ne_bytes()).unwrap();
    }

    async fn rung(&self) {
        loop {
            let mut ready = self.mine.readable().await.unwrap();
            if ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut [0; 8])?)).is_ok() {
                return;
            }
        }
    }
}

async fn ask(end: &mut End, seq: u64) {
    end.send(data(seq, vec![1; 64])).await.unwrap();
}

async fn hear(end: &mut End) {
    let mut out = Batch::new();
    poll_fn(|cx| end.lane.rx.poll_recv(cx, &mut out)).await.unwrap();
    out.drain().for_each(|f| end.lane.rx.release(f.payload.len()));
}

fn setups() -> [Setup; 2] {
    [Setup::default(), Setup { trust: Trust::Untrusted, ..Setup::default() }]
}

async fn child(name: String) {
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let mut link = StreamLinks.connect(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
    let mut got = poll_fn(|cx| link.poll_recv_descriptors(cx, 2)).await.unwrap();
    let theirs = got.pop().unwrap();
    let pair = Pair::new(got.pop().unwrap(), theirs);
    let mut ends = Vec::new();
    for setup in setups() {
        let link = StreamLinks.connect(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
        ends.push(try_end(link, Role::Client, &setup, None).await.unwrap());
    }
    for _ in 0..=ROUNDS {
        for _ in 0..TRIPS {
            pair.rung().await;
            pair.ring();
        }
        for end in &mut ends {
            for seq in 1..=TRIPS {
                hear(end).await;
                ask(end, seq as u64).await;
            }
        }
    }
    // The last answer must be heard before the link ends.
    pair.rung().await;
}

fn per_trip(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64 / TRIPS as f64
}

async fn parent(core: usize) {
    let name = format!("zc-shm-asleep-{}-{core}", std::process::id());
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let mut listener = StreamLinks.bind(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
    pin(core);
    let child = Command::new(std::env::current_exe().unwrap()).env(CHILD, &name).stdin(Stdio::null()).spawn();
    pin(0);
    let mut child = child.unwrap();
    let mut link = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    let fds = [0, 1].map(|_| rustix::event::eventfd(0, flags).unwrap());
    poll_fn(|cx| link.poll_send_descriptors(cx, &[fds[0].as_fd(), fds[1].as_fd()])).await.unwrap();
    let [theirs, mine] = fds;
    let pair = Pair::new(mine, theirs);
    let mut ends = Vec::new();
    for setup in setups() {
        let link = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        ends.push(try_end(link, Role::Server, &setup, None).await.unwrap());
    }
    let mut columns = [vec![], vec![], vec![]];
    for round in 0..=ROUNDS {
        let mut figures = [0.0; 3];
        let start = Instant::now();
        for _ in 0..TRIPS {
            pair.ring();
            pair.rung().await;
        }
        figures[0] = per_trip(start);
        for (end, figure) in ends.iter_mut().zip(&mut figures[1..]) {
            let start = Instant::now();
            for seq in 1..=TRIPS {
                ask(end, seq as u64).await;
                hear(end).await;
            }
            *figure = per_trip(start);
        }
        if round > 0 {
            columns.iter_mut().zip(figures).for_each(|(column, figure)| column.push(figure));
        }
    }
    pair.ring();
    let [bare, eventfd, socket] = columns.map(|mut c| median(&mut c));
    println!(
        "{}: bare eventfds {bare:.0} ns, lane by eventfd {eventfd:.0} ns ({:.2}), by socket {socket:.0} ns ({:.2})",
        if core == 0 { "same core" } else { "two cores" },
        eventfd / bare,
        socket / bare
    );
    poll_fn(|_| Poll::Ready(child.wait())).await.unwrap();
}
