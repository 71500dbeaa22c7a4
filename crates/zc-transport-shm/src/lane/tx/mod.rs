//! The sending half.

mod chooser;
mod copies;
mod large;
mod memory;
mod put;
mod reports;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use zc_core::memory::{AllocError, CopyLedger, MemoryGroup, PinnedBufMut, RegionError, RegisterError};
use zc_core::transport::{
    AllocFailure, Batch, Frame, FrameKind, LaneError, LaneTx, OfferContext, SendRejected, SendReport,
    SendToken,
};
use zc_core::wire::{MIN_FRAME_CREDIT_BYTES, WireError, frame_credit_bytes};

use self::copies::Copies;
use self::large::Large;
use self::put::Refused;
use self::reports::Reports;
use super::Half;
use super::shared::Shared;
use crate::abandoned;
use crate::arena::{Arena, NewSlab};
use crate::borrowed::Borrowed;
use crate::group::{Opened, Shown};
use crate::layout::{CONSUMED, Kind, PASSED_ON, RX_SLEEP, Return, SHARED, TAKEN, TX_SLEEP};
use crate::lie::lie;
use crate::limits::{
    CONTROL_SLOTS, INLINE_MAX, MAX_FRAME_SLOTS, MAX_IDLE_RINGS, MAX_QUEUED_FRAMES, MAX_REPORTS,
};
use crate::out::Out;
use crate::returns::Returned;
use crate::ring::Producer;
use crate::sleep::{Ringer, Sleeper};
use crate::small::SmallBuffers;
use crate::words::{OwnWords, PeerWords, ReadWords, WriteWords};

/// The memory of the sending half.
pub(super) struct Memory {
    pub(super) own: OwnWords,
    pub(super) peer: PeerWords,
    /// Where the peer's return ring begins.
    pub(super) returns_at: usize,
    pub(super) mine: Half,
    /// The peer's arenas.
    pub(super) opened: Arc<Opened>,
    /// What of them is lent to us.
    pub(super) borrowed: Arc<Borrowed>,
    /// What does not fit into `mine` is sent in parts.
    pub(super) longer_in_parts: bool,
    /// Long copies into `mine` may go past the caches.
    pub(super) streaming_copies: bool,
}

/// A frame that has no room yet.
struct Waiting {
    frame: Frame,
    token: Option<u64>,
}

/// The sending half.
pub(super) struct Tx {
    shared: Arc<Shared>,
    ring: Producer<OwnWords>,
    own: OwnWords,
    peer: PeerWords,
    sleeper: Sleeper<OwnWords>,
    /// The peer's receiving half.
    reader: Ringer<PeerWords>,
    returned: Returned<PeerWords>,
    arena: Arena,
    /// What the peer lent us.
    borrowed: Arc<Borrowed>,
    /// Memory of groups.
    shown: Shown,
    /// Blocks taken since the return ring was looked at.
    taken: u32,
    small: SmallBuffers,
    ledger: Arc<CopyLedger>,
    copies: Copies,
    /// Payload bytes put into slots, not yet in the ledger.
    inline_bytes: usize,
    max_message: usize,
    /// The longest message that goes in one piece.
    max_whole: usize,
    /// What is sent in parts.
    large: Large,
    window: u64,
    /// Credit bytes ([`frame_credit_bytes`]): sent, and up to where the peer allows.
    sent: u64,
    allowed: u64,
    queue: VecDeque<Waiting>,
    reports: Reports,
    tokens: u64,
    new_slab: Option<NewSlab>,
    /// All further arenas are in use: nobody looks for unused ones until something comes back.
    resting: bool,
    /// Where in the ring arenas are announced that the peer has not read of, as far as we know.
    announced: VecDeque<u64>,
    /// Something was put into the ring since the last flush.
    published: bool,
    closing: bool,
    closed: bool,
    failed: Option<LaneError>,
}

