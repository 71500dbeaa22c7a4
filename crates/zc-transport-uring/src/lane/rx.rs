//! The receiving half.
//!
//! There are two ways to receive, chosen by what has come lately (see [`Parser`]).
//!
//! **In pieces**, as a rule: the kernel puts what comes into the engine's receive buffers by itself, and messages are slices of
//! them, long ones ropes of slices. The engine's buffers are everybody's, so what is kept of them counts as this lane's
//! ([`Holder`]), whole buffers at a time; past the soft lease it is copied out.
//!
//! **Exactly**, around very long messages: the socket is made quiet, and the rest of a body and the next head are read
//! straight to where they belong. Only when the socket has nothing an operation waits for it, one at a time: it receives much
//! of a body, so that nobody is woken for each part, or the rest of a head into a little of the lane's own.
//!
//! ```text
//! pieces --a very long message, or the engine has no memory--> quiet --> exactly
//!   ^                                                                       |
//!   +--------------- so many short ones in a row, between frames -----------+
//! ```
//!
//! **Past the ring** a lane reads while somebody looks for what comes again and again, see [`hot`](super::hot).
//!
//! What lies in an area into which a NIC receives comes **in pieces** only, however long messages are: no other way of reading
//! gets at it. A message that is longer than a rope of such pieces is put together by a copy, and one that waits on the
//! heap for memory, when it is very long, is read no further meanwhile.
//!
//! However much the application holds, receiving goes on: records and grants travel behind messages. What the lease
//! bounds is what the peer may send: its credit. When the pool is exhausted and with it the engine has nothing to receive
//! into, lanes receive exactly as well: a head and a record need none of the pool's memory. Nor does a message that is there in
//! pieces, however short. One that is not all there waits for memory, and has none of the pool's in hand meanwhile: what
//! has come lies on the heap. That is at most what was received ahead ([`MAX_INBOX_BYTES`](crate::MAX_INBOX_BYTES)), or less than
//! [`LARGE_MIN`](crate::LARGE_MIN); for all lanes of an engine together it is at most
//! [`MAX_SPILLED_BYTES`](crate::MAX_SPILLED_BYTES), and those that would need more fail.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use zc_core::memory::{AllocError, AllocWaiter, BufPool, Holder, PinnedBuf, PinnedBufMut};
use zc_core::stream::{Life, Parser};
use zc_core::transport::{Batch, Frame, LaneError, LaneRx, OfferContext, Reactor, Received};

use super::hot::Hot;
use crate::engine::{Op, SocketRx, Spilled};
use crate::limits::{DIRECT_BYTES, LARGE_MIN, READS_PER_POLL, SCRATCH_BYTES, SLOW_RECEIVE_MS};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pieces,
    Exactly,
}

/// Where an operation receives into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The memory of the body under way.
    Body,
    /// A piece that ends the rope under way.
    Tail,
    /// The lane's own: a head, or a record that lies on the heap.
    Scratch,
}

struct Direct {
    op: Op<PinnedBufMut>,
    target: Target,
    /// Bytes that were in the buffer before.
    had_bytes: usize,
    /// It comes back when all of them are there.
    all: bool,
    began: Instant,
}

/// After so long a body that is on its way has to show life.
const SLOW_RECEIVE: Duration = Duration::from_millis(SLOW_RECEIVE_MS);

pub(super) struct Rx {
    /// `None` once nothing more is read.
    socket: Option<SocketRx>,
    parser: Parser,
    holder: Holder,
    /// What lies on the heap, of what may for all lanes of the engine together.
    spilled: Spilled,
    /// What comes lies in an area: it can't be read in another way.
    in_pieces_only: bool,
    hot: Hot,
    /// Others get their turn, and it goes on at once: nobody sleeps.
    gives_way: bool,
    mode: Mode,
    direct: Option<Direct>,
    /// Away while it is received into.
    scratch: Option<PinnedBufMut>,
    /// Whom `direct` is to wake: a poll that arms nothing must not replace it.
    armed: Option<Waker>,
    pool: BufPool,
    waiter: AllocWaiter,
    /// What the peer was promised room for. Longer messages leave a share of the pool to others: a header alone
    /// takes the memory for them.
    granted_bytes: usize,
    life: Life,
    reactor: Arc<dyn Reactor>,
    /// A body took long to come: each part of it is a sign of life. What has come since when.
    slow: Option<(Instant, usize)>,
    failed: Option<LaneError>,
}

