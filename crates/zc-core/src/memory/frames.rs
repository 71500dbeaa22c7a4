//! Frames of a region that a transport lends out: ring slots, UMEM frames, receive queues.

use super::block::{Home, OwnedBlock, Table};
use super::{LeaseBudget, PinnedBuf, PinnedBufMut, Region};
use std::sync::Arc;

/// The owner of lent frames.
pub trait Reclaim: Send + Sync {
    /// The last user of the frame is done; called once per lend, from any thread.
    fn reclaim(&self, index: u32);
}

/// Why a frame could not be lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LendError {
    /// The index, or the range within the frame, lies outside.
    #[error("the range lies outside the frame")]
    OutOfBounds,
    /// The frame has been lent already and has not come back.
    #[error("the frame is still lent")]
    Busy,
    /// The region is a read-only mapping.
    #[error("the region is read-only")]
    ReadOnly,
}

struct FrameHome(Arc<dyn Reclaim>);

impl Home for FrameHome {
    fn take_back(&self, block: OwnedBlock) {
        let index = block.index();
        // Idle first: the owner may lend the frame again from inside `reclaim`.
        let table = block.retire();
        self.0.reclaim(index);
        drop(table);
    }
}

/// The frames of a region and who holds them.
#[derive(Clone)]
pub struct FrameTable {
    table: Arc<Table>,
    read_only: bool,
}

impl std::fmt::Debug for FrameTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameTable").field("count", &self.table.count()).finish_non_exhaustive()
    }
}

impl FrameTable {
    /// Cuts `region` into `count` frames of `frame_len` bytes.
    ///
    /// # Safety
    /// While a frame is lent nobody else writes it (and, if lent with [`lend_mut`](Self::lend_mut),
    /// nobody else reads it): no other table over the same bytes, no device, no peer other than a
    /// cooperative one (M5).
    pub unsafe fn new(
        region: Region,
        frame_len: usize,
        count: u32,
        owner: Arc<dyn Reclaim>,
    ) -> Result<Self, LendError> {
        let fits = frame_len.checked_mul(count as usize).is_some_and(|n| n <= region.len());
        if !fits {
            return Err(LendError::OutOfBounds);
        }
        let read_only = region.is_read_only();
        let home = Arc::new(FrameHome(owner));
        Ok(Self { table: Table::of_region(region, frame_len, count as usize, home), read_only })
    }

    /// Lends `len` bytes at `offset` of a frame, read-only. Allocates nothing.
    pub fn lend(&self, index: u32, offset: usize, len: usize) -> Result<PinnedBuf, LendError> {
        let end = offset.checked_add(len).ok_or(LendError::OutOfBounds)?;
        if index as usize >= self.table.count() || end > self.table.block_len() {
            return Err(LendError::OutOfBounds);
        }
        let block = self.table.take(index, false).ok_or(LendError::Busy)?;
        Ok(PinnedBuf::from_block(block, offset, len))
    }

    /// As [`lend`](Self::lend), and the whole frame counts against `lease` until it is back.
    pub fn lend_leased(
        &self,
        index: u32,
        offset: usize,
        len: usize,
        lease: &Arc<LeaseBudget>,
    ) -> Result<PinnedBuf, LendError> {
        let end = offset.checked_add(len).ok_or(LendError::OutOfBounds)?;
        if index as usize >= self.table.count() || end > self.table.block_len() {
            return Err(LendError::OutOfBounds);
        }
        let mut block = self.table.take(index, false).ok_or(LendError::Busy)?;
        block.attach_lease(lease.clone());
        Ok(PinnedBuf::from_block(block, offset, len))
    }

    /// Lends a whole frame to be written, with `headroom` bytes kept in front.
    pub fn lend_mut(&self, index: u32, headroom: usize) -> Result<PinnedBufMut, LendError> {
        if self.read_only {
            return Err(LendError::ReadOnly);
        }
        if index as usize >= self.table.count() || headroom > self.table.block_len() {
            return Err(LendError::OutOfBounds);
        }
        let block = self.table.take(index, true).ok_or(LendError::Busy)?;
        Ok(PinnedBufMut::from_block(block, headroom, 0))
    }
}

#[cfg(all(test, not(loom)))]
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
    fn lends_once_and_reclaims_from_any_thread() {
        let log = Arc::new(Log::default());
        let region = Region::builder(4096).build().unwrap();
        // SAFETY: the only user of the region.
        let frames = unsafe { FrameTable::new(region, 1024, 4, log.clone()) }.unwrap();
        assert_eq!(frames.lend(4, 0, 1).unwrap_err(), LendError::OutOfBounds);
        assert_eq!(frames.lend(0, 1000, 25).unwrap_err(), LendError::OutOfBounds);
        let buf = frames.lend(2, 10, 100).unwrap();
        assert_eq!(frames.lend(2, 0, 1).unwrap_err(), LendError::Busy);
        let copy = buf.clone();
        assert!(buf.try_into_mut().is_err());
        assert!(log.0.lock().is_empty());
        std::thread::spawn(move || drop(copy)).join().unwrap();
        assert_eq!(*log.0.lock(), [2]);
        assert!(frames.table.is_idle(2));
        let mut tx = frames.lend_mut(2, 16).unwrap();
        tx.put_slice(b"x");
        drop(frames);
        assert_eq!(&tx.freeze()[..], b"x");
        assert_eq!(*log.0.lock(), [2, 2]);
    }
}
