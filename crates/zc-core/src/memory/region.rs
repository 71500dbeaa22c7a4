//! One contiguous mapping, page aligned, with its registrations.

use super::registration::{MemlockBudget, MemlockExceeded, MemlockGrant, Registrations};
use super::sys::{self, Huge};
use super::{RegisterError, Registrar, RegistrarId, directory};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Identifies a region; never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub u64);

/// What a region is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A sealed memfd, which can be handed to a peer.
    Memfd,
    /// 2 MiB pages, if there are any.
    Huge2M,
    /// 1 GiB pages, if there are any.
    Huge1G,
}

/// The pages a region got.
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
#[derive(Debug, Clone)]
pub struct RegionFallback {
    /// What was tried.
    pub wanted: &'static str,
    /// The system's error number.
    pub errno: i32,
    /// Why, and what to do about it.
    pub reason: String,
}

/// What was asked for and what came of it.
#[derive(Debug, Clone)]
pub struct RegionInfo {
    /// The backing asked for.
    pub requested: Backing,
    /// The pages it got.
    pub page: PageKind,
    /// Every step that failed on the way.
    pub fallbacks: Vec<RegionFallback>,
    /// Whether the pages are locked.
    pub locked: bool,
    /// The name given to it.
    pub name: &'static str,
}

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
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
}

fn os(what: &'static str) -> impl FnOnce(Errno) -> RegionError {
    move |e| RegionError::Os { what, errno: e.into() }
}

/// How to make a [`Region`].
#[derive(Debug, Clone)]
pub struct RegionBuilder {
    len: usize,
    backing: Backing,
    prefault: bool,
    lock: bool,
    numa_node: Option<u32>,
    name: &'static str,
}

struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: a whole mapping of ours; the last reference to the region is gone (M2).
        if let Err(error) = unsafe { sys::unmap(self.base, self.len) } {
            tracing::error!(%error, "munmap failed, the memory is leaked (M4)");
        }
    }
}

struct Inner {
    id: RegionId,
    registrations: Registrations,
    info: RegionInfo,
    fd: Option<OwnedFd>,
    read_only: bool,
    // Unmapped before the grant is given back.
    mapping: Mapping,
    _grant: Option<MemlockGrant>,
}

// SAFETY: the mapping is plain memory; who may access it is governed by blocks and frames (M5).
unsafe impl Send for Inner {}
// SAFETY: as for Send.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        self.registrations.deregister_all(self.id);
        directory::remove(self.mapping.base.addr().get());
    }
}

/// One contiguous mapping. Cloning counts a reference; the last drop deregisters and unmaps.
#[derive(Clone)]
pub struct Region(Arc<Inner>);

#[derive(Clone)]
pub(super) struct WeakRegion(Weak<Inner>);

impl WeakRegion {
    pub(super) fn upgrade(&self) -> Option<Region> {
        self.0.upgrade().map(Region)
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("id", &self.id().0).field("len", &self.len()).finish()
    }
}

impl Region {
    /// A region of at least `len` bytes (rounded up to whole pages).
    pub fn builder(len: usize) -> RegionBuilder {
        RegionBuilder {
            len,
            backing: Backing::Anonymous,
            prefault: false,
            lock: false,
            numa_node: None,
            name: "zc",
        }
    }

    /// Maps a whole file, read-only.
    ///
    /// # Safety
    /// Nobody truncates or changes the file while the region, or a buffer of it, lives.
    pub unsafe fn map_file(file: File) -> Result<Self, RegionError> {
        let size = file.metadata().map_err(|errno| RegionError::Os { what: "stat", errno })?.len();
        let len = usize::try_from(size).map_err(|_| RegionError::BadLength(usize::MAX))?;
        if len == 0 {
            return Err(RegionError::BadLength(0));
        }
        // SAFETY: the caller's promise.
        let base = unsafe { sys::map_fd(&file, len, false) }.map_err(os("mmap of a file"))?;
        let info = RegionInfo {
            requested: Backing::Memfd,
            page: PageKind::Base,
            fallbacks: Vec::new(),
            locked: false,
            name: "file",
        };
        let mapping = Mapping { base, len };
        sys::dont_fork(base, len).map_err(os("madvise(DONTFORK)"))?;
        Ok(Self::assemble(mapping, info, Some(file.into()), true, None))
    }

