//! One-sided operations of a connection: the handle. Their state is in [`crate::remote`].

mod records;
mod run;

use std::sync::{Arc, Weak};
use std::time::Duration;

use zc_core::memory::{MAX_SEGMENTS, Message, PinnedBufMut};
use zc_core::transport::{OneSided, RemoteKey, RemoteOp};
use zc_core::wire::MAX_REMOTE_CHUNK;

use self::run::{Run, Todo};
use super::Connection;
use super::handle::Handle;
use super::lane_alloc::LaneAlloc;
use crate::remote::{Remote, RemoteError, RemoteFault, Shared};
use crate::time::later;

/// The most bytes that one [`RemoteMemory::read`] returns: as many records as a message has segments.
pub const MAX_REMOTE_READ: usize = MAX_SEGMENTS * MAX_REMOTE_CHUNK;

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
/// **Notifications** come in the order of the writes of one connection to one export. When such a write has completed, the
/// notification is at the owner's end. A message that is sent after that may still be received before
/// [`Export::try_notified`](crate::Export::try_notified) finds it, if the lane does the operations itself:
/// [`Export::notified`](crate::Export::notified) waits for it, and [`Export::revoke`](crate::Export::revoke) does not return before it is there.
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
            OneSided::Native => Todo::Op(RemoteOp::Read { into: self.room(len).await?, len }),
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
    /// See [`RemoteFault`]; `Busy` when the owner has too many notifications to take: of this export, or of all exports on
    /// this connection if the lane does the operations itself. Of a message of
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
        let (_, old) = self.run(key, offset, RemoteOp::CompareSwap { expected, new }).await?;
        Ok(old)
    }

    /// Adds to the word at `offset`, wrapping around. Returns what it was.
    ///
    /// # Errors
    /// See [`RemoteFault`].
    pub async fn fetch_add(&self, key: &RemoteKey, offset: u64, add: u64) -> Result<u64, RemoteError> {
        let (_, old) = self.run(key, offset, RemoteOp::FetchAdd { add }).await?;
        Ok(old)
    }

    async fn put(
        &self,
        key: &RemoteKey,
        offset: u64,
        message: Message,
        notify: Option<u64>,
    ) -> Result<(), RemoteError> {
        within(offset, message.len())?;
        self.run(key, offset, RemoteOp::Write { message, notify }).await.map(drop)
    }

    fn run(&self, key: &RemoteKey, offset: u64, todo: impl Into<Todo>) -> Run<'_> {
        Run::new(self.handle.core(), *key, offset, todo.into())
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

impl Connection {
    /// The peer's exported memory.
    pub fn remote(&self) -> RemoteMemory {
        RemoteMemory { handle: self.sender.handle() }
    }

    pub(crate) fn remote_state(&self) -> &Arc<Remote> {
        &self.sender.core().remote
    }

    /// Has a grant end by itself, by the driver.
    pub(crate) fn ends_grant(&self, key: RemoteKey, export: Weak<Shared>, lasts: Duration) {
        let core = self.sender.core();
        core.remote.expires(later(core.reactor.now(), lasts), key, export);
        core.watch.wake_driver();
    }

    /// From now on the driver looks at the lane when the application does not.
    pub(crate) fn watch_for_requests(&self) {
        self.sender.core().watch.hand_on();
    }
}
