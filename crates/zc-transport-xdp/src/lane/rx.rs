//! The receiving half.

use std::sync::Arc;
use std::task::{Context, Poll};

use zc_core::memory::{BufPool, CopyLedger, CopyPlace, Holder, LeaseBudget, Message, Pressure, copy_payload};
use zc_core::transport::{Batch, Frame, LaneError, LaneRx, OfferContext, Received};

use super::Shared;

pub(super) struct Rx {
    shared: Arc<Shared>,
    lending: Lending,
    /// Somebody is to be woken by what comes next.
    armed: bool,
    stopped: bool,
}

/// What becomes of received memory.
struct Lending {
    leases: Arc<LeaseBudget>,
    holder: Holder,
    pool: BufPool,
    ledger: Arc<CopyLedger>,
}

impl Rx {
    pub(super) fn new(shared: Arc<Shared>, leases: Arc<LeaseBudget>, cx: &OfferContext) -> Self {
        let holder = Holder::new(leases.clone());
        let (pool, ledger) = (cx.pool.with_origin("xdp rx"), cx.ledger.clone());
        Self { shared, lending: Lending { leases, holder, pool, ledger }, armed: false, stopped: false }
    }

    /// What there is. The waker is kept if there is nothing.
    fn take(
        &mut self,
        cx: Option<&mut Context<'_>>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        if self.stopped {
            return Poll::Ready(Err(LaneError::Closed));
        }
        let Self { shared, lending, armed, .. } = self;
        let was_armed = std::mem::take(armed);
        let mut locked = shared.lock();
        let datagram_bytes = locked.state.session.datagram_bytes();
        while !out.is_full()
            && let Some(frame) = locked.state.session.recv()
        {
            let payload = lending.lend(frame.payload, datagram_bytes);
            out.push(Frame { payload, ..frame });
        }
        if !out.is_empty() {
            // It may have been the last before the peer's end. Else there is nothing new to say to the peer.
            if locked.state.session.is_peer_ending() {
                locked.settle();
            }
            return Poll::Ready(Ok(Received::Some));
        }
        // An idle connection holds no memory.
        lending.holder.rest();
        if locked.state.session.is_peer_finished() {
            return Poll::Ready(Ok(Received::Closed));
        }
        if let Some(end) = locked.state.end() {
            return Poll::Ready(Err(end.clone()));
        }
        shared.conn.no_news();
        *armed = was_armed;
        if let Some(cx) = cx {
            shared.conn.rx.register(cx.waker());
            shared.engine.rest();
            *armed = true;
        }
        Poll::Pending
    }
}

impl Lending {
    /// Counts what is lent against the lease. When it holds much, packets are copied out; a message that was gathered has a buffer of
    /// its own.
    fn lend(&mut self, payload: Message, datagram_bytes: usize) -> Message {
        let is_gathered = payload.segments().len() == 1 && payload.len() > datagram_bytes;
        if !is_gathered
            && self.leases.pressure() > Pressure::None
            && let Some(copy) = self.copied_out(&payload)
        {
            return copy;
        }
        let mut lent = Message::new();
        for segment in payload.into_segments() {
            // No more of them than there were.
            let fits = lent.push(self.holder.hold(segment));
            debug_assert!(fits.is_ok());
        }
        lent
    }

    fn copied_out(&self, payload: &Message) -> Option<Message> {
        let mut copy = self.pool.try_alloc_sparing(payload.len()).ok()?;
        copy.set_len(payload.len());
        let mut at = 0;
        for segment in payload.segments() {
            let place = &mut copy[at..at + segment.len()];
            copy_payload(place, segment, &self.ledger, CopyPlace::CopyOut);
            at += segment.len();
        }
        copy.attach_lease(self.leases.clone());
        Some(copy.freeze().into())
    }
}

impl LaneRx for Rx {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        self.take(Some(cx), out)
    }

    fn release(&mut self, bytes: usize) {
        let mut locked = self.shared.lock();
        locked.state.withhold(bytes);
        if self.lending.leases.pressure() == Pressure::Hard {
            // The driver waits until less is held.
            return self.shared.wake_drive();
        }
        locked.state.grant();
        if locked.state.session.credit_due() {
            locked.settle();
        }
    }

    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        let Shared { engine, conn } = &*self.shared;
        // Who looks while another one waits to be woken may come no more and tell nobody: what comes is not left to him.
        let came = if self.armed { engine.glance(conn) } else { engine.look(conn) };
        // Somebody else may be looking, and what he finds is there now or the next time.
        if !came && !conn.has_news() && !self.stopped {
            return Ok(None);
        }
        match self.take(None, out) {
            Poll::Ready(done) => done.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    fn stop(&mut self) {
        self.stopped = true;
        self.lending.holder.rest();
        self.shared.engine.rest();
        let mut locked = self.shared.lock();
        locked.state.ignores = true;
        locked.settle();
    }
}
