//! What the one-sided halves say to each other, one record to a slot.

use zc_core::transport::{Access, RemoteKey};
use zc_core::wire::WireError;

use crate::layout::Head;
use crate::lie::lie;

/// A key as words.
pub(crate) type Key = [u64; 2];

/// The words of a key; `None` if it is none of ours.
pub(super) fn key_of(key: &RemoteKey) -> Option<Key> {
    let (words, rest) = key.as_bytes().as_chunks::<8>();
    match (words, rest) {
        ([a, b], []) => Some([u64::from_ne_bytes(*a), u64::from_ne_bytes(*b)]),
        _ => None,
    }
}

/// The words of the longest record.
pub(crate) const RECORD_WORDS: usize = 6;

const ASK: u8 = 1;
const GRANT: u8 = 2;
const REFUSE: u8 = 3;
const REVOKE: u8 = 4;
const NOTIFY: u8 = 5;

/// What a key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granted {
    /// The export, by a number of its owner's.
    pub(crate) window: u64,
    /// All its bytes: whole pages.
    pub(crate) bytes: u64,
    /// The first one that is granted ...
    pub(crate) start: u64,
    /// ... and how many are.
    pub(crate) len: u64,
    pub(crate) access: Access,
    /// Its descriptor was sent in front of this record.
    pub(crate) fresh: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    /// What is this key? One question at a time.
    Ask(Key),
    /// The answer: this.
    Grant(Granted),
    /// The answer: nothing, or nothing `later` than now.
    Refuse { later: bool },
    /// What was answered about this key is true no more.
    Revoke(Key),
    /// What was written with this key is there.
    Notify { key: Key, value: u64 },
}

impl Record {
    /// The head of its slot, and the words of which the head counts the bytes.
    pub(crate) fn encode(&self) -> (Head, [u64; RECORD_WORDS]) {
        let (kind, count, words) = match *self {
            Self::Ask([a, b]) => (ASK, 2, [a, b, 0, 0, 0, 0]),
            Self::Grant(g) => {
                let fresh = u64::from(g.fresh);
                (GRANT, 6, [g.window, g.bytes, g.start, g.len, bits_of(g.access), fresh])
            }
            Self::Refuse { later } => (REFUSE, 1, [later.into(), 0, 0, 0, 0, 0]),
            Self::Revoke([a, b]) => (REVOKE, 2, [a, b, 0, 0, 0, 0]),
            Self::Notify { key: [a, b], value } => (NOTIFY, 3, [a, b, value, 0, 0, 0]),
        };
        (Head { kind, flags: 0, count: count * 8 }, words)
    }

    /// Parses a private copy of what the peer wrote (M6). Of the words, those that the head does not count are not
    /// looked at.
    pub(crate) fn decode(head: Head, words: [u64; RECORD_WORDS]) -> Result<Self, WireError> {
        if head.flags != 0 {
            return Err(lie("shm remote: flags"));
        }
        let [a, b, value, ..] = words;
        match (head.kind, head.count) {
            (ASK, 16) => Ok(Self::Ask([a, b])),
            (GRANT, 48) => Granted::decode(words).map(Self::Grant),
            (REFUSE, 8) => Ok(Self::Refuse { later: flag(a)? }),
            (REVOKE, 16) => Ok(Self::Revoke([a, b])),
            (NOTIFY, 24) => Ok(Self::Notify { key: [a, b], value }),
            _ => Err(lie("shm remote: record")),
        }
    }
}

impl Granted {
    fn decode([window, bytes, start, len, access, fresh]: [u64; RECORD_WORDS]) -> Result<Self, WireError> {
        let inside = start.checked_add(len).is_some_and(|end| end <= bytes);
        if len == 0 || !start.is_multiple_of(8) || !inside {
            return Err(lie("shm remote: range"));
        }
        let access = access_of(access).ok_or_else(|| lie("shm remote: access"))?;
        Ok(Self { window, bytes, start, len, access, fresh: flag(fresh)? })
    }

    pub(super) fn is_writable(&self) -> bool {
        is_writable(self.access)
    }
}

/// Whether who has it needs a mapping that can be written.
pub(super) fn is_writable(access: Access) -> bool {
    access.contains(Access::WRITE) || access.contains(Access::ATOMIC)
}

fn flag(word: u64) -> Result<bool, WireError> {
    match word {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(lie("shm remote: flag")),
    }
}

const ACCESS_BITS: [(Access, u64); 3] = [(Access::READ, 1), (Access::WRITE, 2), (Access::ATOMIC, 4)];

fn bits_of(access: Access) -> u64 {
    ACCESS_BITS.iter().filter(|(one, _)| access.contains(*one)).map(|(_, bit)| bit).sum()
}

fn access_of(bits: u64) -> Option<Access> {
    let set = ACCESS_BITS.iter().filter(|(_, bit)| bits & bit != 0);
    set.map(|(one, _)| *one).reduce(|a, b| a | b).filter(|_| bits < 8)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fuzz_remote_records(kind in 0u8..7, flags in 0u8..2, count in 0u8..8, words: [u64; 6], small in prop::array::uniform6(0u64..9)) {
            for words in [words, small] {
                let head = Head { kind, flags, count: count * 8 };
                if let Ok(record) = Record::decode(head, words) {
                    let (again, same) = record.encode();
                    let n = count as usize;
                    prop_assert!(again == head && same[..n] == words[..n]);
                    if let Record::Grant(g) = record {
                        prop_assert!(g.len > 0 && g.start.checked_add(g.len).is_some_and(|end| end <= g.bytes));
                    }
                }
            }
        }
    }
}
