//! The peer's memory as the receiver uses it: what is lent, and how it goes back.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use zc_core::memory::{FrameTable, LeaseBudget, LendError, PinnedBuf, Reclaim, Region};
use zc_core::transport::LaneError;

use crate::borrowed::{Borrowed, Loans};
use crate::group::{Opened, Seen};
use crate::kept::{Kept, KeptOf, Part, Size};
use crate::layout::{Descriptor, Geometry, Grow, Return, SHARED, Share};
use crate::lie::lie;
use crate::limits::{FIRST_BLOCK_BYTES, MAX_ARENA_BLOCKS, MAX_BLOCKS, MAX_FRAMES, MAX_SLABS};
use crate::returns::Returns;
use crate::spare;
use crate::sys;

/// Gives the blocks of one arena back.
struct Home {
    slab: u8,
    loans: Arc<Loans>,
    returns: Arc<Returns>,
    /// Of all but the first arena.
    kept: Option<KeptOf>,
}

impl Reclaim for Home {
    fn reclaim(&self, index: u32) {
        let (back, counted) = self.loans.end(self.slab, index);
        if counted {
            self.kept.iter().for_each(KeptOf::sub);
        }
        self.returns.push(back);
    }
}

/// A block's number fits: it was below [`MAX_FRAMES`] or [`MAX_BLOCKS`] before it was used.
fn give_back(slab: u8, generation: u16, block: u32) -> Return {
    const { assert!((if MAX_FRAMES > MAX_BLOCKS { MAX_FRAMES } else { MAX_BLOCKS }) <= u16::MAX as u32) };
    Return { slab, sent_back: 0, generation, block: block as u16 }
}

struct Slab {
    region: Region,
    /// Only of a peer in our trust domain.
    lent: Option<Lent>,
    block_len: u32,
    first: u32,
    count: u32,
}

/// Who has which block of an arena that is lent from.
struct Lent {
    frames: FrameTable,
    home: Arc<Home>,
}

/// How much the peer may have, and we keep.
pub(crate) struct Bounds {
    /// Most bytes of all its arenas.
    pub(crate) max_bytes: u64,
    /// Whoever keeps so many bytes of messages gets no more of them.
    pub(crate) lease_hard: usize,
}

/// The arenas of the peer.
pub(crate) struct PeerArena {
    /// The peer is in our trust domain: its messages may be lent where they are.
    cooperative: bool,
    slabs: Vec<Option<Slab>>,
    returns: Arc<Returns>,
    bytes: u64,
    max_bytes: u64,
    kept: Arc<Kept>,
    /// Whoever keeps so many bytes of messages gets no more of them.
    lease_hard: usize,
    /// What is lent from can be forwarded as it lies.
    opened: Arc<Opened>,
    /// What is lent can be sent back as it lies.
    borrowed: Arc<Borrowed>,
    /// Regions of groups.
    seen: Seen,
}

impl PeerArena {
    /// The arena in `region`, and how far the peer may go beyond.
    pub(crate) fn new(
        region: Region,
        geometry: Geometry,
        bounds: Bounds,
        cooperative: bool,
        returns: Arc<Returns>,
        (opened, borrowed): (Arc<Opened>, Arc<Borrowed>),
    ) -> Result<Self, LaneError> {
        let Bounds { max_bytes, lease_hard } = bounds;
        let seen = Seen::new(max_bytes, cooperative, returns.clone());
        let kept = Kept::new(max_bytes.saturating_sub(region.len() as u64), Part::Half);
        let (slabs, bytes) = (Vec::new(), 0);
        let mut arena =
            Self { cooperative, slabs, returns, bytes, max_bytes, kept, lease_hard, opened, borrowed, seen };
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
        let lent = match self.cooperative {
            true => Some(self.lend_from(at, &region, block_len, count)?),
            false => None,
        };
        if lent.is_some() {
            self.opened.add(&region);
        }
        self.bytes += region.len() as u64;
        let at = at as usize;
        self.slabs.resize_with(self.slabs.len().max(at + 1), || None);
        self.slabs[at] = Some(Slab { region, lent, block_len, first, count });
        Ok(())
    }

