//! How a region of our own is made.

use super::memlock::MemlockBudget;
use super::sys::{self, Huge};
use super::{
    Held, Mapping, PageKind, Parts, Region, RegionError, RegionFallback, RegionInfo, RegionKind, os,
};
use crate::memory::GroupId;
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// What a region is made of.
///
/// ```
/// use zc_core::memory::{Backing, Region};
///
/// let private = Region::builder(4096).build()?;
/// let shared = Region::builder(4096).backing(Backing::Memfd).build()?;
/// assert!(private.fd().is_none() && shared.fd().is_some());
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A sealed memfd, which can be handed to a peer.
    Memfd,
    /// A sealed memfd of 2 MiB pages, if there are any.
    MemfdHuge2M,
    /// 2 MiB pages, if there are any.
    Huge2M,
    /// 1 GiB pages, if there are any.
    Huge1G,
}

/// Who may write a memfd. Its length is fixed in either case.
///
/// ```
/// use zc_core::memory::{Backing, Region, Sealing};
///
/// let ours = Region::builder(4096).backing(Backing::Memfd); // `OwnerWrites`
/// let common = Region::builder(4096).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites);
/// assert!(ours.build()?.fd().is_some() && common.build()?.fd().is_some());
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sealing {
    /// Only the mapping of the process that made it; everyone else can only map it for reading.
    #[default]
    OwnerWrites,
    /// Everyone who has the descriptor.
    AnyoneWrites,
}

/// How to make a [`Region`].
///
/// ```
/// use zc_core::memory::{Backing, Region, Sealing};
///
/// let region = Region::builder(1 << 20)
///     .backing(Backing::Memfd)
///     .sealing(Sealing::OwnerWrites)
///     .prefault(true)
///     .numa_node(Some(0)) // If it is absent, the info says so.
///     .build()?;
/// assert!(region.fd().is_some());
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RegionBuilder {
    len: usize,
    backing: Backing,
    sealing: Sealing,
    prefault: bool,
    lock: bool,
    numa_node: Option<u32>,
    group: Option<GroupId>,
    name: &'static str,
}

impl RegionBuilder {
    pub(super) fn new(len: usize) -> Self {
        Self {
            len,
            backing: Backing::Anonymous,
            sealing: Sealing::OwnerWrites,
            prefault: false,
            lock: false,
            numa_node: None,
            group: None,
            name: "zc",
        }
    }

    pub(in crate::memory) fn len(mut self, len: usize) -> Self {
        self.len = len;
        self
    }

    pub(in crate::memory) fn group(mut self, group: GroupId) -> Self {
        self.group = Some(group);
        self
    }

    pub(in crate::memory) fn wanted_backing(&self) -> Backing {
        self.backing
    }

    /// What it is made of.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// Who may write it, if it is a memfd.
    pub fn sealing(mut self, sealing: Sealing) -> Self {
        self.sealing = sealing;
        self
    }

    /// Faults all pages in now, so that nothing can fail later for want of memory.
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
                Ok(base) => return Ok((Mapping::new(base, len)?, kind)),
                Err(e) => falls.push(RegionFallback::new(wanted, e, NO_HUGE_PAGES)),
            }
        }
        let len = self.rounded(sys::page_size())?;
        let base = sys::map_anonymous(len, Huge::No).map_err(os("mmap"))?;
        let mapping = Mapping::new(base, len)?;
        let page = if skip == 2 { PageKind::Base } else { transparent(&mapping, falls) };
        Ok((mapping, page))
    }

    fn map_memfd(
        &self,
        falls: &mut Vec<RegionFallback>,
    ) -> Result<(Mapping, PageKind, OwnedFd), RegionError> {
        let huge = self.backing == Backing::MemfdHuge2M;
        if huge {
            let len = self.rounded(sys::HUGE_2M)?;
            match self.map_memfd_of(len, true) {
                Ok((mapping, fd)) => return Ok((mapping, PageKind::Huge2M, fd)),
                Err(RegionError::Os { errno, .. }) => {
                    let e = Errno::from_io_error(&errno).unwrap_or(Errno::NOMEM);
                    falls.push(RegionFallback::new("2 MiB pages", e, NO_HUGE_PAGES));
                }
                Err(other) => return Err(other),
            }
        }
        let (mapping, fd) = self.map_memfd_of(self.rounded(sys::page_size())?, false)?;
        let page = if huge { transparent(&mapping, falls) } else { PageKind::Base };
        Ok((mapping, page, fd))
    }

    fn map_memfd_of(&self, len: usize, huge: bool) -> Result<(Mapping, OwnedFd), RegionError> {
        let fd = sys::memfd(self.name, len, huge).map_err(os("memfd_create"))?;
        let base = sys::map_fd(&fd, len, true).map_err(os("mmap of a memfd"))?;
        let mapping = Mapping::new(base, len)?;
        // Sealed once our own mapping is there: the seal forbids only later ones to write.
        sys::seal(&fd, self.sealing).map_err(os("sealing a memfd"))?;
        Ok((mapping, fd))
    }

    /// Makes the region.
    pub fn build(self) -> Result<Region, RegionError> {
        self.build_holding(None)
    }

    /// Makes the region; `held` is dropped after it is unmapped, or if it can't be made.
    pub(in crate::memory) fn build_holding(self, held: Option<Held>) -> Result<Region, RegionError> {
        let mut fallbacks = Vec::new();
        let (mapping, page, fd) = match self.backing {
            Backing::Memfd | Backing::MemfdHuge2M => {
                let (mapping, page, fd) = self.map_memfd(&mut fallbacks)?;
                (mapping, page, Some(fd))
            }
            Backing::Anonymous | Backing::Huge2M | Backing::Huge1G => {
                let (mapping, page) = self.map(&mut fallbacks)?;
                (mapping, page, None)
            }
        };
        let (base, len) = (mapping.base, mapping.len);
        if let Some(node) = self.numa_node
            && let Err(e) = sys::bind(base, len, node)
        {
            fallbacks.push(RegionFallback::new("NUMA node", e, "the node is absent or not allowed"));
        }
        let mut grant: Option<Held> = None;
        if self.lock {
            grant = Some(Box::new(MemlockBudget::process().reserve(len)?));
            sys::lock(base, len).map_err(os("mlock"))?;
        }
        if self.prefault {
            sys::prefault(base, len).map_err(os("faulting pages in"))?;
        }
        let info = RegionInfo {
            kind: RegionKind::Own,
            requested: Some(self.backing),
            page,
            fallbacks,
            locked: self.lock,
            name: self.name,
        };
        let (held, group) = ([grant, held], self.group);
        Ok(Region::assemble(Parts { mapping, info, fd, read_only: false, group, held }))
    }
}

const NO_HUGE_PAGES: &str = "none free; see vm.nr_hugepages";

/// Asks for transparent huge pages.
fn transparent(mapping: &Mapping, falls: &mut Vec<RegionFallback>) -> PageKind {
    match sys::advise_huge(mapping.base, mapping.len) {
        Ok(()) => PageKind::Transparent,
        Err(e) => {
            falls.push(RegionFallback::new("transparent huge pages", e, "not supported by the kernel"));
            PageKind::Base
        }
    }
}
