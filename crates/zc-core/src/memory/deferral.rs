//! Other people's code runs where no lock is held: destructors of owners of foreign bytes, and wakers.

use super::block::Table;
use smallvec::SmallVec;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::thread::LocalKey;

/// Places for what is kept that a thread does not give back.
const KEPT_PLACES: usize = 64;

// An owner is kept.
const KEPT: u32 = 1 << 31;
// What was kept is being dropped, by a frame further out on this thread.
const DROPPING: u32 = 1 << 30;
// A waker is kept.
const DUE: u32 = 1 << 29;
const FLAGS: u32 = KEPT | DROPPING | DUE;

/// Few wakers fall due in one deferral, so that keeping them costs no memory.
type Wakers = SmallVec<[Waker; 8]>;

thread_local! {
    /// How many deferrals are open, and the flags above.
    static STATE: Cell<u32> = const { Cell::new(0) };
    static OWNERS: RefCell<VecDeque<Arc<Table>>> = const { RefCell::new(VecDeque::new()) };
    /// To be called.
    static WAKERS: RefCell<Wakers> = RefCell::default();
    /// Those that nobody needs any more.
    static STALE: RefCell<Wakers> = RefCell::default();
}

/// While one lives, this thread drops no owner of foreign bytes ([`Bytes::from_owner`](bytes::Bytes::from_owner))
/// and calls no waker of those who wait for a pool or a connection: those whose last bytes it lets go of are
/// dropped, and those that fall due are called, when its outermost deferral ends.
///
/// Messages are let go of deep inside of lanes, under locks, and what an owner does in its destructor
/// is the application's affair: it may well use the connection that has just sent its bytes. An executor that polls
/// inside `wake` may, too. So whoever calls a lane under a lock opens a deferral in front of the lock. The facade
/// does; who drives a lane himself may.
///
/// What is kept is at most what is let go of meanwhile, and one waker for each that waits. Memory of pools and of
/// transports is never kept. What panics keeps nobody else from its turn; the first panic then goes on.
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
        STATE.with(Cell::get) & !FLAGS != 0
    }

    /// Calls the waker, as soon as this thread has none open.
    #[inline]
    pub fn wake(waker: Waker) {
        if !Self::is_open() {
            return waker.wake();
        }
        if let Some(waker) = keep(&WAKERS, waker) {
            waker.wake();
        }
    }

    /// Drops the waker, as soon as this thread has none open: it may be the last that holds a task, and with
    /// that whatever the task owns.
    #[inline]
    pub fn discard(waker: Waker) {
        if Self::is_open() {
            drop(keep(&STALE, waker));
        }
    }
}

impl Drop for Deferral {
    #[inline]
    fn drop(&mut self) {
        let left = STATE.with(|state| {
            state.set(state.get() - 1);
            state.get()
        });
        // The outermost one, and something is kept.
        if left != 0 && left & !FLAGS == 0 {
            settle(left);
        }
    }
}

/// It comes back from a thread that is being taken down.
fn keep(list: &'static LocalKey<RefCell<Wakers>>, waker: Waker) -> Option<Waker> {
    let mut waker = Some(waker);
    let _ = list.try_with(|list| {
        list.borrow_mut().extend(waker.take());
        STATE.with(|state| state.set(state.get() | DUE));
    });
    waker
}

/// Memory is back before those who were told of it look.
fn settle(left: u32) {
    let mut panics = Panics(None);
    if left & (KEPT | DROPPING) == KEPT {
        drop_owners(&mut panics);
    }
    if STATE.with(Cell::get) & DUE != 0 {
        call_wakers(&mut panics);
    }
    panics.go_on();
}

/// Drops what was kept. Destructors may open deferrals of their own; the owners that those keep are dropped here as
/// well, so that a long list takes no deep stack.
#[cold]
fn drop_owners(panics: &mut Panics) {
    STATE.with(|state| state.set(state.get() | DROPPING));
    while let Ok(Some(table)) = OWNERS.try_with(|list| list.borrow_mut().pop_front()) {
        panics.hold(|| drop(table));
    }
    STATE.with(|state| state.set(state.get() & !(KEPT | DROPPING)));
    let _ = OWNERS.try_with(|list| list.borrow_mut().shrink_to(KEPT_PLACES));
}

