//! What the one-sided halves of a lane say to each other. No I/O; everything is checked before it is used (M6).
//!
//! ```text
//! byte 0      1        2      4       8     24      32       40     44      48
//!      | kind | access | zero | round | key | value | length | word | word' |
//!
//! kind 1 OPEN     round, word: the number of the queue pair that begins operations, word': of its first packet
//!      2 OPENED   the same of the one that serves them
//!      3 CLOSED   round: there is none to serve them, or none any more
//!      4 ASK      key
//!      5 GRANT    round, key, access, value: address, length, word: the device's key
//!      6 REFUSE   round, key; length 1: not now, else never
//!      7 REVOKE   key
//!      8 NOTIFY   key, value
//!      9 TAKEN    value: notifications of the other side's that it may forget, since the start
//! ```
//!
//! Little-endian; what a kind does not name is zero.

use zc_core::transport::{Access, RemoteKey};
use zc_core::wire::WireError;

use crate::verbs::RemotePlace;
use crate::wire::{Psn, QueuePairNumber};

pub(crate) const RECORD_BYTES: usize = 48;
const KEY_BYTES: usize = 16;

/// The name of a grant, at random.
pub(crate) type Key = [u8; KEY_BYTES];

/// `None` if it is none of ours.
pub(crate) fn key_of(key: &RemoteKey) -> Option<Key> {
    key.as_bytes().try_into().ok()
}

/// One end of a pair of queue pairs for one-sided operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueEnd {
    /// Which pair of those that a side has begun, one after the other.
    pub(crate) round: u32,
    pub(crate) number: QueuePairNumber,
    pub(crate) psn: Psn,
}

/// What a key stands for, as long as the round lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) round: u32,
    pub(crate) key: Key,
    pub(crate) place: RemotePlace,
    pub(crate) len: u64,
    pub(crate) access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    Open(QueueEnd),
    Opened(QueueEnd),
    Closed { round: u32 },
    Ask(Key),
    Grant(Granted),
    Refuse { round: u32, key: Key, later: bool },
    Revoke(Key),
    Notify { key: Key, value: u64 },
    Taken(u64),
}

/// All fields, of which each kind has some.
#[derive(Default, PartialEq, Eq)]
struct Fields {
    kind: u8,
    access: u8,
    round: u32,
    key: Key,
    value: u64,
    length: u64,
    words: [u32; 2],
}

const ACCESSES: [Access; 3] = [Access::READ, Access::WRITE, Access::ATOMIC];

fn bits_of(access: Access) -> u8 {
    ACCESSES.iter().enumerate().map(|(bit, one)| u8::from(access.contains(*one)) << bit).sum()
}

fn access_of(bits: u8) -> Option<Access> {
    let all = ACCESSES.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 != 0).map(|(_, one)| *one);
    all.reduce(|a, b| a | b).filter(|_| bits < 1 << ACCESSES.len())
}

impl Record {
    pub(crate) fn encode(&self) -> [u8; RECORD_BYTES] {
        let fields = self.fields();
        let bytes = [fields.kind, fields.access, 0, 0]
            .into_iter()
            .chain(fields.round.to_le_bytes())
            .chain(fields.key)
            .chain(fields.value.to_le_bytes())
            .chain(fields.length.to_le_bytes())
            .chain(fields.words.into_iter().flat_map(u32::to_le_bytes));
        let mut out = [0; RECORD_BYTES];
        out.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        out
    }

    fn fields(&self) -> Fields {
        let none = Fields::default();
        let end = |kind, end: &QueueEnd| Fields {
            kind,
            round: end.round,
            words: [end.number.value(), end.psn.value()],
            ..Fields::default()
        };
        match *self {
            Self::Open(ref mine) => end(1, mine),
            Self::Opened(ref mine) => end(2, mine),
            Self::Closed { round } => Fields { kind: 3, round, ..none },
            Self::Ask(key) => Fields { kind: 4, key, ..none },
            Self::Grant(Granted { round, key, place, len, access }) => Fields {
                kind: 5,
                access: bits_of(access),
                round,
                key,
                value: place.address,
                length: len,
                words: [place.key, 0],
            },
            Self::Refuse { round, key, later } => {
                Fields { kind: 6, round, key, length: later.into(), ..none }
            }
            Self::Revoke(key) => Fields { kind: 7, key, ..none },
            Self::Notify { key, value } => Fields { kind: 8, key, value, ..none },
            Self::Taken(value) => Fields { kind: 9, value, ..none },
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let bad = || WireError::BadValue { field: "rdma one-sided record" };
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().map_err(|_| bad())?;
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| words.get(at).map_or(0, |word| u32::from_le_bytes(*word));
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 1)) << 32;
        let [kind, access, zero @ ..] = word(0).to_le_bytes();
        let mut key = Key::default();
        key.iter_mut().zip(&bytes[8..24]).for_each(|(to, from)| *to = *from);
        let fields = Fields {
            kind,
            access,
            round: word(1),
            key,
            value: long(6),
            length: long(8),
            words: [word(10), word(11)],
        };
        let found = fields.record().ok_or_else(bad)?;
        // What the kind does not name is zero, so that each record has one form.
        if zero == [0; 2] && found.fields() == fields { Ok(found) } else { Err(bad()) }
    }
}

