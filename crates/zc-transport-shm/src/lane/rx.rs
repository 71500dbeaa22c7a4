//! The receiving half.

mod back;
mod large;
mod payload;
mod slots;

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use zc_core::memory::{
    AllocWaiter, BufPool, CopyLedger, LeaseBudget, Message, PinnedBuf, PinnedBufMut, Pressure,
};
use zc_core::transport::{Batch, Frame, FrameKind, LaneError, LaneRx, OfferContext, Received};
use zc_core::wire::{MIN_FRAME_CREDIT_BYTES, WireError};

use self::large::Large;
use super::credit::Credit;
use super::link::Missing;
use super::shared::Shared;
use crate::abandoned;
use crate::layout::{ACK, CONSUMED, Geometry, Head, Kind, RX_SLEEP};
use crate::limits::{INLINE_MAX, MAX_IDLE_RINGS, PARTS_TURN_BYTES};
use crate::out::Out;
use crate::peer::PeerArena;
use crate::ring::Consumer;
use crate::sleep::{Ringer, Sleeper};
use crate::small::SmallChunks;
use crate::words::{OwnWords, PeerWords, WriteWords};

/// The memory of the receiving half.
pub(super) struct Memory {
    pub(super) own: OwnWords,
    pub(super) peer: PeerWords,
    /// The peer's.
    pub(super) geometry: Geometry,
    pub(super) arena: PeerArena,
    /// What of ours the peer holds.
    pub(super) out: Arc<Out>,
    /// The peer's sending half.
    pub(super) sender: Arc<Ringer<PeerWords>>,
    pub(super) credit: Arc<Credit>,
}

/// Why a full slot is not taken now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stall {
    /// Its descriptor has not come.
    Descriptor {
        /// Nor will it.
        is_over: bool,
    },
    /// So many bytes could not be had.
    Memory(usize),
    /// The same, and some is left to others.
    MuchMemory(usize),
    /// It takes long, and much has been done in this turn: others get theirs first.
    Turn,
}

/// Why taking ended.
enum Stop {
    Stall(Stall),
    Failed(LaneError),
}

impl From<Missing> for Stop {
    fn from(missing: Missing) -> Self {
        Self::Stall(Stall::Descriptor { is_over: missing.is_over })
    }
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<LaneError> for Stop {
    fn from(error: LaneError) -> Self {
        Self::Failed(error)
    }
}

/// A frame of several slots that is not whole.
struct Partial {
    kind: FrameKind,
    flags: u8,
    seq: u64,
    payload: Message,
}

/// The receiving half.
pub(super) struct Rx {
    shared: Arc<Shared>,
    ring: Consumer<PeerWords>,
    own: OwnWords,
    sleeper: Sleeper<OwnWords>,
    sender: Arc<Ringer<PeerWords>>,
    arena: PeerArena,
    /// What of ours the peer holds, and may send back.
    out: Arc<Out>,
    peer: PeerWords,
    small: SmallChunks,
    pool: BufPool,
    waiter: AllocWaiter,
    /// Memory that was waited for.
    ready: Option<PinnedBufMut>,
    ledger: Arc<CopyLedger>,
    leases: Arc<LeaseBudget>,
    max_message: usize,
    /// Credit bytes of the data that came.
    received: u64,
    credit: Arc<Credit>,
    /// Payload bytes that came in slots, not yet in the ledger.
    inline_bytes: usize,
    /// Up to where the peer was told of slots that we are done with.
    reported: u64,
    batch: u64,
    partial: Option<Partial>,
    /// A message that comes in parts.
    large: Option<Box<Large>>,
    /// Bytes of it that came in this turn.
    large_bytes: usize,
    /// An arena was mapped in this turn.
    mapped: bool,
    closed: bool,
    failed: Option<LaneError>,
}

impl Rx {
    pub(super) fn new(
        shared: Arc<Shared>,
        memory: Memory,
        leases: Arc<LeaseBudget>,
        cx: &OfferContext,
    ) -> Self {
        let Memory { own, peer, geometry, arena, out, sender, credit } = memory;
        Self {
            shared,
            ring: Consumer::new(peer.clone(), geometry.ring_at(), geometry.slots),
            sleeper: Sleeper::new(own.clone(), RX_SLEEP),
            own,
            sender,
            arena,
            out,
            peer,
            small: SmallChunks::default(),
            pool: cx.pool.with_origin("shm rx"),
            waiter: AllocWaiter::new(),
            ready: None,
            ledger: cx.ledger.clone(),
            leases,
            max_message: cx.limits.recv_max_message as usize,
            received: 0,
            credit,
            inline_bytes: 0,
            reported: 0,
            batch: u64::from(geometry.slots) / 4,
            partial: None,
            large: None,
            large_bytes: 0,
            mapped: false,
            closed: false,
            failed: None,
        }
    }

