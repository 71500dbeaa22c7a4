//! Why a call or a connection ended.

use std::fmt;

/// The code of a RESET or GOAWAY. Unknown ones are kept.
///
/// ```
/// use zc_http::Code;
///
/// assert_ne!(Code::REFUSED, Code::CANCEL);
/// assert_eq!(Code(200).0, 200); // a later version's: kept
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u8);

impl Code {
    /// Nothing is wrong: the rest is not needed, or the side shuts down.
    pub const DONE: Self = Self(0);
    /// The caller gave up.
    pub const CANCEL: Self = Self(1);
    /// Not dispatched: no service has seen the call, and it may be tried again.
    pub const REFUSED: Self = Self(2);
    /// The handler or the body failed.
    pub const INTERNAL: Self = Self(3);
    /// The headers make no request or response.
    pub const MALFORMED: Self = Self(4);
    /// More headers than the receiver takes.
    pub const TOO_LARGE: Self = Self(5);
    /// The peer broke the protocol.
    pub const PROTOCOL: Self = Self(6);
    /// More resets, pings or refused calls than the receiver puts up with.
    pub const FLOOD: Self = Self(7);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::DONE => "done",
            Self::CANCEL => "cancelled",
            Self::REFUSED => "refused",
            Self::INTERNAL => "internal error",
            Self::MALFORMED => "malformed headers",
            Self::TOO_LARGE => "too many headers",
            Self::PROTOCOL => "protocol error",
            Self::FLOOD => "flood",
            Self(code) => return write!(f, "code {code}"),
        };
        f.write_str(name)
    }
}
