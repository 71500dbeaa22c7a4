//! The system calls that no safe interface offers.

use std::ffi::CStr;
use std::io;

/// Whether the kernel would let this process create an io_uring, without creating one.
///
/// The parameters are a null pointer: a kernel that allows io_uring gets as far as reading them and answers
/// `EFAULT`; one that refuses (sysctl, seccomp, not built in) answers before that.
pub(crate) fn probe_io_uring() -> io::Result<()> {
    let entries: libc::c_uint = 1;
    // SAFETY: io_uring_setup(2) takes an integer and a pointer that the kernel checks itself; the null pointer is
    // never read or written, and no descriptor is created, so no memory or resource of ours is touched.
    let answer =
        unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, std::ptr::null_mut::<libc::c_void>()) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if answer >= 0 => Ok(()),
        Some(libc::EFAULT) => Ok(()),
        _ => Err(error),
    }
}

/// Lets every later `execve` of this process and its children answer `EPERM` to io_uring(7), and gain no privileges.
pub(crate) fn refuse_io_uring() -> io::Result<()> {
    const ARCH: u32 = std::mem::offset_of!(libc::seccomp_data, arch) as u32;
    const NR: u32 = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    #[cfg(target_arch = "x86_64")]
    const NATIVE: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64, linux/audit.h
    #[cfg(target_arch = "aarch64")]
    const NATIVE: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let at_least = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    let above = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The three calls have adjacent numbers, the same on every architecture: setup, enter, register.
    let mut program = [
        op(load, 0, 0, ARCH),
        op(equal, 0, 4, NATIVE),
        op(load, 0, 0, NR),
        op(at_least, 0, 2, libc::SYS_io_uring_setup as u32),
        op(above, 1, 0, libc::SYS_io_uring_register as u32),
        op(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        op(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    no_new_privs()?;
    // SAFETY: prctl(2) reads `filter` and the program it points to, both alive and of the given length, before it
    // returns; it keeps its own copy.
    checked(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) })
}

/// No later `execve` gains privileges, whatever the file's mode.
pub(crate) fn no_new_privs() -> io::Result<()> {
    // SAFETY: prctl(2) with plain integers; no memory is involved.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// Becomes this user and group, without a supplementary group or a capability, and without a way back.
pub(crate) fn become_user(id: u32) -> io::Result<()> {
    const CAP_LAST: libc::c_ulong = 63;
    // SAFETY: these calls take plain integers, and setgroups(2) a list of no entries, which it does not read.
    unsafe {
        for capability in 0..=CAP_LAST {
            // Numbers beyond the kernel's last capability are refused; there is nothing to drop then.
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        checked(libc::setgroups(0, std::ptr::null()))?;
        checked(libc::setresgid(id, id, id))?;
        checked(libc::setresuid(id, id, id))?;
    }
    no_new_privs()
}

/// From here on this process sees mounts of its own, and what it mounts is seen by nobody else.
pub(crate) fn private_mounts() -> io::Result<()> {
    // SAFETY: unshare(2) takes flags. mount(2) reads the strings, which are literals; null stands for what it ignores
    // when it changes how mounts propagate.
    unsafe {
        checked(libc::unshare(libc::CLONE_NEWNS))?;
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        checked(libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null()))
    }
}

/// Mounts an empty file system in memory over `target`.
pub(crate) fn mount_empty(target: &CStr, read_only: bool) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | if read_only { libc::MS_RDONLY } else { 0 };
    let kind = c"tmpfs".as_ptr();
    // SAFETY: mount(2) reads strings that live through the call; tmpfs takes no data.
    checked(unsafe { libc::mount(kind, target.as_ptr(), kind, flags, std::ptr::null()) })
}

fn checked(answer: libc::c_int) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
