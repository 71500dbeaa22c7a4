//! The future of one one-sided operation.

use std::future::Future;
use std::hint::spin_loop;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use zc_core::memory::{MAX_SEGMENTS, Message};
use zc_core::transport::{LaneError, OneSided, RemoteKey, RemoteOp};
use zc_core::wire::{Delivery, MAX_REMOTE_CHUNK, REMOTE_WIRE_KEY_BYTES, RemoteAction, RemoteRequest};

use crate::connection::ConnectionError;
use crate::connection::core::{Core, TxState};
use crate::connection::waiters::Place;
use crate::options::Polling;
use crate::remote::{Expected, Operation, RemoteError, RemoteFault};

/// What is left of an operation.
pub(super) enum Todo {
    /// By records: a read needs no memory until its answers come.
    Read {
        left: usize,
    },
    Op(RemoteOp),
    Nothing,
}

impl From<RemoteOp> for Todo {
    fn from(op: RemoteOp) -> Self {
        Self::Op(op)
    }
}

/// An operation under way.
pub(super) struct Run<'a> {
    core: &'a Arc<Core>,
    operation: Arc<Operation>,
    key: RemoteKey,
    offset: u64,
    todo: Todo,
    /// Requests handed over.
    begun: usize,
    /// In the queue for the window.
    place: Option<Place>,
    /// It has looked for what the lane has done for one turn.
    has_looked: bool,
    /// Since when it looks on.
    since: Option<Instant>,
    /// It does so now, so that the driver may not be woken.
    is_looking: bool,
}

/// So often one looks before other tasks get their turn, as a receiver does.
const LOOKS_PER_TURN: usize = 32;

