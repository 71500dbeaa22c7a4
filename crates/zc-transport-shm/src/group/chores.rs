//! What there is to do for groups while nobody sends.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;

use futures::task::AtomicWaker;

use crate::abandoned;

/// Of one lane. As long as there is any, the drive has somebody look now and then.
#[derive(Default)]
pub(crate) struct Chores {
    /// Regions of which the peer does not know yet that they are gone.
    gone: AtomicUsize,
    in_group: AtomicBool,
    /// A group is over that the lane may still be in.
    over: AtomicBool,
    drive: AtomicWaker,
}

impl Chores {
    /// Whom to wake when there is something; look afterwards.
    pub(crate) fn register(&self, waker: &Waker) {
        self.drive.register(waker);
    }

    pub(crate) fn any(&self) -> bool {
        // Members that are gone may hold what others of the group wait for.
        self.gone.load(Ordering::Acquire) > 0
            || self.over.load(Ordering::Acquire)
            || self.in_group.load(Ordering::Acquire) && abandoned::any_of_groups()
    }

    /// Called under the lock that orders the counts.
    pub(super) fn set_gone(&self, count: usize) {
        self.gone.store(count, Ordering::Release);
    }

    pub(super) fn set_in_group(&self, is: bool) {
        self.in_group.store(is, Ordering::Release);
    }

    pub(super) fn set_over(&self, is: bool) {
        self.over.store(is, Ordering::SeqCst);
    }

    pub(crate) fn wake(&self) {
        self.drive.wake();
    }
}
