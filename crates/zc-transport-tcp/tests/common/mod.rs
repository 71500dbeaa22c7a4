//! Pairs of lanes.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    unreachable_pub
)]

pub mod script;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

pub use zc::TokioReactor;
use zc_core::memory::{BufPool, CopyLedger, Message};
use zc_core::transport::*;
use zc_transport_tcp::{StreamLinks, TcpTransport};

pub struct End {
    pub lane: Lane,
    pub pool: BufPool,
    pub ledger: Arc<CopyLedger>,
}

pub async fn links(addr: LinkAddr) -> (Box<dyn ControlLink>, Box<dyn ControlLink>) {
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let mut listener = StreamLinks.bind(&addr, &reactor).await.unwrap();
    let local = listener.local();
    let a = StreamLinks.connect(&local, &reactor).await.unwrap();
    let b = std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
    (a, b)
}

pub async fn end(link: Box<dyn ControlLink>, limits: LaneLimits) -> End {
    end_with(link, limits, BufPool::builder().max_bytes(256 << 20).build()).await
}

pub async fn end_with(link: Box<dyn ControlLink>, limits: LaneLimits, pool: BufPool) -> End {
    let ledger = Arc::new(CopyLedger::new());
    let cx = OfferContext::new(Arc::new(TokioReactor::new()), pool.clone(), ledger.clone(), limits);
    let mut slot = Some(link);
    let t = TcpTransport;
    let lane = t.join(Role::Client, Offer::default(), Offer::default(), &mut slot, cx).await.unwrap();
    End { lane, pool, ledger }
}

pub async fn pair(addr: LinkAddr, limits: LaneLimits) -> (End, End) {
    let (a, b) = links(addr).await;
    (end(a, limits).await, end(b, limits).await)
}

pub fn tcp() -> LinkAddr {
    LinkAddr::Tcp("127.0.0.1:0".into())
}

/// Where what was written is at the peer when the call returns.
pub fn unix() -> LinkAddr {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    LinkAddr::UnixAbstract(format!("zc-test-{}-{n}", std::process::id()))
}

pub fn run<F: Future>(f: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(Duration::from_secs(60), f).await.expect("hangs") })
}

pub fn body(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ seed ^ (i >> 9)) as u8).collect()
}

pub fn frame(seq: u64, payload: Message) -> Frame {
    Frame { kind: FrameKind::Data, ack: false, seq, payload }
}

impl End {
    /// What is there now; `None`: nothing.
    pub fn look(&mut self) -> Option<Result<Vec<Frame>, LaneError>> {
        let mut out = Batch::new();
        match self.lane.rx.poll_recv(&mut Context::from_waker(Waker::noop()), &mut out) {
            Poll::Pending => None,
            Poll::Ready(done) => Some(done.map(|_| out.drain().collect())),
        }
    }

    /// The next frames; none at the end.
    pub async fn recv(&mut self) -> Result<Vec<Frame>, LaneError> {
        let mut out = Batch::new();
        std::future::poll_fn(|cx| self.lane.rx.poll_recv(cx, &mut out)).await?;
        Ok(out.drain().collect())
    }

    pub async fn send(&mut self, seq: u64, payload: impl Into<Message>) {
        let message = payload.into();
        std::future::poll_fn(|cx| self.lane.tx.poll_ready(cx, message.len())).await.unwrap();
        self.lane.tx.start_send(frame(seq, message), false).unwrap();
        std::future::poll_fn(|cx| self.lane.tx.poll_flush(cx)).await.unwrap();
    }

    pub fn drive(&mut self) -> Option<Instant> {
        let mut cx = Context::from_waker(Waker::noop());
        self.lane.drive.as_mut().unwrap().poll_drive(&mut cx, tokio::time::Instant::now().into_std()).unwrap()
    }
}
