//! What can be wrong with bytes from a peer, and with the order they come in.

use super::close::CloseCode;
use super::handshake::Stage;
use super::hello::VersionRange;

/// A fault in what a peer sent, or a step taken out of order.
///
/// Each is fatal for the connection it happened on and for nothing else.
///
/// ```
/// use zc_core::wire::{Hello, VersionRange, WireError};
///
/// match Hello::decode(b"GET / HTTP/1.1\r\n", VersionRange::SUPPORTED) {
///     Err(WireError::BadMagic { got }) => assert_eq!(&got, b"GET "),
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The first bytes are not a zc HELLO.
    #[error("not a zc peer: expected the magic f5 7a 63 00, got {got:02x?}")]
    BadMagic {
        /// The first four bytes, as far as they were read; zeros after them.
        got: [u8; 4],
    },
    /// The two sides have no wire version in common.
    #[error("no wire version in common: we speak {ours}, the peer speaks {theirs}")]
    VersionMismatch {
        /// The versions this side speaks.
        ours: VersionRange,
        /// The versions the peer speaks.
        theirs: VersionRange,
    },
    /// A message ended before its last field.
    #[error("message ends before its last field")]
    Truncated,
    /// A length is above its bound.
    #[error("{field} is too long: {len}, at most {max} allowed")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length or count.
        len: u64,
        /// The bound.
        max: u64,
    },
    /// An extension that must be understood is not known to this version.
    #[error("the peer requires extension {0:#06x}, which this version does not know")]
    UnknownRequiredTlv(u16),
    /// A field holds a value that the format does not allow.
    #[error("bad value in field: {field}")]
    BadValue {
        /// The field.
        field: &'static str,
    },
    /// A message that is well formed but not allowed at this point.
    #[error("unexpected {message} from the peer in stage {stage}")]
    UnexpectedMessage {
        /// The message's name.
        message: &'static str,
        /// The stage it came in.
        stage: Stage,
    },
    /// This side took a step that the protocol does not allow at this point: a bug in the caller.
    #[error("cannot {action} in stage {stage}")]
    OutOfOrder {
        /// The step.
        action: &'static str,
        /// The stage it was tried in.
        stage: Stage,
    },
    /// The two sides want different authentication methods (empty: none).
    #[error("authentication methods differ: ours is {ours:?}, the peer's is {theirs:?}")]
    AuthMethod {
        /// This side's method.
        ours: String,
        /// The peer's method.
        theirs: String,
    },
    /// The peer refused the connection.
    #[error("rejected by the peer: {code}: {reason}")]
    Rejected {
        /// Why, as a code.
        code: CloseCode,
        /// Why, in the peer's words.
        reason: String,
    },
}
