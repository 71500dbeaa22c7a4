//! Session records: what the two session layers tell each other during the data phase.

use super::close::CloseCode;
use super::codec::{Reader, check_len, put, put_reason};
use super::error::WireError;

/// The longest session record, in bytes.
pub const MAX_RECORD: usize = 1024;

/// One record: the payload of a SESSION frame.
///
/// ```
/// use zc_core::wire::SessionRecord;
///
/// let mut bytes = Vec::new();
/// SessionRecord::Ack { seq: 42 }.encode(&mut bytes);
/// assert_eq!(SessionRecord::decode(&bytes), Ok(SessionRecord::Ack { seq: 42 }));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionRecord {
    /// Asks for a [`Pong`](Self::Pong) with the same nonce.
    Ping {
        /// Chosen by the asker.
        nonce: u64,
    },
    /// Answers a [`Ping`](Self::Ping).
    Pong {
        /// The ping's nonce.
        nonce: u64,
    },
    /// Every message up to `seq` is queued, in order, at this side's session layer.
    Ack {
        /// The highest such number.
        seq: u64,
    },
    /// This side sends no more messages.
    Fin {
        /// The last message it sent; 0 if none.
        last_seq: u64,
    },
    /// This side takes no message above `last_seq`; those up to it are still taken and acknowledged.
    GoAway {
        /// Why.
        code: CloseCode,
        /// The last message of the peer that is taken.
        last_seq: u64,
        /// Why, in words.
        reason: String,
    },
    /// The connection ends now.
    Close {
        /// Why.
        code: CloseCode,
        /// The last message of the peer that was queued: a last acknowledgement.
        last_seq: u64,
        /// Why, in words.
        reason: String,
    },
}

const PING: u8 = 1;
const PONG: u8 = 2;
const ACK: u8 = 3;
const FIN: u8 = 4;
const GOAWAY: u8 = 5;
const CLOSE: u8 = 6;

impl SessionRecord {
    /// Appends the record. A reason is cut to [`MAX_REASON`](super::MAX_REASON) bytes and loses its control characters.
    pub fn encode(&self, out: &mut impl Extend<u8>) {
        match self {
            Self::Ping { nonce } => put_u64(out, PING, *nonce),
            Self::Pong { nonce } => put_u64(out, PONG, *nonce),
            Self::Ack { seq } => put_u64(out, ACK, *seq),
            Self::Fin { last_seq } => put_u64(out, FIN, *last_seq),
            Self::GoAway { code, last_seq, reason } => put_end(out, GOAWAY, *code, *last_seq, reason),
            Self::Close { code, last_seq, reason } => put_end(out, CLOSE, *code, *last_seq, reason),
        }
    }

    /// Parses one record; `bytes` is the whole payload of its frame.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        check_len("session record", bytes.len(), MAX_RECORD)?;
        let mut r = Reader::new(bytes);
        let kind = r.u8()?;
        r.zero::<3>("session record reserved")?;
        let record = match kind {
            PING => Self::Ping { nonce: r.u64()? },
            PONG => Self::Pong { nonce: r.u64()? },
            ACK => Self::Ack { seq: r.u64()? },
            FIN => Self::Fin { last_seq: r.u64()? },
            GOAWAY | CLOSE => Self::decode_end(kind, &mut r)?,
            _ => return Err(WireError::BadValue { field: "session record type" }),
        };
        r.finish()?;
        Ok(record)
    }

    fn decode_end(kind: u8, r: &mut Reader<'_>) -> Result<Self, WireError> {
        let code = CloseCode(r.u32()?);
        let (last_seq, reason) = (r.u64()?, r.reason()?);
        Ok(if kind == GOAWAY {
            Self::GoAway { code, last_seq, reason }
        } else {
            Self::Close { code, last_seq, reason }
        })
    }
}

fn put_u64(out: &mut impl Extend<u8>, kind: u8, value: u64) {
    put(out, &[kind, 0, 0, 0]);
    put(out, &value.to_le_bytes());
}

fn put_end(out: &mut impl Extend<u8>, kind: u8, code: CloseCode, last_seq: u64, reason: &str) {
    put(out, &[kind, 0, 0, 0]);
    put(out, &code.0.to_le_bytes());
    put(out, &last_seq.to_le_bytes());
    put_reason(out, reason);
}
