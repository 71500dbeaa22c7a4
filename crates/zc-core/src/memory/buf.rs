//! The shared, immutable buffer.

use super::block::{OwnedBlock, SharedBlock, Table};
use super::{PinnedBufMut, Region};
use bytes::{Buf, Bytes};
use std::ops::{Bound, RangeBounds};
use std::ptr::NonNull;

/// A shared, immutable piece of pinned (or static, or foreign) memory.
///
/// `Clone` is a reference count; the last drop, on any thread, returns the memory to its owner.
///
/// Conversions never copy. From static bytes: no allocation. Into [`Bytes`]: one small allocation.
/// From [`Bytes`]: one small allocation, and bytes that lie in a region are found again by address.
///
/// ```
/// use bytes::Bytes;
/// use zc_core::memory::{BufPool, PinnedBuf};
///
/// let mut buf = BufPool::builder().build().try_alloc(100)?;
/// buf.put_slice(b"key=value");
/// let buf = buf.freeze();
/// let (key, value) = (buf.slice(..3), buf.slice(4..));
/// assert_eq!((&key[..], &value[..]), (&b"key"[..], &b"value"[..]));
/// let bytes: Bytes = value.into();
/// assert_eq!(PinnedBuf::from(bytes).region().unwrap().id(), buf.region().unwrap().id());
/// # Ok::<(), zc_core::memory::AllocError>(())
/// ```
#[derive(Clone)]
pub struct PinnedBuf {
    ptr: NonNull<u8>,
    len: usize,
    block: Option<SharedBlock>,
}

// SAFETY: the bytes are immutable (M5) and kept alive by `block` (M2) or static.
unsafe impl Send for PinnedBuf {}
// SAFETY: as for Send (M5).
unsafe impl Sync for PinnedBuf {}

impl PinnedBuf {
    #[inline]
    pub(super) fn from_block(block: OwnedBlock, offset: usize, len: usize) -> Self {
        assert!(offset.checked_add(len).is_some_and(|end| end <= block.capacity()));
        let block = block.share();
        // SAFETY: offset is within the block, by the assertion, and the block is kept (M2).
        let ptr = unsafe { block.base().add(offset) };
        Self { ptr, len, block: Some(block) }
    }

    /// No bytes; allocates nothing.
    #[inline]
    pub const fn empty() -> Self {
        Self::from_static(&[])
    }

    /// Static bytes; allocates nothing.
    #[inline]
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self { ptr: NonNull::from_ref(bytes).cast(), len: bytes.len(), block: None }
    }

    /// The region the bytes lie in; foreign memory is looked up by address, once.
    pub fn region(&self) -> Option<&Region> {
        self.block.as_ref()?.region()
    }

    /// The region the bytes lie in, and where they begin in it. `None` for static and foreign memory,
    /// and for no bytes: those lie nowhere.
    pub fn place(&self) -> Option<(&Region, usize)> {
        let region = self.region().filter(|_| self.len > 0)?;
        Some((region, region.offset_of(self.ptr.as_ptr(), self.len)?))
    }

    /// Bytes of memory that this keeps from being used again, or more: all of its block, however short a part this is. Of what
    /// went through [`Bytes`] the block is not known; if it lies in a region, all of that is counted.
    pub fn kept_bytes(&self) -> usize {
        self.block.as_ref().map_or(0, SharedBlock::kept_bytes)
    }

    #[inline]
    pub(super) fn block(&self) -> Option<&SharedBlock> {
        self.block.as_ref()
    }

    /// The same bytes, kept by another block that covers the same memory.
    ///
    /// # Panics
    /// If it does not.
    #[inline]
    pub(super) fn kept_by(self, block: SharedBlock) -> Self {
        let known = self.block.as_ref().is_some_and(|own| block.covers_the_same(own));
        assert!(known, "a block of other memory");
        Self { ptr: self.ptr, len: self.len, block: Some(block) }
    }

    /// A part of this buffer, without a copy.
    ///
    /// # Panics
    /// If the range lies outside.
    #[inline]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let (start, end) = bounds(range, self.len);
        // SAFETY: `bounds` checked start <= end <= len; the bytes are kept by `self` (M2).
        let ptr = unsafe { self.ptr.add(start) };
        let block = if start == end { None } else { self.block.clone() };
        Self { ptr, len: end - start, block }.normalised()
    }

    /// An empty slice must not keep a pointer into memory that it does not keep alive.
    #[inline]
    fn normalised(self) -> Self {
        if self.len == 0 { Self::empty() } else { self }
    }

    /// Takes the first `n` bytes off.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_to(&mut self, n: usize) -> Self {
        if n == self.len {
            return std::mem::take(self);
        }
        let head = self.slice(..n);
        self.advance(n);
        head
    }

    /// The unique writable buffer, if this is the only reference to memory that was lent to be written: a
    /// pool's, or a frame's of [`FrameTable::lend_mut`](super::FrameTable::lend_mut).
    #[inline]
    pub fn try_into_mut(self) -> Result<PinnedBufMut, Self> {
        let Self { ptr, len, block } = self;
        let Some(block) = block else {
            return Err(Self { ptr, len, block: None });
        };
        let start = ptr.addr().get() - block.base().addr().get();
        match block.try_unique() {
            Ok(block) => Ok(PinnedBufMut::from_block(block, start, len)),
            Err(block) => Err(Self { ptr, len, block: Some(block) }),
        }
    }

    /// `Bytes` over the same memory: no copy, one small allocation.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

