//! Memory of a region that a transport lends out: ring slots, UMEM frames, receive queues, and
//! what lies in a peer's arena.

use super::block::{Home, Table};
use super::{LeaseBudget, PinnedBuf, PinnedBufMut, Region, RegionKind};
use std::sync::Arc;

/// The owner of lent frames.
///
/// The table keeps it alive. An owner that keeps its table therefore puts what `reclaim` needs (a
/// queue of free indices) into an object of its own.
///
/// ```
/// use std::sync::Mutex;
/// use zc_core::memory::Reclaim;
///
/// struct Free(Mutex<Vec<u32>>);
///
/// impl Reclaim for Free {
///     fn reclaim(&self, index: u32) {
///         self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(index);
///     }
/// }
/// Free(Mutex::default()).reclaim(5);
/// ```
pub trait Reclaim: Send + Sync {
    /// The last user of the frame is done; called once per lend, from any thread, without a lock.
    /// It must not panic: that may happen while another panic unwinds.
    fn reclaim(&self, index: u32);
}

/// Why a frame could not be lent.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::{FrameTable, LendError, Reclaim, Region};
///
/// # struct Free;
/// # impl Reclaim for Free {
/// #     fn reclaim(&self, _: u32) {}
/// # }
/// let region = Region::builder(16 << 10).build()?;
/// // SAFETY: nobody else uses the region (M5).
/// let frames = unsafe { FrameTable::new(region, 2048, 8, Arc::new(Free)) }.unwrap();
/// let lent = frames.lend(5, 0, 64, None);
/// assert!(matches!(frames.lend(5, 0, 64, None), Err(LendError::Busy)));
/// assert!(matches!(frames.lend(8, 0, 64, None), Err(LendError::OutOfBounds)));
/// # drop(lent);
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LendError {
    /// The index, or the range within the frame, lies outside.
    #[error("the range lies outside the frame")]
    OutOfBounds,
    /// The frame has been lent already and has not come back.
    #[error("the frame is still lent")]
    Busy,
    /// The region is a read-only mapping, or a peer's.
    #[error("the region is not ours to write")]
    ReadOnly,
}

