//! Receive buffers as credit: each message takes one of the peer's. No I/O.
//!
//! ```text
//! left at the peer's   ... 4 | 3 | 2 | 1 | 0
//! frames may go         yes  no  no  no        and announcements
//! a state may go        yes yes yes  no        credit bytes, pieces that were read
//! a grant may go        yes yes yes yes        a state that returns at least GRANT_MIN
//! ```
//!
//! Slots may be withheld, for messages that are kept and that no credit bounds. Those that a sender keeps for states never are: of
//! the three that then go back and forth GRANT_MIN are told at once, so that it has one for its next state.
//!
//! No side waits for the other for ever. Whoever is out of slots has sent all of them, so that the other one owes enough to
//! say so; and if that one is out of slots as well, the last that either sent was a grant, which gives the other one some.

use zc_core::wire::WireError;

use crate::limits::{GRANT_MIN, MAX_SLOTS, RESERVED_SLOTS};

#[derive(Debug)]
pub(crate) struct Slots {
    /// How many the peer let us have since the start, the low bits of that.
    granted_to_us: u16,
    /// Left of them.
    left: u32,
    /// How many the peer may have since the start, the low bits of that.
    granted: u16,
    /// Of those, what the peer was not told yet.
    untold: u32,
    /// Taken out and not granted again.
    owed: u32,
    /// Of those, not to be granted now.
    withheld: u32,
    due: u32,
}

impl Slots {
    /// The peer began with `theirs` for us. We have a share, of which the peer was told `ours` at first.
    pub(crate) fn new(theirs: u32, ours: u32, share: u32) -> Self {
        Self {
            granted_to_us: 0,
            left: theirs,
            granted: 0,
            untold: 0,
            owed: share - ours,
            withheld: 0,
            due: (share / 4).max(GRANT_MIN),
        }
    }

    /// A message goes out.
    pub(crate) fn spend(&mut self) {
        debug_assert!(self.left > 0);
        self.left = self.left.saturating_sub(1);
        self.untold = 0;
    }

    pub(crate) fn may_send_frame(&self) -> bool {
        self.left > RESERVED_SLOTS
    }

    /// Whether a message may go that says how far we are.
    pub(crate) fn may_send_state(&self) -> bool {
        self.left > 1 || self.left == 1 && self.untold >= GRANT_MIN
    }

    /// What goes with each message.
    pub(crate) fn word(&self) -> u16 {
        self.granted
    }

    /// What came with a message.
    pub(crate) fn heard(&mut self, granted: u16) -> Result<bool, WireError> {
        let news = u32::from(granted.wrapping_sub(self.granted_to_us));
        if self.left + news > MAX_SLOTS {
            return Err(WireError::BadValue { field: "rdma slots" });
        }
        self.granted_to_us = granted;
        self.left += news;
        Ok(news > 0)
    }

    /// A message was taken out of its receive buffer.
    pub(crate) fn freed(&mut self) {
        self.owed += 1;
    }

    /// So many of those that were freed are not granted, until this says otherwise.
    pub(crate) fn withhold(&mut self, count: u32) {
        self.withheld = count;
    }

    /// When it is worth it to say what is granted.
    fn due(&self) -> u32 {
        if self.withheld > 0 { GRANT_MIN } else { self.due }
    }

    /// How many to ask the engine for: what is owed, once it is worth it.
    pub(crate) fn wanted(&self) -> u32 {
        let owed = self.owed.saturating_sub(self.withheld);
        if owed + self.untold >= self.due() { owed } else { 0 }
    }

    /// So many more are promised to the peer.
    pub(crate) fn grant(&mut self, count: u32) {
        let count = count.min(self.owed);
        self.owed -= count;
        self.granted = self.granted.wrapping_add(count as u16);
        self.untold += count;
    }

