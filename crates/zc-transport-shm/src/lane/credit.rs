//! Credit that goes back to the peer.
//!
//! What the application takes is told in batches, except while it holds as much as the hard lease: then it
//! is told when some of it is dropped. The ring is always read, so that records get through, and what is
//! held is bounded by the hard lease, the window and one message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;

use parking_lot::Mutex;
use zc_core::memory::{LeaseBudget, Pressure};
use zc_core::wire::frame_credit_bytes;

use super::shared::Shared;
use crate::layout::TAKEN;
use crate::sleep::Ringer;
use crate::words::{OwnWords, PeerWords, WriteWords};

/// Of one direction; all counts are credit bytes since the start.
pub(super) struct Credit {
    /// What the application took; only the receiving half writes it.
    taken: AtomicU64,
    /// Up to where of that the peer was told, stored before it is.
    told: AtomicU64,
    window: u64,
    leases: Arc<LeaseBudget>,
    /// Who tells the peer, one at a time.
    own: Mutex<OwnWords>,
    /// The peer's sending half.
    sender: Arc<Ringer<PeerWords>>,
}

impl Credit {
    pub(super) fn new(
        window: u32,
        leases: Arc<LeaseBudget>,
        own: OwnWords,
        sender: Arc<Ringer<PeerWords>>,
    ) -> Self {
        let (taken, told) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { taken, told, window: window.into(), leases, own: Mutex::new(own), sender }
    }

    /// A message may begin while less than this has come.
    #[inline]
    pub(super) fn allowed(&self) -> u64 {
        // Whatever an honest peer was told, we have stored before.
        self.told.load(Ordering::Relaxed) + self.window
    }

    /// The application took a message. Called by the receiving half only.
    #[inline]
    pub(super) fn release(&self, payload_bytes: usize, shared: &Shared) {
        let taken = self.taken.load(Ordering::Relaxed) + frame_credit_bytes(payload_bytes);
        self.taken.store(taken, Ordering::Release);
        if self.is_due(taken) {
            self.pass_on(shared);
        }
    }

    #[inline]
    fn is_due(&self, taken: u64) -> bool {
        let news = taken.saturating_sub(self.told.load(Ordering::Relaxed));
        news > 0 && news >= self.window / 4
    }

    #[cold]
    fn pass_on(&self, shared: &Shared) {
        match self.leases.pressure() {
            // The driver waits until less is held.
            Pressure::Hard => shared.wakers.drive.wake(),
            _ => self.tell(shared),
        }
    }

    fn tell(&self, shared: &Shared) {
        {
            let own = self.own.lock();
            let taken = self.taken.load(Ordering::Acquire);
            self.told.store(taken, Ordering::Relaxed);
            own.publish(TAKEN, taken);
        }
        if self.sender.must_ring() {
            shared.peer_bell.ring();
        }
    }

    /// Tells what was withheld, once less is held; wakes `cx` then.
    pub(super) fn drive(&self, cx: &mut Context<'_>, shared: &Shared) {
        if self.is_due(self.taken.load(Ordering::Acquire)) && self.leases.poll_below_hard(cx).is_ready() {
            self.tell(shared);
        }
    }
}
