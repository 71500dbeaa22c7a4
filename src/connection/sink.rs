//! A sender as a `Sink`.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Sink;
use zc_core::memory::Message;
use zc_core::transport::Completion;
use zc_core::wire::Delivery;

use super::core::{Core, TxState};
use super::error::{ConnectionError, SendError};
use super::sender::{Sender, finish, hand_over, poll_room};
use super::turn::{poll_flush, poll_turn};

/// Ready means that there is room and nobody waits; it keeps nothing from others, so that a sink that
/// is ready and unused holds nobody up. When another sender took the room in between, `start_send` parks
/// the message in the connection's queue, in its turn: at most one per sender that was ready. It is sent
/// when its turn comes, even if this sender is gone by then.
impl Sink<Message> for Sender {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let this = &mut *self;
        let core = this.handle.core();
        let mut tx = core.lock_tx();
        let Poll::Ready(result) = poll_turn(core, &mut tx, this.place, 0) else {
            core.wait(&mut tx, &mut this.place, cx.waker());
            return Poll::Pending;
        };
        core.leave(&mut tx, &mut this.place);
        Poll::Ready(result.map_err(|error| SendError::after(error, Delivery::NotSent)))
    }

    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), SendError> {
        let core = self.core();
        let mut tx = core.lock_tx();
        match poll_turn(core, &mut tx, None, message.len()) {
            Poll::Ready(Ok(())) => hand_over(core, &mut tx, message, Completion::Accepted).map(drop),
            Poll::Ready(Err(error)) => Err(SendError::returned(error, message)),
            Poll::Pending => {
                let (len, max) = (message.len(), core.limits.send_max_message as usize);
                if len > max {
                    return Err(SendError::returned(ConnectionError::TooLarge { len, max }, message));
                }
                core.watch.need();
                let parked = tx.queue.park(message);
                parked.map_err(|message| SendError::returned(ConnectionError::NotReady, message))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let this = &mut *self;
        let core = this.handle.core();
        poll_flush(core, &mut this.place, cx).map_err(|error| {
            let tx = core.lock_tx();
            SendError::after(error, tx.delivery(tx.seq.last_sent()))
        })
    }

    /// Flushes, then says FIN for all senders, and pushes that out too.
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        ready!(self.as_mut().poll_flush(cx))?;
        let core = self.core();
        {
            let mut tx = core.lock_tx();
            finish(core, &mut tx)
                .map_err(|error| SendError::after(error, tx.delivery(tx.seq.last_sent())))?;
        }
        self.poll_flush(cx)
    }
}

impl Core {
    /// Hands over parked messages whose turn it is, as far as there is room.
    pub(super) fn push_parked(&self, tx: &mut TxState) {
        while let Some(len) = tx.queue.first_parked()
            && let Poll::Ready(room) = self.poll_parked(tx, len)
        {
            let Some(message) = tx.queue.unpark() else { return };
            if room.is_err() || hand_over(self, tx, message, Completion::Accepted).is_err() {
                tx.parked_lost = true;
            }
        }
    }

    /// Room for a message that was taken before this side finished.
    fn poll_parked(&self, tx: &mut TxState, len: usize) -> Poll<Result<(), ConnectionError>> {
        let finished = tx.finished.take();
        let room = poll_room(self, tx, len);
        tx.finished = finished;
        room
    }
}
