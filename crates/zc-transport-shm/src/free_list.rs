//! Blocks that come back from any thread and are taken by one, last in, first out.

use std::sync::Arc;

use futures::task::AtomicWaker;
use zc_core::memory::Reclaim;

use crate::sync::{AtomicU32, Ordering, between_seq_cst};

/// The part that any thread adds to: a stack that is only ever taken as a whole, so that a position
/// that was on top twice is no problem.
pub(crate) struct FreeList {
    /// Index plus one of the top; 0 is empty.
    top: AtomicU32,
    next: Box<[AtomicU32]>,
    /// Woken when something comes back while somebody waits.
    waiting: AtomicU32,
    waker: Arc<AtomicWaker>,
}

impl FreeList {
    fn new(count: u32, waker: Arc<AtomicWaker>) -> Self {
        let next = (0..count).map(|_| AtomicU32::new(0)).collect();
        Self { top: AtomicU32::new(0), next, waiting: AtomicU32::new(0), waker }
    }

    fn push(&self, index: u32) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            self.next[index as usize].store(top, Ordering::Relaxed);
            match self.top.compare_exchange_weak(top, index + 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => top = now,
            }
        }
        between_seq_cst();
        if self.waiting.load(Ordering::SeqCst) == 1 && self.waiting.swap(0, Ordering::SeqCst) == 1 {
            self.waker.wake();
        }
    }
}

impl Reclaim for FreeList {
    fn reclaim(&self, index: u32) {
        self.push(index);
    }
}

/// The part of the one who takes.
pub(crate) struct Stack {
    local: Vec<u32>,
    shared: Arc<FreeList>,
}

impl Stack {
    /// All of `first..count`, the lowest on top.
    pub(crate) fn new(first: u32, count: u32, waker: Arc<AtomicWaker>) -> Self {
        let mut local = Vec::with_capacity(count as usize);
        local.extend((first..count).rev());
        Self { local, shared: Arc::new(FreeList::new(count, waker)) }
    }

    /// Where blocks come back.
    pub(crate) fn home(&self) -> Arc<FreeList> {
        self.shared.clone()
    }

    /// The block that came back last.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<u32> {
        self.collect();
        self.local.pop()
    }

    /// How many blocks are free.
    pub(crate) fn len(&mut self) -> usize {
        self.collect();
        self.local.len()
    }

    #[inline]
    fn collect(&mut self) {
        if self.shared.top.load(Ordering::Relaxed) != 0 {
            self.take_all();
        }
    }

    fn take_all(&mut self) {
        let mut at = self.shared.top.swap(0, Ordering::SeqCst);
        let start = self.local.len();
        while at != 0 {
            self.local.push(at - 1);
            at = self.shared.next[at as usize - 1].load(Ordering::Relaxed);
        }
        self.local[start..].reverse();
    }

    /// From now on the waker is woken when a block comes back. Look again afterwards. True: one has come back since this
    /// was called last.
    pub(crate) fn wait(&self) -> bool {
        let came_back = self.shared.waiting.swap(1, Ordering::SeqCst) == 0;
        crate::sync::fence(Ordering::SeqCst);
        came_back
    }

    /// Whether a block has come back since somebody waits.
    pub(crate) fn came_back(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) == 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn last_in_first_out_from_any_thread() {
        let mut stack = Stack::new(2, 6, Arc::default());
        assert_eq!((stack.pop(), stack.pop(), stack.len()), (Some(2), Some(3), 2));
        let home = stack.home();
        std::thread::spawn(move || {
            home.reclaim(2);
            home.reclaim(3);
        })
        .join()
        .unwrap();
        let all: Vec<_> = std::iter::from_fn(|| stack.pop()).collect();
        assert_eq!(all, [3, 2, 4, 5]);
    }
}
