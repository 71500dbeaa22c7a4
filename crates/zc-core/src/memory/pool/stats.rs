//! What a pool has lent, to whom.

use super::classes::{CLASS_COUNT, class_len};
use super::slabs::Slabs;
use parking_lot::RwLock;

/// How many different origins a pool can tell apart; more share the last entry.
pub const MAX_ORIGINS: usize = 32;

/// The index of dedicated blocks, those above all classes, in the per-class counts.
pub(super) const LARGE: usize = CLASS_COUNT;

/// Buffers and bytes (whole blocks) in use.
///
/// ```
/// use zc_core::memory::{BufPool, Usage};
///
/// let pool = BufPool::builder().name("mine").build();
/// let _buf = pool.try_alloc(300)?;
/// assert_eq!(pool.outstanding_by_origin(), [("mine", Usage { buffers: 1, bytes: 384 })]);
/// # Ok::<(), zc_core::memory::AllocError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Buffers.
    pub buffers: u64,
    /// Bytes, counting whole blocks.
    pub bytes: u64,
}

/// A snapshot of a pool. Exact when nobody allocates or drops at the same moment.
///
/// ```
/// use zc_core::memory::BufPool;
///
/// let pool = BufPool::builder().build();
/// let buf = pool.try_alloc(1000)?;
/// let stats = pool.stats();
/// assert_eq!((stats.in_use_buffers, stats.in_use_bytes), (1, 1024));
/// assert!(stats.reserved_bytes >= 1024 && stats.peak >= stats.reserved_bytes);
/// # Ok::<(), zc_core::memory::AllocError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct PoolStats {
    /// Bytes mapped for the pool.
    pub reserved_bytes: usize,
    /// Bytes of blocks in use.
    pub in_use_bytes: u64,
    /// Blocks in use.
    pub in_use_buffers: u64,
    /// Per size class that is in use: the block length and the usage; `None` is dedicated blocks.
    pub by_class: Vec<(Option<usize>, Usage)>,
    /// Per origin that has buffers outstanding.
    pub by_origin: Vec<(&'static str, Usage)>,
    /// The most bytes that were ever mapped for the pool.
    pub peak: usize,
}

impl PoolStats {
    pub(super) fn of(tallies: &Tallies, origins: &Origins, slabs: &Slabs) -> Self {
        let in_use = |(_, usage): &(_, Usage)| usage.buffers > 0;
        let classes = tallies.class.iter().enumerate();
        let by_class: Vec<_> =
            classes.map(|(i, t)| ((i != LARGE).then(|| class_len(i)), t.usage())).filter(in_use).collect();
        let names = origins.0.read();
        let by_origin = names.iter().zip(&tallies.origin).map(|(name, t)| (*name, t.usage()));
        Self {
            reserved_bytes: slabs.reserved_bytes(),
            in_use_bytes: tallies.in_use_bytes(),
            in_use_buffers: by_class.iter().map(|(_, u)| u.buffers).sum(),
            by_class,
            by_origin: by_origin.filter(|(_, usage)| usage.buffers > 0).collect(),
            peak: slabs.peak_bytes(),
        }
    }
}

/// The names under which allocations are counted.
pub(super) struct Origins(RwLock<Vec<&'static str>>);

impl Origins {
    pub(super) fn new(first: &'static str) -> Self {
        Self(RwLock::new(vec![first]))
    }

    /// The index of `name`, which is added if there is room (M9).
    pub(super) fn index_of(&self, name: &'static str) -> u16 {
        let mut names = self.0.write();
        if let Some(at) = names.iter().position(|n| *n == name) {
            return at as u16;
        }
        if names.len() + 1 < MAX_ORIGINS {
            names.push(name);
        } else if names.len() + 1 == MAX_ORIGINS {
            names.push("(others)");
        }
        (names.len() - 1) as u16
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn count(&self) -> usize {
        self.0.read().len()
    }
}

/// Signed counts, so that each thread can count what it takes and gives back on its own.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    buffers: i64,
    bytes: i64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.buffers += other.buffers;
        self.bytes += other.bytes;
    }

    fn usage(&self) -> Usage {
        Usage { buffers: self.buffers.max(0) as u64, bytes: self.bytes.max(0) as u64 }
    }
}

/// Counts per class (the last is dedicated blocks) and per origin.
#[derive(Clone, Default)]
pub(super) struct Tallies {
    class: [Tally; CLASS_COUNT + 1],
    origin: [Tally; MAX_ORIGINS],
}

impl Tallies {
    #[inline]
    pub(super) fn count(&mut self, class: usize, origin: u16, bytes: usize, sign: i64) {
        let step = Tally { buffers: sign, bytes: sign * bytes as i64 };
        self.class[class].add(&step);
        self.origin[origin as usize].add(&step);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.class.iter_mut().zip(&other.class).for_each(|(a, b)| a.add(b));
        self.origin.iter_mut().zip(&other.origin).for_each(|(a, b)| a.add(b));
    }

    pub(super) fn in_use_bytes(&self) -> u64 {
        self.class.iter().map(|t| t.usage().bytes).sum()
    }
}
