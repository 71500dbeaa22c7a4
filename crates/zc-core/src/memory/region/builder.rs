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

    /// Faults all pages in now, so that nothing can fail later for want of memory. Reserved huge pages always
    /// are: the lack of one would end the process.
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

    /// The huge pages to try, largest first.
    fn huge_pages(&self) -> &'static [HugePages] {
        match self.backing {
            Backing::Huge1G => &[GIB_1, MIB_2],
            Backing::Huge2M | Backing::MemfdHuge2M => &[MIB_2],
            Backing::Anonymous | Backing::Memfd => &[],
        }
    }

    fn map(&self, huge: Huge, page_bytes: usize) -> Result<Mapped, RegionError> {
        let len = self.rounded(page_bytes)?;
        let (mapping, fd) = match self.backing {
            Backing::Memfd | Backing::MemfdHuge2M => {
                let (mapping, fd) = self.map_memfd(len, huge)?;
                (mapping, Some(fd))
            }
            Backing::Anonymous | Backing::Huge2M | Backing::Huge1G => {
                let base = sys::map_anonymous(len, huge).map_err(os("mmap"))?;
                (Mapping::new(base, len)?, None)
            }
        };
        // Before any page is touched: it decides where they come from.
        let bound = self.numa_node.map(|node| sys::bind(mapping.base, len, node));
        Ok(Mapped { mapping, fd, bound })
    }

    fn map_memfd(&self, len: usize, huge: Huge) -> Result<(Mapping, OwnedFd), RegionError> {
        let fd = sys::memfd(self.name, len, huge).map_err(os("memfd_create"))?;
        let base = sys::map_fd(&fd, len, true).map_err(os("mmap of a memfd"))?;
        let mapping = Mapping::new(base, len)?;
        // Sealed once our own mapping is there: the seal forbids only later ones to write.
        sys::seal(&fd, self.sealing).map_err(os("sealing a memfd"))?;
        Ok((mapping, fd))
    }

    /// Huge pages that are really there. A mapping of them is granted as long as the whole machine has
    /// enough: that this node, cgroup or cpuset has none shows at the first touch, as SIGBUS. So all are
    /// faulted in here, which takes no more memory than the mapping has set aside.
    fn map_huge(&self, pages: &HugePages) -> Result<Mapped, RegionError> {
        let mapped = self.map(pages.huge, pages.bytes)?;
        match sys::populate(mapped.mapping.base, mapped.mapping.len) {
            // A kernel that can't say (before 5.14): trusted only if all nodes will do.
            Err(Errno::INVAL) if !matches!(mapped.bound, Some(Ok(()))) => Ok(mapped),
            done => done.map_err(os("faulting huge pages in")).map(|()| mapped),
        }
    }

    fn map_base(&self, falls: &mut Vec<RegionFallback>) -> Result<(Mapped, PageKind), RegionError> {
        let mapped = self.map(Huge::No, sys::page_size())?;
        let page = if self.huge_pages().is_empty() {
            PageKind::Base
        } else {
            self.transparent(&mapped.mapping, falls)
        };
        Ok((mapped, page))
    }

    /// Asks for transparent huge pages.
    fn transparent(&self, mapping: &Mapping, falls: &mut Vec<RegionFallback>) -> PageKind {
        let wanted = "transparent huge pages";
        if self.backing == Backing::MemfdHuge2M && !sys::joins_shared_pages() {
            // The advice would be taken and come to nothing.
            let reason = format!("not for shared memory; see {}", sys::SHARED_HUGE_PAGES);
            falls.push(RegionFallback { wanted, errno: 0, reason });
            return PageKind::Base;
        }
        match sys::advise_huge(mapping.base, mapping.len) {
            Ok(()) => PageKind::Transparent,
            Err(e) => {
                falls.push(RegionFallback::new(wanted, e, "not supported by the kernel"));
                PageKind::Base
            }
        }
    }

    /// Makes the region.
    pub fn build(self) -> Result<Region, RegionError> {
        self.build_holding(|| None)
    }

    /// Makes the region. What `hold` returns is dropped after it is unmapped; it is called when nothing
    /// can fail any more.
    pub(in crate::memory) fn build_holding(
        self,
        hold: impl FnOnce() -> Option<Held>,
    ) -> Result<Region, RegionError> {
        let mut fallbacks = Vec::new();
        let (mapped, page) = match first_that_works(self.huge_pages(), &mut fallbacks, |p| self.map_huge(p)) {
            Some(huge) => huge,
            None => self.map_base(&mut fallbacks)?,
        };
        let Mapped { mapping, fd, bound } = mapped;
        if let Some(Err(e)) = bound {
            fallbacks.push(RegionFallback::new("NUMA node", e, "the node is absent or not allowed"));
        }
        let (base, len) = (mapping.base, mapping.len);
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
        let (held, group) = ([grant, hold()], self.group);
        Ok(Region::assemble(Parts { mapping, info, fd, read_only: false, group, held }))
    }
}

