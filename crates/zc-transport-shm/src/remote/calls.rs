//! How the one-sided half is woken: by its share of what the bell rings for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::Context;

use futures::task::AtomicWaker;

use crate::lane::Wakers;
use crate::layout::REMOTE_CALLS;
use crate::words::{PeerWords, ReadWords};

/// Known to whoever hears the bell.
pub(crate) struct Calls {
    waker: AtomicWaker,
    peer: PeerWords,
    /// The peer's count of calls that was seen last.
    heard: AtomicU64,
    /// Every ring may be for it: it has granted, or uses keys, or waits. Else only those for which the peer called, so
    /// that connections without one-sided operations don't pay for them.
    busy: AtomicBool,
    /// It sleeps with an epoch that was not rung for, and hears of the bell.
    resting: AtomicBool,
    /// A notification waits for room in its export.
    stuck: AtomicBool,
}

impl Calls {
    pub(crate) fn new(peer: PeerWords) -> Self {
        let (waker, heard) = (AtomicWaker::new(), AtomicU64::new(0));
        let [busy, resting, stuck] = [const { AtomicBool::new(false) }; 3];
        Self { waker, peer, heard, busy, resting, stuck }
    }

    /// The bell rang, or something else happened that may be for the one-sided half.
    pub(crate) fn wake(&self) {
        self.resting.store(false, SeqCst);
        if self.busy.load(SeqCst) || self.peer.load(REMOTE_CALLS) != self.heard.load(SeqCst) {
            self.waker.wake();
        }
    }

    pub(super) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// It is about to look at what the peer said.
    pub(super) fn heard(&self) {
        let calls = self.peer.load(REMOTE_CALLS);
        if self.heard.load(SeqCst) != calls {
            self.resting.store(false, SeqCst);
            self.heard.store(calls, SeqCst);
        }
    }

    pub(super) fn rest(&self) {
        self.resting.store(true, SeqCst);
    }

    pub(super) fn is_resting(&self) -> bool {
        self.resting.load(SeqCst)
    }

    pub(super) fn set_busy(&self, busy: bool) {
        if self.busy.load(SeqCst) != busy {
            self.busy.store(busy, SeqCst);
        }
    }

    /// Whether it is to be looked after without a call, and soon.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(SeqCst)
    }

    pub(super) fn set_stuck(&self, stuck: bool, wakers: &Wakers) {
        if self.is_stuck() != stuck && !self.stuck.swap(stuck, SeqCst) {
            wakers.drive.wake();
        }
    }
}
