//! What a side sends to its peer: the session's offer, and the port that packets go to.

use zc_core::wire::WireError;

use crate::protocol::{OFFER_BYTES, Offer, OfferError};

/// The format of this offer.
pub(super) const VERSION: u16 = 1;

/// The session's offer, 64 bytes; port, 2 bytes; zero, 2 bytes. The address is the control link's: a peer can't have packets sent to
/// somebody else.
pub(super) struct Endpoint {
    pub(super) offer: Offer,
    pub(super) port: u16,
}

impl Endpoint {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(OFFER_BYTES + 4);
        out.extend(self.offer.encode());
        out.extend(self.port.to_le_bytes());
        out.extend([0; 2]);
        out
    }

    /// Parses and checks a peer's offer (M6).
    pub(super) fn decode(version: u16, bytes: &[u8]) -> Result<Self, WireError> {
        let bad = |field| WireError::BadValue { field };
        if version != VERSION {
            return Err(bad("xdp version"));
        }
        let (offer, rest) = bytes.split_at_checked(OFFER_BYTES).ok_or(bad("xdp offer length"))?;
        let [low, high, 0, 0] = *rest else { return Err(bad("xdp offer length")) };
        let port = u16::from_le_bytes([low, high]);
        if port == 0 {
            return Err(bad("xdp port"));
        }
        let offer = Offer::decode(offer).map_err(|error| match error {
            OfferError::BadValue { field } => bad(field),
            OfferError::Length { .. } | OfferError::Reflected => bad("xdp offer"),
        })?;
        Ok(Self { offer, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::SessionOptions;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fuzz_offers(bytes in prop::collection::vec(any::<u8>(), 0..80), port in 1_u16.., random: [u8; 16]) {
            let _ = Endpoint::decode(VERSION, &bytes);
            let random = std::array::from_fn(|i| random[i % 16]);
            let endpoint = Endpoint { offer: Offer::new(&SessionOptions::default(), &random), port };
            let mut bytes = endpoint.encode();
            let back = Endpoint::decode(VERSION, &bytes).unwrap();
            prop_assert_eq!((back.offer, back.port), (endpoint.offer, port));
            bytes[67] = 1;
            prop_assert!(Endpoint::decode(VERSION, &bytes).is_err());
        }
    }
}