impl Rx {
    pub(super) fn new(
        socket: SocketRx,
        cx: &OfferContext,
        mut parser: Parser,
        scratch: PinnedBufMut,
        life: Life,
    ) -> Self {
        let in_pieces_only = socket.is_into_area();
        parser.set_exact_min(if in_pieces_only { usize::MAX } else { LARGE_MIN });
        if socket.kernel_copies().is_none() {
            parser.kernel_may_not_copy();
        }
        let holder = Holder::new(parser.leases().clone());
        let spilled = socket.spilled();
        Self {
            socket: Some(socket),
            parser,
            holder,
            spilled,
            in_pieces_only,
            hot: Hot::default(),
            gives_way: false,
            mode: Mode::Pieces,
            direct: None,
            scratch: Some(scratch),
            armed: None,
            pool: cx.pool.with_origin("uring rx"),
            waiter: AllocWaiter::new(),
            granted_bytes: cx.limits.recv_window as usize,
            life,
            reactor: cx.reactor.clone(),
            slow: None,
            failed: None,
        }
    }

    /// Without a context nothing is armed.
    fn recv(
        &mut self,
        cx: Option<&mut Context<'_>>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone()));
        }
        let sleeps = cx.is_some();
        let done = match self.recv_some(cx, out) {
            Poll::Pending => {
                // An idle connection holds no memory.
                self.holder.rest();
                if sleeps && !std::mem::take(&mut self.gives_way) {
                    self.hot.cool();
                }
                return Poll::Pending;
            }
            Poll::Ready(Err(error)) => {
                self.end();
                self.failed = Some(error.clone());
                Err(error)
            }
            Poll::Ready(done) => done,
        };
        // What came in front of a fault is handed out first.
        Poll::Ready(if out.is_empty() { done } else { Ok(Received::Some) })
    }

    /// Nothing more is read: no memory is kept, and no place of those who wait for it. What the kernel still
    /// receives into is the engine's (M2).
    fn end(&mut self) {
        (self.direct, self.socket, self.scratch, self.armed) = (None, None, None, None);
        self.hot.cool();
        self.parser.clear();
        self.spilled.set(0);
        self.holder.rest();
        self.waiter = AllocWaiter::new();
    }

    fn recv_some(
        &mut self,
        mut cx: Option<&mut Context<'_>>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        for _ in 0..READS_PER_POLL {
            self.parse(&mut cx, out)?;
            if !out.is_empty() {
                return Poll::Ready(Ok(Received::Some));
            }
            if self.socket.is_none() {
                return Poll::Ready(Ok(Received::Closed));
            }
            if !ready!(self.read(&mut cx))? {
                if self.parser.is_inside_frame() {
                    let why = "the stream ended in the middle of a frame";
                    return Poll::Ready(Err(LaneError::PeerGone(why)));
                }
                self.end();
            } else if self.parser.is_inside_frame() {
                // Records may wait behind it.
                self.life.show();
            }
        }
        // A fast peer with a huge message: others get their turn.
        if let Some(cx) = cx {
            self.gives_way = true;
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Hands out what is whole.
    fn parse(&mut self, cx: &mut Option<&mut Context<'_>>, out: &mut Batch<Frame>) -> Result<(), LaneError> {
        while !out.is_full() && self.parser.find_head()? {
            let goes_on_in_pieces = !self.parser.reads_exactly() && self.parser.begin_rope();
            if !goes_on_in_pieces && let Some(len) = self.parser.body_wanted() {
                match self.alloc(cx, len) {
                    Poll::Ready(buf) => self.parser.begin_body(buf?),
                    Poll::Pending if self.parser.is_record() => self.parser.begin_body_on_heap(),
                    Poll::Pending => self.parser.go_on_without_memory(),
                }
            }
            // What waits on the heap asks again at each poll.
            if !self.parser.is_spilled() {
                self.leave_queue();
            }
            if !self.parser.take_frame(&self.pool, out)? {
                break;
            }
        }
        self.count_spilled()
    }

    fn count_spilled(&mut self) -> Result<(), LaneError> {
        if self.spilled.set(self.parser.spilled_bytes()) {
            return Ok(());
        }
        let why = "the pool is exhausted, and as much as may waits on the heap: raise the pool's bound";
        Err(LaneError::Memory(why.into()))
    }

    /// Served otherwise: a place that nobody looks after holds up all others.
    fn leave_queue(&mut self) {
        if self.waiter.is_queued() {
            self.waiter = AllocWaiter::new();
        }
    }

    fn alloc(
        &mut self,
        cx: &mut Option<&mut Context<'_>>,
        len: usize,
    ) -> Poll<Result<PinnedBufMut, LaneError>> {
        let (pool, waiter) = (&self.pool, &mut self.waiter);
        let got = match (cx, len > self.granted_bytes) {
            (Some(cx), false) => ready!(pool.poll_alloc(len, waiter, cx)),
            (Some(cx), true) => ready!(pool.poll_alloc_sparing(len, waiter, cx)),
            (None, false) => pool.try_alloc(len),
            (None, true) => pool.try_alloc_sparing(len),
        };
        let got = match got {
            Err(AllocError::Exhausted { .. }) => return Poll::Pending,
            done => done,
        };
        Poll::Ready(got.map_err(|e| LaneError::Memory(e.to_string())))
    }

    /// Takes more of the stream; false at its end.
    fn read(&mut self, cx: &mut Option<&mut Context<'_>>) -> Poll<Result<bool, LaneError>> {
        // Nothing receives by itself for who only looks.
        let may_go_on = cx.is_some() || self.hot.is_hot();
        if self.mode == Mode::Exactly
            && may_go_on
            && self.direct.is_none()
            && !self.parser.reads_exactly()
            && self.parser.body_missing() == 0
        {
            self.mode = Mode::Pieces;
        }
        if self.in_pieces_only && self.parser.body_wanted().is_some_and(|len| len >= LARGE_MIN) {
            // No more of a long one goes to the heap.
            ready!(self.end_spill(cx))?;
        }
        if self.mode == Mode::Pieces
            && cx.is_none()
            && let Some(socket) = self.socket.as_ref().filter(|socket| socket.is_quiet())
        {
            // Nothing will come in pieces.
            if self.hot.is_hot() && !self.hot.has_chunk(&self.pool) {
                // A head and a record need none.
                self.parser.read_exactly();
            }
            if self.parser.reads_exactly() {
                self.mode = Mode::Exactly;
            } else if self.hot.is_hot() {
                let read = self.hot.read(socket, &mut self.parser);
                let n = read.map_err(|e| LaneError::os("read", &e))?;
                return n.map_or(Poll::Pending, |n| Poll::Ready(Ok(n > 0)));
            }
        }
        if self.mode == Mode::Pieces
            && let Some(piece) = ready!(self.next_piece(cx)).map_err(|e| LaneError::os("read", &e))?
        {
            let goes_on = !piece.is_empty();
            if goes_on {
                self.parser.feed(self.holder.hold(piece));
            }
            return Poll::Ready(Ok(goes_on));
        }
        if self.direct.is_none() {
            if let Some(n) = self.read_now()? {
                if cx.is_none()
                    && let Some(socket) = &self.socket
                {
                    self.hot.found(socket, &self.pool);
                }
                return Poll::Ready(Ok(n > 0));
            }
            if cx.is_none() {
                return Poll::Pending;
            }
            ready!(self.begin_direct(cx))?;
        }
        self.poll_direct(cx)
    }

    /// Takes what the socket has, into what comes next in the stream: the rest of the body, and the next head. `None`: it has
    /// nothing.
    fn read_now(&mut self) -> Result<Option<usize>, LaneError> {
        if self.parser.body_missing() > 0 && (self.parser.is_rope() || self.parser.is_spilled()) {
            // What comes next has no memory yet.
            return Ok(None);
        }
        let Some(socket) = &self.socket else { return Err(LaneError::Closed) };
        match socket.try_recv_into(self.parser.spaces(false)) {
            Ok(n) => {
                self.parser.filled(n);
                Ok(Some(n))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(LaneError::os("read", &error)),
        }
    }

    /// What the kernel has received by itself, none of it at the end of the stream; `None`: it does so no more.
    fn next_piece(&mut self, cx: &mut Option<&mut Context<'_>>) -> Poll<io::Result<Option<PinnedBuf>>> {
        let Some(socket) = &mut self.socket else { return Poll::Ready(Ok(Some(PinnedBuf::empty()))) };
        let Some(cx) = cx else {
            let looked = socket.try_recv();
            if matches!(&looked, Poll::Ready(Ok(piece)) if !piece.is_empty()) && !self.in_pieces_only {
                self.hot.found(socket, &self.pool);
            }
            return looked.map_ok(Some);
        };
        if !self.parser.reads_exactly() {
            match socket.poll_recv(cx) {
                Poll::Pending if socket.is_starved() => self.parser.read_exactly(),
                done => return done.map_ok(Some),
            }
        }
        let quiet = socket.poll_quiet(cx);
        // In front of anything else comes what was received before.
        match (socket.try_recv(), quiet) {
            (Poll::Ready(piece), _) => Poll::Ready(piece.map(Some)),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            (Poll::Pending, Poll::Ready(())) => {
                self.mode = Mode::Exactly;
                Poll::Ready(Ok(None))
            }
        }
    }

    /// Begins to receive what is missing next. Pending: there is no memory for it, and none is in hand.
    fn begin_direct(&mut self, cx: &mut Option<&mut Context<'_>>) -> Poll<Result<(), LaneError>> {
        let tail = self.tail(cx)?;
        if tail.is_none() {
            ready!(self.end_spill(cx))?;
        }
        let missing = self.parser.body_missing().min(DIRECT_BYTES);
        let (buf, len, target) = if let Some(tail) = tail {
            (tail, missing, Target::Tail)
        } else if let Some(body) = self.parser.lend_body() {
            (body, missing, Target::Body)
        } else {
            let len = self.wanted_space().len().min(SCRATCH_BYTES);
            let Some(scratch) = self.scratch.take() else { return Poll::Ready(Err(LaneError::Closed)) };
            (scratch, len, Target::Scratch)
        };
        let Some(socket) = &mut self.socket else { return Poll::Ready(Err(LaneError::Closed)) };
        let had_bytes = buf.len();
        let all = target != Target::Scratch && self.slow.is_none();
        let op = socket.recv_into(buf, len, all);
        let began = self.reactor.now();
        self.direct = Some(Direct { op, target, had_bytes, all, began });
        Poll::Ready(Ok(()))
    }

    /// Gives what waits on the heap its memory. Pending: there is none.
    fn end_spill(&mut self, cx: &mut Option<&mut Context<'_>>) -> Poll<Result<(), LaneError>> {
        if let (true, Some(len)) = (self.parser.is_spilled(), self.parser.body_wanted()) {
            let buf = ready!(self.alloc(cx, len))?;
            self.parser.begin_body(buf);
            self.leave_queue();
            self.count_spilled()?;
        }
        Poll::Ready(Ok(()))
    }

    /// Memory for all that is missing of the rope under way. Where there is none, no piece of the rope is kept.
    fn tail(&mut self, cx: &mut Option<&mut Context<'_>>) -> Result<Option<PinnedBufMut>, LaneError> {
        let missing = self.parser.body_missing();
        if !self.parser.is_rope() || missing == 0 {
            return Ok(None);
        }
        if missing <= DIRECT_BYTES
            && let Poll::Ready(tail) = self.alloc(cx, missing)
        {
            self.leave_queue();
            let mut tail = tail?;
            tail.attach_lease(self.parser.leases().clone());
            return Ok(Some(tail));
        }
        self.leave_queue();
        self.parser.go_on_without_memory();
        self.count_spilled().map(|()| None)
    }

    /// The rest of a body on the heap, or of a head.
    fn wanted_space(&mut self) -> &mut [u8] {
        let [body, head] = self.parser.spaces(false);
        if body.is_empty() { head } else { body }
    }

    fn poll_direct(&mut self, cx: &mut Option<&mut Context<'_>>) -> Poll<Result<bool, LaneError>> {
        if let Some(cx) = cx {
            self.armed = Some(cx.waker().clone());
        }
        let Some(direct) = &mut self.direct else { return Poll::Ready(Ok(true)) };
        let waker = self.armed.as_ref().unwrap_or(Waker::noop());
        let received = Pin::new(&mut direct.op).poll(&mut Context::from_waker(waker));
        let now = self.reactor.now();
        let is_late = direct.all && now.saturating_duration_since(direct.began) >= SLOW_RECEIVE;
        let Poll::Ready(received) = received else {
            if is_late {
                direct.op.cut();
            }
            return Poll::Pending;
        };
        let (target, is_cut) = (direct.target, direct.op.is_cut());
        let buf = received.map_err(|e| LaneError::os("read", &e));
        let had_bytes = direct.had_bytes;
        (self.direct, self.armed) = (None, None);
        let buf = buf?;
        let n = buf.len() - had_bytes;
        match target {
            Target::Body => self.parser.return_body(buf),
            Target::Tail => self.parser.feed(buf.freeze()),
            Target::Scratch => self.take_scratch(buf),
        }
        if is_late {
            self.slow = Some((now, 0));
        } else if target != Target::Scratch {
            self.hurry(now, n);
        }
        if n == 0 && is_cut {
            // Neither a sign of life nor the end: it waits for what there is.
            ready!(self.begin_direct(cx))?;
            return self.poll_direct(cx);
        }
        Poll::Ready(Ok(n > 0))
    }

    /// A slow peer that sends as much in the same time as is awaited of another one is none any more.
    fn hurry(&mut self, now: Instant, came_bytes: usize) {
        let Some((since, bytes)) = &mut self.slow else { return };
        *bytes += came_bytes;
        if *bytes >= DIRECT_BYTES {
            self.slow = None;
        } else if now.saturating_duration_since(*since) >= SLOW_RECEIVE {
            (*since, *bytes) = (now, 0);
        }
    }

    #[allow(clippy::disallowed_methods, reason = "a head, or a session record, not payload")]
    fn take_scratch(&mut self, mut scratch: PinnedBufMut) {
        let n = scratch.len();
        self.wanted_space()[..n].copy_from_slice(&scratch);
        self.parser.filled(n);
        scratch.clear();
        self.scratch = Some(scratch);
    }
}

impl LaneRx for Rx {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        self.recv(Some(cx), out)
    }

    fn release(&mut self, bytes: usize) {
        self.parser.release(bytes);
    }

    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        match self.recv(None, out) {
            Poll::Ready(done) => done.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    fn stop(&mut self) {
        if self.failed.is_none() {
            self.end();
            self.failed = Some(LaneError::Closed);
        }
    }
}
