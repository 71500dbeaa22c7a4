//! Errors of lanes, links and of bringing them up.

use std::io;

use super::unavailable::os_remedy;
use super::{Frame, Unavailable};
use crate::memory::AllocError;
use crate::wire::WireError;

/// A lane failed; it stays failed.
///
/// ```
/// use std::io;
/// use zc_core::transport::LaneError;
///
/// let reset = LaneError::os("write", &io::Error::from_raw_os_error(libc::ECONNRESET));
/// assert!(matches!(reset, LaneError::PeerGone(_)));
/// let full = LaneError::os("write", &io::Error::from_raw_os_error(libc::ENOBUFS));
/// assert!(matches!(full, LaneError::Os { errno: libc::ENOBUFS, operation: "write" }));
/// let none_left = LaneError::os("receive", &io::Error::from_raw_os_error(libc::EMFILE));
/// assert!(none_left.to_string().ends_with("raise the limit of open files (`ulimit -n`)"));
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// The peer went away without closing.
    #[error("the peer went away: {0}")]
    PeerGone(&'static str),
    /// The operating system reported an error.
    #[error("{operation}: {}{}", io::Error::from_raw_os_error(*errno), remedy(*errno))]
    Os {
        /// `errno`.
        errno: i32,
        /// What was tried.
        operation: &'static str,
    },
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] WireError),
    /// The lane was closed from this side.
    #[error("the lane is closed")]
    Closed,
    /// Memory for a received message could not be had.
    #[error("no memory for a received message: {0}")]
    Memory(String),
    /// For transports from elsewhere.
    #[error("{0}")]
    Other(String),
}

/// What can be done about an error of the system, for those who only see its text.
fn remedy(errno: i32) -> String {
    os_remedy(errno).map_or_else(String::new, |remedy| format!("; {remedy}"))
}

impl LaneError {
    /// The error for a failed system call.
    pub fn os(operation: &'static str, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPIPE) => Self::PeerGone("broken pipe"),
            Some(libc::ECONNRESET) => Self::PeerGone("connection reset"),
            Some(errno) => Self::Os { errno, operation },
            None => Self::Other(format!("{operation}: {error}")),
        }
    }
}

/// A frame that a lane did not take: it comes back.
///
/// ```
/// use zc_core::memory::Message;
/// use zc_core::transport::{Frame, FrameKind, LaneError, SendRejected};
///
/// let frame = Frame { kind: FrameKind::Data, ack: false, seq: 1, payload: Message::new() };
/// let SendRejected { frame, error } = SendRejected { frame, error: LaneError::Closed };
/// println!("message {} was not taken: {error}", frame.seq);
/// ```
#[derive(Debug)]
pub struct SendRejected {
    /// What was to be sent.
    pub frame: Frame,
    /// Why it was not.
    pub error: LaneError,
}

/// Memory of a lane could not be had.
///
/// ```
/// use zc_core::memory::BufPool;
/// use zc_core::transport::AllocFailure;
///
/// let refused = BufPool::builder().max_bytes(4096).build().try_alloc(1 << 20).map(drop);
/// assert!(matches!(refused.map_err(AllocFailure::from), Err(AllocFailure::Pool(_))));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllocFailure {
    /// The pool refused.
    #[error(transparent)]
    Pool(#[from] AllocError),
    /// The lane is gone.
    #[error(transparent)]
    Lane(#[from] LaneError),
}

/// A control link could not be opened, or broke.
///
/// ```
/// use zc_core::transport::LinkError;
///
/// let error = LinkError::Io { operation: "connect", source: std::io::ErrorKind::ConnectionRefused.into() };
/// assert_eq!(error.to_string(), "connect: connection refused");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The operating system reported an error.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The address is not one this provider can open.
    #[error("the address can't be used: {0}")]
    Address(String),
    /// No runtime drives the caller.
    #[error("no runtime: {0}")]
    NoRuntime(&'static str),
}

/// A lane could not be brought up.
///
/// ```
/// use zc_core::transport::{Unavailable, WireupError};
///
/// let error = WireupError::from(Unavailable::NoDevice);
/// assert!(matches!(error, WireupError::Unavailable(why) if why.code() == "no_device"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireupError {
    /// The transport can't, for this reason.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The control link broke.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The peer broke the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
}
