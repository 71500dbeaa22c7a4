//! The receiving half.
//!
//! There are two ways to read, chosen by what has come lately.
//!
//! **In chunks**, while frames are small: one `read` takes all there is into a chunk of the pool, and
//! messages are slices of it.
//!
//! ```text
//! socket --read--> chunk [ frame | frame | frame | begun... ] --> slices to the application
//!                                                   |
//!                                   body of its own, of the exact length (the begun part is copied)
//! ```
//!
//! **Exactly**, after a large frame and until [`EXACT_FRAMES`] small ones in a row have come: never read
//! beyond the next header, so that each payload goes straight into a body of its own.
//!
//! ```text
//! socket --readv--> [ rest of the body ][ next header, 16 bytes ]
//! ```
//!
//! A steady stream of large messages costs one `readv` per message (more if it comes in parts) and no copy,
//! whatever session records and grants travel in between: each of those costs one more system call, and
//! none ever pushes payload to where it does not belong. A large message that comes alone costs two:
//! header, payload. Copied is only what of the first large message came in a chunk with small ones.
//! Nothing is guessed: memory is taken when a header has named a length and the credit covers it.
//!
//! However much the application holds, reading goes on: records and grants travel behind messages. What the
//! lease bounds is what the peer may send ([`Credit`]).
//!
//! A head that is not whole lies in `front`, not in pool memory. So a connection that waits for bytes holds no
//! block, and grants are read even while the pool is exhausted. One that waits for memory for a body may hold
//! the chunk in which the body begins. So that such chunks can't take all that the bodies wait for, a chunk is
//! no more than a convenience: while anybody waits for memory, the last share of the pool is not for chunks.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use smallvec::SmallVec;
use zc_core::memory::{
    AllocError, AllocWaiter, BufPool, CopyLedger, CopyPlace, KernelCopied, LeaseBudget, PinnedBuf,
    PinnedBufMut, Pressure, copy_payload,
};
use zc_core::transport::{Batch, Frame, FrameKind, LaneError, LaneRx, OfferContext, Received};
use zc_core::wire::{FRAME_HEADER_BYTES, FrameLimits, FrameType, WireError};

use super::body::{Body, Store};
use super::credit::Credit;
use super::head::{Head, Scan, scan};
use super::life::Life;
use super::tx::Shared;
use super::wakers::Wakers;
use crate::io::ByteIo;
use crate::limits::{CHUNK_BYTES, DIRECT_MIN, EXACT_FRAMES, READS_PER_POLL};

pub(super) struct Rx {
    io: ByteIo,
    parser: Parser,
    pool: BufPool,
    waiter: AllocWaiter,
    /// What the peer was promised room for. Longer messages leave a share of the pool to others: a header alone
    /// takes the memory for them.
    granted_bytes: usize,
    life: Life,
    closed: bool,
    failed: Option<LaneError>,
}

/// What was received and not handed out.
struct Parser {
    ledger: Arc<CopyLedger>,
    leases: Arc<LeaseBudget>,
    credit: Arc<Credit>,
    wakers: Arc<Wakers>,
    limits: FrameLimits,
    /// The beginning of a head.
    front: SmallVec<[u8; 2 * FRAME_HEADER_BYTES]>,
    /// The frame whose head is whole.
    under_way: Option<UnderWay>,
    /// The next chunk.
    chunk: Option<PinnedBufMut>,
    /// The last chunk's bytes, not looked at yet.
    unread: PinnedBuf,
    /// Frames for which reading exactly goes on.
    exact_frames: u32,
    received: u64,
}

struct UnderWay {
    head: Head,
    body: Option<Body>,
}

impl Rx {
    pub(super) fn new(
        io: ByteIo,
        cx: &OfferContext,
        leases: Arc<LeaseBudget>,
        credit: Arc<Credit>,
        shared: &Shared,
    ) -> Self {
        let parser = Parser {
            ledger: cx.ledger.clone(),
            leases,
            credit,
            wakers: shared.wakers.clone(),
            limits: FrameLimits { max_message: cx.limits.recv_max_message },
            front: SmallVec::new(),
            under_way: None,
            chunk: None,
            unread: PinnedBuf::empty(),
            exact_frames: 0,
            received: 0,
        };
        let pool = cx.pool.with_origin("tcp rx");
        let granted_bytes = cx.limits.recv_window as usize;
        let (waiter, life) = (AllocWaiter::new(), shared.life.clone());
        Self { io, parser, pool, waiter, granted_bytes, life, closed: false, failed: None }
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
        let done = match ready!(self.recv_some(cx, out)) {
            Err(error) => {
                self.end(error.clone());
                Err(error)
            }
            done => done,
        };
        // What came in front of a fault is handed out first.
        Poll::Ready(if out.is_empty() { done } else { Ok(Received::Some) })
    }