    /// Maps the first `len` bytes of a memfd, shared with whoever else maps it. The descriptor is not
    /// kept. `len` is a whole number of pages.
    ///
    /// # Safety
    /// The memfd is sealed against shrinking, or never shrunk. If `writable`, nobody else writes it;
    /// if not, whoever writes it keeps to what the user of the region relies on (M5).
    pub unsafe fn map_memfd(
        fd: BorrowedFd<'_>,
        len: usize,
        writable: bool,
        name: &'static str,
    ) -> Result<Self, RegionError> {
        if len == 0 || !len.is_multiple_of(sys::page_size()) || len > isize::MAX as usize {
            return Err(RegionError::BadLength(len));
        }
        // SAFETY: the caller's promise.
        let base = unsafe { sys::map_fd(fd, len, writable) }.map_err(os("mmap of a memfd"))?;
        let mapping = Mapping { base, len };
        sys::dont_fork(base, len).map_err(os("madvise(DONTFORK)"))?;
        let info = RegionInfo {
            requested: Backing::Memfd,
            page: PageKind::Base,
            fallbacks: Vec::new(),
            locked: false,
            name,
        };
        Ok(Self::assemble(mapping, info, None, !writable, None))
    }

    fn assemble(
        mapping: Mapping,
        info: RegionInfo,
        fd: Option<OwnedFd>,
        read_only: bool,
        grant: Option<MemlockGrant>,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let region = Self(Arc::new(Inner {
            id: RegionId(NEXT.fetch_add(1, Ordering::Relaxed)),
            registrations: Registrations::default(),
            info,
            fd,
            read_only,
            mapping,
            _grant: grant,
        }));
        directory::insert(&region);
        region
    }

    pub(super) fn downgrade(&self) -> WeakRegion {
        WeakRegion(Arc::downgrade(&self.0))
    }

    pub(super) fn base_mut(&self) -> NonNull<u8> {
        self.0.mapping.base
    }

    /// Identifies the region.
    pub fn id(&self) -> RegionId {
        self.0.id
    }

    /// The first byte.
    pub fn base(&self) -> *const u8 {
        self.0.mapping.base.as_ptr()
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.0.mapping.len
    }

    /// Never: there are no empty regions.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The file behind it, if there is one.
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

    /// The key under which `registrar` knows this region. O(1), no lock.
    pub fn key_for(&self, registrar: RegistrarId) -> Option<u64> {
        self.0.registrations.key_for(registrar)
    }

    /// Registers once; later calls return the same key.
    pub fn register_with(&self, registrar: &Arc<dyn Registrar>) -> Result<u64, RegisterError> {
        self.0.registrations.register(self, registrar)
    }
}

impl RegionBuilder {
    /// What it is made of.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// Faults all pages in now.
    pub fn prefault(mut self, prefault: bool) -> Self {
        self.prefault = prefault;
        self
    }

    /// Locks all pages, within the process's [`MemlockBudget`].
    pub fn lock(mut self, lock: bool) -> Self {
        self.lock = lock;
        self
    }

    /// Binds it to a NUMA node.
    pub fn numa_node(mut self, node: Option<u32>) -> Self {
        self.numa_node = node;
        self
    }

    /// A name for people.
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    fn rounded(&self, page: usize) -> Result<usize, RegionError> {
        match self.len.checked_next_multiple_of(page) {
            Some(n) if n > 0 && n <= isize::MAX as usize => Ok(n),
            _ => Err(RegionError::BadLength(self.len)),
        }
    }

