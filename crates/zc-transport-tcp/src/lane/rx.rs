//! The receiving half.
//!
//! ```text
//! socket -> fill (ours alone) -> whole frame in it? -> parsed (shared) -> slices to the application
//!             ^                                            |
//!             +---- the beginning of a frame, moved -------+
//! ```

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use zc_core::memory::{
    AllocError, AllocWaiter, BufPool, CopyLedger, CopyPlace, KernelCopied, LeaseBudget, PinnedBuf,
    PinnedBufMut, Pressure, copy_payload,
};
use zc_core::transport::{Batch, Frame, FrameKind, LaneError, LaneRx, OfferContext, Received};
use zc_core::wire::{FrameLimits, FrameType};

use super::chunk::{Head, head};
use super::credit::Credit;
use super::wakers::Wakers;
use crate::io::ByteIo;
use crate::limits::{CHUNK_BYTES, CREDIT_SLACK, DIRECT_MIN};

pub(super) struct Rx {
    io: ByteIo,
    pool: BufPool,
    ledger: Arc<CopyLedger>,
    leases: Arc<LeaseBudget>,
    credit: Arc<Credit>,
    wakers: Arc<Wakers>,
    limits: FrameLimits,
    waiter: AllocWaiter,
    /// Being read into.
    fill: Option<Fill>,
    /// Received; begins with a frame.
    parsed: PinnedBuf,
    /// `parsed` is a large buffer, wrongly expected to hold a large message.
    mispredicted: bool,
    /// The lengths of the last two data frames.
    last: [usize; 2],
    received: u64,
    closed: bool,
    failed: Option<LaneError>,
}

/// A buffer that is being read into.
struct Fill {
    buf: PinnedBufMut,
    /// Where the frame under way begins: CREDIT frames in front of it are taken where they lie, so
    /// that a large message behind them need not move.
    start: usize,
    /// Nothing is read beyond.
    limit: usize,
}

impl Fill {
    fn begun(&self) -> &[u8] {
        &self.buf[self.start..]
    }
}

impl Rx {
    pub(super) fn new(
        io: ByteIo,
        cx: &OfferContext,
        leases: Arc<LeaseBudget>,
        credit: Arc<Credit>,
        wakers: Arc<Wakers>,
    ) -> Self {
        Self {
            io,
            pool: cx.pool.with_origin("tcp rx"),
            ledger: cx.ledger.clone(),
            leases,
            credit,
            wakers,
            limits: FrameLimits { max_message: cx.limits.recv_max_message },
            waiter: AllocWaiter::new(),
            fill: None,
            parsed: PinnedBuf::empty(),
            mispredicted: false,
            last: [0; 2],
            received: 0,
            closed: false,
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
        let done = ready!(self.recv_some(cx, out));
        Poll::Ready(done.inspect_err(|error| {
            self.failed = Some(error.clone());
            self.fill = None;
            self.parsed = PinnedBuf::empty();
        }))
    }

    fn recv_some(
        &mut self,
        mut cx: Option<&mut Context<'_>>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        loop {
            if let Err(e) = self.take_frames(out) {
                if out.is_empty() {
                    return Poll::Ready(Err(e));
                }
                // What came in front of it is handed out first.
                self.failed = Some(e);
            }
            if !out.is_empty() {
                return Poll::Ready(Ok(Received::Some));
            }
            if self.closed {
                return Poll::Ready(Ok(Received::Closed));
            }
            match &mut cx {
                Some(cx) => ready!(self.leases.poll_below_hard(cx)),
                None if self.leases.pressure() == Pressure::Hard => return Poll::Pending,
                None => {}
            }
            ready!(self.poll_buffer(&mut cx))?;
            match self.read(&mut cx) {
                Poll::Ready(done) => done?,
                Poll::Pending => {
                    // An idle connection holds no memory.
                    self.fill.take_if(|fill| fill.begun().is_empty());
                    return Poll::Pending;
                }
            }
        }
    }

    /// Sees to it that there is a buffer with room for the rest of the frame under way.
    fn poll_buffer(&mut self, cx: &mut Option<&mut Context<'_>>) -> Poll<Result<(), LaneError>> {
        let begun: &[u8] = match &self.fill {
            Some(fill) => fill.begun(),
            None => &self.parsed,
        };
        let expected = match head(begun, self.limits).map_err(LaneError::from)? {
            Some(head) if head.total() >= DIRECT_MIN => head.total(),
            Some(_) => CHUNK_BYTES,
            None => match self.last.iter().copied().min() {
                Some(n) if n >= DIRECT_MIN && begun.is_empty() => n + CREDIT_SLACK,
                _ => CHUNK_BYTES,
            },
        };
        match &self.fill {
            // Room for the whole frame, or for more of a head that is not whole yet.
            Some(fill)
                if fill.limit > fill.buf.len() && (fill.limit >= expected || fill.limit >= CHUNK_BYTES) =>
            {
                let whole = head(begun, self.limits).map_err(LaneError::from)?.map_or(0, |h| h.total());
                if fill.start + whole <= fill.limit {
                    return Poll::Ready(Ok(()));
                }
            }
            _ => {}
        }
        let expected = expected.max(begun.len() + 1);
        let mut buf = match self.alloc(cx, expected) {
            Poll::Ready(buf) => buf?,
            Poll::Pending => return Poll::Pending,
        };
        let begun: &[u8] = match &self.fill {
            Some(old) => old.begun(),
            None => &self.parsed,
        };
        let at = head(begun, self.limits).map_err(LaneError::from)?.map_or(begun.len(), |h| h.payload_at);
        let (front, payload) = begun.split_at(at);
        buf.put_slice(front);
        if !payload.is_empty() {
            copy_payload(&mut buf.unfilled_mut()[..payload.len()], payload, &self.ledger, CopyPlace::Split);
            buf.advance(payload.len());
        }
        self.parsed = PinnedBuf::empty();
        self.fill = Some(Fill { buf, start: 0, limit: expected });
        Poll::Ready(Ok(()))
    }

