//! What a pool has lent, to whom.

use super::classes::CLASS_COUNT;

/// How many different origins a pool can tell apart; more share the last entry.
pub const MAX_ORIGINS: usize = 32;

/// Buffers and bytes (whole blocks) in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Buffers.
    pub buffers: u64,
    /// Bytes, counting whole blocks.
    pub bytes: u64,
}

/// A snapshot of a pool. Exact when nobody allocates or drops at the same moment.
#[derive(Debug, Clone, Default)]
pub struct PoolStats {
    /// Bytes mapped for the pool.
    pub reserved_bytes: usize,
    /// Bytes of blocks in use.
    pub in_use_bytes: u64,
    /// Blocks in use.
    pub in_use_buffers: u64,
    /// Per size class that is in use: the block length and the usage; `None` is dedicated regions.
    pub by_class: Vec<(Option<usize>, Usage)>,
    /// Per origin that has buffers outstanding.
    pub by_origin: Vec<(&'static str, Usage)>,
    /// The most bytes that were ever mapped for the pool.
    pub peak: usize,
}

/// Signed counts, so that each thread can count what it takes and gives back on its own.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) buffers: i64,
    pub(super) bytes: i64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.buffers += other.buffers;
        self.bytes += other.bytes;
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { buffers: self.buffers.max(0) as u64, bytes: self.bytes.max(0) as u64 }
    }
}

/// Counts per class (the last is dedicated regions) and per origin.
#[derive(Clone, Default)]
pub(super) struct Tallies {
    pub(super) class: [Tally; CLASS_COUNT + 1],
    pub(super) origin: [Tally; MAX_ORIGINS],
}

impl Tallies {
    pub(super) fn count(&mut self, class: usize, origin: u16, bytes: usize, sign: i64) {
        let step = Tally { buffers: sign, bytes: sign * bytes as i64 };
        self.class[class].add(&step);
        self.origin[origin as usize].add(&step);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.class.iter_mut().zip(&other.class).for_each(|(a, b)| a.add(b));
        self.origin.iter_mut().zip(&other.origin).for_each(|(a, b)| a.add(b));
    }
}
