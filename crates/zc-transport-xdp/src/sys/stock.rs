//! How many frames a fill ring is stocked with.
//!
//! The kernel takes them in the order in which they were put there, so with many each packet lies in one that was last touched
//! long ago, and no cache has it. With few, a burst finds none. So there are few for as long as the kernel never takes half of
//! them between two looks, and more from then on.

use crate::limits::{CALM_REFILLS, MIN_STOCK_FRAMES, REFILL_BATCH};

/// The rule, without the ring.
pub(super) struct Stock {
    least: u32,
    most: u32,
    now: u32,
    /// Refills in a row that found three quarters there.
    calm: u32,
}

impl Stock {
    /// Always so many.
    pub(super) fn fixed(frames: u32) -> Self {
        Self { least: frames, most: frames, now: frames, calm: 0 }
    }

    /// As few as do, and so many at most.
    pub(super) fn up_to(frames: u32) -> Self {
        Self { most: frames, ..Self::fixed(frames.min(MIN_STOCK_FRAMES)) }
    }

    /// How many are to be added to those that the kernel has, taken off the ring or not; none until it is worth while.
    pub(super) fn lacking(&self, filled: u32) -> u32 {
        let lacking = self.now.saturating_sub(filled);
        if lacking >= REFILL_BATCH.min(self.now) { lacking } else { 0 }
    }

    /// As many of those that the kernel has as it is to have: what is left of a larger stock counts for nothing.
    pub(super) fn of(&self, filled: u32) -> u32 {
        filled.min(self.now)
    }

    /// So many of its stock the kernel has taken off the ring since the last refill.
    pub(super) fn saw_taken(&mut self, taken: u32) {
        if taken >= self.now {
            // Whatever came after that was lost.
            (self.now, self.calm) = (self.most, 0);
        } else if taken > self.now / 2 {
            (self.now, self.calm) = (self.now.saturating_mul(2).min(self.most), 0);
        } else if taken > self.now / 4 {
            self.calm = 0;
        } else {
            self.calm += 1;
            if self.calm == CALM_REFILLS {
                (self.now, self.calm) = ((self.now / 2).max(self.least), 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_double_it_and_calm_halves_it() {
        let mut stock = Stock::up_to(4 * MIN_STOCK_FRAMES);
        let now = |stock: &Stock| stock.lacking(0);
        assert_eq!(now(&stock), MIN_STOCK_FRAMES);
        stock.saw_taken(MIN_STOCK_FRAMES / 2);
        assert_eq!(now(&stock), MIN_STOCK_FRAMES);
        for times in [2, 4, 4] {
            stock.saw_taken(now(&stock) - 1);
            assert_eq!(now(&stock), times * MIN_STOCK_FRAMES, "and no more than were set aside");
        }
        for _ in 1..CALM_REFILLS {
            stock.saw_taken(0);
        }
        stock.saw_taken(2 * MIN_STOCK_FRAMES);
        (0..CALM_REFILLS).for_each(|_| stock.saw_taken(0));
        assert_eq!(now(&stock), 2 * MIN_STOCK_FRAMES, "calm counts from the last burst on");
        (0..3 * CALM_REFILLS).for_each(|_| stock.saw_taken(0));
        assert_eq!(now(&stock), MIN_STOCK_FRAMES);
        assert_eq!((stock.of(4 * MIN_STOCK_FRAMES), stock.of(7)), (MIN_STOCK_FRAMES, 7));
        stock.saw_taken(MIN_STOCK_FRAMES);
        assert_eq!(now(&stock), 4 * MIN_STOCK_FRAMES, "it was not enough, and nobody knows by how much");
    }

    #[test]
    fn what_was_asked_for_stays() {
        let mut stock = Stock::fixed(64);
        stock.saw_taken(64);
        assert_eq!(stock.lacking(0), 64);
        (0..2 * CALM_REFILLS).for_each(|_| stock.saw_taken(0));
        assert_eq!(
            (stock.lacking(0), stock.lacking(64), stock.lacking(64 - REFILL_BATCH)),
            (64, 0, REFILL_BATCH)
        );
        assert_eq!((stock.lacking(63), stock.lacking(1_000)), (0, 0), "not for a single one");
    }
}
