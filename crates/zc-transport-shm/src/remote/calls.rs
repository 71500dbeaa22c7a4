//! How the one-sided half is woken: by its share of what the bell rings for.
//!
//! Each ring may have been the one for its epoch, also one for a call that it heard before it took that epoch. So whoever
//! silences the bell wakes it, to take another: no looking at what it has heard already can spare that.

use std::task::Waker;

use futures::task::AtomicWaker;

use crate::sleep::Sleeper;
use crate::sync::{AtomicBool, Ordering::SeqCst};
use crate::words::{ReadWords, WriteWords};

/// Known to whoever hears the bell.
pub(crate) struct Calls<R> {
    waker: AtomicWaker,
    peer: R,
    /// The word of the peer's count of calls. While it is 0 no ring was for us, so that connections without one-sided
    /// operations don't pay for them.
    at: usize,
    /// It is to be woken all the same: it has granted, or uses keys, or waits.
    busy: AtomicBool,
    /// It sleeps with an epoch, and hears of the bell that rings for that.
    resting: AtomicBool,
}

impl<R: ReadWords> Calls<R> {
    /// The peer counts its calls in word `at`.
    pub(crate) fn new(peer: R, at: usize) -> Self {
        let (busy, resting) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { waker: AtomicWaker::new(), peer, at, busy, resting }
    }

    /// The bell rang, or something else happened that may be for the one-sided half.
    pub(crate) fn wake(&self) {
        self.resting.store(false, SeqCst);
        if self.busy.load(SeqCst) || self.peer.load(self.at) != 0 {
            self.waker.wake();
        }
    }

    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// From now on it will be rung for. Look again afterwards, and only then sleep.
    pub(crate) fn rest<W: WriteWords>(&self, sleeper: &mut Sleeper<W>) {
        // In front of the new epoch: afterwards it could undo what a ring for that has done.
        self.resting.store(true, SeqCst);
        sleeper.arm();
    }

    pub(crate) fn is_resting(&self) -> bool {
        self.resting.load(SeqCst)
    }

    pub(crate) fn set_busy(&self, busy: bool) {
        if self.busy.load(SeqCst) != busy {
            self.busy.store(busy, SeqCst);
        }
    }
}
