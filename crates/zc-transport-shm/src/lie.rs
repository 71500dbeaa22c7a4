//! The error for a peer that breaks the protocol.

use zc_core::wire::WireError;

/// The peer wrote or sent what can't be true (M6).
#[inline]
pub(crate) fn lie(field: &'static str) -> WireError {
    WireError::BadValue { field }
}
