//! What clients and the server say to each other. Each request has a number, which its answer repeats.
//!
//! ```text
//! request    number u64 | kind u8 | fields
//!   1 LEASE                             another key to the table; the one before ends, and its locks are broken
//!   2 GET      key
//!   3 PUT      key's length u16 | key | value
//!   4 DELETE   key
//!   5 STUCK    slot u64 | state u64     has not moved for long
//!   6 COUNTS
//! answer     number u64 | kind u8 | fields
//!   1 LEASE    ORDER u64, as in memory | owner u16 | slots u64 | room u32 | seed (16) | slot u64, version u64: of the lock
//!              that was broken, slot u64::MAX if none | key to the table
//!   2 VALUE    value
//!   3 DONE     4 NONE     5 FULL     6 SIZE     7 DAMAGED     8 BUSY
//!   9 COUNTS   messages u64 | one-sided operations u64
//! ```
//!
//! Integers are little-endian.

use zc::{Message, RemoteKey};

use super::layout::{MAX_ROOM, NOBODY, Owner, Shape, State};

/// The longest message.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 + MAX_ROOM as usize;
/// States are read as bytes and swapped as words, so both sides must order bytes alike.
const ORDER: u64 = 0x0102_0304_0506_0708;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Lease,
    Get { key: Vec<u8> },
    Put { key: Vec<u8>, value: Vec<u8> },
    Delete { key: Vec<u8> },
    Stuck { slot: u64, state: State },
    Counts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Lease(Terms),
    Value(Vec<u8>),
    Done,
    None,
    Full,
    Size,
    Damaged,
    Busy,
    Counts { messages: u64, operations: u64 },
}

/// What a client may use until it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) key: RemoteKey,
    pub(crate) owner: Owner,
    pub(crate) shape: Shape,
    /// The lock that the lease before still held.
    pub(crate) broken: Option<Broken>,
}

/// A lock that its owner did not open, and the version that the slot had then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) slot: u64,
    pub(crate) version: u64,
}

impl Request {
    pub(crate) fn encode(&self, number: u64) -> Vec<u8> {
        let mut out = Vec::from(number.to_le_bytes());
        match self {
            Self::Lease => out.push(1),
            Self::Get { key } => {
                out.push(2);
                out.extend(key);
            }
            Self::Put { key, value } => {
                out.push(3);
                out.extend((key.len() as u16).to_le_bytes());
                out.extend(key);
                out.extend(value);
            }
            Self::Delete { key } => {
                out.push(4);
                out.extend(key);
            }
            Self::Stuck { slot, state } => {
                out.push(5);
                [*slot, state.0].iter().for_each(|word| out.extend(word.to_le_bytes()));
            }
            Self::Counts => out.push(6),
        }
        out
    }

    pub(crate) fn decode(message: &Message) -> Option<(u64, Self)> {
        let bytes = flat(message)?;
        let mut rest = Fields(&bytes);
        let number = rest.u64()?;
        let request = match rest.u8()? {
            1 => Self::Lease,
            2 => Self::Get { key: rest.all() },
            3 => {
                let len = rest.u16()?;
                Self::Put { key: Vec::from(rest.take(usize::from(len))?), value: rest.all() }
            }
            4 => Self::Delete { key: rest.all() },
            5 => Self::Stuck { slot: rest.u64()?, state: State(rest.u64()?) },
            6 => Self::Counts,
            _ => return None,
        };
        rest.end(number, request)
    }
}

impl Answer {
    pub(crate) fn encode(&self, number: u64) -> Vec<u8> {
        let mut out = Vec::from(number.to_le_bytes());
        match self {
            Self::Lease(terms) => {
                out.push(1);
                out.extend(ORDER.to_ne_bytes());
                out.extend(terms.owner.to_le_bytes());
                out.extend(terms.shape.slots.to_le_bytes());
                out.extend(terms.shape.room.to_le_bytes());
                out.extend(terms.shape.seed);
                let broken = terms.broken.unwrap_or(Broken { slot: u64::MAX, version: 0 });
                [broken.slot, broken.version].iter().for_each(|word| out.extend(word.to_le_bytes()));
                out.extend(terms.key.as_bytes());
            }
            Self::Value(value) => {
                out.push(2);
                out.extend(value);
            }
            Self::Done => out.push(3),
            Self::None => out.push(4),
            Self::Full => out.push(5),
            Self::Size => out.push(6),
            Self::Damaged => out.push(7),
            Self::Busy => out.push(8),
            Self::Counts { messages, operations } => {
                out.push(9);
                [*messages, *operations].iter().for_each(|word| out.extend(word.to_le_bytes()));
            }
        }
        out
    }

    pub(crate) fn decode(message: &Message) -> Option<(u64, Self)> {
        let bytes = flat(message)?;
        let mut rest = Fields(&bytes);
        let number = rest.u64()?;
        let answer = match rest.u8()? {
            1 => Self::Lease(rest.terms()?),
            2 => Self::Value(rest.all()),
            3 => Self::Done,
            4 => Self::None,
            5 => Self::Full,
            6 => Self::Size,
            7 => Self::Damaged,
            8 => Self::Busy,
            9 => Self::Counts { messages: rest.u64()?, operations: rest.u64()? },
            _ => return None,
        };
        rest.end(number, answer)
    }
}

/// A copy of one's own: the peer may still write to what it has lent.
pub(crate) fn flat(message: &Message) -> Option<Vec<u8>> {
    (message.len() <= MAX_MESSAGE_BYTES).then(|| bytes_of(message))
}

/// The same, of any length.
pub(crate) fn bytes_of(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message.len());
    message.segments().iter().for_each(|segment| bytes.extend(segment.iter()));
    bytes
}

/// What is left of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }
    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn all(&mut self) -> Vec<u8> {
        Vec::from(std::mem::take(&mut self.0))
    }
    fn terms(&mut self) -> Option<Terms> {
        if u64::from_ne_bytes(self.array()?) != ORDER {
            return None;
        }
        let owner = self.u16().filter(|owner| *owner != NOBODY)?;
        let shape = Shape { slots: self.u64()?, room: self.u32()?, seed: self.array()? }.checked()?;
        let broken = Broken { slot: self.u64()?, version: self.u64()? };
        let broken = (broken.slot != u64::MAX).then_some(broken);
        Some(Terms { key: RemoteKey::from_bytes(&self.all())?, owner, shape, broken })
    }
    /// Nothing may be left.
    fn end<T>(self, number: u64, what: T) -> Option<(u64, T)> {
        self.0.is_empty().then_some((number, what))
    }
}
