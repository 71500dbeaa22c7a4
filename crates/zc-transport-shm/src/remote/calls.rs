//! How the one-sided half is woken: by its share of what the bell rings for.

use std::task::Waker;

use futures::task::AtomicWaker;

use crate::sleep::Sleeper;
use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};
use crate::words::{ReadWords, WriteWords};

use Ordering::SeqCst;

/// Known to whoever hears the bell.
pub(crate) struct Calls<R> {
    waker: AtomicWaker,
    peer: R,
    /// The word of the peer's count of calls.
    at: usize,
    /// The count that was seen last.
    heard: AtomicU64,
    /// Every ring may be for it: it has granted, or uses keys, or waits. Else only those for which the peer called, so
    /// that connections without one-sided operations don't pay for them.
    busy: AtomicBool,
    /// It sleeps with an epoch that was not rung for, and hears of the bell. Never true of an epoch that was; false
    /// of one that was not costs a look.
    resting: AtomicBool,
}

impl<R: ReadWords> Calls<R> {
    /// The peer counts its calls in word `at`.
    pub(crate) fn new(peer: R, at: usize) -> Self {
        let (busy, resting) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { waker: AtomicWaker::new(), peer, at, heard: AtomicU64::new(0), busy, resting }
    }

    /// The bell rang, or something else happened that may be for the one-sided half.
    pub(crate) fn wake(&self) {
        self.resting.store(false, SeqCst);
        if self.busy.load(SeqCst) || self.peer.load(self.at) != self.heard.load(SeqCst) {
            self.waker.wake();
        }
    }

    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// It is about to look at what the peer said: all that was said in front of the call is there to be seen.
    pub(crate) fn heard(&self) {
        let calls = self.peer.load(self.at);
        fence(Ordering::Acquire);
        if self.heard.load(SeqCst) != calls {
            // The epoch was rung for, or will not be.
            self.resting.store(false, SeqCst);
            self.heard.store(calls, SeqCst);
        }
    }

    /// From now on it will be rung for. Look again afterwards, and only then sleep, if it still rests.
    pub(crate) fn rest<W: WriteWords>(&self, sleeper: &mut Sleeper<W>) {
        // In front of the new epoch: afterwards it could undo what a ring for that has done.
        self.resting.store(true, SeqCst);
        sleeper.arm();
    }

    pub(crate) fn is_resting(&self) -> bool {
        self.resting.load(SeqCst)
    }

    /// It has looked without having been polled, and perhaps heard the call for which it would have been woken: its task
    /// is to see to it that there is a next ring.
    pub(crate) fn looked_aside(&self) {
        if !self.is_resting() {
            self.waker.wake();
        }
    }

    pub(crate) fn set_busy(&self, busy: bool) {
        if self.busy.load(SeqCst) != busy {
            self.busy.store(busy, SeqCst);
        }
    }
}