    /// Takes frames until there are none, the batch is full or something stands in the way.
    #[inline]
    fn take(&mut self, out: &mut Batch<Frame>) -> Option<Stall> {
        let mut stall = None;
        self.mapped = false;
        let allowed = self.credit.allowed();
        // What is kept of chunks is more than the message: no more of them when too much is kept.
        let cut = self.leases.pressure() == Pressure::None;
        let mut open = !self.closed && self.failed.is_none();
        let (mut received, mut inline_bytes) = (self.received, 0);
        while open
            && !out.is_full()
            && let Some(head) = self.ring.peek()
        {
            if cut
                && received < allowed
                && let Some(payload) = self.take_small(head)
            {
                received += MIN_FRAME_CREDIT_BYTES as u64;
                inline_bytes += payload.len();
                let (ack, seq) = (head.flags & ACK != 0, self.ring.seq());
                out.push(Frame { kind: FrameKind::Data, ack, seq, payload: payload.into() });
            } else {
                self.received = received;
                let taken = self.take_slot(head, out);
                received = self.received;
                match taken {
                    Ok(()) => open = !self.closed,
                    Err(Stop::Stall(found)) => {
                        stall = Some(found);
                        break;
                    }
                    Err(Stop::Failed(error)) => {
                        self.fail(error);
                        break;
                    }
                }
            }
            self.ring.advance();
        }
        self.received = received;
        self.inline_bytes += inline_bytes;
        if self.ring.count() - self.reported >= self.batch {
            self.report();
        }
        self.count_inline();
        if self.waiter.is_queued() && !matches!(stall, Some(Stall::Memory(_) | Stall::MuchMemory(_))) {
            // Served otherwise: a place that nobody looks after holds up all others.
            self.waiter = AllocWaiter::new();
        }
        stall
    }

    /// The payload of the usual small message, if this is one and there is memory; the caller has looked at
    /// credit.
    #[inline]
    fn take_small(&mut self, head: Head) -> Option<PinnedBuf> {
        let len = head.count as usize;
        let usual = head.kind == Kind::Data as u8 && head.flags & !ACK == 0 && 0 < len && len <= INLINE_MAX;
        if !usual || self.partial.is_some() || self.large.is_some() {
            return None;
        }
        self.cut(len)
    }

    /// The payload in the slot that was peeked at, in a block of a chunk.
    #[inline(always)]
    fn cut(&mut self, len: usize) -> Option<PinnedBuf> {
        let (words, at) = self.ring.payload();
        self.small.take(len, |to, to_at| words.copy_to(at, to, to_at, len.div_ceil(8)))
    }

    #[inline]
    fn count_inline(&mut self) {
        if self.inline_bytes > 0 {
            self.ledger.inline(std::mem::take(&mut self.inline_bytes));
        }
    }

    #[cold]
    fn fail(&mut self, error: LaneError) {
        self.shared.end(error.clone());
        self.end(error);
    }

    /// Nothing more is read: no memory is kept, and no place of those who wait for it.
    fn end(&mut self, error: LaneError) {
        self.partial = None;
        self.large = None;
        self.ready = None;
        self.waiter = AllocWaiter::new();
        self.failed = Some(error);
        self.end_of_messages();
    }

    /// No message comes any more: what the peer was to send back before it gave it back, it need not.
    fn end_of_messages(&self) {
        if self.out.end_of_reader() {
            self.shared.wakers.tx.wake();
        }
    }

    /// Tells the peer's sending half which slots are free.
    fn report(&mut self) {
        self.publish_count();
        if self.sender.must_ring() {
            self.shared.peer_bell.ring();
        }
    }

    #[inline]
    fn publish_count(&mut self) {
        self.reported = self.ring.count();
        self.own.publish(CONSUMED, self.reported);
    }

