//! The keyed MAC of packets: SipHash-2-4 with 128 bits of result, in front of which long payload is hashed in eight parts.
//!
//! A pseudo-random function under a 128-bit key, published as a MAC for short input (Aumasson and Bernstein, 2012),
//! without a nonce that could be used twice. Each of its steps waits for the one before, so one long input takes long. Of payload of
//! [`PARTS_MIN_BYTES`] and more the words go to eight parts in turn, each of which is hashed with its number by the same function under a
//! second key. The sum of their results (without carries) stands in the place of what they were made of. For two payloads it is the
//! same with the probability of a guess (2^-128), and what is hashed in such a way may be authenticated in the place of the whole
//! (Carter and Wegman, 1981). `docs/xdp.md` has what it costs.

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::sys::siphash8::{BLOCK_BYTES, State};

/// Bytes of a MAC.
pub const MAC_BYTES: usize = 16;
/// Payload of at least so many bytes is hashed in parts.
pub const PARTS_MIN_BYTES: usize = 512;

/// The keys of one direction.
#[derive(Clone)]
pub(super) struct MacKey {
    whole: SipHasher24,
    parts: State,
}

impl MacKey {
    /// Of the first 16 bytes, and for parts of the others.
    pub(super) fn new(key: &[u8; 32]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| key[8 * at + i]));
        Self { whole: SipHasher24::new_with_keys(word(0), word(1)), parts: State::new([word(2), word(3)]) }
    }

    /// Begins a MAC.
    #[inline]
    pub(super) fn start(&self) -> Mac {
        Mac(self.whole)
    }

    /// Payload so long is hashed in parts.
    pub(super) fn parts(&self) -> Parts {
        Parts { state: self.parts, blocks: 0, begun: [0; BLOCK_BYTES], filled: 0 }
    }
}

/// A MAC under way.
pub(super) struct Mac(SipHasher24);

impl Mac {
    #[inline]
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The sum of the parts' results, and what did not fill a block.
    pub(super) fn update_parts(&mut self, parts: &Parts) {
        self.update(&parts.state.finish(parts.blocks));
        self.update(&parts.begun[..parts.filled]);
    }

    #[inline]
    pub(super) fn finish(self) -> [u8; MAC_BYTES] {
        self.0.finish128().as_bytes()
    }

    /// Compares without telling by its time where the first difference is.
    #[inline]
    pub(super) fn verify(self, claimed: &[u8; MAC_BYTES]) -> bool {
        std::hint::black_box(u128::from_le_bytes(self.finish()) ^ u128::from_le_bytes(*claimed)) == 0
    }
}

/// Payload that is hashed in parts, under way.
pub(super) struct Parts {
    state: State,
    blocks: usize,
    /// A block that is not full.
    begun: [u8; BLOCK_BYTES],
    filled: usize,
}

impl Parts {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        if self.filled > 0 {
            let (first, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.filled));
            self.begin(first);
            bytes = rest;
            if self.filled == BLOCK_BYTES {
                let block = self.begun;
                self.take(&[block]);
                self.filled = 0;
            }
        }
        let (blocks, rest) = bytes.as_chunks();
        if !blocks.is_empty() {
            self.take(blocks);
        }
        self.begin(rest);
    }

    fn take(&mut self, blocks: &[[u8; BLOCK_BYTES]]) {
        self.state.update(blocks);
        self.blocks += blocks.len();
    }

    fn begin(&mut self, bytes: &[u8]) {
        let place = self.begun.iter_mut().skip(self.filled);
        place.zip(bytes).for_each(|(to, from)| *to = *from);
        self.filled += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first two vectors that its authors published for 128 bits.
    #[test]
    fn is_siphash() {
        let key = std::array::from_fn(|i| i as u8 % 16);
        let mac = |bytes: &[u8]| {
            let mut mac = MacKey::new(&key).start();
            mac.update(bytes);
            mac.finish()
        };
        let hex = |bytes: [u8; 16]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(mac(&[])), "a3817f04ba25a8e66df67214c7550293");
        assert_eq!(hex(mac(&[0])), "da87c1d86b99af44347659119b22fc45");
    }

    #[test]
    fn pieces_do_not_matter() {
        let key = MacKey::new(&[9; 32]);
        let bytes: Vec<u8> = (0..200).collect();
        let mut whole = key.start();
        whole.update(&bytes);
        let whole = whole.finish();
        for cut in 0..bytes.len() {
            let mut mac = key.start();
            mac.update(&bytes[..cut]);
            mac.update(&bytes[cut..]);
            assert!(mac.verify(&whole));
        }
        assert!(!key.start().verify(&whole));
    }

    /// However payload is cut into slices. The results are those of a program in Python.
    #[test]
    fn long_payload_is_hashed_in_parts() {
        let key = MacKey::new(&std::array::from_fn(|i| i as u8));
        let payload: Vec<u8> = (0..1408_u32).map(|i| (i * 7 + i / 256) as u8).collect();
        let mac = |payload: &[u8], cuts: &[usize]| {
            let (mut mac, mut parts, mut at) = (key.start(), key.parts(), 0);
            for cut in cuts {
                parts.update(&payload[at..*cut]);
                at = *cut;
            }
            parts.update(&payload[at..]);
            mac.update(b"head");
            mac.update_parts(&parts);
            mac.finish()
        };
        let hex = |bytes: [u8; 16]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(mac(&payload, &[])), "52b15c2d9e4da18897052b18b87b588e");
        assert_eq!(hex(mac(&payload[..549], &[])), "3ed165f4df866f963add0738ac77da88");
        for cuts in [&[1][..], &[64], &[63, 64, 65], &[100, 101, 1407], &[0, 0, 640, 1408]] {
            assert_eq!(mac(&payload, cuts), mac(&payload, &[]));
        }
        let mut other = payload.clone();
        for at in [0, 8, 700, 1343, 1344, 1407] {
            other[at] ^= 1;
            assert_ne!(mac(&other, &[]), mac(&payload, &[]));
            other[at] ^= 1;
        }
    }
}
