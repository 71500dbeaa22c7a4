//! A region of which a transport lends any part, several at a time: memory that a peer cuts as it likes.

use super::block::{Home, Table};
use super::{LeaseBudget, LendError, PinnedBuf, Reclaim, Region};
use std::sync::Arc;

/// Windows on a region: each shows one part of it to be read, wherever that lies, until its last user is done.
///
/// As with a [`FrameTable`](super::FrameTable), what is lent under one index comes back before that index is
/// lent again; but parts may overlap, for who cuts the memory may send one buffer twice.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use zc_core::memory::{Backing, LendError, Reclaim, Region, WindowTable};
///
/// #[derive(Default)]
/// struct Done(Mutex<Vec<u32>>);
/// impl Reclaim for Done {
///     fn reclaim(&self, index: u32) {
///         self.0.lock().unwrap().push(index);
///     }
/// }
///
/// let done = Arc::new(Done::default());
/// let region = Region::builder(16 << 10).build()?;
/// // SAFETY: nobody writes the region (M5).
/// let windows = unsafe { WindowTable::new(region, 2, done.clone()) };
/// let (one, other) = (windows.lend(0, 100, 5000, None).unwrap(), windows.lend(1, 4000, 10, None).unwrap());
/// assert!(matches!(windows.lend(1, 0, 1, None), Err(LendError::Busy)));
/// assert!(matches!(windows.lend(1, 16 << 10, 1, None), Err(LendError::OutOfBounds)));
/// drop((one, other));
/// assert_eq!(*done.0.lock().unwrap(), [0, 1]);
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Clone)]
pub struct WindowTable {
    table: Arc<Table>,
    bytes: usize,
}

impl std::fmt::Debug for WindowTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WindowTable").field("count", &self.table.count()).finish_non_exhaustive()
    }
}

impl WindowTable {
    /// So many windows on `region`.
    ///
    /// # Safety
    /// Nobody writes what a window shows while it is lent: no other table over the same bytes that lends them to
    /// be written, no device, no peer other than a cooperative one (M5).
    pub unsafe fn new(region: Region, count: u32, owner: Arc<dyn Reclaim>) -> Self {
        let bytes = region.len();
        Self { table: Table::of_windows(region, count, Home::Frames(owner)), bytes }
    }

    /// Lends `len` bytes at `offset` of the region. Allocates nothing. They count against the lease.
    ///
    /// # Errors
    /// The window is lent already, or the part lies outside of the region.
    #[inline]
    pub fn lend(
        &self,
        index: u32,
        offset: usize,
        len: usize,
        lease: Option<&Arc<LeaseBudget>>,
    ) -> Result<PinnedBuf, LendError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.bytes);
        if !inside || index as usize >= self.table.count() {
            return Err(LendError::OutOfBounds);
        }
        let mut block = self.table.take_window(index, offset, len).ok_or(LendError::Busy)?;
        if let Some(lease) = lease {
            block.attach_lease(lease.clone());
        }
        Ok(PinnedBuf::from_block(block, 0, len))
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<u32>>);
    impl Reclaim for Log {
        fn reclaim(&self, index: u32) {
            self.0.lock().push(index);
        }
    }

    #[test]
    fn parts_are_lent_where_they_lie_and_never_writable() {
        let region = Region::builder(8192).build().unwrap();
        // SAFETY: no buffer covers the region yet (M5).
        unsafe { region.base_mut().add(5000).write(7) };
        let log = Arc::new(Log::default());
        // SAFETY: nobody writes the region from here on (M5).
        let windows = unsafe { WindowTable::new(region.clone(), 4, log.clone()) };
        let lease = LeaseBudget::new(1000, 2000);
        let one = windows.lend(3, 4990, 20, Some(&lease)).unwrap();
        assert_eq!((one[10], one.place().unwrap().1, lease.outstanding_bytes()), (7, 4990, 20));
        assert_eq!(one.region().unwrap().id(), region.id());
        assert_eq!(windows.lend(3, 0, 1, None).unwrap_err(), LendError::Busy);
        let other = windows.lend(0, 0, 8192, None).unwrap();
        assert_eq!(other.as_ptr(), region.base());
        for (index, offset, len) in [(4, 0, 1), (1, 8192, 1), (1, 1, 8192), (1, usize::MAX, 2)] {
            assert_eq!(windows.lend(index, offset, len, None).unwrap_err(), LendError::OutOfBounds);
        }
        let one = one.try_into_mut().unwrap_err();
        drop((windows, region));
        let copy = one.slice(10..);
        drop(one);
        assert_eq!(copy[0], 7);
        std::thread::spawn(move || drop(copy)).join().unwrap();
        assert_eq!((&log.0.lock()[..], lease.outstanding_bytes()), (&[3][..], 0));
        drop(other);
        assert_eq!(*log.0.lock(), [3, 0]);
    }
}
