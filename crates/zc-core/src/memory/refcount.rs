//! The reference count of a block, apart from everything else so that loom can check it.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// More references than this are a leak in a loop; the process aborts before the count can wrap.
const MAX_REFS: u32 = u32::MAX / 2;

/// Counts the references to a block: 0 is idle, 1 is unique.
#[derive(Debug)]
pub(crate) struct RefCount(AtomicU32);

impl RefCount {
    /// A count that starts with `n` references.
    pub(crate) fn new(n: u32) -> Self {
        Self(AtomicU32::new(n))
    }

    /// Adds a reference; the caller holds one already.
    pub(crate) fn acquire(&self) {
        if self.0.fetch_add(1, Ordering::Relaxed) > MAX_REFS {
            std::process::abort();
        }
    }

    /// Gives one reference up. True means it was the last, and the caller now owns the block alone:
    /// the count then reads 1 and stands for the caller.
    pub(crate) fn release_is_last(&self) -> bool {
        if self.is_unique() {
            return true;
        }
        if self.0.fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        fence(Ordering::Acquire);
        self.0.store(1, Ordering::Relaxed);
        true
    }

    /// Whether the caller's reference is the only one. All earlier uses then happened before.
    pub(crate) fn is_unique(&self) -> bool {
        self.0.load(Ordering::Acquire) == 1
    }

    /// Takes an idle block (0 to 1); false if it was not idle.
    pub(crate) fn claim(&self) -> bool {
        self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Makes a uniquely owned block idle.
    pub(crate) fn retire(&self) {
        self.0.store(0, Ordering::Release);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{cell::UnsafeCell, sync::Arc, thread};

    struct Shared {
        refs: RefCount,
        data: UnsafeCell<u32>,
    }

    #[test]
    fn loom_exactly_one_last_owner_and_it_sees_everything() {
        loom::model(|| {
            let shared = Arc::new(Shared { refs: RefCount::new(1), data: UnsafeCell::new(0) });
            shared.refs.acquire();
            let other = shared.clone();
            let run = |s: &Shared| {
                s.data.with(|p| {
                    // SAFETY: a reference is held, so nobody writes (checked by loom).
                    unsafe { std::ptr::read_volatile(p) }
                });
                let last = s.refs.release_is_last();
                if last {
                    s.data.with_mut(|p| {
                        // SAFETY: the last owner is alone (checked by loom).
                        unsafe { *p += 1 }
                    });
                }
                last
            };
            let t = thread::spawn(move || run(&other));
            let mine = run(&shared);
            let theirs = t.join().unwrap();
            assert!(mine ^ theirs);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let c = RefCount::new(0);
        assert!(c.claim());
        assert!(!c.claim());
        c.acquire();
        assert!(!c.release_is_last());
        assert!(c.release_is_last());
        c.retire();
        assert!(c.claim());
    }
}
