//! The peer's memory as the receiver uses it: what is lent, and how it goes back.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use zc_core::memory::{FrameTable, LeaseBudget, LendError, PinnedBuf, Reclaim, Region};
use zc_core::transport::LaneError;
use zc_core::wire::WireError;

use crate::layout::{Descriptor, Geometry, Grow, Return};
use crate::limits::{MAX_BLOCKS, MAX_SLABS};
use crate::returns::Returns;
use crate::sync::{AtomicU32, Ordering};
use crate::sys::{self, PeerMemory};

/// Gives the blocks of one arena back.
struct Home {
    slab: u8,
    generations: Box<[AtomicU32]>,
    returns: Arc<Returns>,
}

impl Reclaim for Home {
    fn reclaim(&self, index: u32) {
        let generation = self.generations[index as usize].load(Ordering::Relaxed) as u16;
        self.returns.push(Return { slab: self.slab, generation, block: index as u16 });
    }
}

struct Slab {
    region: Region,
    frames: FrameTable,
    home: Arc<Home>,
    block_len: u32,
    first: u32,
    count: u32,
}

/// The arenas of the peer.
pub(crate) struct PeerArena {
    slabs: Vec<Option<Slab>>,
    returns: Arc<Returns>,
    bytes: u64,
    max_bytes: u64,
}

fn lie(field: &'static str) -> LaneError {
    WireError::BadValue { field }.into()
}

impl PeerArena {
    /// The arena in `region`; at most `max_bytes` in all.
    pub(crate) fn new(
        region: Region,
        geometry: Geometry,
        max_bytes: u64,
        returns: Arc<Returns>,
    ) -> Result<Self, LaneError> {
        let mut arena = Self { slabs: Vec::new(), returns, bytes: 0, max_bytes };
        arena.add(0, region, geometry.block_len, geometry.first_block(), geometry.frames())?;
        Ok(arena)
    }

    fn add(
        &mut self,
        at: u8,
        region: Region,
        block_len: u32,
        first: u32,
        count: u32,
    ) -> Result<(), LaneError> {
        let home = Arc::new(Home {
            slab: at,
            generations: (0..count).map(|_| AtomicU32::new(0)).collect(),
            returns: self.returns.clone(),
        });
        // SAFETY: this is the region's only table, and its frames are lent only to a process in the
        // peer's trust domain, which does not write what it sent until it has it back (M5).
        let frames = unsafe { FrameTable::new(region.clone(), block_len as usize, count, home.clone()) };
        let frames = frames.map_err(|_| lie("shm arena"))?;
        self.bytes += region.len() as u64;
        let at = at as usize;
        self.slabs.resize_with(self.slabs.len().max(at + 1), || None);
        self.slabs[at] = Some(Slab { region, frames, home, block_len, first, count });
        Ok(())
    }

    /// Whether a further arena is allowed; ask before its descriptor is looked at.
    pub(crate) fn check(&self, grow: Grow) -> Result<(), LaneError> {
        let at = grow.slab as usize;
        if at == 0 || at >= MAX_SLABS || self.slabs.get(at).is_some_and(Option::is_some) {
            return Err(lie("shm arena: index"));
        }
        let blocks: u64 = self.slabs.iter().flatten().map(|s| u64::from(s.count - s.first)).sum();
        if grow.blocks == 0 || blocks + u64::from(grow.blocks) > u64::from(MAX_BLOCKS) {
            return Err(lie("shm arena: blocks"));
        }
        let aligned = grow.block_len > 0 && grow.block_len.is_multiple_of(64);
        let spare = self.max_bytes.saturating_sub(self.bytes);
        if !aligned || grow.bytes() > spare {
            return Err(lie("shm arena: length"));
        }
        Ok(())
    }

    /// Maps a further arena.
    pub(crate) fn grow(&mut self, grow: Grow, fd: OwnedFd) -> Result<(), LaneError> {
        self.check(grow)?;
        let bytes = usize::try_from(grow.bytes()).map_err(|_| lie("shm arena: length"))?;
        let region = sys::map_peer(fd, bytes).map_err(|e| match e {
            PeerMemory::Bad(field) => lie(field),
            PeerMemory::Os(error) => LaneError::os("map the peer's memory", &error),
        })?;
        self.add(grow.slab, region, grow.block_len, 0, grow.blocks)
    }

    /// Forgets an arena; what is lent of it keeps its mapping.
    pub(crate) fn retire(&mut self, at: u8) -> Result<(), LaneError> {
        let gone = self.slabs.get_mut(at as usize).filter(|_| at > 0).and_then(Option::take);
        let gone = gone.ok_or(lie("shm arena: retired twice"))?;
        self.bytes -= gone.region.len() as u64;
        Ok(())
    }

    /// The arena that a descriptor names, once all of it is checked (M6).
    fn slab(&self, at: &Descriptor) -> Result<&Slab, LaneError> {
        let slab = self.slabs.get(at.slab as usize).and_then(Option::as_ref);
        let slab = slab.ok_or(lie("shm descriptor: arena"))?;
        if at.block < slab.first || at.block >= slab.count {
            return Err(lie("shm descriptor: block"));
        }
        let end = at.offset.checked_add(at.len).ok_or(lie("shm descriptor: length"))?;
        if at.len == 0 || end > slab.block_len {
            return Err(lie("shm descriptor: length"));
        }
        Ok(slab)
    }

    /// Lends what a descriptor names; it goes back when the last reference is gone.
    pub(crate) fn lend(&self, at: &Descriptor, lease: &Arc<LeaseBudget>) -> Result<PinnedBuf, LaneError> {
        let slab = self.slab(at)?;
        let lent = slab.frames.lend(at.block, at.offset as usize, at.len as usize, Some(lease));
        let lent = lent.map_err(|e| match e {
            LendError::Busy => lie("shm descriptor: block sent twice"),
            _ => lie("shm descriptor: length"),
        })?;
        // Nobody else has the block, so its last reference can't be dropped before this store.
        slab.home.generations[at.block as usize].store(at.generation.into(), Ordering::Relaxed);
        Ok(lent)
    }

    /// Copies what a descriptor names and gives the block back at once.
    pub(crate) fn copy_out(&self, at: &Descriptor, dst: &mut [u8]) -> Result<(), LaneError> {
        let slab = self.slab(at)?;
        let start = at.block as usize * slab.block_len as usize + at.offset as usize;
        sys::copy_from_peer(dst, &slab.region, start);
        self.returns.push(Return { slab: at.slab, generation: at.generation, block: at.block as u16 });
        Ok(())
    }
}
