//! What a peer can do wrong.

use super::code::Code;

/// The peer broke the protocol; the connection ends.
///
/// ```
/// use zc_http::{ErrorKind, Violation};
///
/// let error = ErrorKind::from(Violation::NotHttp);
/// assert!(matches!(error, ErrorKind::Violation(Violation::NotHttp)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Its first frame is not ours.
    #[error("the peer does not speak zc-http")]
    NotHttp,
    /// It speaks a version that is not understood.
    #[error("the peer speaks version {0} of zc-http")]
    Version(u8),
    /// A frame can't be read.
    #[error("a bad frame: {0}")]
    Frame(&'static str),
    /// A frame that is not allowed now.
    #[error("an unexpected frame: {0}")]
    Unexpected(&'static str),
    /// A header block can't be decoded.
    #[error("a bad header block: {0}")]
    Headers(&'static str),
    /// More body bytes than were granted, or a grant beyond the limit.
    #[error("the window was broken: {0}")]
    Window(&'static str),
    /// More calls at a time than were allowed.
    #[error("more calls at a time than allowed")]
    TooManyCalls,
    /// Too many of something that is cheap to send and not to take.
    #[error("a flood of {0}")]
    Flood(&'static str),
}

impl Violation {
    /// What the peer is told.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Flood(_) => Code::FLOOD,
            _ => Code::PROTOCOL,
        }
    }
}

/// Why a call ended without its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The peer sent RESET.
    ByPeer(Code),
    /// This side sent RESET.
    Here(Code),
    /// The peer went away before it took the call.
    NotTaken,
    /// The connection ended. `sent`: something of the call may have reached the peer.
    Connection { sent: bool },
}
