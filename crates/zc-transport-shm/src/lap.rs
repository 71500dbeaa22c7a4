//! The number that tells an entry of this lap of a ring from one of the lap before.

/// The lap of a position, from 1; whoever stores fewer bits of it cuts it off, and it may come to 0 again. The
/// number of entries is a power of two.
#[inline]
pub(crate) fn lap(position: u64, entries: u64) -> u64 {
    (position >> entries.trailing_zeros()).wrapping_add(1)
}
