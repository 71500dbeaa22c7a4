//! How many bytes an application may keep of what a connection received.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::PinnedBuf;
use super::sync::AtomicWaker;
use super::sync::atomic::{AtomicUsize, Ordering};

/// How close a lease is to its limits.
///
/// ```
/// use zc_core::memory::Pressure;
///
/// fn lend_or_copy(pressure: Pressure) -> &'static str {
///     match pressure {
///         Pressure::None => "lend",
///         Pressure::Soft => "copy out, if that is cheap",
///         Pressure::Hard => "wait",
///     }
/// }
/// assert!(Pressure::Soft < Pressure::Hard);
/// assert_eq!(lend_or_copy(Pressure::None), "lend");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Below the soft limit.
    None,
    /// At or over the soft limit: release soon.
    Soft,
    /// At or over the hard limit: the peer gets no further credit.
    Hard,
}

/// Counts the capacity of all blocks lent under it and still alive.
///
/// ```
/// use zc_core::memory::{BufPool, LeaseBudget, Pressure};
///
/// let lease = LeaseBudget::new(1 << 10, 4 << 10);
/// let mut buf = BufPool::builder().build().try_alloc(2000)?;
/// buf.attach_lease(lease.clone());
/// assert_eq!((lease.pressure(), lease.outstanding_bytes()), (Pressure::Soft, 2048));
/// drop(buf.freeze());
/// assert_eq!(lease.pressure(), Pressure::None);
/// # Ok::<(), zc_core::memory::AllocError>(())
/// ```
#[derive(Debug)]
pub struct LeaseBudget {
    outstanding_bytes: AtomicUsize,
    soft_bytes: usize,
    hard_bytes: usize,
    waker: AtomicWaker,
}

impl LeaseBudget {
    /// A budget with both limits; the soft one is capped by the hard one, which is at least one
    /// byte, so that something can be lent.
    pub fn new(soft_bytes: usize, hard_bytes: usize) -> Arc<Self> {
        let hard_bytes = hard_bytes.max(1);
        Arc::new(Self {
            outstanding_bytes: AtomicUsize::new(0),
            soft_bytes: soft_bytes.min(hard_bytes),
            hard_bytes,
            waker: AtomicWaker::new(),
        })
    }

    /// The bytes lent and still alive.
    #[inline]
    pub fn outstanding_bytes(&self) -> usize {
        self.outstanding_bytes.load(Ordering::SeqCst)
    }

    /// How close the lease is to its limits.
    #[inline]
    pub fn pressure(&self) -> Pressure {
        match self.outstanding_bytes() {
            n if n >= self.hard_bytes => Pressure::Hard,
            n if n >= self.soft_bytes => Pressure::Soft,
            _ => Pressure::None,
        }
    }

    /// Ready when below the hard limit. One task may wait at a time (the latest wins).
    pub fn poll_below_hard(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.pressure() < Pressure::Hard {
            return Poll::Ready(());
        }
        self.register(cx);
        if self.pressure() < Pressure::Hard { Poll::Ready(()) } else { Poll::Pending }
    }

    fn register(&self, cx: &mut Context<'_>) {
        #[cfg(not(loom))]
        self.waker.register(cx.waker());
        #[cfg(loom)]
        self.waker.register_by_ref(cx.waker());
    }

    #[inline]
    pub(super) fn add(&self, bytes: usize) {
        self.outstanding_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    #[inline]
    pub(super) fn sub(&self, bytes: usize) {
        let before = self.outstanding_bytes.fetch_sub(bytes, Ordering::SeqCst);
        debug_assert!(before >= bytes, "more came back than was lent");
        if before >= self.hard_bytes && before - bytes < self.hard_bytes {
            self.waker.wake();
        }
    }
}

/// Memory that is no pool's, lent under a budget as blocks are.
struct OnHeap {
    bytes: Vec<u8>,
    lease: Arc<LeaseBudget>,
}

impl AsRef<[u8]> for OnHeap {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for OnHeap {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes).capacity();
        self.lease.sub(bytes);
    }
}

/// Counts bytes on the heap against a lease for as long as somebody has them.
pub(crate) fn lend_from_heap(bytes: Vec<u8>, lease: Arc<LeaseBudget>) -> PinnedBuf {
    lease.add(bytes.capacity());
    Bytes::from_owner(OnHeap { bytes, lease }).into()
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::atomic::AtomicBool;
    use loom::thread;
    use std::task::{Wake, Waker};

    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn loom_going_below_the_hard_limit_is_seen_or_wakes() {
        loom::model(|| {
            let lease = LeaseBudget::new(1, 2);
            lease.add(2);
            lease.add(1);
            let threads: Vec<_> = [2, 1]
                .map(|bytes| {
                    let lease = lease.clone();
                    thread::spawn(move || lease.sub(bytes))
                })
                .into();
            let flag = Arc::new(Flag(AtomicBool::new(false)));
            let waker = Waker::from(flag.clone());
            let ready = lease.poll_below_hard(&mut Context::from_waker(&waker)).is_ready();
            threads.into_iter().for_each(|t| t.join().unwrap());
            assert!(ready || flag.0.load(Ordering::SeqCst), "nobody was told");
            assert_eq!(lease.outstanding_bytes(), 0);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::BufPool;

    #[test]
    fn counts_blocks_while_alive() {
        let lease = LeaseBudget::new(256, 512);
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let mut a = pool.try_alloc(256).unwrap();
        a.attach_lease(lease.clone());
        assert_eq!(lease.pressure(), Pressure::Soft);
        let mut b = pool.try_alloc(256).unwrap();
        b.attach_lease(lease.clone());
        let b = b.freeze();
        let c = b.clone();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(lease.poll_below_hard(&mut cx).is_pending());
        drop((a, b));
        assert!(lease.poll_below_hard(&mut cx).is_ready());
        assert_eq!(lease.outstanding_bytes(), 256);
        drop(c);
        assert_eq!(lease.pressure(), Pressure::None);
    }

    #[test]
    fn changing_the_lease_moves_the_bytes() {
        let (old, new) = (LeaseBudget::new(1, 0), LeaseBudget::new(0, 1 << 20));
        let mut buf = BufPool::builder().max_bytes(1 << 20).build().try_alloc(256).unwrap();
        buf.attach_lease(old.clone());
        assert_eq!(old.pressure(), Pressure::Hard);
        buf.attach_lease(new.clone());
        assert_eq!((old.pressure(), new.outstanding_bytes()), (Pressure::None, 256));
    }
}
