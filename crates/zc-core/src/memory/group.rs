//! Memory that goes to many connections.

use super::pool::WeakPool;
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
pub struct MemoryGroup {
    shares: Arc<Shares>,
    pool: BufPool,
}

/// How the memory of a group is shared out. Members have this, and so keep no memory.
#[derive(Debug)]
struct Shares {
    id: GroupId,
    max_bytes: usize,
    /// Members see the memory of each other's connections.
    forwards: bool,
    /// At most one entry per live registrar (M9).
    members: Mutex<Vec<(RegistrarId, Weak<dyn Registrar>)>>,
    /// How many these are, for whoever asks at each message.
    count: AtomicUsize,
    /// What members and those who were hold, each of its own: a buffer that several hold counts for each.
    lent_bytes: AtomicUsize,
}

impl Shares {
    fn members(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// What all together may hold: one part is left.
    fn most_lent_bytes(&self) -> usize {
        let members = self.members();
        self.max_bytes - self.max_bytes / (members + 1)
    }

    /// Nobody can send from the group any more.
    fn end(&self) {
        let members: Vec<_> = self.members.lock().iter().filter_map(|(_, one)| one.upgrade()).collect();
        members.iter().for_each(|one| one.group_is_over(self.id));
    }
}

impl MemoryGroup {
    /// A group without members, on a pool of its own.
    pub fn new(pool: BufPoolBuilder) -> Self {
        Self::with(pool, false)
    }

    /// As [`MemoryGroup::new`], of members that also see the memory of each other's connections, so that what one of
    /// them sent is forwarded to another as it lies.
    pub fn forwarding(pool: BufPoolBuilder) -> Self {
        Self::with(pool, true)
    }

    fn with(pool: BufPoolBuilder, forwards: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = GroupId(NEXT.fetch_add(1, Ordering::Relaxed));
        let pool = pool.group(id).build();
        let shares = Shares {
            id,
            max_bytes: pool.max_bytes(),
            forwards,
            members: Mutex::default(),
            count: AtomicUsize::new(0),
            lent_bytes: AtomicUsize::new(0),
        };
        let shares = Arc::new(shares);
        let ends = shares.clone();
        pool.at_end(Box::new(move || ends.end()));
        Self { shares, pool }
    }

    /// Whether members see the memory of each other's connections, and not only that of the group.
    pub fn forwards(&self) -> bool {
        self.shares.forwards
    }

    /// Identifies the group.
    pub fn id(&self) -> GroupId {
        self.shares.id
    }

    /// The memory of the group.
    pub fn pool(&self) -> &BufPool {
        &self.pool
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.shares.members()
    }

    /// Bytes that members may read, or those who were members until they have given them back; a buffer that several of
    /// them hold counts for each.
    pub fn lent_bytes(&self) -> usize {
        self.shares.lent_bytes.load(Ordering::Acquire)
    }

    /// Lets a registrar use the memory of the group until the membership is dropped.
    pub fn join(&self, registrar: &Arc<dyn Registrar>) -> Result<Membership, RegisterError> {
        let id = registrar.id();
        let mut members = self.shares.members.lock();
        if members.iter().any(|(known, _)| *known == id) {
            return Err(RegisterError::AlreadyMember);
        }
        members.push((id, Arc::downgrade(registrar)));
        self.shares.count.store(members.len(), Ordering::Release);
        drop(members);
        let (shares, pool) = (self.shares.clone(), self.pool.downgrade());
        Ok(Membership { shares, pool, id, registrar: Arc::downgrade(registrar) })
    }
}

/// Bytes of a group that a member may read, until this is dropped; see [`Membership::lend`].
///
/// ```
/// use zc_core::memory::{LentBytes, Membership, PinnedBuf};
///
/// /// A buffer that a peer holds, and for how much that counts; dropped together when it gave it back.
/// struct Loan(PinnedBuf, LentBytes);
///
/// fn lend(member: &Membership, buf: PinnedBuf) -> Option<Loan> {
///     let counted = member.lend(buf.kept_bytes())?;
///     Some(Loan(buf, counted))
/// }
/// # let _ = lend;
/// ```
#[derive(Debug)]
pub struct LentBytes {
    group: Arc<Shares>,
    bytes: usize,
}

impl Drop for LentBytes {
    fn drop(&mut self) {
        self.group.lent_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
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
/// own its memberships, and it keeps no memory: when nobody has a handle to the group or a buffer any more, the regions
/// go, which their registrars hear of.
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
    shares: Arc<Shares>,
    pool: WeakPool,
    id: RegistrarId,
    registrar: Weak<dyn Registrar>,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("group", &self.group()).finish_non_exhaustive()
    }
}

impl Membership {
    /// The group.
    pub fn group(&self) -> GroupId {
        self.shares.id
    }

    /// Whether nothing of the group can be sent any more: nobody has a handle to it or its pool, nor a buffer.
    pub fn is_over(&self) -> bool {
        !self.pool.is_used()
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.shares.members()
    }

    /// What one member may keep from all others: an equal part, such that one more is left when all have theirs.
    pub fn share_bytes(&self) -> usize {
        self.shares.max_bytes / (self.members() + 1)
    }

