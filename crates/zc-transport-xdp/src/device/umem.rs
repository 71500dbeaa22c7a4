//! Memory for packets, for programs.

use std::sync::Arc;

use zc_core::memory::{BufPool, PinnedBufMut, Region};

use super::{OpenError, UmemOptions};
use crate::sys;

/// Memory for packets: equal frames in one [`Region`], which any number of devices may use. Cloning counts a reference.
///
/// ```text
/// | frame 0 | frame 1 | ...
///      |
///      +-- | 256 headroom | packet as received | ... |      2048 or 4096 bytes, never across a page
///          | headroom ... | packet to be sent  | ... |
/// ```
///
/// A frame is with the kernel to receive into, with the application, on its way out, or free. Each queue of a device
/// reserves [`fill_frames`](super::DeviceOptions::fill_frames); of the others, the application may keep as many as it
/// likes. When it has them all, [`allocate`](Self::allocate) has none to give, and what comes in is copied out into
/// ordinary memory (counted: [`QueueStats::copied_out`](super::QueueStats::copied_out), and in the queue's ledger).
///
/// Frames that the kernel has when a queue is dropped are not used again as long as the memory lives, since others may
/// have a copy of the queue's socket: memory that shall outlive many devices needs as many frames more.
///
/// ```
/// use zc_transport_xdp::device::{Umem, UmemOptions};
///
/// let umem = Umem::new(&UmemOptions { frames: 64, ..UmemOptions::default() })?;
/// let mut frame = umem.allocate(256).unwrap();
/// frame.put_slice(b"payload");
/// frame.prepend(b"header"); // Out of the headroom.
/// assert_eq!(umem.stats().out, 1);
/// drop(frame);
/// assert_eq!(umem.stats().out, 0);
/// # Ok::<(), zc_transport_xdp::device::OpenError>(())
/// ```
#[derive(Clone)]
pub struct Umem {
    frames: sys::Umem,
    spill: BufPool,
    options: Arc<UmemOptions>,
}

impl std::fmt::Debug for Umem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Umem").field("options", &self.options).field("stats", &self.stats()).finish()
    }
}

/// Where the frames are.
///
/// ```
/// use zc_transport_xdp::device::{Umem, UmemOptions};
///
/// let stats = Umem::new(&UmemOptions::default())?.stats();
/// assert_eq!((stats.out, stats.max_out), (0, stats.frames));
/// # Ok::<(), zc_transport_xdp::device::OpenError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UmemStats {
    /// All.
    pub frames: u32,
    /// With the application, or on their way out.
    pub out: u32,
    /// How many that may be: all that no queue has reserved.
    pub max_out: u32,
}

impl Umem {
    /// Makes the memory, all pages of it.
    pub fn new(options: &UmemOptions) -> Result<Self, OpenError> {
        options.check()?;
        let (frames, bytes) = (options.frames, options.frame_bytes);
        let make = || {
            Region::builder(frames as usize * bytes as usize)
                .backing(options.backing)
                .prefault(true)
                .name("zc-umem")
                .build()
        };
        let frames = sys::Umem::new(make, bytes, frames)?;
        let spill = BufPool::builder().max_bytes(options.max_copied_out_bytes).name("zc-umem-spill").build();
        Ok(Self { frames, spill, options: Arc::new(options.clone()) })
    }

    /// A frame to be written and sent, with so many bytes kept in front; `None`: there is none for now.
    ///
    /// What shall ask for a checksum needs 24 bytes in front of all headers, and so does every frame that goes out on a
    /// device with [`checksums`](super::DeviceOptions::checksums).
    pub fn allocate(&self, headroom: usize) -> Option<PinnedBufMut> {
        if headroom > self.frame_bytes() {
            return None;
        }
        self.frames.allocate(headroom)
    }

    /// Bytes of a frame.
    pub fn frame_bytes(&self) -> usize {
        self.frames.chunk_bytes() as usize
    }

    /// What it lies in: what came of the backing that was asked for.
    pub fn region(&self) -> &Region {
        self.frames.region()
    }

    /// Where the frames are.
    pub fn stats(&self) -> UmemStats {
        let frames = &self.frames;
        UmemStats { frames: frames.count(), out: frames.out(), max_out: frames.max_out() }
    }

    pub(super) fn frames(&self) -> &sys::Umem {
        &self.frames
    }

    pub(super) fn spill(&self) -> &BufPool {
        &self.spill
    }
}
