//! The sending handle.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use futures::Sink;
use zc_core::memory::{Message, PinnedBufMut};
use zc_core::transport::{AllocFailure, Completion, Frame, FrameKind, LaneError, SendReport, SendToken};
use zc_core::wire::SessionRecord;

use super::core::{Core, Tracked, TxState, Wakers, wake_all};
use super::error::{ConnectionError, SendError, TrySendError};
use super::handle::Handle;
use super::waiters::Place;

/// Sends messages. Clones share the connection and take turns: each waits in its own place.
pub struct Sender {
    handle: Handle,
    place: Option<Place>,
}

impl Clone for Sender {
    fn clone(&self) -> Self {
        Self::new(self.handle.clone())
    }
}

impl Sender {
    pub(super) fn new(handle: Handle) -> Self {
        handle.core().senders.fetch_add(1, Ordering::Relaxed);
        Self { handle, place: None }
    }

    fn core(&self) -> &Arc<Core> {
        self.handle.core()
    }

    /// Memory of at least `len` bytes that this connection sends without a copy; waits while the
    /// pool is exhausted. Recycled memory may show this process's earlier messages beyond the filled part.
    ///
    /// # Errors
    /// The pool can never give that much, or the lane is gone.
    pub async fn alloc(&self, len: usize) -> Result<PinnedBufMut, AllocFailure> {
        match self.core().pool.try_alloc(len) {
            Ok(buf) => Ok(buf),
            Err(_) => Ok(self.core().pool.alloc(len).await?),
        }
    }

    /// Sends a message: ready when the lane owns it ([`Completion::Accepted`]).
    ///
    /// Cancel-safe: dropped before it is ready, nothing is sent.
    ///
    /// # Errors
    /// [`SendError::delivery`] says whether the peer may have it; a message never handed over comes back.
    pub fn send(&self, message: impl Into<Message>) -> Send<'_> {
        self.begin(message.into(), Completion::Accepted, true)
    }

    /// Hands a message to the lane without pushing it out: call [`Sender::flush`] after a batch.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn feed(&self, message: impl Into<Message>) -> Send<'_> {
        self.begin(message.into(), Completion::Accepted, false)
    }

    /// Sends a message and waits for `completion`. Dropping the future after the message was handed
    /// over gives up only the waiting.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send_with(&self, message: impl Into<Message>, completion: Completion) -> Send<'_> {
        self.begin(message.into(), completion, true)
    }

    fn begin(&self, message: Message, completion: Completion, flush: bool) -> Send<'_> {
        Send { core: self.core(), message: Some(message), completion, flush, place: None, tracked: None }
    }

    /// Sends if there is room now and nobody waits in front.
    ///
    /// # Errors
    /// The message, in either case.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), TrySendError> {
        let message = message.into();
        let core = self.core();
        let mut tx = core.tx.lock();
        if !tx.queue.may_go(None) {
            return Err(TrySendError::Full(message));
        }
        match poll_room(core, &mut tx, message.len()) {
            Poll::Pending => Err(TrySendError::Full(message)),
            Poll::Ready(Err(error)) => Err(SendError::returned(error, message).into()),
            Poll::Ready(Ok(())) => {
                hand_over(core, &mut tx, message, Completion::Accepted)?;
                core.flush(&mut tx).map_err(|error| fail_after(core, tx, error))?;
                Ok(())
            }
        }
    }

    /// Pushes out what was fed; ready when nothing of it waits in this process's own queue.
    ///
    /// # Errors
    /// The connection failed; what was fed and not acknowledged may or may not have arrived.
    pub async fn flush(&self) -> Result<(), ConnectionError> {
        // One waker per lane: what does not fit at once is pushed out by the driver.
        let core = self.core();
        let mut tx = core.tx.lock();
        if let Some(error) = tx.failed.clone() {
            return Err(error);
        }
        core.flush(&mut tx)
    }

    /// Says that no more messages follow (FIN): the peer's `recv` returns `None` after the last one.
    /// Receiving goes on.
    ///
    /// # Errors
    /// The connection had failed.
    pub async fn finish(&self) -> Result<(), ConnectionError> {
        let core = self.core();
        let mut wakers = Wakers::new();
        let result = finish(core, &mut core.tx.lock(), &mut wakers);
        wake_all(wakers);
        result
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut place = self.place.take();
        let core = self.core();
        let next = core.tx.lock().queue.leave(&mut place);
        if let Some(next) = next {
            next.wake();
        }
        // The last sender's end is the end of the direction; the driver says so.
        if core.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            core.driver.0.wake();
        }
    }
}

