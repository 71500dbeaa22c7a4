//! The receiving handle.

use std::hint::spin_loop;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures::Stream;
use futures::future::poll_fn;
use zc_core::memory::Message;
use zc_core::transport::Caps;

use super::core::{Core, READS_PER_TURN, RxState};
use super::error::ConnectionError;
use super::handle::Handle;
use super::ingest::Look;
use super::waiting::Waiting;
use crate::options::Polling;

/// Looks of a receiver that does not sleep before other tasks get their turn, where a look is no system call: about a
/// microsecond, several times as long as it takes to come round again.
const LOOKS_PER_TURN: u8 = 32;

/// Receives messages, in order. There is one per connection.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://receiver").await?;
/// # let (client, mut server) = tokio::try_join!(fabric.connect("zc+mem://receiver"), listener.accept())?;
/// let (tx, mut rx) = server.split();
/// client.send(&b"hello"[..]).await?;
/// client.sender().finish().await?;
/// while let Some(message) = rx.recv().await? {
///     println!("{} bytes, lent until dropped", message.len());
/// }
/// # Ok(()) }
/// ```
pub struct Receiver {
    handle: Handle,
    waiting: Waiting,
    /// So often in a turn, if it does not sleep.
    looks: u8,
    /// The last poll found nothing.
    pending: bool,
}

impl Receiver {
    pub(super) fn new(handle: Handle, polling: Polling, caps: &Caps) -> Self {
        let looks = if caps.user_polled { LOOKS_PER_TURN } else { 1 };
        Self { handle, waiting: Waiting::new(polling), looks, pending: false }
    }

    /// The next message; `None` once the peer has finished sending and everything was received.
    /// The message is lent: dropping it gives its memory back.
    ///
    /// Cancel-safe: a dropped future loses no message.
    ///
    /// A task whose messages are always there gives way now and then, as with tokio's own sockets and channels
    /// (`tokio::task::coop`): a poll may be pending although a message is there. [`Receiver::try_recv`] never is.
    ///
    /// # Errors
    /// Why the connection ended before the peer finished. What had arrived is returned first.
    pub async fn recv(&mut self) -> Result<Option<Message>, ConnectionError> {
        let guard = Unregister(self);
        // Who waits for this alone has done what there was to do with the last message.
        poll_fn(|cx| guard.0.poll_looking(cx, false)).await
    }

    /// The next message if it has arrived.
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub fn try_recv(&mut self) -> Result<Option<Message>, ConnectionError> {
        let core = self.handle.core();
        let mut rx = core.lock_rx();
        if rx.arrived.inbox.is_empty() {
            let _ = core.poll_ingest(&mut rx, Look::Once);
        }
        match next(core, &mut rx) {
            Some(received) => {
                self.waiting.forget();
                received
            }
            None => {
                core.watch.leave(rx.arrived.eager);
                Ok(None)
            }
        }
    }

    /// Like [`Receiver::recv`], for code that polls.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, ConnectionError>> {
        self.poll_looking(cx, !self.pending)
    }

    fn poll_looking(
        &mut self,
        cx: &mut Context<'_>,
        fresh: bool,
    ) -> Poll<Result<Option<Message>, ConnectionError>> {
        let polled = self.poll_next_message(cx, fresh);
        self.pending = polled.is_pending();
        polled
    }

    /// When fresh, others may have something to do because of the last message: they come first.
    fn poll_next_message(
        &mut self,
        cx: &mut Context<'_>,
        fresh: bool,
    ) -> Poll<Result<Option<Message>, ConnectionError>> {
        let core = self.handle.core();
        ready!(core.reactor.poll_proceed(cx));
        let mut rx = core.lock_rx();
        let mut has_read = false;
        for _ in 0..READS_PER_TURN {
            if let Some(received) = next(core, &mut rx) {
                self.waiting.served(Instant::now);
                return Poll::Ready(received);
            }
            if self.waiting.spins() {
                let looks = if fresh { 1 } else { self.looks };
                let found = (0..looks).any(|_| {
                    let found = core.poll_ingest(&mut rx, Look::Once).is_ready();
                    if !found {
                        spin_loop();
                    }
                    found
                });
                if found {
                    core.watch.was_answered();
                    has_read = true;
                    continue;
                }
                if self.waiting.goes_on(Instant::now) && !core.watch.is_called() {
                    core.watch.comes_back();
                    break;
                }
                core.watch.comes_no_more();
            }
            // Registered in front of the look, so that nothing slips in between.
            core.watch.register(cx.waker());
            rx.waiting = true;
            if core.poll_ingest(&mut rx, Look::Armed).is_pending() {
                return Poll::Pending;
            }
            has_read = true;
        }
        // Whoever polls may not come back, and the lane wakes nobody since it was read.
        if has_read {
            core.watch.leave(rx.arrived.eager);
        }
        // Other tasks have their turn, even if the peer floods this one with records.
        drop(rx);
        if fresh {
            cx.waker().wake_by_ref();
        } else {
            core.reactor.yield_now(cx);
        }
        Poll::Pending
    }
}

/// What a receiver that asks now gets, unless it has to wait.
#[inline]
fn next(core: &Core, rx: &mut RxState) -> Option<Result<Option<Message>, ConnectionError>> {
    let next = match take(rx) {
        Some(message) => Ok(Some(message)),
        None => rx.end()?.map(|()| None),
    };
    if std::mem::take(&mut rx.waiting) {
        core.watch.unregister();
    }
    core.watch.comes_no_more();
    core.watch.leave(rx.arrived.eager);
    Some(next)
}

/// The first message of the inbox; its credit may go back to the peer.
#[inline]
fn take(rx: &mut RxState) -> Option<Message> {
    let message = rx.arrived.inbox.pop_front()?;
    rx.lane.release(message.len());
    Some(message)
}

/// When a `recv` is dropped before it was served, the driver watches again.
struct Unregister<'a>(&'a mut Receiver);

impl Drop for Unregister<'_> {
    fn drop(&mut self) {
        // Served: it has left in order.
        if !self.0.pending {
            return;
        }
        self.0.pending = false;
        self.0.waiting.leave(Instant::now);
        let core = self.0.handle.core();
        core.lock_rx().waiting = false;
        core.watch.unregister();
        core.watch.comes_no_more();
        core.watch.hand_on();
    }
}

/// Nobody receives any more: what has not arrived is refused, and the peer is told (GOAWAY), so that its
/// senders don't wait for room that never comes.
impl Drop for Receiver {
    fn drop(&mut self) {
        let core = self.handle.core();
        let mut rx = core.lock_rx();
        let RxState { lane, arrived, received, waiting, .. } = &mut *rx;
        (*received, *waiting) = (false, false);
        let inbox = std::mem::take(&mut arrived.inbox);
        inbox.iter().for_each(|message| lane.release(message.len()));
        arrived.unread = inbox.len() as u64;
        if !arrived.fin {
            arrived.refused.get_or_insert(0);
        }
        drop(rx);
        core.watch.unregister();
        core.watch.comes_no_more();
        core.watch.look();
    }
}

impl Stream for Receiver {
    type Item = Result<Message, ConnectionError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_recv(cx).map(Result::transpose)
    }
}
