//! A small reactor over tokio, and pairs of lanes.
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
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use zc_core::memory::{BufPool, CopyLedger, Message};
use zc_core::transport::*;
use zc_transport_tcp::{StreamLinks, TcpTransport};

pub struct TokioReactor;
struct Fd(AsyncFd<OwnedFd>);
struct Sleep(Option<Pin<Box<tokio::time::Sleep>>>);
struct Task(Option<tokio::task::JoinHandle<()>>);

fn running() -> io::Result<()> {
    let here = tokio::runtime::Handle::try_current();
    here.map(drop).map_err(|e| io::Error::new(io::ErrorKind::NotConnected, e))
}

impl Reactor for TokioReactor {
    fn register(&self, fd: OwnedFd) -> io::Result<Box<dyn Readiness>> {
        // SAFETY: an OwnedFd stays open and is the same descriptor until it is dropped.
        let watched = unsafe { AsyncFd::register(fd) };
        Ok(Box::new(Fd(watched.map_err(io::Error::from)?)))
    }
    fn timer(&self) -> io::Result<Box<dyn Timer>> {
        running()?;
        Ok(Box::new(Sleep(None)))
    }
    fn spawn(&self, task: BoxFuture<'static, ()>) -> io::Result<Box<dyn TaskHandle>> {
        running()?;
        Ok(Box::new(Task(Some(tokio::spawn(task)))))
    }
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

impl Readiness for Fd {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(match interest {
                Interest::Read => self.0.poll_read_ready(cx),
                Interest::Write => self.0.poll_write_ready(cx),
            })?;
            if let Ok(done) = guard.try_io(|fd| io(fd.as_fd())) {
                return Poll::Ready(done);
            }
        }
    }
}

impl Timer for Sleep {
    fn reset(&mut self, at: Instant) {
        self.0 = Some(Box::pin(tokio::time::sleep_until(at.into())));
    }
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().map_or(Poll::Pending, |s| s.as_mut().poll(cx))
    }
}

impl TaskHandle for Task {
    fn detach(mut self: Box<Self>) {
        self.0.take();
    }
}
impl Drop for Task {
    fn drop(&mut self) {
        if let Some(t) = self.0.take() {
            t.abort();
        }
    }
}

pub struct End {
    pub lane: Lane,
    pub pool: BufPool,
    pub ledger: Arc<CopyLedger>,
}

pub async fn links(addr: LinkAddr) -> (Box<dyn ControlLink>, Box<dyn ControlLink>) {
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor);
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
    let cx = OfferContext::new(Arc::new(TokioReactor), pool.clone(), ledger.clone(), limits);
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
