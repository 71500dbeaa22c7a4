//! The receiving handle.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::Stream;
use futures::future::poll_fn;
use zc_core::memory::Message;

use super::core::{Core, RxState};
use super::error::ConnectionError;
use super::handle::Handle;
use super::ingest::Look;
use crate::options::Polling;

/// Looks at the lane per poll while spinning, before other tasks get their turn. Bounded by count, so
/// that a poll stays short: each is a system call on a socket, some tens of nanoseconds on a ring.
const SPINS_PER_POLL: u32 = 1;

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
    polling: Polling,
    spinning_since: Option<Instant>,
    /// The last poll found nothing.
    pending: bool,
}

impl Receiver {
    pub(super) fn new(handle: Handle, polling: Polling) -> Self {
        Self { handle, polling, spinning_since: None, pending: false }
    }

    /// The next message; `None` once the peer has finished sending and everything was received.
    /// The message is lent: dropping it gives its memory back.
    ///
    /// Cancel-safe: a dropped future loses no message.
    ///
    /// # Errors
    /// Why the connection ended before the peer finished. What had arrived is returned first.
    pub async fn recv(&mut self) -> Result<Option<Message>, ConnectionError> {
        let guard = Unregister(self);
        poll_fn(|cx| guard.0.poll_recv(cx)).await
    }

    /// The next message if it has arrived.
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub fn try_recv(&mut self) -> Result<Option<Message>, ConnectionError> {
        let core = self.handle.core();
        let mut rx = core.lock_rx();
        let mut message = take(&mut rx);
        if message.is_none() {
            let _ = core.poll_ingest(&mut rx, Look::Once);
            message = take(&mut rx);
        }
        core.watch.leave(rx.arrived.eager);
        match message {
            Some(message) => Ok(Some(message)),
            None => rx.end().unwrap_or(Ok(())).map(|()| None),
        }
    }

    /// Like [`Receiver::recv`], for code that polls.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, ConnectionError>> {
        let polled = self.poll_next_message(cx);
        self.pending = polled.is_pending();
        polled
    }

    fn poll_next_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, ConnectionError>> {
        let core = self.handle.core();
        let mut rx = core.lock_rx();
        let mut spins = 0;
        loop {
            if let Some(message) = take(&mut rx) {
                self.spinning_since = None;
                leave(core, &mut rx);
                return Poll::Ready(Ok(Some(message)));
            }
            if let Some(end) = rx.end() {
                self.spinning_since = None;
                leave(core, &mut rx);
                return Poll::Ready(end.map(|()| None));
            }
            if spins < spins_per_poll(self.polling) {
                spins += 1;
                if core.poll_ingest(&mut rx, Look::Once).is_pending() {
                    std::hint::spin_loop();
                }
                continue;
            }
            if goes_on(self.polling, &mut self.spinning_since) {
                drop(rx);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Registered in front of the look, so that nothing slips in between.
            core.watch.register(cx.waker());
            rx.waiting = true;
            if core.poll_ingest(&mut rx, Look::Armed).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

fn spins_per_poll(polling: Polling) -> u32 {
    match polling {
        Polling::Busy => SPINS_PER_POLL,
        Polling::Adaptive { spin } if !spin.is_zero() => SPINS_PER_POLL,
        Polling::Adaptive { .. } | Polling::Interrupt => 0,
    }
}

/// Whether to look again soon instead of sleeping.
fn goes_on(polling: Polling, since: &mut Option<Instant>) -> bool {
    match polling {
        Polling::Busy => true,
        Polling::Interrupt => false,
        Polling::Adaptive { spin } if spin.is_zero() => false,
        Polling::Adaptive { spin } => since.get_or_insert_with(Instant::now).elapsed() < spin,
    }
}

/// The first message of the inbox; its credit may go back to the peer.
fn take(rx: &mut RxState) -> Option<Message> {
    let message = rx.arrived.inbox.pop_front()?;
    rx.lane.release(message.len());
    Some(message)
}

/// The receiver goes back to the application.
fn leave(core: &Core, rx: &mut RxState) {
    if std::mem::take(&mut rx.waiting) {
        core.watch.unregister();
    }
    core.watch.leave(rx.arrived.eager);
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
        let core = self.0.handle.core();
        core.lock_rx().waiting = false;
        core.watch.unregister();
        core.watch.hand_on();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let core = self.handle.core();
        core.watch.unregister();
        core.watch.hand_on();
    }
}

impl Stream for Receiver {
    type Item = Result<Message, ConnectionError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_recv(cx).map(Result::transpose)
    }
}