/// The start and end of a range in `0..len`, checked.
#[inline]
pub(crate) fn bounds(range: impl RangeBounds<usize>, len: usize) -> (usize, usize) {
    let start = match range.start_bound() {
        Bound::Included(&n) => n,
        Bound::Excluded(&n) => n.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&n) => n.saturating_add(1),
        Bound::Excluded(&n) => n,
        Bound::Unbounded => len,
    };
    assert!(start <= end && end <= len, "range {start}..{end} outside of 0..{len}");
    (start, end)
}

impl std::ops::Deref for PinnedBuf {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: ptr and len lie in memory that is static or kept alive by `block` (M2), and that
        // nobody writes while shared (M5).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for PinnedBuf {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Default for PinnedBuf {
    #[inline]
    fn default() -> Self {
        Self::empty()
    }
}

impl std::fmt::Debug for PinnedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedBuf").field("len", &self.len).finish_non_exhaustive()
    }
}

impl PartialEq for PinnedBuf {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}
impl Eq for PinnedBuf {}
impl PartialEq<[u8]> for PinnedBuf {
    fn eq(&self, other: &[u8]) -> bool {
        self[..] == *other
    }
}

impl Buf for PinnedBuf {
    #[inline]
    fn remaining(&self) -> usize {
        self.len
    }
    #[inline]
    fn chunk(&self) -> &[u8] {
        self
    }
    #[inline]
    fn advance(&mut self, n: usize) {
        assert!(n <= self.len, "advance past the end");
        // SAFETY: n <= len, and the bytes are kept by `self` (M2).
        self.ptr = unsafe { self.ptr.add(n) };
        self.len -= n;
    }
    fn copy_to_bytes(&mut self, n: usize) -> Bytes {
        self.split_to(n).into_bytes()
    }
}

impl From<Bytes> for PinnedBuf {
    /// No copy; the `Bytes` stays the owner.
    fn from(bytes: Bytes) -> Self {
        let len = bytes.len();
        if len == 0 {
            return Self::empty();
        }
        match Table::foreign(bytes) {
            Some(block) => Self::from_block(block, 0, len),
            None => Self::empty(), // Unreachable: the block of a new table is idle.
        }
    }
}

impl From<Vec<u8>> for PinnedBuf {
    /// No copy of what is filled.
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static [u8]> for PinnedBuf {
    fn from(bytes: &'static [u8]) -> Self {
        Self::from_static(bytes)
    }
}

impl From<PinnedBuf> for Bytes {
    fn from(buf: PinnedBuf) -> Self {
        buf.into_bytes()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::BufPool;

    #[test]
    fn small_and_free_of_surprises() {
        assert!(size_of::<PinnedBuf>() <= 32);
        let mut b = PinnedBuf::from(vec![1, 2, 3, 4]);
        assert_eq!(&b.split_to(1)[..], [1]);
        assert_eq!(&b.slice(1..)[..], [3, 4]);
        assert!(b.region().is_none());
        assert!(b.try_into_mut().is_err());
        assert!(PinnedBuf::from_static(b"x").try_into_mut().is_err());
    }

    #[test]
    fn round_trips_through_bytes_and_finds_its_region() {
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let mut m = pool.try_alloc_with_headroom(100, 8).unwrap();
        m.put_slice(b"hello");
        m.prepend(b"hd");
        let buf = m.freeze();
        let id = buf.region().unwrap().id();
        let back = PinnedBuf::from(buf.clone().into_bytes().slice(2..));
        assert_eq!(&back[..], b"hello");
        assert_eq!(back.region().unwrap().id(), id);
        assert!(buf.slice(1..2).kept_bytes() >= 100);
        assert_eq!(back.slice(1..2).kept_bytes(), buf.region().unwrap().len(), "of which block is not known");
        assert_eq!(PinnedBuf::from(vec![1; 7]).slice(..1).kept_bytes(), 7);
        let buf = buf.try_into_mut().unwrap_err();
        drop(back);
        let m = buf.try_into_mut().unwrap();
        assert_eq!((m.headroom(), m.len()), (6, 7));
        drop(m);
        assert_eq!(pool.stats().in_use_bytes, 0);
    }
}