    /// Nothing more is read: no memory is kept, and no place of those who wait for it.
    fn end(&mut self, error: LaneError) {
        self.parser.clear();
        self.waiter = AllocWaiter::new();
        self.failed = Some(error);
    }

    fn recv_some(
        &mut self,
        mut cx: Option<&mut Context<'_>>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        for _ in 0..READS_PER_POLL {
            let parsed = self.parse(&mut cx, out);
            if let Poll::Ready(Err(error)) = parsed {
                return Poll::Ready(Err(error));
            }
            if !out.is_empty() {
                return Poll::Ready(Ok(Received::Some));
            }
            ready!(parsed)?;
            if self.closed {
                return Poll::Ready(Ok(Received::Closed));
            }
            match self.read(&mut cx) {
                Poll::Ready(done) => done?,
                Poll::Pending => {
                    if cx.is_some() {
                        // An idle connection holds no memory.
                        self.parser.chunk = None;
                    }
                    return Poll::Pending;
                }
            }
        }
        // A fast peer with a huge message: others get their turn.
        if let Some(cx) = cx {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Hands out what is whole. Pending: there is no memory for the frame under way.
    fn parse(
        &mut self,
        cx: &mut Option<&mut Context<'_>>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<(), LaneError>> {
        while !out.is_full() && self.parser.find_head()? {
            if let Some(len) = self.parser.body_wanted() {
                let body = match self.alloc(cx, len) {
                    Poll::Ready(buf) => Body::in_pool(buf?, len),
                    Poll::Pending if self.parser.is_record() => Body::on_heap(len),
                    Poll::Pending => {
                        self.parser.chunk = None;
                        return Poll::Pending;
                    }
                };
                if self.waiter.is_queued() {
                    // Served otherwise: a place that nobody looks after holds up all others.
                    self.waiter = AllocWaiter::new();
                }
                self.parser.begin_body(body);
            }
            if !self.parser.take_frame(&self.pool, out)? {
                break;
            }
        }
        Poll::Ready(Ok(()))
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

    fn read(&mut self, cx: &mut Option<&mut Context<'_>>) -> Poll<Result<(), LaneError>> {
        if self.parser.wants_chunk() {
            // Without memory for a chunk it is read exactly: a head needs none.
            self.parser.chunk = self.pool.try_alloc_spare(CHUNK_BYTES).ok();
        }
        let io = &mut self.io;
        let n = ready!(self.parser.fill(|pieces| io.poll_read(cx.as_deref_mut(), pieces)));
        if n.map_err(|e| LaneError::os("read", &e))? == 0 {
            if self.parser.is_inside_frame() {
                return Poll::Ready(Err(LaneError::PeerGone("the stream ended in the middle of a frame")));
            }
            self.closed = true;
            self.parser.clear();
            return Poll::Ready(Ok(()));
        }
        if self.parser.is_inside_frame() {
            // Records may wait behind it.
            self.life.show();
        }
        Poll::Ready(Ok(()))
    }
}

impl Parser {
    fn clear(&mut self) {
        self.front.clear();
        (self.under_way, self.chunk) = (None, None);
        self.unread = PinnedBuf::empty();
    }

    fn is_inside_frame(&self) -> bool {
        self.under_way.is_some() || !self.front.is_empty()
    }

    /// Records of the session layer, one-sided operations among them, get through whatever happens.
    fn is_record(&self) -> bool {
        let kind = self.under_way.as_ref().map(|frame| frame.head.header.kind);
        matches!(kind, Some(FrameType::Session | FrameType::Remote))
    }

    fn wants_chunk(&self) -> bool {
        self.exact_frames == 0 && self.chunk.is_none()
    }

    /// Sees to it that a frame is under way; false: more bytes are needed.
    #[allow(clippy::disallowed_methods, reason = "a head, not payload")]
    fn find_head(&mut self) -> Result<bool, WireError> {
        while self.under_way.is_none() {
            let in_front = !self.front.is_empty();
            match scan(if in_front { &self.front } else { &self.unread }, self.limits)? {
                Scan::Head(head) if in_front => {
                    self.front.clear();
                    self.begin(head)?;
                }
                Scan::Head(head) => {
                    self.skip(head.payload_at);
                    self.begin(head)?;
                }
                Scan::Missing(_) if self.unread.is_empty() => return Ok(false),
                Scan::Missing(n) => {
                    // Not in front yet: all of it belongs there, since `n` are missing.
                    let n = if in_front { n.min(self.unread.len()) } else { self.unread.len() };
                    self.front.extend_from_slice(&self.unread[..n]);
                    self.skip(n);
                }
            }
        }
        Ok(true)
    }

    fn skip(&mut self, n: usize) {
        bytes::Buf::advance(&mut self.unread, n);
        if self.unread.is_empty() {
            self.unread = PinnedBuf::empty();
        }
    }

    fn begin(&mut self, head: Head) -> Result<(), WireError> {
        let len = head.payload_bytes();
        if head.header.kind == FrameType::Data {
            self.received = self.credit.receive(self.received, len)?;
        }
        self.exact_frames =
            if len >= DIRECT_MIN { EXACT_FRAMES } else { self.exact_frames.saturating_sub(1) };
        self.under_way = Some(UnderWay { head, body: None });
        Ok(())
    }

    /// The payload's length, if the frame under way needs memory of its own.
    fn body_wanted(&self) -> Option<usize> {
        let frame = self.under_way.as_ref()?;
        let len = frame.head.payload_bytes();
        (frame.body.is_none() && self.unread.len() < len).then_some(len)
    }

    fn begin_body(&mut self, mut body: Body) {
        if let Some(frame) = &mut self.under_way {
            let counted = frame.head.header.kind.is_payload();
            body.begin(&self.unread, if counted { Some(&*self.ledger) } else { None });
            frame.body = Some(body);
        }
        self.unread = PinnedBuf::empty();
    }

    /// One read through `read`, into what comes next in the stream: rest of the body, rest of a head, chunk.
    fn fill(
        &mut self,
        read: impl FnOnce([&mut [u8]; 3]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let had = self.front.len();
        let body = self.under_way.as_mut().and_then(|frame| frame.body.as_mut());
        let chunk = if self.exact_frames == 0 { self.chunk.as_mut() } else { None };
        if chunk.is_none() || had > 0 {
            // A whole head is taken out at once and a bad one ends the lane, so some bytes are missing.
            if let Ok(Scan::Missing(n)) = scan(&self.front, self.limits) {
                self.front.resize(had + n, 0);
            }
        }
        let pieces = [
            body.map_or(&mut [][..], Body::space),
            &mut self.front[had..],
            chunk.map_or(&mut [][..], |chunk| &mut chunk.unfilled_mut()[..CHUNK_BYTES]),
        ];
        let [of_body, of_head, _] = pieces.each_ref().map(|piece| piece.len());
        let done = read(pieces);
        let n = if let Poll::Ready(Ok(n)) = done { n } else { 0 };
        let of_body = of_body.min(n);
        let of_head = of_head.min(n - of_body);
        if let Some(body) = self.under_way.as_mut().and_then(|frame| frame.body.as_mut()) {
            body.advance(of_body);
        }
        self.front.truncate(had + of_head);
        let of_chunk = n - of_body - of_head;
        if of_chunk > 0
            && let Some(mut chunk) = self.chunk.take()
        {
            chunk.advance(of_chunk);
            chunk.attach_lease(self.leases.clone());
            self.unread = chunk.freeze();
        }
        done
    }

    /// Hands out the frame under way if its payload is whole.
    fn take_frame(&mut self, pool: &BufPool, out: &mut Batch<Frame>) -> Result<bool, LaneError> {
        let is_whole = |frame: &mut UnderWay| frame.body.as_ref().is_none_or(Body::is_whole);
        let Some(UnderWay { head, body }) = self.under_way.take_if(is_whole) else { return Ok(false) };
        let len = head.payload_bytes();
        let is_payload = head.header.kind.is_payload();
        let payload = match body.map(Body::into_store) {
            Some(Store::Pool(mut buf)) => {
                if is_payload {
                    buf.attach_lease(self.leases.clone());
                }
                buf.freeze()
            }
            Some(Store::Heap(bytes)) => bytes.into(),
            None => {
                let shared = self.unread.split_to(len);
                if is_payload { self.lend(shared, pool) } else { shared }
            }
        };
        let kind = match head.header.kind {
            FrameType::Credit => {
                self.credit.granted(head.header.seq)?;
                self.wakers.tx.wake();
                return Ok(true);
            }
            FrameType::Session => FrameKind::Session,
            FrameType::Data => FrameKind::Data,
            FrameType::Remote => FrameKind::Remote,
        };
        if is_payload {
            self.ledger.kernel_copied(KernelCopied::Known(len as u64));
        }
        let ack = head.header.flags.ack_requested;
        out.push(Frame { kind, ack, seq: head.header.seq, payload: payload.into() });
        Ok(true)
    }

    /// Lends a slice of a chunk, or copies it out when too much is lent already.
    fn lend(&self, payload: PinnedBuf, pool: &BufPool) -> PinnedBuf {
        let len = payload.len();
        if len > 0
            && len < DIRECT_MIN
            && self.leases.pressure() >= Pressure::Soft
            && let Ok(mut own) = pool.try_alloc(len)
        {
            copy_payload(&mut own.unfilled_mut()[..len], &payload, &self.ledger, CopyPlace::CopyOut);
            own.advance(len);
            own.attach_lease(self.leases.clone());
            return own.freeze();
        }
        payload
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
        if self.parser.credit.take(bytes) {
            self.parser.wakers.drive.wake();
        }
    }

    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        match self.recv(None, out) {
            Poll::Ready(done) => done.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    fn stop(&mut self) {
        if self.failed.is_none() {
            self.end(LaneError::Closed);
        }
    }
}
