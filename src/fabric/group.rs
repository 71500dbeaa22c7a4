//! Memory for buffers that go to many connections.

use zc_core::memory::{
    AllocError, Backing, BufPool, BufPoolBuilder, MemoryGroup, PinnedBufMut, RegisterError,
};

use super::Fabric;
use crate::connection::Connection;

/// Memory whose buffers many connections send without a copy: for a message that goes to all
/// subscribers. Made by [`Fabric::group`]; cloning gives another handle to the same group.
///
/// A clone of a [`PinnedBuf`](zc_core::memory::PinnedBuf) is a reference, so one buffer is filled once and
/// sent as often as there are connections. Streams and `mem` send such a buffer as it is. A transport that must
/// register memory, or show it to its peer, does so for connections that were
/// [admitted](Group::admit); where it was not, or the transport can't, the message is copied and the
/// connection's ledger says so. What arrives is the same in all cases.
///
/// **Isolation.** Members share whole regions, not messages. The peer of an admitted connection that maps or
/// reads the group's memory (a process on this host, a remote with a key) can read *all* of it: messages
/// for other members, and what freed buffers left behind. Admit only peers that may see
/// each other's messages, and make one group per circle of such peers. What is meant for one peer alone
/// belongs into [`Connection::alloc`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto()?;
/// let mut listener = fabric.listen("zc+mem://quotes").await?;
/// # let (mut one, to_one) = tokio::try_join!(fabric.connect("zc+mem://quotes"), listener.accept())?;
/// # let (mut other, to_other) = tokio::try_join!(fabric.connect("zc+mem://quotes"), listener.accept())?;
/// let subscribers: Vec<zc::Connection> = // accepted …
/// #   vec![to_one, to_other];
///
/// let quotes = fabric.group(); // made once, kept
/// subscribers.iter().try_for_each(|subscriber| quotes.admit(subscriber))?;
/// let mut buf = quotes.alloc(100).await?;
/// buf.put_slice(b"EUR 1.08");
/// let quote = buf.freeze();
/// for subscriber in &subscribers {
///     subscriber.send(quote.clone()).await?;
/// }
/// # assert_eq!(one.recv().await?.unwrap(), b"EUR 1.08"[..]);
/// # assert_eq!(other.recv().await?.unwrap(), b"EUR 1.08"[..]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Group {
    memory: MemoryGroup,
}

impl Fabric {
    /// A new group, of which no connection is a member. Its memory has a bound of its own, as large as that of
    /// the fabric's pool; it maps nothing until the first buffer is wanted. If a transport of this fabric passes
    /// descriptors, it is memory that a peer on this host can map.
    pub fn group(&self) -> Group {
        self.group_with(self.group_pool())
    }

    /// As [`Fabric::group`], for a hub: what one member sends is forwarded to another without a copy.
    ///
    /// Besides the group's memory, members whose peers are processes of this host then see what the others' peers write
    /// for this process: everything that they send here, not only what is forwarded. Peers are not asked; admit only
    /// such as may see all of each other's messages.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let fabric = zc::Fabric::auto()?;
    /// let mut listener = fabric.listen("zc+mem://hub").await?;
    /// # let (one, from_one) = tokio::try_join!(fabric.connect("zc+mem://hub"), listener.accept())?;
    /// # let (mut other, to_other) = tokio::try_join!(fabric.connect("zc+mem://hub"), listener.accept())?;
    /// let (mut from_one, to_other) = // accepted …
    /// #   (from_one, to_other);
    /// let hub = fabric.forwarding_group();
    /// hub.admit(&from_one)?;
    /// hub.admit(&to_other)?;
    /// # one.send(b"news".to_vec()).await?;
    /// let message = from_one.recv().await?.unwrap();
    /// to_other.send(message).await?;
    /// # assert_eq!(other.recv().await?.unwrap(), b"news"[..]);
    /// # Ok(()) }
    /// ```
    pub fn forwarding_group(&self) -> Group {
        Group { memory: MemoryGroup::forwarding(self.group_pool()) }
    }

    fn group_pool(&self) -> BufPoolBuilder {
        let shown = self.shared.transports.iter().any(|transport| transport.wants_descriptors());
        let backing = if shown { Backing::Memfd } else { Backing::Anonymous };
        BufPool::builder().name("group").backing(backing).max_bytes(self.shared.pool.max_bytes())
    }

    /// As [`Fabric::group`], on memory described by the caller. A peer on this host can map
    /// [`Backing::Memfd`] and [`Backing::MemfdHuge2M`] only.
    pub fn group_with(&self, pool: BufPoolBuilder) -> Group {
        Group { memory: MemoryGroup::new(pool) }
    }
}

impl Group {
    /// An empty buffer with room for at least `len` bytes; waits while the group's memory is exhausted.
    /// Recycled memory may show earlier messages beyond the filled part.
    ///
    /// Cancel-safe: dropped, it leaves the queue.
    ///
    /// # Errors
    /// The group can never give that much, or the system refuses memory.
    pub async fn alloc(&self, len: usize) -> Result<PinnedBufMut, AllocError> {
        self.memory.pool().alloc(len).await
    }

    /// As [`Group::alloc`], without waiting.
    ///
    /// # Errors
    /// As there, and [`AllocError::Exhausted`].
    pub fn try_alloc(&self, len: usize) -> Result<PinnedBufMut, AllocError> {
        self.memory.pool().try_alloc(len)
    }

    /// Lets a connection send the group's memory without a copy, for as long as it lives; its peer may then be able
    /// to read all of that memory. Admitting it again changes nothing.
    ///
    /// # Errors
    /// The transport can't use this memory, or has no room for one more registration. The connection goes on,
    /// and sends messages of the group as it does foreign memory.
    pub fn admit(&self, connection: &Connection) -> Result<(), RegisterError> {
        match connection.join_group(&self.memory) {
            Err(RegisterError::AlreadyMember) => Ok(()),
            done => done,
        }
    }

    /// Takes a connection out again: its later messages are copied, and its peer is shown nothing more. A peer on
    /// this host that keeps to the protocol then lets go of the memory; one that does not can go on reading the memory
    /// that it was shown, whatever is written there. To be sure of such a one, go on with a new group without it.
    pub fn dismiss(&self, connection: &Connection) {
        connection.leave_group(&self.memory);
    }

    /// The group as transports know it: its pool with statistics, its id, how many registered members it has.
    pub fn memory(&self) -> &MemoryGroup {
        &self.memory
    }
}
