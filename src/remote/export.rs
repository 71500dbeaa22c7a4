//! Memory that peers may use.

use std::ops::{Range, RangeBounds};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use zc_core::memory::{
    Backing, CopyLedger, ExportError, ExportMemory, LedgerSnapshot, Region, RegionError, Sealing,
};
use zc_core::transport::{Access, OneSided, RemoteGrant, RemoteKey, Revoked};

use super::atomics::AtomicsBy;
use super::error::GrantError;
use super::notify::{KeySink, Notification, Notifications};
use super::state::Remote;
use super::target::Grant;
use crate::connection::{Connection, quietly};

/// Bytes copied at a time when memory has to be replaced.
const REPLACE_CHUNK: usize = 4096;

/// Memory made to be read and written by peers, and by its owner meanwhile. See [`Fabric::export`](crate::Fabric::export).
///
/// The owner never gets a `&[u8]` of it, because a peer may write at any time. Words (8 bytes at a
/// multiple of 8) are never torn; a longer read may see part of a concurrent write. `store_u64`, `compare_swap` and `fetch_add` of
/// the owner and the atomics of all peers on one word are atomic together. While a peer is granted atomics that a device does without
/// regard for processors (an RDMA device that says `IBV_ATOMIC_HCA`), those three of the owner go through that device and take as long
/// as a round trip in it; [`read`](Self::read), [`load_u64`](Self::load_u64) and [`write`](Self::write) never do. So that
/// there is one such device, a grant of atomics that would be done elsewhere at the same time is refused
/// ([`GrantError::MixedAtomics`]).
///
/// Dropping it revokes all its keys. The accessors copy and are counted in [`Export::ledger`].
///
/// The example `kv` is a table in one, which clients change under locks of their own, and what becomes of those when a
/// key ends.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use zc::transport::{Access, RemoteKey};
///
/// let fabric = zc::Fabric::auto()?;
/// let mut listener = fabric.listen("zc+mem://export").await?;
/// let (client, server) = tokio::join!(fabric.connect("zc+mem://export"), listener.accept());
/// let (mut client, server) = (client?, server?);
///
/// let export = fabric.export(4096)?;
/// export.write(0, b"hello")?;
/// let key = export.grant(&server, Access::READ | Access::ATOMIC, ..)?;
/// server.send(key.to_bytes()).await?;
///
/// let message = client.recv().await?.ok_or("no key came")?;
/// let key = message.as_contiguous().and_then(RemoteKey::from_bytes).ok_or("no key")?;
/// let remote = client.remote();
/// assert_eq!(remote.read(&key, 0, 5).await?, b"hello"[..]);
/// assert_eq!(remote.fetch_add(&key, 8, 3).await?, 0);
/// assert_eq!(export.load_u64(8)?, 3);
/// export.revoke(&key)?;
/// assert!(remote.read(&key, 0, 5).await.is_err());
/// # Ok(()) }
/// ```
pub struct Export {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    memory: RwLock<ExportMemory>,
    in_memfd: bool,
    pub(super) notifications: Notifications,
    ledger: CopyLedger,
    grants: Mutex<Grants>,
    make: Make,
}

/// Makes memory of that length, in a memfd or not.
type Make = fn(usize, bool) -> Result<ExportMemory, RegionError>;

/// A key, and the connection that it is valid on.
struct Granted {
    key: RemoteKey,
    remote: Weak<Remote>,
    /// Its peer changes words without our session layer.
    has_atomics: bool,
}

#[derive(Default)]
struct Grants {
    keys: Vec<Granted>,
    /// As whom those with `has_atomics` change words.
    atomics: AtomicsBy,
    /// Of each connection that had a key, while it lives.
    notified: Vec<(Weak<Remote>, Arc<AtomicUsize>)>,
    /// A peer whose grant has ended keeps the memory, and it could not be replaced yet.
    kept: bool,
}

impl Export {
    /// `in_memfd`: some transport may hand it to another process.
    pub(crate) fn new(len: usize, in_memfd: bool) -> Result<Self, RegionError> {
        Self::made_by(memory, len, in_memfd)
    }

