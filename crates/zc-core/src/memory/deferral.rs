//! Owners of foreign bytes are dropped where no lock is held: their destructors are other people's code.

use super::block::Table;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

/// Places for what is kept that a thread does not give back.
const KEPT_PLACES: usize = 64;

// Something is kept.
const KEPT: u32 = 1 << 31;
// What was kept is being dropped, by a frame further out on this thread.
const DROPPING: u32 = 1 << 30;

thread_local! {
    /// How many deferrals are open, and the flags above.
    static STATE: Cell<u32> = const { Cell::new(0) };
    static LIST: RefCell<VecDeque<Arc<Table>>> = const { RefCell::new(VecDeque::new()) };
}

/// While one lives, this thread drops no owner of foreign bytes ([`Bytes::from_owner`](bytes::Bytes::from_owner)):
/// those whose last bytes it lets go of are dropped when its outermost deferral ends.
///
/// Messages are let go of deep inside of lanes, under locks, and what an owner does in its destructor
/// is the application's affair: it may well use the connection that has just sent its bytes. So whoever calls
/// a lane under a lock opens a deferral in front of the lock. The facade does; who drives a lane himself may.
///
/// What is kept is at most what is let go of meanwhile. Memory of pools and of transports is never kept.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use zc_core::memory::{Deferral, Message};
/// # use bytes::Bytes;
///
/// struct Owner(Arc<Mutex<u32>>);
/// # impl AsRef<[u8]> for Owner { fn as_ref(&self) -> &[u8] { b"bytes" } }
/// impl Drop for Owner {
///     fn drop(&mut self) {
///         *self.0.lock().unwrap() += 1;
///     }
/// }
/// let dropped = Arc::new(Mutex::new(0));
/// let message = Message::from(Bytes::from_owner(Owner(dropped.clone())));
/// {
///     let _deferral = Deferral::begin();
///     let count = dropped.lock().unwrap();
///     drop(message); // here its owner would wait for ever
///     assert_eq!(*count, 0);
/// }
/// assert_eq!(*dropped.lock().unwrap(), 1);
/// ```
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Deferral(PhantomData<*const ()>);

impl Deferral {
    /// Opens one on this thread.
    #[inline]
    pub fn begin() -> Self {
        STATE.with(|state| state.set(state.get() + 1));
        Self(PhantomData)
    }

    /// Whether one is open on this thread.
    #[inline]
    pub fn is_open() -> bool {
        STATE.with(Cell::get) & !(KEPT | DROPPING) != 0
    }
}

impl Drop for Deferral {
    #[inline]
    fn drop(&mut self) {
        let left = STATE.with(|state| {
            state.set(state.get() - 1);
            state.get()
        });
        // The outermost one, and nobody is at it.
        if left == KEPT {
            drop_kept();
        }
    }
}

/// Drops what was kept. Destructors may open deferrals of their own; what those keep is dropped here as well,
/// so that a long list takes no deep stack.
#[cold]
fn drop_kept() {
    /// Also when a destructor panics.
    struct Done;
    impl Drop for Done {
        fn drop(&mut self) {
            STATE.with(|state| state.set(state.get() & !DROPPING));
        }
    }
    STATE.with(|state| state.set(KEPT | DROPPING));
    let _done = Done;
    while let Ok(Some(table)) = LIST.try_with(|list| list.borrow_mut().pop_front()) {
        drop(table);
    }
    STATE.with(|state| state.set(state.get() & !KEPT));
    let _ = LIST.try_with(|list| list.borrow_mut().shrink_to(KEPT_PLACES));
}

/// Lets go of foreign bytes, now or at the end of the deferral.
pub(super) fn let_go(table: Arc<Table>) {
    if !Deferral::is_open() {
        return drop(table);
    }
    let mut table = Some(table);
    // A thread that is being taken down keeps nothing.
    let _ = LIST.try_with(|list| {
        list.borrow_mut().extend(table.take());
        STATE.with(|state| state.set(state.get() | KEPT));
    });
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::PinnedBuf;
    use bytes::Bytes;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// Lets go of the next one inside a deferral of its own.
    struct Owner(Arc<AtomicUsize>, Option<PinnedBuf>);

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            b"bytes"
        }
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            assert!(!Deferral::is_open());
            let _deferral = Deferral::begin();
            self.1.take();
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn owned(dropped: &Arc<AtomicUsize>, next: Option<PinnedBuf>) -> PinnedBuf {
        Bytes::from_owner(Owner(dropped.clone(), next)).into()
    }

    #[test]
    fn the_outermost_drops_all_without_a_deep_stack() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let chain = (0..100_000).fold(None, |next, _| Some(owned(&dropped, next)));
        let others: Vec<_> = (0..1000).map(|_| owned(&dropped, None)).collect();
        let outer = Deferral::begin();
        drop(Deferral::begin());
        drop((chain, others));
        drop(Deferral::begin());
        assert_eq!(dropped.load(Relaxed), 0);
        drop(outer);
        assert_eq!(dropped.load(Relaxed), 101_000);
        assert_eq!(STATE.with(Cell::get), 0);
        assert!(LIST.with(|list| list.borrow().capacity()) < 1000);
        drop(owned(&dropped, None));
        assert_eq!(dropped.load(Relaxed), 101_001, "at once");
    }

    #[test]
    fn a_destructor_that_panics_leaves_the_others_for_the_next_time() {
        struct Bad;
        impl AsRef<[u8]> for Bad {
            fn as_ref(&self) -> &[u8] {
                b"bytes"
            }
        }
        impl Drop for Bad {
            fn drop(&mut self) {
                panic!("as a destructor should not");
            }
        }
        let dropped = Arc::new(AtomicUsize::new(0));
        let (bad, good) = (PinnedBuf::from(Bytes::from_owner(Bad)), owned(&dropped, None));
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _deferral = Deferral::begin();
            drop((bad, good));
        }));
        assert!(caught.is_err());
        drop(Deferral::begin());
        assert_eq!((dropped.load(Relaxed), STATE.with(Cell::get)), (1, 0));
    }
}
