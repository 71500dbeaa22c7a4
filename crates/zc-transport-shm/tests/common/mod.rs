//! Pairs of lanes.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    unreachable_pub
)]

pub mod process;
#[path = "../../../../tests/common/skipped.rs"]
pub mod skipped;

use std::sync::{Arc, OnceLock};
use std::task::Context;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
pub use zc::TokioReactor;
use zc_core::memory::{BufPool, CopyLedger, Message, PinnedBufMut};
use zc_core::transport::*;
use zc_transport_shm::{ShmOptions, ShmTransport};
use zc_transport_tcp::StreamLinks;

pub struct End {
    pub lane: Lane,
    pub pool: BufPool,
    pub ledger: Arc<CopyLedger>,
}

/// How a pair of lanes is made.
#[derive(Clone)]
pub struct Setup {
    pub limits: LaneLimits,
    pub options: ShmOptions,
    pub pool_bytes: usize,
    pub trust: Trust,
    pub same_host: Result<(), Unavailable>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: LaneLimits::default(),
            options: ShmOptions::default(),
            pool_bytes: 256 << 20,
            trust: Trust::Cooperative,
            same_host: Ok(()),
        }
    }
}

impl Setup {
    pub fn context(&self) -> (OfferContext, BufPool, Arc<CopyLedger>) {
        let pool = BufPool::builder().max_bytes(self.pool_bytes).build();
        let ledger = Arc::new(CopyLedger::new());
        let mut cx =
            OfferContext::new(Arc::new(TokioReactor::new()), pool.clone(), ledger.clone(), self.limits);
        (cx.trust, cx.same_host) = (self.trust, self.same_host.clone());
        (cx, pool, ledger)
    }
}

pub async fn links() -> (Box<dyn ControlLink>, Box<dyn ControlLink>) {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let addr = LinkAddr::UnixAbstract(format!("zc-shm-test-{}-{n}", std::process::id()));
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let mut listener = StreamLinks.bind(&addr, &reactor).await.unwrap();
    let a = StreamLinks.connect(&addr, &reactor).await.unwrap();
    let b = std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
    (a, b)
}

/// Ours, of who connects next.
pub async fn accepted(listener: &mut dyn LinkListener, setup: &Setup) -> End {
    let link = std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
    try_end(link, Role::Server, setup, None).await.unwrap()
}

pub async fn try_end(
    link: Box<dyn ControlLink>,
    role: Role,
    setup: &Setup,
    peer: Option<Offer>,
) -> Result<End, WireupError> {
    let (cx, pool, ledger) = setup.context();
    let transport = ShmTransport::new(setup.options.clone());
    let mine = transport.offer(&cx).unwrap();
    let peer = peer.unwrap_or_else(|| mine.clone());
    let mut slot = Some(link);
    let mut lane = transport.join(role, mine, peer, &mut slot, cx).await?;
    let back = lane.drive.as_mut().unwrap().adopt_link(slot.take().unwrap());
    assert!(back.is_none());
    Ok(End { lane, pool, ledger })
}

pub async fn pair_of(a: &Setup, b: &Setup) -> (End, End) {
    let (link_a, link_b) = links().await;
    let offer = |s: &Setup| ShmTransport::new(s.options.clone()).offer(&s.context().0).unwrap();
    let ends = futures::future::join(
        try_end(link_a, Role::Client, a, Some(offer(b))),
        try_end(link_b, Role::Server, b, Some(offer(a))),
    );
    let (a, b) = ends.await;
    (a.unwrap(), b.unwrap())
}

pub async fn pair(setup: &Setup) -> (End, End) {
    pair_of(setup, setup).await
}

/// Of both ends, arenas and a pool that a few messages fill.
pub fn scarce() -> Setup {
    let mut setup = Setup { pool_bytes: 2 << 20, ..Setup::default() };
    setup.options.max_arena_bytes = 4 << 20;
    setup
}

/// All of a pool.
pub fn exhausted(pool: &BufPool) -> Vec<PinnedBufMut> {
    std::iter::from_fn(|| pool.try_alloc(64 << 10).ok()).collect()
}

/// Has one message after another pass, until one waits; its number, and all that came before it.
pub async fn until_one_waits(mut pass: impl AsyncFnMut(u64) -> Vec<Frame>) -> (u64, Vec<Frame>) {
    // Simulated: it passes once nothing is left that could go on.
    const WAITS: Duration = Duration::from_millis(200);
    tokio::time::pause();
    let (mut seq, mut came) = (1, Vec::new());
    while let Ok(frames) = tokio::time::timeout(WAITS, pass(seq)).await {
        came.extend(frames);
        seq += 1;
    }
    tokio::time::resume();
    (seq, came)
}

pub fn body(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ seed ^ (i >> 9)) as u8).collect()
}

/// A window of one pattern, which is made once: told from its neighbours, and soon there.
pub fn window(len: usize, seed: usize) -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let pattern = PATTERN.get_or_init(|| body((1 << 20) + 4096, 0));
    &pattern[seed % 4096..][..len]
}

pub fn data(seq: u64, payload: impl Into<Message>) -> Frame {
    Frame { kind: FrameKind::Data, ack: false, seq, payload: payload.into() }
}

/// Tries a property of lanes, which takes far longer than one of decoders: `usual` cases, and of more than that are asked for
/// (`PROPTEST_CASES`) a part; of fewer all. A runner of its own, since the macro's takes the number that is asked for.
pub fn try_cases<S: Strategy, F: Future<Output = ()>>(
    usual: u32,
    strategy: &S,
    play: impl Fn(S::Value) -> F,
) {
    let all = ProptestConfig::default().cases;
    let cases = all.min(usual.max(all / 20));
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let done = TestRunner::new(config).run(strategy, |value| {
        run(play(value));
        Ok(())
    });
    done.unwrap_or_else(|failed| panic!("{failed}"));
}

/// Runs to the end, or fails after a minute.
pub fn run<F: Future>(f: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(std::time::Duration::from_secs(60), f).await.expect("hangs") })
}

impl End {
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        self.lane.drive.as_mut().unwrap().poll_drive(cx, Instant::now()).unwrap();
    }

    /// Memory of the lane, driven meanwhile.
    pub async fn alloc(&mut self, len: usize) -> PinnedBufMut {
        std::future::poll_fn(|cx| {
            self.drive(cx);
            self.lane.tx.poll_alloc(cx, len)
        })
        .await
        .unwrap()
    }

    /// Sends one frame and flushes.
    pub async fn send(&mut self, frame: Frame) -> Result<(), LaneError> {
        let len = frame.payload.len();
        std::future::poll_fn(|cx| {
            self.drive(cx);
            self.lane.tx.poll_ready(cx, len)
        })
        .await?;
        self.lane.tx.start_send(frame, false).map_err(|r| r.error)?;
        self.flush().await
    }

    pub async fn flush(&mut self) -> Result<(), LaneError> {
        std::future::poll_fn(|cx| {
            self.drive(cx);
            self.lane.tx.poll_flush(cx)
        })
        .await
    }

    /// The next frames; empty at the end.
    pub async fn recv(&mut self) -> Result<Vec<Frame>, LaneError> {
        let mut out = Batch::new();
        std::future::poll_fn(|cx| {
            self.drive(cx);
            self.lane.rx.poll_recv(cx, &mut out)
        })
        .await?;
        Ok(out.drain().collect())
    }
}
