//! Messages that are longer than all arenas may be: in parts, as blocks come back.

use smallvec::SmallVec;
use zc_core::memory::{Message, PinnedBuf, PinnedBufMut};
use zc_core::transport::{Frame, FrameKind};

use super::Tx;
use super::put::{Refused, kind_of};
use crate::layout::{BY_REFERENCE, Descriptor, Head, Kind};
use crate::limits::{
    CONTROL_SLOTS, FIRST_BLOCK_BYTES, INLINE_MAX, MAX_PARTS, MIN_PART_COST_BYTES, PART_BYTES,
    PARTS_TURN_BYTES,
};

/// What is sent in parts.
pub(super) struct Large {
    /// Bytes that are out of the message in front of the queue, if it has begun.
    sent: Option<usize>,
    part_bytes: usize,
    turn: Turn,
}

impl Large {
    /// Where messages up to `max_whole` bytes go in one piece: several parts fit into the arenas.
    pub(super) fn new(max_whole: usize) -> Self {
        let part_bytes = (max_whole / 4).clamp(FIRST_BLOCK_BYTES as usize, PART_BYTES);
        Self { sent: None, part_bytes, turn: Turn::default() }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.sent.is_some()
    }

    /// Somebody calls: a turn begins, however often it is gone on with before the call returns.
    pub(super) fn begin_turn(&mut self) {
        self.turn = Turn::default();
    }

    /// It could perhaps go on, but others get their turn first.
    pub(super) fn is_turn_over(&self) -> bool {
        self.turn.bytes == 0
    }
}

/// What one turn may still do.
struct Turn {
    bytes: usize,
    /// No arena was refused yet.
    may_grow: bool,
}

impl Default for Turn {
    fn default() -> Self {
        Self { bytes: PARTS_TURN_BYTES, may_grow: true }
    }
}

/// Blocks of our arenas, each once.
type Blocks = SmallVec<[(usize, usize); 8]>;

impl Tx {
    /// Whether it is longer than all arenas may be, or has begun in parts.
    pub(super) fn goes_in_parts(&self, frame: &Frame) -> bool {
        frame.kind == FrameKind::Data && (frame.payload.len() > self.max_whole || self.large.has_begun())
    }

    /// Whether there was no memory for a message, and there is none to wait for: it is kept by the message itself, or by
    /// what waits behind it.
    #[cold]
    pub(super) fn is_in_its_own_way(&mut self, frame: &Frame) -> bool {
        let mut kept = Blocks::new();
        self.add_blocks(&frame.payload, &mut kept);
        frame.kind == FrameKind::Data
            && (self.never_fits(&frame.payload, &kept) || self.nothing_comes_back(kept))
    }

    /// Whether what must be copied could not be had if all else came back.
    fn never_fits(&self, payload: &Message, kept: &[(usize, usize)]) -> bool {
        let (mut run, mut longest) = (0, 0);
        for segment in payload.segments() {
            let stays = self.arena.block_of(segment).is_some() || self.borrowed.find(segment).is_some();
            run = if stays { 0 } else { run + segment.len() };
            longest = longest.max(run);
        }
        // What is of a group need not be copied, at another time.
        longest > 0 && !self.shown.is_used() && !self.arena.could_hold(longest, kept)
    }

    /// Whether nobody has a block but the message that keeps `kept`, and those behind it.
    fn nothing_comes_back(&mut self, mut kept: Blocks) -> bool {
        let read = self.ring.consumed();
        let lives = self.refresh().is_ok();
        let waits = self.arena.holds_any()
            || self.shown.has_loans()
            || self.new_slab.is_some()
            || !self.shared.has_link()
            || self.ring.free() <= CONTROL_SLOTS
            || !self.may_announce();
        // With what the peer has read meanwhile there may be more: that is looked at first.
        if waits || !lives || self.ring.consumed() != read {
            return false;
        }
        for waiting in &self.queue {
            self.add_blocks(&waiting.frame.payload, &mut kept);
        }
        self.arena.blocks_out() == kept.len()
    }

    fn add_blocks(&self, payload: &Message, to: &mut Blocks) {
        for block in payload.segments().iter().filter_map(|segment| self.arena.block_of(segment)) {
            if !to.contains(&block) {
                to.push(block);
            }
        }
    }

    /// Puts as much of a message into the ring as there is room for and one turn may take.
    #[cold]
    pub(super) fn put_large(&mut self, frame: Frame, token: Option<u64>) -> Result<(), Refused> {
        if !self.large.has_begun() && !self.begin_large(&frame) {
            return Err(Refused::NoRoom(frame));
        }
        while let Some(rest) = rest_from(&frame.payload, self.large.sent.unwrap_or(0)) {
            if self.large.is_turn_over() {
                return Err(Refused::NoRoom(frame));
            }
            let Some(bytes) = self.put_part(rest, frame.seq, token) else {
                return Err(Refused::NoRoom(frame));
            };
            self.large.sent = self.large.sent.map(|sent| sent + bytes);
            self.large.turn.bytes = self.large.turn.bytes.saturating_sub(bytes.max(MIN_PART_COST_BYTES));
            self.published = true;
            if bytes > INLINE_MAX {
                // The peer takes it while the next one is copied.
                self.ring_bell();
            }
        }
        self.large.sent = None;
        Ok(())
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
        if let Some(at) = self.locate(&rest) {
            let bytes = rest.len();
            self.reports.expect(token, 1);
            self.arena.hold(at, rest, token);
            self.name_part(at, seq);
            return Some(bytes);
        }
        let Some(mut buf) = self.part_memory() else {
            // Copied parts come back at once. All else may be kept for ever, or be in this very message.
            let waits = self.arena.parts_out() > 0;
            return (!waits).then(|| self.put_part_inline(&rest, seq));
        };
        let bytes = rest.len().min(self.large.part_bytes).min(buf.capacity());
        self.copies.copy(&mut buf.unfilled_mut()[..bytes], &rest[..bytes], &self.ledger);
        buf.advance(bytes);
        let buf = buf.freeze();
        let at = self.arena.locate(&buf)?;
        self.arena.hold_part(at, buf);
        self.name_part(at, seq);
        Some(bytes)
    }

    fn name_part(&mut self, at: Descriptor, seq: u64) {
        self.ring.push(Head::new(Kind::Part, BY_REFERENCE, 1), seq, &at.pack());
    }

    fn put_part_inline(&mut self, rest: &PinnedBuf, seq: u64) -> usize {
        let bytes = rest.len().min(INLINE_MAX);
        self.ring.push_bytes(Head::new(Kind::Part, 0, bytes), seq, &rest[..bytes]);
        self.inline_bytes += bytes;
        bytes
    }

    /// A block for a part: a shorter one rather than none.
    fn part_memory(&mut self) -> Option<PinnedBufMut> {
        // A lie has ended the lane: whoever asks next is told.
        self.reap().ok()?;
        if self.arena.parts_out() >= MAX_PARTS {
            return None;
        }
        let len = self.large.part_bytes;
        if let Some(buf) = self.arena.take(len) {
            return Some(buf);
        }
        // In vain, it would take away short ones.
        if self.large.turn.may_grow && self.arena.could_make(len) {
            // What the system does not grant is done without, and not asked for again in this turn.
            let grown = self.memory(len).ok().flatten();
            self.large.turn.may_grow = grown.is_some();
            if grown.is_some() {
                return grown;
            }
        }
        self.arena.take(1)
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