/// Sends FIN once.
pub(super) fn finish(core: &Core, tx: &mut TxState, wakers: &mut Wakers) -> Result<(), ConnectionError> {
    if let Some(error) = tx.failed.clone() {
        return Err(error);
    }
    if !tx.fin_sent {
        tx.fin_sent = true;
        tx.finished
            .get_or_insert(ConnectionError::Finished { reason: "this side has finished sending".into() });
        wakers.extend(tx.queue.all());
        let last_seq = tx.seq.last_sent();
        core.push_record(tx, &SessionRecord::Fin { last_seq })?;
        core.flush(tx)?;
    }
    Ok(())
}

/// Room for a message of `len` bytes, for whoever is first in the queue.
fn poll_room(core: &Core, tx: &mut TxState, len: usize) -> Poll<Result<(), ConnectionError>> {
    if let Some(error) = tx.refusal() {
        return Poll::Ready(Err(error));
    }
    let max = core.limits.send_max_message as usize;
    if len > max {
        return Poll::Ready(Err(ConnectionError::TooLarge { len, max }));
    }
    tx.lane.poll_ready(&mut Context::from_waker(&core.tx_waker), len).map_err(|error| {
        // The driver finds the same error and ends the connection for the others.
        core.driver.0.wake();
        ConnectionError::from(error)
    })
}

/// Gives the message to the lane; its number, and its token if a completion was asked for.
fn hand_over(
    core: &Core,
    tx: &mut TxState,
    message: Message,
    completion: Completion,
) -> Result<(u64, Option<SendToken>), SendError> {
    let seq = match tx.seq.assign() {
        Ok(seq) => seq,
        Err(error) => return Err(SendError::returned(error.into(), message)),
    };
    let ack = completion == Completion::Delivered;
    let report = completion == Completion::Sent;
    core.ledger.moved(message.len());
    let frame = Frame { kind: FrameKind::Data, ack, seq, payload: message };
    match tx.lane.start_send(frame, report) {
        Ok(token) => Ok((seq, report.then_some(token))),
        // The number is spent and would leave a gap: a lane that refuses after `poll_ready` has failed.
        Err(rejected) => {
            let error = ConnectionError::from(rejected.error);
            tx.failed.get_or_insert(error.clone());
            core.driver.0.wake();
            Err(SendError::returned(error, rejected.frame.payload))
        }
    }
}

fn fail_after(core: &Core, tx: parking_lot::MutexGuard<'_, TxState>, error: ConnectionError) -> SendError {
    let delivery = tx.delivery(tx.seq.last_sent());
    drop(tx);
    core.fail_sending(error.clone());
    SendError::after(error, delivery)
}

/// A send under way.
#[must_use = "futures do nothing unless polled"]
pub struct Send<'a> {
    core: &'a Arc<Core>,
    message: Option<Message>,
    completion: Completion,
    flush: bool,
    place: Option<Place>,
    tracked: Option<u64>,
}

