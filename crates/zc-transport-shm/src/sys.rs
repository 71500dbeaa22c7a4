//! Sealed memory of ours, a peer's memory, and reading what a peer may write meanwhile.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use zc_core::memory::{Backing, ExportMemory, PeerMapping, Region, RegionError, RegionKind, Sealing};
use zc_core::transport::LaneError;

use crate::lie::lie;

/// What `st_blocks` counts, whatever the file system's own blocks are, bytes.
const STAT_BLOCK_BYTES: u64 = 512;

/// Memory of multiples of this many bytes is of huge pages, where there are any.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Makes memory of ours that a peer can map read-only: whole pages, all there, sealed for good.
pub(crate) fn create(bytes: usize) -> io::Result<Region> {
    // Its length is in both sides' books, so huge pages must not make it longer.
    let huge = bytes.is_multiple_of(HUGE_PAGE_BYTES);
    let backing = if huge { Backing::MemfdHuge2M } else { Backing::Memfd };
    let memory = Region::builder(bytes).backing(backing).sealing(Sealing::OwnerWrites);
    // Prefaulted: now rather than as a SIGBUS later.
    memory.prefault(true).name("zc-shm").build().map_err(|error| match error {
        RegionError::Os { errno, .. } => errno,
        other => io::Error::other(other),
    })
}

/// Why a peer's memory was not mapped.
#[derive(Debug)]
pub(crate) enum PeerMemory {
    /// It is not what it has to be: the peer's fault.
    Bad(&'static str),
    /// The system refused.
    Os(io::Error),
}

impl From<PeerMemory> for LaneError {
    fn from(error: PeerMemory) -> Self {
        match error {
            PeerMemory::Bad(field) => lie(field).into(),
            PeerMemory::Os(error) => LaneError::os("map the peer's memory", &error),
        }
    }
}

/// Makes a region such that a peer maps it: all pages of our own are made. Others' are only looked at.
pub(crate) fn make_whole(region: &Region) -> io::Result<()> {
    let fd = region.fd().ok_or(io::ErrorKind::InvalidInput)?;
    if region.info().kind == RegionKind::Own {
        rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, region.len() as u64)?;
    }
    match is_whole(fd, region.len()) {
        Ok(true) => Ok(()),
        Err(PeerMemory::Os(error)) => Err(error),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Whether a process of our user made it, or root gave it away.
pub(crate) fn is_of_our_user(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_uid == crate::transport::own_uid())
}

/// Whether all pages are there: faulting others in would make them, and charge them to us. Only what is sealed
/// stays so.
fn is_whole(fd: impl AsFd, bytes: usize) -> Result<bool, PeerMemory> {
    let fd = fd.as_fd();
    let sealed = SealFlags::SHRINK | SealFlags::FUTURE_WRITE;
    if !rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(sealed)) {
        return Err(PeerMemory::Bad("shm memory that is not sealed"));
    }
    has_all_pages(fd, bytes).map_err(PeerMemory::Os)
}

/// Whether the memfd has so many bytes of pages.
pub(crate) fn has_all_pages(fd: impl AsFd, bytes: usize) -> io::Result<bool> {
    let blocks = u64::try_from(rustix::fs::fstat(fd)?.st_blocks);
    Ok(blocks.is_ok_and(|blocks| blocks.saturating_mul(STAT_BLOCK_BYTES) >= bytes as u64))
}

/// Maps a peer's memory read-only, if it is sealed as it has to be, has exactly `bytes` and all of them. What the
/// peer writes into it is only read atomically, copied out, or lent when it is in our trust domain (M5).
pub(crate) fn map_peer(fd: OwnedFd, bytes: usize) -> Result<Region, PeerMemory> {
    map_with(fd, bytes, PeerMapping::map)
}

/// The same for what is passed on to nobody: the descriptor is closed.
pub(crate) fn map_and_close(fd: OwnedFd, bytes: usize) -> Result<Region, PeerMemory> {
    map_with(fd, bytes, PeerMapping::map_and_close)
}

