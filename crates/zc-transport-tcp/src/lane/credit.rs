//! Credit in both directions: what DATA frames cost, counted since the start.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use zc_core::wire::{WireError, frame_credit_bytes};

/// Shared by the halves of a lane.
pub(super) struct Credit {
    /// What the peer allows us, in total.
    allowed: AtomicU64,
    /// What the application took, in total.
    taken: AtomicU64,
    /// Up to where of `taken` the peer was told.
    told: AtomicU64,
    window: u64,
}

impl Credit {
    pub(super) fn new(send_window: u32, recv_window: u32) -> Self {
        Self {
            allowed: AtomicU64::new(send_window.into()),
            taken: AtomicU64::new(0),
            told: AtomicU64::new(0),
            window: recv_window.into(),
        }
    }

    /// Whether a message may start after `sent` is spent.
    pub(super) fn may_send(&self, sent: u64) -> bool {
        sent < self.allowed.load(SeqCst)
    }

    /// A CREDIT frame came in.
    pub(super) fn granted(&self, total: u64) -> Result<(), WireError> {
        let before = self.allowed.fetch_max(total, SeqCst);
        if total < before { Err(WireError::BadValue { field: "credit" }) } else { Ok(()) }
    }

    /// The peer started a message after it had spent `received`; what it has spent then.
    pub(super) fn receive(&self, received: u64, payload_bytes: usize) -> Result<u64, WireError> {
        // `told` is stored before a grant leaves, so an honest peer never runs ahead of it.
        if received < self.told.load(SeqCst) + self.window {
            Ok(received + frame_credit_bytes(payload_bytes))
        } else {
            Err(WireError::BadValue { field: "message beyond the credit" })
        }
    }

    /// The application took a message; true when the peer should hear of it.
    pub(super) fn take(&self, payload_bytes: usize) -> bool {
        let cost = frame_credit_bytes(payload_bytes);
        self.is_due(self.taken.fetch_add(cost, SeqCst) + cost)
    }

    fn is_due(&self, taken: u64) -> bool {
        let news = taken - self.told.load(SeqCst).min(taken);
        news > 0 && news >= self.window / 4
    }

    /// The grant to send, if one is due; it then counts as sent.
    pub(super) fn due(&self) -> Option<u64> {
        let taken = self.taken.load(SeqCst);
        if !self.is_due(taken) {
            return None;
        }
        self.told.store(taken, SeqCst);
        Some(taken + self.window)
    }
}
