//! A turn in the queue of senders.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::core::{Core, TxState};
use super::error::ConnectionError;
use super::sender::poll_room;
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

    /// Ready at its turn, with room for `len` bytes; it stays its turn.
    pub(super) fn poll_hold(
        &mut self,
        cx: &mut Context<'_>,
        len: usize,
    ) -> Poll<Result<(), ConnectionError>> {
        let core = self.core;
        let mut tx = core.lock_tx();
        let polled = poll_turn(core, &mut tx, self.place, len);
        match &polled {
            Poll::Pending => core.wait(&mut tx, &mut self.place, cx.waker()),
            Poll::Ready(Ok(())) => tx.queue.hold(&mut self.place),
            Poll::Ready(Err(_)) => core.leave(&mut tx, &mut self.place),
        }
        polled
    }

    /// The same, if it can be done now.
    pub(super) fn try_hold(&mut self, len: usize) -> Result<bool, ConnectionError> {
        let core = self.core;
        let mut tx = core.lock_tx();
        match poll_turn(core, &mut tx, None, len) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) => {
                tx.queue.hold(&mut self.place);
                Ok(true)
            }
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        poll_flush(self.core, &mut self.place, cx)
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
    match tx.refusal() {
        None if !tx.queue.may_go(place) => Poll::Pending,
        Some(error) => Poll::Ready(Err(error)),
        None => poll_room(core, tx, len),
    }
}

/// Ready when nothing is left in the lane's own queue, nor parked in front.
pub(super) fn poll_flush(
    core: &Core,
    place: &mut Option<Place>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), ConnectionError>> {
    let mut tx = core.lock_tx();
    let flushed = match tx.flush_failure() {
        Some(error) => Err(error),
        None => core.flush(&mut tx),
    };
    match flushed {
        Ok(true) if !tx.queue.parked_before(*place) => {
            core.leave(&mut tx, place);
            Poll::Ready(Ok(()))
        }
        Ok(_) => {
            tx.queue.wait_flush(place, cx.waker());
            core.watch.need();
            Poll::Pending
        }
        Err(error) => {
            core.leave(&mut tx, place);
            tx.fail_if_broken(&error);
            core.watch.wake_driver();
            Poll::Ready(Err(error))
        }
    }
}
