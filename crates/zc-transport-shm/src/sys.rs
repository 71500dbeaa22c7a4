//! The system interface: sealed memfds, their mappings, and reading memory that a peer may write.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::Advice;
use zc_core::memory::Region;

/// From here on huge pages are asked for, bytes.
const HUGE_MIN_BYTES: usize = 2 << 20;

/// What the owner seals after it mapped its memory: nobody else can ever map it writable, change its
/// size, punch holes, or add seals.
fn seals() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL
}

fn advise(region: &Region, advice: Advice) -> io::Result<()> {
    // SAFETY: the whole mapping of a region, which `region` keeps; none of the advices used here
    // changes its content.
    unsafe { rustix::mm::madvise(region.base().cast_mut().cast(), region.len(), advice) }?;
    Ok(())
}

/// Makes memory of ours that a peer can map read-only: whole pages, all there.
pub(crate) fn create(bytes: usize) -> io::Result<(Region, OwnedFd)> {
    let fd = rustix::fs::memfd_create("zc-shm", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, bytes as u64)?;
    // SAFETY: the memfd is new and we never shrink it; after the seals below nobody else can map it
    // writable (M5).
    let region = unsafe { Region::map_memfd(fd.as_fd(), bytes, true, "shm") }.map_err(io::Error::other)?;
    rustix::fs::fcntl_add_seals(&fd, seals())?;
    if bytes >= HUGE_MIN_BYTES {
        // Where the kernel gives no huge pages to memfds, small ones do.
        let _ = advise(&region, Advice::LinuxHugepage);
    }
    // Now rather than as a SIGBUS later.
    advise(&region, Advice::LinuxPopulateWrite)?;
    Ok((region, fd))
}

/// Why a peer's memory was not mapped.
#[derive(Debug)]
pub(crate) enum PeerMemory {
    /// It is not what it has to be: the peer's fault.
    Bad(&'static str),
    /// The system refused.
    Os(io::Error),
}

/// Maps a peer's memory read-only, if it is sealed as it has to be and has exactly `bytes`.
pub(crate) fn map_peer(fd: BorrowedFd<'_>, bytes: usize) -> Result<Region, PeerMemory> {
    let sealed = rustix::fs::fcntl_get_seals(fd).map_err(|_| PeerMemory::Bad("shm memory without seals"))?;
    if !sealed.contains(seals()) {
        return Err(PeerMemory::Bad("shm memory that is not sealed"));
    }
    let stat = rustix::fs::fstat(fd).map_err(|e| PeerMemory::Os(e.into()))?;
    if u64::try_from(stat.st_size).ok() != Some(bytes as u64) {
        return Err(PeerMemory::Bad("shm memory of another size"));
    }
    // SAFETY: sealed against shrinking, as just checked. What the peer writes into it is only read
    // atomically, copied out, or lent when it is in our trust domain (M5).
    let region = unsafe { Region::map_memfd(fd, bytes, false, "shm peer") };
    let region = region.map_err(|e| PeerMemory::Os(io::Error::other(e)))?;
    // A page that can't be had fails here, not as a SIGBUS at the first read.
    advise(&region, Advice::LinuxPopulateRead).map_err(PeerMemory::Os)?;
    Ok(region)
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_stays() {
        let (mine, fd) = create(8192).unwrap();
        assert!(rustix::fs::ftruncate(&fd, 0).is_err());
        assert!(rustix::fs::ftruncate(&fd, 1 << 20).is_err());
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(&fd, punch, 0, 4096).is_err());
        // SAFETY: the mapping is refused, which is the point.
        assert!(unsafe { Region::map_memfd(fd.as_fd(), 8192, true, "test") }.is_err());
        let theirs = map_peer(fd.as_fd(), 8192).unwrap();
        assert!(theirs.is_read_only() && !mine.is_read_only());
        assert!(matches!(map_peer(fd.as_fd(), 4096), Err(PeerMemory::Bad(_))));
        let mut out = [1; 19];
        copy_from_peer(&mut out, &theirs, 8192 - 19);
        assert_eq!(out, [0; 19]);
    }

    #[test]
    fn what_is_not_sealed_is_refused() {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        assert!(matches!(map_peer(fd.as_fd(), 4096), Err(PeerMemory::Bad(_))));
        let all_but_one = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, all_but_one).unwrap();
        assert!(matches!(map_peer(fd.as_fd(), 4096), Err(PeerMemory::Bad(_))));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(map_peer(null.as_fd(), 4096), Err(PeerMemory::Bad(_))));
    }
}
