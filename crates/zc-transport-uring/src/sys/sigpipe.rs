//! What becomes of `SIGPIPE`.

/// Whether this process ignores `SIGPIPE` or handles it. Programs of Rust ignore it, unless their `main` is another language's.
pub(crate) fn survives_sigpipe() -> bool {
    // SAFETY: sigaction is plain data, for which all zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no action is given; the old one is written to a live value of its type.
    let rc = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action) };
    rc == 0 && action.sa_sigaction != libc::SIG_DFL
}
