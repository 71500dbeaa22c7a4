//! Finds the region that an address lies in, process-wide.

use super::{Region, WeakRegion};
use crate::memory::GroupId;
use parking_lot::RwLock;
use std::collections::BTreeMap;

/// The regions of one process, by base address.
struct Directory {
    process: u32,
    /// Base address to (end, region). Bounded by the number of mappings the kernel allows (M9).
    regions: BTreeMap<usize, (usize, WeakRegion)>,
}

static REGIONS: RwLock<Directory> = RwLock::new(Directory { process: 0, regions: BTreeMap::new() });

impl Directory {
    /// What was inherited over a fork is not here: its addresses are nobody's, or somebody else's (M8).
    fn own(&self) -> Option<&BTreeMap<usize, (usize, WeakRegion)>> {
        (self.process == std::process::id()).then_some(&self.regions)
    }
}

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
        let directory = REGIONS.read();
        let (_, (region_end, region)) = directory.own()?.range(..=start).next_back()?;
        if start < *region_end && end <= *region_end { Some(region.clone()) } else { None }
    };
    found?.upgrade()
}

/// The regions of a group that are alive.
pub(in crate::memory) fn regions_of_group(group: GroupId) -> Vec<Region> {
    // Upgraded after the lock is left, for the same reason.
    let directory = REGIONS.read();
    let all: Vec<WeakRegion> =
        directory.own().into_iter().flat_map(|own| own.values()).map(|(_, region)| region.clone()).collect();
    drop(directory);
    all.iter().filter_map(WeakRegion::upgrade).filter(|r| r.group() == Some(group)).collect()
}

pub(super) fn insert(region: &Region) {
    let base = region.base().addr();
    let mut directory = REGIONS.write();
    let process = std::process::id();
    if directory.process != process {
        // Dropping what is weak runs no foreign code.
        *directory = Directory { process, regions: BTreeMap::new() };
    }
    directory.regions.insert(base, (base + region.len(), region.downgrade()));
}

/// Only the process that mapped it asks for this.
pub(super) fn remove(base: usize) {
    let removed = REGIONS.write().regions.remove(&base);
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