fn map_with(
    fd: OwnedFd,
    bytes: usize,
    map: impl FnOnce(PeerMapping, OwnedFd) -> Result<Region, RegionError>,
) -> Result<Region, PeerMemory> {
    if !is_whole(&fd, bytes)? {
        return Err(PeerMemory::Bad("shm memory with holes, or of another size"));
    }
    let region = map(PeerMapping::new(bytes), fd).map_err(|error| match error {
        RegionError::Os { what: "F_GET_SEALS", .. } => PeerMemory::Bad("shm memory without seals"),
        RegionError::Os { errno, .. } => PeerMemory::Os(errno),
        RegionError::NotSealed { .. } => PeerMemory::Bad("shm memory that is not sealed"),
        _ => PeerMemory::Bad("shm memory of another size"),
    })?;
    if region.len() == bytes { Ok(region) } else { Err(PeerMemory::Bad("shm memory of another size")) }
}

/// Whether it is memory that others may write: an export, and no arena. What else there is to know is looked at
/// when it is mapped.
pub(crate) fn is_export(fd: &OwnedFd) -> bool {
    let seals = rustix::fs::fcntl_get_seals(fd);
    seals.is_ok_and(|s| s.contains(SealFlags::SHRINK) && !s.contains(SealFlags::FUTURE_WRITE))
}

/// A descriptor of the same memory through which it can't be written. Whoever gets it and is of our user can have it
/// opened anew, also for writing: it is for peers of our own trust domain (M5).
pub(crate) fn reopen_read_only(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Maps a peer's export of exactly `bytes`, of ordinary pages that are all there: a page that can't be made when it is touched
/// is a SIGBUS, and it would be charged to us. No seal keeps them there, since both sides write: that is up to a
/// peer of our own trust domain.
pub(crate) fn map_export(fd: OwnedFd, bytes: usize, writable: bool) -> Result<ExportMemory, PeerMemory> {
    let kind = rustix::fs::fstatfs(&fd).map_err(|errno| PeerMemory::Os(errno.into()))?.f_type;
    if kind != libc::TMPFS_MAGIC {
        return Err(PeerMemory::Bad("shm export: pages"));
    }
    if !has_all_pages(&fd, bytes).map_err(PeerMemory::Os)? {
        return Err(PeerMemory::Bad("shm export: size, or holes"));
    }
    let sealing = Sealing::AnyoneWrites;
    let mapping = PeerMapping { max_bytes: bytes, sealing, writable, prefault: false };
    // It is shown to nobody else.
    let region = mapping.map_and_close(fd).map_err(|error| match error {
        RegionError::Os { what: "F_GET_SEALS", .. } | RegionError::NotSealed { .. } => {
            PeerMemory::Bad("shm export: seals")
        }
        RegionError::Os { errno, .. } if errno.kind() == io::ErrorKind::PermissionDenied => {
            PeerMemory::Bad("shm export: access")
        }
        RegionError::Os { errno, .. } => PeerMemory::Os(errno),
        _ => PeerMemory::Bad("shm export: size"),
    })?;
    match ExportMemory::of_peer(region) {
        Ok(memory) if memory.len() == bytes as u64 => Ok(memory),
        _ => Err(PeerMemory::Bad("shm export: size")),
    }
}

/// Whether the process, or the system, has no descriptor left.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].map(Some).contains(&Errno::from_io_error(error))
}

/// Copies out of memory that the peer may write meanwhile: whatever comes is a private copy (M5).
///
/// # Panics
/// When the range lies outside of the region.
pub(crate) fn copy_from_peer(dst: &mut [u8], region: &Region, offset: usize) {
    assert!(offset.checked_add(dst.len()).is_some_and(|end| end <= region.len()));
    // SAFETY: the range lies inside the mapping, by the assertion, and volatile reads neither assume
    // that it keeps still nor hand out references to it (M5).
    unsafe {
        let mut src = region.base().add(offset);
        let (words, rest) = dst.as_chunks_mut::<8>();
        for word in words {
            *word = src.cast::<[u8; 8]>().read_volatile();
            src = src.add(8);
        }
        for byte in rest {
            *byte = src.read_volatile();
            src = src.add(1);
        }
    }
}

