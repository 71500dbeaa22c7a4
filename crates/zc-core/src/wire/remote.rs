//! Remote records: one-sided operations on memory that a side exported, carried in frames.
//!
//! An operation is one REQUEST or several, answered one by one and in order. A record needs no credit:
//! a side has at most [`MAX_REMOTE_RECORDS`] requests without an answer, each of at most
//! [`MAX_REMOTE_CHUNK`] bytes.

use super::codec::{Reader, check_len, put};
use super::error::WireError;

/// The most bytes that one record reads or writes.
pub const MAX_REMOTE_CHUNK: usize = 64 << 10;
/// The most requests of one side that have no answer yet.
pub const MAX_REMOTE_RECORDS: usize = 64;
/// The bytes of a request in front of its payload.
pub const REMOTE_REQUEST_BYTES: usize = 56;
/// The bytes of an answer in front of its payload.
pub const REMOTE_ANSWER_BYTES: usize = 24;
/// The bytes of a key in a request.
pub const REMOTE_WIRE_KEY_BYTES: usize = 16;
/// The longest payload of a REMOTE frame: the longest record.
pub const MAX_REMOTE_RECORD_BYTES: usize = REMOTE_REQUEST_BYTES + MAX_REMOTE_CHUNK;

const READ: u8 = 1;
const WRITE: u8 = 2;
const COMPARE_SWAP: u8 = 3;
const FETCH_ADD: u8 = 4;
const ANSWER: u8 = 0x80;
const NOTIFY: u8 = 1;

/// What a request asks for.
///
/// ```
/// use zc_core::wire::RemoteAction;
///
/// // The first record of an operation that reads 100,000 bytes.
/// let first = RemoteAction::Read { len: 64 << 10, extent: 100_000 };
/// assert!(matches!(first, RemoteAction::Read { len, extent } if u64::from(len) < extent));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteAction {
    /// Bytes of the memory, in the answer's payload.
    Read {
        /// How many.
        len: u32,
        /// How many the operation wants from this offset on, in this record and those after it.
        extent: u64,
    },
    /// Puts the request's payload into the memory.
    Write {
        /// How many bytes.
        len: u32,
        /// How many the operation writes from this offset on, in this record and those after it.
        extent: u64,
        /// Tells the owner this value once they are written.
        notify: Option<u64>,
    },
    /// Sets a word if it is what was expected.
    CompareSwap {
        /// What it must be.
        expected: u64,
        /// What it becomes.
        new: u64,
    },
    /// Adds to a word, wrapping around.
    FetchAdd {
        /// How much.
        add: u64,
    },
}

/// A request, without its payload.
///
/// ```
/// use zc_core::wire::{RemoteAction, RemoteRecord, RemoteRequest};
///
/// let request = RemoteRequest { id: 1, key: [7; 16], offset: 64, action: RemoteAction::FetchAdd { add: 1 } };
/// let mut bytes = Vec::new();
/// request.encode(&mut bytes);
/// assert_eq!(RemoteRecord::decode(&bytes, bytes.len()), Ok(RemoteRecord::Request(request)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteRequest {
    /// Its number, from 1, without gaps, per direction.
    pub id: u64,
    /// Which memory.
    pub key: [u8; REMOTE_WIRE_KEY_BYTES],
    /// Where in what the key was granted for, bytes.
    pub offset: u64,
    /// What to do.
    pub action: RemoteAction,
}

/// What became of a request.
///
/// ```
/// use zc_core::wire::RemoteStatus;
///
/// let may_try_again = |status| status == RemoteStatus::Busy;
/// assert!(!may_try_again(RemoteStatus::Revoked));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RemoteStatus {
    /// Done.
    Done = 0,
    /// The key is not valid on this connection, or not any more.
    Revoked = 1,
    /// Outside the range that was granted.
    OutOfBounds = 2,
    /// The key does not allow it.
    Denied = 3,
    /// An atomic at an offset that is no multiple of 8.
    Misaligned = 4,
    /// Too many notifications wait to be taken; nothing was written.
    Busy = 5,
}