impl Tx {
    pub(super) fn new(shared: Arc<Shared>, memory: Memory, cx: &OfferContext) -> Self {
        let Memory { own, peer, returns_at, mine, opened, borrowed, longer_in_parts, streaming_copies } =
            memory;
        let Half { region, geometry, max_arena_bytes } = mine;
        let arena = Arena::new(region, geometry, max_arena_bytes, shared.wakers.tx.clone());
        let (max_arena, max_message) = (arena.max_len(), cx.limits.send_max_message as usize);
        let max_whole = max_arena.min(max_message);
        let max_message = if longer_in_parts { max_message } else { max_whole };
        let window = u64::from(cx.limits.send_window);
        let chores = shared.chores.clone();
        Self {
            shared,
            ring: Producer::new(own.clone(), geometry.ring_at(), geometry.slots),
            sleeper: Sleeper::new(own.clone(), TX_SLEEP),
            own,
            reader: Ringer::new(peer.clone(), RX_SLEEP),
            returned: Returned::new(peer.clone(), returns_at, geometry.returns),
            peer,
            arena,
            borrowed,
            shown: Shown::new(max_arena_bytes, &cx.limits, opened, chores),
            taken: 0,
            small: SmallBuffers::new(cx.pool.with_origin("shm tx")),
            ledger: cx.ledger.clone(),
            copies: Copies::new(streaming_copies),
            inline_bytes: 0,
            max_message,
            max_whole,
            large: Large::new(max_whole),
            window,
            sent: 0,
            allowed: window,
            queue: VecDeque::new(),
            reports: Reports::default(),
            tokens: 0,
            new_slab: None,
            resting: false,
            announced: VecDeque::new(),
            published: false,
            closing: false,
            closed: false,
            failed: None,
        }
    }

    /// What the peer holds of ours, for the receiving half.
    pub(super) fn out(&self) -> Arc<Out> {
        self.arena.out()
    }

    pub(super) fn max_message(&self) -> u32 {
        u32::try_from(self.max_message).unwrap_or(u32::MAX)
    }

    #[inline]
    fn check(&mut self) -> Result<(), LaneError> {
        if self.failed.is_none() && self.shared.ended().is_none() {
            return Ok(());
        }
        Err(self.fail_now())
    }

    #[cold]
    fn fail_now(&mut self) -> LaneError {
        let ended = self.shared.ended().cloned().unwrap_or(LaneError::Closed);
        let error = self.failed.get_or_insert(ended).clone();
        self.queue.clear();
        self.let_go();
        error
    }

    /// After the end: takes what comes back. The end of the lane is not that of the peer's readers, so what
    /// they may read stays held until they are gone (M2). Whom the peer has passed our arenas on to may outlive it: then
    /// only what came back before is free.
    fn let_go(&mut self) {
        let gone = self.shared.readers_gone();
        while let Some(back) = self.returned.next() {
            let Ok(token) = self.take_back(back) else { break };
            self.reports.settle(token);
        }
        self.settle_caught_up();
        if gone {
            drop(self.shown.end());
            if self.peer.load(PASSED_ON) == 0 {
                self.arena.release_all();
            }
        }
    }

    /// The peer gave something back (M6). The send that waits for it.
    #[inline]
    fn take_back(&mut self, back: Return) -> Result<Option<u64>, WireError> {
        if back.slab & SHARED != 0 { self.shown.take_back(back) } else { self.arena.take_back(back) }
    }

    /// The peer lied: the lane is at its end.
    #[cold]
    fn caught(&mut self, error: LaneError) -> LaneError {
        self.shared.end(error.clone());
        self.fail_now();
        error
    }

    #[inline]
    fn has_room(&self) -> bool {
        self.queue.is_empty()
            && self.sent < self.allowed
            && self.ring.free() >= MAX_FRAME_SLOTS + CONTROL_SLOTS
            && self.reports.len() < MAX_REPORTS
    }

    /// Takes over what the peer has read and allows (M6).
    fn refresh(&mut self) -> Result<(), LaneError> {
        let (consumed, taken) = (self.peer.load(CONSUMED), self.peer.load(TAKEN));
        if !self.ring.update(consumed) {
            return Err(self.caught(lie("shm consumed count").into()));
        }
        if taken > self.sent || taken + self.window < self.allowed {
            return Err(self.caught(lie("shm credit").into()));
        }
        self.allowed = taken + self.window;
        Ok(())
    }

    /// Takes over the blocks that came back.
    fn reap(&mut self) -> Result<(), LaneError> {
        while let Some(back) = self.returned.next() {
            match self.take_back(back) {
                Ok(token) => {
                    self.reports.settle(token);
                    if self.large.has_begun() {
                        self.shared.hear();
                    }
                }
                Err(error) => return Err(self.caught(error.into())),
            }
        }
        self.settle_caught_up();
        Ok(())
    }

    /// Takes over what came back before the messages that it was sent back by were read.
    #[inline]
    fn settle_caught_up(&mut self) {
        while let Some(token) = self.arena.take_caught_up() {
            self.reports.settle(token);
        }
    }

