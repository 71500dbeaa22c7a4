//! How a connection ends, and what that means for a message.

use std::io;
use std::time::Duration;

use zc_core::memory::Message;
use zc_core::transport::LaneError;
use zc_core::wire::{CloseCode, Delivery, SeqError, WireError};

/// Why an operation was not done.
///
/// Most of them are the end: of the connection, or of sending. From then on every operation that it concerns
/// fails; sending and receiving may give different reasons, since a write that fails knows less than the CLOSE that
/// is read after it. [`Connection::closed`](crate::Connection::closed) gives the best one. `TooLarge`, `Deadline`,
/// `ReceiverTaken` and `NotReady` are about one call, and the connection goes on.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://connection-error").await?;
/// # let (mut client, server) = tokio::try_join!(fabric.connect("zc+mem://connection-error"), listener.accept())?;
/// use zc::{CloseCode, ConnectionError};
///
/// server.close(CloseCode::GOING_AWAY, "new version").await;
/// match client.recv().await {
///     Err(ConnectionError::ClosedByPeer { code: CloseCode::GOING_AWAY, reason }) => println!("{reason}"),
///     other => panic!("{other:?}"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// This side closed it.
    #[error("the connection was closed by this side")]
    ClosedHere,
    /// The peer closed it.
    #[error("the peer closed the connection: {code} {reason}")]
    ClosedByPeer {
        /// The peer's code.
        code: CloseCode,
        /// The peer's words.
        reason: String,
    },
    /// This side has finished sending.
    #[error("no further messages are taken: {reason}")]
    Finished {
        /// Who said so, and why.
        reason: String,
    },
    /// The peer said GOAWAY: messages that it had not queued by then were not sent, and no more are taken.
    #[error("the peer takes no further messages: {code} {reason}")]
    PeerGoesAway {
        /// The peer's code.
        code: CloseCode,
        /// The peer's words.
        reason: String,
    },
    /// No message went either way for the idle time, and this side closed the connection.
    #[error("no message went either way for {idle:?}")]
    Idle {
        /// [`ConnectionOptions::idle`](crate::ConnectionOptions::idle).
        idle: Duration,
    },
    /// Nothing was heard from the peer, not even an answer to a ping.
    #[error("the peer has been silent for {silence:?}")]
    Dead {
        /// Keepalive interval and timeout together.
        silence: Duration,
    },
    /// The lane failed.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// The peer broke the session protocol.
    #[error("the peer broke the session protocol: {0}")]
    Session(String),
    /// The message is larger than the peer takes.
    #[error("a message of {len} bytes is above the limit of {max}")]
    TooLarge {
        /// Bytes of the message.
        len: usize,
        /// Most bytes that the peer takes.
        max: usize,
    },
    /// The runtime could not be used.
    #[error("no runtime: {0}")]
    NoRuntime(String),
    /// A drain or a send did not finish in time.
    #[error("the deadline has passed")]
    Deadline,
    /// The receiver was split off, so that this handle can't receive.
    #[error("the receiver of this connection was taken")]
    ReceiverTaken,
    /// A sink was given a message while the one before waited, or far too many messages wait.
    #[error("a message was given while others wait")]
    NotReady,
}

impl From<SeqError> for ConnectionError {
    fn from(error: SeqError) -> Self {
        Self::Session(error.to_string())
    }
}

impl From<WireError> for ConnectionError {
    fn from(error: WireError) -> Self {
        Self::Session(error.to_string())
    }
}

/// The kind as a socket would have it; the error itself is the source.
impl From<ConnectionError> for io::Error {
    fn from(error: ConnectionError) -> Self {
        let kind = match &error {
            ConnectionError::ClosedHere => io::ErrorKind::NotConnected,
            ConnectionError::ClosedByPeer { .. } => io::ErrorKind::ConnectionReset,
            ConnectionError::Finished { .. } | ConnectionError::PeerGoesAway { .. } => {
                io::ErrorKind::BrokenPipe
            }
            ConnectionError::Idle { .. } | ConnectionError::Dead { .. } | ConnectionError::Deadline => {
                io::ErrorKind::TimedOut
            }
            ConnectionError::Lane(LaneError::PeerGone(_)) => io::ErrorKind::ConnectionReset,
            ConnectionError::Lane(LaneError::Os { errno, .. }) => io::Error::from_raw_os_error(*errno).kind(),
            ConnectionError::Lane(LaneError::Closed) => io::ErrorKind::NotConnected,
            ConnectionError::Lane(LaneError::Memory(_)) => io::ErrorKind::OutOfMemory,
            ConnectionError::Lane(LaneError::Protocol(_)) | ConnectionError::Session(_) => {
                io::ErrorKind::InvalidData
            }
            ConnectionError::TooLarge { .. } => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        error.error.into()
    }
}

/// A send did not succeed. A message that the lane never took comes back.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://send-error").await?;
/// # let (client, _server) = tokio::try_join!(fabric.connect("zc+mem://send-error"), listener.accept())?;
/// let sender = client.sender();
/// client.close(zc::CloseCode::NORMAL, "done").await;
///
/// let error = sender.send(&b"too late"[..]).await.unwrap_err();
/// assert_eq!(error.delivery(), zc::Delivery::NotSent);
/// assert!(error.is_retryable()); // on another connection
/// assert_eq!(error.into_message().unwrap(), b"too late"[..]);
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("send failed ({delivery:?}): {error}")]
pub struct SendError {
    /// Why.
    pub error: ConnectionError,
    delivery: Delivery,
    message: Option<Box<Message>>,
}

impl SendError {
    pub(crate) fn returned(error: ConnectionError, message: Message) -> Self {
        Self { error, delivery: Delivery::NotSent, message: Some(Box::new(message)) }
    }

    pub(crate) fn after(error: ConnectionError, delivery: Delivery) -> Self {
        Self { error, delivery, message: None }
    }

    /// What is known about the message.
    pub fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// True when sending the message again, on a new connection, can't duplicate it.
    pub fn is_retryable(&self) -> bool {
        self.delivery == Delivery::NotSent && !matches!(self.error, ConnectionError::TooLarge { .. })
    }

    /// The message, if it was never handed over.
    pub fn into_message(self) -> Option<Message> {
        self.message.map(|boxed| *boxed)
    }
}

/// `try_send` did not take the message; it comes back.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://try-send-error").await?;
/// # let (client, _server) = tokio::try_join!(fabric.connect("zc+mem://try-send-error"), listener.accept())?;
/// use zc::TrySendError;
///
/// let sender = client.sender();
/// loop { // until the peer, which receives nothing, allows no more
///     match sender.try_send(vec![0; 64 << 10]) {
///         Ok(()) => {}
///         Err(TrySendError::Full(message)) => break assert_eq!(message.len(), 64 << 10),
///         Err(error) => return Err(error.into()),
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError {
    /// No room now; others may be waiting in front.
    #[error("no room now")]
    Full(Message),
    /// It will never be taken.
    #[error(transparent)]
    Failed(#[from] SendError),
}
