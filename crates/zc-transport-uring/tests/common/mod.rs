//! Engines, socket pairs, and what should be back at the end.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    unreachable_pub
)]

pub mod busy;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zc::TokioReactor;
use zc_core::memory::{BufPool, PinnedBuf};
use zc_core::transport::Unavailable;
use zc_transport_uring::{Engine, EngineOptions, Flavour};

/// A guard against hanging, no bound on speed.
pub const GUARD: Duration = Duration::from_secs(60);

pub const FLAVOURS: [Flavour; 2] = [Flavour::OneThread, Flavour::ManyThreads];

pub fn pool() -> BufPool {
    BufPool::builder().max_bytes(64 << 20).build()
}

/// `None` on a machine without io_uring, with a word about it.
pub fn engine_with(pool: &BufPool, options: EngineOptions) -> Option<Engine> {
    match Engine::start(Arc::new(TokioReactor::new()), pool, options) {
        Ok(engine) => Some(engine),
        Err(why @ (Unavailable::Os { .. } | Unavailable::Other { .. })) => panic!("{why}"),
        Err(why) => {
            eprintln!("skipped, no io_uring here: {why}");
            None
        }
    }
}

pub fn engine(pool: &BufPool, flavour: Flavour) -> Option<Engine> {
    engine_with(pool, EngineOptions::new(flavour))
}

/// Runs on a runtime of one thread.
pub fn on_one_thread<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(GUARD, test).await.expect("hangs") })
}

/// Runs on a runtime of several threads, as one of its tasks.
pub fn on_many_threads<T: Send + 'static>(test: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    let task = runtime.spawn(async { tokio::time::timeout(GUARD, test).await });
    runtime.block_on(task).unwrap().expect("hangs")
}

pub fn unix_pair() -> (OwnedFd, OwnedFd) {
    let (a, b) = UnixStream::pair().unwrap();
    (a.into(), b.into())
}

pub fn tcp_pair() -> (OwnedFd, OwnedFd) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let a = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    a.set_nodelay(true).unwrap();
    b.set_nodelay(true).unwrap();
    (a.into(), b.into())
}

/// Bytes that tell where they belong.
pub fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n + seed).wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
}

pub fn bytes(len: usize, seed: usize) -> PinnedBuf {
    pattern(len, seed).into()
}

/// Waits, off the runtime's clock, until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + GUARD;
    while !is_so() {
        assert!(Instant::now() < until, "not yet: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What an earlier test left to the kernel may still be counted, and go at any time: compare with `<=`.
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until no more descriptors are open than before.
pub fn wait_for_descriptors(before: usize) {
    let until = Instant::now() + GUARD;
    while open_descriptors() > before {
        assert!(Instant::now() < until, "{} descriptors are open, of {before} before", open_descriptors());
        std::thread::sleep(Duration::from_millis(1));
    }
}
