//! What becomes of the sending half as a whole: refusals, failure, what is known to be delivered.

use std::task::{Context, Poll};

use zc_core::wire::Delivery;

use super::core::TxState;
use super::error::ConnectionError;

impl TxState {
    /// Why no data can be sent, if so.
    pub(super) fn refusal(&self) -> Option<ConnectionError> {
        match (&self.failed, &self.finished) {
            (None, None) => None,
            (Some(error), _) | (None, Some(error)) => Some(error.clone()),
        }
    }

    pub(super) fn fail(&mut self, error: ConnectionError) {
        self.failed.get_or_insert(error);
        self.drop_parked();
        self.queue.wake_all();
        self.allocs.wake_all();
        self.tracked.wake_all();
        self.remote.end();
    }

    /// What sinks took can't be sent any more.
    pub(super) fn drop_parked(&mut self) {
        self.parked_lost |= self.queue.parked() > 0;
        self.queue.drop_parked();
    }

    /// Why what was fed will not all go out, if so.
    pub(super) fn flush_failure(&self) -> Option<ConnectionError> {
        self.failed.clone().or_else(|| self.finished.clone().filter(|_| self.parked_lost))
    }

    /// No more data; the first reason stays.
    pub(super) fn finish(&mut self, why: ConnectionError) {
        self.finished.get_or_insert(why);
        self.queue.wake_all();
    }

    pub(super) fn wake_delivered(&mut self) {
        self.tracked.acknowledged(self.seq.acked());
        if self.cut.is_some() {
            self.tracked.wake_all();
        }
    }

    /// Whether the peer has queued everything it ever will.
    pub(super) fn is_drained(&self) -> bool {
        self.queue.parked() == 0 && self.seq.acked() >= self.cut.unwrap_or(u64::MAX).min(self.seq.last_sent())
    }

    /// Collects completions that the lane has.
    pub(super) fn collect(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        while (self.tracked.awaits_reports() || self.remote.awaits_reports())
            && let Poll::Ready(result) = self.lane.poll_completions(cx, &mut self.reports)
        {
            result?;
            if self.reports.is_empty() {
                break;
            }
            for (token, report) in self.reports.drain() {
                self.tracked.reported(token, report);
                self.remote.reported(token);
            }
        }
        Ok(())
    }

    /// A lane that failed to flush is broken for everyone.
    pub(super) fn fail_if_broken(&mut self, error: &ConnectionError) {
        if self.failed.is_none() && matches!(error, ConnectionError::Lane(_)) {
            self.fail(error.clone());
        }
    }

    /// What a failed send can say about message `seq`.
    pub(super) fn delivery(&self, seq: u64) -> Delivery {
        self.seq.delivery_of(seq)
    }

    /// What is known about everything that was ever taken.
    pub(super) fn delivery_of_all(&self) -> Delivery {
        match (self.seq.last_sent(), self.parked_lost) {
            (0, _) => Delivery::NotSent,
            (last, false) if self.seq.acked() == last => Delivery::Delivered,
            _ => Delivery::Unknown,
        }
    }
}
