//! What a slot says, checked (M6), and what becomes of it.

use zc_core::memory::{MAX_SEGMENTS, Message, PinnedBuf, Pressure};
use zc_core::transport::{Batch, Frame, FrameKind, LaneError};
use zc_core::wire::frame_credit_bytes;

use super::{Partial, Rx, Stall, Stop};
use crate::layout::{ACK, BY_REFERENCE, Descriptor, Grow, Head, Kind, MORE, Share};
use crate::lie::lie;
use crate::limits::{INLINE_MAX, SLOT_DESCRIPTORS};
use crate::spare;

impl Rx {
    pub(super) fn take_slot(&mut self, head: Head, out: &mut Batch<Frame>) -> Result<(), Stop> {
        match head.kind {
            k if k == Kind::Part as u8 => self.take_large_part(head, out),
            k if self.large.is_some() && !may_be_between_parts(k) => Err(lie("shm message cut short").into()),
            k if k == Kind::Data as u8 => self.take_part(head, FrameKind::Data, out),
            k if k == Kind::Session as u8 => self.take_part(head, FrameKind::Session, out),
            k if k == Kind::Remote as u8 => self.take_part(head, FrameKind::Remote, out),
            k if k == Kind::Large as u8 => self.begin_large(head),
            k => self.take_control(head, k),
        }
    }

    fn take_control(&mut self, head: Head, kind: u8) -> Result<(), Stop> {
        if head.flags != 0 || self.partial.is_some() {
            return Err(lie("shm slot flags").into());
        }
        let mut words = [0; 2];
        match (kind, head.count) {
            (k, 16) if k == Kind::Grow as u8 && self.mapped => return Err(Stop::Stall(Stall::Turn)),
            (k, 16) if k == Kind::Grow as u8 => {
                self.ring.read(&mut words);
                let grow = Grow::unpack(words);
                self.arena.check(grow)?;
                let fd = self.shared.take_fd()?;
                self.arena.grow(grow, fd)?;
                self.has_mapped();
            }
            (k, 16) if k == Kind::Share as u8 && self.mapped => return Err(Stop::Stall(Stall::Turn)),
            (k, 16) if k == Kind::Share as u8 => {
                self.ring.read(&mut words);
                let share = Share::unpack(words);
                self.arena.check_share(share)?;
                let fd = self.shared.take_fd()?;
                self.arena.share(share, fd)?;
                self.has_mapped();
            }
            (k, 8) if k == Kind::Retire as u8 => {
                self.ring.read(&mut words[..1]);
                let at = u8::try_from(words[0]).map_err(|_| lie("shm arena: index"))?;
                self.arena.retire(at)?;
            }
            (k, 0) if k == Kind::Close as u8 => {
                self.closed = true;
                self.end_of_messages();
            }
            _ => return Err(lie("shm slot kind").into()),
        }
        Ok(())
    }

    /// An arena was mapped; perhaps its descriptor took the place of the reserve.
    fn has_mapped(&mut self) {
        self.mapped = true;
        spare::restock();
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
            None => self.take_inline_alone(len, kind)?,
        };
        if kind == FrameKind::Data {
            self.inline_bytes += len;
        }
        Ok(payload.into())
    }

    /// A payload that came in a slot, in a block of the pool; a record on the heap, if need be.
    #[cold]
    fn take_inline_alone(&mut self, len: usize, kind: FrameKind) -> Result<PinnedBuf, Stop> {
        let mut words = [0; INLINE_MAX / 8];
        self.ring.read(&mut words[..len.div_ceil(8)]);
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
        let mut buf = match self.memory(len) {
            Err(Stop::Stall(_)) if kind != FrameKind::Data => {
                return Ok(bytes.take(len).collect::<Vec<_>>().into());
            }
            done => done?,
        };
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
            return Err(lie("shm slot: descriptors").into());
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
            return Err(lie("shm frame length").into());
        }
        Ok((descriptors, len))
    }

    #[inline]
    pub(super) fn deliver(
        &mut self,
        kind: FrameKind,
        flags: u8,
        seq: u64,
        payload: Message,
        out: &mut Batch<Frame>,
    ) {
        if kind == FrameKind::Data {
            self.received += frame_credit_bytes(payload.len());
        }
        out.push(Frame { kind, ack: flags & ACK != 0, seq, payload });
    }
}

/// The sender's arenas come and go while it sends a message in parts.
fn may_be_between_parts(kind: u8) -> bool {
    [Kind::Grow, Kind::Retire, Kind::Share].iter().any(|may| *may as u8 == kind)
}
