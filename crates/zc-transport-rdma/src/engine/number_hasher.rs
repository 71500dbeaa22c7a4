//! Hashing of numbers that are given out one after the other, by nobody hostile.

use std::hash::Hasher;

/// The next odd number to 2⁶⁴ divided by the golden ratio: neighbours end up far from each other (Knuth, The Art of Computer
/// Programming 3, 6.4).
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Multiplies. The standard library's hasher keeps attackers from choosing what collides, and takes some hundred
/// instructions for that.
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(number)).wrapping_mul(FACTOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Both ends count: a table takes its place from the lowest bits, and the mark in it from the highest.
    #[test]
    fn numbers_in_a_row_are_spread() {
        let hash = |number| {
            let mut hasher = NumberHasher::default();
            hasher.write_u32(number);
            hasher.finish()
        };
        let low: HashSet<_> = (17..17 + 1024).map(|number| hash(number) % 1024).collect();
        let high: HashSet<_> = (17..17 + 1024).map(|number| hash(number) >> 54).collect();
        assert!(low.len() > 512 && high.len() > 512, "{} {}", low.len(), high.len());
    }
}
