//! The format of packets; `docs/xdp.md` has the diagrams.

use zc_core::transport::FrameKind;

use super::codec::{Reader, patch, put};
use super::limits::MAX_ACK_RANGES;
use super::mac::{MAC_BYTES, MacKey, PARTS_MIN_BYTES};
use super::offer::VERSION;

/// Bytes in front of the entries of a packet.
pub const HEAD_BYTES: usize = 36;
/// Bytes of the entry that describes a chunk of a message.
pub const CHUNK_ENTRY_BYTES: usize = 28;

pub(super) const ACK_BYTES: usize = 28;
pub(super) const ACK_RANGE_BYTES: usize = 8;
pub(super) const CREDIT_BYTES: usize = 24;
pub(super) const PING_BYTES: usize = 4;
pub(super) const FIN_BYTES: usize = 16;

const MAC_AT: usize = 20;
const ACK_NOW: u8 = 1;

const ACK: u8 = 1;
const CREDIT: u8 = 2;
const PING: u8 = 3;
const FIN: u8 = 4;
const CLOSE: u8 = 5;
const CHUNK: u8 = 6;

const KIND_MASK: u8 = 3;
const ACK_REQUESTED: u8 = 4;

/// The number that says to which session a datagram belongs, if it looks like a packet at all. Nothing is verified.
///
/// ```
/// use zc_transport_xdp::protocol::session_of;
///
/// assert_eq!(session_of(b"GET / HTTP/1.1"), None);
/// ```
#[inline]
pub fn session_of(datagram: &[u8]) -> Option<u32> {
    Head::decode(datagram).ok().map(|head| head.session)
}

/// What is wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// The fixed part in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// The sender asks for an acknowledgement at once.
    pub(super) ack_now: bool,
    /// Bytes of the packet in front of its payload.
    pub(super) len: usize,
    pub(super) session: u32,
    pub(super) number: u64,
    /// The sender waits for nothing about the packets below this one.
    pub(super) settled_below: u64,
}

impl Head {
    pub(super) fn decode(datagram: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(datagram.get(..HEAD_BYTES).ok_or(Malformed("length"))?);
        let mut read = || -> Option<_> {
            let start = (reader.u8()?, reader.u8()?, reader.u16()?);
            Some((start, reader.u32()?, reader.u64()?, reader.u32()?))
        };
        let ((version, flags, len), session, number, unsettled) = read().ok_or(Malformed("length"))?;
        let len = usize::from(len);
        if version != VERSION || flags & !ACK_NOW != 0 {
            return Err(Malformed("version"));
        }
        if len < HEAD_BYTES || len > datagram.len() {
            return Err(Malformed("head length"));
        }
        let settled_below = number.checked_sub(unsettled.into()).ok_or(Malformed("unsettled packets"))?;
        Ok(Self { ack_now: flags & ACK_NOW != 0, len, session, number, settled_below })
    }

    /// Fills in the room that [`begin`] left, except for the MAC.
    #[inline]
    pub(super) fn write(&self, out: &mut [u8]) {
        let unsettled = u32::try_from(self.number - self.settled_below).unwrap_or(u32::MAX);
        patch(out, 0, &[VERSION, u8::from(self.ack_now) * ACK_NOW]);
        patch(out, 2, &(self.len as u16).to_le_bytes());
        patch(out, 4, &self.session.to_le_bytes());
        patch(out, 8, &self.number.to_le_bytes());
        patch(out, 16, &unsettled.to_le_bytes());
    }
}

/// Begins a packet with room for its [`Head`].
#[inline]
pub(super) fn begin(out: &mut Vec<u8>) {
    out.clear();
    out.resize(HEAD_BYTES, 0);
}

/// The MAC over a head with its entries, without the MAC's own field, and over payload of so many bytes.
#[inline]
fn mac<'a>(
    key: &MacKey,
    head: &[u8],
    payload: impl IntoIterator<Item = &'a [u8]>,
    payload_bytes: usize,
) -> super::mac::Mac {
    let mut mac = key.start();
    mac.update(&head[..MAC_AT]);
    mac.update(&head[MAC_AT + MAC_BYTES..]);
    if payload_bytes < PARTS_MIN_BYTES {
        payload.into_iter().for_each(|slice| mac.update(slice));
        return mac;
    }
    let mut parts = key.parts();
    payload.into_iter().for_each(|slice| parts.update(slice));
    mac.update_parts(&parts);
    mac
}