/// Calls the wakers that were kept. What is woken may poll at once and open deferrals of its own, which call
/// theirs themselves: it may wait for that.
fn call_wakers(panics: &mut Panics) {
    STATE.with(|state| state.set(state.get() & !DUE));
    let stale = STALE.try_with(RefCell::take);
    for waker in WAKERS.try_with(RefCell::take).unwrap_or_default() {
        panics.hold(|| waker.wake());
    }
    for waker in stale.unwrap_or_default() {
        panics.hold(|| drop(waker));
    }
}

/// The first panic of several pieces of other people's code.
struct Panics(Option<Box<dyn Any + Send>>);

impl Panics {
    #[inline]
    fn hold(&mut self, run: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            self.0.get_or_insert(panic);
        }
    }

    fn go_on(self) {
        if let Some(panic) = self.0
            && !std::thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

/// Lets go of foreign bytes, now or at the end of the deferral.
pub(super) fn let_go(table: Arc<Table>) {
    if !Deferral::is_open() {
        return drop(table);
    }
    let mut table = Some(table);
    // A thread that is being taken down keeps nothing.
    let _ = OWNERS.try_with(|list| {
        list.borrow_mut().extend(table.take());
        STATE.with(|state| state.set(state.get() | KEPT));
    });
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::{AllocWaiter, BufPool, PinnedBuf};
    use bytes::Bytes;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::{Context, Wake};

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
        assert!(OWNERS.with(|list| list.borrow().capacity()) < 1000);
        drop(owned(&dropped, None));
        assert_eq!(dropped.load(Relaxed), 101_001, "at once");
    }

    #[test]
    fn what_panics_keeps_nobody_from_its_turn() {
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
        struct BadWaker;
        impl Wake for BadWaker {
            fn wake(self: Arc<Self>) {
                panic!("as a waker should not");
            }
        }
        let woken = Arc::new(Count::default());
        let (bad, good) = (PinnedBuf::from(Bytes::from_owner(Bad)), owned(&dropped, None));
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _deferral = Deferral::begin();
            drop((bad, good));
            Deferral::wake(Arc::new(BadWaker).into());
            Deferral::wake(woken.clone().into());
        }));
        let panic = caught.unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"as a destructor should not"), "the first one");
        assert_eq!((dropped.load(Relaxed), woken.0.load(Relaxed), STATE.with(Cell::get)), (1, 1, 0));
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _deferral = Deferral::begin();
            Deferral::wake(Arc::new(BadWaker).into());
            Deferral::wake(woken.clone().into());
            panic!("already");
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"already"), "of the two, the one that goes on");
        assert_eq!((woken.0.load(Relaxed), STATE.with(Cell::get)), (2, 0));
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            assert!(!Deferral::is_open());
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// Those who wait for a pool are woken where its memory is dropped, which may be anywhere.
    #[test]
    fn wakers_are_called_and_dropped_at_the_end() {
        let pool = BufPool::builder().max_bytes(4096).build();
        let all = pool.try_alloc(4096).unwrap();
        let (woken, stale) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut waiter = AllocWaiter::new();
        let waker = Waker::from(woken.clone());
        assert!(pool.poll_alloc(1, &mut waiter, &mut Context::from_waker(&waker)).is_pending());
        let outer = Deferral::begin();
        {
            let _inner = Deferral::begin();
            drop(all);
            Deferral::discard(stale.clone().into());
        }
        assert_eq!((woken.0.load(Relaxed), Arc::strong_count(&stale)), (0, 2));
        drop(outer);
        assert_eq!((woken.0.load(Relaxed), Arc::strong_count(&stale)), (1, 1));
        Deferral::wake(waker);
        assert_eq!(woken.0.load(Relaxed), 2, "at once");
    }

    /// A destructor that waits for somebody must not keep him from being woken.
    #[test]
    fn what_a_destructor_wakes_is_woken_before_it_is_done() {
        struct Waits(Arc<Count>);
        impl AsRef<[u8]> for Waits {
            fn as_ref(&self) -> &[u8] {
                b"bytes"
            }
        }
        impl Drop for Waits {
            fn drop(&mut self) {
                let deferral = Deferral::begin();
                Deferral::wake(self.0.clone().into());
                drop(deferral);
                assert_eq!(self.0.0.load(Relaxed), 1);
            }
        }
        let woken = Arc::new(Count::default());
        let message = PinnedBuf::from(Bytes::from_owner(Waits(woken.clone())));
        let deferral = Deferral::begin();
        drop(message);
        drop(deferral);
        assert_eq!((woken.0.load(Relaxed), STATE.with(Cell::get)), (1, 0));
    }
}
