//! What travels beside the payload. No I/O; everything is checked before it is used (M6).
//!
//! Each message of the queue pair carries a word, its immediate:
//!
//! ```text
//! bit   0      3     4            16                            32
//!       | kind | ack | zero       | slots granted, modulo 2^16  |
//!
//! kind  0 DATA, 1 SESSION, 2 REMOTE: the payload is the message's own
//!       3 STATE:    byte 0         8        16      24      32
//!                        | allowed | done   | seq   | flags | any number of zeros
//!       4 ANNOUNCE: byte 0        4       6       8
//!                        | length | count | flags | count pieces
//!                   and each piece 0         8     12       16
//!                        | address | rkey | length |
//!       5 ONE-SIDED: see the records of `remote`
//! ```
//!
//! Little-endian.

use smallvec::SmallVec;
use zc_core::transport::FrameKind;
use zc_core::wire::WireError;

use crate::limits::RECORD_PIECES;
use crate::verbs::RemotePlace;

pub(crate) const STATE_BYTES: usize = 32;
const HEAD_BYTES: usize = 8;
const PIECE_BYTES: usize = 16;
pub(crate) const MAX_ANNOUNCE_BYTES: usize = HEAD_BYTES + RECORD_PIECES * PIECE_BYTES;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Frame(FrameKind),
    State,
    Announce,
    OneSided,
}

const KINDS: [Kind; 6] = [
    Kind::Frame(FrameKind::Data),
    Kind::Frame(FrameKind::Session),
    Kind::Frame(FrameKind::Remote),
    Kind::State,
    Kind::Announce,
    Kind::OneSided,
];

/// The word beside a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) kind: Kind,
    /// The receiver should acknowledge the message soon. Only of data.
    pub(crate) ack: bool,
    /// How many messages the other side may have sent since the start, the low bits of that.
    pub(crate) granted: u16,
}

const ACK: u32 = 1 << 3;

impl Word {
    pub(crate) fn encode(self) -> u32 {
        let kind = KINDS.iter().position(|kind| *kind == self.kind).unwrap_or(0) as u32;
        kind | if self.ack { ACK } else { 0 } | u32::from(self.granted) << 16
    }

    pub(crate) fn decode(word: Option<u32>) -> Result<Self, WireError> {
        let bad = WireError::BadValue { field: "rdma word" };
        let word = word.ok_or(bad.clone())?;
        let kind = *KINDS.get((word & 7) as usize).ok_or(bad.clone())?;
        let ack = word & ACK != 0;
        if word & 0xfff0 != 0 || ack && !matches!(kind, Kind::Frame(FrameKind::Data) | Kind::Announce) {
            return Err(bad);
        }
        Ok(Self { kind, ack, granted: (word >> 16) as u16 })
    }

    /// Whoever has ended still says how far it is: it reads on.
    pub(crate) fn may_follow_end(self) -> bool {
        self.kind == Kind::State
    }
}

/// How far the sender of this record is, all counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct State {
    /// Credit bytes of data that the other side may have begun to send.
    pub(crate) allowed: u64,
    /// Pieces of the other side's that were read.
    pub(crate) done: u64,
    /// The number of the next data message, if it is not that of the last and one more.
    pub(crate) seq: u64,
    /// Nothing follows but news of how far it is.
    pub(crate) end: bool,
}

impl State {
    pub(crate) fn encode(&self) -> [u8; STATE_BYTES] {
        let words = [self.allowed, self.done, self.seq, u64::from(self.end)];
        let mut out = [0; STATE_BYTES];
        out.iter_mut().zip(words.into_iter().flat_map(u64::to_le_bytes)).for_each(|(to, from)| *to = from);
        out
    }

    /// The same, made so long.
    pub(crate) fn padded(&self, len: usize) -> Vec<u8> {
        let mut out = Vec::from(self.encode());
        out.resize(len.max(STATE_BYTES), 0);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let bad = || WireError::BadValue { field: "rdma state" };
        let (state, padding) = bytes.split_at_checked(STATE_BYTES).ok_or_else(bad)?;
        let [allowed, done, seq, flags] = *state.as_chunks::<8>().0 else { return Err(bad()) };
        let [allowed, done, seq, flags] = [allowed, done, seq, flags].map(u64::from_le_bytes);
        if flags > 1 || padding.iter().any(|&byte| byte != 0) {
            return Err(bad());
        }
        Ok(Self { allowed, done, seq, end: flags == 1 })
    }

    /// Nothing is left that could be numbered, or ended.
    pub(crate) fn may_follow_end(&self) -> bool {
        self.seq == 0 && !self.end
    }
}

/// A part of a message that lies at its sender, to be read there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) place: RemotePlace,
    pub(crate) len: u32,
}

/// A message that is read by its receiver, or more pieces of the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announce {
    /// Of the whole message.
    pub(crate) len: u32,
    /// Its first pieces.
    pub(crate) is_first: bool,
    /// Of a remote record, not of data.
    pub(crate) is_remote: bool,
    pub(crate) pieces: SmallVec<[Piece; RECORD_PIECES]>,
}

