//! The unique, writable buffer.

use super::block::OwnedBlock;
use super::{LeaseBudget, PinnedBuf, Region};
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// A unique, writable buffer in pinned memory.
///
/// ```text
/// | headroom | filled (Deref) | unfilled |
/// 0        start         start+len    block end
/// ```
///
/// The memory is always initialised, but what was not written may be stale content.
///
/// ```
/// use zc_core::memory::BufPool;
///
/// let mut buf = BufPool::builder().build().try_alloc_with_headroom(100, 8)?;
/// buf.put_slice(b"payload");
/// buf.prepend(b"hdr:"); // Out of the headroom: nothing moves.
/// assert_eq!(&buf[..], b"hdr:payload");
/// let shared = buf.freeze();
/// let again = shared.try_into_mut().unwrap(); // The only reference.
/// assert_eq!(again.headroom(), 4);
/// # Ok::<(), zc_core::memory::AllocError>(())
/// ```
pub struct PinnedBufMut {
    block: ManuallyDrop<OwnedBlock>,
    start: usize,
    len: usize,
}

impl PinnedBufMut {
    #[inline]
    pub(super) fn from_block(block: OwnedBlock, start: usize, len: usize) -> Self {
        debug_assert!(start + len <= block.capacity());
        Self { block: ManuallyDrop::new(block), start, len }
    }

    #[inline]
    fn into_block(self) -> OwnedBlock {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so the block is taken exactly once (M7).
        unsafe { ManuallyDrop::take(&mut this.block) }
    }

    /// How many bytes are filled.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is filled.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes fit, headroom excluded.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.block.capacity() - self.start
    }

    /// How many bytes are free in front.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.start
    }

    /// The region this lies in.
    pub fn region(&self) -> Option<&Region> {
        self.block.region()
    }

    /// The bytes that can still be filled; always initialised, possibly stale.
    #[inline]
    pub fn unfilled_mut(&mut self) -> &mut [u8] {
        let end = self.start + self.len;
        &mut self.block.bytes_mut()[end..]
    }

    /// The bytes in front.
    #[inline]
    pub fn headroom_mut(&mut self) -> &mut [u8] {
        let start = self.start;
        &mut self.block.bytes_mut()[..start]
    }

    /// Marks `n` more bytes as filled.
    ///
    /// # Panics
    /// If they don't fit.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.capacity() - self.len, "advance past the capacity");
        self.len += n;
    }

    /// Sets the filled length; bytes that become filled are whatever the memory holds.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "set_len past the capacity");
        self.len = len;
    }

    /// Shortens to at most `len`.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Empties the buffer.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Shortens, or fills up with `byte`.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    #[inline]
    pub fn resize(&mut self, len: usize, byte: u8) {
        let old = self.len;
        self.set_len(len);
        if len > old {
            self[old..].fill(byte);
        }
    }

    /// Appends the application's bytes.
    ///
    /// # Panics
    /// If they don't fit.
    #[allow(clippy::disallowed_methods, reason = "the application writes its own message")]
    pub fn put_slice(&mut self, src: &[u8]) {
        self.unfilled_mut()[..src.len()].copy_from_slice(src);
        self.len += src.len();
    }

    /// Puts a header in front, out of the headroom.
    ///
    /// # Panics
    /// If the headroom is too small.
    #[allow(clippy::disallowed_methods, reason = "a header, not payload")]
    pub fn prepend(&mut self, header: &[u8]) {
        assert!(header.len() <= self.start, "prepend past the headroom");
        let start = self.start - header.len();
        self.block.bytes_mut()[start..start + header.len()].copy_from_slice(header);
        self.start = start;
        self.len += header.len();
    }

    /// Counts this block (its whole capacity) against `lease` until the last buffer of it is dropped.
    #[inline]
    pub fn attach_lease(&mut self, lease: Arc<LeaseBudget>) {
        self.block.attach_lease(lease);
    }

    /// Makes it shared and immutable. No copy, no allocation.
    #[inline]
    pub fn freeze(self) -> PinnedBuf {
        let (start, len) = (self.start, self.len);
        PinnedBuf::from_block(self.into_block(), start, len)
    }
}

impl Drop for PinnedBufMut {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: taken once, here; `into_block` never drops `self` (M7).
        unsafe { ManuallyDrop::take(&mut self.block) }.go_home();
    }
}

impl std::ops::Deref for PinnedBufMut {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.block.bytes()[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for PinnedBufMut {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let range = self.start..self.start + self.len;
        &mut self.block.bytes_mut()[range]
    }
}

impl std::fmt::Debug for PinnedBufMut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedBufMut").field("len", &self.len).finish_non_exhaustive()
    }
}

// SAFETY: `chunk_mut` is the unfilled part, which is this buffer's alone (M5); `advance_mut` checks
// its bound.
unsafe impl bytes::BufMut for PinnedBufMut {
    fn remaining_mut(&self) -> usize {
        self.capacity() - self.len
    }
    unsafe fn advance_mut(&mut self, n: usize) {
        self.advance(n);
    }
    fn chunk_mut(&mut self) -> &mut bytes::buf::UninitSlice {
        bytes::buf::UninitSlice::new(self.unfilled_mut())
    }
    #[inline]
    fn put_slice(&mut self, src: &[u8]) {
        PinnedBufMut::put_slice(self, src);
    }
}
