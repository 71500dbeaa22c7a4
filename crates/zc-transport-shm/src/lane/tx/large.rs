//! Messages that are longer than all arenas may be: in parts, as blocks come back.

use zc_core::memory::{CopyPlace, Message, PinnedBuf, PinnedBufMut, copy_payload};
use zc_core::transport::{Frame, FrameKind};

use super::Tx;
use super::put::{Refused, kind_of};
use crate::layout::{BY_REFERENCE, Descriptor, Head, Kind};
use crate::limits::{CONTROL_SLOTS, FIRST_BLOCK_BYTES, INLINE_MAX, MAX_PARTS, PART_BYTES, PARTS_PER_TURN};

/// What is sent in parts.
pub(super) struct Large {
    /// Bytes that are out of the message in front of the queue, if it has begun.
    sent: Option<usize>,
    part_bytes: usize,
    /// It could go on, but others get their turn first.
    turn_over: bool,
}

impl Large {
    /// Where messages up to `max_whole` bytes go in one piece: several parts fit into the arenas.
    pub(super) fn new(max_whole: usize) -> Self {
        let part_bytes = (max_whole / 4).clamp(FIRST_BLOCK_BYTES as usize, PART_BYTES);
        Self { sent: None, part_bytes, turn_over: false }
    }

    pub(super) fn take_turn_over(&mut self) -> bool {
        std::mem::take(&mut self.turn_over)
    }
}

impl Tx {
    /// Whether it is longer than all arenas may be, or has begun in parts.
    pub(super) fn goes_in_parts(&self, frame: &Frame) -> bool {
        frame.kind == FrameKind::Data && (frame.payload.len() > self.max_whole || self.large.sent.is_some())
    }

    /// Whether there is no memory for the rest of a message because parts of it lie in the arenas: it would wait
    /// for itself.
    pub(super) fn is_in_its_own_way(&self, frame: &Frame) -> bool {
        frame.kind == FrameKind::Data
            && !self.arena.holds_any()
            && frame.payload.segments().iter().any(|segment| self.arena.locate(segment).is_some())
    }

    /// Puts as much of a message into the ring as there is room for and one turn may take.
    #[cold]
    pub(super) fn put_large(&mut self, frame: Frame, token: Option<u64>) -> Result<(), Refused> {
        if self.large.sent.is_none() && !self.begin_large(&frame) {
            return Err(Refused::NoRoom(frame));
        }
        for _ in 0..PARTS_PER_TURN {
            let sent = self.large.sent.unwrap_or(0);
            let Some(rest) = rest_from(&frame.payload, sent) else {
                self.large.sent = None;
                return Ok(());
            };
            let Some(bytes) = self.put_part(rest, frame.seq, token) else {
                return Err(Refused::NoRoom(frame));
            };
            self.large.sent = Some(sent + bytes);
            // The peer takes it while the next one is copied.
            self.published = true;
            self.ring_bell();
        }
        self.large.turn_over = true;
        Err(Refused::NoRoom(frame))
    }

    fn begin_large(&mut self, frame: &Frame) -> bool {
        if self.ring.free() <= CONTROL_SLOTS {
            return false;
        }
        let (_, flags) = kind_of(frame);
        self.ring.push(Head::new(Kind::Large, flags, 8), frame.seq, &[frame.payload.len() as u64]);
        self.large.sent = Some(0);
        true
    }

    /// Sends some of `rest`, which lies in one segment. How much, unless there is no room.
    fn put_part(&mut self, rest: PinnedBuf, seq: u64, token: Option<u64>) -> Option<usize> {
        if self.ring.free() <= CONTROL_SLOTS {
            return None;
        }
        if let Some(at) = self.arena.locate(&rest) {
            let bytes = rest.len();
            self.reports.expect(token, 1);
            self.put_part_at(at, rest, seq, token);
            return Some(bytes);
        }
        let Some(mut buf) = self.part_memory() else {
            // What the peer holds will come back. If it holds nothing, all may be in this very message.
            let stuck = !self.arena.holds_any();
            return stuck.then(|| self.put_part_inline(&rest, seq));
        };
        let bytes = rest.len().min(self.large.part_bytes);
        copy_payload(&mut buf.unfilled_mut()[..bytes], &rest[..bytes], &self.ledger, CopyPlace::Foreign);
        buf.advance(bytes);
        let buf = buf.freeze();
        let at = self.arena.locate(&buf)?;
        self.put_part_at(at, buf, seq, None);
        Some(bytes)
    }

    fn put_part_at(&mut self, at: Descriptor, buf: PinnedBuf, seq: u64, token: Option<u64>) {
        self.ring.push(Head::new(Kind::Part, BY_REFERENCE, 1), seq, &at.pack());
        self.arena.hold(at, buf, token);
    }

    fn put_part_inline(&mut self, rest: &PinnedBuf, seq: u64) -> usize {
        let bytes = rest.len().min(INLINE_MAX);
        self.ring.push_bytes(Head::new(Kind::Part, 0, bytes), seq, &rest[..bytes]);
        self.inline_bytes += bytes;
        bytes
    }

    /// A block for a part; only a few are made.
    fn part_memory(&mut self) -> Option<PinnedBufMut> {
        let len = self.large.part_bytes;
        // A lie has ended the lane: whoever asks next is told.
        self.reap().ok()?;
        if let Some(buf) = self.arena.take(len) {
            return Some(buf);
        }
        if self.arena.blocks_for(len) >= MAX_PARTS {
            return None;
        }
        // What the system does not grant is done without.
        self.memory(len).ok().flatten()
    }
}

/// What is left, from byte `at` on, of the segment in which it lies.
fn rest_from(payload: &Message, mut at: usize) -> Option<PinnedBuf> {
    for segment in payload.segments() {
        if at < segment.len() {
            return Some(segment.slice(at..));
        }
        at -= segment.len();
    }
    None
}
