//! What each side says about itself before memory is exchanged.

use zc_core::wire::WireError;

use crate::layout::Geometry;

/// The format of the offer and of the memory.
pub(crate) const VERSION: u16 = 3;
/// The length of an offer of this version.
pub(crate) const OFFER_BYTES: usize = 40;

/// An offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShmOffer {
    pub(crate) geometry: Geometry,
    /// Most bytes of our arenas that we may ask the peer to map, and most of the peer's that we map.
    pub(crate) max_arena_bytes: u64,
    pub(crate) uid: u32,
    pub(crate) pid: u32,
    /// We lend nobody's messages: bells must be such as can't block us.
    pub(crate) wary: bool,
}

impl ShmOffer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let g = &self.geometry;
        let mut out = Vec::with_capacity(OFFER_BYTES);
        for word in [g.slots, g.returns, g.block_len, g.blocks] {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.max_arena_bytes.to_le_bytes());
        for word in [self.uid, self.pid, u32::from(self.wary), 0] {
            out.extend(word.to_le_bytes());
        }
        out
    }

    /// Parses and checks a peer's offer (M6).
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let bytes: &[u8; OFFER_BYTES] =
            bytes.try_into().map_err(|_| WireError::BadValue { field: "shm offer length" })?;
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| words.get(at).map_or(0, |w| u32::from_le_bytes(*w));
        let geometry = Geometry { slots: word(0), returns: word(1), block_len: word(2), blocks: word(3) };
        geometry.check()?;
        let wary = match (word(8), word(9)) {
            (0, 0) => false,
            (1, 0) => true,
            _ => return Err(WireError::BadValue { field: "shm offer flags" }),
        };
        let max_arena_bytes = u64::from(word(4)) | u64::from(word(5)) << 32;
        Ok(Self { geometry, max_arena_bytes, uid: word(6), pid: word(7), wary })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fuzz_offers(bytes in prop::collection::vec(any::<u8>(), 0..60), max: u64, uid: u32, pid: u32, wary: bool) {
            let _ = ShmOffer::decode(&bytes);
            let offer = ShmOffer { geometry: Geometry::new(100), max_arena_bytes: max, uid, pid, wary };
            let bytes = offer.encode();
            prop_assert_eq!(bytes.len(), OFFER_BYTES);
            prop_assert_eq!(ShmOffer::decode(&bytes).unwrap(), offer);
        }
    }
}