    pub(super) fn made_by(make: Make, len: usize, in_memfd: bool) -> Result<Self, RegionError> {
        let shared = Shared {
            memory: RwLock::new(make(len, in_memfd)?),
            in_memfd,
            notifications: Notifications::default(),
            ledger: CopyLedger::new(),
            grants: Mutex::default(),
            make,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.shared.memory().len()
    }

    /// Never: an export has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// Out of bounds.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), ExportError> {
        self.shared.memory().read(offset, out, &self.shared.ledger)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// Out of bounds; then nothing is written.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), ExportError> {
        self.shared.memory().write(offset, bytes, &self.shared.ledger)
    }

    /// The word at `offset`, in this machine's byte order. What was written before it was stored is seen.
    ///
    /// # Errors
    /// Out of bounds, or no multiple of 8.
    pub fn load_u64(&self, offset: u64) -> Result<u64, ExportError> {
        self.shared.memory().load_u64(offset)
    }

    /// Sets the word at `offset`.
    ///
    /// # Errors
    /// Out of bounds, or no multiple of 8.
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), ExportError> {
        self.shared.memory().store_u64(offset, value)
    }

    /// Sets the word at `offset` to `new` if it is `expected`. Returns what it was.
    ///
    /// # Errors
    /// Out of bounds, or no multiple of 8.
    pub fn compare_swap(&self, offset: u64, expected: u64, new: u64) -> Result<u64, ExportError> {
        self.shared.memory().compare_swap(offset, expected, new)
    }

    /// Adds to the word at `offset`, wrapping around. Returns what it was.
    ///
    /// # Errors
    /// Out of bounds, or no multiple of 8.
    pub fn fetch_add(&self, offset: u64, add: u64) -> Result<u64, ExportError> {
        self.shared.memory().fetch_add(offset, add)
    }

    /// Lets the peer of `connection` use the bytes in `range`, of which the first one is its offset 0.
    /// The key is random and valid on this connection only, until it is revoked, or the export is dropped, or the
    /// connection ends.
    ///
    /// # Errors
    /// A bad range; at most [`MAX_GRANTS`](crate::MAX_GRANTS) per connection; the connection carries no one-sided
    /// operations, or has ended; atomics that would not be atomic together with those of others.
    pub fn grant(
        &self,
        connection: &Connection,
        access: Access,
        range: impl RangeBounds<u64>,
    ) -> Result<RemoteKey, GrantError> {
        let range = self.checked(range)?;
        let remote = connection.remote_state();
        let key = self.shared.grant(remote, access, range)?;
        connection.watch_for_requests();
        Ok(key)
    }

    /// A grant that ends by itself: it is [revoked](Self::revoke) when so much time has passed, by the connection's task, so never
    /// before and soon after. Where that needs memory that is not there, it is tried again until there is.
    ///
    /// # Errors
    /// As for [`grant`](Self::grant).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let fabric = zc::Fabric::auto()?;
    /// # let mut listener = fabric.listen("zc+mem://grant-for").await?;
    /// # let (client, server) = tokio::try_join!(fabric.connect("zc+mem://grant-for"), listener.accept())?;
    /// use std::time::Duration;
    /// use zc::RemoteFault;
    /// use zc::transport::Access;
    ///
    /// let export = fabric.export(4096)?;
    /// let key = export.grant_for(&server, Access::READ, .., Duration::from_millis(20))?;
    /// while client.remote().read(&key, 0, 8).await.is_ok() {
    ///     tokio::task::yield_now().await;
    /// }
    /// let error = client.remote().read(&key, 0, 8).await.unwrap_err();
    /// assert!(matches!(error.fault, RemoteFault::Revoked));
    /// # Ok(()) }
    /// ```
    pub fn grant_for(
        &self,
        connection: &Connection,
        access: Access,
        range: impl RangeBounds<u64>,
        lasts: Duration,
    ) -> Result<RemoteKey, GrantError> {
        let key = self.grant(connection, access, range)?;
        connection.ends_grant(key, Arc::downgrade(&self.shared), lasts);
        Ok(key)
    }

    fn checked(&self, range: impl RangeBounds<u64>) -> Result<Range<u64>, GrantError> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let size = self.len();
        let start = match range.start_bound() {
            Included(start) => *start,
            Excluded(before) => before.saturating_add(1),
            Unbounded => 0,
        };
        let end = match range.end_bound() {
            Included(last) => last.saturating_add(1),
            Excluded(end) => *end,
            Unbounded => size,
        };
        if start >= end || end > size || !start.is_multiple_of(8) {
            return Err(GrantError::BadRange { start, end, size });
        }
        Ok(start..end)
    }

    /// Ends a grant. When it returns, no operation of the peer touches the memory any more; those that come
    /// fail with [`RemoteFault::Revoked`](crate::RemoteFault::Revoked). (Over RDMA some devices finish a packet that they are copying
    /// just then, as Soft-RoCE does while another key shows the same range.) A key that is not valid is none to revoke.
    ///
    /// Where the peer can't be kept from the memory (a shared-memory peer keeps its mapping), the export goes
    /// on with a copy, and all keys of native connections to the old memory are revoked with this one. An operation
    /// that was under way when this was called may then be in the copy or not, and succeeds for the peer in either
    /// case: where that matters, let the peer say that it is done before its key is revoked. The old memory is there for as
    /// long as such a peer keeps it mapped, which nothing here bounds: an owner that grants again to peers it does not trust
    /// decides how often (the example `kv` has a pause). The copying holds up whoever uses the export.
    ///
    /// Notifications that came before are kept, as far as there was room for them (see [`Export::notified`]).
    ///
    /// # Errors
    /// There is no memory for that copy: the peer can still touch the export's. Revoking again, this key or any
    /// other, tries again.
    pub fn revoke(&self, key: &RemoteKey) -> Result<(), RegionError> {
        self.shared.revoke(key)
    }

    /// The next notification of a peer, in the order of their arrival. Cancel-safe; several tasks may wait. It
    /// waits as long as none comes, also when no key is valid any more.
    ///
    /// [`MAX_NOTIFICATIONS_PER_CONNECTION`](crate::MAX_NOTIFICATIONS_PER_CONNECTION) of a connection wait here; a native
    /// lane may keep some more, which are lost if the key or the connection ends before there is room.
    pub async fn notified(&self) -> Notification {
        self.shared.notifications.next().await
    }

    /// The next notification, if one has come.
    pub fn try_notified(&self) -> Option<Notification> {
        self.shared.notifications.take()
    }

    /// What the owner's accessors copied. What peers did is in the ledgers of their connections.
    pub fn ledger(&self) -> LedgerSnapshot {
        self.shared.ledger.snapshot()
    }
}