    /// Counts so many bytes of a buffer, which is in use, as such that this member may read until what is returned is
    /// dropped, be it a member then or not. `None` when all members, and those who were, might then hold more than leaves one
    /// [part](Self::share_bytes), whoever came and went and however large the parts were before.
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
    /// let group = MemoryGroup::new(BufPool::builder().max_bytes(8 << 20));
    /// let member = group.join(&ring)?;
    /// assert_eq!(member.share_bytes(), 4 << 20);
    /// let bufs = [(); 6].map(|()| group.pool().try_alloc(1 << 20).unwrap().freeze());
    /// let lent: Vec<_> = bufs.iter().map_while(|_| member.lend(1 << 20)).collect();
    /// assert_eq!((lent.len(), group.lent_bytes()), (4, 4 << 20));
    /// drop((member, bufs));
    /// assert_eq!(group.lent_bytes(), 4 << 20, "they are read still");
    /// drop(lent);
    /// assert_eq!(group.lent_bytes(), 0);
    /// # Ok::<(), RegisterError>(())
    /// ```
    pub fn lend(&self, bytes: usize) -> Option<LentBytes> {
        let before = self.shares.lent_bytes.fetch_add(bytes, Ordering::AcqRel);
        let counted = LentBytes { group: self.shares.clone(), bytes };
        let most = self.shares.most_lent_bytes();
        // Who holds the same as others counts twice above; all that is in use is never less than what is held.
        let fits = before.saturating_add(bytes) <= most || self.pool.in_use_bytes() <= most as u64;
        fits.then_some(counted)
    }

    /// Where the buffer lies, for this member; its region is registered if it was not yet. O(1)
    /// without a lock when it was.
    pub fn place_of(&self, buf: &PinnedBuf) -> Result<Place, RegisterError> {
        let (region, offset) = buf.place().ok_or(RegisterError::NotInGroup)?;
        let is_gone = self.registrar.strong_count() == 0;
        if is_gone || region.group() != Some(self.group()) {
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
        regions_of_group(self.group()).iter().try_for_each(|region| self.register(region).map(drop))
    }

    fn register(&self, region: &Region) -> Result<u64, RegisterError> {
        let registrar = self.registrar.upgrade().ok_or(RegisterError::NotInGroup)?;
        region.register_member(&registrar)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // By address, not from the pool: a buffer may have outlived it.
        for region in regions_of_group(self.group()) {
            region.deregister_from(self.id);
        }
        let mut members = self.shares.members.lock();
        members.retain(|(id, _)| *id != self.id);
        self.shares.count.store(members.len(), Ordering::Release);
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
        over: Mutex<Vec<GroupId>>,
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
        fn group_is_over(&self, group: GroupId) {
            self.over.lock().push(group);
        }
    }

    fn member() -> (Arc<Member>, Arc<dyn Registrar>) {
        let slot = RegistrarSlot::allocate().unwrap();
        let member = Arc::new(Member { slot, known: Mutex::default(), over: Mutex::default() });
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

    /// What is left of a group is told to its members as any region's end is; nobody has to look.
    #[test]
    fn memory_that_nobody_has_goes_while_there_are_members() {
        let group = MemoryGroup::new(BufPool::builder().max_bytes(8 << 20).backing(Backing::Memfd));
        let (member, registrar) = member();
        let membership = group.join(&registrar).unwrap();
        let mut buf = group.pool().try_alloc(1000).unwrap();
        buf.put_slice(&[1; 1000]);
        let buf = buf.freeze();
        let pool = group.pool().clone();
        drop(group);
        membership.place_of(&buf).unwrap();
        drop(pool);
        assert!(!membership.is_over(), "it may still be sent");
        membership.place_of(&buf).unwrap();
        assert_eq!(member.known.lock().len(), 1);
        drop(buf);
        assert!(membership.is_over());
        assert!(member.known.lock().is_empty());
        assert!(regions_of_group(membership.group()).is_empty());
    }

    /// Each takes as much as it may when it comes, and those who come later find the parts smaller: in all they never hold
    /// what would leave less than a part.
    #[test]
    fn one_part_is_left_whoever_came_before() {
        const BLOCK: usize = 64 << 10;
        let group = MemoryGroup::new(BufPool::builder().max_bytes(8 << 20));
        let (mut members, mut lent, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..4 {
            let registrar = member().1;
            let joined = group.join(&registrar).unwrap();
            let mut own = 0;
            while own + BLOCK <= joined.share_bytes() {
                let buf = group.pool().try_alloc(BLOCK).unwrap().freeze();
                let Some(counted) = joined.lend(BLOCK) else {
                    refused.push(registrar);
                    break;
                };
                own += BLOCK;
                lent.push((buf, counted));
            }
            members.push(joined);
            let most = (8 << 20) - (8 << 20) / (members.len() + 1);
            assert!(group.lent_bytes() <= most, "{} of {most}", group.lent_bytes());
        }
        assert!(refused.len() >= 2 && lent.len() > 90);
        members.clear();
        let registrar = member().1;
        let again = group.join(&registrar).unwrap();
        assert!(again.lend(BLOCK).is_none(), "what was left behind counts");
        lent.clear();
        assert!(again.lend(BLOCK).is_some() && group.lent_bytes() == 0);
    }

    /// What all of them hold is there once, however many they are.
    #[test]
    fn a_buffer_that_many_hold_is_one() {
        let group = MemoryGroup::new(BufPool::builder().max_bytes(8 << 20));
        let _buf = group.pool().try_alloc(1 << 20).unwrap().freeze();
        let mut lent = Vec::new();
        for _ in 0..20 {
            let registrar = member().1;
            // Each goes again at once, and still reads it.
            lent.push(group.join(&registrar).unwrap().lend(1 << 20).unwrap());
        }
        assert_eq!(group.lent_bytes(), 20 << 20);
    }

    /// Members hear that nothing can be sent any more.
    #[test]
    fn members_hear_of_the_end() {
        let group = MemoryGroup::new(BufPool::builder().max_bytes(8 << 20));
        let (member, registrar) = member();
        let _joined = group.join(&registrar).unwrap();
        let buf = group.pool().try_alloc(1000).unwrap();
        let id = group.id();
        drop(group);
        assert!(member.over.lock().is_empty(), "a buffer is there");
        drop(buf);
        assert_eq!(*member.over.lock(), [id]);
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
