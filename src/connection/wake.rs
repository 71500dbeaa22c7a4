//! Wakers are called and dropped after every lock is released, and the right one is called.
//!
//! Two things live here. A [`Deferral`] surrounds each use of a lane: wake-ups that fall due inside are
//! kept and called when the thread has left its outermost one, so that an executor that polls
//! inside `wake` finds no lock held. It covers what a lane calls by itself, too, because the wakers
//! that a lane gets are [`RxWake`] and [`TxWake`]. Nor do destructors of the application run inside.
//!
//! The [`Watch`] says who looks at the lane for incoming frames:
//!
//! * A receiver that waits is woken itself, alone.
//! * A receiver that is *looking* comes back by itself: nobody looks for it. A lane that calls all the same may need a poll with a
//!   waker, so a look that finds nothing is followed by such a one.
//! * A receiver that was served leaves the lane *unarmed* (nobody is woken by what comes next): it
//!   will be back. Nobody else is woken for it, as long as nobody is in *need* of incoming records.
//! * Those in need are senders that wait for room (credit comes in), for `Delivered`, for a flush or a
//!   drain; and a peer that asked for an acknowledgement. For them the driver looks at once.
//! * An application that takes long between two `recv`: the driver is *watching*, which means that it
//!   looks within [`LOOK_INTERVAL`] (less with a short keepalive timeout), so that PINGs are answered
//!   and acknowledgements go out. It is woken for that once per such interval, not per message.
//!
//! No wake-up is lost: each of the pairs (`armed`, `looking`), (`armed`, `needy`) and (`armed`, `watched`) is a store by one
//! side followed by a load of what the other side stores, all sequentially consistent; so at least one
//! of the two sides sees the other, and wakes the driver.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Wake, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use zc_core::memory::Deferral;

/// How long incoming frames wait at most while the application neither receives nor waits for them.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// From now on the other waker is the one to call.
pub(crate) fn renew(old: &mut Waker, waker: &Waker) {
    if !old.will_wake(waker) {
        Deferral::discard(std::mem::replace(old, waker.clone()));
    }
}

/// Runs `f` with wakers called after it, not inside.
pub(crate) fn quietly<R>(f: impl FnOnce() -> R) -> R {
    let _deferral = Deferral::begin();
    f()
}

/// A place for one waker. Unlike `AtomicWaker` it never calls any by itself.
#[derive(Default)]
pub(super) struct Slot(Mutex<Option<Waker>>);

impl Slot {
    pub(super) fn register(&self, waker: &Waker) {
        let mut slot = self.0.lock();
        if slot.as_ref().is_none_or(|old| !old.will_wake(waker)) {
            let old = slot.replace(waker.clone());
            drop(slot);
            old.into_iter().for_each(Deferral::discard);
        }
    }

    pub(super) fn take(&self) -> Option<Waker> {
        self.0.lock().take()
    }
}

/// A lock that is held inside a [`Deferral`].
pub(super) struct Locked<'a, T> {
    // Dropped in this order: first unlocked, then left.
    guard: MutexGuard<'a, T>,
    _deferral: Deferral,
}

impl<'a, T> Locked<'a, T> {
    pub(super) fn new(guard: MutexGuard<'a, T>) -> Self {
        Self { guard, _deferral: Deferral::begin() }
    }
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// Who looks at the lane.
#[derive(Default)]
pub(super) struct Watch {
    /// The lane has kept our waker and has not called it.
    armed: AtomicBool,
    /// Somebody other than the receiver waits for incoming records.
    needy: AtomicBool,
    /// The receiver comes back to look, without being called.
    looking: AtomicBool,
    /// It was called while it did: a look that finds nothing is no answer to that.
    called: AtomicBool,
    /// The driver is to look now.
    look: AtomicBool,
    /// The driver looks within [`LOOK_INTERVAL`], or has been woken to see to it.
    watched: AtomicBool,
    receiver: Slot,
    pub(super) driver: Slot,
}

impl Watch {
    pub(super) fn wake_driver(&self) {
        if let Some(waker) = self.driver.take() {
            Deferral::wake(waker);
        }
    }

