//! The receiving half.
//!
//! There are two ways to read, chosen by what has come lately (see [`Parser`]).
//!
//! **In chunks**, while frames are small: one `read` takes all there is into a chunk of the pool.
//!
//! **Exactly**, around large frames: one `readv` takes the rest of the body and the next header.
//!
//! A steady stream of large messages costs one `readv` per message (more if it comes in parts) and no copy,
//! whatever session records and grants travel in between: each of those costs one more system call, and
//! none ever pushes payload to where it does not belong. A large message that comes alone costs two:
//! header, payload. Copied is only what of the first large message came in a chunk with small ones.
//!
//! However much the application holds, reading goes on: records and grants travel behind messages. What the
//! lease bounds is what the peer may send: its credit.
//!
//! A connection that waits for bytes holds no block, and grants are read even while the pool is exhausted. One that
//! waits for memory for a body may hold the chunk in which the body begins. So that such chunks can't take all that
//! the bodies wait for, a chunk is no more than a convenience: while anybody waits for memory, the last share of the
//! pool is not for chunks.

use std::io;
use std::task::{Context, Poll, ready};

use zc_core::memory::{AllocError, AllocWaiter, BufPool, PinnedBufMut};
use zc_core::stream::{Life, Parser};
use zc_core::transport::{Batch, Frame, LaneError, LaneRx, OfferContext, Received};

use super::tx::Shared;
use crate::io::ByteIo;
use crate::limits::{CHUNK_BYTES, READS_PER_POLL};

pub(super) struct Rx {
    io: ByteIo,
    parser: Parser,
    /// The next chunk.
    chunk: Option<PinnedBufMut>,
    pool: BufPool,
    waiter: AllocWaiter,
    /// What the peer was promised room for. Longer messages leave a share of the pool to others: a header alone
    /// takes the memory for them.
    granted_bytes: usize,
    life: Life,
    closed: bool,
    failed: Option<LaneError>,
}

impl Rx {
    pub(super) fn new(io: ByteIo, cx: &OfferContext, parser: Parser, shared: &Shared) -> Self {
        let pool = cx.pool.with_origin("tcp rx");
        let granted_bytes = cx.limits.recv_window as usize;
        let (waiter, life) = (AllocWaiter::new(), shared.life.clone());
        Self { io, parser, chunk: None, pool, waiter, granted_bytes, life, closed: false, failed: None }
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
        self.clear();
        self.waiter = AllocWaiter::new();
        self.failed = Some(error);
    }

    fn clear(&mut self) {
        self.parser.clear();
        self.chunk = None;
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
                        self.chunk = None;
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
                match self.alloc(cx, len) {
                    Poll::Ready(buf) => self.parser.begin_body(buf?),
                    Poll::Pending if self.parser.is_record() => self.parser.begin_body_on_heap(),
                    Poll::Pending => {
                        self.chunk = None;
                        return Poll::Pending;
                    }
                }
                if self.waiter.is_queued() {
                    // Served otherwise: a place that nobody looks after holds up all others.
                    self.waiter = AllocWaiter::new();
                }
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
        let n = ready!(self.fill(cx));
        if n.map_err(|e| LaneError::os("read", &e))? == 0 {
            if self.parser.is_inside_frame() {
                return Poll::Ready(Err(LaneError::PeerGone("the stream ended in the middle of a frame")));
            }
            self.closed = true;
            self.clear();
            return Poll::Ready(Ok(()));
        }
        if self.parser.is_inside_frame() {
            // Records may wait behind it.
            self.life.show();
        }
        Poll::Ready(Ok(()))
    }

    /// One read, into what comes next in the stream: rest of the body, rest of a head, chunk.
    fn fill(&mut self, cx: &mut Option<&mut Context<'_>>) -> Poll<io::Result<usize>> {
        let exactly = self.parser.reads_exactly();
        if !exactly && self.chunk.is_none() {
            // Without memory for a chunk it is read exactly: a head needs none.
            self.chunk = self.pool.try_alloc_spare(CHUNK_BYTES).ok();
        }
        let chunk = if exactly { None } else { self.chunk.as_mut() };
        let [body, head] = self.parser.spaces(chunk.is_some());
        let chunk = chunk.map_or(&mut [][..], |chunk| &mut chunk.unfilled_mut()[..CHUNK_BYTES]);
        let n = ready!(self.io.poll_read(cx.as_deref_mut(), [body, head, chunk]))?;
        let of_chunk = self.parser.filled(n);
        if of_chunk > 0
            && let Some(mut chunk) = self.chunk.take()
        {
            chunk.advance(of_chunk);
            chunk.attach_lease(self.parser.leases().clone());
            self.parser.feed(chunk.freeze());
        }
        Poll::Ready(Ok(n))
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
            self.end(LaneError::Closed);
        }
    }
}
