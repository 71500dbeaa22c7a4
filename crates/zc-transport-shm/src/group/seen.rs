//! Regions that the peer shows us: of its groups, and of other members that it forwards from.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use zc_core::memory::{LeaseBudget, LendError, PinnedBuf, Reclaim, Region, WindowTable};
use zc_core::transport::LaneError;

use crate::layout::{Descriptor, Return, SHARED, Share};
use crate::lie::lie;
use crate::limits::{MAX_SHARED_LOANS, MAX_SHARED_REGIONS};
use crate::returns::Returns;
use crate::sync::{AtomicU32, Ordering};
use crate::sys;

/// Gives the loans of one region back.
struct Home {
    slab: u8,
    /// By number of the loan.
    generations: Box<[AtomicU32]>,
    returns: Arc<Returns>,
    _mapped: Arc<Mapped>,
}

impl Reclaim for Home {
    fn reclaim(&self, index: u32) {
        let generation = self.generations[index as usize].load(Ordering::Relaxed) as u16;
        self.returns.push(give_back(self.slab, generation, index));
    }
}

/// The number of a loan fits: it was below [`MAX_SHARED_LOANS`] before it was used.
fn give_back(slab: u8, generation: u16, loan: u32) -> Return {
    const { assert!(MAX_SHARED_LOANS <= u16::MAX as u32) };
    Return { slab, sent_back: 0, generation, block: loan as u16 }
}

/// Bytes of a mapping, until nobody reads it any more.
struct Mapped {
    all: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Who has which part of a region that is lent from.
struct Lent {
    windows: WindowTable,
    home: Arc<Home>,
}

struct SeenRegion {
    region: Region,
    /// Only of a writer in our trust domain.
    lent: Option<Lent>,
    _mapped: Arc<Mapped>,
}

/// All of them.
pub(crate) struct Seen {
    /// The peer is in our trust domain.
    cooperative: bool,
    regions: Vec<Option<SeenRegion>>,
    returns: Arc<Returns>,
    bytes: Arc<AtomicU64>,
    max_bytes: u64,
}

impl Seen {
    /// None yet, and at most `max_bytes` of them.
    pub(crate) fn new(max_bytes: u64, cooperative: bool, returns: Arc<Returns>) -> Self {
        Self { cooperative, regions: Vec::new(), returns, bytes: Arc::default(), max_bytes }
    }

    /// Whether a further region is allowed; ask before its descriptor is looked at.
    pub(crate) fn check(&self, share: Share) -> Result<(), LaneError> {
        let at = usize::from(share.region & !SHARED);
        let taken = self.regions.get(at).is_some_and(Option::is_some);
        if share.region & SHARED == 0 || at >= MAX_SHARED_REGIONS || taken {
            return Err(lie("shm region: index").into());
        }
        // What was taken away may be on its way out of here: twice what an honest peer shows at a time.
        let bytes = self.bytes.load(Ordering::Acquire).saturating_add(share.bytes);
        if share.bytes == 0 || share.bytes > self.max_bytes || bytes > self.max_bytes.saturating_mul(2) {
            return Err(lie("shm region: length").into());
        }
        Ok(())
    }

    /// Maps a further region, after the same checks as the peer's own memory.
    pub(crate) fn add(&mut self, share: Share, fd: OwnedFd) -> Result<(), LaneError> {
        self.check(share)?;
        let bytes = usize::try_from(share.bytes).map_err(|_| lie("shm region: length"))?;
        // Who writes it need not be the peer: a hub passes on what others have made.
        let of_our_user = sys::is_of_our_user(&fd);
        // It is shown to nobody else.
        let region = sys::map_and_close(fd, bytes)?;
        self.bytes.fetch_add(share.bytes, Ordering::AcqRel);
        let mapped = Arc::new(Mapped { all: self.bytes.clone(), bytes: share.bytes });
        let lends = self.cooperative && of_our_user;
        let lent = lends.then(|| self.lend_from(share.region, &region, mapped.clone()));
        let at = usize::from(share.region & !SHARED);
        self.regions.resize_with(self.regions.len().max(at + 1), || None);
        self.regions[at] = Some(SeenRegion { region, lent, _mapped: mapped });
        Ok(())
    }