/// Writes the MAC over payload of so many bytes into a head that is complete.
#[inline]
pub(super) fn seal<'a>(
    key: &MacKey,
    head: &mut [u8],
    payload: impl IntoIterator<Item = &'a [u8]>,
    payload_bytes: usize,
) {
    let mac = mac(key, head, payload, payload_bytes).finish();
    patch(head, MAC_AT, &mac);
}

/// Whether the MAC of a packet is right.
#[inline]
pub(super) fn is_genuine(key: &MacKey, datagram: &[u8], head_len: usize, with_payload: bool) -> bool {
    let (head, payload) = datagram.split_at(head_len);
    let claimed = std::array::from_fn(|i| head[MAC_AT + i]);
    let payload = if with_payload { payload } else { &[] };
    mac(key, head, [payload], payload.len()).verify(&claimed)
}

/// The ranges of an acknowledgement, checked: highest first, none touching the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AckRanges<'a> {
    largest: u64,
    first: u32,
    rest: &'a [u8],
}

impl<'a> AckRanges<'a> {
    fn decode(largest: u64, first: u32, rest: &'a [u8]) -> Option<Self> {
        let mut low = largest.checked_sub(first.into())?;
        let mut reader = Reader::new(rest);
        while !reader.is_empty() {
            let (gap, more) = (reader.u32()?, reader.u32()?);
            low = low.checked_sub(u64::from(gap) + 2)?.checked_sub(more.into())?;
        }
        Some(Self { largest, first, rest })
    }

    pub(super) fn largest(&self) -> u64 {
        self.largest
    }

    /// Lowest and highest number of each range.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + 'a {
        let mut low = self.largest - u64::from(self.first);
        let first = (low, self.largest);
        let mut reader = Reader::new(self.rest);
        let rest = std::iter::from_fn(move || {
            let (gap, more) = (reader.u32()?, reader.u32()?);
            let high = low - u64::from(gap) - 2;
            low = high - u64::from(more);
            Some((low, high))
        });
        std::iter::once(first).chain(rest)
    }
}

/// One chunk of a message. Its payload lies behind all entries, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkEntry {
    pub(super) kind: FrameKind,
    pub(super) ack: bool,
    pub(super) len: u16,
    pub(super) offset: u32,
    pub(super) total: u32,
    pub(super) message: u64,
    pub(super) seq: u64,
}

/// One entry of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry<'a> {
    Ack { delay_us: u32, delivered: u64, ranges: AckRanges<'a> },
    Credit { messages: u64, bytes: u64 },
    Ping,
    Fin { messages: u64 },
    Close { code: u32 },
    Chunk(ChunkEntry),
}

impl<'a> Entry<'a> {
    /// The next entry; `None` at the end.
    #[inline]
    pub(super) fn decode(reader: &mut Reader<'a>) -> Result<Option<Self>, Malformed> {
        let Some(kind) = reader.u8() else { return Ok(None) };
        let entry = match kind {
            CHUNK => ChunkEntry::decode(reader).map(Self::Chunk),
            ACK => Self::decode_ack(reader),
            CREDIT => reader.zero::<7>().and_then(|()| {
                let messages = reader.u64()?;
                Some(Self::Credit { messages, bytes: reader.u64()? })
            }),
            PING => reader.zero::<3>().map(|()| Self::Ping),
            FIN => reader.zero::<7>().and_then(|()| reader.u64()).map(|messages| Self::Fin { messages }),
            CLOSE => reader.zero::<3>().and_then(|()| reader.u32()).map(|code| Self::Close { code }),
            _ => return Err(Malformed("unknown entry")),
        };
        entry.map(Some).ok_or(Malformed("entry"))
    }

