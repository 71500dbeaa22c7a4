//! A sender as a `Sink`.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Sink;
use zc_core::memory::Message;
use zc_core::wire::Delivery;

use super::error::SendError;
use super::sender::Sender;

/// Each sender is good for one message that waits for its turn and for room; it is ready again when that was
/// handed over. So a sink that is ready, or was polled and left alone, keeps nothing from others. A message that
/// waits is sent when its turn comes, even if this sender is gone by then.
impl Sink<Message> for Sender {
    type Error = SendError;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let (core, polled) = self.get_mut().parts();
        polled.poll_ready(core, cx).map_err(|error| SendError::after(error, Delivery::NotSent))
    }

    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), SendError> {
        let (core, polled) = self.get_mut().parts();
        polled.submit(core, &mut core.lock_tx(), message).map(drop)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let (core, polled) = self.get_mut().parts();
        let flushed = polled.poll_flush(core, cx);
        flushed.map_err(|error| SendError::after(error, core.lock_tx().delivery_of_all()))
    }

    /// Says FIN for all senders, after all that was taken, and pushes it out.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let (core, polled) = self.get_mut().parts();
        let finished = polled.poll_finish(core, cx);
        finished.map_err(|error| SendError::after(error, core.lock_tx().delivery_of_all()))
    }
}
