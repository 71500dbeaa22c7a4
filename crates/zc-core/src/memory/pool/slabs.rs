//! The regions of a pool, and the pieces that chunks of blocks are made of.
//!
//! Regions are few and grow with the pool, because each one is registered with each ring, protection
//! domain or peer. A region in which no chunk lies any more is unmapped, unless somebody else holds it:
//! then it stays, counts, and is cut again.

use super::AllocError;
use super::extents::Extents;
use super::shared::Shared;
use crate::memory::region::{HUGE_1G, HUGE_2M, WeakRegion, page_size};
use crate::memory::{Backing, Region, RegionBuilder};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// A region of a pool is this share of what the pool has mapped already ...
const GROWTH_DIVISOR: usize = 8;
/// ... and at most this long, unless one buffer or one page needs more.
const GROWN_MAX_BYTES: usize = 32 << 20;

/// The regions of a pool.
pub(super) struct Slabs {
    template: RegionBuilder,
    region_bytes: usize,
    max_bytes: usize,
    reserved: AtomicUsize,
    peak: AtomicUsize,
    /// Bounded by `max_bytes` over the page size (M9).
    slabs: Mutex<Vec<Listed>>,
    /// Held while a region is mapped: nobody else finds the bound reached by one that can't be had.
    mapping: Mutex<()>,
}

/// A region, and what is free in it.
struct Slab {
    region: Region,
    free: Mutex<Extents>,
}

impl Slab {
    fn new(region: Region) -> Self {
        let free = Mutex::new(Extents::all(region.len()));
        Self { region, free }
    }
}

/// A region of the pool, as long as it is mapped.
struct Listed {
    slab: Weak<Slab>,
    region: WeakRegion,
}

impl Listed {
    fn of(slab: &Arc<Slab>) -> Self {
        Self { slab: Arc::downgrade(slab), region: slab.region.downgrade() }
    }

    fn is_mapped(&self) -> bool {
        self.slab.strong_count() > 0 || self.region.is_alive()
    }

    /// The region, all of it free if no chunk lies in it but somebody else holds it.
    fn upgrade(&mut self) -> Option<Arc<Slab>> {
        if let Some(slab) = self.slab.upgrade() {
            return Some(slab);
        }
        let slab = Arc::new(Slab::new(self.region.upgrade()?));
        self.slab = Arc::downgrade(&slab);
        Some(slab)
    }
}

/// A piece of a region; dropping it gives it back.
pub(super) struct Extent {
    slab: Arc<Slab>,
    offset: usize,
    len: usize,
}

impl Drop for Extent {
    fn drop(&mut self) {
        self.slab.free.lock().give(self.offset, self.len);
    }
}

impl Extent {
    pub(super) fn region(&self) -> &Region {
        &self.slab.region
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }
}

/// Bytes of the bound; the region they were reserved for gives them back when it is unmapped.
struct Reservation {
    pool: Arc<Shared>,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.pool.slabs().reserved.fetch_sub(self.bytes, Ordering::SeqCst);
        self.pool.waiters().memory_came_back();
    }
}

