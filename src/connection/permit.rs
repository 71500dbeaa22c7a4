//! A promise of room.

use zc_core::memory::Message;
use zc_core::transport::Completion;

use super::error::{ConnectionError, SendError};
use super::sender::{hand_over, push_out};
use super::turn::Turn;

/// The right to send one message now, from [`Sender::reserve`](super::Sender::reserve). Dropping it
/// gives the turn to the next sender.
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
/// permit.send(&b"made when there was room for it"[..])?;
/// # Ok(()) }
/// ```
#[must_use = "every other sender of the connection waits while it is held"]
pub struct Permit<'a> {
    turn: Turn<'a>,
    len: usize,
}

impl<'a> Permit<'a> {
    pub(super) fn new(turn: Turn<'a>, len: usize) -> Self {
        Self { turn, len }
    }

    /// The longest message it is good for, bytes.
    pub fn max_len(&self) -> usize {
        self.len
    }

    /// Sends without waiting, and pushes it out.
    ///
    /// # Errors
    /// The message comes back when it is longer than was reserved, or when the connection failed or
    /// finished meanwhile.
    pub fn send(mut self, message: impl Into<Message>) -> Result<(), SendError> {
        let message = message.into();
        let (len, max) = (message.len(), self.len);
        if len > max {
            return Err(SendError::returned(ConnectionError::TooLarge { len, max }, message));
        }
        let core = self.turn.core;
        let mut tx = core.lock_tx();
        if let Some(error) = tx.refusal() {
            return Err(SendError::returned(error, message));
        }
        let sent = hand_over(core, &mut tx, message, Completion::Accepted);
        core.leave(&mut tx, &mut self.turn.place);
        sent.and_then(|_| push_out(core, tx))
    }
}

impl std::fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("len", &self.len).finish_non_exhaustive()
    }
}