    fn alloc(
        &mut self,
        cx: &mut Option<&mut Context<'_>>,
        len: usize,
    ) -> Poll<Result<PinnedBufMut, LaneError>> {
        let got = match cx {
            Some(cx) => ready!(self.pool.poll_alloc(len, &mut self.waiter, cx)),
            None => match self.pool.try_alloc(len) {
                Err(AllocError::Exhausted { .. }) => return Poll::Pending,
                done => done,
            },
        };
        Poll::Ready(got.map_err(|e| LaneError::Memory(e.to_string())))
    }

    fn read(&mut self, cx: &mut Option<&mut Context<'_>>) -> Poll<Result<(), LaneError>> {
        let Some(Fill { buf, start, limit }) = &mut self.fill else { return Poll::Ready(Ok(())) };
        let room = *limit - buf.len();
        let space = &mut buf.unfilled_mut()[..room];
        let done = match cx {
            Some(cx) => ready!(self.io.poll_read(cx, space)),
            None => ready!(self.io.try_read(space)),
        };
        let n = done.map_err(|e| LaneError::os("read", &e))?;
        if n == 0 {
            if buf.len() > *start {
                return Poll::Ready(Err(LaneError::PeerGone("the stream ended in the middle of a frame")));
            }
            self.closed = true;
            self.fill = None;
            return Poll::Ready(Ok(()));
        }
        buf.advance(n);
        while let Some(first) = head(&buf[*start..], self.limits).map_err(LaneError::from)?
            && first.header.kind == FrameType::Credit
            && first.total() <= buf.len() - *start
        {
            self.credit.granted(first.header.seq)?;
            self.wakers.tx.wake();
            *start += first.total();
        }
        if *start == buf.len() {
            buf.clear();
            *start = 0;
        }
        if let Some(first) = head(&buf[*start..], self.limits).map_err(LaneError::from)?
            && first.total() <= buf.len() - *start
            && let Some(Fill { mut buf, start, limit }) = self.fill.take()
        {
            self.mispredicted = limit > CHUNK_BYTES && first.total() < limit / 2;
            buf.attach_lease(self.leases.clone());
            self.parsed = buf.freeze().slice(start..);
        }
        Poll::Ready(Ok(()))
    }

    /// Hands out the whole frames in `parsed`.
    fn take_frames(&mut self, out: &mut Batch<Frame>) -> Result<(), LaneError> {
        while !out.is_full() && !self.parsed.is_empty() {
            let Some(head) = head(&self.parsed, self.limits)? else { break };
            if head.total() > self.parsed.len() {
                break;
            }
            let frame = self.parsed.split_to(head.total());
            let payload = frame.slice(head.payload_at..);
            drop(frame);
            self.take_frame(head, payload, out)?;
        }
        Ok(())
    }

    fn take_frame(
        &mut self,
        head: Head,
        payload: PinnedBuf,
        out: &mut Batch<Frame>,
    ) -> Result<(), LaneError> {
        let len = payload.len();
        let (kind, payload) = match head.header.kind {
            FrameType::Credit => {
                self.credit.granted(head.header.seq)?;
                self.wakers.tx.wake();
                return Ok(());
            }
            FrameType::Session => (FrameKind::Session, payload),
            FrameType::Data => {
                if !self.credit.may_receive(self.received) {
                    return Err(
                        zc_core::wire::WireError::BadValue { field: "message beyond the credit" }.into()
                    );
                }
                self.received += len as u64;
                self.last = [self.last[1], head.total()];
                self.ledger.kernel_copied(KernelCopied::Known(len as u64));
                (FrameKind::Data, self.lend(payload))
            }
        };
        out.push(Frame {
            kind,
            ack: head.header.flags.ack_requested,
            seq: head.header.seq,
            payload: payload.into(),
        });
        Ok(())
    }

    /// Lends the payload where it is, or copies it out when too much is lent already.
    fn lend(&self, payload: PinnedBuf) -> PinnedBuf {
        let len = payload.len();
        let crowded = self.mispredicted || self.leases.pressure() >= Pressure::Soft;
        if len > 0
            && len < DIRECT_MIN
            && crowded
            && let Ok(mut own) = self.pool.try_alloc(len)
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
        if self.credit.take(bytes) {
            self.wakers.drive.wake();
        }
    }

    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        match self.recv(None, out) {
            Poll::Ready(done) => done.map(Some),
            Poll::Pending => Ok(None),
        }
    }
}