impl Send<'_> {
    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Some(len) = self.message.as_ref().map(Message::len) else { return Poll::Ready(Ok(())) };
        let core = self.core;
        let mut tx = core.tx.lock();
        let room = match tx.refusal() {
            None if !tx.queue.may_go(self.place) => Poll::Pending,
            _ => poll_room(core, &mut tx, len),
        };
        let Poll::Ready(room) = room else {
            tx.queue.wait(&mut self.place, cx.waker());
            return Poll::Pending;
        };
        let next = tx.queue.leave(&mut self.place);
        let Some(message) = self.message.take() else { return Poll::Ready(Ok(())) };
        let result = match room {
            Err(error) => Err(SendError::returned(error, message)),
            Ok(()) => self.commit(tx, message, cx),
        };
        if let Some(next) = next {
            next.wake();
        }
        Poll::Ready(result)
    }

    fn commit(
        &mut self,
        mut tx: parking_lot::MutexGuard<'_, TxState>,
        message: Message,
        cx: &Context<'_>,
    ) -> Result<(), SendError> {
        let (seq, token) = hand_over(self.core, &mut tx, message, self.completion)?;
        if self.completion != Completion::Accepted {
            tx.tracked.push_back(Tracked { seq, token, report: None, waker: cx.waker().clone() });
            self.tracked = Some(seq);
        }
        if self.flush
            && let Err(error) = self.core.flush(&mut tx)
        {
            return Err(fail_after(self.core, tx, error));
        }
        Ok(())
    }

    fn poll_completed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Some(seq) = self.tracked else { return Poll::Ready(Ok(())) };
        let mut wakers = Wakers::new();
        let mut tx = self.core.tx.lock();
        if tx.failed.is_none()
            && let Err(error) = tx.collect(&mut Context::from_waker(&self.core.tx_waker), &mut wakers)
        {
            tx.fail(error, &mut wakers);
        }
        let lost = tx.tracked.iter().any(|t| t.seq == seq && t.report == Some(SendReport::Failed));
        if lost && tx.failed.is_none() {
            tx.fail(LaneError::Closed.into(), &mut wakers);
            self.core.driver.0.wake();
        }
        let acked = tx.seq.acked();
        let failed = tx.failed.clone();
        let at = tx.tracked.binary_search_by_key(&seq, |tracked| tracked.seq);
        let done = match (at, self.completion) {
            (Ok(at), Completion::Sent) => {
                matches!(tx.tracked[at].report, Some(SendReport::Sent | SendReport::SentCopied))
            }
            _ => seq <= acked,
        };
        let result = if done {
            Poll::Ready(Ok(()))
        } else if let Some(error) = failed {
            Poll::Ready(Err(SendError::after(error, tx.delivery(seq))))
        } else {
            if let Ok(at) = at {
                tx.tracked[at].waker.clone_from(cx.waker());
            }
            Poll::Pending
        };
        if result.is_ready() {
            self.untrack(&mut tx);
        }
        drop(tx);
        wake_all(wakers);
        result
    }

    fn untrack(&mut self, tx: &mut TxState) {
        if let Some(seq) = self.tracked.take()
            && let Ok(at) = tx.tracked.binary_search_by_key(&seq, |tracked| tracked.seq)
        {
            tx.tracked.remove(at);
        }
    }
}

impl Future for Send<'_> {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(self.poll_accepted(cx))?;
        self.poll_completed(cx)
    }
}

impl Drop for Send<'_> {
    fn drop(&mut self) {
        if self.place.is_none() && self.tracked.is_none() {
            return;
        }
        let mut tx = self.core.tx.lock();
        self.untrack(&mut tx);
        let next = tx.queue.leave(&mut self.place);
        drop(tx);
        if let Some(next) = next {
            next.wake();
        }
    }
}

impl Sink<Message> for Sender {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let this = &mut *self;
        let core = this.handle.core();
        let mut tx = core.tx.lock();
        let room = match tx.refusal() {
            None if !tx.queue.may_go(this.place) => Poll::Pending,
            _ => poll_room(core, &mut tx, 0),
        };
        match room {
            Poll::Pending => {
                tx.queue.wait(&mut this.place, cx.waker());
                Poll::Pending
            }
            Poll::Ready(result) => {
                let next = tx.queue.leave(&mut this.place);
                drop(tx);
                if let Some(next) = next {
                    next.wake();
                }
                Poll::Ready(result.map_err(|error| SendError::after(error, zc_core::wire::Delivery::NotSent)))
            }
        }
    }

    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), SendError> {
        let core = self.core();
        let mut tx = core.tx.lock();
        if let Some(error) = tx.refusal() {
            return Err(SendError::returned(error, message));
        }
        let (len, max) = (message.len(), core.limits.send_max_message as usize);
        if len > max {
            return Err(SendError::returned(ConnectionError::TooLarge { len, max }, message));
        }
        hand_over(core, &mut tx, message, Completion::Accepted).map(drop)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let core = self.core();
        let mut tx = core.tx.lock();
        if let Some(error) = tx.failed.clone() {
            return Poll::Ready(Err(SendError::after(error, tx.delivery(tx.seq.last_sent()))));
        }
        Poll::Ready(match core.flush(&mut tx) {
            Ok(()) => Ok(()),
            Err(error) => Err(fail_after(core, tx, error)),
        })
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let core = self.core();
        let mut wakers = Wakers::new();
        let mut tx = core.tx.lock();
        let result = finish(core, &mut tx, &mut wakers)
            .map_err(|error| SendError::after(error, tx.delivery(tx.seq.last_sent())));
        drop(tx);
        wake_all(wakers);
        Poll::Ready(result)
    }
}
