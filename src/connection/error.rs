//! How a connection ends, and what that means for a message.

use std::time::Duration;

use zc_core::memory::Message;
use zc_core::transport::LaneError;
use zc_core::wire::{CloseCode, Delivery, SeqError, WireError};

/// Why a connection carries nothing more. Every later operation returns the same.
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
    /// The peer takes no further messages (GOAWAY), or this side has finished sending.
    #[error("no further messages are taken: {reason}")]
    Finished {
        /// Who said so, and why.
        reason: String,
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
    /// A drain did not finish in time.
    #[error("the deadline has passed")]
    Deadline,
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

/// A send did not succeed. A message that the lane never took comes back.
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