    /// Everything that may have become possible.
    fn advance(&mut self) -> Result<(), LaneError> {
        let read = self.ring.consumed();
        self.refresh()?;
        self.reap()?;
        if self.large.has_begun() && self.ring.consumed() != read {
            self.shared.hear();
        }
        while !self.large.is_turn_over()
            && let Some(Waiting { frame, token }) = self.queue.pop_front()
        {
            match self.put(frame, token) {
                Ok(()) => self.reports.settle(token),
                Err(Refused::NoRoom(frame)) => {
                    self.queue.push_front(Waiting { frame, token });
                    break;
                }
                Err(Refused::Failed(_, error)) => {
                    self.failed.get_or_insert(error);
                    return self.check();
                }
            }
        }
        Ok(())
    }

    /// Shows the peer what is in the ring and wakes it, if it sleeps: once per batch.
    #[inline]
    fn ring_bell(&mut self) {
        if self.published {
            self.published = false;
            self.ring.publish();
            if self.reader.must_ring() {
                self.shared.peer_bell.ring();
            }
        }
        // Last, since nobody waits for it.
        if self.inline_bytes > 0 {
            self.ledger.inline(std::mem::take(&mut self.inline_bytes));
        }
    }

    /// Sleeps until `ready` says so: what the peer waits for is out, and nothing is missed.
    fn park(
        &mut self,
        cx: &mut Context<'_>,
        mut ready: impl FnMut(&mut Self) -> Result<bool, LaneError>,
    ) -> Poll<Result<(), LaneError>> {
        for _ in 0..MAX_IDLE_RINGS {
            self.shared.wakers.tx.register(cx.waker());
            self.sleeper.arm();
            if self.arena.wait() {
                self.stir();
            }
            self.check()?;
            self.advance()?;
            let done = ready(self);
            self.ring_bell();
            if done? {
                self.sleeper.disarm();
                return Poll::Ready(self.watch(cx));
            }
            if self.large.is_turn_over() {
                break;
            }
            if self.shared.poll_rung().is_pending() {
                return Poll::Pending;
            }
            self.shared.wakers.rx.wake();
            self.shared.wakers.remote.wake();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Has the bell rung for what the peer gives back though nobody waits for it here. Of groups others do: for credit and
    /// blocks of the connection it was forwarded from, or for memory of the group. Of further arenas, to take them away.
    #[inline]
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), LaneError> {
        if self.shown.has_loans() || self.resting { self.wait_for_returns(cx) } else { Ok(()) }
    }

    fn waits_for_returns(&self) -> bool {
        self.shown.has_loans() || self.resting && self.arena.holds_any()
    }

    #[cold]
    fn wait_for_returns(&mut self, cx: &mut Context<'_>) -> Result<(), LaneError> {
        for _ in 0..MAX_IDLE_RINGS {
            self.shared.wakers.tx.register(cx.waker());
            if self.waits_for_returns() {
                let rang = self.shared.take_rang();
                if rang {
                    self.stir();
                }
                // Who was rung for once is not again, so that a stream of messages costs few rings.
                if rang || !self.sleeper.is_armed() {
                    self.sleeper.arm();
                    self.reap()?;
                }
            }
            // The other half may have read what was given back before; no bell rings for that.
            self.settle_caught_up();
            if self.resting && self.arena.came_back() {
                self.stir();
            }
            if !self.waits_for_returns() || self.shared.poll_rung().is_pending() {
                return Ok(());
            }
            self.shared.wakers.rx.wake();
            self.shared.wakers.remote.wake();
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Whether a message of `len` bytes can go into the next slot as it is.
    #[inline]
    fn takes_small(&self, len: usize) -> bool {
        len <= INLINE_MAX.min(self.max_message)
            && self.queue.is_empty()
            && self.ring.free() > CONTROL_SLOTS
            && !self.closing
            && self.failed.is_none()
            && self.shared.ended().is_none()
    }

    fn start_any(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        if let Some(error) = self.refusal(&frame) {
            return Err(SendRejected { frame, error });
        }
        self.large.begin_turn();
        self.tokens += 1;
        let cost = if frame.kind == FrameKind::Data { frame_credit_bytes(frame.payload.len()) } else { 0 };
        let token = report.then_some(self.tokens);
        self.reports.open(token);
        let put = if self.queue.is_empty() { self.put(frame, token) } else { Err(Refused::NoRoom(frame)) };
        match put {
            Ok(()) => self.reports.settle(token),
            Err(Refused::NoRoom(frame)) => self.queue.push_back(Waiting { frame, token }),
            Err(Refused::Failed(frame, error)) => {
                self.reports.withdraw(token);
                return Err(SendRejected { frame, error });
            }
        }
        self.sent += cost;
        Ok(SendToken(self.tokens))
    }

    fn refusal(&mut self, frame: &Frame) -> Option<LaneError> {
        if let Err(error) = self.check() {
            return Some(error);
        }
        let len = frame.payload.len();
        let max = frame.kind.max_bytes(self.max_message);
        if self.closing {
            Some(LaneError::Closed)
        } else if len > max {
            Some(LaneError::Other(format!("a frame of {len} bytes; at most {max} are taken")))
        } else if self.queue.len() >= MAX_QUEUED_FRAMES || self.reports.len() >= 2 * MAX_REPORTS {
            Some(LaneError::Other("the queue is full".into()))
        } else {
            None
        }
    }
}

impl LaneTx for Tx {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        self.check()?;
        if len > self.max_whole {
            let error = AllocError::TooLarge { need: len, max: self.max_whole };
            return Poll::Ready(Err(error.into()));
        }
        if len <= INLINE_MAX
            && let Some(buf) = self.small.take()
        {
            return Poll::Ready(Ok(buf));
        }
        let os = |errno| AllocFailure::from(AllocError::Os(RegionError::Os { what: "shared memory", errno }));
        if let Some(buf) = self.memory(len).map_err(os)? {
            return Poll::Ready(Ok(buf));
        }
        let (mut found, mut failed) = (None, None);
        self.large.begin_turn();
        let done = self.park(cx, |tx| {
            match tx.memory(len) {
                Ok(buf) => found = buf,
                Err(error) => failed = Some(error),
            }
            Ok(found.is_some() || failed.is_some())
        });
        match (done, found, failed) {
            (Poll::Ready(Err(error)), ..) => Poll::Ready(Err(error.into())),
            (_, Some(buf), _) => Poll::Ready(Ok(buf)),
            (_, _, Some(error)) => Poll::Ready(Err(os(error))),
            _ => Poll::Pending,
        }
    }

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), LaneError>> {
        self.check()?;
        if self.closing {
            return Poll::Ready(Err(LaneError::Closed));
        }
        if len > self.max_message {
            let text = format!("a message of {len} bytes; at most {} are taken", self.max_message);
            return Poll::Ready(Err(LaneError::Other(text)));
        }
        if self.has_room() {
            return Poll::Ready(Ok(()));
        }
        self.large.begin_turn();
        self.advance()?;
        if self.has_room() {
            return Poll::Ready(Ok(()));
        }
        self.park(cx, |tx| Ok(tx.has_room()))
    }

    #[inline]
    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        // The usual small message is done with here.
        if frame.kind == FrameKind::Data && !report && self.takes_small(frame.payload.len()) {
            self.put_inline(&frame);
            self.small.keep(frame.payload);
            self.sent += MIN_FRAME_CREDIT_BYTES as u64;
            self.tokens += 1;
            return Ok(SendToken(self.tokens));
        }
        self.start_any(frame, report)
    }