    fn decode_ack(reader: &mut Reader<'a>) -> Option<Self> {
        let more = usize::from(reader.u8()?);
        reader.zero::<2>()?;
        let (delay_us, delivered) = (reader.u32()?, reader.u64()?);
        let (largest, first) = (reader.u64()?, reader.u32()?);
        if more >= MAX_ACK_RANGES {
            return None;
        }
        let ranges = AckRanges::decode(largest, first, reader.bytes(more * ACK_RANGE_BYTES)?)?;
        Some(Self::Ack { delay_us, delivered, ranges })
    }

    /// Whether the peer answers it with an acknowledgement.
    #[inline]
    pub(super) fn is_eliciting(&self) -> bool {
        !matches!(self, Self::Ack { .. } | Self::Close { .. })
    }
}

impl ChunkEntry {
    #[inline]
    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let (flags, len) = (reader.u8()?, reader.u16()?);
        let (offset, total) = (reader.u32()?, reader.u32()?);
        let (message, seq) = (reader.u64()?, reader.u64()?);
        let kind = match flags & KIND_MASK {
            0 => FrameKind::Data,
            1 => FrameKind::Session,
            2 => FrameKind::Remote,
            _ => return None,
        };
        let inside = offset.checked_add(len.into()).is_some_and(|end| end <= total);
        let known = flags & !(KIND_MASK | ACK_REQUESTED) == 0;
        (inside && known).then_some(Self {
            kind,
            ack: flags & ACK_REQUESTED != 0,
            len,
            offset,
            total,
            message,
            seq,
        })
    }

    #[inline]
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let kind = match self.kind {
            FrameKind::Data => 0,
            FrameKind::Session => 1,
            FrameKind::Remote => 2,
        };
        put(out, &[CHUNK, kind | if self.ack { ACK_REQUESTED } else { 0 }]);
        put(out, &self.len.to_le_bytes());
        put(out, &self.offset.to_le_bytes());
        put(out, &self.total.to_le_bytes());
        put(out, &self.message.to_le_bytes());
        put(out, &self.seq.to_le_bytes());
    }
}

/// Appends an acknowledgement of `ranges` (highest first), at most `max_ranges` of them and at least one.
pub(super) fn put_ack(
    out: &mut Vec<u8>,
    delay_us: u32,
    delivered: u64,
    max_ranges: usize,
    mut ranges: impl Iterator<Item = (u64, u64)>,
) {
    let Some((low, largest)) = ranges.next() else { return };
    let start = out.len();
    let short = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    put(out, &[ACK, 0, 0, 0]);
    put(out, &delay_us.to_le_bytes());
    put(out, &delivered.to_le_bytes());
    put(out, &largest.to_le_bytes());
    let first = short(largest - low);
    put(out, &first.to_le_bytes());
    let mut floor = largest - u64::from(first);
    let mut more = 0;
    for (low, high) in ranges.take(max_ranges.min(MAX_ACK_RANGES) - 1) {
        let (gap, len) = (floor - high - 2, high - low);
        if gap > u32::MAX.into() || len > u32::MAX.into() {
            break;
        }
        put(out, &(gap as u32).to_le_bytes());
        put(out, &(len as u32).to_le_bytes());
        (floor, more) = (low, more + 1);
    }
    patch(out, start + 1, &[more]);
}

pub(super) fn put_credit(out: &mut Vec<u8>, messages: u64, bytes: u64) {
    put(out, &[CREDIT, 0, 0, 0, 0, 0, 0, 0]);
    put(out, &messages.to_le_bytes());
    put(out, &bytes.to_le_bytes());
}

pub(super) fn put_ping(out: &mut Vec<u8>) {
    put(out, &[PING, 0, 0, 0]);
}

pub(super) fn put_fin(out: &mut Vec<u8>, messages: u64) {
    put(out, &[FIN, 0, 0, 0, 0, 0, 0, 0]);
    put(out, &messages.to_le_bytes());
}

pub(super) fn put_close(out: &mut Vec<u8>, code: u32) {
    put(out, &[CLOSE, 0, 0, 0]);
    put(out, &code.to_le_bytes());
}
