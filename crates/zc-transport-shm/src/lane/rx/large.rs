//! Messages that come in parts, put together in one buffer of the pool.

use zc_core::memory::{CopyPlace, PinnedBufMut};
use zc_core::transport::{Batch, Frame, FrameKind};

use super::{Rx, Stall, Stop};
use crate::layout::{ACK, BY_REFERENCE, Descriptor, Head};
use crate::lie::lie;
use crate::limits::{INLINE_MAX, MIN_PART_COST_BYTES, PARTS_TURN_BYTES};

/// A message of which not all parts have come.
pub(super) struct Large {
    flags: u8,
    seq: u64,
    total: usize,
    /// What has come.
    buf: PinnedBufMut,
}

impl Rx {
    /// Makes room for all of it; the caller has seen to it that no other is under way.
    pub(super) fn begin_large(&mut self, head: Head) -> Result<(), Stop> {
        if head.flags & !ACK != 0 || head.count != 8 || self.partial.is_some() {
            return Err(lie("shm large message: begin").into());
        }
        if self.received >= self.credit.allowed() {
            return Err(lie("message beyond the credit").into());
        }
        let mut words = [0];
        self.ring.read(&mut words);
        let max = FrameKind::Data.max_bytes(self.max_message);
        let total = usize::try_from(words[0]).ok().filter(|len| (1..=max).contains(len));
        let total = total.ok_or_else(|| lie("shm frame length"))?;
        let buf = self.much_memory(total)?;
        self.large = Some(Box::new(Large { flags: head.flags, seq: self.ring.seq(), total, buf }));
        Ok(())
    }

    pub(super) fn take_large_part(&mut self, head: Head, out: &mut Batch<Frame>) -> Result<(), Stop> {
        let large = self.large.as_mut().ok_or_else(|| lie("shm part of no message"))?;
        if self.ring.seq() != large.seq {
            return Err(lie("shm part of another message").into());
        }
        if self.large_bytes >= PARTS_TURN_BYTES {
            return Err(Stop::Stall(Stall::Turn));
        }
        let left = large.total - large.buf.len();
        let bytes = match (head.flags, head.count) {
            (BY_REFERENCE, 1) => {
                let mut words = [0; 2];
                self.ring.read(&mut words);
                let at = Descriptor::unpack(words);
                let bytes = at.len as usize;
                if bytes > left {
                    return Err(lie("shm frame length").into());
                }
                self.arena.copy_out(&at, &mut large.buf.unfilled_mut()[..bytes])?;
                self.ledger.copied(CopyPlace::CopyOut, bytes);
                bytes
            }
            (0, count) => {
                let bytes = count as usize;
                if bytes == 0 || bytes > left.min(INLINE_MAX) {
                    return Err(lie("shm slot length").into());
                }
                let mut words = [0; INLINE_MAX / 8];
                self.ring.read(&mut words[..bytes.div_ceil(8)]);
                let from = words.iter().flat_map(|word| word.to_ne_bytes());
                large.buf.unfilled_mut()[..bytes].iter_mut().zip(from).for_each(|(to, from)| *to = from);
                self.inline_bytes += bytes;
                bytes
            }
            _ => return Err(lie("shm slot flags").into()),
        };
        large.buf.advance(bytes);
        self.large_bytes += bytes.max(MIN_PART_COST_BYTES);
        self.shared.hear();
        if bytes == left
            && let Some(large) = self.large.take()
        {
            let Large { flags, seq, buf, .. } = *large;
            self.deliver(FrameKind::Data, flags, seq, buf.freeze().into(), out);
        }
        Ok(())
    }
}
