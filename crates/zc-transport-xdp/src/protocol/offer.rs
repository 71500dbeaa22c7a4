//! What the sides tell each other over the control link, and the keys that come of it.

use std::time::Duration;

use hmac_sha256::HMAC;

use super::SessionOptions;
use super::codec::{Reader, put};
use super::limits::{MAX_ACK_DELAY, MAX_DATAGRAM_BYTES, MAX_WINDOW_MESSAGES, MIN_DATAGRAM_BYTES};
use super::mac::MacKey;
use super::packet::{HEAD_BYTES, PING_BYTES};

/// The version of [`Offer`] and of packets.
pub const VERSION: u8 = 1;
/// Bytes of an encoded [`Offer`].
pub const OFFER_BYTES: usize = 64;
/// Random bytes that an [`Offer`] takes.
pub const OFFER_RANDOM_BYTES: usize = 36;

const AUTHENTICATE_PAYLOAD: u8 = 1;

/// Which side of the control link this is.
///
/// ```
/// use zc_transport_xdp::protocol::Side;
///
/// assert_ne!(Side::Client, Side::Server); // each direction has a key of its own
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Opened the control link.
    Client,
    /// Accepted it.
    Server,
}

/// Why an offer can't be used.
///
/// ```
/// use zc_transport_xdp::protocol::{Offer, OfferError};
///
/// assert_eq!(Offer::decode(&[0; 12]).err(), Some(OfferError::Length { bytes: 12 }));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// It has another length.
    #[error("an offer of {bytes} bytes instead of {OFFER_BYTES}")]
    Length {
        /// How many came.
        bytes: usize,
    },
    /// A field is outside of what is allowed.
    #[error("the peer's offer has a bad {field}")]
    BadValue {
        /// Which.
        field: &'static str,
    },
    /// Both sides brought the same secret: this is our own offer, or the random numbers are not random.
    #[error("the peer's offer is our own")]
    Reflected,
}

/// One side's half of a session. It holds a secret, so it belongs on an authenticated and, against eavesdroppers,
/// encrypted control link.
///
/// ```
/// use zc_transport_xdp::protocol::{Offer, SessionOptions};
///
/// let random = [7; 36]; // of the operating system's random numbers, in earnest
/// let offer = Offer::new(&SessionOptions::default(), &random);
/// assert_eq!(Offer::decode(&offer.encode()).unwrap(), offer);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Offer {
    pub(super) session: u32,
    pub(super) datagram_bytes: u16,
    pub(super) authenticate_payload: bool,
    pub(super) window_bytes: u64,
    pub(super) window_messages: u32,
    pub(super) max_message: u32,
    pub(super) ack_delay: Duration,
    pub(super) secret: [u8; 32],
}

/// The longest datagram up to this length that consists of PINGs: what finds out whether a path carries packets of full length must be one.
fn filled_with_pings(datagram_bytes: u16) -> u16 {
    datagram_bytes - (datagram_bytes - HEAD_BYTES as u16) % PING_BYTES as u16
}

impl Offer {
    /// The offer of a side with these options, and fresh random bytes.
    pub fn new(options: &SessionOptions, random: &[u8; OFFER_RANDOM_BYTES]) -> Self {
        Self {
            session: u32::from_le_bytes(std::array::from_fn(|i| random[i])),
            datagram_bytes: filled_with_pings(
                options.datagram_bytes.clamp(MIN_DATAGRAM_BYTES as u16, MAX_DATAGRAM_BYTES as u16),
            ),
            authenticate_payload: options.authenticate_payload,
            window_bytes: options.window_bytes.max(1).into(),
            window_messages: options.window_messages.clamp(1, MAX_WINDOW_MESSAGES),
            max_message: options.max_message,
            ack_delay: options.ack_delay.min(MAX_ACK_DELAY),
            secret: std::array::from_fn(|i| random[4 + i]),
        }
    }

    /// The number that packets to this side carry.
    pub fn session(&self) -> u32 {
        self.session
    }

    /// The bytes for the control link.
    pub fn encode(&self) -> [u8; OFFER_BYTES] {
        let mut out = Vec::with_capacity(OFFER_BYTES);
        let flags = if self.authenticate_payload { AUTHENTICATE_PAYLOAD } else { 0 };
        put(&mut out, &[VERSION, flags]);
        put(&mut out, &self.datagram_bytes.to_le_bytes());
        put(&mut out, &self.session.to_le_bytes());
        put(&mut out, &self.window_bytes.to_le_bytes());
        put(&mut out, &self.window_messages.to_le_bytes());
        put(&mut out, &self.max_message.to_le_bytes());
        put(&mut out, &(self.ack_delay.as_micros() as u32).to_le_bytes());
        put(&mut out, &[0; 4]);
        put(&mut out, &self.secret);
        std::array::from_fn(|i| out[i])
    }