    fn lend_from(&self, slab: u8, region: &Region, mapped: Arc<Mapped>) -> Lent {
        assert!(self.cooperative);
        let generations = (0..MAX_SHARED_LOANS).map(|_| AtomicU32::new(0)).collect();
        let home = Arc::new(Home { slab, generations, returns: self.returns.clone(), _mapped: mapped });
        // SAFETY: only its maker can write the memory, by its seals, and that is a process of our user, as the peer is,
        // by the assertion and the caller's look: in our trust domain, where nobody writes what was sent until all
        // who hold it have given it back (M5).
        let windows = unsafe { WindowTable::new(region.clone(), MAX_SHARED_LOANS, home.clone()) };
        Lent { windows, home }
    }

    /// Forgets a region; what is lent of it keeps its mapping.
    pub(crate) fn retire(&mut self, region: u8) -> Result<(), LaneError> {
        let gone = self.regions.get_mut(usize::from(region & !SHARED)).and_then(Option::take);
        gone.map(drop).ok_or_else(|| lie("shm region: retired twice").into())
    }

    /// Whether messages of the region that a descriptor names may be lent where they are.
    pub(crate) fn lends(&self, at: &Descriptor) -> bool {
        let region = self.regions.get(usize::from(at.slab & !SHARED)).and_then(Option::as_ref);
        region.is_some_and(|region| region.lent.is_some())
    }

    /// The region that a descriptor names, once all of it is checked (M6).
    fn region(&self, at: &Descriptor) -> Result<&SeenRegion, LaneError> {
        let region = self.regions.get(usize::from(at.slab & !SHARED)).and_then(Option::as_ref);
        let region = region.ok_or_else(|| lie("shm descriptor: region"))?;
        if at.block >= MAX_SHARED_LOANS {
            return Err(lie("shm descriptor: loan").into());
        }
        let end = u64::from(at.offset) + u64::from(at.len);
        if at.len == 0 || end > region.region.len() as u64 {
            return Err(lie("shm descriptor: length").into());
        }
        Ok(region)
    }

    /// Lends what a descriptor names; it goes back when the last reference is gone.
    pub(crate) fn lend(&self, at: &Descriptor, lease: &Arc<LeaseBudget>) -> Result<PinnedBuf, LaneError> {
        let lent = self.region(at)?.lent.as_ref();
        let lent = lent.ok_or_else(|| LaneError::Other("nothing of this region is lent".into()))?;
        lent.lend(at, Some(lease))
    }

    /// Copies what a descriptor names and gives it back at once.
    pub(crate) fn copy_out(&self, at: &Descriptor, dst: &mut [u8]) -> Result<(), LaneError> {
        let region = self.region(at)?;
        // One that is lent already is not given back by this.
        let lent = region.lent.as_ref().map(|lent| lent.lend(at, None)).transpose()?;
        sys::copy_from_peer(dst, &region.region, at.offset as usize);
        match lent {
            Some(lent) => drop(lent),
            None => self.returns.push(give_back(at.slab, at.generation, at.block)),
        }
        Ok(())
    }
}

impl Lent {
    fn lend(&self, at: &Descriptor, lease: Option<&Arc<LeaseBudget>>) -> Result<PinnedBuf, LaneError> {
        let lent = self.windows.lend(at.block, at.offset as usize, at.len as usize, lease);
        let lent = lent.map_err(|e| match e {
            LendError::Busy => lie("shm descriptor: loan made twice"),
            _ => lie("shm descriptor: length"),
        })?;
        // Nobody else has the loan, so its last reference can't be dropped before this store.
        self.home.generations[at.block as usize].store(at.generation.into(), Ordering::Relaxed);
        Ok(lent)
    }
}