impl Announce {
    pub(crate) fn encode(&self) -> SmallVec<[u8; MAX_ANNOUNCE_BYTES]> {
        let mut out = SmallVec::new();
        out.extend(self.len.to_le_bytes());
        out.extend((self.pieces.len() as u16).to_le_bytes());
        let flags = u16::from(self.is_first) | u16::from(self.is_remote) << 1;
        out.extend(flags.to_le_bytes());
        for piece in &self.pieces {
            out.extend(piece.place.address.to_le_bytes());
            out.extend(piece.place.key.to_le_bytes());
            out.extend(piece.len.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let bad = || WireError::BadValue { field: "rdma announcement" };
        let (head, pieces) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(bad)?;
        let (head, _) = head.as_chunks::<4>();
        let [len, rest] = *head else { return Err(bad()) };
        let (count, flags) = (u16::from_le_bytes([rest[0], rest[1]]), u16::from_le_bytes([rest[2], rest[3]]));
        let (pieces, rest) = pieces.as_chunks::<PIECE_BYTES>();
        let counts = (1..=RECORD_PIECES).contains(&pieces.len()) && pieces.len() == usize::from(count);
        if !counts || !rest.is_empty() || flags > 3 {
            return Err(bad());
        }
        let pieces = pieces.iter().map(|piece| {
            let (words, _) = piece.as_chunks::<4>();
            let word = |at: usize| words.get(at).map_or(0, |word| u32::from_le_bytes(*word));
            let address = u64::from(word(0)) | u64::from(word(1)) << 32;
            Piece { place: RemotePlace { address, key: word(2) }, len: word(3) }
        });
        let (is_first, is_remote) = (flags & 1 != 0, flags & 2 != 0);
        let found = Self { len: u32::from_le_bytes(len), is_first, is_remote, pieces: pieces.collect() };
        let sum: u64 = found.pieces.iter().map(|piece| u64::from(piece.len)).sum();
        if found.pieces.iter().any(|piece| piece.len == 0) || sum > u64::from(found.len) {
            return Err(bad());
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_words() {
        let word = Word { kind: Kind::Frame(FrameKind::Data), ack: true, granted: 0x1234 };
        assert_eq!(word.encode(), 0x1234_0008);
        assert_eq!(Word { kind: Kind::Announce, ack: false, granted: 1 }.encode(), 0x0001_0004);
        assert_eq!(Word::decode(Some(0x1234_0008)), Ok(word));
        for bad in
            [None, Some(6), Some(7), Some(0x10), Some(0x8000), Some(ACK | 1), Some(ACK | 3), Some(ACK | 5)]
        {
            assert!(Word::decode(bad).is_err(), "{bad:x?}");
        }
        let state = State { allowed: 1, done: 2, seq: 3, end: true };
        let bytes = state.encode();
        assert_eq!([bytes[0], bytes[8], bytes[16], bytes[24]], [1, 2, 3, 1]);
        assert_eq!(State::decode(&bytes), Ok(state));
        let mut long = state.padded(4096);
        assert_eq!((long.len(), State::decode(&long)), (4096, Ok(state)));
        long[4095] = 1;
        assert!(State::decode(&long).is_err() && State::decode(&bytes[..31]).is_err());
        assert_eq!(state.padded(0), bytes);
    }

    /// Its sender reads what we sent it, and gives its receive buffers back.
    #[test]
    fn after_the_end_comes_only_how_far_its_sender_is() {
        for kind in KINDS {
            let word = Word { kind, ack: false, granted: 1 };
            assert_eq!(word.may_follow_end(), kind == Kind::State, "{kind:?}");
        }
        let state = |seq, end| State { allowed: 1, done: 2, seq, end };
        assert!(state(0, false).may_follow_end());
        assert!(!state(3, false).may_follow_end() && !state(0, true).may_follow_end());
    }

    proptest! {
        #[test]
        fn fuzz_records(bytes in prop::collection::vec(any::<u8>(), 0..300), word: u32) {
            if let Ok(found) = Word::decode(Some(word)) {
                prop_assert_eq!(found.encode(), word);
            }
            if let Ok(found) = State::decode(&bytes) {
                prop_assert_eq!(&found.padded(bytes.len())[..], &bytes[..]);
            }
            if let Ok(found) = Announce::decode(&bytes) {
                prop_assert_eq!(&found.encode()[..], &bytes[..]);
            }
        }

        #[test]
        fn announcements_come_back(
            pieces in prop::collection::vec((any::<u64>(), any::<u32>(), 1..1u32 << 20), 1..=RECORD_PIECES),
            more in 0..100u32,
            is_first: bool,
            is_remote: bool,
        ) {
            let len = pieces.iter().map(|piece| piece.2).sum::<u32>() + more;
            let piece = |(address, key, len)| Piece { place: RemotePlace { address, key }, len };
            let announce = Announce { len, is_first, is_remote, pieces: pieces.into_iter().map(piece).collect() };
            let bytes = announce.encode();
            prop_assert!(bytes.len() <= MAX_ANNOUNCE_BYTES);
            prop_assert_eq!(Announce::decode(&bytes), Ok(announce.clone()));
            prop_assert!(Announce::decode(&bytes[1..]).is_err() && Announce::decode(&bytes[..bytes.len() - 1]).is_err());
            let short = Announce { len: len - more - 1, ..announce };
            prop_assert!(Announce::decode(&short.encode()).is_err());
        }
    }
}