/// The answer to a request, without its payload.
///
/// ```
/// use zc_core::wire::{RemoteAnswer, RemoteRecord, RemoteStatus};
///
/// let answer = RemoteAnswer { id: 1, status: RemoteStatus::Done, len: 0, value: 41 };
/// let mut bytes = Vec::new();
/// answer.encode(&mut bytes);
/// assert_eq!(RemoteRecord::decode(&bytes, bytes.len()), Ok(RemoteRecord::Answer(answer)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteAnswer {
    /// The request's number.
    pub id: u64,
    /// What became of it.
    pub status: RemoteStatus,
    /// Bytes of the payload: what was read.
    pub len: u32,
    /// What an atomic's word was before; else 0.
    pub value: u64,
}

/// A remote record.
///
/// ```
/// use zc_core::wire::{RemoteAction, RemoteRecord, RemoteRequest};
///
/// let action = RemoteAction::Write { len: 5, extent: 5, notify: None };
/// let mut bytes = Vec::new();
/// RemoteRequest { id: 1, key: [7; 16], offset: 0, action }.encode(&mut bytes);
/// let record = RemoteRecord::decode(&bytes, bytes.len() + 5).unwrap(); // the payload follows
/// assert_eq!(record.front_bytes(), bytes.len());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteRecord {
    /// Asks for an operation.
    Request(RemoteRequest),
    /// Says what became of one.
    Answer(RemoteAnswer),
}

impl RemoteRecord {
    /// Parses the front of a record of `total` bytes: `front` holds as many of them as there are, up to
    /// [`REMOTE_REQUEST_BYTES`]. The payload begins at [`RemoteRecord::front_bytes`].
    pub fn decode(front: &[u8], total: usize) -> Result<Self, WireError> {
        check_len("remote record", total, MAX_REMOTE_RECORD_BYTES)?;
        let mut r = Reader::new(front);
        let kind = r.u8()?;
        let record = if kind == ANSWER {
            Self::Answer(decode_answer(&mut r)?)
        } else {
            Self::Request(decode_request(kind, &mut r)?)
        };
        if total - record.front_bytes().min(total) != record.payload_bytes() {
            return Err(WireError::BadValue { field: "remote payload" });
        }
        Ok(record)
    }

    /// The bytes in front of the payload.
    pub fn front_bytes(&self) -> usize {
        match self {
            Self::Request(_) => REMOTE_REQUEST_BYTES,
            Self::Answer(_) => REMOTE_ANSWER_BYTES,
        }
    }

    fn payload_bytes(&self) -> usize {
        match self {
            Self::Request(RemoteRequest { action: RemoteAction::Write { len, .. }, .. }) => *len as usize,
            Self::Request(_) => 0,
            Self::Answer(answer) => answer.len as usize,
        }
    }
}

impl RemoteRequest {
    /// Appends what goes in front of the payload.
    pub fn encode(&self, out: &mut impl Extend<u8>) {
        let (op, flags, len, a, b) = match self.action {
            RemoteAction::Read { len, extent } => (READ, 0, len, extent, 0),
            RemoteAction::Write { len, extent, notify } => {
                (WRITE, if notify.is_some() { NOTIFY } else { 0 }, len, extent, notify.unwrap_or(0))
            }
            RemoteAction::CompareSwap { expected, new } => (COMPARE_SWAP, 0, 8, expected, new),
            RemoteAction::FetchAdd { add } => (FETCH_ADD, 0, 8, add, 0),
        };
        put_front(out, op, flags, len, self.id);
        put(out, &self.key);
        [self.offset, a, b].iter().for_each(|field| put(out, &field.to_le_bytes()));
    }
}

impl RemoteAnswer {
    /// Appends what goes in front of the payload.
    pub fn encode(&self, out: &mut impl Extend<u8>) {
        put_front(out, ANSWER, self.status as u8, self.len, self.id);
        put(out, &self.value.to_le_bytes());
    }
}

