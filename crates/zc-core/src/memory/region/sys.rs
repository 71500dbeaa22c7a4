//! The system interface of regions: mmap, memfd, madvise, mlock, mbind, rlimits.

use super::Sealing;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

/// Bytes per 2 MiB page.
pub(in crate::memory) const HUGE_2M: usize = 2 << 20;
/// Bytes per 1 GiB page.
pub(in crate::memory) const HUGE_1G: usize = 1 << 30;

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

/// Whether shared memory is made of transparent huge pages.
pub(super) const SHARED_HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// The same for pages of 2 MiB alone, which may leave it to the other.
const SHARED_2M_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled";

/// Whether the kernel gives shared memory transparent huge pages where it is asked to.
pub(super) fn joins_shared_pages() -> bool {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    are_given(&read(SHARED_HUGE_PAGES), &read(SHARED_2M_PAGES))
}

/// What the kernel lists, with its choice in brackets; empty where it has no such list.
fn are_given(all: &str, of_2m: &str) -> bool {
    let is = |list: &str, choice: &str| list.split_whitespace().any(|word| word == choice);
    match of_2m {
        _ if is(all, "[deny]") => false,
        // Then only what leaves it to the other.
        own if !own.is_empty() && is(all, "[force]") => is(own, "[inherit]"),
        own if is(own, "[never]") => false,
        own if !own.is_empty() && !is(own, "[inherit]") => true,
        _ => !all.is_empty() && !is(all, "[never]"),
    }
}

/// The page size of the system.
pub(in crate::memory) fn page_size() -> usize {
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
    // SAFETY: a new mapping at an address of the kernel's choice aliases nothing (M5).
    let ptr = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags)? };
    NonNull::new(ptr.cast()).ok_or(Errno::NOMEM)
}

/// Maps a file or memfd, shared.
pub(super) fn map_fd(fd: impl AsFd, len: usize, writable: bool) -> Result<NonNull<u8>> {
    let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours, and a raw
    // pointer promises nothing about what others do to the file (M5).
    let ptr = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0)? };
    NonNull::new(ptr.cast()).ok_or(Errno::NOMEM)
}

