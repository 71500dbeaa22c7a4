//! Memory that goes to many connections.

use super::region::regions_of_group;
use super::{BufPool, BufPoolBuilder, PinnedBuf, Region, RegisterError, Registrar, RegistrarId};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Identifies a group; never reused within a process.
///
/// ```
/// use zc_core::memory::{BufPool, MemoryGroup};
///
/// let group = MemoryGroup::new(BufPool::builder());
/// let buf = group.pool().try_alloc(100)?;
/// assert_eq!(buf.region().unwrap().group(), Some(group.id()));
/// # Ok::<(), zc_core::memory::AllocError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u64);

/// A pool whose regions every member can use: what is allocated once goes to many connections
/// without a copy. Cloning gives another handle to the same group.
///
/// A member is a [`Registrar`]: a ring, a protection domain, or a connection whose peer maps the group. A
/// transport that sends any memory as it is needs no membership. Each region is registered with each member once, when memory of it is first sent there. A
/// transport learns from [`Region::group`](super::Region::group) which group memory belongs to.
///
/// **Isolation.** Members share whole regions, not messages. A peer that can map or read the group's
/// memory (a process on this host, a remote with a key) can read *all* of it: messages meant for
/// other members, and what freed buffers left behind. Put only peers into one group that may see
/// each other's messages; everyone else uses the memory of its own connection. For the same
/// reason nobody joins by itself: a region is registered only through a [`Membership`]
/// ([`Region::register_with`](super::Region::register_with) refuses it).
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::*;
///
/// # struct Ring(RegistrarSlot);
/// # impl Registrar for Ring {
/// #     fn id(&self) -> RegistrarId { self.0.id() }
/// #     fn register(&self, region: &Region) -> Result<u64, RegisterError> { Ok(region.id().0) }
/// #     fn deregister(&self, _: RegionId, _: u64) -> std::io::Result<()> { Ok(()) }
/// # }
/// # let (one, other): (Arc<dyn Registrar>, Arc<dyn Registrar>) = (
/// #     Arc::new(Ring(RegistrarSlot::allocate()?)),
/// #     Arc::new(Ring(RegistrarSlot::allocate()?)),
/// # );
/// let group = MemoryGroup::new(BufPool::builder().name("quotes").backing(Backing::Memfd));
/// let (to_one, to_other) = (group.join(&one)?, group.join(&other)?);
/// let mut buf = group.pool().try_alloc(100).unwrap();
/// buf.put_slice(b"goes to both");
/// let buf = buf.freeze();
/// let place = to_one.place_of(&buf)?; // Registers the region with `one`.
/// assert_eq!(to_other.place_of(&buf)?.offset, place.offset);
/// drop(to_one);
/// assert_eq!(group.members(), 1);
/// # Ok::<(), RegisterError>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemoryGroup(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: GroupId,
    pool: BufPool,
    /// Members see the memory of each other's connections.
    forwards: bool,
    /// At most one entry per live registrar (M9).
    members: Mutex<Vec<RegistrarId>>,
    left_behind_bytes: AtomicUsize,
}

impl MemoryGroup {
    /// A group without members, on a pool of its own.
    pub fn new(pool: BufPoolBuilder) -> Self {
        Self::with(pool, false)
    }

    /// As [`MemoryGroup::new`], of members that also see the memory of each other's connections, so that what one of
    /// them sent is forwarded to another as it lies ([`Isolation::Group`](crate::transport::Isolation::Group)).
    pub fn forwarding(pool: BufPoolBuilder) -> Self {
        Self::with(pool, true)
    }

    fn with(pool: BufPoolBuilder, forwards: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = GroupId(NEXT.fetch_add(1, Ordering::Relaxed));
        let pool = pool.group(id).build();
        Self(Arc::new(Inner {
            id,
            pool,
            forwards,
            members: Mutex::default(),
            left_behind_bytes: AtomicUsize::new(0),
        }))
    }

    /// Whether members see the memory of each other's connections, and not only that of the group.
    pub fn forwards(&self) -> bool {
        self.0.forwards
    }

    /// Identifies the group.
    pub fn id(&self) -> GroupId {
        self.0.id
    }

    /// The memory of the group.
    pub fn pool(&self) -> &BufPool {
        &self.0.pool
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.0.members.lock().len()
    }

    /// Whether nothing of it can be sent any more: only memberships have a handle, and nobody has a buffer.
    pub fn is_closed(&self) -> bool {
        Arc::strong_count(&self.0) <= self.members() && self.pool().stats().in_use_bytes == 0
    }

    /// Bytes that may still be read by those who are members no more: whoever shares out the memory leaves them out.
    pub fn left_behind_bytes(&self) -> usize {
        self.0.left_behind_bytes.load(Ordering::Acquire)
    }

    /// Counts so many bytes as such, until what is returned is dropped.
    pub fn leave_behind(self, bytes: usize) -> LeftBehind {
        self.0.left_behind_bytes.fetch_add(bytes, Ordering::AcqRel);
        LeftBehind { group: self, bytes }
    }

