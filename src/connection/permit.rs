//! A promise that a message will be taken.

use std::sync::Arc;

use zc_core::memory::Message;

use super::core::Core;
use super::error::{ConnectionError, SendError};
use super::sender::push_out;
use super::turn::submit;

/// The right to send one message without waiting, from [`Sender::reserve`](super::Sender::reserve).
///
/// It keeps nothing from others, so it can be held for any time, or dropped: if somebody else took the room
/// meanwhile, the message is queued and goes out in its turn.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://permit").await?;
/// # let (client, _server) = tokio::try_join!(fabric.connect("zc+mem://permit"), listener.accept())?;
/// let sender = client.sender();
/// let permit = sender.reserve(100).await?;
/// assert_eq!(permit.max_len(), 100);
/// permit.send(&b"never waits"[..])?;
/// # Ok(()) }
/// ```
#[must_use = "it is good for one message"]
pub struct Permit<'a> {
    core: &'a Arc<Core>,
    len: usize,
}

impl<'a> Permit<'a> {
    pub(super) fn new(core: &'a Arc<Core>, len: usize) -> Self {
        Self { core, len }
    }

    /// The longest message it is good for, bytes.
    pub fn max_len(&self) -> usize {
        self.len
    }

    /// Sends without waiting, and pushes it out if it is its turn. Its place in the order is that of this call.
    ///
    /// # Errors
    /// The message comes back when it is longer than was reserved, when the connection failed or
    /// finished meanwhile, or when a thousand permits too many were used at once.
    pub fn send(self, message: impl Into<Message>) -> Result<(), SendError> {
        let message = message.into();
        let (len, max) = (message.len(), self.len);
        if len > max {
            return Err(SendError::returned(ConnectionError::TooLarge { len, max }, message));
        }
        let mut tx = self.core.lock_tx();
        match submit(self.core, &mut tx, message)? {
            None => push_out(self.core, tx),
            Some(_) => Ok(()),
        }
    }
}

impl std::fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("len", &self.len).finish_non_exhaustive()
    }
}