impl Fields {
    fn record(&self) -> Option<Record> {
        let end = || {
            let (number, psn) = (QueuePairNumber::new(self.words[0])?, Psn::new(self.words[1]));
            Some(QueueEnd { round: self.round, number, psn })
        };
        let key = self.key;
        Some(match self.kind {
            1 => Record::Open(end()?),
            2 => Record::Opened(end()?),
            3 => Record::Closed { round: self.round },
            4 => Record::Ask(key),
            5 => {
                // No offset in it runs over, and its words are words of the memory.
                let is_whole = self.length > 0 && self.value.is_multiple_of(8);
                self.value.checked_add(self.length).filter(|_| is_whole)?;
                let place = RemotePlace { address: self.value, key: self.words[0] };
                let access = access_of(self.access)?;
                Record::Grant(Granted { round: self.round, key, place, len: self.length, access })
            }
            6 => Record::Refuse { round: self.round, key, later: self.length == 1 },
            7 => Record::Revoke(key),
            8 => Record::Notify { key, value: self.value },
            9 => Record::Taken(self.value),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> Vec<Record> {
        let end = QueueEnd { round: 7, number: QueuePairNumber::new(17).unwrap(), psn: Psn::new(0x123456) };
        let place = RemotePlace { address: 0x7000_0000_1000, key: 0x1234_5678 };
        vec![
            Record::Open(end),
            Record::Opened(end),
            Record::Closed { round: 3 },
            Record::Ask([1; 16]),
            Record::Grant(Granted {
                round: 7,
                key: [2; 16],
                place,
                len: 4096,
                access: Access::READ | Access::ATOMIC,
            }),
            Record::Refuse { round: 8, key: [3; 16], later: true },
            Record::Refuse { round: 8, key: [3; 16], later: false },
            Record::Revoke([4; 16]),
            Record::Notify { key: [5; 16], value: u64::MAX },
            Record::Taken(256),
        ]
    }

    #[test]
    fn golden_bytes() {
        let bytes = all()[4].encode();
        assert_eq!(bytes[..8], [5, 5, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[8..24], [2; 16]);
        assert_eq!(bytes[24..32], 0x7000_0000_1000_u64.to_le_bytes());
        assert_eq!(bytes[32..40], 4096_u64.to_le_bytes());
        assert_eq!(bytes[40..], [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
        assert_eq!(all()[0].encode()[40..], [17, 0, 0, 0, 0x56, 0x34, 0x12, 0]);
        for record in all() {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn what_a_kind_does_not_name_is_zero() {
        for record in all() {
            let mut bytes = record.encode();
            bytes[2] = 1;
            assert!(Record::decode(&bytes).is_err(), "{record:?}");
        }
        let mut ask = Record::Ask([1; 16]).encode();
        ask[30] = 1;
        assert!(Record::decode(&ask).is_err());
    }

    #[test]
    fn grants_of_nothing_or_beyond_all_memory_are_none() {
        let Record::Grant(granted) = all()[4] else { panic!() };
        let at = |address| {
            let mut wrong = granted;
            wrong.place.address = address;
            wrong
        };
        for wrong in [Granted { len: 0, ..granted }, at(u64::MAX - 4095), at(granted.place.address + 4)] {
            assert!(Record::decode(&Record::Grant(wrong).encode()).is_err(), "{wrong:?}");
        }
        let mut bytes = all()[4].encode();
        for access in [0, 8, 255] {
            bytes[1] = access;
            assert!(Record::decode(&bytes).is_err(), "{access}");
        }
    }

    proptest! {
        #[test]
        fn fuzz_one_sided_records(bytes in prop::collection::vec(any::<u8>(), 0..60), which in 0..10usize, at in 0..RECORD_BYTES, byte: u8) {
            let mut changed = all()[which].encode();
            changed[at] = byte;
            for bytes in [&bytes[..], &changed[..]] {
                if let Ok(found) = Record::decode(bytes) {
                    prop_assert_eq!(&found.encode()[..], bytes, "what is accepted means one thing");
                }
            }
        }
    }
}