    /// Lets a registrar use the memory of the group until the membership is dropped.
    pub fn join(&self, registrar: &Arc<dyn Registrar>) -> Result<Membership, RegisterError> {
        let id = registrar.id();
        let mut members = self.0.members.lock();
        if members.contains(&id) {
            return Err(RegisterError::AlreadyMember);
        }
        members.push(id);
        drop(members);
        Ok(Membership { group: self.clone(), id, registrar: Arc::downgrade(registrar) })
    }
}

/// Bytes of a group that one who is a member no more may still read.
///
/// ```
/// use zc_core::memory::{BufPool, MemoryGroup};
///
/// let group = MemoryGroup::new(BufPool::builder());
/// let left = group.clone().leave_behind(100);
/// assert_eq!(group.left_behind_bytes(), 100);
/// drop(left);
/// assert_eq!(group.left_behind_bytes(), 0);
/// ```
#[derive(Debug)]
pub struct LeftBehind {
    group: MemoryGroup,
    bytes: usize,
}

impl Drop for LeftBehind {
    fn drop(&mut self) {
        self.group.0.left_behind_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Where a buffer lies, as a member of its group names it.
///
/// ```
/// use zc_core::memory::{Membership, PinnedBuf, RegisterError};
///
/// /// What a descriptor of a buffer says.
/// fn describe(member: &Membership, buf: &PinnedBuf) -> Result<(u64, usize, usize), RegisterError> {
///     let place = member.place_of(buf)?;
///     Ok((place.key, place.offset, buf.len()))
/// }
/// # let _ = describe;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The member's key of the region.
    pub key: u64,
    /// The offset in the region.
    pub offset: usize,
}

/// The right of a registrar to use the memory of a group.
///
/// Dropping it ends that: every region of the group is deregistered. The member has then nothing
/// under way that uses memory of the group (M1, M2). It holds the registrar weakly, so a registrar may
/// own its memberships.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::*;
///
/// # struct Ring(RegistrarSlot);
/// # impl Registrar for Ring {
/// #     fn id(&self) -> RegistrarId { self.0.id() }
/// #     fn register(&self, region: &Region) -> Result<u64, RegisterError> { Ok(region.id().0) }
/// #     fn deregister(&self, _: RegionId, _: u64) -> std::io::Result<()> { Ok(()) }
/// # }
/// let ring: Arc<dyn Registrar> = Arc::new(Ring(RegistrarSlot::allocate()?));
/// let group = MemoryGroup::new(BufPool::builder());
/// let member = group.join(&ring)?;
/// assert!(matches!(group.join(&ring), Err(RegisterError::AlreadyMember)));
/// assert!(matches!(member.place_of(&PinnedBuf::from(vec![1])), Err(RegisterError::NotInGroup)));
/// # Ok::<(), RegisterError>(())
/// ```
pub struct Membership {
    group: MemoryGroup,
    id: RegistrarId,
    registrar: Weak<dyn Registrar>,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("group", &self.group.id()).finish_non_exhaustive()
    }
}

impl Membership {
    /// The group.
    pub fn group(&self) -> &MemoryGroup {
        &self.group
    }

    /// Where the buffer lies, for this member; its region is registered if it was not yet. O(1)
    /// without a lock when it was.
    pub fn place_of(&self, buf: &PinnedBuf) -> Result<Place, RegisterError> {
        let (region, offset) = buf.place().ok_or(RegisterError::NotInGroup)?;
        let is_gone = self.registrar.strong_count() == 0;
        if is_gone || region.group() != Some(self.group.id()) {
            return Err(RegisterError::NotInGroup);
        }
        let key = match region.key_for(self.id) {
            Some(key) => key,
            None => self.register(region)?,
        };
        Ok(Place { key, offset })
    }

    /// Registers all regions that the group has now, ahead of use.
    pub fn register_all(&self) -> Result<(), RegisterError> {
        self.group.pool().regions().iter().try_for_each(|region| self.register(region).map(drop))
    }

