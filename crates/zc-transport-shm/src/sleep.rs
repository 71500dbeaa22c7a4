//! The handshake before sleeping, which can lose no wake-up.
//!
//! ```text
//! sleeper: epoch := odd; fence; look again; sleep        waker: publish; fence; epoch odd and new? ring
//! ```
//!
//! Of two sequentially consistent fences one comes first: either the sleeper's second look sees what
//! was published, or the waker sees the epoch. The waker rings once per epoch, so an epoch is never
//! used for two sleeps.

use crate::sync::{AtomicBool, AtomicU64, Ordering, full_fence};
use crate::words::{ReadWords, WriteWords};

/// The side that sleeps.
pub(crate) struct Sleeper<W> {
    words: W,
    at: usize,
    epoch: u64,
}

impl<W: WriteWords> Sleeper<W> {
    /// The epoch lies in word `at`.
    pub(crate) fn new(words: W, at: usize) -> Self {
        Self { words, at, epoch: 0 }
    }

    /// From now on it will be rung for. Look again afterwards, and only then sleep.
    pub(crate) fn arm(&mut self) {
        self.epoch = (self.epoch | 1) + if self.is_armed() { 2 } else { 0 };
        self.words.store(self.at, self.epoch);
        full_fence();
    }

    /// No ring is needed any more.
    #[inline]
    pub(crate) fn disarm(&mut self) {
        if self.is_armed() {
            self.epoch += 1;
            self.words.store(self.at, self.epoch);
        }
    }

    /// Whether it will be rung for, or has been since.
    #[inline]
    pub(crate) fn is_armed(&self) -> bool {
        self.epoch & 1 == 1
    }
}

/// Whether the bell was silenced, by whichever half, since this was asked. Who sleeps with an epoch then has to take another:
/// the ring may have been for that one.
pub(crate) struct Rang(AtomicBool);

impl Rang {
    /// Not yet.
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// It was; whoever waits is woken after this.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Look again after taking another epoch.
    pub(crate) fn take(&self) -> bool {
        self.0.load(Ordering::Acquire) && self.0.swap(false, Ordering::AcqRel)
    }
}

/// The side that wakes; may be used from several threads.
pub(crate) struct Ringer<R> {
    words: R,
    at: usize,
    /// The epoch that was rung for last.
    rung: AtomicU64,
}

impl<R: ReadWords> Ringer<R> {
    /// The epoch lies in word `at`.
    pub(crate) fn new(words: R, at: usize) -> Self {
        Self { words, at, rung: AtomicU64::new(0) }
    }

    /// Whether the peer sleeps or is about to and has not been rung for; call it after publishing.
    #[inline]
    pub(crate) fn must_ring(&self) -> bool {
        full_fence();
        self.is_asleep()
    }

    /// The same without the fence: it may miss a peer that is just going to sleep.
    #[inline]
    pub(crate) fn is_asleep(&self) -> bool {
        let epoch = self.words.load(self.at);
        epoch & 1 == 1
            && self.rung.load(Ordering::Relaxed) != epoch
            && self.rung.swap(epoch, Ordering::Relaxed) != epoch
    }
}
