//! One chunk's turn.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use zc_core::transport::{Completion, SendToken};

use super::chunks::Chunk;
use crate::connection::core::{Core, TxState};
use crate::connection::error::{ConnectionError, SendError};
use crate::connection::send::Send;
use crate::connection::sender::{hand_over, hand_over_piped, push_out};
use crate::connection::turn::{Turn, poll_turn};

/// A chunk that the lane has.
pub(super) struct Given<'a> {
    pub(super) seq: u64,
    /// The wait for its completion, if one was asked for.
    pub(super) rest: Option<Send<'a>>,
    /// Whether the lane could go on.
    pub(super) pushed: Result<(), ConnectionError>,
}

/// Hands a chunk over in its turn, or does nothing if it is dropped before.
pub(super) struct Give<'a> {
    turn: Turn<'a>,
    chunk: Option<Chunk>,
    completion: Completion,
}

impl<'a> Give<'a> {
    pub(super) fn new(core: &'a Arc<Core>, chunk: Chunk, completion: Completion) -> Self {
        Self { turn: Turn::new(core), chunk: Some(chunk), completion }
    }

    fn hand_over(&mut self, tx: &mut TxState) -> Result<(u64, SendToken), SendError> {
        match self.chunk.take() {
            Some(Chunk::Bytes(bytes)) => hand_over(self.turn.core, tx, bytes.into(), self.completion),
            Some(Chunk::Piped(piped)) => hand_over_piped(self.turn.core, tx, piped, self.completion),
            None => Err(SendError::returned(ConnectionError::NotReady, Default::default())),
        }
    }
}

impl<'a> Future for Give<'a> {
    type Output = Result<Given<'a>, ConnectionError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let core = this.turn.core;
        let len = this.chunk.as_ref().map_or(0, Chunk::len);
        let mut tx = core.lock_tx();
        let Poll::Ready(room) = poll_turn(core, &mut tx, this.turn.place, len) else {
            core.wait(&mut tx, &mut this.turn.place, cx.waker());
            return Poll::Pending;
        };
        core.leave(&mut tx, &mut this.turn.place);
        room?;
        let (seq, token) = this.hand_over(&mut tx).map_err(|error| error.error)?;
        let ticket = match this.completion {
            Completion::Accepted => None,
            Completion::Sent => Some(tx.tracked.await_report(seq, token, cx.waker())),
            Completion::Delivered => Some(tx.tracked.await_ack(seq, cx.waker())),
        };
        let rest = ticket.map(|ticket| {
            core.watch.need();
            Send::tracking(core, this.completion, ticket)
        });
        let pushed = push_out(core, tx).map_err(|error| error.error);
        Poll::Ready(Ok(Given { seq, rest, pushed }))
    }
}
