//! Which packets came: what to acknowledge, and what is a replay.

use super::limits::{MAX_ACK_RANGES, REPLAY_WINDOW_PACKETS};

const WORDS: u64 = REPLAY_WINDOW_PACKETS / 64;

/// The packet numbers that came.
#[derive(Debug)]
pub(super) struct Received {
    /// Lowest and highest of each range, ascending, none touching the next. The newest ones.
    ranges: Vec<(u64, u64)>,
    /// One bit for each of the newest numbers, at the number modulo the window.
    window: [u64; WORDS as usize],
    top: Option<u64>,
}

impl Received {
    pub(super) fn new() -> Self {
        Self { ranges: Vec::with_capacity(MAX_ACK_RANGES + 1), window: [0; WORDS as usize], top: None }
    }

    /// Whether this number has not come yet, as far as that is known: one below the window has.
    #[inline]
    pub(super) fn is_new(&self, number: u64) -> bool {
        let Some(top) = self.top else { return true };
        let word = number / 64;
        number > top
            || (word + WORDS > top / 64 && self.window[(word % WORDS) as usize] >> (number % 64) & 1 == 0)
    }

    /// Notes a new number; whether it came in its turn, right behind the highest so far.
    #[inline]
    pub(super) fn insert(&mut self, number: u64) -> bool {
        let in_turn = self.top.is_none_or(|top| follows(number, top));
        if self.top.is_none_or(|top| number > top) {
            let from = self.top.map_or(number / 64, |top| top / 64 + 1);
            (from..=number / 64)
                .take(WORDS as usize)
                .for_each(|word| self.window[(word % WORDS) as usize] = 0);
            self.top = Some(number);
        }
        self.window[(number / 64 % WORDS) as usize] |= 1 << (number % 64);
        self.insert_range(number);
        in_turn
    }

    #[inline]
    fn insert_range(&mut self, number: u64) {
        match self.ranges.last_mut() {
            Some((_, high)) if follows(number, *high) => *high = number,
            Some((_, high)) if *high < number => self.ranges.push((number, number)),
            None => self.ranges.push((number, number)),
            Some(_) => self.insert_below(number),
        }
        if self.ranges.len() > MAX_ACK_RANGES {
            self.ranges.remove(0);
        }
    }

    fn insert_below(&mut self, number: u64) {
        let at = self.ranges.partition_point(|(_, high)| high.saturating_add(1) < number);
        let (low, high) = self.ranges[at];
        let joins_next = self.ranges.get(at + 1).is_some_and(|(next, _)| *next == number + 1);
        if follows(number, high) && joins_next {
            self.ranges[at].1 = self.ranges[at + 1].1;
            self.ranges.remove(at + 1);
        } else if follows(number, high) {
            self.ranges[at].1 = number;
        } else if number + 1 == low {
            self.ranges[at].0 = number;
        } else if number < low {
            self.ranges.insert(at, (number, number));
        }
    }

    /// The sender waits for nothing about packets below `number`.
    #[inline]
    pub(super) fn forget_below(&mut self, number: u64) {
        if self.ranges.first().is_none_or(|(low, _)| *low >= number) {
            return;
        }
        let gone = self.ranges.partition_point(|(_, high)| *high < number);
        // The newest stays, so that there always is one to acknowledge.
        self.ranges.drain(..gone.min(self.ranges.len() - 1));
        if let Some((low, high)) = self.ranges.first_mut() {
            *low = (*low).max(number).min(*high);
        }
    }

    /// Highest first.
    pub(super) fn ranges(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().rev().copied()
    }
}

#[inline]
fn follows(number: u64, before: u64) -> bool {
    number.checked_sub(1) == Some(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_window_slides() {
        let mut received = Received::new();
        assert!(received.is_new(u64::MAX) && received.is_new(0));
        received.insert(5);
        assert!(!received.is_new(5) && received.is_new(4) && received.is_new(6));
        received.insert(5 + 10 * REPLAY_WINDOW_PACKETS);
        assert!(!received.is_new(5) && !received.is_new(6), "below the window");
        assert!(received.is_new(4 + 10 * REPLAY_WINDOW_PACKETS));
        received.forget_below(u64::MAX);
        assert_eq!(received.ranges().len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec((0..200u64, 0..40u64), 1..300)) {
            let (mut received, mut set) = (Received::new(), BTreeSet::new());
            for (number, forget) in steps {
                prop_assert_eq!(received.is_new(number), !set.contains(&number));
                if set.insert(number) {
                    received.insert(number);
                }
                if forget == 0 {
                    received.forget_below(number);
                }
                let ranges: Vec<_> = received.ranges().collect();
                prop_assert!(ranges.len() <= MAX_ACK_RANGES);
                prop_assert_eq!(ranges[0].1, *set.last().unwrap());
                prop_assert!(ranges.iter().all(|(low, high)| low <= high && (*low..=*high).all(|n| set.contains(&n))));
                prop_assert!(ranges.windows(2).all(|pair| pair[1].1 + 1 < pair[0].0));
            }
        }
    }
}