    /// Whether the peer has to hear of what it was granted, although nothing else is to be said.
    pub(crate) fn must_tell(&self) -> bool {
        self.untold >= self.due()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn a_peer_that_grants_more_than_there_are_has_lied() {
        let mut slots = Slots::new(8, 8, 8);
        assert!(slots.heard(MAX_SLOTS as u16 - 7).is_err());
        assert_eq!(slots.heard(0), Ok(false));
        slots.spend();
        assert_eq!((slots.heard(1), slots.left), (Ok(true), 8));
        assert!(slots.heard(0).is_err(), "it went back");
    }

    struct End {
        slots: Slots,
        /// On the way to this end: whether it is a frame, and what it grants.
        wire: VecDeque<(bool, u16)>,
        taken: u32,
        /// Frames that are kept, and not handed out.
        kept: u32,
        /// News to be told in a state.
        has_news: bool,
        /// Buffers that wait.
        posted: i64,
    }

    impl End {
        fn state(&mut self) -> Option<(bool, u16)> {
            self.slots.withhold(self.kept);
            let wanted = self.slots.wanted();
            self.slots.grant(wanted);
            self.posted += i64::from(wanted);
            let is_told = (self.has_news || self.slots.must_tell()) && self.slots.may_send_state();
            self.has_news &= !is_told;
            is_told.then(|| self.send(false))
        }

        fn send(&mut self, is_frame: bool) -> (bool, u16) {
            let word = self.slots.word();
            self.slots.spend();
            (is_frame, word)
        }
    }

    proptest! {
        /// Two ends that send as much as they may, in any order: no buffer is missing, and in the end all has come. As long as ends
        /// withhold the slots of all frames, both still say how far they are, as often as they like.
        #[test]
        fn nobody_finds_no_buffer_and_all_get_through(
            shares in [crate::limits::MIN_SHARE..40, crate::limits::MIN_SHARE..40],
            told in [crate::limits::MIN_SHARE..40, crate::limits::MIN_SHARE..40],
            steps in prop::collection::vec((0..2usize, 0..4u8), 0..300),
            withholds: [bool; 2],
        ) {
            let told = [told[0].min(shares[0]), told[1].min(shares[1])];
            let end = |at: usize| End {
                slots: Slots::new(told[1 - at], told[at], shares[at]),
                wire: VecDeque::new(),
                taken: 0,
                kept: 0,
                has_news: false,
                posted: told[at].into(),
            };
            let mut ends = [end(0), end(1)];
            let mut to_send = [200u32; 2];
            let step = |ends: &mut [End; 2], at: usize, what: u8, to_send: &mut [u32; 2], withholds: [bool; 2]| {
                let sent = match what {
                    0 if to_send[at] > 0 && ends[at].slots.may_send_frame() => {
                        to_send[at] -= 1;
                        Some(ends[at].send(true))
                    }
                    1 => {
                        if let Some((is_frame, granted)) = ends[at].wire.pop_front() {
                            ends[at].slots.heard(granted).unwrap();
                            ends[at].slots.freed();
                            ends[at].taken += u32::from(is_frame);
                            ends[at].kept += u32::from(is_frame && withholds[at]);
                        }
                        None
                    }
                    2 => ends[at].state(),
                    3 => {
                        ends[at].has_news = true;
                        None
                    }
                    _ => None,
                };
                if let Some(sent) = sent {
                    let peer = &mut ends[1 - at];
                    peer.wire.push_back(sent);
                    peer.posted -= 1;
                    assert!(peer.posted >= 0, "no receive buffer");
                }
            };
            for (at, what) in steps {
                step(&mut ends, at, what, &mut to_send, withholds);
            }
            let go_on = |ends: &mut [End; 2], rounds, to_send: &mut [u32; 2], withholds| {
                for _ in 0..rounds {
                    for at in 0..2 {
                        for what in 0..3 {
                            step(ends, at, what, to_send, withholds);
                        }
                    }
                }
            };
            go_on(&mut ends, 2000, &mut to_send, withholds);
            for round in 0..40 {
                go_on(&mut ends, 100, &mut to_send, withholds);
                prop_assert!(ends.iter().all(|end| end.wire.is_empty()), "they go on for ever");
                prop_assert!(ends.iter().all(|end| !end.has_news), "round {round}: not told");
                ends[round % 2].has_news = true;
                ends[1].has_news |= round % 3 == 0;
            }
            ends.iter_mut().for_each(|end| end.kept = 0);
            go_on(&mut ends, 2000, &mut to_send, [false; 2]);
            prop_assert_eq!((to_send, ends[0].taken, ends[1].taken), ([0, 0], 200, 200));
            prop_assert!(ends.iter().all(|end| end.wire.is_empty()), "they go on for ever");
        }
    }
}
