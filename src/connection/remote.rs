//! One-sided operations of a connection: the handle, the future of one operation, and the records'
//! way through the halves. Their state is in [`crate::remote`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;
use zc_core::memory::{MAX_SEGMENTS, Message, PinnedBuf, PinnedBufMut};
use zc_core::transport::{Frame, FrameKind, OneSided, RemoteKey, RemoteOp};
use zc_core::wire::{
    Delivery, MAX_REMOTE_CHUNK, REMOTE_REQUEST_BYTES, REMOTE_WIRE_KEY_BYTES, RemoteAction, RemoteRequest,
};

use super::Connection;
use super::core::{Core, TxState};
use super::error::ConnectionError;
use super::handle::Handle;
use super::lane_alloc::LaneAlloc;
use crate::remote::{Expected, Operation, Remote, RemoteError, RemoteFault};

/// The most bytes that one [`RemoteMemory::read`] returns: as many records as a message has segments.
pub const MAX_REMOTE_READ: usize = MAX_SEGMENTS * MAX_REMOTE_CHUNK;

/// Calls the waker once this thread holds no lock of a connection.
pub(crate) fn wake_later(waker: Waker) {
    super::wake::wake(waker);
}

/// Runs `f` with wakers called after it, not inside.
pub(crate) fn quietly<R>(f: impl FnOnce() -> R) -> R {
    let _section = super::wake::Section::enter();
    f()
}

/// Memory at the other end of a connection, through the keys that the peer granted. Cheap to clone; a
/// clone keeps the connection open.
///
/// **Order.** Operations of one connection take effect, and complete, in the order in which they were
/// first polled, all handles together; while [`MAX_REMOTE_RECORDS`](crate::wire::MAX_REMOTE_RECORDS) records
/// are under way, later ones wait their turn. An operation of more than
/// [`MAX_REMOTE_CHUNK`] bytes is several records, between which others may come.
/// When an operation has completed, it has taken effect: a message sent after that finds it done.
/// Otherwise nothing is said about operations and messages.
///
/// **Cancelling.** Dropping a future never leaves anything behind: records that were handed over still take
/// effect, later ones of a long write are not sent.
///
/// **Failure.** [`RemoteError::delivery`] says whether the memory may have been touched. Nothing is repeated
/// by itself.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://remote-memory").await?;
/// # let (mut client, server) = tokio::try_join!(fabric.connect("zc+mem://remote-memory"), listener.accept())?;
/// use zc::transport::{Access, RemoteKey};
///
/// let export = fabric.export(4096)?; // at the server
/// let key = export.grant(&server, Access::ALL, ..)?;
/// server.send(key.to_bytes()).await?; // a key travels in any message
///
/// let message = client.recv().await?.unwrap();
/// let key = message.as_contiguous().and_then(RemoteKey::from_bytes).ok_or("no key")?;
/// let memory = client.remote();
/// memory.write(&key, 8, &b"hello"[..]).await?;
/// assert_eq!(memory.read(&key, 8, 5).await?, b"hello"[..]);
/// assert_eq!(memory.fetch_add(&key, 0, 1).await?, 0);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RemoteMemory {
    handle: Handle,
}

impl RemoteMemory {
    /// Reads `len` bytes, at most [`MAX_REMOTE_READ`]. They are lent like a received message.
    ///
    /// # Errors
    /// See [`RemoteFault`].
    pub async fn read(&self, key: &RemoteKey, offset: u64, len: usize) -> Result<Message, RemoteError> {
        if len > MAX_REMOTE_READ {
            return Err(RemoteError::not_done(RemoteFault::TooLarge { len, max: MAX_REMOTE_READ }));
        }
        within(offset, len)?;
        let todo = match self.handle.core().remote.mode() {
            OneSided::Native => Todo::ReadInto { into: self.room(len).await?, len },
            _ => Todo::Read { left: len },
        };
        let (message, _) = self.run(key, offset, todo).await?;
        Ok(message)
    }

    /// Writes a message, of any length.
    ///
    /// # Errors
    /// See [`RemoteFault`].
    pub async fn write(
        &self,
        key: &RemoteKey,
        offset: u64,
        message: impl Into<Message>,
    ) -> Result<(), RemoteError> {
        self.put(key, offset, message.into(), None).await
    }

    /// Writes a message and then tells the owner `value`: [`Export::notified`](crate::Export::notified).
    ///
    /// # Errors
    /// See [`RemoteFault`]; `Busy` when the owner has too many notifications of this key to take. Of a message of
    /// several records the earlier ones are written then, which [`RemoteError::delivery`] says.
    pub async fn write_with_notify(
        &self,
        key: &RemoteKey,
        offset: u64,
        message: impl Into<Message>,
        value: u64,
    ) -> Result<(), RemoteError> {
        self.put(key, offset, message.into(), Some(value)).await
    }

