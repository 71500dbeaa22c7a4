//! How many bytes an application may keep of what a connection received.

use futures::task::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// How close a lease is to its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Below the soft limit.
    None,
    /// At or over the soft limit: release soon.
    Soft,
    /// At or over the hard limit: nothing more is received.
    Hard,
}

/// Counts the capacity of all blocks lent under it and still alive.
#[derive(Debug)]
pub struct LeaseBudget {
    outstanding_bytes: AtomicUsize,
    soft_bytes: usize,
    hard_bytes: usize,
    waker: AtomicWaker,
}

impl LeaseBudget {
    /// A budget with both limits; the soft one is capped by the hard one.
    pub fn new(soft_bytes: usize, hard_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            outstanding_bytes: AtomicUsize::new(0),
            soft_bytes: soft_bytes.min(hard_bytes),
            hard_bytes,
            waker: AtomicWaker::new(),
        })
    }

    /// The bytes lent and still alive.
    pub fn outstanding_bytes(&self) -> usize {
        self.outstanding_bytes.load(Ordering::SeqCst)
    }

    /// How close the lease is to its limits.
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
        self.waker.register(cx.waker());
        if self.pressure() < Pressure::Hard { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.outstanding_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(crate) fn sub(&self, bytes: usize) {
        let before = self.outstanding_bytes.fetch_sub(bytes, Ordering::SeqCst);
        if before >= self.hard_bytes && before - bytes < self.hard_bytes {
            self.waker.wake();
        }
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
}
