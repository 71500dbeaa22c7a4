//! Why a connection ended, as a number.

use std::fmt;

/// The longest reason that travels with a code, in bytes.
pub const MAX_REASON: usize = 512;

/// Why a connection was closed or refused.
///
/// ```
/// use zc_core::wire::CloseCode;
///
/// const OVERLOADED: CloseCode = CloseCode::app(1).unwrap();
/// assert!(OVERLOADED.is_app() && !CloseCode::NORMAL.is_app());
/// assert_eq!(CloseCode::GOING_AWAY.to_string(), "going away");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(pub u32);

impl CloseCode {
    /// The work is done.
    pub const NORMAL: Self = Self(0);
    /// The side is shutting down or reloading; try another or try later.
    pub const GOING_AWAY: Self = Self(1);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(2);
    /// Nothing was heard for too long.
    pub const IDLE: Self = Self(3);
    /// Refused by policy or authentication.
    pub const REJECTED: Self = Self(4);
    /// The side failed for a reason of its own.
    pub const INTERNAL: Self = Self(5);
    /// The first code that belongs to applications.
    pub const APP_FIRST: u32 = 0x1000;

    /// The `n`th code of the application's own range; `None` if it does not fit.
    pub const fn app(n: u32) -> Option<Self> {
        match Self::APP_FIRST.checked_add(n) {
            Some(code) => Some(Self(code)),
            None => None,
        }
    }

    /// Whether the code belongs to the application.
    pub const fn is_app(self) -> bool {
        self.0 >= Self::APP_FIRST
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NORMAL => f.write_str("normal"),
            Self::GOING_AWAY => f.write_str("going away"),
            Self::PROTOCOL_ERROR => f.write_str("protocol error"),
            Self::IDLE => f.write_str("idle"),
            Self::REJECTED => f.write_str("rejected"),
            Self::INTERNAL => f.write_str("internal error"),
            Self(code) if self.is_app() => write!(f, "application code {code:#x}"),
            Self(code) => write!(f, "unknown code {code:#x}"),
        }
    }
}