    fn map(&self, falls: &mut Vec<RegionFallback>) -> Result<(Mapping, PageKind), RegionError> {
        let ladder: &[(Huge, usize, &'static str, PageKind)] = &[
            (Huge::G1, sys::HUGE_1G, "1 GiB pages", PageKind::Huge1G),
            (Huge::M2, sys::HUGE_2M, "2 MiB pages", PageKind::Huge2M),
        ];
        let skip = match self.backing {
            Backing::Huge1G => 0,
            Backing::Huge2M => 1,
            _ => 2,
        };
        for &(huge, page, wanted, kind) in &ladder[skip..] {
            let len = self.rounded(page)?;
            match sys::map_anonymous(len, huge) {
                Ok(base) => return Ok((Mapping { base, len }, kind)),
                Err(e) => falls.push(fallback(wanted, e, "none free; see nr_hugepages")),
            }
        }
        let len = self.rounded(sys::page_size())?;
        let base = sys::map_anonymous(len, Huge::No).map_err(os("mmap"))?;
        let mapping = Mapping { base, len };
        if skip == 2 {
            return Ok((mapping, PageKind::Base));
        }
        match sys::advise_huge(base, len) {
            Ok(()) => Ok((mapping, PageKind::Transparent)),
            Err(e) => {
                falls.push(fallback("transparent huge pages", e, "not supported by the kernel"));
                Ok((mapping, PageKind::Base))
            }
        }
    }

    fn map_memfd(&self) -> Result<(Mapping, OwnedFd), RegionError> {
        let len = self.rounded(sys::page_size())?;
        let fd = sys::memfd(self.name, len).map_err(os("memfd"))?;
        // SAFETY: the memfd is new and sealed against truncation; who else may write it is decided
        // when it is handed out (M5).
        let base = unsafe { sys::map_fd(&fd, len, true) }.map_err(os("mmap of a memfd"))?;
        Ok((Mapping { base, len }, fd))
    }

    /// Makes the region.
    pub fn build(self) -> Result<Region, RegionError> {
        let mut fallbacks = Vec::new();
        let (mapping, page, fd) = match self.backing {
            Backing::Memfd => {
                let (mapping, fd) = self.map_memfd()?;
                (mapping, PageKind::Base, Some(fd))
            }
            _ => {
                let (mapping, page) = self.map(&mut fallbacks)?;
                (mapping, page, None)
            }
        };
        let (base, len) = (mapping.base, mapping.len);
        sys::dont_fork(base, len).map_err(os("madvise(DONTFORK)"))?;
        if let Some(node) = self.numa_node
            && let Err(e) = sys::bind(base, len, node)
        {
            fallbacks.push(fallback("NUMA node", e, "the node is absent or not allowed"));
        }
        let mut grant = None;
        if self.lock {
            grant = Some(MemlockBudget::process().reserve(len)?);
            sys::lock(base, len).map_err(os("mlock"))?;
        }
        if self.prefault {
            sys::prefault(base, len).map_err(os("madvise(POPULATE_WRITE)"))?;
        }
        let info =
            RegionInfo { requested: self.backing, page, fallbacks, locked: self.lock, name: self.name };
        Ok(Region::assemble(mapping, info, fd, false, grant))
    }
}

fn fallback(wanted: &'static str, errno: Errno, hint: &str) -> RegionFallback {
    RegionFallback { wanted, errno: errno.raw_os_error(), reason: format!("{errno} ({hint})") }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn falls_back_and_says_why() {
        let r = Region::builder(1).backing(Backing::Huge1G).build().unwrap();
        assert_eq!(r.info().requested, Backing::Huge1G);
        assert!(r.info().page == PageKind::Huge1G || !r.info().fallbacks.is_empty());
        assert!(Region::builder(0).build().is_err());
        assert!(Region::builder(usize::MAX).build().is_err());
    }

    #[test]
    fn memfd_prefault_and_lock() {
        let r = Region::builder(5000).backing(Backing::Memfd).prefault(true).build().unwrap();
        assert!(r.fd().is_some());
        assert_eq!(r.len(), 8192);
        match Region::builder(4096).lock(true).build() {
            Ok(r) => assert!(r.info().locked),
            Err(RegionError::Memlock(_) | RegionError::Os { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
}