    /// Reads what a peer sent.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, OfferError> {
        let bad = |field| OfferError::BadValue { field };
        if bytes.len() != OFFER_BYTES {
            return Err(OfferError::Length { bytes: bytes.len() });
        }
        let mut reader = Reader::new(bytes);
        let mut read = || -> Option<_> {
            let head = (reader.u8()?, reader.u8()?, reader.u16()?, reader.u32()?);
            let windows = (reader.u64()?, reader.u32()?, reader.u32()?);
            Some((head, windows, reader.u32()?, reader.u32()?, reader.array::<32>()?))
        };
        let (head, windows, delay_us, zero, secret) = read().ok_or(bad("length"))?;
        let (version, flags, datagram_bytes, session) = head;
        let (window_bytes, window_messages, max_message) = windows;
        let offer = Self {
            session,
            datagram_bytes,
            authenticate_payload: flags & AUTHENTICATE_PAYLOAD != 0,
            window_bytes,
            window_messages,
            max_message,
            ack_delay: Duration::from_micros(delay_us.into()),
            secret,
        };
        let datagrams = MIN_DATAGRAM_BYTES..=MAX_DATAGRAM_BYTES;
        let checks = [
            ("version", version == VERSION),
            ("flags", flags & !AUTHENTICATE_PAYLOAD == 0),
            ("datagram length", datagrams.contains(&usize::from(datagram_bytes))),
            ("window", (1..=u64::from(u32::MAX)).contains(&window_bytes)),
            ("window of messages", (1..=MAX_WINDOW_MESSAGES).contains(&window_messages)),
            ("delay of acknowledgements", offer.ack_delay <= MAX_ACK_DELAY),
            ("reserved field", zero == 0),
        ];
        match checks.iter().find(|(_, fine)| !fine) {
            Some((field, _)) => Err(bad(field)),
            None => Ok(offer),
        }
    }
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("session", &self.session).finish_non_exhaustive()
    }
}

/// What both offers make together.
pub(super) struct Agreed {
    pub(super) send_key: MacKey,
    pub(super) recv_key: MacKey,
    pub(super) datagram_bytes: usize,
    pub(super) authenticate_payload: bool,
}

impl Agreed {
    pub(super) fn new(side: Side, mine: &Offer, theirs: &Offer) -> Result<Self, OfferError> {
        if mine.secret == theirs.secret {
            return Err(OfferError::Reflected);
        }
        let (client, server) = match side {
            Side::Client => (mine, theirs),
            Side::Server => (theirs, mine),
        };
        let to_server = key(b"zc xdp 1 client to server", client, server);
        let to_client = key(b"zc xdp 1 server to client", client, server);
        let (send_key, recv_key) = match side {
            Side::Client => (to_server, to_client),
            Side::Server => (to_client, to_server),
        };
        Ok(Self {
            send_key,
            recv_key,
            datagram_bytes: usize::from(mine.datagram_bytes.min(theirs.datagram_bytes)),
            authenticate_payload: mine.authenticate_payload || theirs.authenticate_payload,
        })
    }
}

/// HMAC-SHA-256 under both secrets, over both offers: whoever saw other offers has other keys.
fn key(label: &[u8], client: &Offer, server: &Offer) -> MacKey {
    let mut secrets = [0; 64];
    let halves = client.secret.iter().chain(&server.secret);
    secrets.iter_mut().zip(halves).for_each(|(to, from)| *to = *from);
    let mut hmac = HMAC::new(secrets);
    hmac.update(label);
    hmac.update(client.encode());
    hmac.update(server.encode());
    let full = hmac.finalize();
    MacKey::new(&std::array::from_fn(|i| full[i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_fill_datagrams_of_any_length_that_is_offered() {
        for asked in MIN_DATAGRAM_BYTES as u16..=1504 {
            let options = SessionOptions { datagram_bytes: asked, ..SessionOptions::default() };
            let offered = Offer::new(&options, &[1; OFFER_RANDOM_BYTES]).datagram_bytes;
            assert!(offered <= asked && asked - offered < 4 && offered >= MIN_DATAGRAM_BYTES as u16);
            assert_eq!((usize::from(offered) - HEAD_BYTES) % PING_BYTES, 0);
        }
    }
}