impl Future for Run<'_> {
    type Output = Result<(Message, u64), RemoteError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let is_native = this.core.remote.mode() == OneSided::Native;
        let is_begun = begun_all(&this.todo);
        // In front of the look, so that nothing slips in between. Who may look does so when it is to sleep.
        if !(is_native && this.core.polling.spins()) {
            this.operation.register(cx.waker());
        }
        if let Poll::Ready(done) = this.poll_answered() {
            return Poll::Ready(done);
        }
        if !is_begun {
            let begun = match this.core.remote.mode() {
                OneSided::Emulated => this.poll_begin(cx),
                OneSided::Native => this.poll_begin_native(cx),
                _ => Poll::Ready(Err(RemoteFault::Unsupported)),
            };
            if let Poll::Ready(Err(fault)) = begun {
                this.leave();
                return Poll::Ready(Err(this.error(fault)));
            }
            if let Poll::Ready(done) = this.poll_answered() {
                return Poll::Ready(done);
            }
        }
        if is_native && begun_all(&this.todo) && this.looks_on() {
            return this.poll_looking(cx);
        }
        // What ends from here on, or fails before all of it has begun, wakes the driver, and that the task.
        this.operation.register(cx.waker());
        if this.is_looking
            && let Err(error) = this.rest()
        {
            return Poll::Ready(Err(error));
        }
        if let Poll::Ready(done) = this.poll_answered() {
            return Poll::Ready(done);
        }
        let failed = this.core.lock_tx().failed.clone();
        match failed {
            Some(error) => Poll::Ready(Err(this.error(RemoteFault::Connection(error)))),
            None => Poll::Pending,
        }
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(core: &'a Arc<Core>, key: RemoteKey, offset: u64, todo: Todo) -> Self {
        let operation = Arc::new(Operation::default());
        let (has_looked, is_looking) = (false, false);
        Self {
            core,
            operation,
            key,
            offset,
            todo,
            begun: 0,
            place: None,
            has_looked,
            since: None,
            is_looking,
        }
    }

    /// Whether to look again soon instead of sleeping: a device takes less time than a wake-up does.
    fn looks_on(&mut self) -> bool {
        match self.core.polling {
            Polling::Busy => true,
            Polling::Interrupt => false,
            // The first turn is taken in any case, and most operations end in it: the clock may be slow to read.
            Polling::Adaptive { spin } if !std::mem::replace(&mut self.has_looked, true) => !spin.is_zero(),
            Polling::Adaptive { spin } => {
                let now = Instant::now();
                now.saturating_duration_since(*self.since.get_or_insert(now)) < spin
            }
        }
    }

    /// Looks no more.
    fn rest(&mut self) -> Result<(), RemoteError> {
        self.is_looking = false;
        self.core.remote.collect_native().map_err(|error| self.lane_failed(error))
    }

    fn lane_failed(&self, error: LaneError) -> RemoteError {
        let error = ConnectionError::from(error);
        self.core.lock_tx().fail(error.clone());
        self.core.watch.wake_driver();
        self.error(RemoteFault::Connection(error))
    }

    /// Looks for what is done, and lets others on the runtime have their turn.
    fn poll_looking(&mut self, cx: &mut Context<'_>) -> Poll<<Self as Future>::Output> {
        self.is_looking = true;
        for _ in 0..LOOKS_PER_TURN {
            if let Err(error) = self.core.remote.look_native(&self.operation) {
                return Poll::Ready(Err(self.lane_failed(error)));
            }
            if let Poll::Ready(done) = self.poll_answered() {
                return Poll::Ready(done);
            }
            spin_loop();
        }
        let failed = self.core.lock_tx().failed.clone();
        if let Some(error) = failed {
            return Poll::Ready(Err(self.error(RemoteFault::Connection(error))));
        }
        self.core.reactor.yield_now(cx);
        Poll::Pending
    }

    /// Ready when all requests are answered and no other follows.
    fn poll_answered(&mut self) -> Poll<<Self as Future>::Output> {
        if self.begun == 0 {
            return Poll::Pending;
        }
        let stand = self.operation.stand();
        let over = matches!(self.todo, Todo::Nothing) || stand.fault.is_some();
        if !over || stand.open > 0 {
            return Poll::Pending;
        }
        self.leave();
        Poll::Ready(match stand.fault {
            None => Ok(self.operation.take()),
            Some(fault) if stand.done == 0 && !stand.in_part => Err(RemoteError::not_done(fault)),
            Some(fault) => Err(RemoteError::new(fault, Delivery::Unknown)),
        })
    }

    /// Gives up its place in the queue, if it has one.
    fn leave(&mut self) {
        if self.place.is_some() {
            let tx = self.core.lock_tx();
            self.core.remote.leave(&mut self.place);
            self.core.rest(&tx);
        }
    }

    fn error(&self, fault: RemoteFault) -> RemoteError {
        let delivery = if self.begun == 0 { Delivery::NotSent } else { Delivery::Unknown };
        RemoteError::new(fault, delivery)
    }

    /// Hands over as many requests as there is room for.
    fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RemoteFault>> {
        let Ok(key) = <[u8; REMOTE_WIRE_KEY_BYTES]>::try_from(self.key.as_bytes()) else {
            return Poll::Ready(Err(RemoteFault::Revoked));
        };
        let core = self.core;
        let mut tx = core.lock_tx();
        if let Some(error) = tx.closed() {
            return Poll::Ready(Err(RemoteFault::Connection(error)));
        }
        let mut done = Poll::Ready(Ok(()));
        while !matches!(self.todo, Todo::Nothing) && self.operation.stand().fault.is_none() {
            if !core.remote.may_begin(self.place) {
                core.remote.wait(&mut self.place, cx.waker());
                done = Poll::Pending;
                break;
            }
            if let Err(fault) = self.begin_record(&mut tx, key) {
                return Poll::Ready(Err(fault));
            }
        }
        if done.is_ready() {
            core.remote.leave(&mut self.place);
        }
        core.watch.need();
        if let Err(error) = core.flush(&mut tx) {
            tx.fail_if_broken(&error);
            core.watch.wake_driver();
            return Poll::Ready(Err(RemoteFault::Connection(error)));
        }
        done
    }

    fn begin_record(
        &mut self,
        tx: &mut TxState,
        key: [u8; REMOTE_WIRE_KEY_BYTES],
    ) -> Result<(), RemoteFault> {
        let core = self.core;
        let Some((action, expected, payload)) = self.todo.next_record() else {
            return Err(RemoteFault::Unsupported);
        };
        let request = RemoteRequest { id: core.remote.next_id(), key, offset: self.offset, action };
        let len = payload.len();
        self.offset += match expected {
            Expected::Bytes(read) => u64::from(read),
            _ => len as u64,
        };
        let frame = core.remote_frame(&request, payload);
        tx.lane.start_send(frame, false).map_err(|back| RemoteFault::Connection(back.error.into()))?;
        core.remote.begun(&self.operation, expected);
        self.begun += 1;
        core.ledger.moved(len);
        Ok(())
    }

    fn poll_begin_native(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RemoteFault>> {
        let core = self.core;
        let mut tx = core.lock_tx();
        if let Some(error) = tx.closed() {
            return Poll::Ready(Err(RemoteFault::Connection(error)));
        }
        if !core.remote.may_begin(self.place) {
            core.remote.wait(&mut self.place, cx.waker());
            return Poll::Pending;
        }
        if core.remote.gives_way() {
            // In the queue, so that none comes first that was asked for later.
            core.remote.wait(&mut self.place, cx.waker());
            drop(tx);
            core.reactor.yield_now(cx);
            return Poll::Pending;
        }
        let (todo, remote) = (&mut self.todo, &core.remote);
        let op = || todo.take_op();
        match remote.begin_native(&self.key, self.offset, op, &self.operation) {
            Poll::Pending => {
                core.remote.wait(&mut self.place, cx.waker());
                return Poll::Pending;
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(RemoteFault::Connection(error.into()))),
            Poll::Ready(Ok(())) => self.begun += 1,
        }
        core.remote.leave(&mut self.place);
        // It may be done already.
        let looked = if core.polling.spins() {
            self.is_looking = true;
            core.remote.look_native(&self.operation)
        } else {
            core.remote.collect_native()
        };
        if let Err(error) = looked {
            let error = ConnectionError::from(error);
            tx.fail(error.clone());
            core.watch.wake_driver();
            return Poll::Ready(Err(RemoteFault::Connection(error)));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.operation.abandon();
        self.leave();
        if self.is_looking && self.operation.stand().open > 0 {
            // What it leaves behind is the driver's. A failure is told to who asks next.
            let _ = self.rest();
        }
    }
}

impl Todo {
    /// The next record, and what its answer must carry.
    fn next_record(&mut self) -> Option<(RemoteAction, Expected, Message)> {
        let (action, expected, payload, last) = match self {
            Self::Read { left } => {
                let (len, extent) = ((*left).min(MAX_REMOTE_CHUNK), *left as u64);
                *left -= len;
                let (len, last) = (len as u32, *left == 0);
                (RemoteAction::Read { len, extent }, Expected::Bytes(len), Message::new(), last)
            }
            Self::Op(RemoteOp::Write { message, notify }) => {
                let extent = message.len() as u64;
                let part = message.split_to(record_len(message));
                let (len, last) = (part.len() as u32, message.is_empty());
                let notify = notify.filter(|_| last);
                (RemoteAction::Write { len, extent, notify }, Expected::Nothing, part, last)
            }
            Self::Op(RemoteOp::CompareSwap { expected, new }) => {
                let action = RemoteAction::CompareSwap { expected: *expected, new: *new };
                (action, Expected::Word, Message::new(), true)
            }
            Self::Op(RemoteOp::FetchAdd { add }) => {
                (RemoteAction::FetchAdd { add: *add }, Expected::Word, Message::new(), true)
            }
            Self::Op(RemoteOp::Read { .. }) | Self::Nothing => return None,
        };
        if last {
            *self = Self::Nothing;
        }
        Some((action, expected, payload))
    }

    /// All of it, for a lane that does it itself.
    fn take_op(&mut self) -> Option<RemoteOp> {
        match std::mem::replace(self, Self::Nothing) {
            Self::Op(op) => Some(op),
            Self::Read { .. } | Self::Nothing => None,
        }
    }
}

fn begun_all(todo: &Todo) -> bool {
    matches!(todo, Todo::Nothing)
}

/// How much of a message fits one record, which has a segment more.
fn record_len(message: &Message) -> usize {
    let first = message.segments().iter().take(MAX_SEGMENTS - 1);
    first.map(|segment| segment.len()).sum::<usize>().min(MAX_REMOTE_CHUNK)
}