/// Creates a memfd of `len` bytes that can be sealed.
pub(super) fn memfd(name: &str, len: usize, huge: Huge) -> Result<OwnedFd> {
    let huge = match huge {
        Huge::No => MemfdFlags::empty(),
        Huge::M2 => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        Huge::G1 => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | huge;
    let fd = rustix::fs::memfd_create(name, flags)?;
    rustix::fs::ftruncate(&fd, len as u64)?;
    Ok(fd)
}

fn seals_of(sealing: Sealing) -> SealFlags {
    let fixed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    match sealing {
        Sealing::OwnerWrites => fixed | SealFlags::FUTURE_WRITE,
        Sealing::AnyoneWrites => fixed,
    }
}

/// Seals a memfd for good.
pub(super) fn seal(fd: impl AsFd, sealing: Sealing) -> Result<()> {
    rustix::fs::fcntl_add_seals(fd, seals_of(sealing))
}

/// The seals that a descriptor lacks. An error means that it is not a memfd.
pub(super) fn missing_seals(fd: impl AsFd, sealing: Sealing) -> Result<Option<String>> {
    let mut have = rustix::fs::fcntl_get_seals(fd)?;
    if have.contains(SealFlags::WRITE) {
        have |= SealFlags::FUTURE_WRITE; // The stronger of the two.
    }
    let missing = seals_of(sealing).difference(have);
    Ok((!missing.is_empty()).then(|| format!("{missing:?}")))
}

/// The length of a file.
pub(super) fn file_len(fd: impl AsFd) -> Result<u64> {
    u64::try_from(rustix::fs::fstat(fd)?.st_size).map_err(|_| Errno::OVERFLOW)
}

/// Unmaps.
///
/// # Safety
/// The range is a whole mapping of ours and nobody touches it any more (M2).
pub(super) unsafe fn unmap(base: NonNull<u8>, len: usize) -> Result<()> {
    // SAFETY: the caller's promise (M2).
    unsafe { rustix::mm::munmap(base.as_ptr().cast::<c_void>(), len) }
}

fn advise(base: NonNull<u8>, len: usize, advice: Advice) -> Result<()> {
    // SAFETY: the range is a mapping of ours, and none of the advices used here changes its content
    // or takes it away from this process (M5).
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

/// Faults all pages in, writable; an error where touching them would be fatal. EINVAL: the kernel is older
/// than 5.14.
pub(super) fn populate(base: NonNull<u8>, len: usize) -> Result<()> {
    advise(base, len, Advice::LinuxPopulateWrite)
}

/// Faults all pages of a new mapping in, writable.
pub(super) fn prefault(base: NonNull<u8>, len: usize) -> Result<()> {
    or_touch(populate(base, len), base, len, |page| {
        // SAFETY: within a writable mapping; adding nothing changes nothing, whoever else writes (M5).
        unsafe { AtomicU8::from_ptr(page) }.fetch_add(0, Ordering::Relaxed);
    })
}

/// Faults all pages of a new mapping in, to be read.
pub(super) fn prefault_read(base: NonNull<u8>, len: usize) -> Result<()> {
    or_touch(advise(base, len, Advice::LinuxPopulateRead), base, len, |page| {
        // SAFETY: within a mapping; a volatile read makes no reference (M5).
        unsafe { page.read_volatile() };
    })
}

/// Touches each page where the kernel, older than 5.14, knows no other way.
fn or_touch(advised: Result<()>, base: NonNull<u8>, len: usize, page: impl Fn(*mut u8)) -> Result<()> {
    if advised != Err(Errno::INVAL) {
        return advised;
    }
    for offset in (0..len).step_by(page_size()) {
        page(base.as_ptr().wrapping_add(offset));
    }
    Ok(())
}

/// Locks the pages.
pub(super) fn lock(base: NonNull<u8>, len: usize) -> Result<()> {
    // SAFETY: the range is a mapping of ours, and locking changes no content (M5).
    unsafe { rustix::mm::mlock(base.as_ptr().cast::<c_void>(), len) }
}

/// Binds the pages to a NUMA node.
pub(super) fn bind(base: NonNull<u8>, len: usize, node: u32) -> Result<()> {
    const MPOL_BIND: libc::c_long = 2;
    if node >= 64 {
        return Err(Errno::INVAL);
    }
    let mask: u64 = 1 << node;
    // SAFETY: `mask` outlives the call and has the 64 bits announced (the kernel reads one less); the
    // range is a mapping of ours, and a policy changes no content (M5).
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

/// Whether the kernel does not hold this process to its limit of locked memory: it has CAP_IPC_LOCK
/// outside of a user namespace, where it would not count.
pub(super) fn may_lock_anything() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let map = read("/proc/self/uid_map");
    let initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
    effective >> CAP_IPC_LOCK & 1 == 1 && initial
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_choice_is_read() {
        let all = |choice: &str| {
            let list = "always within_size advise never deny force";
            list.replace(choice, &format!("[{choice}]"))
        };
        let inherit = "always [inherit] within_size advise never";
        for (choice, given) in [("always", true), ("advise", true), ("never", false), ("deny", false)] {
            assert_eq!(are_given(&all(choice), inherit), given, "{choice}");
            assert_eq!(are_given(&all(choice), ""), given, "{choice}, on an older kernel");
        }
        assert!(are_given(&all("never"), "always inherit within_size [advise] never"));
        assert!(!are_given(&all("deny"), "always inherit within_size [advise] never"));
        assert!(!are_given(&all("always"), "always inherit within_size advise [never]"));
        for (own, given) in
            [("[inherit] always", true), ("inherit [always]", false), ("[never]", false), ("", true)]
        {
            assert_eq!(are_given(&all("force"), own), given, "{own}");
        }
        assert!(!are_given("", ""));
    }
}
