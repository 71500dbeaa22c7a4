//! A lock that one thread takes all the time and others hardly ever.
//!
//! Taking it is one atomic exchange and leaving it a plain store, half of what a mutex costs. It is
//! only held for a few instructions without calls out, so waiting for it spins.

use crate::memory::sync::atomic::{AtomicBool, Ordering};
use crate::memory::sync::{UnsafeCell, relax};

/// Guards `T`.
#[derive(Default)]
pub(super) struct OwnerLock<T> {
    taken: AtomicBool,
    content: UnsafeCell<T>,
}

// SAFETY: the content is only reached while `taken` is this thread's, which orders all uses, so
// sharing the lock is sending the content back and forth (M5).
unsafe impl<T: Send> Sync for OwnerLock<T> {}

/// Leaves the lock, also when the closure panics.
struct Leave<'a>(&'a AtomicBool);

impl Drop for Leave<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<T> OwnerLock<T> {
    /// Runs `f` if nobody else is inside. For the owner, who can do something else otherwise.
    #[inline]
    pub(super) fn try_with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return None;
        }
        let _leave = Leave(&self.taken);
        // SAFETY: `taken` was false and is ours until `_leave` drops, after the closure (M5).
        Some(self.content.with_mut(|content| f(unsafe { &mut *content })))
    }

    /// Runs `f` as soon as nobody else is inside.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut f = Some(f);
        loop {
            let done = self.try_with(|content| f.take().map(|f| f(content)));
            if let Some(Some(result)) = done {
                return result;
            }
            while self.taken.load(Ordering::Relaxed) {
                relax();
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn loom_one_at_a_time_and_nothing_is_lost() {
        loom::model(|| {
            let lock = Arc::new(OwnerLock::<u32>::default());
            let owner = lock.clone();
            let t = thread::spawn(move || {
                (0..2).filter(|_| owner.try_with(|n| *n += 1).is_some()).count() as u32
            });
            let collected = lock.with(std::mem::take);
            let counted = t.join().unwrap();
            assert_eq!(collected + lock.with(|n| *n), counted);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn opens_again_after_a_panic_and_is_not_entered_twice() {
        let lock = OwnerLock::<u32>::default();
        let fall = || lock.with(|_| panic!("in the closure"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(fall)).is_err());
        assert_eq!(lock.with(|_| lock.try_with(|_| ())), None);
        assert_eq!(lock.try_with(|n| *n), Some(0));
    }
}
