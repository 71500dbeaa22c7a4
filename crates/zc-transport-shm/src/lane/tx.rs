//! The sending half.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use smallvec::SmallVec;
use zc_core::memory::{
    AllocError, CopyLedger, CopyPlace, Message, PinnedBuf, PinnedBufMut, RegionError, copy_payload,
};
use zc_core::transport::{
    AllocFailure, Batch, Frame, FrameKind, LaneError, LaneTx, OfferContext, SendRejected, SendReport,
    SendToken,
};
use zc_core::wire::{MIN_FRAME_CREDIT_BYTES, WireError, frame_credit_bytes};

use super::Half;
use super::shared::Shared;
use crate::arena::{Arena, NewSlab};
use crate::layout::{ACK, BY_REFERENCE, CONSUMED, Descriptor, Head, Kind, MORE, RX_SLEEP, TAKEN, TX_SLEEP};
use crate::limits::{
    CONTROL_SLOTS, INLINE_MAX, MAX_FRAME_SLOTS, MAX_IDLE_RINGS, MAX_QUEUED_FRAMES, MAX_REPORTS, REAP_BATCH,
    REAP_BATCH_MAX_BYTES, SLOT_DESCRIPTORS,
};
use crate::returns::Returned;
use crate::ring::Producer;
use crate::sleep::{Ringer, Sleeper};
use crate::small::SmallBuffers;
use crate::words::{OwnWords, PeerWords, ReadWords};

/// The memory of the sending half.
pub(super) struct Memory {
    pub(super) own: OwnWords,
    pub(super) peer: PeerWords,
    /// Where the peer's return ring begins.
    pub(super) returns_at: usize,
    pub(super) mine: Half,
}

/// A frame that has no room yet.
struct Waiting {
    frame: Frame,
    token: Option<u64>,
}

/// A send whose end was asked for.
struct Report {
    token: u64,
    /// Blocks that the peer still holds, or the one that the queue does.
    left: u32,
}

/// Where a part of a frame comes from.
enum Piece {
    /// A segment that lies in the arena.
    Own(Descriptor),
    /// So many segments, to be copied.
    Copy(PinnedBufMut, usize),
}

/// Why a frame was not put into the ring.
enum Refused {
    NoRoom(Frame),
    Failed(Frame, LaneError),
}

/// The sending half.
pub(super) struct Tx {
    shared: Arc<Shared>,
    ring: Producer<OwnWords>,
    peer: PeerWords,
    sleeper: Sleeper<OwnWords>,
    /// The peer's receiving half.
    reader: Ringer<PeerWords>,
    returned: Returned<PeerWords>,
    arena: Arena,
    /// Blocks taken since the return ring was looked at.
    taken: u32,
    small: SmallBuffers,
    ledger: Arc<CopyLedger>,
    /// Payload bytes put into slots, not yet in the ledger.
    inline_bytes: usize,
    max_message: usize,
    window: u64,
    /// Credit bytes ([`frame_credit_bytes`]): sent, and up to where the peer allows.
    sent: u64,
    allowed: u64,
    queue: VecDeque<Waiting>,
    reports: VecDeque<Report>,
    tokens: u64,
    new_slab: Option<NewSlab>,
    /// Something was put into the ring since the last flush.
    published: bool,
    closing: bool,
    closed: bool,
    failed: Option<LaneError>,
}

fn lie(field: &'static str) -> LaneError {
    WireError::BadValue { field }.into()
}

