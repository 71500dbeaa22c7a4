//! Payload that lies in blocks: lent where it is, or copied out.

use zc_core::memory::{AllocError, BufPool, CopyPlace, Message, PinnedBuf, PinnedBufMut, Pressure};
use zc_core::transport::{FrameKind, LaneError};

use super::{Rx, Stall, Stop};
use crate::layout::Descriptor;
use crate::lie::lie;

impl Rx {
    /// Lends the payload where it is, or copies it out. Every place is checked on the way (M6).
    pub(super) fn fetch(
        &mut self,
        descriptors: &[Descriptor],
        len: usize,
        kind: FrameKind,
        out: &mut Message,
    ) -> Result<(), Stop> {
        if descriptors.iter().any(Descriptor::is_back) {
            return self.fetch_back(descriptors, kind, out);
        }
        // A record is small and soon done with, but whoever parses it must have it to himself.
        let lends = kind == FrameKind::Data && self.arena.lends(descriptors);
        let lend = lends && self.arena.leaves_enough(descriptors);
        if lend && self.leases.pressure() == Pressure::None {
            return self.lend(descriptors, out);
        }
        let mut buf = match self.memory(len) {
            Ok(buf) => buf,
            // Memory that can't be had is no reason to keep a friend waiting, unless he would wait for longer: for what
            // this would leave him nothing to send from.
            Err(Stop::Stall(Stall::Memory(_))) if lend => return self.lend(descriptors, out),
            Err(Stop::Stall(Stall::Memory(_))) if kind != FrameKind::Data => {
                return self.fetch_to_heap(descriptors, len, out);
            }
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

    /// A record, which waits for nobody's memory.
    #[cold]
    fn fetch_to_heap(&self, descriptors: &[Descriptor], len: usize, out: &mut Message) -> Result<(), Stop> {
        let mut bytes = vec![0; len];
        let mut rest = &mut bytes[..];
        for at in descriptors {
            let (to, left) = rest.split_at_mut(at.len as usize);
            self.arena.copy_out(at, to)?;
            rest = left;
        }
        *out = PinnedBuf::from(bytes).into();
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
    pub(super) fn memory(&mut self, len: usize) -> Result<PinnedBufMut, Stop> {
        self.memory_by(len, BufPool::try_alloc, Stall::Memory(len))
    }

    /// The same for what the peer only says it will send: some is left to others.
    pub(super) fn much_memory(&mut self, len: usize) -> Result<PinnedBufMut, Stop> {
        self.memory_by(len, BufPool::try_alloc_sparing, Stall::MuchMemory(len))
    }

    fn memory_by(
        &mut self,
        len: usize,
        try_alloc: fn(&BufPool, usize) -> Result<PinnedBufMut, AllocError>,
        stall: Stall,
    ) -> Result<PinnedBufMut, Stop> {
        let ready = self.ready.take().filter(|buf| buf.capacity() >= len);
        let mut buf = match ready.map_or_else(|| try_alloc(&self.pool, len), Ok) {
            Ok(buf) => buf,
            Err(AllocError::Exhausted { .. }) => return Err(Stop::Stall(stall)),
            Err(error) => return Err(LaneError::Memory(error.to_string()).into()),
        };
        buf.attach_lease(self.leases.clone());
        Ok(buf)
    }
}
