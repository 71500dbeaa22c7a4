//! The receiving handle.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::Stream;
use futures::future::poll_fn;
use zc_core::memory::Message;

use super::core::{Core, MAX_INBOX_MESSAGES, RxState};
use super::error::ConnectionError;
use super::handle::Handle;
use crate::options::Polling;

/// Receives messages, in order. There is one per connection.
pub struct Receiver {
    handle: Handle,
    polling: Polling,
    spinning_since: Option<Instant>,
}

impl Receiver {
    pub(super) fn new(handle: Handle, polling: Polling) -> Self {
        Self { handle, polling, spinning_since: None }
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
        let mut rx = core.rx.lock();
        if let Some(message) = take(core, &mut rx) {
            return Ok(Some(message));
        }
        let _ = core.poll_ingest(&mut rx, true);
        if !rx.armed {
            core.driver.0.wake();
        }
        match take(core, &mut rx) {
            Some(message) => Ok(Some(message)),
            None => rx.failed.clone().map_or(Ok(None), Err),
        }
    }

    /// Like [`Receiver::recv`], for code that polls.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, ConnectionError>> {
        let core = self.handle.core();
        let mut rx = core.rx.lock();
        // Registered before looking, so that nothing slips between the look and the wait.
        let mut armed = false;
        loop {
            if let Some(message) = take(core, &mut rx) {
                self.spinning_since = None;
                core.rx_wake.receiver.take();
                if !rx.armed {
                    core.driver.0.wake();
                }
                return Poll::Ready(Ok(Some(message)));
            }
            if rx.fin || rx.ended || rx.failed.is_some() {
                return Poll::Ready(rx.failed.clone().map_or(Ok(None), Err));
            }
            let spin = spins(self.polling, &mut self.spinning_since);
            if !spin && !armed {
                core.rx_wake.receiver.register(cx.waker());
                armed = true;
            }
            if core.poll_ingest(&mut rx, spin).is_pending() {
                if spin {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
        }
    }
}

/// Whether to look again soon instead of sleeping.
fn spins(polling: Polling, since: &mut Option<Instant>) -> bool {
    match polling {
        Polling::Busy => true,
        Polling::Interrupt => false,
        Polling::Adaptive { spin } if spin.is_zero() => false,
        Polling::Adaptive { spin } => since.get_or_insert_with(Instant::now).elapsed() < spin,
    }
}

/// The first message of the inbox; its credit may go back to the peer.
fn take(core: &Arc<Core>, rx: &mut RxState) -> Option<Message> {
    let full = rx.inbox.len() >= MAX_INBOX_MESSAGES;
    let message = rx.inbox.pop_front()?;
    rx.lane.release(message.len());
    if full {
        core.driver.0.wake();
    }
    Some(message)
}

/// When a `recv` is dropped, the driver watches again.
struct Unregister<'a>(&'a mut Receiver);

impl Drop for Unregister<'_> {
    fn drop(&mut self) {
        let core = self.0.handle.core();
        core.rx_wake.receiver.take();
        if !core.rx.lock().armed {
            core.driver.0.wake();
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let core = self.handle.core();
        core.rx_wake.receiver.take();
        core.receiver_taken.store(false, Ordering::Release);
        core.driver.0.wake();
    }
}

impl Stream for Receiver {
    type Item = Result<Message, ConnectionError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_recv(cx).map(Result::transpose)
    }
}