#[cfg(test)]
impl Export {
    pub(super) fn weak(&self) -> std::sync::Weak<Shared> {
        Arc::downgrade(&self.shared)
    }

    /// A grant without a connection around it.
    pub(super) fn granted_to(&self, remote: &Arc<Remote>, access: Access, range: Range<u64>) -> RemoteKey {
        let Ok(key) = self.shared.grant(remote, access, range) else { panic!("it is not granted") };
        key
    }
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let granted = std::mem::take(&mut self.shared.grants.lock().keys);
        // What is retired is the lane's alone now.
        revoke_all(granted);
    }
}

impl Shared {
    /// The memory; it is not replaced meanwhile.
    pub(super) fn memory(&self) -> RwLockReadGuard<'_, ExportMemory> {
        self.memory.read()
    }

    fn grant(
        self: &Arc<Self>,
        remote: &Arc<Remote>,
        access: Access,
        range: Range<u64>,
    ) -> Result<RemoteKey, GrantError> {
        // Wakers are called after the lock, which is held meanwhile so that the memory is not replaced.
        quietly(|| {
            let mut grants = self.grants.lock();
            let notified = grants.notified(remote);
            let has_atomics = remote.mode() == OneSided::Native && access.contains(Access::ATOMIC);
            if has_atomics {
                let wanted = remote.native_atomics(&self.memory().clone())?;
                if let Some(device) = grants.atomics.join(wanted)? {
                    // Whoever is at a word with the processor's atomics has the lock.
                    let mut memory = self.memory.write();
                    *memory = memory.through(Some(device));
                }
            }
            let key = match remote.mode() {
                OneSided::Emulated => {
                    remote.grant(|key| Grant { export: self.clone(), range, access, key, notified })
                }
                OneSided::Native => {
                    let export = Arc::downgrade(self);
                    let sink = Arc::new(KeySink { export, key: OnceLock::new(), of_connection: notified });
                    let memory = self.memory().clone();
                    let grant = RemoteGrant { memory, range, access, notify: sink.clone() };
                    // The sink knows the key before the peer can.
                    remote.grant_native(grant, self).inspect(|key| {
                        let _ = sink.key.set(*key);
                    })
                }
                _ => Err(GrantError::Unsupported),
            };
            if let Ok(key) = key {
                grants.keys.push(Granted { key, remote: Arc::downgrade(remote), has_atomics });
            }
            self.settle_atomics(&mut grants);
            key
        })
    }

    /// Under one lock until the memory is replaced, if it has to be: whoever finds the key gone can rely on it.
    pub(super) fn revoke(&self, key: &RemoteKey) -> Result<(), RegionError> {
        quietly(|| {
            let mut grants = self.grants.lock();
            let found = grants.keys.iter().position(|granted| granted.key == *key);
            let remote = found.and_then(|at| grants.keys.swap_remove(at).remote.upgrade());
            grants.kept |= remote.as_ref().is_some_and(|remote| remote.revoke(key) == Revoked::Retired);
            let done = if grants.kept { self.replace(&mut grants) } else { Ok(()) };
            self.settle_atomics(&mut grants);
            // Else it is tried again when its time has come.
            if let (Ok(()), Some(remote)) = (&done, remote) {
                remote.forget_expiry(key);
            }
            done
        })
    }

    /// With the last peer that changes words by itself goes the device that we did it through, too.
    fn settle_atomics(&self, grants: &mut Grants) {
        if !grants.keys.iter().any(|granted| granted.has_atomics)
            && std::mem::take(&mut grants.atomics).is_device()
        {
            let mut memory = self.memory.write();
            *memory = memory.through(None);
        }
    }

    /// Goes on with a copy, to which no peer has access but through our session layer. Nobody grants meanwhile.
    fn replace(&self, grants: &mut Grants) -> Result<(), RegionError> {
        let len = self.memory().len();
        let fresh = (self.make)(usize::try_from(len).unwrap_or(usize::MAX), self.in_memfd)?;
        // Before it is copied: what peers are told is done afterwards would not be in the copy.
        let is_stale = |remote: &Weak<Remote>| {
            remote.upgrade().is_none_or(|remote| matches!(remote.mode(), OneSided::Native))
        };
        revoke_all(grants.keys.extract_if(.., |granted| is_stale(&granted.remote)));
        let mut memory = self.memory.write();
        let mut chunk = [0; REPLACE_CHUNK];
        for at in (0..len).step_by(REPLACE_CHUNK) {
            let part = REPLACE_CHUNK.min((len - at) as usize);
            // Both have this length.
            let _ = memory.read(at, &mut chunk[..part], &self.ledger);
            let _ = fresh.write(at, &chunk[..part], &self.ledger);
        }
        *memory = fresh;
        grants.kept = false;
        Ok(())
    }
}