fn put_front(out: &mut impl Extend<u8>, kind: u8, second: u8, len: u32, id: u64) {
    put(out, &[kind, second, 0, 0]);
    put(out, &len.to_le_bytes());
    put(out, &id.to_le_bytes());
}

fn decode_answer(r: &mut Reader<'_>) -> Result<RemoteAnswer, WireError> {
    let status = match r.u8()? {
        0 => RemoteStatus::Done,
        1 => RemoteStatus::Revoked,
        2 => RemoteStatus::OutOfBounds,
        3 => RemoteStatus::Denied,
        4 => RemoteStatus::Misaligned,
        5 => RemoteStatus::Busy,
        _ => return Err(WireError::BadValue { field: "remote status" }),
    };
    r.zero::<2>("remote reserved")?;
    let answer = RemoteAnswer { status, len: r.u32()?, id: r.u64()?, value: r.u64()? };
    check_len("remote answer", answer.len as usize, MAX_REMOTE_CHUNK)?;
    let bare = answer.status == RemoteStatus::Done || (answer.len, answer.value) == (0, 0);
    if bare { Ok(answer) } else { Err(WireError::BadValue { field: "remote answer" }) }
}

fn decode_request(kind: u8, r: &mut Reader<'_>) -> Result<RemoteRequest, WireError> {
    let flags = r.u8()?;
    r.zero::<2>("remote reserved")?;
    let (len, id, key, offset) = (r.u32()?, r.u64()?, r.array()?, r.u64()?);
    let (a, b) = (r.u64()?, r.u64()?);
    let action = match kind {
        READ if b == 0 => RemoteAction::Read { len, extent: a },
        WRITE if flags == NOTIFY => RemoteAction::Write { len, extent: a, notify: Some(b) },
        WRITE if b == 0 => RemoteAction::Write { len, extent: a, notify: None },
        COMPARE_SWAP if len == 8 => RemoteAction::CompareSwap { expected: a, new: b },
        FETCH_ADD if len == 8 && b == 0 => RemoteAction::FetchAdd { add: a },
        READ | WRITE | COMPARE_SWAP | FETCH_ADD => {
            return Err(WireError::BadValue { field: "remote request" });
        }
        _ => return Err(WireError::BadValue { field: "remote operation" }),
    };
    if flags & !NOTIFY != 0 || (flags == NOTIFY && kind != WRITE) {
        return Err(WireError::BadValue { field: "remote flags" });
    }
    check_len("remote request", len as usize, MAX_REMOTE_CHUNK)?;
    if matches!(kind, READ | WRITE) && a < u64::from(len) {
        return Err(WireError::BadValue { field: "remote extent" });
    }
    Ok(RemoteRequest { id, key, offset, action })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn encoded(record: RemoteRecord) -> Vec<u8> {
        let mut out = Vec::new();
        match record {
            RemoteRecord::Request(request) => request.encode(&mut out),
            RemoteRecord::Answer(answer) => answer.encode(&mut out),
        }
        assert_eq!(out.len(), record.front_bytes());
        out
    }

    #[track_caller]
    fn golden(record: RemoteRecord, expected: &[&str]) {
        let bytes = encoded(record);
        assert_eq!(hex(&bytes), expected.concat());
        assert_eq!(RemoteRecord::decode(&bytes, bytes.len() + record.payload_bytes()), Ok(record));
    }

    const KEY: &str = "30313233343536373839414243444546";

    fn request(action: RemoteAction) -> RemoteRecord {
        RemoteRecord::Request(RemoteRequest { id: 0x0102, key: *b"0123456789ABCDEF", offset: 0x40, action })
    }

    #[test]
    fn golden_bytes() {
        let tail = |a: &'static str, b: &'static str| [KEY, "4000000000000000", a, b].concat();
        golden(
            request(RemoteAction::Read { len: 16, extent: 0x11 }),
            &["0100000010000000", "0201000000000000", &tail("1100000000000000", "0000000000000000")],
        );
        golden(
            request(RemoteAction::Write { len: 3, extent: 3, notify: None }),
            &["0200000003000000", "0201000000000000", &tail("0300000000000000", "0000000000000000")],
        );
        golden(
            request(RemoteAction::Write { len: 3, extent: 3, notify: Some(9) }),
            &["0201000003000000", "0201000000000000", &tail("0300000000000000", "0900000000000000")],
        );
        golden(
            request(RemoteAction::CompareSwap { expected: 5, new: 6 }),
            &["0300000008000000", "0201000000000000", &tail("0500000000000000", "0600000000000000")],
        );
        golden(
            request(RemoteAction::FetchAdd { add: 7 }),
            &["0400000008000000", "0201000000000000", &tail("0700000000000000", "0000000000000000")],
        );
        let done = RemoteAnswer { id: 2, status: RemoteStatus::Done, len: 4, value: 8 };
        golden(RemoteRecord::Answer(done), &["8000000004000000", "0200000000000000", "0800000000000000"]);
        let busy = RemoteAnswer { id: 2, status: RemoteStatus::Busy, len: 0, value: 0 };
        golden(RemoteRecord::Answer(busy), &["8005000000000000", "0200000000000000", "0000000000000000"]);
    }

    #[test]
    fn bad_records() {
        let write = request(RemoteAction::Write { len: 3, extent: 3, notify: None });
        let bad = |record: RemoteRecord, change: fn(&mut [u8])| {
            let mut bytes = encoded(record);
            change(&mut bytes);
            RemoteRecord::decode(&bytes, bytes.len() + 3).unwrap_err().to_string()
        };
        assert_eq!(bad(write, |b| b[0] = 9), "bad value in field: remote operation");
        assert_eq!(bad(write, |b| b[1] = 2), "bad value in field: remote flags");
        assert_eq!(bad(write, |b| b[3] = 1), "bad value in field: remote reserved");
        assert_eq!(bad(write, |b| b[4] = 2), "bad value in field: remote payload");
        assert_eq!(bad(write, |b| b[4] = 4), "bad value in field: remote extent");
        assert_eq!(bad(write, |b| b[6] = 2), "remote request is too long: 131075, at most 65536 allowed");
        assert_eq!(bad(write, |b| b[48] = 1), "bad value in field: remote request");
        let read = request(RemoteAction::Read { len: 3, extent: 3 });
        assert_eq!(bad(read, |b| b[1] = 1), "bad value in field: remote flags");
        assert_eq!(bad(read, |_| {}), "bad value in field: remote payload");
        let swap = request(RemoteAction::CompareSwap { expected: 0, new: 0 });
        assert_eq!(bad(swap, |b| b[4] = 9), "bad value in field: remote request");
        let busy = RemoteAnswer { id: 2, status: RemoteStatus::Busy, len: 0, value: 0 };
        assert_eq!(bad(RemoteRecord::Answer(busy), |b| b[1] = 6), "bad value in field: remote status");
        assert_eq!(bad(RemoteRecord::Answer(busy), |b| b[4] = 3), "bad value in field: remote answer");
        let too_long = RemoteRecord::decode(&encoded(write), MAX_REMOTE_RECORD_BYTES + 1);
        assert!(matches!(too_long, Err(WireError::TooLong { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn fuzz_remote_records(
            mut raw in prop::collection::vec(any::<u8>(), 0..80), kind in 0..6u8, len: u16, total in 0..80_000usize,
        ) {
            let _ = RemoteRecord::decode(&raw, total);
            // The same with a front that is likely to be good.
            if raw.len() >= REMOTE_REQUEST_BYTES {
                raw.splice(..4, [if kind == 5 { ANSWER } else { kind }, 0, 0, 0]);
                raw.splice(4..8, u32::from(len).to_le_bytes());
            }
            let front = &raw[..raw.len().min(REMOTE_REQUEST_BYTES)];
            for total in [total, front.len(), front.len() + usize::from(len)] {
                if let Ok(record) = RemoteRecord::decode(front, total) {
                    let back = encoded(record);
                    prop_assert_eq!(&back[..], &front[..back.len()]);
                    prop_assert_eq!(record.front_bytes() + record.payload_bytes(), total);
                }
            }
        }
    }
}