    fn lend_from(&self, slab: u8, region: &Region, block_len: u32, count: u32) -> Result<Lent, LaneError> {
        assert!(self.cooperative);
        let loans = Loans::new(count);
        let size = || Size::of_arena(count, region.len() as u64);
        let kept = (slab > 0).then(|| KeptOf::new(self.kept.clone(), size()));
        let home = Arc::new(Home { slab, loans: loans.clone(), returns: self.returns.clone(), kept });
        // SAFETY: this is the region's only table, and the peer is in our trust domain, by the assertion: it
        // does not write what it sent until it has it back (M5).
        let frames = unsafe { FrameTable::new(region.clone(), block_len as usize, count, home.clone()) };
        let frames = frames.map_err(|_| lie("shm arena"))?;
        self.borrowed.add(slab, region.clone(), block_len, loans);
        Ok(Lent { frames, home })
    }

    /// Whether the parts of a message may be lent where they are.
    pub(crate) fn lends(&self, parts: &[Descriptor]) -> bool {
        self.cooperative && parts.iter().all(|at| at.slab & SHARED == 0 || self.seen.lends(at))
    }

    /// Whether the peer has enough to send from while the parts of a message are kept. Of groups it always has: it copies.
    pub(crate) fn leaves_enough(&self, parts: &[Descriptor]) -> bool {
        let another = Grow { slab: 1, block_len: FIRST_BLOCK_BYTES, blocks: 1 }.bytes();
        let mut more = Size::default();
        for (n, at) in parts.iter().enumerate() {
            let slab = self.slabs.get(usize::from(at.slab)).and_then(Option::as_ref);
            // What names no arena is refused when it is lent.
            let Some(Slab { lent: Some(lent), block_len, .. }) = slab else { continue };
            let cost = match &lent.home.kept {
                // All of the first may be kept if there can be others, of one such block at least.
                None if self.kept.ever_takes(another) => None,
                None => return false,
                // The peer stands still in any case until this is given back.
                Some(_) if *block_len as usize >= self.lease_hard => None,
                Some(kept) => kept.cost(),
            };
            if let Some(size) = cost
                && parts[..n].iter().all(|other| other.slab != at.slab)
            {
                more = more.and(size);
            }
        }
        more == Size::default() || self.kept.takes(more)
    }

    /// More than can ever be out at a time: what is in slots lies in the first arena as well.
    pub(crate) fn is_beyond(&self, len: usize) -> bool {
        len as u64 > self.max_bytes.max(self.bytes)
    }

    /// Whether a further arena is allowed; ask before its descriptor is looked at.
    pub(crate) fn check(&self, grow: Grow) -> Result<(), LaneError> {
        let at = grow.slab as usize;
        if at == 0 || at >= MAX_SLABS || self.slabs.get(at).is_some_and(Option::is_some) {
            return Err(lie("shm arena: index").into());
        }
        let blocks: u64 = self.slabs.iter().flatten().map(|s| u64::from(s.count - s.first)).sum();
        if grow.blocks == 0 || blocks + u64::from(grow.blocks) > u64::from(MAX_ARENA_BLOCKS) {
            return Err(lie("shm arena: blocks").into());
        }
        let aligned = grow.block_len > 0 && grow.block_len.is_multiple_of(64);
        let spare = self.max_bytes.saturating_sub(self.bytes);
        if !aligned || grow.bytes() > spare {
            return Err(lie("shm arena: length").into());
        }
        Ok(())
    }

    /// Maps a further arena.
    pub(crate) fn grow(&mut self, grow: Grow, fd: OwnedFd) -> Result<(), LaneError> {
        self.check(grow)?;
        let bytes = usize::try_from(grow.bytes()).map_err(|_| lie("shm arena: length"))?;
        // There may be descriptors again.
        spare::restock();
        // Its descriptor is only for those to whom it is passed on, who get copies then.
        let region = if spare::is_there() { sys::map_peer(fd, bytes) } else { sys::map_and_close(fd, bytes) };
        let region = region?;
        self.add(grow.slab, region, grow.block_len, 0, grow.blocks)
    }

