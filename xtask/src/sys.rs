//! The one system call that no safe interface offers.

/// Whether the kernel would let this process create an io_uring, without creating one.
///
/// The parameters are a null pointer: a kernel that allows io_uring gets as far as reading them and answers
/// `EFAULT`; one that refuses (sysctl, seccomp, not built in) answers before that.
pub(crate) fn probe_io_uring() -> Result<(), std::io::Error> {
    let entries: libc::c_uint = 1;
    // SAFETY: io_uring_setup(2) takes an integer and a pointer that the kernel checks itself; the null pointer is
    // never read or written, and no descriptor is created, so no memory or resource of ours is touched.
    let answer =
        unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, std::ptr::null_mut::<libc::c_void>()) };
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        _ if answer >= 0 => Ok(()),
        Some(libc::EFAULT) => Ok(()),
        _ => Err(error),
    }
}
