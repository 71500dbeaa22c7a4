//! Control messages: what the sides say between HELLO and the data phase.

use super::close::CloseCode;
use super::codec::{Reader, check_len, check_text, owned, put, put_reason};
use super::error::WireError;

/// The bytes of a control message in front of its body.
pub const CONTROL_HEADER_BYTES: usize = 8;
/// The longest body of a control message, in bytes.
pub const MAX_CONTROL: usize = 64 * 1024;
/// The most transports in an OFFERS or a PLAN.
pub const MAX_OFFERS: usize = 16;
/// The longest name of a transport, in bytes.
pub const MAX_TRANSPORT_NAME: usize = 32;
/// The longest offer of one transport, in bytes.
pub const MAX_OFFER: usize = 3072;
/// In place of a plan index: the control link itself carries the data.
pub const CONTROL_LANE: u8 = 0xFF;

/// One transport that a side offers.
///
/// ```
/// use zc_core::wire::{ControlMessage, OfferEntry};
///
/// let offer = OfferEntry { transport: "tcp".into(), version: 1, bytes: Vec::new() };
/// let mut bytes = Vec::new();
/// ControlMessage::Offers(vec![offer]).encode(&mut bytes)?;
/// # Ok::<(), zc_core::wire::WireError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferEntry {
    /// The transport's name.
    pub transport: String,
    /// The version of the transport's own protocol.
    pub version: u16,
    /// The transport's own bytes.
    pub bytes: Vec<u8>,
}

/// One transport to try, best first.
///
/// ```
/// use zc_core::wire::{ControlMessage, PlanEntry};
///
/// let plan = ["shm", "tcp"].map(|name| PlanEntry { transport: name.into() });
/// assert_eq!(ControlMessage::Plan(plan.into()).name(), "PLAN");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanEntry {
    /// The transport's name; both sides offered it.
    pub transport: String,
}

/// A control message.
///
/// ```
/// use zc_core::wire::{ControlDecoder, ControlMessage};
///
/// let mut bytes = Vec::new();
/// ControlMessage::LaneUp { index: 0 }.encode(&mut bytes)?;
/// let mut decoder = ControlDecoder::new();
/// assert_eq!(decoder.push(&bytes), bytes.len());
/// assert_eq!(decoder.next_message(), Some(Ok(ControlMessage::LaneUp { index: 0 })));
/// # Ok::<(), zc_core::wire::WireError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlMessage {
    /// One step of the authentication method; the client begins, then they take turns.
    Auth {
        /// The method's own bytes.
        bytes: Vec<u8>,
    },
    /// From the server: authentication is done.
    AuthOk,
    /// The transports that the sender could use.
    Offers(Vec<OfferEntry>),
    /// From the server: which to try, in order. If none is, or none comes up, the control link carries the data
    /// where both HELLOs allow it ([`Hello::control_lane`](super::Hello::control_lane)); else the server is to reject.
    Plan(Vec<PlanEntry>),
    /// From the server: no connection.
    Reject {
        /// Why.
        code: CloseCode,
        /// Why, in words.
        reason: String,
    },
    /// A message between the two ends of the transport being tried.
    Join {
        /// The plan entry.
        index: u8,
        /// The transport's own bytes.
        bytes: Vec<u8>,
    },
    /// The sender's end of the lane works.
    LaneUp {
        /// The plan entry.
        index: u8,
    },
    /// The sender's end of the lane does not work.
    LaneDown {
        /// The plan entry.
        index: u8,
        /// Why, in words.
        reason: String,
    },
    /// From the client: this lane carries the data from here on.
    Commit {
        /// The plan entry, or [`CONTROL_LANE`].
        index: u8,
    },
}

const AUTH: u8 = 1;
const AUTH_OK: u8 = 2;
const OFFERS: u8 = 3;
const PLAN: u8 = 4;
const REJECT: u8 = 5;
const JOIN: u8 = 6;
const LANE_UP: u8 = 7;
const LANE_DOWN: u8 = 8;
const COMMIT: u8 = 9;

