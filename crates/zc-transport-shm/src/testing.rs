//! Words on the heap, for tests and for loom.

use std::sync::Arc;

use crate::sync::{AtomicU64, Ordering};
use crate::words::{ReadWords, WriteWords};

#[derive(Clone)]
pub(crate) struct Cells(Arc<[AtomicU64]>);

impl Cells {
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).map(|_| AtomicU64::new(0)).collect())
    }
}

impl ReadWords for Cells {
    fn load(&self, at: usize) -> u64 {
        self.0[at].load(Ordering::Relaxed)
    }
}

impl WriteWords for Cells {
    fn store(&self, at: usize, value: u64) {
        self.0[at].store(value, Ordering::Relaxed);
    }
    fn publish(&self, at: usize, value: u64) {
        self.0[at].store(value, Ordering::Release);
    }
}