    /// Sets the word at `offset` to `new` if it is `expected`. Returns what it was. Words are in the
    /// owner's byte order; the two ends must have the same, as far as they look at bytes of it.
    ///
    /// # Errors
    /// See [`RemoteFault`].
    pub async fn compare_swap(
        &self,
        key: &RemoteKey,
        offset: u64,
        expected: u64,
        new: u64,
    ) -> Result<u64, RemoteError> {
        let (_, old) = self.run(key, offset, Todo::CompareSwap { expected, new }).await?;
        Ok(old)
    }

    /// Adds to the word at `offset`, wrapping around. Returns what it was.
    ///
    /// # Errors
    /// See [`RemoteFault`].
    pub async fn fetch_add(&self, key: &RemoteKey, offset: u64, add: u64) -> Result<u64, RemoteError> {
        let (_, old) = self.run(key, offset, Todo::FetchAdd { add }).await?;
        Ok(old)
    }

    async fn put(
        &self,
        key: &RemoteKey,
        offset: u64,
        left: Message,
        notify: Option<u64>,
    ) -> Result<(), RemoteError> {
        within(offset, left.len())?;
        self.run(key, offset, Todo::Write { left, notify }).await.map(drop)
    }

    fn run(&self, key: &RemoteKey, offset: u64, todo: Todo) -> Run<'_> {
        let operation = Arc::new(Operation::default());
        Run { core: self.handle.core(), operation, key: *key, offset, todo, begun: 0, place: None }
    }

    /// Memory of the lane to read into.
    async fn room(&self, len: usize) -> Result<PinnedBufMut, RemoteError> {
        let mut alloc = LaneAlloc::new(self.handle.core());
        std::future::poll_fn(|cx| alloc.poll(cx, len.max(1)))
            .await
            .map_err(|error| RemoteError::not_done(RemoteFault::Memory(error.to_string())))
    }
}

/// Offsets count up to `u64::MAX` and never wrap around, whatever the peer makes of them.
fn within(offset: u64, len: usize) -> Result<(), RemoteError> {
    let end = offset.checked_add(len as u64);
    end.map(drop).ok_or_else(|| RemoteError::not_done(RemoteFault::OutOfBounds))
}

/// What is left of an operation.
enum Todo {
    Read {
        left: usize,
    },
    /// By the lane itself, at once.
    ReadInto {
        into: PinnedBufMut,
        len: usize,
    },
    Write {
        left: Message,
        notify: Option<u64>,
    },
    CompareSwap {
        expected: u64,
        new: u64,
    },
    FetchAdd {
        add: u64,
    },
    Nothing,
}

/// An operation under way.
struct Run<'a> {
    core: &'a Arc<Core>,
    operation: Arc<Operation>,
    key: RemoteKey,
    offset: u64,
    todo: Todo,
    /// Requests handed over.
    begun: usize,
    /// In the queue for the window.
    place: Option<u64>,
}

impl Future for Run<'_> {
    type Output = Result<(Message, u64), RemoteError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        // In front of the look, so that nothing slips in between.
        this.operation.register(cx.waker());
        if let Poll::Ready(done) = this.poll_answered() {
            return Poll::Ready(done);
        }
        if !matches!(this.todo, Todo::Nothing) {
            let begun = match this.core.remote.mode() {
                OneSided::Emulated => this.poll_begin(cx),
                OneSided::Native => this.poll_begin_native(cx),
                _ => Poll::Ready(Err(RemoteFault::Unsupported)),
            };
            if let Poll::Ready(Err(fault)) = begun {
                this.core.remote.leave(&mut this.place);
                return Poll::Ready(Err(this.error(fault)));
            }
            return this.poll_answered();
        }
        let failed = this.core.lock_tx().failed.clone();
        match failed {
            Some(error) => Poll::Ready(Err(this.error(RemoteFault::Connection(error)))),
            None => Poll::Pending,
        }
    }
}

