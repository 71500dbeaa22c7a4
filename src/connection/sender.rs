//! The sending handle.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use zc_core::memory::{AllocError, Message, PinnedBufMut};
use zc_core::transport::{AllocFailure, Completion, Frame, FrameKind, Piped, PipedFrame, SendToken};
use zc_core::wire::{Delivery, SessionRecord};

use super::core::{Core, TxState};
use super::error::{ConnectionError, SendError, TrySendError};
use super::handle::Handle;
use super::lane_alloc::LaneAlloc;
use super::permit::Permit;
use super::polled::Polled;
use super::send::Send;
use super::turn::{Turn, poll_turn};
use super::wake::Locked;

/// Sends messages. Clones share the connection and take turns: each waits in its own place.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://sender").await?;
/// # let (mut client, _server) = tokio::try_join!(fabric.connect("zc+mem://sender"), listener.accept())?;
/// let (tx, _rx) = client.split();
/// let other = tx.clone(); // takes turns with the first
/// let task = tokio::spawn(async move { other.send(&b"from a task"[..]).await });
///
/// let mut buf = tx.alloc(64).await?; // memory that this connection sends without a copy
/// buf.put_slice(b"a batch");
/// tx.feed(buf.freeze()).await?;
/// tx.feed(&b"of two"[..]).await?;
/// tx.flush().await?;
/// task.await??;
/// # Ok(()) }
/// ```
pub struct Sender {
    handle: Handle,
    polled: Polled,
}

impl Clone for Sender {
    fn clone(&self) -> Self {
        Self::new(self.handle.clone())
    }
}

impl Sender {
    pub(super) fn new(handle: Handle) -> Self {
        handle.core().senders.fetch_add(1, Ordering::Relaxed);
        Self { handle, polled: Polled::default() }
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        self.handle.core()
    }

    /// Both, since what is polled changes while the core is used.
    pub(super) fn parts(&mut self) -> (&Arc<Core>, &mut Polled) {
        (self.handle.core(), &mut self.polled)
    }

    /// Memory of at least `len` bytes that this connection sends without a copy; waits while the
    /// pool is exhausted. Recycled memory may show this process's earlier messages beyond the filled part.
    ///
    /// # Errors
    /// The pool can never give that much, or the lane is gone.
    pub async fn alloc(&self, len: usize) -> Result<PinnedBufMut, AllocFailure> {
        if self.core().own_memory {
            let mut alloc = LaneAlloc::new(self.core());
            match poll_fn(|cx| alloc.poll(cx, len)).await {
                // More than the lane has in one piece, but it sends that: with a copy.
                Err(AllocFailure::Pool(AllocError::TooLarge { .. }))
                    if len <= self.core().limits.send_max_message as usize => {}
                done => return done,
            }
        }
        Ok(self.core().pool.alloc(len).await?)
    }

    /// Sends a message: ready when the lane owns it ([`Completion::Accepted`]).
    ///
    /// Cancel-safe: dropped before it is ready, nothing is sent.
    ///
    /// # Errors
    /// [`SendError::delivery`] says whether the peer may have it; a message never handed over comes back.
    pub fn send(&self, message: impl Into<Message>) -> Send<'_> {
        Send::new(self.core(), message.into(), Completion::Accepted, true)
    }

    /// Hands a message to the lane without pushing it out: call [`Sender::flush`] after a batch.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn feed(&self, message: impl Into<Message>) -> Send<'_> {
        Send::new(self.core(), message.into(), Completion::Accepted, false)
    }

    /// Sends a message and waits for `completion`. Dropping the future after the message was handed
    /// over gives up only the waiting.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send_with(&self, message: impl Into<Message>, completion: Completion) -> Send<'_> {
        Send::new(self.core(), message.into(), completion, true)
    }

    /// Sends if there is room now and nobody waits in front.
    ///
    /// # Errors
    /// The message, in either case.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), TrySendError> {
        let message = message.into();
        let core = self.core();
        let mut tx = core.lock_tx();
        match poll_turn(core, &mut tx, None, message.len()) {
            Poll::Pending => Err(TrySendError::Full(message)),
            Poll::Ready(Err(error)) => Err(SendError::returned(error, message).into()),
            Poll::Ready(Ok(())) => {
                hand_over(core, &mut tx, message, Completion::Accepted)?;
                push_out(core, tx)?;
                Ok(())
            }
        }
    }

    /// Waits for this sender's turn and for room, before the message is made: [`Permit::send`] then sends one
    /// of up to `len` bytes without waiting.
    ///
    /// Cancel-safe: dropped before it is ready, its place goes to the next.
    ///
    /// # Errors
    /// No message can be sent any more, or none of `len` bytes.
    pub async fn reserve(&self, len: usize) -> Result<Permit<'_>, ConnectionError> {
        let mut turn = Turn::new(self.core());
        poll_fn(|cx| turn.poll_room(cx, len)).await?;
        Ok(Permit::new(self.core(), len))
    }

    /// Like [`Sender::reserve`], if nobody waits in front and there is room now; else `None`.
    ///
    /// # Errors
    /// As there.
    pub fn try_reserve(&self, len: usize) -> Result<Option<Permit<'_>>, ConnectionError> {
        let core = self.core();
        match poll_turn(core, &mut core.lock_tx(), None, len) {
            Poll::Pending => Ok(None),
            Poll::Ready(room) => room.map(|()| Some(Permit::new(core, len))),
        }
    }

    /// Pushes out what was fed: ready when all of it has left this process's own queue.
    ///
    /// Waits in its own place, as a send does, so that others who go on sending can't hold it up.
    ///
    /// # Errors
    /// The connection failed; what was fed and not acknowledged may or may not have arrived.
    pub async fn flush(&self) -> Result<(), ConnectionError> {
        let mut turn = Turn::new(self.core());
        poll_fn(|cx| turn.core.poll_flush(&mut turn.place, cx)).await
    }

    /// Says that no more messages follow (FIN): the peer's `recv` returns `None` after the last one.
    /// Receiving goes on. Senders that still wait get their message back.
    ///
    /// # Errors
    /// The connection had failed.
    pub async fn finish(&self) -> Result<(), ConnectionError> {
        let core = self.core();
        finish(core, &mut core.lock_tx())
    }

    /// See [`Connection::closed`](super::Connection::closed).
    pub fn closed(&self) -> impl Future<Output = ConnectionError> + std::marker::Send + use<> {
        self.core().closed()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let (core, polled) = self.parts();
        polled.leave(core);
        // The last sender's end is the end of the direction; the driver says so.
        if core.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            core.watch.wake_driver();
        }
    }
}