impl Slabs {
    pub(super) fn new(template: RegionBuilder, region_bytes: usize, max_bytes: usize) -> Self {
        let (reserved, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (slabs, mapping) = (Mutex::default(), Mutex::default());
        Self { template, region_bytes, max_bytes, reserved, peak, slabs, mapping }
    }

    pub(super) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    pub(super) fn reserved_bytes(&self) -> usize {
        self.reserved.load(Ordering::SeqCst)
    }

    pub(super) fn peak_bytes(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// The regions that are mapped now.
    pub(super) fn regions(&self) -> Vec<Region> {
        self.alive().iter().map(|slab| slab.region.clone()).collect()
    }

    /// Never upgrades and drops under the lock: the last one unmaps.
    fn alive(&self) -> Vec<Arc<Slab>> {
        let mut slabs = self.slabs.lock();
        slabs.iter_mut().filter_map(Listed::upgrade).collect()
    }

    /// A piece of `len` bytes (whole pages), out of a region that is there or of a new one. `None`:
    /// the bound is reached. An error: the system refused a region of any kind that is within it.
    pub(super) fn take(&self, pool: &Arc<Shared>, len: usize) -> Result<Option<Extent>, AllocError> {
        if let Some(extent) = cut_one_of(&self.alive(), len) {
            return Ok(Some(extent));
        }
        let mapping = self.mapping.lock();
        // Somebody else may just have mapped one. What this holds is let go without the lock, for it may
        // be what unmaps.
        let alive = self.alive();
        let extent = match cut_one_of(&alive, len) {
            Some(extent) => Ok(Some(extent)),
            None => self.map(pool, len),
        };
        drop(mapping);
        extent
    }

    /// Maps a region and cuts a piece of `len` bytes out of it. The region is as long as the pool's
    /// growth suggests, else just long enough for the pages wanted, else of base pages.
    fn map(&self, pool: &Arc<Shared>, len: usize) -> Result<Option<Extent>, AllocError> {
        let grown = (self.reserved_bytes() / GROWTH_DIVISOR).min(GROWN_MAX_BYTES);
        let wanted = len.max(grown).max(self.region_bytes);
        let mut refused = None;
        for (backing, page) in ladder(self.template.wanted_backing()) {
            let [first, second] = [wanted, len].map(|target| target.checked_next_multiple_of(page));
            for bytes in [first, second.filter(|_| second != first)].into_iter().flatten() {
                if !self.reserve(bytes) {
                    continue;
                }
                let template = self.template.clone().len(bytes).backing(backing);
                match template.build_holding(|| Some(Box::new(Reservation { pool: pool.clone(), bytes }))) {
                    Ok(region) => return Ok(self.list(region, len)),
                    Err(error) => {
                        // Nobody is woken: nobody has seen these bytes reserved, and one that waits
                        // would only be refused again.
                        self.reserved.fetch_sub(bytes, Ordering::SeqCst);
                        refused.get_or_insert(error);
                    }
                }
            }
        }
        refused.map_or(Ok(None), |error| Err(error.into()))
    }

    /// Lists a new region, out of which a piece was cut first, so that nobody else has it all.
    fn list(&self, region: Region, len: usize) -> Option<Extent> {
        let slab = Arc::new(Slab::new(region));
        let offset = slab.free.lock().take(len)?;
        let mut slabs = self.slabs.lock();
        slabs.retain(Listed::is_mapped);
        slabs.push(Listed::of(&slab));
        drop(slabs);
        Some(Extent { slab, offset, len })
    }

    fn reserve(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|n| *n <= self.max_bytes);
        let before = self.reserved.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits);
        if let Ok(before) = before {
            self.peak.fetch_max(before + bytes, Ordering::Relaxed);
        }
        before.is_ok()
    }
}

fn cut_one_of(slabs: &[Arc<Slab>], len: usize) -> Option<Extent> {
    slabs.iter().find_map(|slab| {
        let offset = slab.free.lock().take(len)?;
        Some(Extent { slab: slab.clone(), offset, len })
    })
}

/// What to map, with the page size that lengths are rounded to, best first.
fn ladder(wanted: Backing) -> impl Iterator<Item = (Backing, usize)> {
    let huge_1g = (wanted == Backing::Huge1G).then_some((Backing::Huge1G, HUGE_1G));
    let huge_2m = match wanted {
        Backing::Huge1G | Backing::Huge2M => Some((Backing::Huge2M, HUGE_2M)),
        Backing::MemfdHuge2M => Some((Backing::MemfdHuge2M, HUGE_2M)),
        Backing::Anonymous | Backing::Memfd => None,
    };
    let base = match wanted {
        Backing::Memfd | Backing::MemfdHuge2M => Backing::Memfd,
        _ => Backing::Anonymous,
    };
    huge_1g.into_iter().chain(huge_2m).chain([(base, page_size())])
}
