//! The system interface of regions: mmap, memfd, madvise, mlock, mbind, rlimits.

use rustix::fs::MemfdFlags;
use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

/// Bytes per 2 MiB page.
pub(super) const HUGE_2M: usize = 2 << 20;
/// Bytes per 1 GiB page.
pub(super) const HUGE_1G: usize = 1 << 30;

/// Which huge page to ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Huge {
    /// None.
    No,
    /// 2 MiB.
    M2,
    /// 1 GiB.
    G1,
}

/// The page size of the system.
pub(super) fn page_size() -> usize {
    rustix::param::page_size()
}

/// Maps zeroed anonymous memory.
pub(super) fn map_anonymous(len: usize, huge: Huge) -> Result<NonNull<u8>> {
    let flags = MapFlags::PRIVATE
        | match huge {
            Huge::No => MapFlags::NORESERVE,
            Huge::M2 => MapFlags::HUGETLB | MapFlags::HUGE_2MB,
            Huge::G1 => MapFlags::HUGETLB | MapFlags::HUGE_1GB,
        };
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
    let ptr = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags)? };
    NonNull::new(ptr.cast()).ok_or(Errno::NOMEM)
}

/// Maps a file or memfd, shared.
///
/// # Safety
/// Nobody truncates or changes the file in a way that breaks the users of the mapping.
pub(super) unsafe fn map_fd(fd: impl AsFd, len: usize, writable: bool) -> Result<NonNull<u8>> {
    let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    // SAFETY: a new mapping at an address of the kernel's choice; the rest is the caller's.
    let ptr = unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0)?
    };
    NonNull::new(ptr.cast()).ok_or(Errno::NOMEM)
}

/// Creates a memfd of `len` bytes that can neither shrink nor grow.
pub(super) fn memfd(name: &str, len: usize) -> Result<OwnedFd> {
    use rustix::fs::SealFlags;
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, len as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Unmaps.
///
/// # Safety
/// The range is a whole mapping of ours and nobody touches it any more.
pub(super) unsafe fn unmap(base: NonNull<u8>, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { rustix::mm::munmap(base.as_ptr().cast::<c_void>(), len) }
}

fn advise(base: NonNull<u8>, len: usize, advice: Advice) -> Result<()> {
    // SAFETY: none of the advices used here changes the content of the mapping.
    unsafe { rustix::mm::madvise(base.as_ptr().cast::<c_void>(), len, advice) }
}

/// Asks for transparent huge pages.
pub(super) fn advise_huge(base: NonNull<u8>, len: usize) -> Result<()> {
    advise(base, len, Advice::LinuxHugepage)
}

/// Keeps the mapping out of forked children (M8).
pub(super) fn dont_fork(base: NonNull<u8>, len: usize) -> Result<()> {
    advise(base, len, Advice::LinuxDontFork)
}

/// Faults all pages in, writable.
pub(super) fn prefault(base: NonNull<u8>, len: usize) -> Result<()> {
    advise(base, len, Advice::LinuxPopulateWrite)
}

/// Locks the pages.
pub(super) fn lock(base: NonNull<u8>, len: usize) -> Result<()> {
    // SAFETY: locking changes no content.
    unsafe { rustix::mm::mlock(base.as_ptr().cast::<c_void>(), len) }
}

/// Binds the pages to a NUMA node.
pub(super) fn bind(base: NonNull<u8>, len: usize, node: u32) -> Result<()> {
    const MPOL_BIND: libc::c_long = 2;
    if node >= 64 {
        return Err(Errno::INVAL);
    }
    let mask: u64 = 1 << node;
    // SAFETY: `mask` outlives the call and has the 64 bits announced (the kernel reads one less).
    let r = unsafe {
        libc::syscall(libc::SYS_mbind, base.as_ptr(), len, MPOL_BIND, &raw const mask, 65usize, 0u32)
    };
    if r == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

/// The soft and hard limit of locked memory, in bytes; `None` is unlimited.
pub(super) fn memlock_limits() -> (Option<u64>, Option<u64>) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    (limit.current, limit.maximum)
}
