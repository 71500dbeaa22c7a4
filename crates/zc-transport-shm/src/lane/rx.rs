//! The receiving half.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use zc_core::memory::{
    AllocError, AllocWaiter, BufPool, CopyLedger, CopyPlace, LeaseBudget, MAX_SEGMENTS, Message, PinnedBuf,
    PinnedBufMut, Pressure,
};
use zc_core::transport::{Batch, Frame, FrameKind, LaneError, LaneRx, OfferContext, Received};
use zc_core::wire::{MIN_FRAME_CREDIT_BYTES, WireError, frame_credit_bytes};

use super::credit::Credit;
use super::shared::Shared;
use crate::layout::{ACK, BY_REFERENCE, CONSUMED, Descriptor, Geometry, Grow, Head, Kind, MORE, RX_SLEEP};
use crate::limits::{INLINE_MAX, MAX_IDLE_RINGS, SLOT_DESCRIPTORS};
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
    /// The peer's sending half.
    pub(super) sender: Arc<Ringer<PeerWords>>,
    pub(super) credit: Arc<Credit>,
}

/// Why a full slot is not taken now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stall {
    /// Its descriptor has not come.
    Descriptor,
    /// So many bytes could not be had.
    Memory(usize),
}

/// Why taking ended.
enum Stop {
    Stall(Stall),
    Failed(LaneError),
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
    small: SmallChunks,
    pool: BufPool,
    waiter: AllocWaiter,
    /// Memory that was waited for.
    ready: Option<PinnedBufMut>,
    ledger: Arc<CopyLedger>,
    leases: Arc<LeaseBudget>,
    cooperative: bool,
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
    closed: bool,
    failed: Option<LaneError>,
}

fn lie(field: &'static str) -> LaneError {
    WireError::BadValue { field }.into()
}

impl Rx {
    pub(super) fn new(
        shared: Arc<Shared>,
        memory: Memory,
        cooperative: bool,
        leases: Arc<LeaseBudget>,
        cx: &OfferContext,
    ) -> Self {
        let Memory { own, peer, geometry, arena, sender, credit } = memory;
        Self {
            shared,
            ring: Consumer::new(peer, geometry.ring_at(), geometry.slots),
            sleeper: Sleeper::new(own.clone(), RX_SLEEP),
            own,
            sender,
            arena,
            small: SmallChunks::default(),
            pool: cx.pool.with_origin("shm rx"),
            waiter: AllocWaiter::new(),
            ready: None,
            ledger: cx.ledger.clone(),
            leases,
            cooperative,
            max_message: cx.limits.recv_max_message as usize,
            received: 0,
            credit,
            inline_bytes: 0,
            reported: 0,
            batch: u64::from(geometry.slots) / 4,
            partial: None,
            closed: false,
            failed: None,
        }
    }

    /// Takes frames until there are none, the batch is full or something stands in the way.
    #[inline]
    fn take(&mut self, out: &mut Batch<Frame>) -> Option<Stall> {
        let mut stall = None;
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
        stall
    }