/// Takes no more messages, and sends FIN once what sinks had taken is out.
pub(super) fn finish(core: &Core, tx: &mut TxState) -> Result<(), ConnectionError> {
    if let Some(error) = tx.failed.clone() {
        return Err(error);
    }
    tx.finish(ConnectionError::Finished { reason: "this side has finished sending".into() });
    if !tx.fin_sent && tx.queue.parked() == 0 {
        tx.fin_sent = true;
        let last_seq = tx.seq.last_sent();
        core.push_record(tx, &SessionRecord::Fin { last_seq })?;
        core.flush(tx)?;
    }
    Ok(())
}

/// Gives the message to the lane; its number, and its token if a completion was asked for.
#[inline]
pub(super) fn hand_over(
    core: &Core,
    tx: &mut TxState,
    message: Message,
    completion: Completion,
) -> Result<(u64, SendToken), SendError> {
    let seq = match tx.seq.assign() {
        Ok(seq) => seq,
        Err(error) => return Err(SendError::returned(error.into(), message)),
    };
    let len = message.len();
    let ack = completion == Completion::Delivered;
    let frame = Frame { kind: FrameKind::Data, ack, seq, payload: message };
    match tx.lane.start_send(frame, completion == Completion::Sent) {
        Ok(token) => {
            tx.sent_bytes += len as u64;
            core.ledger.moved(len);
            Ok((seq, token))
        }
        // The number is spent and would leave a gap: a lane that refuses after `poll_ready` has failed.
        Err(rejected) => {
            let error = ConnectionError::from(rejected.error);
            tx.fail(error.clone());
            core.watch.wake_driver();
            Err(SendError::returned(error, rejected.frame.payload))
        }
    }
}

/// The same for what waits in a pipe. It does not come back: its file can be read again.
pub(super) fn hand_over_piped(
    core: &Core,
    tx: &mut TxState,
    payload: Piped,
    completion: Completion,
) -> Result<(u64, SendToken), SendError> {
    let not_sent = |error| SendError::after(error, Delivery::NotSent);
    let seq = tx.seq.assign().map_err(|error| not_sent(error.into()))?;
    let len = payload.len();
    let frame = PipedFrame { ack: completion == Completion::Delivered, seq, payload };
    match tx.lane.start_send_piped(frame, completion == Completion::Sent) {
        Ok(token) => {
            tx.sent_bytes += len as u64;
            core.ledger.moved(len);
            Ok((seq, token))
        }
        // As above.
        Err(rejected) => {
            let error = ConnectionError::from(rejected.error);
            tx.fail(error.clone());
            core.watch.wake_driver();
            Err(not_sent(error))
        }
    }
}

/// Rings the doorbell after a message was handed over.
#[inline]
pub(super) fn push_out(core: &Core, mut tx: Locked<'_, TxState>) -> Result<(), SendError> {
    core.flush(&mut tx).map(drop).map_err(|error| {
        let delivery = tx.delivery(tx.seq.last_sent());
        drop(tx);
        core.fail_sending(error.clone());
        SendError::after(error, delivery)
    })
}