/// Memory on its way to become a region.
struct Mapped {
    mapping: Mapping,
    fd: Option<OwnedFd>,
    /// Whether it could be bound to the NUMA node, if there is one to bind it to.
    bound: Option<Result<(), Errno>>,
}

/// Huge pages of one size.
struct HugePages {
    huge: Huge,
    bytes: usize,
    name: &'static str,
    kind: PageKind,
}

const GIB_1: HugePages =
    HugePages { huge: Huge::G1, bytes: sys::HUGE_1G, name: "1 GiB pages", kind: PageKind::Huge1G };
const MIB_2: HugePages =
    HugePages { huge: Huge::M2, bytes: sys::HUGE_2M, name: "2 MiB pages", kind: PageKind::Huge2M };

const NO_HUGE_PAGES: &str = "none free; see vm.nr_hugepages";

/// Goes down the ladder; each step that fails is recorded.
fn first_that_works<T>(
    ladder: &[HugePages],
    falls: &mut Vec<RegionFallback>,
    mut map: impl FnMut(&HugePages) -> Result<T, RegionError>,
) -> Option<(T, PageKind)> {
    ladder.iter().find_map(|pages| match map(pages) {
        Ok(mapped) => Some((mapped, pages.kind)),
        Err(error) => {
            falls.push(RegionFallback::of(pages.name, &error, NO_HUGE_PAGES));
            None
        }
    })
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn pages_that_can_not_be_faulted_in_are_given_up_for_smaller_ones() {
        // A page of a file that ends before it: what a huge page that is lacking is when it is touched.
        let lacking = || {
            let fd = sys::memfd("lacking", 0, Huge::No).unwrap();
            let mapping = Mapping::new(sys::map_fd(&fd, 4096, true).unwrap(), 4096)?;
            sys::populate(mapping.base, mapping.len).map_err(os("faulting huge pages in")).map(|()| mapping)
        };
        let there = || Mapping::new(sys::map_anonymous(4096, Huge::No).unwrap(), 4096);
        let mut falls = Vec::new();
        let ladder = Region::builder(1).backing(Backing::Huge1G).huge_pages();
        let got = first_that_works(ladder, &mut falls, |pages| match pages.huge {
            Huge::G1 => lacking(),
            _ => there(),
        });
        assert_eq!(got.unwrap().1, PageKind::Huge2M);
        let [fall] = &falls[..] else { panic!("{falls:?}") };
        assert_eq!((fall.wanted, fall.errno), ("1 GiB pages", Errno::FAULT.raw_os_error()));
        assert!(fall.reason.contains("faulting huge pages in"), "{}", fall.reason);
        assert!(first_that_works(ladder, &mut falls, |_| lacking()).is_none());
        assert_eq!(falls.len(), 3);
    }
}
