//! One contiguous mapping, page aligned, with its registrations.

mod builder;
mod directory;
mod key_slot;
mod memlock;
mod peer;
mod registrar;
mod registration;
mod sys;

pub use builder::{Backing, RegionBuilder, Sealing};
pub use directory::region_of;
pub(super) use directory::regions_of_group;
pub use memlock::{MemlockBudget, MemlockExceeded, MemlockGrant};
pub use peer::PeerMapping;
pub use registrar::{MAX_REGISTRARS, RegisterError, Registrar, RegistrarId, RegistrarSlot};
pub(super) use sys::{HUGE_1G, HUGE_2M, page_size};

use super::GroupId;
use registration::Registrations;
use rustix::io::Errno;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Identifies a region; never reused within a process.
///
/// ```
/// use zc_core::memory::Region;
///
/// let (a, b) = (Region::builder(1).build()?, Region::builder(1).build()?);
/// assert_ne!(a.id(), b.id());
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub u64);

/// Whose memory it is.
///
/// ```
/// use zc_core::memory::{Region, RegionKind};
///
/// assert_eq!(Region::builder(4096).build()?.info().kind, RegionKind::Own);
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// This process mapped it for itself, and possibly for others to read.
    Own,
    /// Another process made it and may write it at any time.
    Peer,
    /// A file.
    File,
}

/// The pages a region got.
///
/// ```
/// use zc_core::memory::{PageKind, Region};
///
/// match Region::builder(4096).build()?.info().page {
///     PageKind::Base | PageKind::Transparent => {}
///     PageKind::Huge2M | PageKind::Huge1G => println!("fewer entries in the TLB"),
/// }
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// The system's base page.
    Base,
    /// Base pages that the kernel may join (advised).
    Transparent,
    /// Reserved 2 MiB pages.
    Huge2M,
    /// Reserved 1 GiB pages.
    Huge1G,
}

/// One step that did not work out.
///
/// ```
/// use zc_core::memory::{Backing, Region};
///
/// let region = Region::builder(1 << 30).backing(Backing::Huge1G).build()?;
/// for step in &region.info().fallbacks {
///     println!("no {}: {}", step.wanted, step.reason);
/// }
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RegionFallback {
    /// What was tried.
    pub wanted: &'static str,
    /// The system's error number; 0 if it was not the system that refused.
    pub errno: i32,
    /// Why, and what to do about it.
    pub reason: String,
}

impl RegionFallback {
    fn new(wanted: &'static str, errno: Errno, hint: &str) -> Self {
        Self { wanted, errno: errno.raw_os_error(), reason: format!("{errno} ({hint})") }
    }

    fn of(wanted: &'static str, error: &RegionError, hint: &str) -> Self {
        let errno = match error {
            RegionError::Os { errno, .. } => errno.raw_os_error().unwrap_or(0),
            _ => 0,
        };
        Self { wanted, errno, reason: format!("{error} ({hint})") }
    }
}

/// What was asked for and what came of it.
///
/// ```
/// use zc_core::memory::{Backing, PageKind, Region};
///
/// let region = Region::builder(2 << 20).backing(Backing::Huge2M).build()?;
/// let info = region.info();
/// if info.page != PageKind::Huge2M {
///     assert_eq!(info.fallbacks[0].wanted, "2 MiB pages"); // And `reason` says why not.
/// }
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RegionInfo {
    /// Whose memory it is.
    pub kind: RegionKind,
    /// The backing asked for, of our own memory.
    pub requested: Option<Backing>,
    /// The pages it got, as far as is known.
    pub page: PageKind,
    /// Every step that failed on the way.
    pub fallbacks: Vec<RegionFallback>,
    /// Whether the pages are locked.
    pub locked: bool,
    /// The name given to it.
    pub name: &'static str,
}

/// Why there is no region.
///
/// ```
/// use zc_core::memory::{Region, RegionError};
///
/// assert!(matches!(Region::builder(0).build(), Err(RegionError::BadLength(0))));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// A region of no bytes, or of more than an address can count.
    #[error("a region cannot have {0} bytes")]
    BadLength(usize),
    /// The system refused.
    #[error("{what}: {errno}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The error.
        errno: std::io::Error,
    },
    /// The limit of locked memory is reached.
    #[error(transparent)]
    Memlock(#[from] MemlockExceeded),
    /// A peer's memory is longer than accepted.
    #[error("the peer's memory has {len} bytes, of which {max} are accepted")]
    PeerTooLong {
        /// Its length.
        len: u64,
        /// The longest accepted.
        max: usize,
    },
    /// A peer's memory lacks seals that keep it from changing under us.
    #[error("the peer's memory is not sealed: {missing}")]
    NotSealed {
        /// The seals that are missing.
        missing: String,
    },
}

