//! Who may use how many receive buffers. No I/O.
//!
//! ```text
//! recv_buffers >= wanted posted >= sum of the shares >= sum of what peers were promised and have not used
//! ```
//!
//! Each endpoint reserves a share as long as it lives. What its peer was promised is never more than that, and in sum never more
//! than is posted: so peers that keep their word find a receive buffer whenever they send (no RNR). Shares become
//! smaller as there are more of them.

use crate::limits::{MAX_SHARE, MIN_SHARE, POST_BATCH, SHARE_DIVISOR};

#[derive(Debug)]
pub(super) struct Shares {
    total: u32,
    reserved: u32,
    promised: u32,
}

impl Shares {
    /// Of so many receive buffers.
    pub(super) fn new(total: u32) -> Self {
        Self { total, reserved: 0, promised: 0 }
    }

    /// A share for one more; none if not even the smallest is left.
    pub(super) fn reserve(&mut self) -> Option<u32> {
        let free = self.total - self.reserved;
        let share = (free / SHARE_DIVISOR).clamp(MIN_SHARE, MAX_SHARE);
        if share > free {
            return None;
        }
        self.reserved += share;
        Some(share)
    }

    /// An endpoint is gone, and `promised` to its peer is void.
    pub(super) fn release(&mut self, share: u32, promised: u32) {
        debug_assert!(share <= self.reserved && promised <= self.promised);
        self.reserved = self.reserved.saturating_sub(share);
        self.promised = self.promised.saturating_sub(promised);
    }

    /// A peer used one of those that it was promised.
    pub(super) fn used(&mut self) {
        debug_assert!(self.promised > 0);
        self.promised = self.promised.saturating_sub(1);
    }

    /// How many of the `wanted` may be promised while so many are posted. They are, then.
    pub(super) fn promise(&mut self, wanted: u32, posted: u32) -> u32 {
        let some = wanted.min(posted.saturating_sub(self.promised));
        self.promised += some;
        some
    }

    /// How many should be posted.
    pub(super) fn target(&self) -> u32 {
        // Some more, so that they are not posted one at a time.
        (self.reserved + 2 * POST_BATCH as u32).min(self.total)
    }

    /// Whether more are to be posted now.
    pub(super) fn is_low(&self, posted: u32) -> bool {
        posted < self.reserved || posted + POST_BATCH as u32 <= self.target()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_hundred_find_a_share_and_the_first_have_more() {
        let mut shares = Shares::new(crate::limits::SHARED_RECEIVES);
        let all: Vec<_> = std::iter::from_fn(|| shares.reserve()).collect();
        assert!(all.len() >= 200, "{}", all.len());
        assert!(all.is_sorted_by(|a, b| a >= b));
        assert_eq!((all[0], all[all.len() - 1]), (MAX_SHARE, MIN_SHARE));
        assert!(all.iter().sum::<u32>() <= crate::limits::SHARED_RECEIVES);
        shares.release(MIN_SHARE, 0);
        assert_eq!((shares.reserve(), shares.reserve()), (Some(MIN_SHARE), None));
        assert_eq!(Shares::new(MIN_SHARE - 1).reserve(), None);
    }

    proptest! {
        /// Whatever comes and goes: what is promised is posted, and within each share.
        #[test]
        fn nothing_is_promised_that_is_not_posted(
            total in 1..500u32,
            steps in prop::collection::vec((0..5u8, any::<prop::sample::Index>(), 0..40u32), 0..200),
        ) {
            let mut shares = Shares::new(total);
            // The share, what its peer was promised.
            let (mut all, mut posted) = (Vec::<(u32, u32)>::new(), 0);
            for (step, which, count) in steps {
                match step {
                    0 => if let Some(share) = shares.reserve() { all.push((share, 0)) },
                    1 => if shares.is_low(posted) { posted = (posted + count).min(shares.target()).max(posted) },
                    _ if all.is_empty() => {}
                    2 => {
                        let (share, promised) = all.swap_remove(which.index(all.len()));
                        shares.release(share, promised);
                    }
                    3 => {
                        let at = which.index(all.len());
                        let owed = all[at].0 - all[at].1;
                        all[at].1 += shares.promise(owed.min(count), posted);
                    }
                    _ => {
                        let at = which.index(all.len());
                        if all[at].1 > 0 {
                            all[at].1 -= 1;
                            shares.used();
                            posted -= 1;
                        }
                    }
                }
                prop_assert!(all.iter().map(|one| one.0).sum::<u32>() <= total);
                prop_assert!(all.iter().map(|one| one.1).sum::<u32>() <= posted);
                prop_assert!(all.iter().all(|one| one.1 <= one.0));
            }
        }
    }
}