/// Equal frames of a region, and who holds them.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use zc_core::memory::{FrameTable, Reclaim, Region};
///
/// #[derive(Default)]
/// struct Free(Mutex<Vec<u32>>);
/// impl Reclaim for Free {
///     fn reclaim(&self, index: u32) {
///         self.0.lock().unwrap().push(index);
///     }
/// }
///
/// let free = Arc::new(Free::default());
/// let region = Region::builder(16 << 10).build()?;
/// // SAFETY: nobody else uses the region (M5).
/// let frames = unsafe { FrameTable::new(region, 2048, 8, free.clone()) }.unwrap();
/// let packet = frames.lend(5, 256, 64, None).unwrap(); // Past the kernel's headroom.
/// drop((packet.clone(), packet));
/// assert_eq!(*free.0.lock().unwrap(), [5]);
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Clone)]
pub struct FrameTable {
    table: Arc<Table>,
    frame_len: usize,
    writable: bool,
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
    /// While a frame is lent nobody else writes the bytes lent (and, if lent with
    /// [`lend_mut`](Self::lend_mut), nobody else reads the frame): no other table over the same
    /// bytes, no device, no peer other than a cooperative one (M5).
    ///
    /// Bytes of a lent frame that only the transport's own `PinnedBuf` covers may be written as long
    /// as the transport does not look at them through it: a frame that the kernel fills bit by bit
    /// is lent whole to the transport, which passes on slices of what is filled.
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
        let writable = !region.is_read_only() && region.info().kind == RegionKind::Own;
        let table = Table::of_region(region, 0, frame_len, count, Home::Frames(owner));
        Ok(Self { table, frame_len, writable })
    }

    #[inline]
    fn check(&self, index: u32, offset: usize, len: usize) -> Result<(), LendError> {
        let end = offset.checked_add(len).ok_or(LendError::OutOfBounds)?;
        let inside = (index as usize) < self.table.count() && end <= self.frame_len;
        if inside { Ok(()) } else { Err(LendError::OutOfBounds) }
    }

    /// Lends `len` bytes at `offset` of a frame, read-only. Allocates nothing. The whole frame
    /// counts against the lease.
    #[inline]
    pub fn lend(
        &self,
        index: u32,
        offset: usize,
        len: usize,
        lease: Option<&Arc<LeaseBudget>>,
    ) -> Result<PinnedBuf, LendError> {
        self.check(index, offset, len)?;
        let mut block = self.table.take(index, false).ok_or(LendError::Busy)?;
        if let Some(lease) = lease {
            block.attach_lease(lease.clone());
        }
        Ok(PinnedBuf::from_block(block, offset, len))
    }

    /// Lends a whole frame to be written, with `headroom` bytes kept in front.
    #[inline]
    pub fn lend_mut(&self, index: u32, headroom: usize) -> Result<PinnedBufMut, LendError> {
        if !self.writable {
            return Err(LendError::ReadOnly);
        }
        self.check(index, headroom, 0)?;
        let block = self.table.take(index, true).ok_or(LendError::Busy)?;
        Ok(PinnedBufMut::from_block(block, headroom, 0))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::{Backing, PeerMapping};
    use parking_lot::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

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
        // SAFETY: the only user of the region (M5).
        let frames = unsafe { FrameTable::new(region, 1024, 4, log.clone()) }.unwrap();
        assert_eq!(frames.lend(4, 0, 1, None).unwrap_err(), LendError::OutOfBounds);
        assert_eq!(frames.lend(0, 1000, 25, None).unwrap_err(), LendError::OutOfBounds);
        assert_eq!(frames.lend_mut(0, 1025).unwrap_err(), LendError::OutOfBounds);
        let buf = frames.lend(2, 10, 100, None).unwrap();
        assert_eq!(frames.lend(2, 0, 1, None).unwrap_err(), LendError::Busy);
        let copy = buf.clone();
        assert!(buf.try_into_mut().is_err());
        assert!(log.0.lock().is_empty());
        std::thread::spawn(move || drop(copy)).join().unwrap();
        assert_eq!(*log.0.lock(), [2]);
        let mut tx = frames.lend_mut(2, 16).unwrap();
        tx.put_slice(b"x");
        drop(frames);
        assert_eq!(&tx.freeze()[..], b"x");
        assert_eq!(*log.0.lock(), [2, 2]);
    }

    #[test]
    fn empty_lends_come_back_too() {
        let log = Arc::new(Log::default());
        let region = Region::builder(4096).build().unwrap();
        // SAFETY: the only user of the region (M5).
        let frames = unsafe { FrameTable::new(region, 1024, 4, log.clone()) }.unwrap();
        drop(frames.lend(1, 0, 0, None).unwrap());
        assert_eq!(*log.0.lock(), [1]);
    }

    #[test]
    fn a_peers_memory_is_lent_and_never_writable() {
        let theirs = Region::builder(8192).backing(Backing::Memfd).build().unwrap();
        // SAFETY: the owner's mapping is writable, and no buffer covers it (M5).
        unsafe { theirs.base_mut().add(5000).write(7) };
        let fd = theirs.fd().unwrap().try_clone_to_owned().unwrap();
        let ours = PeerMapping::new(1 << 20).map(fd).unwrap();
        let log = Arc::new(Log::default());
        let lease = LeaseBudget::new(1000, 2000);
        // SAFETY: the peer of this test does not write while memory is lent (M5).
        let frames = unsafe { FrameTable::new(ours, 4096, 2, log.clone()) }.unwrap();
        let lent = frames.lend(1, 903, 100, Some(&lease)).unwrap();
        assert_eq!((lent[1], lease.outstanding_bytes()), (7, 4096));
        assert_eq!(frames.lend(1, usize::MAX, 2, None).unwrap_err(), LendError::OutOfBounds);
        assert_eq!(lent.slice(1..).place().unwrap().1, 5000);
        let lent = lent.try_into_mut().unwrap_err();
        drop(lent);
        assert_eq!((&log.0.lock()[..], lease.outstanding_bytes()), (&[1][..], 0));
        assert_eq!(frames.lend_mut(0, 0).unwrap_err(), LendError::ReadOnly);
    }

    /// A hostile peer names frames that are lent or on their way back: each is had by one at most.
    #[test]
    fn a_frame_is_never_lent_twice_under_fire() {
        #[derive(Default)]
        struct Count(AtomicUsize);
        impl Reclaim for Count {
            fn reclaim(&self, _: u32) {
                self.0.fetch_add(1, SeqCst);
            }
        }
        let owner = Arc::new(Count::default());
        let region = Region::builder(4096).build().unwrap();
        // SAFETY: the only user of the region (M5).
        let frames = unsafe { FrameTable::new(region, 4096, 1, owner.clone()) }.unwrap();
        let stop = AtomicBool::new(false);
        let lent = AtomicUsize::new(0);
        std::thread::scope(|s| {
            let (tx, rx) = std::sync::mpsc::sync_channel::<PinnedBuf>(4);
            s.spawn(move || rx.into_iter().for_each(drop));
            s.spawn(|| {
                while !stop.load(SeqCst) {
                    if let Ok(mut frame) = frames.lend_mut(0, 0) {
                        lent.fetch_add(1, SeqCst);
                        frame.resize(64, 1);
                        assert!(frame.iter().all(|b| *b == 1));
                        frame.fill(2);
                    }
                }
            });
            for _ in 0..20_000 {
                let Ok(frame) = frames.lend_mut(0, 0) else { continue };
                lent.fetch_add(1, SeqCst);
                let frame = frame.freeze();
                let _ = tx.try_send(frame.clone());
            }
            stop.store(true, SeqCst);
            drop(tx);
        });
        assert_eq!(owner.0.load(SeqCst), lent.load(SeqCst));
        assert!(frames.lend_mut(0, 0).is_ok());
    }
}