fn os(what: &'static str) -> impl FnOnce(Errno) -> RegionError {
    move |e| RegionError::Os { what, errno: e.into() }
}

/// Something that lives as long as a mapping.
type Held = Box<dyn Send + Sync>;

struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Keeps the mapping out of children (M8), unmapping it if that fails.
    fn new(base: NonNull<u8>, len: usize) -> Result<Self, RegionError> {
        let mapping = Self { base, len };
        sys::dont_fork(base, len).map_err(os("madvise(DONTFORK)"))?;
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: a whole mapping of ours; the last reference to the region is gone, and with it
        // every block (M2) and every registration (M4).
        if let Err(error) = unsafe { sys::unmap(self.base, self.len) } {
            tracing::error!(%error, "munmap failed, the memory is leaked (M4)");
        }
    }
}

struct Inner {
    id: RegionId,
    registrations: Registrations,
    info: RegionInfo,
    group: Option<GroupId>,
    fd: Option<OwnedFd>,
    read_only: bool,
    /// The process that mapped it.
    process: u32,
    mapping: ManuallyDrop<Mapping>,
    /// Budgets, given back when it is unmapped.
    held: ManuallyDrop<[Option<Held>; 2]>,
}

// SAFETY: the mapping is plain memory without a thread of its own; who may access it is governed by
// blocks and frames (M5). The other fields are Send themselves.
unsafe impl Send for Inner {}
// SAFETY: as for Send (M5).
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // A forked child: the mapping is not here, its address may be somebody else's, and the
            // registrations are the parent's (M8).
            return;
        }
        let deregistered = self.registrations.deregister_all(self.id);
        directory::remove(self.mapping.base.addr().get());
        if !deregistered {
            tracing::error!(region = self.id.0, "still registered, the memory is leaked (M4)");
            return;
        }
        // SAFETY: taken once, here (M7), when nobody has it registered any more (M4). Unmapped before the
        // budgets are given back.
        unsafe {
            ManuallyDrop::drop(&mut self.mapping);
            ManuallyDrop::drop(&mut self.held);
        }
    }
}

/// One contiguous mapping. Cloning counts a reference; the last drop deregisters and unmaps.
///
/// A region hands out raw pointers and never a reference, because others may write it: a peer, a
/// device, the kernel. Memory becomes `&[u8]` only as a buffer of a [`BufPool`](super::BufPool) or a
/// frame of a [`FrameTable`](super::FrameTable), which know who may touch what.
///
/// ```
/// use zc_core::memory::{Backing, Region};
///
/// let region = Region::builder(10_000).backing(Backing::Memfd).name("ring").build()?;
/// assert_eq!(region.len(), 12_288); // Whole pages.
/// assert!(region.fd().is_some());
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Clone)]
pub struct Region(Arc<Inner>);

/// A region that this does not keep mapped.
#[derive(Clone)]
pub(super) struct WeakRegion(Weak<Inner>);

impl WeakRegion {
    pub(super) fn upgrade(&self) -> Option<Region> {
        self.0.upgrade().map(Region)
    }

    pub(super) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("id", &self.id().0).field("len", &self.len()).finish()
    }
}

/// The parts of a region that differ by how it came about.
struct Parts {
    mapping: Mapping,
    info: RegionInfo,
    fd: Option<OwnedFd>,
    read_only: bool,
    group: Option<GroupId>,
    held: [Option<Held>; 2],
}

impl Region {
    /// A region of at least `len` bytes (rounded up to whole pages).
    pub fn builder(len: usize) -> RegionBuilder {
        RegionBuilder::new(len)
    }