impl Grants {
    /// How many notifications of this connection wait, whatever its keys.
    fn notified(&mut self, remote: &Arc<Remote>) -> Arc<AtomicUsize> {
        self.keys.retain(|granted| granted.remote.strong_count() > 0);
        self.notified.retain(|(remote, _)| remote.strong_count() > 0);
        let known = self.notified.iter().find(|(other, _)| std::ptr::eq(other.as_ptr(), Arc::as_ptr(remote)));
        if let Some((_, count)) = known {
            return count.clone();
        }
        let count = Arc::new(AtomicUsize::new(0));
        self.notified.push((Arc::downgrade(remote), count.clone()));
        count
    }
}

fn revoke_all(granted: impl IntoIterator<Item = Granted>) {
    for granted in granted {
        if let Some(remote) = granted.remote.upgrade() {
            remote.revoke(&granted.key);
            remote.forget_expiry(&granted.key);
        }
    }
}

pub(super) fn memory(len: usize, in_memfd: bool) -> Result<ExportMemory, RegionError> {
    let builder = Region::builder(len).name("export");
    let builder = match in_memfd {
        // Prefaulted: a page that a peer touches and that can't be made would end its process.
        true => builder.backing(Backing::Memfd).sealing(Sealing::AnyoneWrites).prefault(true),
        false => builder,
    };
    ExportMemory::new(builder, len)
}
