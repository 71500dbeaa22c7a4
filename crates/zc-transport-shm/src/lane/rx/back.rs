//! Payload of which a part is our own memory, which the peer sends back.

use smallvec::SmallVec;
use zc_core::memory::{CopyPlace, Message, PinnedBuf, Pressure, copy_payload};
use zc_core::transport::FrameKind;

use super::{Rx, Stall, Stop};
use crate::layout::Descriptor;
use crate::lie::lie;
use crate::limits::SLOT_DESCRIPTORS;

type Parts = SmallVec<[Descriptor; SLOT_DESCRIPTORS]>;

impl Rx {
    /// Delivers what is ours as it lies, and what is the peer's as ever. Every place is checked on the way (M6).
    ///
    /// Each part is counted once: nothing of this is done before all memory that it takes is there.
    pub(super) fn fetch_back(
        &mut self,
        descriptors: &[Descriptor],
        kind: FrameKind,
        out: &mut Message,
    ) -> Result<(), Stop> {
        if kind != FrameKind::Data {
            return Err(lie("shm sent back: kind").into());
        }
        if descriptors.iter().any(|at| at.len == 0) {
            return Err(lie("shm descriptor: length").into());
        }
        let (ours, theirs): (Parts, Parts) = descriptors.iter().copied().partition(Descriptor::is_back);
        // Ours takes nothing that counts against the lease.
        let keep = self.out.leaves_enough(&ours);
        let lends = theirs.is_empty() || self.arena.lends(&theirs) && self.arena.leaves_enough(&theirs);
        let mut lend = lends && self.leases.pressure() == Pressure::None;
        let copied = |at: &&Descriptor| if at.is_back() { !keep } else { !lend };
        let len = descriptors.iter().filter(copied).map(|at| at.len as usize).sum();
        let copies = match self.copy_parts(descriptors.iter().filter(copied), len) {
            Ok(copies) => copies,
            // Memory that can't be had is no reason to keep a friend waiting, unless somebody would wait for longer: for what
            // this would leave nothing to send from.
            Err(Stop::Stall(Stall::Memory(_))) if lends && keep => {
                lend = true;
                PinnedBuf::empty()
            }
            Err(stop) => return Err(stop),
        };
        self.join(descriptors, copies, (keep, lend), out)
    }

    /// Parts of so many bytes in all, copied into memory of the pool, one after the other.
    fn copy_parts<'a>(
        &mut self,
        parts: impl Iterator<Item = &'a Descriptor>,
        len: usize,
    ) -> Result<PinnedBuf, Stop> {
        if len == 0 {
            return Ok(PinnedBuf::empty());
        }
        let mut buf = self.memory(len)?;
        for at in parts {
            let n = at.len as usize;
            let to = &mut buf.unfilled_mut()[..n];
            if at.is_back() {
                let from = self.deliver_back(at, false)?;
                copy_payload(to, &from, &self.ledger, CopyPlace::CopyOut);
            } else {
                self.arena.copy_out(at, to)?;
                self.ledger.copied(CopyPlace::CopyOut, n);
            }
            buf.advance(n);
        }
        Ok(buf.freeze())
    }

    /// The message: copies where they were made, all else where it lies.
    fn join(
        &self,
        parts: &[Descriptor],
        mut copies: PinnedBuf,
        (keep, lend): (bool, bool),
        out: &mut Message,
    ) -> Result<(), Stop> {
        for at in parts {
            let segment = match at.is_back() {
                true if keep => self.deliver_back(at, true)?,
                false if lend => self.arena.lend(at, &self.leases)?,
                _ => copies.split_to(at.len as usize),
            };
            out.push(segment).map_err(|_| lie("shm frame: segments"))?;
        }
        Ok(())
    }

    fn deliver_back(&self, at: &Descriptor, keep: bool) -> Result<PinnedBuf, Stop> {
        let (buf, caught_up) = self.out.deliver(at, keep)?;
        if caught_up {
            // It may wait for the block.
            self.shared.wakers.tx.wake();
        }
        Ok(buf)
    }
}
