//! The pool: size classes over regions that are mapped lazily, up to a bound.
//!
//! ```text
//! try_alloc: thread cache -> shared list of the class -> cut a chunk out of a region, or map one
//!            -> collect all caches, give back what is wholly free, cut again
//!            -> lend a block of a larger class -> Exhausted
//! ```
//!
//! Blocks are reused last in, first out. Their content is not cleared: it may be stale.

mod builder;
pub(super) mod cache;
mod classes;
mod extents;
mod limits;
mod owner_lock;
mod shared;
mod slabs;
mod stats;
mod waiters;

pub use builder::BufPoolBuilder;
pub use classes::{CLASS_COUNT, MAX_CLASS_BYTES, MIN_CLASS_BYTES};
pub use limits::{DEFAULT_POOL_DIVISOR, DEFAULT_POOL_MAX_BYTES, DEFAULT_POOL_MIN_BYTES};
pub(super) use shared::Chunk;
pub use stats::{MAX_ORIGINS, PoolStats, Usage};
pub use waiters::{AllocWaiter, MAX_MISSED, MAX_OVERTAKEN};

use super::{PinnedBufMut, Region, RegionError};
use shared::Shared;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use waiters::rank;

/// How many bytes of free dedicated blocks a pool keeps for reuse by default.
pub const LARGE_CACHE_BYTES: usize = 64 << 20;
/// One part in so many of a pool's bound is left to others by [`BufPool::poll_alloc_sparing`].
pub const SPARED_DIVISOR: usize = 4;
/// Dedicated blocks are multiples of this, so that they are reused for similar lengths.
const LARGE_STEP_BYTES: usize = 1 << 20;

/// Why there is no buffer.
///
/// ```
/// use zc_core::memory::{AllocError, BufPool};
///
/// let pool = BufPool::builder().max_bytes(4096).build();
/// assert!(matches!(pool.try_alloc(4097), Err(AllocError::TooLarge { need: 4097, max: 4096 })));
/// let all = pool.try_alloc(4096)?;
/// assert!(matches!(pool.try_alloc(1), Err(AllocError::Exhausted { .. })));
/// # Ok::<(), AllocError>(())
/// ```
#[derive(Debug, thiserror::Error)]
pub enum AllocError {
    /// The bound is reached, or the system grants no more, while some is in use: waiting helps. Where another
    /// thread is giving memory back at this moment, [`BufPool::alloc`] sees it, `try_alloc` may not.
    #[error("pool exhausted: {need} bytes needed, {in_use} of {max} in use")]
    Exhausted {
        /// The bytes needed, headroom included.
        need: usize,
        /// The bytes in use.
        in_use: u64,
        /// The bound.
        max: usize,
    },
    /// More than the pool may ever hold; waiting does not help.
    #[error("{need} bytes exceed the pool's bound of {max}")]
    TooLarge {
        /// The bytes needed.
        need: usize,
        /// The bound.
        max: usize,
    },
    /// The system refused a region, and nothing is in use that could come back.
    #[error(transparent)]
    Os(#[from] RegionError),
}

/// Closes the pool when the last handle goes.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Lends buffers of pinned memory. Cloning gives another handle to the same pool.
///
/// Dropping the last handle frees what is free; buffers in use keep their own region alive. The
/// bound counts whole mapped regions and is exact: a region counts until it is unmapped.
///
/// ```
/// use zc_core::memory::BufPool;
///
/// let pool = BufPool::builder().max_bytes(1 << 20).build();
/// let mut buf = pool.with_origin("greeter").try_alloc(100)?;
/// buf.put_slice(b"hello");
/// let shared = buf.freeze();
/// assert_eq!(pool.outstanding_by_origin()[0].0, "greeter");
/// drop(shared);
/// assert_eq!(pool.stats().in_use_bytes, 0);
/// # Ok::<(), zc_core::memory::AllocError>(())
/// ```
#[derive(Clone)]
pub struct BufPool {
    handle: Arc<Handle>,
    origin: u16,
    headroom: usize,
}

/// A pool that this does not keep.
#[derive(Debug)]
pub(super) struct WeakPool(Weak<Shared>);

impl WeakPool {
    /// Whether anyone has a handle to the pool, or a buffer of it.
    pub(super) fn is_used(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Bytes that are in use now.
    pub(super) fn in_use_bytes(&self) -> u64 {
        self.0.upgrade().map_or(0, |pool| pool.tallies().in_use_bytes())
    }
}

impl std::fmt::Debug for BufPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufPool").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl BufPool {
    /// Describes a new pool.
    pub fn builder() -> BufPoolBuilder {
        BufPoolBuilder::default()
    }

    pub(super) fn downgrade(&self) -> WeakPool {
        WeakPool(Arc::downgrade(self.shared()))
    }

    /// What to do when nobody has a handle or a buffer any more.
    pub(super) fn at_end(&self, end: shared::AtEnd) {
        self.shared().at_end(end);
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.0
    }

    /// The name given to it.
    pub fn name(&self) -> &'static str {
        self.shared().name
    }

    /// A handle whose allocations are counted under `name`.
    pub fn with_origin(&self, name: &'static str) -> Self {
        Self { origin: self.shared().origins.index_of(name), ..self.clone() }
    }

