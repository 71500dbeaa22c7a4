//! Extensions: type, length, value.
//!
//! A receiver skips an extension it does not know unless the type's high bit says that it must not.

use super::codec::{Reader, check_len, put};
use super::error::WireError;

/// Set in a type that the receiver must understand or fail.
pub const TLV_REQUIRED: u16 = 0x8000;
/// The bytes of a TLV's type and length.
pub const TLV_HEADER_BYTES: usize = 4;

/// One extension, borrowed from its block.
///
/// ```
/// use zc_core::wire::{TLV_REQUIRED, Tlv};
///
/// let optional = Tlv { kind: 7, value: b"" };
/// assert!(optional.unknown().is_ok()); // skipped
/// assert!(Tlv { kind: 7 | TLV_REQUIRED, ..optional }.unknown().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tlv<'a> {
    /// The type, high bit included.
    pub kind: u16,
    /// The value.
    pub value: &'a [u8],
}

impl Tlv<'_> {
    /// Whether a receiver that does not know this type must fail.
    pub fn is_required(&self) -> bool {
        self.kind & TLV_REQUIRED != 0
    }

    /// What to do with a type that the caller does not know: skip it, or fail.
    pub fn unknown(&self) -> Result<(), WireError> {
        if self.is_required() { Err(WireError::UnknownRequiredTlv(self.kind)) } else { Ok(()) }
    }
}

/// Iterates over a block of TLVs; ends after the first error.
///
/// ```
/// use zc_core::wire::{Tlv, Tlvs, put_tlv};
///
/// let mut block = Vec::new();
/// put_tlv(&mut block, 7, b"value")?;
/// assert_eq!(Tlvs::new(&block).next(), Some(Ok(Tlv { kind: 7, value: b"value" })));
/// # Ok::<(), zc_core::wire::WireError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tlvs<'a> {
    rest: &'a [u8],
}

impl<'a> Tlvs<'a> {
    /// Iterates over `block`.
    pub fn new(block: &'a [u8]) -> Self {
        Self { rest: block }
    }

    /// Walks the whole block and fails if it is malformed or holds a required extension.
    pub fn check_all_optional(self) -> Result<(), WireError> {
        for tlv in self {
            tlv?.unknown()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Tlv<'a>, WireError> {
        let mut r = Reader::new(self.rest);
        let kind = r.u16()?;
        let len = r.u16()?;
        let value = r.bytes(usize::from(len))?;
        self.rest = r.rest();
        Ok(Tlv { kind, value })
    }
}

impl<'a> Iterator for Tlvs<'a> {
    type Item = Result<Tlv<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.step();
        if item.is_err() {
            self.rest = &[];
        }
        Some(item)
    }
}

/// Appends one TLV.
pub fn put_tlv(out: &mut impl Extend<u8>, kind: u16, value: &[u8]) -> Result<(), WireError> {
    check_len("extension", value.len(), usize::from(u16::MAX))?;
    put(out, &kind.to_le_bytes());
    put(out, &(value.len() as u16).to_le_bytes());
    put(out, value);
    Ok(())
}
