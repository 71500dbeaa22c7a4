//! Finds the region that an address lies in, process-wide.

use super::{Region, WeakRegion};
use crate::memory::GroupId;
use parking_lot::RwLock;
use std::collections::BTreeMap;

/// Base address to (end, region). Bounded by the number of mappings the kernel allows (M9).
static REGIONS: RwLock<BTreeMap<usize, (usize, WeakRegion)>> = RwLock::new(BTreeMap::new());

/// The region that holds all of `len` bytes at `ptr`, if any.
///
/// ```
/// use zc_core::memory::{Region, region_of};
///
/// let region = Region::builder(4096).build()?;
/// assert_eq!(region_of(region.base(), 4096).unwrap().id(), region.id());
/// assert!(region_of(b"elsewhere".as_ptr(), 9).is_none());
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
pub fn region_of(ptr: *const u8, len: usize) -> Option<Region> {
    let start = ptr.addr();
    let end = start.checked_add(len)?;
    // The guard is gone before the region is: dropping the last one takes the lock again.
    let found = {
        let regions = REGIONS.read();
        let (_, (region_end, region)) = regions.range(..=start).next_back()?;
        if start < *region_end && end <= *region_end { Some(region.clone()) } else { None }
    };
    found?.upgrade()
}

/// The regions of a group that are alive.
pub(in crate::memory) fn regions_of_group(group: GroupId) -> Vec<Region> {
    // Upgraded after the lock is left, for the same reason.
    let all: Vec<WeakRegion> = REGIONS.read().values().map(|(_, region)| region.clone()).collect();
    all.iter().filter_map(WeakRegion::upgrade).filter(|r| r.group() == Some(group)).collect()
}

pub(super) fn insert(region: &Region) {
    let base = region.base().addr();
    REGIONS.write().insert(base, (base + region.len(), region.downgrade()));
}

pub(super) fn remove(base: usize) {
    let removed = REGIONS.write().remove(&base);
    drop(removed);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn finds_by_address_while_alive() {
        let r = Region::builder(8192).build().unwrap();
        let base = r.base();
        assert_eq!(region_of(base.wrapping_add(100), 8092).unwrap().id(), r.id());
        assert!(region_of(base.wrapping_add(100), 8093).is_none());
        assert!(region_of(base, usize::MAX).is_none());
        let id = r.id();
        drop(r);
        assert!(region_of(base, 1).is_none_or(|r| r.id() != id));
    }
}