    fn register(&self, region: &Region) -> Result<u64, RegisterError> {
        let registrar = self.registrar.upgrade().ok_or(RegisterError::NotInGroup)?;
        region.register_member(&registrar)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // By address, not from the pool: a buffer may have outlived it.
        for region in regions_of_group(self.group.id()) {
            region.deregister_from(self.id);
        }
        self.group.0.members.lock().retain(|id| *id != self.id);
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::super::{Backing, RegionId, RegistrarSlot};
    use super::*;

    struct Member {
        slot: RegistrarSlot,
        known: Mutex<Vec<RegionId>>,
    }

    impl Registrar for Member {
        fn id(&self) -> RegistrarId {
            self.slot.id()
        }
        fn register(&self, region: &Region) -> Result<u64, RegisterError> {
            assert!(region.fd().is_some(), "a peer maps it");
            self.known.lock().push(region.id());
            Ok(region.id().0 + 1000)
        }
        fn deregister(&self, region: RegionId, key: u64) -> std::io::Result<()> {
            assert_eq!(key, region.0 + 1000);
            self.known.lock().retain(|id| *id != region);
            Ok(())
        }
    }

    fn member() -> (Arc<Member>, Arc<dyn Registrar>) {
        let slot = RegistrarSlot::allocate().unwrap();
        let member = Arc::new(Member { slot, known: Mutex::default() });
        (member.clone(), member)
    }

    #[test]
    fn one_buffer_goes_to_many_and_leaving_ends_it() {
        let group = MemoryGroup::new(BufPool::builder().max_bytes(8 << 20).backing(Backing::Memfd));
        let (a, dyn_a) = member();
        let (b, dyn_b) = member();
        let (to_a, to_b) = (group.join(&dyn_a).unwrap(), group.join(&dyn_b).unwrap());
        assert!(matches!(group.join(&dyn_a), Err(RegisterError::AlreadyMember)));
        let buf = group.pool().try_alloc(1000).unwrap().freeze();
        let region = buf.region().unwrap().clone();
        let nowhere = to_a.place_of(&buf).unwrap_err();
        assert!(matches!(nowhere, RegisterError::NotInGroup), "no bytes lie nowhere");
        let mut buf = group.pool().try_alloc(1000).unwrap();
        buf.put_slice(&[1; 100]);
        let buf = buf.freeze();
        let whole = to_a.place_of(&buf).unwrap();
        let part = to_a.place_of(&buf.slice(10..)).unwrap();
        assert_eq!((part.key, part.offset), (whole.key, whole.offset + 10));
        assert_eq!(to_b.place_of(&buf).unwrap(), whole);
        assert_eq!((a.known.lock().len(), b.known.lock().len()), (1, 1));
        // What went around as `Bytes` is found again.
        let back = PinnedBuf::from(buf.clone().into_bytes());
        assert_eq!(to_b.place_of(&back).unwrap(), whole);

        drop(to_a);
        assert!(a.known.lock().is_empty());
        assert_eq!((region.key_for(a.id()), region.key_for(b.id())), (None, Some(whole.key)));
        drop((buf, back, region));
        group.pool().trim();
        drop(to_b);
        assert_eq!(group.members(), 0);
    }

    #[test]
    fn a_group_is_closed_when_only_members_are_left() {
        let group = MemoryGroup::new(BufPool::builder().max_bytes(8 << 20).backing(Backing::Memfd));
        let (_, registrar) = member();
        let membership = group.join(&registrar).unwrap();
        let mut buf = group.pool().try_alloc(1000).unwrap();
        buf.put_slice(&[1; 1000]);
        let buf = buf.freeze();
        assert!(buf.slice(3..5).kept_bytes() >= 1000);
        drop(group);
        assert!(!membership.group().is_closed(), "it may still be sent");
        drop(buf);
        assert!(membership.group().is_closed());
        let left = membership.group().clone().leave_behind(5);
        assert_eq!(membership.group().left_behind_bytes(), 5);
        drop(left);
        assert!(membership.group().is_closed());
    }

    #[test]
    fn memory_of_others_is_refused() {
        let group = MemoryGroup::new(BufPool::builder().max_bytes(1 << 20).backing(Backing::Memfd));
        let other = MemoryGroup::new(BufPool::builder().max_bytes(1 << 20).backing(Backing::Memfd));
        let (_, registrar) = member();
        let membership = group.join(&registrar).unwrap();
        let mut buf = other.pool().try_alloc(10).unwrap();
        buf.put_slice(b"x");
        for foreign in [buf.freeze(), PinnedBuf::from(vec![1]), PinnedBuf::from_static(b"s")] {
            assert!(matches!(membership.place_of(&foreign), Err(RegisterError::NotInGroup)));
        }
    }

    #[test]
    fn who_is_no_member_gets_no_key() {
        let group = MemoryGroup::new(BufPool::builder().max_bytes(1 << 20).backing(Backing::Memfd));
        let mut buf = group.pool().try_alloc(10).unwrap();
        buf.put_slice(b"x");
        let buf = buf.freeze();
        let region = buf.region().unwrap();
        let (stranger, dynamic) = member();
        assert!(matches!(region.register_with(&dynamic), Err(RegisterError::NotInGroup)));
        assert!(stranger.known.lock().is_empty());
        // One that is gone, though its key has not been overwritten yet.
        let membership = group.join(&dynamic).unwrap();
        membership.place_of(&buf).unwrap();
        drop((stranger, dynamic));
        assert!(matches!(membership.place_of(&buf), Err(RegisterError::NotInGroup)));
    }

    #[test]
    fn regions_are_registered_ahead() {
        let group = MemoryGroup::new(BufPool::builder().max_bytes(8 << 20).backing(Backing::Memfd));
        let (a, registrar) = member();
        let membership = group.join(&registrar).unwrap();
        let _small = group.pool().try_alloc(10).unwrap();
        let _large = group.pool().try_alloc(5 << 20).unwrap();
        membership.register_all().unwrap();
        assert_eq!(a.known.lock().len(), group.pool().regions().len());
    }
}
