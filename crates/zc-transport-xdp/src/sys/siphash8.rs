//! SipHash-2-4 of eight inputs at once, which lie word by word side by side: what a processor with wide registers does for eight in
//! the time that one takes elsewhere. The result is the same everywhere.
//!
//! The algorithm is that of its paper (Aumasson and Bernstein, 2012), with 128 bits of result; only the order of work differs. Nothing
//! branches on what is hashed. The one thing unsafe is to call what was compiled for registers that not every processor has.

/// Inputs that are hashed at once.
pub(crate) const LANES: usize = 8;
/// A word of each of eight inputs that are hashed at once.
pub(crate) const BLOCK_BYTES: usize = 8 * LANES;
/// The results of eight inputs, one upon the other.
pub(crate) const DIGEST_BYTES: usize = 16;

type Words = [u64; LANES];

/// The inner state of all.
#[derive(Clone, Copy)]
pub(crate) struct State([Words; 4]);

#[inline(always)]
fn map(a: Words, b: Words, what: impl Fn(u64, u64) -> u64) -> Words {
    std::array::from_fn(|i| what(a[i], b[i]))
}

#[inline(always)]
fn rotated(a: Words, by: u32) -> Words {
    a.map(|word| word.rotate_left(by))
}

#[inline(always)]
fn round([v0, v1, v2, v3]: [Words; 4]) -> [Words; 4] {
    let (add, xor) = (u64::wrapping_add, |a: u64, b: u64| a ^ b);
    let v0 = map(v0, v1, add);
    let v1 = map(rotated(v1, 13), v0, xor);
    let v0 = rotated(v0, 32);
    let v2 = map(v2, v3, add);
    let v3 = map(rotated(v3, 16), v2, xor);
    let v0 = map(v0, v3, add);
    let v3 = map(rotated(v3, 21), v0, xor);
    let v2 = map(v2, v1, add);
    let v1 = map(rotated(v1, 17), v2, xor);
    let v2 = rotated(v2, 32);
    [v0, v1, v2, v3]
}

#[inline(always)]
fn compress(mut v: [Words; 4], words: Words) -> [Words; 4] {
    v[3] = map(v[3], words, |a, b| a ^ b);
    v = round(round(v));
    v[0] = map(v[0], words, |a, b| a ^ b);
    v
}

#[inline(always)]
fn absorb(mut v: [Words; 4], blocks: &[[u8; BLOCK_BYTES]]) -> [Words; 4] {
    for block in blocks {
        let word = |lane: usize| u64::from_le_bytes(std::array::from_fn(|byte| block[8 * lane + byte]));
        v = compress(v, std::array::from_fn(word));
    }
    v
}

/// The results after so many blocks: the first halves of all, then the second ones.
#[inline(always)]
fn finish(v: [Words; 4], blocks: u64) -> [Words; 2] {
    let xor = |a: u64, b: u64| a ^ b;
    let half = |v: [Words; 4]| map(map(v[0], v[1], xor), map(v[2], v[3], xor), xor);
    // Bytes of each input, with its number.
    let mut v = compress(v, [(8 * (blocks + 1)) << 56; LANES]);
    v[2] = v[2].map(|word| word ^ 0xee);
    v = round(round(round(round(v))));
    let first = half(v);
    v[1] = v[1].map(|word| word ^ 0xdd);
    [first, half(round(round(round(round(v)))))]
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl")]
fn absorb_512(v: [Words; 4], blocks: &[[u8; BLOCK_BYTES]]) -> [Words; 4] {
    absorb(v, blocks)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl")]
fn finish_512(v: [Words; 4], blocks: u64) -> [Words; 2] {
    finish(v, blocks)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn absorb_256(v: [Words; 4], blocks: &[[u8; BLOCK_BYTES]]) -> [Words; 4] {
    absorb(v, blocks)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn finish_256(v: [Words; 4], blocks: u64) -> [Words; 2] {
    finish(v, blocks)
}

#[cfg(target_arch = "x86_64")]
fn has_512() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl")
}

impl State {
    /// Under one key for all; each has its own number as its first word, so that none of them is another's input.
    pub(crate) fn new(key: [u64; 2]) -> Self {
        let constants =
            [0x736f_6d65_7073_6575, 0x646f_7261_6e64_6f6d, 0x6c79_6765_6e65_7261, 0x7465_6462_7974_6573];
        let mut v: [Words; 4] = std::array::from_fn(|i| [constants[i] ^ key[i % 2]; LANES]);
        v[1] = v[1].map(|word| word ^ 0xee);
        Self(compress(v, std::array::from_fn(|lane| lane as u64)))
    }

    /// Takes whole blocks.
    pub(crate) fn update(&mut self, blocks: &[[u8; BLOCK_BYTES]]) {
        #[cfg(target_arch = "x86_64")]
        {
            if has_512() {
                // SAFETY: the processor has just been asked whether it has what this was compiled for; it touches no memory but
                // its arguments (M5).
                self.0 = unsafe { absorb_512(self.0, blocks) };
                return;
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: as above (M5).
                self.0 = unsafe { absorb_256(self.0, blocks) };
                return;
            }
        }
        self.0 = absorb(self.0, blocks);
    }

    /// The results after so many blocks, all in one: their sum without carries. For two inputs of which a part differs it is the
    /// same by chance only, as the results of that part are.
    pub(crate) fn finish(self, blocks: usize) -> [u8; DIGEST_BYTES] {
        let sums = self.halves(blocks as u64).map(|half| half.into_iter().fold(0, |sum, word| sum ^ word));
        std::array::from_fn(|at| sums[at / 8].to_le_bytes()[at % 8])
    }

    fn halves(self, blocks: u64) -> [Words; 2] {
        #[cfg(target_arch = "x86_64")]
        {
            if has_512() {
                // SAFETY: as in `update` (M5).
                return unsafe { finish_512(self.0, blocks) };
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: as in `update` (M5).
                return unsafe { finish_256(self.0, blocks) };
            }
        }
        finish(self.0, blocks)
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use siphasher::sip128::{Hasher128, SipHasher24};

    use super::*;

    #[test]
    fn each_is_siphash_and_all_ways_agree() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let blocks: Vec<[u8; BLOCK_BYTES]> =
            (0..70_usize).map(|block| std::array::from_fn(|i| (block * 31 + i * 7) as u8)).collect();
        for count in [0, 1, 2, 22, 31, 32, 70] {
            let mut state = State::new(key);
            let (some, others) = blocks[..count].split_at(count / 3);
            state.update(some);
            state.update(others);
            let mut sum = state.finish(count);
            let portable = State(absorb(State::new(key).0, &blocks[..count]));
            assert_eq!(finish(portable.0, count as u64), state.halves(count as u64));
            for lane in 0..LANES {
                let mut one = SipHasher24::new_with_keys(key[0], key[1]);
                one.write(&(lane as u64).to_le_bytes());
                blocks[..count].iter().for_each(|block| one.write(&block[8 * lane..8 * lane + 8]));
                sum.iter_mut().zip(one.finish128().as_bytes()).for_each(|(sum, byte)| *sum ^= byte);
            }
            assert_eq!(sum, [0; DIGEST_BYTES]);
        }
    }
}
