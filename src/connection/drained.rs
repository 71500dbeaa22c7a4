//! Waiting until the peer has everything.

use std::task::{Context, Poll};

use super::core::Core;
use super::error::ConnectionError;
use super::tracked::Ticket;

/// Waits for the acknowledgement of the last message; cancel-safe.
pub(super) struct Drained<'a> {
    pub(super) core: &'a Core,
    pub(super) ticket: Option<Ticket>,
}

impl Drained<'_> {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let mut tx = self.core.lock_tx();
        if tx.is_drained() {
            let all = tx.seq.acked() == tx.seq.last_sent() && !tx.parked_lost;
            let why = if all { None } else { tx.finished.clone() };
            return Poll::Ready(why.map_or(Ok(()), Err));
        }
        if let Some(error) = tx.failed.clone() {
            return Poll::Ready(Err(error));
        }
        let last = tx.seq.last_sent();
        match self.ticket {
            Some(ticket) if ticket.seq == last && last > tx.seq.acked() => {
                tx.tracked.refresh(ticket, cx.waker());
            }
            // Messages that sinks had taken have gone out since, or are about to: any later acknowledgement wakes.
            old => {
                old.into_iter().for_each(|ticket| tx.tracked.remove(ticket));
                self.ticket = Some(tx.tracked.await_ack(last, cx.waker()));
            }
        }
        self.core.watch.need();
        Poll::Pending
    }
}

impl Drop for Drained<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let mut tx = self.core.lock_tx();
            tx.tracked.remove(ticket);
            self.core.rest(&tx);
        }
    }
}