impl Tx {
    pub(super) fn new(shared: Arc<Shared>, memory: Memory, cx: &OfferContext) -> Self {
        let Memory { own, peer, returns_at, mine } = memory;
        let Half { region, geometry, max_arena_bytes } = mine;
        let arena = Arena::new(region, geometry, max_arena_bytes, shared.wakers.tx.clone());
        let max_message = arena.max_len().min(cx.limits.send_max_message as usize);
        let window = u64::from(cx.limits.send_window);
        Self {
            shared,
            ring: Producer::new(own.clone(), geometry.ring_at(), geometry.slots),
            sleeper: Sleeper::new(own, TX_SLEEP),
            reader: Ringer::new(peer.clone(), RX_SLEEP),
            returned: Returned::new(peer.clone(), returns_at, geometry.returns),
            peer,
            arena,
            taken: 0,
            small: SmallBuffers::new(cx.pool.with_origin("shm tx")),
            ledger: cx.ledger.clone(),
            inline_bytes: 0,
            max_message,
            window,
            sent: 0,
            allowed: window,
            queue: VecDeque::new(),
            reports: VecDeque::new(),
            tokens: 0,
            new_slab: None,
            published: false,
            closing: false,
            closed: false,
            failed: None,
        }
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
        if self.shared.ended().is_some() {
            self.arena.release_all();
        }
        error
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
            return Err(self.caught(lie("shm consumed count")));
        }
        if taken > self.sent || taken + self.window < self.allowed {
            return Err(self.caught(lie("shm credit")));
        }
        self.allowed = taken + self.window;
        Ok(())
    }

    /// Takes over the blocks that came back.
    fn reap(&mut self) -> Result<(), LaneError> {
        while let Some(back) = self.returned.next() {
            match self.arena.take_back(back) {
                Ok(token) => self.settle(token),
                Err(error) => return Err(self.caught(error.into())),
            }
        }
        Ok(())
    }

    fn settle(&mut self, token: Option<u64>) {
        if let Some(report) = self.report_of(token) {
            report.left -= 1;
        }
    }

    /// Everything that may have become possible.
    fn advance(&mut self) -> Result<(), LaneError> {
        self.refresh()?;
        self.reap()?;
        while let Some(Waiting { frame, token }) = self.queue.pop_front() {
            match self.put(frame, token) {
                Ok(()) => self.settle(token),
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

    /// Puts a frame into the ring. A report, if asked for, exists already.
    #[inline]
    fn put(&mut self, frame: Frame, token: Option<u64>) -> Result<(), Refused> {
        if frame.payload.len() > INLINE_MAX {
            return self.put_by_reference(frame, token);
        }
        if self.put_inline(&frame) { Ok(()) } else { Err(Refused::NoRoom(frame)) }
    }

    /// Copies a small frame into its slot; false when there is none.
    #[inline]
    fn put_inline(&mut self, frame: &Frame) -> bool {
        if self.ring.free() <= CONTROL_SLOTS {
            return false;
        }
        let (kind, flags) = kind_of(frame);
        let len = frame.payload.len();
        let head = Head::new(kind, flags, len);
        let joined;
        let bytes = match frame.payload.segments() {
            [] => &[],
            [only] => &only[..],
            several => {
                joined = join(several);
                &joined[..len]
            }
        };
        self.ring.push_bytes(head, frame.seq, bytes);
        if kind == Kind::Data {
            self.inline_bytes += len;
        }
        self.published = true;
        true
    }

    fn put_by_reference(&mut self, frame: Frame, token: Option<u64>) -> Result<(), Refused> {
        if let [only] = frame.payload.segments()
            && self.ring.free() > CONTROL_SLOTS
            && let Some(at) = self.arena.locate(only)
        {
            self.put_whole(frame, at, token);
            return Ok(());
        }
        self.put_pieces(frame, token)
    }

    /// The usual large message: one buffer from our own `poll_alloc`.
    fn put_whole(&mut self, frame: Frame, at: Descriptor, token: Option<u64>) {
        let (kind, flags) = kind_of(&frame);
        if let Some(report) = self.report_of(token) {
            report.left += 1;
        }
        self.ring.push(Head::new(kind, flags | BY_REFERENCE, 1), frame.seq, &at.pack());
        if let Some(buf) = frame.payload.into_segments().next() {
            self.arena.hold(at, buf, token);
        }
        self.published = true;
    }

    fn report_of(&mut self, token: Option<u64>) -> Option<&mut Report> {
        let token = token?;
        self.reports.iter_mut().find(|r| r.token == token)
    }

    fn put_pieces(&mut self, frame: Frame, token: Option<u64>) -> Result<(), Refused> {
        let pieces = match self.plan(&frame.payload) {
            Ok(Some(pieces)) => pieces,
            Ok(None) => return Err(Refused::NoRoom(frame)),
            Err(error) => return Err(Refused::Failed(frame, error)),
        };
        if self.ring.free() < pieces.len().div_ceil(SLOT_DESCRIPTORS) as u64 + CONTROL_SLOTS {
            return Err(Refused::NoRoom(frame));
        }
        let (kind, flags) = kind_of(&frame);
        if let Some(report) = self.report_of(token) {
            report.left += pieces.len() as u32;
        }
        let (seq, mut left) = (frame.seq, pieces.len());
        let mut segments = frame.payload.into_segments();
        let mut words = SmallVec::<[u64; 2 * SLOT_DESCRIPTORS]>::new();
        for piece in pieces {
            let Some((at, buf)) = self.resolve(piece, &mut segments, kind) else { continue };
            words.extend(at.pack());
            self.arena.hold(at, buf, token);
            left -= 1;
            if words.len() == 2 * SLOT_DESCRIPTORS || left == 0 {
                let more = if left > 0 { MORE } else { 0 };
                self.ring.push(Head::new(kind, flags | BY_REFERENCE | more, words.len() / 2), seq, &words);
                words.clear();
            }
        }
        self.published = true;
        Ok(())
    }

    /// Where the parts of a message will lie; `None` while there is no memory for what must be copied.
    fn plan(&mut self, payload: &Message) -> Result<Option<SmallVec<[Piece; 2]>>, LaneError> {
        let mut pieces = SmallVec::<[Piece; 2]>::new();
        let mut run = (0, 0);
        for segment in payload.segments() {
            let taken = |at: &Descriptor, p: &Piece| matches!(p, Piece::Own(d) if (d.slab, d.block) == (at.slab, at.block));
            let found = self.arena.locate(segment).filter(|at| !pieces.iter().any(|p| taken(at, p)));
            match found {
                Some(at) => {
                    if !self.plan_copy(&mut pieces, &mut run)? {
                        return Ok(None);
                    }
                    pieces.push(Piece::Own(at));
                }
                None => run = (run.0 + 1, run.1 + segment.len()),
            }
        }
        Ok(self.plan_copy(&mut pieces, &mut run)?.then_some(pieces))
    }

    /// Memory for a run of segments that must be copied.
    fn plan_copy(
        &mut self,
        pieces: &mut SmallVec<[Piece; 2]>,
        run: &mut (usize, usize),
    ) -> Result<bool, LaneError> {
        let (segments, bytes) = std::mem::take(run);
        if segments == 0 {
            return Ok(true);
        }
        match self.memory(bytes) {
            Ok(Some(buf)) => {
                pieces.push(Piece::Copy(buf, segments));
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(LaneError::os("make shared memory", &error)),
        }
    }

    /// The buffer of a piece, filled.
    fn resolve(
        &self,
        piece: Piece,
        segments: &mut impl Iterator<Item = PinnedBuf>,
        kind: Kind,
    ) -> Option<(Descriptor, PinnedBuf)> {
        match piece {
            Piece::Own(at) => Some((at, segments.next()?)),
            Piece::Copy(mut buf, count) => {
                for segment in segments.take(count) {
                    let n = segment.len();
                    let to = &mut buf.unfilled_mut()[..n];
                    match kind {
                        Kind::Data | Kind::Remote => {
                            copy_payload(to, &segment, &self.ledger, CopyPlace::Foreign);
                        }
                        _ => copy_record(to, &segment),
                    }
                    buf.advance(n);
                }
                let buf = buf.freeze();
                Some((self.arena.locate(&buf)?, buf))
            }
        }
    }

    /// A block of the arena, which grows if it must and can.
    #[inline]
    fn memory(&mut self, len: usize) -> io::Result<Option<PinnedBufMut>> {
        self.taken += 1;
        if self.taken < REAP_BATCH
            && len <= REAP_BATCH_MAX_BYTES
            && let Some(buf) = self.arena.take(len)
        {
            return Ok(Some(buf));
        }
        self.taken = 0;
        // A lie has ended the lane: whoever asks next is told.
        if self.reap().is_err() {
            return Ok(None);
        }
        loop {
            if let Some(buf) = self.arena.take(len) {
                return Ok(Some(buf));
            }
            if !self.grow(len)? {
                return Ok(None);
            }
        }
    }

    /// Makes and announces a further arena; false while that is not possible.
    fn grow(&mut self, len: usize) -> io::Result<bool> {
        if self.new_slab.is_none() {
            if !self.shared.has_link() {
                return Ok(false);
            }
            self.new_slab = self.arena.prepare(len)?;
            while self.new_slab.is_none() && self.ring.free() > 1 {
                let Some(at) = self.arena.retire(false) else { break };
                self.announce(Kind::Retire, &[at.into()]);
                self.new_slab = self.arena.prepare(len)?;
            }
        }
        let Some(new) = &self.new_slab else { return Ok(false) };
        if self.ring.free() == 0 {
            return Ok(false);
        }
        let fd = new.region.fd().ok_or(io::ErrorKind::InvalidData)?;
        match self.shared.poll_send_fd(fd) {
            Poll::Pending => return Ok(false),
            Poll::Ready(done) => done?,
        }
        if let Some(new) = self.new_slab.take() {
            self.announce(Kind::Grow, &new.entry.pack());
            self.arena.install(new);
        }
        self.count_arenas();
        Ok(true)
    }

    fn announce(&mut self, kind: Kind, payload: &[u64]) {
        self.ring.push(Head::new(kind, 0, payload.len() * 8), 0, payload);
        self.published = true;
    }

    fn count_arenas(&self) {
        let grown = self.arena.grown();
        if self.shared.grown.swap(grown, Ordering::AcqRel) == 0 && grown > 0 {
            self.shared.wakers.drive.wake();
        }
    }

    /// Gives back arenas that were not used since the last look.
    #[cold]
    fn trim(&mut self) -> Result<(), LaneError> {
        self.shared.trim.store(false, Ordering::Release);
        self.reap()?;
        while self.ring.free() > 1 {
            let Some(at) = self.arena.retire(true) else { break };
            self.announce(Kind::Retire, &[at.into()]);
        }
        self.arena.age();
        self.count_arenas();
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
            self.arena.wait();
            self.check()?;
            self.advance()?;
            let done = ready(self);
            self.ring_bell();
            if done? {
                self.sleeper.disarm();
                return Poll::Ready(Ok(()));
            }
            if self.shared.poll_rung().is_pending() {
                return Poll::Pending;
            }
            self.shared.wakers.rx.wake();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
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
        self.tokens += 1;
        let cost = if frame.kind == FrameKind::Data { frame_credit_bytes(frame.payload.len()) } else { 0 };
        let token = report.then_some(self.tokens);
        if let Some(token) = token {
            self.reports.push_back(Report { token, left: 1 });
        }
        let put = if self.queue.is_empty() { self.put(frame, token) } else { Err(Refused::NoRoom(frame)) };
        match put {
            Ok(()) => self.settle(token),
            Err(Refused::NoRoom(frame)) => self.queue.push_back(Waiting { frame, token }),
            Err(Refused::Failed(frame, error)) => {
                if token.is_some() {
                    self.reports.pop_back();
                }
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

fn kind_of(frame: &Frame) -> (Kind, u8) {
    match frame.kind {
        FrameKind::Data => (Kind::Data, if frame.ack { ACK } else { 0 }),
        FrameKind::Session => (Kind::Session, 0),
        FrameKind::Remote => (Kind::Remote, 0),
    }
}

/// A small message of several segments, in one piece on its way into a slot.
#[allow(clippy::disallowed_methods, reason = "counted as inline with what goes into the slot")]
fn join(segments: &[PinnedBuf]) -> [u8; INLINE_MAX] {
    let mut bytes = [0; INLINE_MAX];
    let mut at = 0;
    for segment in segments {
        bytes[at..at + segment.len()].copy_from_slice(segment);
        at += segment.len();
    }
    bytes
}

#[allow(clippy::disallowed_methods, reason = "records of the session layer, not payload")]
fn copy_record(to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(from);
}

impl LaneTx for Tx {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        self.check()?;
        if len > self.max_message {
            let error = AllocError::TooLarge { need: len, max: self.max_message };
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
            self.advance()?;
        }
        self.ring_bell();
        if self.queue.is_empty() {
            return Poll::Ready(Ok(()));
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
            && let Some(report) = self.reports.front()
            && (failed || report.left == 0)
        {
            let how = if report.left == 0 { SendReport::Sent } else { SendReport::Failed };
            out.push((SendToken(report.token), how));
            self.reports.pop_front();
        }
        if !out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        alive?;
        match self.park(cx, |tx| Ok(tx.reports.front().is_some_and(|r| r.left == 0))) {
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
}

impl Drop for Tx {
    fn drop(&mut self) {
        self.ring.publish();
        let held = self.reap().is_ok() && self.shared.ended().is_none() && self.arena.holds_any();
        if held { self.arena.abandon() } else { self.arena.release_all() }
    }
}
