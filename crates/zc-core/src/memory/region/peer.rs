//! Memory that another process made and handed to us as a descriptor.

use super::sys;
use super::{Mapping, PageKind, Parts, Region, RegionError, RegionInfo, RegionKind, Sealing, os};
use std::os::fd::OwnedFd;

/// How to map a memfd that a peer sent.
///
/// The descriptor is hostile input (M6): it must be a memfd whose seals keep it from shrinking (so
/// that access can't fault) and, unless [`sealing`](Self::sealing) says otherwise, from being written by
/// anyone but the peer's own mapping; and it must not be too long. The peer may still write it at
/// any time: nothing here makes a reference to it, and buffers over it never become writable (M5).
///
/// Pages that the peer has not touched are allocated by whoever touches them first. With
/// `prefault`, which is the default, that is now and here, so that it can't fail later.
///
/// ```
/// use zc_core::memory::{Backing, PeerMapping, Region, RegionKind};
///
/// let theirs = Region::builder(4096).backing(Backing::Memfd).build()?;
/// let sent = theirs.fd().unwrap().try_clone_to_owned().unwrap(); // By SCM_RIGHTS, really.
/// let ours = PeerMapping::new(1 << 20).map(sent)?;
/// assert_eq!(ours.info().kind, RegionKind::Peer);
/// assert!(ours.is_read_only());
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct PeerMapping {
    /// The longest memory to map (M9).
    pub max_bytes: usize,
    /// The seals to insist on.
    pub sealing: Sealing,
    /// Whether to map it writable, for memory that is shared both ways through atomic and volatile
    /// accesses, as exported memory is made to be. Needs [`Sealing::AnyoneWrites`].
    pub writable: bool,
    /// Whether to fault all pages in now.
    pub prefault: bool,
}

impl PeerMapping {
    /// Read-only, written by its owner alone, at most `max_bytes` long, faulted in.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, sealing: Sealing::OwnerWrites, writable: false, prefault: true }
    }

    /// Checks and maps it. The region keeps the descriptor, so that it can be passed on.
    pub fn map(self, fd: OwnedFd) -> Result<Region, RegionError> {
        let (mapping, info) = self.check_and_map(&fd)?;
        Ok(self.assemble(mapping, info, Some(fd)))
    }

    /// The same for memory that is passed on to nobody: the descriptor is closed.
    pub fn map_and_close(self, fd: OwnedFd) -> Result<Region, RegionError> {
        let (mapping, info) = self.check_and_map(&fd)?;
        drop(fd);
        Ok(self.assemble(mapping, info, None))
    }

    fn check_and_map(self, fd: &OwnedFd) -> Result<(Mapping, RegionInfo), RegionError> {
        // The seals first: only then does the length stay what it is.
        let missing = sys::missing_seals(fd, self.sealing).map_err(os("F_GET_SEALS"))?;
        if let Some(missing) = missing {
            return Err(RegionError::NotSealed { missing });
        }
        let len = sys::file_len(fd).map_err(os("fstat"))?;
        let Some(len) = usize::try_from(len).ok().filter(|n| *n <= self.max_bytes) else {
            return Err(RegionError::PeerTooLong { len, max: self.max_bytes });
        };
        if len == 0 {
            return Err(RegionError::BadLength(0));
        }
        let base = sys::map_fd(fd, len, self.writable).map_err(os("mmap of a peer's memfd"))?;
        let mapping = Mapping::new(base, len)?;
        if self.prefault && self.writable {
            sys::prefault(base, len).map_err(os("faulting pages in"))?;
        } else if self.prefault {
            sys::prefault_read(base, len).map_err(os("faulting pages in"))?;
        }
        let info = RegionInfo {
            kind: RegionKind::Peer,
            requested: None,
            page: PageKind::Base,
            fallbacks: Vec::new(),
            locked: false,
            name: "peer",
        };
        Ok((mapping, info))
    }

    fn assemble(self, mapping: Mapping, info: RegionInfo, fd: Option<OwnedFd>) -> Region {
        let (read_only, held) = (!self.writable, [None, None]);
        Region::assemble(Parts { mapping, info, fd, read_only, group: None, held })
    }
}