    /// Whether both are handles of one pool.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.shared(), other.shared())
    }

    /// The most bytes it may map.
    pub fn max_bytes(&self) -> usize {
        self.shared().slabs().max_bytes()
    }

    /// An empty buffer with room for at least `len` bytes. Does not wait, and does not queue behind
    /// those who do.
    #[inline]
    pub fn try_alloc(&self, len: usize) -> Result<PinnedBufMut, AllocError> {
        self.try_alloc_with_headroom(len, self.headroom)
    }

    /// As [`try_alloc`](Self::try_alloc), with `headroom` bytes in front.
    #[inline]
    pub fn try_alloc_with_headroom(&self, len: usize, headroom: usize) -> Result<PinnedBufMut, AllocError> {
        let block = self.shared().take(len.saturating_add(headroom), self.origin)?;
        Ok(PinnedBufMut::from_block(block, headroom, 0))
    }

    /// An empty buffer with room for at least `len` bytes, as soon as the pool can. First come, first
    /// served, but one that needs more than is free is overtaken by those that need less, up to
    /// [`MAX_OVERTAKEN`] times. Dropping the future leaves the queue.
    pub async fn alloc(&self, len: usize) -> Result<PinnedBufMut, AllocError> {
        self.alloc_with_headroom(len, self.headroom).await
    }

    /// As [`alloc`](Self::alloc), with `headroom` bytes in front. Cancellation-safe.
    pub async fn alloc_with_headroom(&self, len: usize, headroom: usize) -> Result<PinnedBufMut, AllocError> {
        let mut waiter = AllocWaiter::new();
        std::future::poll_fn(|cx| self.poll_with_headroom(len, headroom, &mut waiter, cx)).await
    }

    /// As [`alloc`](Self::alloc), for a caller that keeps its place in the queue itself.
    pub fn poll_alloc(
        &self,
        len: usize,
        waiter: &mut AllocWaiter,
        cx: &mut Context<'_>,
    ) -> Poll<Result<PinnedBufMut, AllocError>> {
        self.poll_with_headroom(len, self.headroom, waiter, cx)
    }

    /// As [`try_alloc`](Self::try_alloc), for what somebody else asks of us: leaves one part in
    /// [`SPARED_DIVISOR`] of the bound to everything else.
    pub fn try_alloc_sparing(&self, len: usize) -> Result<PinnedBufMut, AllocError> {
        let need = len.saturating_add(self.headroom);
        let max = self.max_bytes() - self.max_bytes() / SPARED_DIVISOR;
        if need > max {
            return Err(AllocError::TooLarge { need, max });
        }
        let in_use = self.shared().tallies().in_use_bytes();
        if in_use.saturating_add(need as u64) > max as u64 {
            return Err(AllocError::Exhausted { need, in_use, max });
        }
        self.try_alloc(len)
    }

    /// As [`try_alloc`](Self::try_alloc), for what is of use but can be done without: while others wait for
    /// memory, as [`try_alloc_sparing`](Self::try_alloc_sparing).
    pub fn try_alloc_spare(&self, len: usize) -> Result<PinnedBufMut, AllocError> {
        if self.shared().waiters().any() { self.try_alloc_sparing(len) } else { self.try_alloc(len) }
    }

    /// As [`poll_alloc`](Self::poll_alloc), with the restriction of [`try_alloc_sparing`](Self::try_alloc_sparing).
    /// All that are not restricted so overtake it, however often.
    pub fn poll_alloc_sparing(
        &self,
        len: usize,
        waiter: &mut AllocWaiter,
        cx: &mut Context<'_>,
    ) -> Poll<Result<PinnedBufMut, AllocError>> {
        let rank = rank(len.saturating_add(self.headroom), true);
        self.poll_with(|| self.try_alloc_sparing(len), rank, waiter, cx)
    }

    fn poll_with_headroom(
        &self,
        len: usize,
        headroom: usize,
        waiter: &mut AllocWaiter,
        cx: &mut Context<'_>,
    ) -> Poll<Result<PinnedBufMut, AllocError>> {
        let rank = rank(len.saturating_add(headroom), false);
        self.poll_with(|| self.try_alloc_with_headroom(len, headroom), rank, waiter, cx)
    }

    fn poll_with(
        &self,
        look: impl Fn() -> Result<PinnedBufMut, AllocError>,
        rank: usize,
        waiter: &mut AllocWaiter,
        cx: &mut Context<'_>,
    ) -> Poll<Result<PinnedBufMut, AllocError>> {
        let wait_first = waiter.is_queued() || self.shared().waiters().any();
        if !wait_first {
            match look() {
                Err(AllocError::Exhausted { .. }) => {}
                done => return Poll::Ready(done),
            }
        }
        // Queued first, then tried again: whoever gives memory back now sees the queue.
        if !waiter.queue_at(self.shared(), rank, cx.waker()) {
            return Poll::Pending;
        }
        match look() {
            Err(AllocError::Exhausted { .. }) => {
                waiter.in_vain();
                Poll::Pending
            }
            done => {
                waiter.leave(done.is_ok());
                Poll::Ready(done)
            }
        }
    }

    /// Gives back to the system all memory that nobody uses, as far as regions are wholly free.
    pub fn trim(&self) {
        self.shared().trim();
    }

    /// The regions that are mapped now: what a transport registers ahead of use. A region that is
    /// held counts as mapped.
    pub fn regions(&self) -> Vec<Region> {
        self.shared().slabs().regions()
    }

    /// What is mapped and in use.
    pub fn stats(&self) -> PoolStats {
        let shared = self.shared();
        PoolStats::of(&shared.tallies(), &shared.origins, shared.slabs())
    }

    /// Who has buffers outstanding: the leak report.
    pub fn outstanding_by_origin(&self) -> Vec<(&'static str, Usage)> {
        self.stats().by_origin
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test")]
mod refused_tests;
#[cfg(all(test, not(loom)))]
mod tests;
