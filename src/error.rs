//! Why a connection did not come up.

use zc_core::transport::{LaneError, LinkError, Unavailable, WireupError};
use zc_core::wire::{Delivery, Stage, WireError};

use crate::auth::AuthError;
use crate::connection::ConnectionError;
use crate::policy::PolicyError;
use crate::report::SelectionReport;
use crate::uri::UriError;

/// Setting up a fabric, a listener or a connection failed. No message was sent.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto()?;
/// let Err(error) = fabric.connect("zc+mem://nobody-listens").await else { panic!("somebody does") };
/// assert_eq!(error.stage(), Some(zc::Stage::Connect));
/// println!("{error}; trying again may help: {}", error.is_retryable());
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URI can't be read.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The policy can't be read.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A transport can't be called that: no URI and no `ZC_TRANSPORTS` could name it.
    #[error("{0:?} is no name of a transport: 1 to 32 letters, digits, '-', '_' and '.'")]
    TransportName(String),
    /// The address could not be connected to, or not be listened on.
    #[error("{at}: {source}")]
    Open {
        /// The address.
        at: String,
        /// What happened.
        source: LinkError,
    },
    /// The control link broke.
    #[error("{stage}: {source}")]
    Link {
        /// Where it stopped.
        stage: Stage,
        /// What happened.
        source: LinkError,
    },
    /// The peer broke the protocol, speaks another version, or refused.
    #[error("{stage}: {source}")]
    Wire {
        /// Where it stopped.
        stage: Stage,
        /// What was wrong.
        source: WireError,
    },
    /// The peer did not prove who it is.
    #[error("{stage}: {0}", stage = Stage::Authenticate)]
    Auth(#[from] AuthError),
    /// A stage took too long.
    #[error("{stage}: the deadline has passed")]
    Timeout {
        /// The stage.
        stage: Stage,
    },
    /// The listener had too many handshakes under way, and this was the oldest of the source with the most.
    #[error("{stage}: evicted: too many handshakes are under way, this is the oldest of a crowded source")]
    Evicted {
        /// The stage.
        stage: Stage,
    },
    /// Code of the application panicked in a handshake of a listener: an authentication method, a transport,
    /// an observer.
    #[error("{stage}: panicked: {message}")]
    Panicked {
        /// The stage.
        stage: Stage,
        /// What the panic said.
        message: String,
    },
    /// The listener was closed, or its runtime has ended, and nothing is left to accept.
    #[error("the listener is closed")]
    ListenerClosed,
    /// No transport could carry the connection.
    #[error("no transport carries this connection:\n{0}")]
    NoTransport(Box<SelectionReport>),
    /// The chosen lane could not be started.
    #[error("{stage}: {0}", stage = Stage::Commit)]
    Join(#[from] WireupError),
    /// The connection failed at once.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// Nothing opens such addresses.
    #[error("nothing is registered that opens {0}")]
    NoLinks(String),
    /// No runtime drives the caller.
    #[error("no runtime: {0}")]
    NoRuntime(String),
    /// The system's random numbers could not be had.
    #[error("no random numbers: {0}")]
    Random(String),
}

impl Error {
    /// Always [`Delivery::NotSent`]: nothing is sent before a connection is up.
    pub fn delivery(&self) -> Delivery {
        Delivery::NotSent
    }

    /// True when trying again later can succeed without changing anything here.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Open { source, .. } | Self::Link { source, .. } => matches!(source, LinkError::Io { .. }),
            Self::Timeout { .. } | Self::Connection(_) | Self::Join(_) => true,
            _ => false,
        }
    }

    /// Where wire-up stopped, if it had begun.
    pub fn stage(&self) -> Option<Stage> {
        match self {
            Self::Link { stage, .. }
            | Self::Wire { stage, .. }
            | Self::Timeout { stage }
            | Self::Evicted { stage }
            | Self::Panicked { stage, .. } => Some(*stage),
            Self::Open { .. } => Some(Stage::Connect),
            Self::Auth(_) => Some(Stage::Authenticate),
            Self::NoTransport(report) => Some(report.stage()),
            Self::Join(_) | Self::Connection(_) => Some(Stage::Commit),
            _ => None,
        }
    }
}

/// The reason of a failed join, as a report gives it.
pub(crate) fn join_reason(error: WireupError) -> Unavailable {
    match error {
        WireupError::Unavailable(why) => why,
        WireupError::Link(LinkError::Io { operation, source }) if source.raw_os_error().is_some() => {
            Unavailable::os(operation, &source)
        }
        other => Unavailable::Other { code: "join_failed", remedy: other.to_string() },
    }
}

/// The reason of a lane that failed before it was committed to.
pub(crate) fn lane_reason(error: LaneError) -> Unavailable {
    match error {
        LaneError::Os { errno, operation } => Unavailable::Os { errno, operation },
        other => Unavailable::Other { code: "ping_failed", remedy: other.to_string() },
    }
}
