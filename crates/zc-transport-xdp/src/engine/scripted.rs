//! For tests: an engine whose port and runtime are the test's, and whose task is polled by hand. No clock, and no timer ever goes off.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use zc_core::memory::{BufPool, CopyLedger, Message};
use zc_core::transport::{
    BoxFuture, Frame, FrameKind, LaneLimits, OfferContext, Reactor, Readiness, TaskHandle, Timer,
};

use super::{Conn, Datagram, Destination, Engine, Port, Sink};
use crate::protocol::{Memory, Offer, Session, SessionOptions, Side, Transmit};

/// Counts its calls.
#[derive(Default)]
pub(crate) struct Calls(AtomicUsize);

impl Calls {
    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        self.clone().into()
    }

    /// Since the last time.
    pub(crate) fn take(&self) -> usize {
        self.0.swap(0, SeqCst)
    }
}

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[derive(Default)]
struct Wire {
    came: Mutex<VecDeque<Vec<u8>>>,
    /// The engine's task, which is told of what comes.
    reader: AtomicWaker,
    is_broken: AtomicBool,
}

impl Wire {
    fn take(&self, sink: &mut Sink<'_>) -> io::Result<bool> {
        if self.is_broken.load(SeqCst) {
            return Err(io::ErrorKind::NetworkDown.into());
        }
        let came: Vec<_> = self.came.lock().drain(..).collect();
        came.iter().for_each(|datagram| sink(Datagram::Shown(datagram)));
        Ok(!came.is_empty())
    }
}

struct WirePort(Arc<Wire>);

impl Port for WirePort {
    fn receive(&self, _: bool, sink: &mut Sink<'_>) -> io::Result<bool> {
        self.0.take(sink)
    }

    fn poll_receive(&self, cx: &mut Context<'_>, sink: &mut Sink<'_>) -> Poll<io::Result<()>> {
        if self.0.take(sink)? {
            return Poll::Ready(Ok(()));
        }
        self.0.reader.register(cx.waker());
        Poll::Pending
    }

    /// What the peer hears does not matter.
    fn send(&self, _: &Destination, packets: &[Transmit]) -> io::Result<usize> {
        Ok(packets.len())
    }

    fn poll_send(
        &self,
        _: &mut Context<'_>,
        send: &mut dyn FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(send())
    }
}

/// Keeps the task for who polls it.
struct ByHand {
    now: Instant,
    task: Mutex<Option<BoxFuture<'static, ()>>>,
}

struct Never;

impl Timer for Never {
    fn reset(&mut self, _: Instant) {}
    fn poll_expired(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl TaskHandle for Never {
    fn detach(self: Box<Self>) {}
}

impl Reactor for ByHand {
    fn register(&self, _: OwnedFd) -> io::Result<Box<dyn Readiness>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn timer(&self) -> io::Result<Box<dyn Timer>> {
        Ok(Box::new(Never))
    }
    fn spawn(&self, task: BoxFuture<'static, ()>) -> io::Result<Box<dyn TaskHandle>> {
        *self.task.lock() = Some(task);
        Ok(Box::new(Never))
    }
    fn now(&self) -> Instant {
        self.now
    }
}

/// An engine with one session, and the peer of that.
pub(crate) struct Scripted {
    pub(crate) engine: Arc<Engine>,
    pub(crate) conn: Arc<Conn>,
    pub(crate) cx: OfferContext,
    /// What has called the engine's task.
    pub(crate) calls: Arc<Calls>,
    wire: Arc<Wire>,
    runtime: Arc<ByHand>,
    peer: Session,
    sent: u64,
}

impl Scripted {
    pub(crate) fn new() -> Self {
        let (wire, now) = (Arc::<Wire>::default(), Instant::now());
        let runtime = Arc::new(ByHand { now, task: Mutex::default() });
        let pool = BufPool::builder().max_bytes(16 << 20).build();
        let cx =
            OfferContext::new(runtime.clone(), pool, Arc::<CopyLedger>::default(), LaneLimits::default());
        let options = SessionOptions::default();
        let offers = [3, 4].map(|random| Offer::new(&options, &[random; 36]));
        let session = |side, mine: usize| {
            let memory = Memory { pool: cx.pool.clone(), ledger: cx.ledger.clone() };
            Session::new(side, &offers[mine], &offers[1 - mine], &options, memory, 1, now).unwrap()
        };
        let (ours, peer) = (session(Side::Client, 0), session(Side::Server, 1));
        let engine = Engine::new(Box::new(WirePort(wire.clone())), runtime.clone());
        let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let conn = engine.join(offers[0].session(), ours, Destination::Kernel(nowhere.into())).unwrap();
        let calls = Arc::default();
        let mut scripted = Self { engine, conn, cx, calls, wire, runtime, peer, sent: 0 };
        scripted.turn();
        scripted
    }

    /// Polls the engine's task; whether it has called itself.
    pub(crate) fn turn(&mut self) -> bool {
        self.calls.take();
        let mut task = self.runtime.task.lock();
        let polled = task.as_mut().unwrap().as_mut().poll(&mut Context::from_waker(&self.calls.waker()));
        assert!(polled.is_pending() || !self.engine.works());
        self.calls.take() > 0
    }

    /// A message comes, in a packet.
    pub(crate) fn comes(&mut self) {
        self.sent += 1;
        let payload = Message::from(vec![5; 100]);
        let frame = Frame { kind: FrameKind::Data, ack: false, seq: self.sent, payload };
        self.peer.send(frame, None).unwrap();
        let mut packet = Transmit::default();
        while self.peer.poll_transmit(self.runtime.now, &mut packet) {
            self.wire.came.lock().push_back(packet.to_datagram());
        }
        self.wire.reader.wake();
    }

    /// Whether something that came was received by nobody.
    pub(crate) fn lies_there(&self) -> bool {
        !self.wire.came.lock().is_empty()
    }

    /// The port has an error from now on.
    pub(crate) fn breaks(&self) {
        self.wire.is_broken.store(true, SeqCst);
    }

    /// It has none any more.
    pub(crate) fn mends(&self) {
        self.wire.is_broken.store(false, SeqCst);
    }
}
