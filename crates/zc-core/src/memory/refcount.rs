//! The reference count of a block, apart from everything else so that loom can check it.

use super::sync::atomic::{AtomicU32, Ordering, fence};

/// The count of a block that nobody has. Not zero: between its last user's decrement and the moment
/// that user owns the block alone, the count reads zero, and nobody may claim the block then.
const IDLE: u32 = u32::MAX;

/// More references than this are a leak in a loop; the process aborts long before the count can
/// wrap or reach [`IDLE`].
const MAX_REFS: u32 = u32::MAX / 2;

/// Counts the references to a block: idle, 1 is unique, more are shared.
#[derive(Debug)]
pub(crate) struct RefCount(AtomicU32);

impl RefCount {
    /// The count of an idle block.
    pub(crate) fn idle() -> Self {
        Self(AtomicU32::new(IDLE))
    }

    /// Adds a reference; the caller holds one already.
    #[inline]
    pub(crate) fn acquire(&self) {
        if self.0.fetch_add(1, Ordering::Relaxed) > MAX_REFS {
            std::process::abort();
        }
    }

    /// Gives one reference up. True means it was the last, and the caller now owns the block alone:
    /// the count then reads 1 and stands for the caller.
    #[inline]
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
    #[inline]
    pub(crate) fn is_unique(&self) -> bool {
        self.0.load(Ordering::Acquire) == 1
    }

    /// Takes an idle block; false if it was not idle.
    #[inline]
    pub(crate) fn claim(&self) -> bool {
        self.0.compare_exchange(IDLE, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Makes a uniquely owned block idle.
    #[inline]
    pub(crate) fn retire(&self) {
        self.0.store(IDLE, Ordering::Release);
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

    fn shared() -> Arc<Shared> {
        let shared = Shared { refs: RefCount::idle(), data: UnsafeCell::new(0) };
        assert!(shared.refs.claim());
        Arc::new(shared)
    }

    fn read_and_release(s: &Shared) -> bool {
        s.data.with(|p| {
            // SAFETY: a reference is held, so nobody writes (M5; checked by loom).
            unsafe { std::ptr::read_volatile(p) }
        });
        s.refs.release_is_last()
    }

    fn write(s: &Shared) {
        s.data.with_mut(|p| {
            // SAFETY: the unique owner is alone (M5; checked by loom).
            unsafe { *p += 1 }
        });
    }

    #[test]
    fn loom_exactly_one_last_owner_and_it_sees_everything() {
        loom::model(|| {
            let shared = shared();
            shared.refs.acquire();
            let other = shared.clone();
            let run = |s: &Shared| {
                let last = read_and_release(s);
                if last {
                    write(s);
                }
                last
            };
            let t = thread::spawn(move || run(&other));
            let mine = run(&shared);
            let theirs = t.join().unwrap();
            assert!(mine ^ theirs);
        });
    }

    /// Two users let go while a third party, misled by a hostile peer, asks for the block again.
    #[test]
    fn loom_a_block_on_its_way_home_is_not_claimed() {
        loom::model(|| {
            let shared = shared();
            shared.refs.acquire();
            let users: Vec<_> = (0..2)
                .map(|_| {
                    let s = shared.clone();
                    thread::spawn(move || {
                        if read_and_release(&s) {
                            write(&s);
                            s.refs.retire();
                        }
                    })
                })
                .collect();
            if shared.refs.claim() {
                write(&shared);
                shared.refs.retire();
            }
            users.into_iter().for_each(|t| t.join().unwrap());
            assert!(shared.refs.claim());
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let c = RefCount::idle();
        assert!(c.claim());
        assert!(!c.claim());
        c.acquire();
        assert!(!c.release_is_last());
        assert!(c.release_is_last());
        c.retire();
        assert!(c.claim());
    }
}