/// Orders all loads and stores before it, the compiler's too, before all that follow.
#[cfg(all(not(loom), target_arch = "x86_64"))]
#[inline]
pub(crate) fn locked_instruction() {
    // SAFETY: it changes no memory and no register but the flags; what it stands for is the order that other
    // memory accesses get, which the protocols of this crate need (M5).
    unsafe { std::arch::asm!("lock or dword ptr [rsp], 0", options(nostack)) }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;

    #[test]
    fn what_is_sealed_stays() {
        let mine = create(8192).unwrap();
        let fd = || mine.fd().unwrap().try_clone_to_owned().unwrap();
        assert!(rustix::fs::ftruncate(fd(), 0).is_err());
        assert!(rustix::fs::ftruncate(fd(), 1 << 20).is_err());
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(fd(), punch, 0, 4096).is_err());
        let theirs = map_peer(fd(), 8192).unwrap();
        assert!(theirs.is_read_only() && !mine.is_read_only());
        assert!(theirs.fd().is_some() && map_and_close(fd(), 8192).unwrap().fd().is_none());
        assert!(matches!(map_peer(fd(), 4096), Err(PeerMemory::Bad(_))));
        assert!(matches!(map_peer(fd(), 12288), Err(PeerMemory::Bad(_))));
        let mut out = [1; 19];
        copy_from_peer(&mut out, &theirs, 8192 - 19);
        assert_eq!(out, [0; 19]);
    }

    #[test]
    fn whole_huge_pages_are_asked_for_and_the_length_stays() {
        use zc_core::memory::PageKind;
        for bytes in [2 << 20, (2 << 20) + 4096, 10 << 20] {
            let mine = create(bytes).unwrap();
            assert_eq!(mine.len(), bytes);
            let info = mine.info();
            let wanted: Vec<_> = info.fallbacks.iter().map(|fall| fall.wanted).collect();
            match (bytes % HUGE_PAGE_BYTES, info.page) {
                (0, PageKind::Huge2M) => assert!(wanted.is_empty()),
                (0, PageKind::Transparent) => assert_eq!(wanted, ["2 MiB pages"]),
                (0, _) => assert_eq!(wanted, ["2 MiB pages", "transparent huge pages"]),
                _ => assert_eq!(info.page, PageKind::Base),
            }
            let theirs = map_peer(mine.fd().unwrap().try_clone_to_owned().unwrap(), bytes).unwrap();
            assert!(is_whole(mine.fd().unwrap(), bytes).unwrap() && theirs.len() == bytes);
        }
    }

    /// Pages that are not there would be made by us, for whatever length the peer says.
    #[test]
    fn memory_with_holes_is_refused() {
        let sparse = |bytes: u64, there: u64| {
            let fd = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
            rustix::fs::ftruncate(&fd, bytes).unwrap();
            rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::KEEP_SIZE, 0, there).unwrap();
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
            fd
        };
        let blocks = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_blocks;
        let fd = sparse(64 << 20, 4096);
        let copy = fd.try_clone().unwrap();
        assert!(matches!(map_peer(fd, 64 << 20), Err(PeerMemory::Bad(_))));
        assert_eq!(blocks(&copy), 8, "pages were made");
        assert!(map_peer(sparse(64 << 10, 64 << 10), 64 << 10).is_ok());
        assert!(map_peer(sparse(64 << 10, 60 << 10), 64 << 10).is_err());
    }

    #[test]
    fn what_is_not_sealed_is_refused() {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        assert!(matches!(map_peer(fd.try_clone().unwrap(), 4096), Err(PeerMemory::Bad(_))));
        let all_but_one = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, all_but_one).unwrap();
        assert!(matches!(map_peer(fd, 4096), Err(PeerMemory::Bad(_))));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(map_peer(null.into(), 4096), Err(PeerMemory::Bad(_))));
    }
}
