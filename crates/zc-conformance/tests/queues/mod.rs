//! A transport that moves whole messages, without unsafe code and without a byte stream: frames in queues
//! between two ends of one process, which find each other by the offers that the wire-up exchanges.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, ready};

use futures::task::AtomicWaker;
use zc::memory::{AllocWaiter, CopyPlace, LeaseBudget, PinnedBufMut, copy_payload};
use zc::transport::*;
use zc::{Fabric, FabricBuilder};

/// Everything that is compiled in, and the transport of this file: `zc+queues://host:port`.
pub(crate) fn fabric() -> FabricBuilder {
    Fabric::auto_builder().transport(Arc::new(Queues))
}

/// Ends that wait for the other one, by the server's offer; the oldest is given up for a newer one.
static WAITING: Mutex<BTreeMap<Vec<u8>, [Arc<Pipe>; 2]>> = Mutex::new(BTreeMap::new());
const MAX_WAITING: usize = 1024;
/// Frames in a queue at most; records of the session need no credit, but they are bounded too.
const MAX_FRAMES: usize = 4096;
/// An offer is a number that tells this process from all others, and one that tells it from other offers.
static PROCESS: LazyLock<u64> = LazyLock::new(|| getrandom::u64().unwrap_or_default());
static NEXT: AtomicU64 = AtomicU64::new(0);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Queues;

impl Transport for Queues {
    fn name(&self) -> &'static str {
        "queues"
    }

    fn probe(&self) -> Result<Caps, Unavailable> {
        let mut caps = Caps::stream(); // what a plain copying stream can do
        caps.scope = Scope::Process;
        Ok(caps)
    }

    fn offer(&self, _cx: &OfferContext) -> Result<Offer, Unavailable> {
        let name = [*PROCESS, NEXT.fetch_add(1, Relaxed)];
        Ok(Offer { version: 1, bytes: name.into_iter().flat_map(u64::to_le_bytes).collect() })
    }

    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        peer: Offer,
        _link: &'a mut Option<Box<dyn ControlLink>>, // stays open, and tells when the peer dies
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async move {
            if !peer.bytes.starts_with(&PROCESS.to_le_bytes()) {
                let remedy = "connect inside one process".into();
                return Err(Unavailable::Other { code: "other_process", remedy }.into());
            }
            let name = if role == Role::Server { mine.bytes } else { peer.bytes };
            let [mut out, mut back] = meet(&name);
            if role == Role::Server {
                std::mem::swap(&mut out, &mut back);
            }
            let leases = LeaseBudget::new(cx.limits.lease_soft, cx.limits.lease_hard);
            let tx = Tx { to: out, cx: cx.clone(), waiter: AllocWaiter::new(), reports: VecDeque::new() };
            let grants = Arc::new(Grants { to: back.clone(), leases: Arc::downgrade(&leases) });
            let rx = Rx { name, from: back, cx, leases: leases.clone(), grants, waiter: AllocWaiter::new() };
            Ok(Lane {
                tx: Box::new(tx),
                rx: Box::new(rx),
                drive: None,
                remote: None,
                caps: self.probe()?,
                leases,
            })
        })
    }
}

/// The pipes from client to server and back: made by who comes first, taken by who comes second.
fn meet(name: &[u8]) -> [Arc<Pipe>; 2] {
    let mut waiting = lock(&WAITING);
    waiting.remove(name).unwrap_or_else(|| {
        if waiting.len() == MAX_WAITING {
            waiting.pop_first();
        }
        let pipes = <[Arc<Pipe>; 2]>::default();
        waiting.insert(name.to_owned(), pipes.clone());
        pipes
    })
}

/// One direction.
#[derive(Default)]
struct Pipe {
    state: Mutex<State>,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Frame>,
    frames: [u64; 2],  // in and out
    payload: [u64; 2], // sent, and granted back
    taken: u64,        // by the application
    ended: bool,
}

impl Pipe {
    /// Either end is done with it, or gone.
    fn end(&self) {
        lock(&self.state).ended = true;
        self.reader.wake();
        self.writer.wake();
    }
}

struct Tx {
    to: Arc<Pipe>,
    cx: OfferContext,
    waiter: AllocWaiter,
    reports: VecDeque<SendToken>,
}

