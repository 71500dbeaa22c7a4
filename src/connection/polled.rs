//! Sending for those who are polled without a future of their own: a `Sink`, a byte stream.
//!
//! Whoever polls may stop at any time and never come back, so nothing of theirs in the queue waits for them: a
//! message is handed over, and a flush is done, without their help.

use std::task::{Context, Poll};

use zc_core::memory::Message;

use super::core::{Core, TxState};
use super::error::{ConnectionError, SendError};
use super::sender::finish;
use super::turn::submit;
use super::waiters::Place;

/// What such a sender has in the queue: at most one message, one flush and one wait for room.
#[derive(Debug, Default)]
pub(super) struct Polled {
    parked: Option<Place>,
    flush: Option<Place>,
    /// Where it waits while too much is parked.
    crowded_out: Option<Place>,
}

impl Polled {
    /// Ready when the message before has been handed over. It says nothing of room: one message is taken without.
    pub(super) fn poll_ready(
        &mut self,
        core: &Core,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ConnectionError>> {
        let mut tx = core.lock_tx();
        if let Some(error) = tx.refusal() {
            return Poll::Ready(Err(error));
        }
        if self.parked.is_some_and(|place| tx.queue.wait_on(place, cx.waker())) {
            return Poll::Pending;
        }
        self.parked = None;
        if tx.queue.may_park(&mut self.crowded_out, cx.waker()) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Takes a message. True if it was handed over, false if it waits for its turn.
    pub(super) fn submit(
        &mut self,
        core: &Core,
        tx: &mut TxState,
        message: Message,
    ) -> Result<bool, SendError> {
        if self.parked.is_some_and(|place| tx.queue.holds(place)) {
            return Err(SendError::returned(ConnectionError::NotReady, message));
        }
        self.parked = submit(core, tx, message)?;
        Ok(self.parked.is_none())
    }

    /// Ready when nothing is left in the lane's own queue, nor parked in front.
    pub(super) fn poll_flush(
        &mut self,
        core: &Core,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ConnectionError>> {
        core.poll_flush(&mut self.flush, cx)
    }

    /// Says FIN for all senders, after all that was taken, and is ready when that is pushed out.
    pub(super) fn poll_finish(
        &mut self,
        core: &Core,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ConnectionError>> {
        loop {
            finish(core, &mut core.lock_tx())?;
            let polled = core.poll_flush(&mut self.flush, cx);
            // A flush that was begun before may lie in front of what others have parked, and FIN is behind that.
            if !matches!(polled, Poll::Ready(Ok(()))) || core.lock_tx().fin_sent {
                return polled;
            }
        }
    }

    /// Nobody polls any more. What was taken still goes out.
    pub(super) fn leave(&mut self, core: &Core) {
        if self.flush.is_some() || self.crowded_out.is_some() {
            let mut tx = core.lock_tx();
            core.leave(&mut tx, &mut self.flush);
            tx.queue.stay_out(&mut self.crowded_out);
        }
    }
}

impl Core {
    /// Ready when nothing is left in the lane's own queue, nor parked in front of `place`, which is taken on
    /// the first call that has to wait.
    pub(super) fn poll_flush(
        &self,
        place: &mut Option<Place>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ConnectionError>> {
        let mut tx = self.lock_tx();
        let flushed = match tx.flush_failure() {
            Some(error) => Err(error),
            None => self.flush(&mut tx),
        };
        let flushed = match flushed {
            Ok(flushed) => flushed,
            Err(error) => {
                self.leave(&mut tx, place);
                tx.fail_if_broken(&error);
                self.watch.wake_driver();
                return Poll::Ready(Err(error));
            }
        };
        let waits = match *place {
            // Done flushes are taken out of the queue.
            Some(place) => tx.queue.wait_on(place, cx.waker()),
            None => !flushed || tx.queue.parked() > 0,
        };
        if waits {
            place.get_or_insert_with(|| tx.queue.wait_flush(cx.waker()));
            self.watch.need();
            return Poll::Pending;
        }
        *place = None;
        self.rest(&tx);
        Poll::Ready(Ok(()))
    }
}
