//! A turn in the queue of senders.

use std::sync::Arc;
use std::task::{Context, Poll};

use zc_core::memory::Message;
use zc_core::transport::Completion;

use super::core::{Core, TxState};
use super::error::{ConnectionError, SendError};
use super::sender::hand_over;
use super::waiters::Place;

/// A place in the queue, given up when it is dropped.
pub(super) struct Turn<'a> {
    pub(super) core: &'a Arc<Core>,
    pub(super) place: Option<Place>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(core: &'a Arc<Core>) -> Self {
        Self { core, place: None }
    }

    /// Ready at its turn, with room for `len` bytes.
    pub(super) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        len: usize,
    ) -> Poll<Result<(), ConnectionError>> {
        let mut tx = self.core.lock_tx();
        let polled = poll_turn(self.core, &mut tx, self.place, len);
        match polled.is_pending() {
            true => self.core.wait(&mut tx, &mut self.place, cx.waker()),
            false => self.core.leave(&mut tx, &mut self.place),
        }
        polled
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.place.is_some() {
            self.core.leave(&mut self.core.lock_tx(), &mut self.place);
        }
    }
}

/// Ready at the turn of `place`, with room for `len` bytes.
pub(super) fn poll_turn(
    core: &Core,
    tx: &mut TxState,
    place: Option<Place>,
    len: usize,
) -> Poll<Result<(), ConnectionError>> {
    if let Some(error) = tx.refusal() {
        return Poll::Ready(Err(error));
    }
    let max = core.limits.send_max_message as usize;
    if len > max {
        return Poll::Ready(Err(ConnectionError::TooLarge { len, max }));
    }
    if !tx.queue.may_go(place) {
        return Poll::Pending;
    }
    core.poll_room(tx, len)
}

/// Takes a message whose sender does not wait: hands it over if that can be done now, else queues it for
/// the driver; its place then.
pub(super) fn submit(core: &Core, tx: &mut TxState, message: Message) -> Result<Option<Place>, SendError> {
    match poll_turn(core, tx, None, message.len()) {
        Poll::Ready(Ok(())) => hand_over(core, tx, message, Completion::Accepted).map(|_| None),
        Poll::Ready(Err(error)) => Err(SendError::returned(error, message)),
        Poll::Pending => {
            core.watch.need();
            let parked = tx.queue.park(message);
            parked.map(Some).map_err(|message| SendError::returned(ConnectionError::NotReady, message))
        }
    }
}

impl Core {
    /// Room for a message of `len` bytes, for whoever is first in the queue.
    pub(super) fn poll_room(&self, tx: &mut TxState, len: usize) -> Poll<Result<(), ConnectionError>> {
        tx.lane.poll_ready(&mut Context::from_waker(&self.tx_waker), len).map_err(|error| {
            // The driver finds the same error and ends the connection for the others.
            self.watch.wake_driver();
            error.into()
        })
    }

    /// Hands over parked messages whose turn it is, as far as there is room.
    pub(super) fn push_parked(&self, tx: &mut TxState) {
        while let Some(len) = tx.queue.first_parked()
            && let Poll::Ready(room) = self.poll_room(tx, len)
        {
            let Some(message) = tx.queue.unpark() else { return };
            if let Err(error) = room {
                // It was taken, and nobody can be told that it does not go out: no later one does either.
                tx.parked_lost = true;
                return tx.fail(error);
            }
            tx.parked_lost |= hand_over(self, tx, message, Completion::Accepted).is_err();
        }
    }
}