    /// The payload of the usual small message, if this is one and there is memory; the caller has looked at
    /// credit.
    #[inline]
    fn take_small(&mut self, head: Head) -> Option<PinnedBuf> {
        let len = head.count as usize;
        let usual = head.kind == Kind::Data as u8 && head.flags & !ACK == 0 && 0 < len && len <= INLINE_MAX;
        if !usual || self.partial.is_some() {
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
        self.ready = None;
        self.waiter = AllocWaiter::new();
        self.failed = Some(error);
    }

    fn take_slot(&mut self, head: Head, out: &mut Batch<Frame>) -> Result<(), Stop> {
        match head.kind {
            k if k == Kind::Data as u8 => self.take_part(head, FrameKind::Data, out),
            k if k == Kind::Session as u8 => self.take_part(head, FrameKind::Session, out),
            k if k == Kind::Remote as u8 => self.take_part(head, FrameKind::Remote, out),
            k => self.take_control(head, k),
        }
    }

    fn take_control(&mut self, head: Head, kind: u8) -> Result<(), Stop> {
        if head.flags != 0 || self.partial.is_some() {
            return Err(lie("shm slot flags").into());
        }
        let mut words = [0; 2];
        match (kind, head.count) {
            (k, 16) if k == Kind::Grow as u8 => {
                self.ring.read(&mut words);
                let grow = Grow::unpack(words);
                self.arena.check(grow)?;
                let fd = self.shared.take_fd().ok_or(Stop::Stall(Stall::Descriptor))?;
                self.arena.grow(grow, fd)?;
            }
            (k, 8) if k == Kind::Retire as u8 => {
                self.ring.read(&mut words[..1]);
                let at = u8::try_from(words[0]).map_err(|_| lie("shm arena: index"))?;
                self.arena.retire(at)?;
            }
            (k, 0) if k == Kind::Close as u8 => self.closed = true,
            _ => return Err(lie("shm slot kind").into()),
        }
        Ok(())
    }

    /// Takes one slot of a data or session frame.
    fn take_part(&mut self, head: Head, kind: FrameKind, out: &mut Batch<Frame>) -> Result<(), Stop> {
        let seq = self.ring.seq();
        if head.flags & !(ACK | BY_REFERENCE | MORE) != 0 {
            return Err(lie("shm slot flags").into());
        }
        if let Some(first) = &self.partial {
            let same = (first.kind, first.seq, first.flags) == (kind, seq, head.flags & !MORE);
            if !same || head.flags & BY_REFERENCE == 0 {
                return Err(lie("shm slot: frame cut short").into());
            }
        } else if kind == FrameKind::Data && self.received >= self.credit.allowed() {
            return Err(lie("message beyond the credit").into());
        }
        if head.flags & BY_REFERENCE != 0 {
            return self.take_references(head, kind, seq, out);
        }
        if head.flags & MORE != 0 {
            return Err(lie("shm slot flags").into());
        }
        let payload = self.take_inline(head, kind)?;
        self.deliver(kind, head.flags, seq, payload, out);
        Ok(())
    }

    fn take_inline(&mut self, head: Head, kind: FrameKind) -> Result<Message, Stop> {
        let len = head.count as usize;
        if len > INLINE_MAX {
            return Err(lie("shm slot length").into());
        }
        if len == 0 {
            return Ok(Message::new());
        }
        let small = match self.leases.pressure() {
            Pressure::None => self.cut(len),
            _ => None,
        };
        let payload = match small {
            Some(payload) => payload,
            None => self.take_inline_alone(len)?,
        };
        if kind == FrameKind::Data {
            self.inline_bytes += len;
        }
        Ok(payload.into())
    }

    /// A payload that came in a slot, in a block of the pool.
    #[cold]
    fn take_inline_alone(&mut self, len: usize) -> Result<PinnedBuf, Stop> {
        let mut words = [0; INLINE_MAX / 8];
        self.ring.read(&mut words[..len.div_ceil(8)]);
        let mut buf = self.memory(len)?;
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
        buf.unfilled_mut()[..len].iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        buf.advance(len);
        Ok(buf.freeze())
    }

    fn take_references(
        &mut self,
        head: Head,
        kind: FrameKind,
        seq: u64,
        out: &mut Batch<Frame>,
    ) -> Result<(), Stop> {
        let (descriptors, len) = self.descriptors(head, kind)?;
        let mut whole = Message::new();
        self.fetch(&descriptors[..head.count as usize], len, kind, &mut whole)?;
        if let Some(partial) = self.partial.take() {
            let rest = std::mem::replace(&mut whole, partial.payload);
            for segment in rest.into_segments() {
                whole.push(segment).map_err(|_| lie("shm frame: segments"))?;
            }
        }
        if head.flags & MORE != 0 {
            self.partial = Some(Partial { kind, flags: head.flags & !MORE, seq, payload: whole });
            return Ok(());
        }
        self.deliver(kind, head.flags, seq, whole, out);
        Ok(())
    }

    /// The descriptors of a slot, whose places are not checked yet, and their bytes.
    fn descriptors(
        &self,
        head: Head,
        kind: FrameKind,
    ) -> Result<([Descriptor; SLOT_DESCRIPTORS], usize), LaneError> {
        let count = head.count as usize;
        let (before, bytes) =
            self.partial.as_ref().map_or((0, 0), |p| (p.payload.segments().len(), p.payload.len()));
        if count == 0 || count > SLOT_DESCRIPTORS || before + count > MAX_SEGMENTS {
            return Err(lie("shm slot: descriptors"));
        }
        let mut words = [0; 2 * SLOT_DESCRIPTORS];
        self.ring.read(&mut words[..2 * count]);
        let mut descriptors = [Descriptor::default(); SLOT_DESCRIPTORS];
        let (pairs, _) = words.as_chunks::<2>();
        // At most MAX_SEGMENTS lengths of 32 bits: no overflow.
        let mut len = 0;
        for (at, pair) in descriptors.iter_mut().zip(pairs).take(count) {
            *at = Descriptor::unpack(*pair);
            len += at.len as usize;
        }
        if bytes + len > kind.max_bytes(self.max_message) {
            return Err(lie("shm frame length"));
        }
        Ok((descriptors, len))
    }

    /// Lends the payload where it is, or copies it out. Every place is checked on the way (M6).
    fn fetch(
        &mut self,
        descriptors: &[Descriptor],
        len: usize,
        kind: FrameKind,
        out: &mut Message,
    ) -> Result<(), Stop> {
        // A record is small and soon done with, but whoever parses it must have it to himself.
        let lend = self.cooperative && kind == FrameKind::Data;
        if lend && self.leases.pressure() == Pressure::None {
            return self.lend(descriptors, out);
        }
        let mut buf = match self.memory(len) {
            Ok(buf) => buf,
            // Memory that can't be had is no reason to keep a friend waiting.
            Err(Stop::Stall(Stall::Memory(_))) if lend => return self.lend(descriptors, out),
            Err(stop) => return Err(stop),
        };
        for at in descriptors {
            let n = at.len as usize;
            self.arena.copy_out(at, &mut buf.unfilled_mut()[..n])?;
            buf.advance(n);
        }
        if kind == FrameKind::Data {
            self.ledger.copied(CopyPlace::CopyOut, len);
        }
        *out = buf.freeze().into();
        Ok(())
    }

    fn lend(&self, descriptors: &[Descriptor], out: &mut Message) -> Result<(), Stop> {
        if let [at] = descriptors {
            *out = self.arena.lend(at, &self.leases)?.into();
            return Ok(());
        }
        for at in descriptors {
            out.push(self.arena.lend(at, &self.leases)?).map_err(|_| lie("shm frame: segments"))?;
        }
        Ok(())
    }

    /// Memory of the pool, under the lease.
    fn memory(&mut self, len: usize) -> Result<PinnedBufMut, Stop> {
        let ready = self.ready.take().filter(|buf| buf.capacity() >= len);
        let mut buf = match ready.map_or_else(|| self.pool.try_alloc(len), Ok) {
            Ok(buf) => {
                if self.waiter.is_queued() {
                    // Served otherwise: a place that nobody looks after holds up all others.
                    self.waiter = AllocWaiter::new();
                }
                buf
            }
            Err(AllocError::Exhausted { .. }) => return Err(Stop::Stall(Stall::Memory(len))),
            Err(error) => return Err(LaneError::Memory(error.to_string()).into()),
        };
        buf.attach_lease(self.leases.clone());
        Ok(buf)
    }

    #[inline]
    fn deliver(&mut self, kind: FrameKind, flags: u8, seq: u64, payload: Message, out: &mut Batch<Frame>) {
        if kind == FrameKind::Data {
            self.received += frame_credit_bytes(payload.len());
        }
        out.push(Frame { kind, ack: flags & ACK != 0, seq, payload });
    }

    /// Tells the peer's sending half which slots are free.
    fn report(&mut self) {
        self.reported = self.ring.count();
        self.own.publish(CONSUMED, self.reported);
        if self.sender.must_ring() {
            self.shared.peer_bell.ring();
        }
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

    /// Waits for what stands in the way. Ready: try again.
    fn poll_stall(&mut self, cx: &mut Context<'_>, stall: Stall) -> Poll<()> {
        match stall {
            Stall::Memory(len) => {
                if let Ok(buf) = ready!(self.pool.poll_alloc(len, &mut self.waiter, cx)) {
                    self.ready = Some(buf);
                }
                Poll::Ready(())
            }
            // The driver wakes us when it comes, or the link ends.
            Stall::Descriptor => Poll::Pending,
        }
    }
}

impl LaneRx for Rx {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
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
                (Some(Stall::Descriptor) | None, Some(error)) => {
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
                (None, None) => {}
            }
            self.report();
            self.sleeper.arm();
            if self.ring.peek().is_some() || self.shared.ended().is_some() {
                continue;
            }
            if self.shared.poll_rung().is_pending() {
                return Poll::Pending;
            }
            // It may have rung for the other half.
            self.shared.wakers.tx.wake();
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
        let ended = self.shared.ended().is_some();
        let stall = self.take(out);
        if !out.is_empty() {
            self.sleeper.disarm();
            return Ok(Some(Received::Some));
        }
        if let Some(end) = self.nothing() {
            return end.map(Some);
        }
        if ended && matches!(stall, None | Some(Stall::Descriptor)) {
            let error = self.shared.ended().cloned().unwrap_or(LaneError::Closed);
            self.fail(error.clone());
            return Err(error);
        }
        // A sender that waits for slots is told of those left over from the last batch.
        if self.ring.count() != self.reported && self.sender.is_asleep() {
            self.reported = self.ring.count();
            self.own.publish(CONSUMED, self.reported);
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
