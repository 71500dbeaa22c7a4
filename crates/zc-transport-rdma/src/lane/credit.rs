//! Credit bytes: what data costs the window, counted since the start. No I/O.

use zc_core::wire::{WireError, frame_credit_bytes};

#[derive(Debug)]
pub(crate) struct Credit {
    /// Of ours: what the peer allows, and what was spent.
    allowed: u64,
    spent: u64,
    /// Of the peer's: what came, what the application took of it, and up to where of that the peer was told.
    received: u64,
    taken: u64,
    told: u64,
    window: u64,
}

impl Credit {
    pub(crate) fn new(send_window: u32, recv_window: u32) -> Self {
        Self {
            allowed: send_window.into(),
            spent: 0,
            received: 0,
            taken: 0,
            told: 0,
            window: recv_window.into(),
        }
    }

    /// A message may begin as long as there is any.
    pub(crate) fn may_send(&self) -> bool {
        self.spent < self.allowed
    }

    pub(crate) fn spend(&mut self, payload_bytes: usize) {
        self.spent += frame_credit_bytes(payload_bytes);
    }

    /// The peer allows so much in all. Says whether that is more.
    pub(crate) fn heard(&mut self, allowed: u64) -> Result<bool, WireError> {
        if allowed < self.allowed {
            return Err(WireError::BadValue { field: "credit" });
        }
        let is_more = allowed > self.allowed;
        self.allowed = allowed;
        Ok(is_more)
    }

    /// The peer began a message.
    pub(crate) fn received(&mut self, payload_bytes: usize) -> Result<(), WireError> {
        if self.received >= self.told + self.window {
            return Err(WireError::BadValue { field: "message beyond the credit" });
        }
        self.received += frame_credit_bytes(payload_bytes);
        Ok(())
    }

    /// The application took a message.
    pub(crate) fn take(&mut self, payload_bytes: usize) {
        self.taken += frame_credit_bytes(payload_bytes);
    }

    /// Whether the peer should hear of it.
    pub(crate) fn is_due(&self) -> bool {
        let news = self.taken - self.told;
        news > 0 && news >= self.window / 4
    }

    /// It is told all that was taken.
    pub(crate) fn tell(&mut self) {
        self.told = self.taken;
    }

    /// What the peer is allowed in all.
    pub(crate) fn allowed_to_peer(&self) -> u64 {
        self.told + self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_what_may_be_unread() {
        let (mut a, mut b) = (Credit::new(1000, 1), Credit::new(1, 1000));
        let mut sent = 0;
        while a.may_send() {
            a.spend(10);
            b.received(10).unwrap();
            sent += 1;
        }
        assert_eq!(sent, 2, "each costs at least 512");
        assert!(b.received(10).is_err());
        b.take(10);
        assert!(b.is_due());
        b.tell();
        assert!(!b.is_due());
        assert_eq!(a.heard(b.allowed_to_peer()), Ok(true));
        assert!(a.may_send() && a.heard(1).is_err());
        // However long it is: one that began before the window was full.
        a.spend(1 << 30);
        b.received(1 << 30).unwrap();
        assert!(!a.may_send());
    }
}
