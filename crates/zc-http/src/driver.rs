//! The task of one connection: reads, dispatches, and sends what was put together, in batches.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::Sink;
use http::request;
use zc::{ConnectionError, Message, PinnedBufMut, Receiver, Sender};

use crate::error::ErrorKind;
use crate::link::{Link, Requests, State};
use crate::proto::{Key, Role, Violation};

/// Messages read before they are dispatched.
const READ_BATCH: usize = 64;
/// Frames put together before they are handed to the connection.
const WRITE_BATCH: usize = 64;
/// Bytes of those: what a small call waits behind, at most.
const WRITE_BATCH_BYTES: usize = 256 << 10;
/// Rounds of reading and writing before other tasks get their turn.
const ROUNDS: usize = 4;

/// Takes the calls that come in.
pub(crate) trait Handler: Send + Unpin {
    fn handle(&mut self, link: &Arc<Link>, key: Key, parts: request::Parts);
}

/// A client is not called.
pub(crate) struct NoHandler;

impl Handler for NoHandler {
    fn handle(&mut self, _link: &Arc<Link>, _key: Key, _parts: request::Parts) {}
}

pub(crate) struct Driver<H> {
    link: Arc<Link>,
    role: Role,
    sender: Sender,
    receiver: Receiver,
    handler: H,
    inbox: Vec<Message>,
    requests: Requests,
    outbox: VecDeque<Message>,
    /// Let others add to the batch before it goes out.
    waited: bool,
}

impl<H: Handler> Driver<H> {
    pub(crate) fn new(link: Arc<Link>, role: Role, sender: Sender, receiver: Receiver, handler: H) -> Self {
        Self {
            link,
            role,
            sender,
            receiver,
            handler,
            inbox: Vec::with_capacity(READ_BATCH),
            requests: Vec::new(),
            outbox: VecDeque::with_capacity(WRITE_BATCH),
            waited: false,
        }
    }

    /// With a message that was received already.
    pub(crate) fn after(mut self, first: Option<Message>) -> Self {
        self.inbox.extend(first);
        self
    }

    /// Reads a batch; true when there may be more. The end of the connection comes after what arrived.
    fn read(&mut self, cx: &mut Context<'_>) -> (bool, Option<ErrorKind>) {
        while self.inbox.len() < READ_BATCH {
            match self.receiver.poll_recv(cx) {
                Poll::Pending => return (false, None),
                Poll::Ready(Ok(Some(message))) => self.inbox.push(message),
                Poll::Ready(Ok(None)) => {
                    let finished = ConnectionError::Finished { reason: "the peer has finished".into() };
                    return (false, Some(ErrorKind::Connection(finished)));
                }
                Poll::Ready(Err(error)) => return (false, Some(ErrorKind::Connection(error))),
            }
        }
        (true, None)
    }

    fn dispatch(&mut self) -> Result<(), Violation> {
        if self.inbox.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let inbox = &mut self.inbox;
        let result = self.link.with_requests(&mut self.requests, |state| {
            state.driver_runs = true;
            inbox.drain(..).try_for_each(|message| state.endpoint.receive(message, now))
        });
        for (key, parts) in self.requests.drain(..) {
            self.handler.handle(&self.link, key, *parts);
        }
        result
    }

    /// Puts frames together; false when there are none.
    fn fill(&mut self, cx: &mut Context<'_>) -> bool {
        let Self { link, sender, outbox, .. } = self;
        let mut alloc = |len| try_alloc(sender, len, cx);
        let mut bytes = 0;
        let ledger = &link.ledger;
        link.with(|state| {
            while outbox.len() < WRITE_BATCH && bytes < WRITE_BATCH_BYTES {
                let Some(message) = state.endpoint.transmit(&mut alloc, ledger) else { break };
                bytes += message.len();
                outbox.push_back(message);
            }
        });
        !outbox.is_empty()
    }

    /// Sends what there is; true when all of it was handed over.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, ErrorKind> {
        let mut fed = false;
        let all = loop {
            if self.outbox.is_empty() && !self.fill(cx) {
                break true;
            }
            match Pin::new(&mut self.sender).poll_ready(cx) {
                Poll::Pending => break false,
                Poll::Ready(Err(error)) => return Err(ErrorKind::Connection(error.error)),
                Poll::Ready(Ok(())) => {}
            }
            if let Some(message) = self.outbox.pop_front() {
                fed = true;
                let started = Pin::new(&mut self.sender).start_send(message);
                started.map_err(|error| ErrorKind::Connection(error.error))?;
            }
        };
        if fed && let Poll::Ready(Err(error)) = Pin::new(&mut self.sender).poll_flush(cx) {
            return Err(ErrorKind::Connection(error.error));
        }
        Ok(all)
    }

    /// Tells the peer what it did, as far as it still listens.
    fn reject(&mut self, violation: &Violation, cx: &mut Context<'_>) {
        tracing::debug!(%violation, "the peer broke the protocol");
        self.link.with(|state| state.endpoint.go_away(violation.code(), &violation.to_string()));
        let _ = self.write(cx);
    }

    /// Whether the batch should wait for one more turn of the other tasks: many calls are under way,
    /// and who woke us may be the first of several.
    fn waits(&mut self, state: &mut State) -> bool {
        state.driver_runs = true;
        let many = self.role == Role::Client && state.endpoint.open_calls() > 1;
        !std::mem::replace(&mut self.waited, true) && many && state.endpoint.has_output()
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, ErrorKind> {
        let link = self.link.clone();
        let (waits, output) = link.with(|state| (self.waits(state), state.endpoint.has_output()));
        if waits {
            cx.waker().wake_by_ref();
            return Ok(Poll::Pending);
        }
        // First, since a look for what has come may take a microsecond. What had come counts before an error.
        let mut failed = None;
        if output || !self.outbox.is_empty() {
            failed = self.write(cx).err();
        }
        for _ in 0..ROUNDS {
            let (more, end) = self.read(cx);
            if let Err(violation) = self.dispatch() {
                self.reject(&violation, cx);
                return Err(violation.into());
            }
            self.waited = false;
            let all = match failed.take() {
                Some(error) => return Err(error),
                None => self.write(cx)?,
            };
            if let Some(end) = end {
                return Err(end);
            }
            if more {
                continue;
            }
            // The last look: from here on, who has something wakes us.
            let (rest, finished) = link.with(|state| {
                let rest = all && state.endpoint.has_output();
                // Without room, the connection wakes us.
                state.driver_runs = rest || !all;
                (rest, state.endpoint.is_finished())
            });
            if finished && self.outbox.is_empty() {
                return Ok(Poll::Ready(()));
            }
            if !rest {
                return Ok(Poll::Pending);
            }
        }
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }
}

impl<H: Handler> Future for Driver<H> {
    type Output = ErrorKind;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        let this = self.get_mut();
        this.link.driver.register(cx.waker());
        let kind = match this.turn(cx) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => ErrorKind::Closed,
            Err(kind) => kind,
        };
        this.link.fail(kind.clone());
        Poll::Ready(kind)
    }
}

impl<H> Drop for Driver<H> {
    fn drop(&mut self) {
        self.link.fail(ErrorKind::Closed);
        drop(self.link.connection.lock().take());
    }
}

/// Memory that the connection sends without a copy, if there is some now.
fn try_alloc(sender: &Sender, len: usize, cx: &mut Context<'_>) -> Option<PinnedBufMut> {
    match std::pin::pin!(sender.alloc(len)).poll(cx) {
        Poll::Ready(Ok(buf)) => Some(buf),
        _ => None,
    }
}
