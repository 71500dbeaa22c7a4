//! A transport that records what crosses its lanes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::around::{Around, transport_around};
use crate::memory::{MemoryGroup, PinnedBufMut, RegisterError};
use crate::transport::{
    AllocFailure, Batch, Frame, FrameKind, Lane, LaneError, LaneRx, LaneTx, OfferContext, PipedFrame,
    PipedRejected, Reactor, Received, Role, SendRejected, SendReport, SendToken, Transport, WireupError,
};

/// Events that a [`Trace`] keeps; later ones are counted only.
pub const MAX_TRACE_EVENTS: usize = 65_536;

/// What crossed one end of a lane.
///
/// ```
/// use zc::testing::{Crossing, Trace};
///
/// fn bytes_sent(trace: &Trace) -> usize {
///     let len = |what: &Crossing| if let Crossing::Sent { len, .. } = what { *len } else { 0 };
///     trace.events().iter().map(|event| len(&event.what)).sum()
/// }
/// assert_eq!(bytes_sent(&Trace::default()), 0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Crossing {
    /// The lane took a frame.
    Sent {
        /// What it carries.
        kind: FrameKind,
        /// Its sequence number; 0 for session records.
        seq: u64,
        /// Bytes of payload.
        len: usize,
    },
    /// A frame came out of the lane.
    Received {
        /// What it carries.
        kind: FrameKind,
        /// Its sequence number; 0 for session records.
        seq: u64,
        /// Bytes of payload.
        len: usize,
    },
    /// The peer's lane sends no more.
    Closed,
    /// The lane failed, in words.
    Failed(String),
}