    /// Maps a whole file, read-only.
    ///
    /// To send a file safely, read it into memory of a pool:
    /// [`BufPool::read_file`](super::BufPool::read_file).
    ///
    /// # Safety
    /// Nobody truncates or changes the file while the region, or a buffer of it, lives: a change is
    /// seen through `&[u8]`, which is undefined behaviour, and access past a new end of the file
    /// kills the process (SIGBUS).
    ///
    /// ```
    /// use zc_core::memory::{Region, RegionKind};
    ///
    /// let file = std::fs::File::open(std::env::current_exe()?)?;
    /// // SAFETY: a running program is not written (ETXTBSY) and its file not truncated (M5).
    /// let region = unsafe { Region::map_file(file) }.map_err(std::io::Error::other)?;
    /// assert_eq!(region.info().kind, RegionKind::File);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub unsafe fn map_file(file: File) -> Result<Self, RegionError> {
        let size = file.metadata().map_err(|errno| RegionError::Os { what: "stat", errno })?.len();
        let len = usize::try_from(size).map_err(|_| RegionError::BadLength(usize::MAX))?;
        if len == 0 {
            return Err(RegionError::BadLength(0));
        }
        let base = sys::map_fd(&file, len, false).map_err(os("mmap of a file"))?;
        let mapping = Mapping::new(base, len)?;
        let info = RegionInfo {
            kind: RegionKind::File,
            requested: None,
            page: PageKind::Base,
            fallbacks: Vec::new(),
            locked: false,
            name: "file",
        };
        let held = [None, None];
        let fd = Some(file.into());
        Ok(Self::assemble(Parts { mapping, info, fd, read_only: true, group: None, held }))
    }

    fn assemble(parts: Parts) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let region = Self(Arc::new(Inner {
            id: RegionId(NEXT.fetch_add(1, Ordering::Relaxed)),
            registrations: Registrations::default(),
            info: parts.info,
            group: parts.group,
            fd: parts.fd,
            read_only: parts.read_only,
            process: std::process::id(),
            mapping: ManuallyDrop::new(parts.mapping),
            held: ManuallyDrop::new(parts.held),
        }));
        directory::insert(&region);
        region
    }

    pub(super) fn downgrade(&self) -> WeakRegion {
        WeakRegion(Arc::downgrade(&self.0))
    }

    /// Identifies the region.
    pub fn id(&self) -> RegionId {
        self.0.id
    }

    /// The group that its memory belongs to, if any. O(1).
    pub fn group(&self) -> Option<GroupId> {
        self.0.group
    }

    /// The first byte.
    #[inline]
    pub fn base(&self) -> *const u8 {
        self.0.mapping.base.as_ptr()
    }

    /// The first byte, for transports: to describe the memory to a device, the kernel or a peer, and
    /// to reach control structures in it with atomic or volatile accesses.
    ///
    /// The pointer is valid for [`len`](Self::len) bytes while the region lives, and must not be
    /// written if the region [is read-only](Self::is_read_only). Making a reference out of it is
    /// sound only for bytes that nobody else may write (M5), in particular none that a pool or a
    /// [`FrameTable`](super::FrameTable) has lent.
    #[inline]
    pub fn base_mut(&self) -> NonNull<u8> {
        self.0.mapping.base
    }

    /// Where `len` bytes at `ptr` lie in the region, if they do.
    pub fn offset_of(&self, ptr: *const u8, len: usize) -> Option<usize> {
        let offset = ptr.addr().checked_sub(self.base().addr())?;
        (offset.checked_add(len)? <= self.len()).then_some(offset)
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.0.mapping.len
    }

    /// Never: there are no empty regions.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The file behind it, if there is one: what a peer is given, to map it.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd.as_ref().map(AsFd::as_fd)
    }

    /// Whether writing would fault.
    pub fn is_read_only(&self) -> bool {
        self.0.read_only
    }

    /// What was asked for and what came of it.
    pub fn info(&self) -> &RegionInfo {
        &self.0.info
    }

    /// The key under which `registrar` knows this region, or knew it: that of a registrar which was dropped
    /// is found until the region is registered anew with any. O(1), no lock.
    pub fn key_for(&self, registrar: RegistrarId) -> Option<u64> {
        self.0.registrations.key_for(registrar)
    }

    /// Registers once; later calls return the same key.
    ///
    /// # Errors
    /// [`RegisterError::NotInGroup`] for memory of a group: that is for its members, who have a
    /// [`Membership`](super::Membership). Else what the registrar says.
    pub fn register_with(&self, registrar: &Arc<dyn Registrar>) -> Result<u64, RegisterError> {
        match self.group() {
            None => self.register_member(registrar),
            Some(_) => Err(RegisterError::NotInGroup),
        }
    }

    /// As [`register_with`](Self::register_with), for one that may know memory of the region's group.
    pub(super) fn register_member(&self, registrar: &Arc<dyn Registrar>) -> Result<u64, RegisterError> {
        self.0.registrations.register(self, registrar)
    }

    /// Undoes a registration now instead of when the region is dropped. False if the registrar could
    /// not: the region then stays registered, and is leaked when it is dropped (M4).
    ///
    /// The caller has nothing under way that uses the key (M1, M2).
    pub fn deregister_from(&self, registrar: RegistrarId) -> bool {
        self.0.registrations.deregister(self.id(), registrar)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
