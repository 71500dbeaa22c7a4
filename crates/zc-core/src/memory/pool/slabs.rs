//! The regions of a pool, and the pieces that chunks of blocks are made of.
//!
//! Regions are few and grow with the pool, because each one is registered with each ring, protection
//! domain or peer. A region is unmapped when no chunk lies in it any more; only then do its bytes
//! stop counting, even if somebody else still holds the region.

use super::AllocError;
use super::extents::Extents;
use super::shared::Shared;
use crate::memory::region::{HUGE_1G, HUGE_2M, page_size};
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
    slabs: Mutex<Vec<Weak<Slab>>>,
}

/// A region, and what is free in it.
struct Slab {
    region: Region,
    free: Mutex<Extents>,
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
        Self { template, region_bytes, max_bytes, reserved, peak, slabs: Mutex::default() }
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
        let slabs = self.slabs.lock();
        slabs.iter().filter_map(Weak::upgrade).collect()
    }

    /// A piece of `len` bytes (whole pages), out of a region that is there or of a new one. `None`:
    /// the bound is reached.
    pub(super) fn take(&self, pool: &Arc<Shared>, len: usize) -> Result<Option<Extent>, AllocError> {
        for slab in self.alive() {
            let offset = slab.free.lock().take(len);
            if let Some(offset) = offset {
                return Ok(Some(Extent { slab, offset, len }));
            }
        }
        let Some(slab) = self.map(pool, len)? else {
            return Ok(None);
        };
        // Taken before the slab is listed, so that nobody else has it all.
        let Some(offset) = slab.free.lock().take(len) else {
            return Ok(None);
        };
        let mut slabs = self.slabs.lock();
        slabs.retain(|s| s.strong_count() > 0);
        slabs.push(Arc::downgrade(&slab));
        drop(slabs);
        Ok(Some(Extent { slab, offset, len }))
    }

    /// Maps a region for a piece of `len` bytes: as long as the pool's growth suggests, else just
    /// long enough for the pages wanted, else of base pages.
    fn map(&self, pool: &Arc<Shared>, len: usize) -> Result<Option<Arc<Slab>>, AllocError> {
        let grown = (self.reserved_bytes() / GROWTH_DIVISOR).min(GROWN_MAX_BYTES);
        let wanted = len.max(grown).max(self.region_bytes);
        for (backing, page) in ladder(self.template.wanted_backing()) {
            for target in [wanted, len] {
                let Some(bytes) = target.checked_next_multiple_of(page) else { continue };
                let Some(reservation) = self.reserve(pool, bytes) else { continue };
                // If this fails, the reservation is given back.
                let template = self.template.clone().len(bytes).backing(backing);
                let region = template.build_holding(Some(Box::new(reservation)))?;
                debug_assert_eq!(region.len(), bytes, "the bound is exact");
                let free = Mutex::new(Extents::all(bytes));
                return Ok(Some(Arc::new(Slab { region, free })));
            }
        }
        Ok(None)
    }

    fn reserve(&self, pool: &Arc<Shared>, bytes: usize) -> Option<Reservation> {
        let fits = |used: usize| used.checked_add(bytes).filter(|n| *n <= self.max_bytes);
        let before = self.reserved.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).ok()?;
        self.peak.fetch_max(before + bytes, Ordering::Relaxed);
        Some(Reservation { pool: pool.clone(), bytes })
    }
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