    /// Whether a region of a group is allowed; ask before its descriptor is looked at.
    pub(crate) fn check_share(&self, share: Share) -> Result<(), LaneError> {
        self.seen.check(share)
    }

    /// Maps a region of a group.
    pub(crate) fn share(&mut self, share: Share, fd: OwnedFd) -> Result<(), LaneError> {
        self.seen.add(share, fd)
    }

    /// Forgets an arena, or a region of a group; what is lent of it keeps its mapping.
    pub(crate) fn retire(&mut self, at: u8) -> Result<(), LaneError> {
        if at & SHARED != 0 {
            return self.seen.retire(at);
        }
        let gone = self.slabs.get_mut(at as usize).filter(|_| at > 0).and_then(Option::take);
        let gone = gone.ok_or_else(|| lie("shm arena: retired twice"))?;
        self.bytes -= gone.region.len() as u64;
        self.borrowed.remove(at);
        self.opened.remove(&gone.region);
        Ok(())
    }

    /// The arena that a descriptor names, once all of it is checked (M6).
    fn slab(&self, at: &Descriptor) -> Result<&Slab, LaneError> {
        let slab = self.slabs.get(at.slab as usize).and_then(Option::as_ref);
        let slab = slab.ok_or_else(|| lie("shm descriptor: arena"))?;
        if at.block < slab.first || at.block >= slab.count {
            return Err(lie("shm descriptor: block").into());
        }
        let end = at.offset.checked_add(at.len).ok_or_else(|| lie("shm descriptor: length"))?;
        if at.len == 0 || end > slab.block_len {
            return Err(lie("shm descriptor: length").into());
        }
        Ok(slab)
    }

    /// Lends what a descriptor names; it goes back when the last reference is gone.
    pub(crate) fn lend(&self, at: &Descriptor, lease: &Arc<LeaseBudget>) -> Result<PinnedBuf, LaneError> {
        if at.slab & SHARED != 0 {
            return self.seen.lend(at, lease);
        }
        let lent = self.slab(at)?.lent.as_ref();
        let lent = lent.ok_or_else(|| LaneError::Other("nothing of this peer is lent".into()))?;
        lent.lend(at, Some(lease))
    }

    /// Copies what a descriptor names and gives the block back at once.
    pub(crate) fn copy_out(&self, at: &Descriptor, dst: &mut [u8]) -> Result<(), LaneError> {
        if at.slab & SHARED != 0 {
            return self.seen.copy_out(at, dst);
        }
        let slab = self.slab(at)?;
        // One that is lent already is not given back by this.
        let lent = slab.lent.as_ref().map(|lent| lent.lend(at, None)).transpose()?;
        let start = at.block as usize * slab.block_len as usize + at.offset as usize;
        sys::copy_from_peer(dst, &slab.region, start);
        match lent {
            Some(lent) => drop(lent),
            None => self.returns.push(give_back(at.slab, at.generation, at.block)),
        }
        Ok(())
    }
}

impl Lent {
    fn lend(&self, at: &Descriptor, lease: Option<&Arc<LeaseBudget>>) -> Result<PinnedBuf, LaneError> {
        let lent = self.frames.lend(at.block, at.offset as usize, at.len as usize, lease);
        let lent = lent.map_err(|e| match e {
            LendError::Busy => lie("shm descriptor: block sent twice"),
            _ => lie("shm descriptor: length"),
        })?;
        // What is only copied and given back is not kept.
        let counted = lease.is_some();
        if counted {
            self.home.kept.iter().for_each(KeptOf::add);
        }
        // Nobody else has the block, so its last reference can't be dropped before this.
        self.home.loans.begin(at.block, at.generation, counted);
        Ok(lent)
    }
}