/// One line of a [`Trace`].
///
/// ```
/// let trace = zc::testing::Trace::default();
/// for event in trace.events() {
///     println!("{event}"); // 1.5ms 1 Client -> Data seq 1 5 B
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TraceEvent {
    /// Since the first lane came up, by the reactor's clock.
    pub at: Duration,
    /// The number of the lane's end, in the order in which they came up.
    pub lane: u64,
    /// Which end it is.
    pub role: Role,
    /// What crossed.
    pub what: Crossing,
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12?} {} {:?} ", self.at, self.lane, self.role)?;
        match &self.what {
            Crossing::Sent { kind, seq, len } => write!(f, "-> {kind:?} seq {seq} {len} B"),
            Crossing::Received { kind, seq, len } => write!(f, "<- {kind:?} seq {seq} {len} B"),
            Crossing::Closed => f.write_str("closed"),
            Crossing::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// What a [`Tracer`] has recorded. Cheap to clone; all clones see the same.
///
/// ```
/// use zc::testing::{Tracer, mem_transport};
///
/// let tracer = Tracer::new(mem_transport());
/// let trace = tracer.trace(); // before the tracer goes into a fabric
/// assert!(trace.events().is_empty());
/// assert_eq!(trace.lost(), 0);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Mutex<Record>>);

#[derive(Debug, Default)]
struct Record {
    began: Option<Instant>,
    events: Vec<TraceEvent>,
    lost: u64,
}

impl Trace {
    /// Everything recorded so far, in order.
    pub fn events(&self) -> Vec<TraceEvent> {
        self.0.lock().events.clone()
    }

    /// Events beyond [`MAX_TRACE_EVENTS`].
    pub fn lost(&self) -> u64 {
        self.0.lock().lost
    }
}

/// Wraps a transport and records what crosses its lanes, session records included.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use zc::testing::{Crossing, Tracer, fabric_over, mem_transport, pair};
///
/// let tracer = Tracer::new(mem_transport());
/// let trace = tracer.trace();
/// let (client, mut server) = pair(&fabric_over(Arc::new(tracer)).build()?).await?;
/// client.send(&b"hello"[..]).await?;
/// server.recv().await?;
/// let sent = trace.events().into_iter().find(|event| matches!(event.what, Crossing::Sent { len: 5, .. }));
/// println!("{}", sent.ok_or("nothing was sent")?); // 0ns 1 Client -> Data seq 1 5 B
/// # Ok(()) }
/// ```
pub struct Tracer {
    inner: Arc<dyn Transport>,
    trace: Trace,
    lanes: AtomicU64,
}

impl Tracer {
    /// `inner`, watched. It keeps the name of `inner`.
    pub fn new(inner: Arc<dyn Transport>) -> Self {
        Self { inner, trace: Trace::default(), lanes: AtomicU64::new(0) }
    }

    /// What is being recorded.
    pub fn trace(&self) -> Trace {
        self.trace.clone()
    }
}

impl Around for Tracer {
    fn inner(&self) -> &Arc<dyn Transport> {
        &self.inner
    }

    fn wrap(&self, lane: Lane, role: Role, cx: &OfferContext) -> Result<Lane, WireupError> {
        let number = self.lanes.fetch_add(1, Ordering::Relaxed);
        let pen = Pen { trace: self.trace.clone(), lane: number, role, reactor: cx.reactor.clone() };
        Ok(Lane {
            tx: Box::new(TraceTx { inner: lane.tx, pen: pen.clone() }),
            rx: Box::new(TraceRx { inner: lane.rx, pen }),
            ..lane
        })
    }
}

transport_around!(Tracer);

/// Writes for one end of one lane.
#[derive(Clone)]
struct Pen {
    trace: Trace,
    lane: u64,
    role: Role,
    reactor: Arc<dyn Reactor>,
}

impl Pen {
    fn write(&self, what: Crossing) {
        let now = self.reactor.now();
        let mut record = self.trace.0.lock();
        if record.events.len() >= MAX_TRACE_EVENTS {
            record.lost += 1;
            return;
        }
        let at = now.saturating_duration_since(*record.began.get_or_insert(now));
        record.events.push(TraceEvent { at, lane: self.lane, role: self.role, what });
    }

    fn failed(&self, error: &LaneError) {
        self.write(Crossing::Failed(error.to_string()));
    }

    fn received(&self, found: &Result<Received, LaneError>, out: &mut Batch<Frame>) {
        match found {
            Ok(Received::Closed) => self.write(Crossing::Closed),
            Err(error) => self.failed(error),
            Ok(Received::Some) => {
                let mut seen = Batch::new();
                for frame in out.drain() {
                    let (kind, seq, len) = (frame.kind, frame.seq, frame.payload.len());
                    self.write(Crossing::Received { kind, seq, len });
                    seen.push(frame);
                }
                *out = seen;
            }
        }
    }
}

struct TraceTx {
    inner: Box<dyn LaneTx>,
    pen: Pen,
}

impl LaneTx for TraceTx {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        self.inner.poll_alloc(cx, len)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), LaneError>> {
        self.inner.poll_ready(cx, len).map_err(|error| {
            self.pen.failed(&error);
            error
        })
    }

    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        let (kind, seq, len) = (frame.kind, frame.seq, frame.payload.len());
        let taken = self.inner.start_send(frame, report);
        match &taken {
            Ok(_) => self.pen.write(Crossing::Sent { kind, seq, len }),
            Err(rejected) => self.pen.failed(&rejected.error),
        }
        taken
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.inner.poll_flush(cx)
    }

    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>> {
        self.inner.poll_completions(cx, out)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.inner.poll_close(cx)
    }

    fn join_group(&mut self, group: &MemoryGroup) -> Result<(), RegisterError> {
        self.inner.join_group(group)
    }

    fn leave_group(&mut self, group: &MemoryGroup) {
        self.inner.leave_group(group);
    }

    fn abandon(&mut self, each: &mut dyn FnMut(Frame)) {
        self.inner.abandon(each);
    }

    fn takes_pipes(&self) -> bool {
        self.inner.takes_pipes()
    }

    fn start_send_piped(&mut self, frame: PipedFrame, report: bool) -> Result<SendToken, PipedRejected> {
        let (kind, seq, len) = (FrameKind::Data, frame.seq, frame.payload.len());
        let taken = self.inner.start_send_piped(frame, report);
        match &taken {
            Ok(_) => self.pen.write(Crossing::Sent { kind, seq, len }),
            Err(rejected) => self.pen.failed(&rejected.error),
        }
        taken
    }
}

struct TraceRx {
    inner: Box<dyn LaneRx>,
    pen: Pen,
}

impl LaneRx for TraceRx {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        self.inner.poll_recv(cx, out).map(|found| {
            self.pen.received(&found, out);
            found
        })
    }

    fn release(&mut self, bytes: usize) {
        self.inner.release(bytes);
    }

    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        let found = self.inner.try_recv(out).transpose();
        if let Some(found) = &found {
            self.pen.received(found, out);
        }
        found.transpose()
    }

    fn stop(&mut self) {
        self.inner.stop();
    }
}
