//! Frames on their way into the ring.

use smallvec::SmallVec;
use zc_core::memory::{Message, PinnedBuf, PinnedBufMut};
use zc_core::transport::{Frame, FrameKind, LaneError};

use super::Tx;
use crate::borrowed::Back;
use crate::group::{Place, Planned};
use crate::layout::{ACK, BY_REFERENCE, Descriptor, Head, Kind, MORE};
use crate::limits::{CONTROL_SLOTS, INLINE_MAX, SLOT_DESCRIPTORS};

/// Where a part of a frame comes from.
enum Piece {
    /// A segment that lies in the arena.
    Own(Descriptor),
    /// A segment that the peer lent us.
    Back(Back),
    /// A segment that lies in memory of a group.
    Shared(Place),
    /// So many segments, to be copied.
    Copy(PinnedBufMut, usize),
}

/// Why a frame was not put into the ring.
pub(super) enum Refused {
    NoRoom(Frame),
    Failed(Frame, LaneError),
}

impl Tx {
    /// Puts a frame into the ring. A report, if asked for, exists already.
    #[inline]
    pub(super) fn put(&mut self, frame: Frame, token: Option<u64>) -> Result<(), Refused> {
        if frame.payload.len() > INLINE_MAX {
            return match self.goes_in_parts(&frame) {
                false => self.put_by_reference(frame, token),
                true => self.put_large(frame, token),
            };
        }
        if self.put_inline(&frame) { Ok(()) } else { Err(Refused::NoRoom(frame)) }
    }

    /// Copies a small frame into its slot; false when there is none.
    #[inline]
    pub(super) fn put_inline(&mut self, frame: &Frame) -> bool {
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
        let mut is_looked_up = false;
        if let [only] = frame.payload.segments()
            && self.ring.free() > CONTROL_SLOTS
        {
            if let Some(at) = self.locate(only) {
                self.put_whole(frame, at, token);
                return Ok(());
            }
            if frame.kind == FrameKind::Data
                && let Some(back) = self.borrowed.find(only)
            {
                self.put_back(frame, back);
                return Ok(());
            }
            is_looked_up = true;
        }
        self.put_pieces(frame, token, is_looked_up)
    }

    /// The usual large message: one buffer from our own `poll_alloc`.
    fn put_whole(&mut self, frame: Frame, at: Descriptor, token: Option<u64>) {
        let (kind, flags) = kind_of(&frame);
        self.reports.expect(token, 1);
        let seq = frame.seq;
        // First: from the push on the peer may have it, and the receiving half have it back.
        if let Some(buf) = frame.payload.into_segments().next() {
            self.arena.hold(at, buf, token);
        }
        self.ring.push(Head::new(kind, flags | BY_REFERENCE, 1), seq, &at.pack());
        self.published = true;
    }

    /// The usual answer: a message of the peer, which goes back to it. No report waits for it.
    fn put_back(&mut self, frame: Frame, back: Back) {
        let (kind, flags) = kind_of(&frame);
        self.ring.push(Head::new(kind, flags | BY_REFERENCE, 1), frame.seq, &back.send().pack());
        self.published = true;
    }

    /// Where bytes of ours lie, if the peer has them not, or has given them back.
    #[inline]
    pub(super) fn locate(&mut self, buf: &PinnedBuf) -> Option<Descriptor> {
        match self.arena.locate(buf) {
            None if self.arena.has(buf) => {
                // A lie has ended the lane: whoever asks next is told.
                self.reap().ok()?;
                self.arena.locate(buf)
            }
            found => found,
        }
    }

    /// With `is_looked_up` it is known to lie neither in our arenas nor in the peer's.
    fn put_pieces(&mut self, frame: Frame, token: Option<u64>, is_looked_up: bool) -> Result<(), Refused> {
        let (kind, flags) = kind_of(&frame);
        let pieces = match self.plan(&frame.payload, kind, is_looked_up) {
            Ok(Some(pieces)) => pieces,
            Ok(None) if self.is_in_its_own_way(&frame) => return self.put_large(frame, token),
            Ok(None) => return Err(Refused::NoRoom(frame)),
            Err(error) => return Err(Refused::Failed(frame, error)),
        };
        if self.ring.free() < pieces.len().div_ceil(SLOT_DESCRIPTORS) as u64 + CONTROL_SLOTS {
            return Err(Refused::NoRoom(frame));
        }
        self.reports.expect(token, pieces.iter().filter(|p| !matches!(p, Piece::Back(_))).count());
        let (seq, mut left) = (frame.seq, pieces.len());
        let mut segments = frame.payload.into_segments();
        let mut words = SmallVec::<[u64; 2 * SLOT_DESCRIPTORS]>::new();
        for piece in pieces {
            let Some(at) = self.resolve(piece, &mut segments, kind, token) else { continue };
            words.extend(at.pack());
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
    fn plan(
        &mut self,
        payload: &Message,
        kind: Kind,
        is_looked_up: bool,
    ) -> Result<Option<SmallVec<[Piece; 2]>>, LaneError> {
        let mut pieces = SmallVec::<[Piece; 2]>::new();
        let (mut run, mut planned) = ((0, 0), Planned::default());
        if kind == Kind::Data && self.shown.is_used() {
            // What came back counts no longer against the peer's share.
            self.reap()?;
        }
        for segment in payload.segments() {
            let taken = |at: &Descriptor, p: &Piece| matches!(p, Piece::Own(d) if (d.slab, d.block) == (at.slab, at.block));
            let own = if is_looked_up { None } else { self.locate(segment) };
            let own = own.filter(|at| !pieces.iter().any(|p| taken(at, p)));
            let found = match own {
                None if kind == Kind::Data => {
                    let back = if is_looked_up { None } else { self.borrowed.find(segment) };
                    match back {
                        Some(back) => Some(Piece::Back(back)),
                        None => self.show(segment, &planned).map(Piece::Shared),
                    }
                }
                own => own.map(Piece::Own),
            };
            match found {
                Some(piece) => {
                    if !self.plan_copy(&mut pieces, &mut run)? {
                        return Ok(None);
                    }
                    if let Piece::Shared(place) = &piece {
                        planned.add(place, segment);
                    }
                    pieces.push(piece);
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

    /// What names a piece, which is filled and held for the peer.
    fn resolve(
        &mut self,
        piece: Piece,
        segments: &mut impl Iterator<Item = PinnedBuf>,
        kind: Kind,
        token: Option<u64>,
    ) -> Option<Descriptor> {
        let (at, buf) = match piece {
            Piece::Own(at) => (at, segments.next()?),
            // It goes with its segment, of which the owner has all that he needs.
            Piece::Back(back) => return segments.next().map(|_| back.send()),
            Piece::Shared(place) => return self.shown.lend(place, segments.next()?, token),
            Piece::Copy(mut buf, count) => {
                for segment in segments.take(count) {
                    let n = segment.len();
                    let to = &mut buf.unfilled_mut()[..n];
                    match kind {
                        Kind::Data | Kind::Remote => {
                            self.copies.copy(to, &segment, &self.ledger);
                        }
                        _ => copy_record(to, &segment),
                    }
                    buf.advance(n);
                }
                let buf = buf.freeze();
                (self.arena.locate(&buf)?, buf)
            }
        };
        self.arena.hold(at, buf, token);
        Some(at)
    }
}

pub(super) fn kind_of(frame: &Frame) -> (Kind, u8) {
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