impl ControlMessage {
    /// The message's name, for errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Auth { .. } => "AUTH",
            Self::AuthOk => "AUTH_OK",
            Self::Offers(_) => "OFFERS",
            Self::Plan(_) => "PLAN",
            Self::Reject { .. } => "REJECT",
            Self::Join { .. } => "JOIN",
            Self::LaneUp { .. } => "LANE_UP",
            Self::LaneDown { .. } => "LANE_DOWN",
            Self::Commit { .. } => "COMMIT",
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Auth { .. } => AUTH,
            Self::AuthOk => AUTH_OK,
            Self::Offers(_) => OFFERS,
            Self::Plan(_) => PLAN,
            Self::Reject { .. } => REJECT,
            Self::Join { .. } => JOIN,
            Self::LaneUp { .. } => LANE_UP,
            Self::LaneDown { .. } => LANE_DOWN,
            Self::Commit { .. } => COMMIT,
        }
    }

    /// Appends the message; leaves `out` alone if a field breaks its bound.
    ///
    /// Reasons are cut to [`MAX_REASON`](super::MAX_REASON) bytes and lose their control characters.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let mut body = Vec::new();
        self.encode_body(&mut body)?;
        check_len("control message", body.len(), MAX_CONTROL)?;
        put(out, &[self.kind(), 0, 0, 0]);
        put(out, &(body.len() as u32).to_le_bytes());
        put(out, &body);
        Ok(())
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Auth { bytes } => {
                check_len("auth", bytes.len(), MAX_CONTROL)?;
                put(out, bytes);
            }
            Self::AuthOk => {}
            Self::Offers(offers) => put_offers(out, offers)?,
            Self::Plan(plan) => {
                check_len("plan", plan.len(), MAX_OFFERS)?;
                out.push(plan.len() as u8);
                plan.iter().try_for_each(|entry| put_name(out, &entry.transport))?;
            }
            Self::Reject { code, reason } => {
                put(out, &code.0.to_le_bytes());
                put_reason(out, reason);
            }
            Self::Join { index, bytes } => {
                check_len("join", bytes.len(), MAX_CONTROL - 1)?;
                out.push(*index);
                put(out, bytes);
            }
            Self::LaneUp { index } | Self::Commit { index } => out.push(*index),
            Self::LaneDown { index, reason } => {
                out.push(*index);
                put_reason(out, reason);
            }
        }
        Ok(())
    }

    fn decode_body(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let message = match kind {
            AUTH => return Ok(Self::Auth { bytes: owned(body) }),
            JOIN => return Ok(Self::Join { index: r.u8()?, bytes: owned(r.rest()) }),
            AUTH_OK => Self::AuthOk,
            OFFERS => Self::Offers(read_list(&mut r, "offers", read_offer)?),
            PLAN => Self::Plan(read_list(&mut r, "plan", |r| Ok(PlanEntry { transport: read_name(r)? }))?),
            REJECT => Self::Reject { code: CloseCode(r.u32()?), reason: r.reason()? },
            LANE_UP => Self::LaneUp { index: r.u8()? },
            LANE_DOWN => Self::LaneDown { index: r.u8()?, reason: r.reason()? },
            COMMIT => Self::Commit { index: r.u8()? },
            _ => return Err(WireError::BadValue { field: "control message type" }),
        };
        r.finish()?;
        Ok(message)
    }
}

fn put_offers(out: &mut Vec<u8>, offers: &[OfferEntry]) -> Result<(), WireError> {
    check_len("offers", offers.len(), MAX_OFFERS)?;
    out.push(offers.len() as u8);
    for offer in offers {
        check_len("offer", offer.bytes.len(), MAX_OFFER)?;
        put_name(out, &offer.transport)?;
        put(out, &offer.version.to_le_bytes());
        put(out, &(offer.bytes.len() as u16).to_le_bytes());
        put(out, &offer.bytes);
    }
    Ok(())
}

