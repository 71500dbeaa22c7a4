//! The primitives of the structures that loom checks: loom's own under `--cfg loom`.

#[cfg(not(loom))]
pub(super) use {futures::task::AtomicWaker, parking_lot::Mutex, std::sync::atomic};
#[cfg(loom)]
pub(super) use {loom::future::AtomicWaker, loom::sync::atomic, model::Mutex};

/// A cell that is only reached through a closure, so that loom sees when an access ends.
#[cfg(loom)]
pub(super) use loom::cell::UnsafeCell;
#[cfg(not(loom))]
#[derive(Default)]
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    /// Runs `f` on the content; what it may do with the pointer is the caller's to know.
    pub(super) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// Lets another thread go on while this one waits for a lock.
pub(super) fn relax() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::yield_now();
}

#[cfg(loom)]
mod model {
    /// loom's mutex with the interface of the one that is used otherwise.
    #[derive(Default, Debug)]
    pub(in super::super) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(in super::super) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            match self.0.lock() {
                Ok(guard) => guard,
                Err(poisoned) => poisoned.into_inner(),
            }
        }
    }
}
