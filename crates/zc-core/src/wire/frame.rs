//! The header in front of every frame of the data phase on a stream.

use super::codec::{Reader, check_len};
use super::error::WireError;
use super::record::MAX_RECORD;
use super::remote::MAX_REMOTE_RECORD_BYTES;
use super::tlv::Tlvs;

/// The bytes of a frame header.
pub const FRAME_HEADER_BYTES: usize = 16;
/// The longest extension block of a frame, in bytes.
pub const MAX_FRAME_EXT: usize = 1024;
/// The least that a DATA frame costs of the window, in bytes: at most window / 512 messages are unread.
pub const MIN_FRAME_CREDIT_BYTES: usize = 512;

/// What a DATA frame of `payload_bytes` costs of the window, in bytes.
pub const fn frame_credit_bytes(payload_bytes: usize) -> u64 {
    if payload_bytes < MIN_FRAME_CREDIT_BYTES { MIN_FRAME_CREDIT_BYTES as u64 } else { payload_bytes as u64 }
}

/// What a frame carries.
///
/// ```
/// use zc_core::wire::{FrameHeader, FrameType};
///
/// assert_eq!(FrameHeader::credit(1 << 20).kind, FrameType::Credit);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameType {
    /// One message of the application; `seq` is its number, from 1.
    Data = 0,
    /// One session record; `seq` is 0.
    Session = 1,
    /// A grant: `seq` is the total of credit bytes ([`frame_credit_bytes`]) the receiver allows since the start.
    Credit = 2,
    /// One remote record; `seq` is 0. Only to a peer whose HELLO takes them.
    Remote = 3,
}

impl FrameType {
    /// Whether it carries bytes of the application, which the copy ledger counts.
    #[inline]
    pub const fn is_payload(self) -> bool {
        matches!(self, Self::Data | Self::Remote)
    }

    /// The longest payload of such a frame, where data is at most `max_message` bytes long.
    #[inline]
    pub const fn max_bytes(self, max_message: usize) -> usize {
        match self {
            Self::Data => max_message,
            Self::Session => MAX_RECORD,
            Self::Credit => 0,
            Self::Remote => MAX_REMOTE_RECORD_BYTES,
        }
    }
}

/// The flags of a frame.
///
/// ```
/// use zc_core::wire::{FrameFlags, FrameHeader};
///
/// let flags = FrameFlags { ack_requested: true, ..FrameFlags::default() };
/// let header = FrameHeader { flags, ..FrameHeader::data(100, 1) };
/// assert_eq!(header.encode()[1], 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FrameFlags {
    /// A TLV block follows the header: u16 length, then that many bytes.
    pub ext: bool,
    /// The receiver should acknowledge this message soon. Only on DATA.
    pub ack_requested: bool,
}

impl FrameFlags {
    const EXT: u8 = 1;
    const ACK_REQUESTED: u8 = 2;

    fn bits(self) -> u8 {
        (u8::from(self.ext) * Self::EXT) | (u8::from(self.ack_requested) * Self::ACK_REQUESTED)
    }

    fn parse(bits: u8) -> Result<Self, WireError> {
        if bits & !(Self::EXT | Self::ACK_REQUESTED) != 0 {
            return Err(WireError::BadValue { field: "frame flags" });
        }
        Ok(Self { ext: bits & Self::EXT != 0, ack_requested: bits & Self::ACK_REQUESTED != 0 })
    }
}

/// What a receiver accepts.
///
/// ```
/// use zc_core::wire::{FrameHeader, FrameLimits, WireError};
///
/// let header = FrameHeader::data(4097, 1).encode();
/// let refused = FrameHeader::decode(&header, FrameLimits { max_message: 4096 });
/// assert!(matches!(refused, Err(WireError::TooLong { len: 4097, max: 4096, .. })));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// The longest DATA payload, in bytes.
    pub max_message: u32,
}

/// A frame header, parsed.
///
/// ```
/// use zc_core::wire::{FrameHeader, FrameLimits};
///
/// let header = FrameHeader::data(100, 1);
/// assert_eq!(FrameHeader::decode(&header.encode(), FrameLimits { max_message: 4096 }), Ok(header));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame carries.
    pub kind: FrameType,
    /// Its flags.
    pub flags: FrameFlags,
    /// Payload bytes, without the extension block.
    pub length: u32,
    /// The sequence number or the credit; see [`FrameType`].
    pub seq: u64,
}

impl FrameHeader {
    /// A DATA header without flags.
    pub const fn data(length: u32, seq: u64) -> Self {
        Self { kind: FrameType::Data, flags: NO_FLAGS, length, seq }
    }

    /// The header of a session record of `length` bytes.
    pub const fn session(length: u32) -> Self {
        Self { kind: FrameType::Session, flags: NO_FLAGS, length, seq: 0 }
    }

    /// The header of a remote record of `length` bytes.
    pub const fn remote(length: u32) -> Self {
        Self { kind: FrameType::Remote, flags: NO_FLAGS, length, seq: 0 }
    }

    /// A grant of `total` credit bytes since the start of the connection.
    pub const fn credit(total: u64) -> Self {
        Self { kind: FrameType::Credit, flags: NO_FLAGS, length: 0, seq: total }
    }

    /// The header as it is sent.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let kind = u128::from(self.kind as u8);
        let flags = u128::from(self.flags.bits()) << 8;
        let length = u128::from(self.length) << 32;
        let seq = u128::from(self.seq) << 64;
        (kind | flags | length | seq).to_le_bytes()
    }

    /// Parses and checks a header.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES], limits: FrameLimits) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let kind = match r.u8()? {
            0 => FrameType::Data,
            1 => FrameType::Session,
            2 => FrameType::Credit,
            3 => FrameType::Remote,
            _ => return Err(WireError::BadValue { field: "frame type" }),
        };
        let flags = FrameFlags::parse(r.u8()?)?;
        r.zero::<2>("channel")?;
        let header = Self { kind, flags, length: r.u32()?, seq: r.u64()? };
        header.check(limits)?;
        Ok(header)
    }

    fn check(&self, limits: FrameLimits) -> Result<(), WireError> {
        let field = match self.kind {
            FrameType::Data => "message",
            FrameType::Session => "session record",
            FrameType::Credit => "credit frame",
            FrameType::Remote => "remote record",
        };
        check_len(field, self.length as usize, self.kind.max_bytes(limits.max_message as usize))?;
        if self.flags.ack_requested && self.kind != FrameType::Data {
            return Err(WireError::BadValue { field: "frame flags" });
        }
        let seq_ok = match self.kind {
            FrameType::Data => self.seq != 0,
            FrameType::Session | FrameType::Remote => self.seq == 0,
            FrameType::Credit => true,
        };
        if seq_ok { Ok(()) } else { Err(WireError::BadValue { field: "sequence number" }) }
    }
}

const NO_FLAGS: FrameFlags = FrameFlags { ext: false, ack_requested: false };

/// The length of the extension block, from the two bytes after a header with `ext` set.
pub fn frame_ext_len(bytes: [u8; 2]) -> Result<usize, WireError> {
    let len = usize::from(u16::from_le_bytes(bytes));
    check_len("frame extensions", len, MAX_FRAME_EXT)?;
    Ok(len)
}

/// Checks an extension block. Version 1 defines none, so optional ones are skipped and required ones fail.
pub fn check_frame_ext(block: &[u8]) -> Result<(), WireError> {
    check_len("frame extensions", block.len(), MAX_FRAME_EXT)?;
    Tlvs::new(block).check_all_optional()
}
