//! Bounded reading and writing of little-endian fields. Private to the wire module.

use super::close::MAX_REASON;
use super::error::WireError;
use super::tlv::Tlvs;

/// Reads fields off a slice; every read is checked.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// `len` bytes of text, with `len` checked against `max` first.
    pub(super) fn text(&mut self, len: usize, max: usize, field: &'static str) -> Result<String, WireError> {
        check_len(field, len, max)?;
        text(self.bytes(len)?, field)
    }

    /// A reason in words, as [`put_reason`] writes it.
    pub(super) fn reason(&mut self) -> Result<String, WireError> {
        let len = usize::from(self.u16()?);
        self.text(len, MAX_REASON, "reason")
    }

    /// Fails unless the next `N` bytes are zero.
    pub(super) fn zero<const N: usize>(&mut self, field: &'static str) -> Result<(), WireError> {
        if self.array::<N>()? == [0; N] { Ok(()) } else { Err(WireError::BadValue { field }) }
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Checks that what is left is a TLV block with nothing required in it.
    pub(super) fn finish(self) -> Result<(), WireError> {
        Tlvs::new(self.rest).check_all_optional()
    }
}

pub(super) fn check_len(field: &'static str, len: usize, max: usize) -> Result<(), WireError> {
    if len > max {
        return Err(WireError::TooLong { field, len: len as u64, max: max as u64 });
    }
    Ok(())
}

/// Text from a peer: UTF-8 without control characters, so that it can be logged as it is.
pub(super) fn text(bytes: &[u8], field: &'static str) -> Result<String, WireError> {
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::BadValue { field })?;
    if text.chars().any(char::is_control) {
        return Err(WireError::BadValue { field });
    }
    Ok(text.to_owned())
}

/// Checks text of our own against the rules that [`text`] holds a peer to.
pub(super) fn check_text(field: &'static str, s: &str, max: usize) -> Result<(), WireError> {
    check_len(field, s.len(), max)?;
    if s.chars().any(char::is_control) {
        return Err(WireError::BadValue { field });
    }
    Ok(())
}

/// Appends a reason in words, made fit to send.
pub(super) fn put_reason(out: &mut impl Extend<u8>, reason: &str) {
    let reason = clean_reason(reason, MAX_REASON);
    put(out, &(reason.len() as u16).to_le_bytes());
    put(out, reason.as_bytes());
}

/// Makes a reason fit to send: control characters become spaces, and it is cut to `max` bytes.
pub(super) fn clean_reason(reason: &str, max: usize) -> String {
    let mut out = String::new();
    for c in reason.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

/// Appends control bytes; never payload.
pub(super) fn put(out: &mut impl Extend<u8>, bytes: &[u8]) {
    out.extend(bytes.iter().copied());
}

/// An owned copy of control bytes; never payload.
#[allow(clippy::disallowed_methods, reason = "control bytes, bounded by the message they came in")]
pub(super) fn owned(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}