    pub(super) fn wake_receiver(&self) {
        if let Some(waker) = self.receiver.take() {
            Deferral::wake(waker);
        }
    }

    /// The receiver waits.
    pub(super) fn register(&self, waker: &Waker) {
        self.receiver.register(waker);
    }

    /// The receiver does not wait any more.
    pub(super) fn unregister(&self) {
        self.receiver.take().into_iter().for_each(Deferral::discard);
    }

    /// The receiver looks again and again: nobody need look for it at once.
    pub(super) fn comes_back(&self) {
        if !self.looking.load(SeqCst) {
            self.looking.store(true, SeqCst);
        }
    }

    /// It does not: it sleeps, was served, or has gone.
    pub(super) fn comes_no_more(&self) {
        if self.looking.load(SeqCst) {
            self.looking.store(false, SeqCst);
            self.called.store(false, SeqCst);
        }
    }

    /// A look has found something: should more take a poll with a waker, the lane calls again.
    pub(super) fn was_answered(&self) {
        if self.is_called() {
            self.called.store(false, SeqCst);
        }
    }

    /// Whether the lane has called who looks: some of what it does takes a poll with a waker.
    pub(super) fn is_called(&self) -> bool {
        self.called.load(SeqCst)
    }

    /// The lane is about to be polled with our waker. Set in front, so that a waker called meanwhile counts.
    pub(super) fn arm(&self) {
        self.armed.store(true, SeqCst);
    }

    /// The lane has called the waker, or was ready.
    pub(super) fn disarm(&self) {
        // A store costs more than a look, and a lane that is not waited for is not armed.
        if self.is_armed() {
            self.armed.store(false, SeqCst);
        }
    }

    pub(super) fn is_armed(&self) -> bool {
        self.armed.load(SeqCst)
    }

    /// Makes the driver look at the lane.
    pub(super) fn look(&self) {
        self.look.store(true, SeqCst);
        self.wake_driver();
    }

    fn watch(&self) {
        if !self.watched.load(SeqCst) && !self.watched.swap(true, SeqCst) {
            self.wake_driver();
        }
    }

    /// Somebody begins to wait for incoming records.
    pub(super) fn need(&self) {
        self.needy.store(true, SeqCst);
        if !self.is_armed() {
            self.look();
        }
    }

    /// Nobody but the receiver waits any more.
    pub(super) fn need_nothing(&self) {
        self.needy.store(false, SeqCst);
    }

    /// The receiver goes back to the application. `eager`: the peer waits for our answers.
    pub(super) fn leave(&self, eager: bool) {
        if self.is_armed() {
            return;
        }
        if eager || self.needy.load(SeqCst) { self.look() } else { self.watch() }
    }

    /// The receiver goes away: what comes from now on is the driver's.
    pub(super) fn hand_on(&self) {
        if !self.is_armed() {
            self.look();
        }
    }

    /// For the driver: whether somebody asked it to look.
    pub(super) fn take_look(&self) -> bool {
        self.look.load(SeqCst) && self.look.swap(false, SeqCst)
    }

    /// For the driver: whether it is to look soon.
    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(SeqCst)
    }

    /// For the driver, in front of its look: from now on whoever leaves the lane unarmed says so again.
    pub(super) fn unwatch(&self) {
        self.watched.store(false, SeqCst);
    }
}

/// What the receiving half of a lane wakes.
pub(super) struct RxWake(pub(super) Arc<Watch>);

impl Wake for RxWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        let watch = &self.0;
        watch.disarm();
        let Some(receiver) = watch.receiver.take() else {
            if !watch.looking.load(SeqCst) || watch.needy.load(SeqCst) {
                return watch.look();
            }
            watch.called.store(true, SeqCst);
            return watch.watch();
        };
        // Should the receiver's task not come, the driver does.
        if watch.needy.load(SeqCst) {
            watch.look()
        } else {
            watch.watch()
        }
        Deferral::wake(receiver);
    }
}

/// What the sending half of a lane and its background work wake: the driver.
pub(super) struct TxWake(pub(super) Arc<Watch>);

impl Wake for TxWake {
    fn wake(self: Arc<Self>) {
        self.0.wake_driver();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake_driver();
    }
}