    #[inline]
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.check()?;
        if self.shared.trim.load(Ordering::Relaxed) {
            self.trim()?;
        }
        if !self.queue.is_empty() {
            self.large.begin_turn();
            self.advance()?;
        }
        self.ring_bell();
        if self.queue.is_empty() {
            return Poll::Ready(self.watch(cx));
        }
        self.park(cx, |tx| Ok(tx.queue.is_empty()))
    }

    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>> {
        let alive = self.check().and_then(|()| self.reap());
        let failed = alive.is_err();
        while !out.is_full()
            && let Some(done) = self.reports.pop(failed)
        {
            out.push(done);
        }
        if !out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        alive?;
        self.large.begin_turn();
        match self.park(cx, |tx| Ok(tx.reports.is_done())) {
            // One came while it was going to sleep, or the lane ended: both are told at once.
            Poll::Ready(_) => self.poll_completions(cx, out),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        self.check()?;
        self.closing = true;
        self.large.begin_turn();
        self.advance()?;
        if !self.queue.is_empty() || self.ring.free() == 0 {
            match self.park(cx, |tx| Ok(tx.queue.is_empty() && tx.ring.free() > 0)) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        }
        self.announce(Kind::Close, &[]);
        self.closed = true;
        self.ring_bell();
        Poll::Ready(Ok(()))
    }

    fn join_group(&mut self, group: &MemoryGroup) -> Result<(), RegisterError> {
        if group.forwards() {
            // Before anyone else can read it, so that the peer knows whenever we are gone.
            self.own.publish(PASSED_ON, 1);
        }
        self.shown.join(group)
    }

    fn leave_group(&mut self, group: &MemoryGroup) {
        // Nobody needs to hear of it soon: the next look for unused arenas tells the peer.
        self.shown.leave(group.id());
        self.shown.rest();
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        self.ring.publish();
        self.let_go();
        let held = self.arena.out().leave();
        abandoned::keep(held, self.shown.end(), self.shared.link(), self.peer.clone());
    }
}
