//! Credit in both directions: what DATA frames cost, counted since the start.
//!
//! What the application takes goes back to the peer as a grant, except while it holds as much as the hard
//! lease: then grants wait until some of it is dropped. The stream itself is always read, so records and the
//! peer's grants get through, and what is held is bounded by the hard lease, the window and one message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::Context;

use crate::memory::LeaseBudget;
use crate::wire::{WireError, frame_credit_bytes};

/// Shared by the halves of a lane.
pub(super) struct Credit {
    /// What the peer allows us, in total.
    allowed: AtomicU64,
    /// What the application took, in total.
    taken: AtomicU64,
    /// Up to where of `taken` the peer was told.
    told: AtomicU64,
    window: u64,
    /// What the application holds.
    leases: Arc<LeaseBudget>,
}

impl Credit {
    pub(super) fn new(send_window: u32, recv_window: u32, leases: Arc<LeaseBudget>) -> Self {
        Self {
            allowed: AtomicU64::new(send_window.into()),
            taken: AtomicU64::new(0),
            told: AtomicU64::new(0),
            window: recv_window.into(),
            leases,
        }
    }

    /// Whether a message may start after `sent` is spent.
    #[inline]
    pub(super) fn may_send(&self, sent: u64) -> bool {
        sent < self.allowed.load(SeqCst)
    }

    /// A CREDIT frame came in.
    #[inline]
    pub(super) fn granted(&self, total: u64) -> Result<(), WireError> {
        let before = self.allowed.fetch_max(total, SeqCst);
        if total < before { Err(WireError::BadValue { field: "credit" }) } else { Ok(()) }
    }

    /// The peer started a message after it had spent `received`; what it has spent then.
    #[inline]
    pub(super) fn receive(&self, received: u64, payload_bytes: usize) -> Result<u64, WireError> {
        // `told` is stored before a grant leaves, so an honest peer never runs ahead of it.
        if received < self.told.load(SeqCst) + self.window {
            Ok(received + frame_credit_bytes(payload_bytes))
        } else {
            Err(WireError::BadValue { field: "message beyond the credit" })
        }
    }

    /// The application took a message; true when the peer should hear of it.
    #[inline]
    pub(super) fn take(&self, payload_bytes: usize) -> bool {
        let cost = frame_credit_bytes(payload_bytes);
        self.is_due(self.taken.fetch_add(cost, SeqCst) + cost)
    }

    #[inline]
    fn is_due(&self, taken: u64) -> bool {
        let news = taken - self.told.load(SeqCst).min(taken);
        news > 0 && news >= self.window / 4
    }

    /// The grant to send, if one is due; it then counts as sent. If one is due and withheld, `cx` is woken
    /// when the application holds less.
    #[inline]
    pub(super) fn due(&self, cx: &mut Context<'_>) -> Option<u64> {
        let taken = self.taken.load(SeqCst);
        if !self.is_due(taken) || self.leases.poll_below_hard(cx).is_pending() {
            return None;
        }
        self.told.store(taken, SeqCst);
        Some(taken + self.window)
    }
}