fn put_name(out: &mut Vec<u8>, name: &str) -> Result<(), WireError> {
    check_text("transport name", name, MAX_TRANSPORT_NAME)?;
    check_named(name)?;
    out.push(name.len() as u8);
    put(out, name.as_bytes());
    Ok(())
}

fn check_named(name: &str) -> Result<(), WireError> {
    if name.is_empty() { Err(WireError::BadValue { field: "transport name" }) } else { Ok(()) }
}

fn read_list<T>(
    r: &mut Reader<'_>,
    field: &'static str,
    mut read: impl FnMut(&mut Reader<'_>) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let count = usize::from(r.u8()?);
    check_len(field, count, MAX_OFFERS)?;
    (0..count).map(|_| read(r)).collect()
}

fn read_offer(r: &mut Reader<'_>) -> Result<OfferEntry, WireError> {
    let transport = read_name(r)?;
    let version = r.u16()?;
    let len = usize::from(r.u16()?);
    check_len("offer", len, MAX_OFFER)?;
    Ok(OfferEntry { transport, version, bytes: owned(r.bytes(len)?) })
}

fn read_name(r: &mut Reader<'_>) -> Result<String, WireError> {
    let len = usize::from(r.u8()?);
    let name = r.text(len, MAX_TRANSPORT_NAME, "transport name")?;
    check_named(&name)?;
    Ok(name)
}

/// Cuts a byte stream into control messages. Holds at most one message of the greatest length.
///
/// After COMMIT, what [`leftover`](Self::leftover) returns is the start of the data phase.
///
/// ```
/// use zc_core::wire::{ControlDecoder, ControlMessage};
///
/// let mut bytes = Vec::new();
/// ControlMessage::AuthOk.encode(&mut bytes)?;
/// let mut decoder = ControlDecoder::new();
/// let _ = decoder.push(&bytes[..3]);
/// assert_eq!(decoder.next_message(), None); // not whole yet
/// let _ = decoder.push(&bytes[3..]);
/// assert_eq!(decoder.next_message(), Some(Ok(ControlMessage::AuthOk)));
/// # Ok::<(), zc_core::wire::WireError>(())
/// ```
#[derive(Debug, Default)]
pub struct ControlDecoder {
    buffer: Vec<u8>,
    start: usize,
    failed: Option<WireError>,
}

impl ControlDecoder {
    /// The most bytes it ever holds.
    pub const MAX_BUFFERED: usize = CONTROL_HEADER_BYTES + MAX_CONTROL;

    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes, as many as fit within the bound, and says how many. Offer the rest again after
    /// [`next_message`](Self::next_message) returned `None`.
    #[must_use = "bytes beyond the returned count were not taken"]
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        self.buffer.drain(..self.start);
        self.start = 0;
        let taken = bytes.len().min(Self::MAX_BUFFERED - self.buffer.len());
        put(&mut self.buffer, &bytes[..taken]);
        taken
    }

    /// The next message, an error (then always the same), or `None` if more bytes are needed.
    pub fn next_message(&mut self) -> Option<Result<ControlMessage, WireError>> {
        if let Some(error) = &self.failed {
            return Some(Err(error.clone()));
        }
        let result = self.step().transpose()?;
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        Some(result)
    }

    /// The bytes after the last message returned.
    pub fn leftover(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn step(&mut self) -> Result<Option<ControlMessage>, WireError> {
        let Some((header, rest)) = self.buffer[self.start..].split_first_chunk::<CONTROL_HEADER_BYTES>()
        else {
            return Ok(None);
        };
        let mut r = Reader::new(header);
        let kind = r.u8()?;
        r.zero::<1>("control flags")?;
        r.zero::<2>("control reserved")?;
        let len = r.u32()? as usize;
        check_len("control message", len, MAX_CONTROL)?;
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let message = ControlMessage::decode_body(kind, body)?;
        self.start += CONTROL_HEADER_BYTES + len;
        Ok(Some(message))
    }
}