impl LaneTx for Tx {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        self.cx.pool.poll_alloc(len, &mut self.waiter, cx).map_err(AllocFailure::from)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, _len: usize) -> Poll<Result<(), LaneError>> {
        self.to.writer.register(cx.waker()); // before looking: what changes in between wakes us
        let state = lock(&self.to.state);
        let no_credit = state.payload[0] - state.payload[1] >= self.cx.limits.send_window.into();
        match no_credit || state.queue.len() >= MAX_FRAMES / 2 {
            _ if state.ended => Poll::Ready(Err(LaneError::Closed)),
            true => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }

    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        let mut state = lock(&self.to.state);
        if state.ended || state.queue.len() >= MAX_FRAMES {
            return Err(SendRejected { frame, error: LaneError::Closed });
        }
        if frame.kind == FrameKind::Data {
            state.payload[0] += frame.payload.len() as u64;
        }
        state.frames[0] += 1;
        let token = SendToken(state.frames[0]);
        state.queue.push_back(frame);
        self.reports.extend(report.then_some(token));
        Ok(token)
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.to.reader.wake();
        Poll::Ready(Ok(()))
    }

    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>> {
        self.to.writer.register(cx.waker());
        let copied = lock(&self.to.state).frames[1];
        while self.reports.front().is_some_and(|token| token.0 <= copied) && !out.is_full() {
            out.push((self.reports.pop_front().unwrap_or(SendToken(0)), SendReport::Sent));
        }
        if out.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.to.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        self.to.end();
    }
}

/// Credit goes back as the application takes messages, unless it holds too much: then it waits for less.
struct Grants {
    to: Arc<Pipe>,
    leases: Weak<LeaseBudget>, // which keeps us as its waker
}

impl Grants {
    fn give(self: &Arc<Self>) {
        let waker = self.clone().into();
        let Some(leases) = self.leases.upgrade() else { return };
        if leases.poll_below_hard(&mut Context::from_waker(&waker)).is_ready() {
            let mut state = lock(&self.to.state);
            state.payload[1] = state.taken;
            drop(state);
            self.to.writer.wake();
        }
    }
}

impl Wake for Grants {
    fn wake(self: Arc<Self>) {
        self.give();
    }
}

struct Rx {
    name: Vec<u8>,
    from: Arc<Pipe>,
    cx: OfferContext,
    leases: Arc<LeaseBudget>,
    grants: Arc<Grants>,
    waiter: AllocWaiter,
}

impl Rx {
    /// The next frame, in memory of this end; `None` at the end. Without a context nothing is armed.
    fn poll_frame(&mut self, cx: Option<&mut Context<'_>>) -> Poll<Result<Option<Frame>, LaneError>> {
        if let Some(cx) = &cx {
            self.from.reader.register(cx.waker());
        }
        let state = lock(&self.from.state);
        let (ended, front) = (state.ended, state.queue.front().map(|f| f.payload.len()));
        drop(state);
        let Some(len) = front else {
            return if ended { Poll::Ready(Ok(None)) } else { Poll::Pending };
        };
        let buf = match cx {
            Some(cx) => ready!(self.cx.pool.poll_alloc(len, &mut self.waiter, cx)),
            None => match self.cx.pool.try_alloc(len) {
                Err(_) => return Poll::Pending, // poll_recv waits, or says why
                buf => buf,
            },
        };
        let mut buf = buf.map_err(|error| LaneError::Memory(error.to_string()))?;
        buf.attach_lease(self.leases.clone());
        let Some(frame) = lock(&self.from.state).queue.pop_front() else { return Poll::Pending };
        for part in frame.payload.segments() {
            let to = &mut buf.unfilled_mut()[..part.len()];
            copy_payload(to, part, &self.cx.ledger, CopyPlace::CopyOut);
            buf.advance(part.len());
        }
        let copy = Frame { payload: buf.into(), ..frame }; // drops the sender's buffers
        lock(&self.from.state).frames[1] += 1;
        self.from.writer.wake();
        Poll::Ready(Ok(Some(copy)))
    }
}

fn found(frame: Option<Frame>, out: &mut Batch<Frame>) -> Received {
    let Some(frame) = frame else { return Received::Closed };
    out.push(frame);
    Received::Some
}

impl LaneRx for Rx {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        let frame = ready!(self.poll_frame(Some(cx)))?;
        Poll::Ready(Ok(found(frame, out)))
    }

    fn release(&mut self, bytes: usize) {
        lock(&self.from.state).taken += bytes as u64;
        self.grants.give();
    }

    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        let Poll::Ready(frame) = self.poll_frame(None) else { return Ok(None) };
        Ok(Some(found(frame?, out)))
    }
}

impl Drop for Rx {
    fn drop(&mut self) {
        self.from.end();
        let unread = std::mem::take(&mut lock(&self.from.state).queue);
        let never_met = lock(&WAITING).remove(&self.name);
        drop((unread, never_met)); // outside of the locks
    }
}
