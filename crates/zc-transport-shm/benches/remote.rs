//! One-sided operations of a lane in the mapping of an export, next to a plain copy of as many bytes.
//!
//! ```text
//! cargo bench -p zc-transport-shm --bench remote
//! ```

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark"
)]

#[path = "../tests/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "there is one process")]
mod measure;

use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use common::{End, Setup, pair};
use measure::{median, pin};
use zc_core::memory::{Backing, ExportMemory, PinnedBufMut, Region, Sealing};
use zc_core::transport::*;

const ROUNDS: usize = 31;
const EXPORT_BYTES: usize = 2 << 20;

struct Deaf;

impl NotifySink for Deaf {
    fn poll_notify(&self, _: &mut Context<'_>, _: u64) -> Poll<()> {
        Poll::Pending
    }
}

fn main() {
    pin(1);
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let (mut user, mut owner) = pair(&Setup::default()).await;
        let memory = Region::builder(EXPORT_BYTES).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites);
        let memory = memory.prefault(true);
        let memory = ExportMemory::new(memory, EXPORT_BYTES).unwrap();
        let grant = RemoteGrant {
            memory,
            range: 0..EXPORT_BYTES as u64,
            access: Access::ALL,
            notify: Arc::new(Deaf),
        };
        let key = owner.lane.remote.as_mut().unwrap().grant(grant).unwrap();
        ask(&mut user, &mut owner, &key).await;
        for len in [64, 4096, 65536, 1 << 20] {
            let (mut native, mut plain) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                native.push(reads(&mut user, &key, len));
                plain.push(copies(len));
            }
            let (native, plain) = (median(&mut native), median(&mut plain));
            println!("read of {len:>8} B: {native:>10.0} ns    memcpy {plain:>10.0} ns");
        }
        let add = |end: &mut End| assert!(operate(end, &key, RemoteOp::FetchAdd { add: 1 }).is_some());
        let mut adds: Vec<f64> = (0..ROUNDS).map(|_| timed(2000, || add(&mut user))).collect();
        println!("fetch_add: {:.0} ns", median(&mut adds));
    });
}

/// The first operation, for which the owner is asked.
async fn ask(user: &mut End, owner: &mut End, key: &RemoteKey) {
    let mut done = operate(user, key, RemoteOp::FetchAdd { add: 0 });
    while done.is_none() {
        for end in [&mut *owner, &mut *user] {
            end.drive(&mut Context::from_waker(Waker::noop()));
            done = collect(end);
        }
        tokio::task::yield_now().await;
    }
}

fn operate(end: &mut End, key: &RemoteKey, op: RemoteOp) -> Option<RemoteCompletion> {
    end.lane.remote.as_mut().unwrap().start(key, 0, op).unwrap();
    let done = collect(end);
    // As the facade does, which looks until there is nothing.
    assert!(done.is_none() || collect(end).is_none());
    done
}

fn collect(end: &mut End) -> Option<RemoteCompletion> {
    let mut out = Batch::new();
    let mut cx = Context::from_waker(Waker::noop());
    match end.lane.remote.as_mut().unwrap().poll_completions(&mut cx, &mut out) {
        Poll::Ready(done) => done.unwrap(),
        Poll::Pending => {}
    }
    out.drain().next()
}

fn times(len: usize) -> usize {
    (4 << 20) / len.max(4096) + 4
}

fn timed(times: usize, mut once: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..times).for_each(|_| once());
    start.elapsed().as_nanos() as f64 / times as f64
}

fn reads(user: &mut End, key: &RemoteKey, len: usize) -> f64 {
    let mut buf: Option<PinnedBufMut> = user.pool.try_alloc(len).ok();
    timed(times(len), || {
        let mut into = buf.take().unwrap();
        into.clear();
        buf = operate(user, key, RemoteOp::Read { into, len }).unwrap().read;
    })
}

fn copies(len: usize) -> f64 {
    let from = vec![1u8; EXPORT_BYTES];
    let mut to = vec![0u8; len];
    timed(times(len), || black_box(&mut to).copy_from_slice(&black_box(&from)[..len]))
}