    /// What there is to say when no frame was found.
    #[inline]
    fn nothing(&mut self) -> Option<Result<Received, LaneError>> {
        if let Some(error) = &self.failed {
            return Some(Err(error.clone()));
        }
        if self.closed {
            return Some(Ok(Received::Closed));
        }
        None
    }

    /// Whether nothing more can come of a peer that is gone, or that lied.
    fn is_over(&self, stall: Option<Stall>, end: &LaneError) -> bool {
        match stall {
            None => true,
            // Whoever finds the peer gone may be ahead of who reads what it had sent on the link.
            // Who lied may send none, and live on.
            Some(Stall::Descriptor { is_over }) => is_over || matches!(end, LaneError::Protocol(_)),
            // So long a message can't have been sent to its end before we took the first of it.
            Some(Stall::MuchMemory(len)) => self.arena.is_beyond(len),
            Some(Stall::Memory(_) | Stall::Turn) => false,
        }
    }

    /// Waits for what stands in the way. Ready: try again.
    fn poll_stall(&mut self, cx: &mut Context<'_>, stall: Stall) -> Poll<()> {
        match stall {
            Stall::Memory(len) => {
                if let Ok(buf) = ready!(self.pool.poll_alloc(len, &mut self.waiter, cx)) {
                    self.ready = Some(buf);
                }
                Poll::Ready(())
            }
            Stall::MuchMemory(len) => {
                if let Ok(buf) = ready!(self.pool.poll_alloc_sparing(len, &mut self.waiter, cx)) {
                    self.ready = Some(buf);
                }
                Poll::Ready(())
            }
            // The driver wakes us when it comes, or the link ends.
            Stall::Descriptor { .. } => Poll::Pending,
            Stall::Turn => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl LaneRx for Rx {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        self.large_bytes = 0;
        for _ in 0..MAX_IDLE_RINGS {
            // Looked at first: what was sent before the end is delivered before it.
            let ended = self.shared.ended().cloned();
            self.shared.wakers.rx.register(cx.waker());
            let stall = self.take(out);
            if !out.is_empty() {
                self.sleeper.disarm();
                return Poll::Ready(Ok(Received::Some));
            }
            if let Some(end) = self.nothing() {
                return Poll::Ready(end);
            }
            match (stall, ended) {
                (stall, Some(error)) if self.is_over(stall, &error) => {
                    self.fail(error.clone());
                    return Poll::Ready(Err(error));
                }
                (Some(stall), _) => {
                    if self.ring.count() != self.reported {
                        self.report();
                    }
                    ready!(self.poll_stall(cx, stall));
                    continue;
                }
                (None, _) => {}
            }
            // Not for its own sake: a peer that sleeps as we do would be rung, and ring back.
            if self.ring.count() != self.reported {
                self.report();
            }
            self.sleeper.arm();
            if self.ring.peek().is_some() || self.shared.ended().is_some() {
                continue;
            }
            if self.shared.poll_rung().is_pending() {
                return Poll::Pending;
            }
            // It may have rung for another half.
            self.shared.wakers.tx.wake();
            self.shared.wakers.remote.wake();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    #[inline]
    fn release(&mut self, bytes: usize) {
        self.credit.release(bytes, &self.shared);
    }

    #[inline]
    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        // Whoever looks again and again at once gets one part at each look: a look that finds nothing else ends no turn.
        self.large_bytes = PARTS_TURN_BYTES - 1;
        let ended = self.shared.ended().is_some();
        let stall = self.take(out);
        if !out.is_empty() {
            self.sleeper.disarm();
            return Ok(Some(Received::Some));
        }
        if let Some(end) = self.nothing() {
            return end.map(Some);
        }
        if ended
            && let Some(error) = self.shared.ended().cloned()
            && self.is_over(stall, &error)
        {
            self.fail(error.clone());
            return Err(error);
        }
        // A sender that waits for slots is told of those left over from the last batch.
        if self.ring.count() != self.reported && self.sender.is_asleep() {
            self.publish_count();
            self.shared.peer_bell.ring();
        }
        Ok(None)
    }

    fn stop(&mut self) {
        if self.failed.is_none() {
            self.end(LaneError::Closed);
        }
    }
}

impl Drop for Rx {
    fn drop(&mut self) {
        self.end_of_messages();
        abandoned::keep(self.out.leave(), Vec::new(), self.shared.link(), self.peer.clone());
    }
}