impl Run<'_> {
    /// Ready when all requests are answered and no other follows.
    fn poll_answered(&mut self) -> Poll<<Self as Future>::Output> {
        let stand = self.operation.stand();
        let over = matches!(self.todo, Todo::Nothing) || stand.fault.is_some();
        if !over || stand.open > 0 {
            return Poll::Pending;
        }
        self.core.remote.leave(&mut self.place);
        Poll::Ready(match stand.fault {
            None => Ok(self.operation.take()),
            Some(fault) if stand.done == 0 => Err(RemoteError::not_done(fault)),
            Some(fault) => Err(RemoteError::new(fault, Delivery::Unknown)),
        })
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
        if let Err(error) = core.remote.collect_native() {
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
        if self.place.is_some() {
            let tx = self.core.lock_tx();
            self.core.remote.leave(&mut self.place);
            self.core.rest(&tx);
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
            Self::Write { left, notify } => {
                let extent = left.len() as u64;
                let part = left.split_to(record_len(left));
                let (len, last) = (part.len() as u32, left.is_empty());
                let notify = notify.filter(|_| last);
                (RemoteAction::Write { len, extent, notify }, Expected::Nothing, part, last)
            }
            Self::CompareSwap { expected, new } => {
                let action = RemoteAction::CompareSwap { expected: *expected, new: *new };
                (action, Expected::Word, Message::new(), true)
            }
            Self::FetchAdd { add } => {
                (RemoteAction::FetchAdd { add: *add }, Expected::Word, Message::new(), true)
            }
            Self::ReadInto { .. } | Self::Nothing => return None,
        };
        if last {
            *self = Self::Nothing;
        }
        Some((action, expected, payload))
    }

    /// All of it, for a lane that does it itself.
    fn take_op(&mut self) -> Option<RemoteOp> {
        match std::mem::replace(self, Self::Nothing) {
            Self::ReadInto { into, len } => Some(RemoteOp::Read { into, len }),
            Self::Write { left, notify } => Some(RemoteOp::Write { message: left, notify }),
            Self::CompareSwap { expected, new } => Some(RemoteOp::CompareSwap { expected, new }),
            Self::FetchAdd { add } => Some(RemoteOp::FetchAdd { add }),
            Self::Read { .. } | Self::Nothing => None,
        }
    }
}

/// How much of a message fits one record, which has a segment more.
fn record_len(message: &Message) -> usize {
    let first = message.segments().iter().take(MAX_SEGMENTS - 1);
    first.map(|segment| segment.len()).sum::<usize>().min(MAX_REMOTE_CHUNK)
}

impl Core {
    fn remote_frame(&self, request: &RemoteRequest, payload: Message) -> Frame {
        let mut front = SmallVec::<[u8; REMOTE_REQUEST_BYTES]>::new();
        request.encode(&mut front);
        let front = match self.pool.try_alloc(front.len()) {
            Ok(mut buf) => {
                buf.put_slice(&front);
                buf.freeze()
            }
            Err(_) => PinnedBuf::from(front.into_vec()),
        };
        let mut record = Message::from(front);
        // There is room: `record_len` saw to it.
        payload.into_segments().for_each(|segment| drop(record.push(segment)));
        Frame { kind: FrameKind::Remote, ack: false, seq: 0, payload: record }
    }

    /// Hands over the answers to the peer's requests, and serves those that waited for room.
    pub(super) fn push_answers(&self, tx: &mut TxState) -> Result<(), ConnectionError> {
        if !self.remote.is_serving() || tx.failed.is_some() || tx.close_sent {
            return Ok(());
        }
        loop {
            while let Some(payload) = self.remote.next_answer() {
                let frame = Frame { kind: FrameKind::Remote, ack: false, seq: 0, payload };
                let token = tx.lane.start_send(frame, true).map_err(|rejected| rejected.error)?;
                self.remote.handed_over(token);
            }
            if !self.remote.wants_reports() {
                return Ok(());
            }
            // What is in the lane must get out, for what waits to get in.
            if let Poll::Ready(flushed) = tx.lane.poll_flush(&mut Context::from_waker(&self.tx_waker)) {
                flushed?;
            }
            tx.collect(&mut Context::from_waker(&self.tx_waker))?;
            if !self.remote.serve_waiting() {
                return Ok(());
            }
        }
    }
}

impl TxState {
    /// Why no record can be sent, if so.
    fn closed(&self) -> Option<ConnectionError> {
        self.failed.clone().or_else(|| self.close_sent.then_some(ConnectionError::ClosedHere))
    }
}

impl Connection {
    /// The peer's exported memory.
    pub fn remote(&self) -> RemoteMemory {
        RemoteMemory { handle: self.sender.handle() }
    }

    pub(crate) fn remote_state(&self) -> &Arc<Remote> {
        &self.sender.core().remote
    }

    /// From now on the driver looks at the lane when the application does not.
    pub(crate) fn watch_for_requests(&self) {
        self.sender.core().watch.hand_on();
    }
}
