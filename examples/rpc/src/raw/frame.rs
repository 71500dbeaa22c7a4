//! The messages, written into memory of the connection and read where they lie.

use std::ops::Range;

use zc::{Message, PinnedBufMut, Sender};

use crate::BoxError;

/// What is in front of the protobuf message.
pub const HEAD_BYTES: usize = 8;
/// Field 1 of `Payload` and `Ask`, length-delimited: `data`.
const DATA_TAG: u8 = 0x0a;
/// Field 2 of `Ask`, a varint: `times`.
const TIMES_TAG: u8 = 0x10;
/// A varint of 32 bits takes at most so many bytes.
const MAX_VARINT_BYTES: usize = 5;

/// The methods of the service, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// One message, one answer.
    Unary = 1,
    /// Many messages, one answer.
    Collect = 2,
    /// One message, many answers.
    Repeat = 3,
    /// As many answers as messages.
    Chat = 4,
}

/// What every message begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The client's number of the call.
    pub call: u32,
    /// What is called.
    pub method: Method,
    /// Whether nothing more comes on this call from this side.
    pub last: bool,
}

impl Head {
    /// Of a message, if it is one of ours.
    pub fn of(message: &Message) -> Option<Self> {
        let mut bytes = Bytes { message, at: 0 };
        let mut call = [0; 4];
        for byte in &mut call {
            *byte = bytes.next()?;
        }
        let method = match bytes.next()? {
            1 => Method::Unary,
            2 => Method::Collect,
            3 => Method::Repeat,
            4 => Method::Chat,
            _ => return None,
        };
        let last = bytes.next()?;
        let plain = last <= 1 && bytes.next()? == 0 && bytes.next()? == 0;
        plain.then_some(Self { call: u32::from_le_bytes(call), method, last: last == 1 })
    }

    fn bytes(self) -> [u8; HEAD_BYTES] {
        let [a, b, c, d] = self.call.to_le_bytes();
        [a, b, c, d, self.method as u8, self.last.into(), 0, 0]
    }
}

/// What a message is to have room for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sizes {
    /// Bytes of field 1, which its caller puts in; none if it is empty.
    pub data: usize,
    /// Other fields, encoded.
    pub others: usize,
}

/// A message in memory that the connection sends as it is, with its head, and all but the data itself of field 1.
///
/// # Errors
/// The connection has ended, or has no memory.
pub async fn begin(tx: &Sender, head: Head, sizes: Sizes) -> Result<PinnedBufMut, BoxError> {
    let prefix = if sizes.data > 0 { 1 + MAX_VARINT_BYTES } else { 0 };
    let mut buf = tx.alloc(HEAD_BYTES + prefix + sizes.data + sizes.others).await?;
    buf.put_slice(&head.bytes());
    if sizes.data > 0 {
        buf.put_slice(&[DATA_TAG]);
        put_varint(&mut buf, u32::try_from(sizes.data)?);
    }
    Ok(buf)
}

/// What `times` of an `Ask` takes at most.
pub(super) const TIMES_BYTES: usize = 1 + MAX_VARINT_BYTES;

/// The rest of an `Ask`, behind its data.
pub(super) fn put_times(buf: &mut PinnedBufMut, times: u32) {
    buf.put_slice(&[TIMES_TAG]);
    put_varint(buf, times);
}

fn put_varint(buf: &mut PinnedBufMut, mut value: u32) {
    while value >= 0x80 {
        buf.put_slice(&[value as u8 | 0x80]);
        value >>= 7;
    }
    buf.put_slice(&[value as u8]);
}

/// A `Payload` or `Ask` inside of a message: where its parts lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Field 1 with its tag and length: as it lies, the encoding of a `Payload` with the same data.
    pub payload: Range<usize>,
    /// The data alone.
    pub data: Range<usize>,
    /// Field 2.
    pub times: u32,
}

/// Reads what is behind the head in place; nothing is moved.
pub fn fields(message: &Message) -> Option<Fields> {
    let mut bytes = Bytes { message, at: HEAD_BYTES };
    let mut fields = Fields::default();
    while bytes.at < message.len() {
        let start = bytes.at;
        match bytes.next()? {
            DATA_TAG => {
                let len = bytes.varint()? as usize;
                let end = bytes.at.checked_add(len).filter(|end| *end <= message.len())?;
                (fields.payload, fields.data) = (start..end, bytes.at..end);
                bytes.at = end;
            }
            TIMES_TAG => fields.times = bytes.varint()?,
            _ => return None,
        }
    }
    Some(fields)
}

/// The bytes of a message, wherever its parts lie.
struct Bytes<'a> {
    message: &'a Message,
    at: usize,
}

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let mut at = self.at;
        self.at += 1;
        for segment in self.message.segments() {
            match segment.get(at) {
                Some(byte) => return Some(*byte),
                None => at -= segment.len(),
            }
        }
        None
    }

    fn varint(&mut self) -> Option<u32> {
        let mut value = 0;
        for group in 0..MAX_VARINT_BYTES {
            let byte = self.next()?;
            value |= u64::from(byte & 0x7f) << (7 * group);
            if byte < 0x80 {
                return u32::try_from(value).ok();
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb::{Ask, Payload};

    const HEAD: &[u8; HEAD_BYTES] = b"\x07\x01\0\0\x03\x01\0\0";

    #[test]
    fn heads_come_back_and_others_are_none() {
        let head = Head { call: 263, method: Method::Repeat, last: true };
        assert_eq!(head.bytes(), *HEAD);
        assert_eq!(Head::of(&(&HEAD[..]).into()), Some(head));
        for bad in
            [&b"short"[..], b"0000\x00\0\0\0", b"0000\x05\0\0\0", b"0000\x01\x02\0\0", b"0000\x01\0\0\x01"]
        {
            assert_eq!(Head::of(&bad.into()), None, "{bad:?}");
        }
    }

    #[test]
    fn the_fields_are_found_where_prost_puts_them() {
        for size in [0, 1, 127, 128, 70_000] {
            let data = bytes::Bytes::from(vec![7; size]);
            let payload = Payload { data: data.clone() }.encode_to_vec();
            for times in [0, 1, 127, 128, u32::MAX] {
                let ask = Ask { data: data.clone(), times }.encode_to_vec();
                let whole = Message::from([HEAD, &ask[..]].concat());
                // In one piece, and cut anywhere.
                let mut cut = Message::new();
                for piece in [&HEAD[..3], &HEAD[3..], &ask[..ask.len() / 2], &ask[ask.len() / 2..]] {
                    cut.push(bytes::Bytes::from(piece.to_owned())).unwrap();
                }
                for message in [whole, cut] {
                    let fields = fields(&message).unwrap();
                    assert_eq!((fields.data.len(), fields.times), (size, times));
                    assert_eq!(ask[..payload.len()], payload);
                    assert_eq!(fields.payload.len(), payload.len());
                    if size > 0 {
                        assert_eq!(fields.payload.start, HEAD_BYTES);
                        assert_eq!(fields.data.end, HEAD_BYTES + payload.len());
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_message_of_the_service_is_none() {
        for bad in [
            &b"\x0a"[..],
            b"\x0a\x02\x01",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff",
            b"\x0a\xff\xff\xff\xff\x7f",
            b"\x10",
            b"\x10\x80",
            b"\x12\x00",
        ] {
            assert_eq!(fields(&[HEAD, bad].concat().into()), None, "{bad:?}");
        }
        assert_eq!(fields(&(&HEAD[..]).into()), Some(Fields::default()));
    }
}
