//! The future of one send.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use zc_core::memory::Message;
use zc_core::transport::{Completion, LaneError, SendReport, Timer};

use super::core::{Core, TxState};
use super::error::{ConnectionError, SendError};
use super::sender::{hand_over, push_out};
use super::tracked::Ticket;
use super::turn::{Turn, poll_turn};
use super::wake::Locked;
use crate::time::later;

/// A send under way. [`Send::timeout`] bounds it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://send").await?;
/// # let (client, _server) = tokio::try_join!(fabric.connect("zc+mem://send"), listener.accept())?;
/// use std::time::Duration;
/// use zc::Completion;
///
/// let sender = client.sender();
/// sender.send(&b"soon"[..]).timeout(Duration::from_millis(500)).await?;
/// sender.send_with(&b"for sure"[..], Completion::Delivered).timeout(Duration::from_secs(5)).await?;
/// # Ok(()) }
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct Send<'a> {
    turn: Turn<'a>,
    message: Option<Message>,
    completion: Completion,
    flush: bool,
    tracked: Option<Ticket>,
    deadline: Deadline,
}

enum Deadline {
    Never,
    After(Duration),
    /// Made when the send had to wait.
    At(Box<dyn Timer>),
}

impl<'a> Send<'a> {
    pub(super) fn new(core: &'a Arc<Core>, message: Message, completion: Completion, flush: bool) -> Self {
        let turn = Turn::new(core);
        Self { turn, message: Some(message), completion, flush, tracked: None, deadline: Deadline::Never }
    }

    /// The rest of a send: the wait for `completion` of a message that was handed over.
    pub(super) fn tracking(core: &'a Arc<Core>, completion: Completion, ticket: Ticket) -> Self {
        let turn = Turn::new(core);
        let deadline = Deadline::Never;
        Self { turn, message: None, completion, flush: false, tracked: Some(ticket), deadline }
    }

    /// Gives up `after` this time, counted from when the send first has to wait. Before the message was
    /// handed over it comes back, not sent; after that [`SendError::delivery`] says what is known, and
    /// the message may still arrive. The error is [`ConnectionError::Deadline`]; the connection goes on.
    pub fn timeout(mut self, after: Duration) -> Self {
        self.deadline = Deadline::After(after);
        self
    }

    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Some(len) = self.message.as_ref().map(Message::len) else { return Poll::Ready(Ok(())) };
        let core = self.turn.core;
        let mut tx = core.lock_tx();
        let Poll::Ready(room) = poll_turn(core, &mut tx, self.turn.place, len) else {
            core.wait(&mut tx, &mut self.turn.place, cx.waker());
            return Poll::Pending;
        };
        core.leave(&mut tx, &mut self.turn.place);
        let Some(message) = self.message.take() else { return Poll::Ready(Ok(())) };
        Poll::Ready(match room {
            Err(error) => Err(SendError::returned(error, message)),
            Ok(()) => self.commit(tx, message, cx),
        })
    }

    fn commit(
        &mut self,
        mut tx: Locked<'_, TxState>,
        message: Message,
        cx: &Context<'_>,
    ) -> Result<(), SendError> {
        let core = self.turn.core;
        let (seq, token) = hand_over(core, &mut tx, message, self.completion)?;
        self.tracked = match self.completion {
            Completion::Accepted => None,
            Completion::Sent => Some(tx.tracked.await_report(seq, token, cx.waker())),
            Completion::Delivered => Some(tx.tracked.await_ack(seq, cx.waker())),
        };
        if self.tracked.is_some() {
            core.watch.need();
        }
        if self.flush { push_out(core, tx) } else { Ok(()) }
    }

    fn poll_completed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Some(ticket) = self.tracked else { return Poll::Ready(Ok(())) };
        let core = self.turn.core;
        let mut tx = core.lock_tx();
        if self.completion == Completion::Sent
            && tx.failed.is_none()
            && let Err(error) = tx.collect(&mut Context::from_waker(&core.tx_waker))
        {
            tx.fail(error);
            core.watch.wake_driver();
        }
        let done = match tx.tracked.report(ticket) {
            Some(SendReport::Sent | SendReport::SentCopied) => true,
            Some(_) if tx.failed.is_none() => {
                tx.fail(LaneError::Closed.into());
                core.watch.wake_driver();
                false
            }
            _ => self.completion == Completion::Delivered && ticket.seq <= tx.seq.acked(),
        };
        let result = if done {
            Ok(())
        } else if let Some(error) = tx.failed.clone() {
            Err(SendError::after(error, tx.delivery(ticket.seq)))
        } else if tx.cut.is_some_and(|cut| ticket.seq > cut)
            && let Some(error) = tx.finished.clone()
        {
            Err(SendError::after(error, tx.delivery(ticket.seq)))
        } else {
            tx.tracked.refresh(ticket, cx.waker());
            return Poll::Pending;
        };
        self.untrack(&mut tx);
        Poll::Ready(result)
    }

    fn untrack(&mut self, tx: &mut TxState) {
        if let Some(ticket) = self.tracked.take() {
            tx.tracked.remove(ticket);
            self.turn.core.rest(tx);
        }
    }

    /// Ready, with what is to be said, when the time is over.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionError> {
        if let Deadline::After(after) = self.deadline {
            let reactor = &self.turn.core.reactor;
            match reactor.timer() {
                Ok(mut timer) => {
                    timer.reset(later(reactor.now(), after));
                    self.deadline = Deadline::At(timer);
                }
                Err(error) => return Poll::Ready(ConnectionError::NoRuntime(error.to_string())),
            }
        }
        let Deadline::At(timer) = &mut self.deadline else { return Poll::Pending };
        timer.poll_expired(cx).map(|()| ConnectionError::Deadline)
    }

    fn give_up(&mut self, error: ConnectionError) -> SendError {
        let core = self.turn.core;
        let mut tx = core.lock_tx();
        core.leave(&mut tx, &mut self.turn.place);
        let delivery = self.tracked.map(|ticket| tx.delivery(ticket.seq));
        self.untrack(&mut tx);
        drop(tx);
        match (self.message.take(), delivery) {
            (Some(message), _) => SendError::returned(error, message),
            (None, delivery) => SendError::after(error, delivery.unwrap_or(zc_core::wire::Delivery::Unknown)),
        }
    }
}

impl Future for Send<'_> {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = match self.poll_accepted(cx) {
            Poll::Ready(Ok(())) => self.poll_completed(cx),
            other => other,
        };
        if polled.is_ready() || matches!(self.deadline, Deadline::Never) {
            return polled;
        }
        let error = ready!(self.poll_deadline(cx));
        Poll::Ready(Err(self.give_up(error)))
    }
}

impl Drop for Send<'_> {
    fn drop(&mut self) {
        if self.tracked.is_some() {
            let core = self.turn.core;
            self.untrack(&mut core.lock_tx());
        }
    }
}
