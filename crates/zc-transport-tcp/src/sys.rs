//! The system interface that rustix lacks: `SO_ZEROCOPY`, the socket's error queue, what becomes of `SIGPIPE`, and
//! `SO_PEERCRED`, where rustix takes the process id for one that can't be 0.
//!
//! See `Documentation/networking/msg_zerocopy.rst` of the kernel.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use zc_core::transport::PeerCred;

/// A range of zero-copy sends that the kernel is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Completed {
    /// The first send.
    pub(crate) first: u32,
    /// The last send.
    pub(crate) last: u32,
    /// The kernel copied after all.
    pub(crate) copied: bool,
}

const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;

/// Allows `MSG_ZEROCOPY` on a socket.
pub(crate) fn enable_zero_copy(fd: BorrowedFd<'_>) -> io::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: the option value is a live c_int of the length given.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this process ignores `SIGPIPE` or handles it. Programs of Rust ignore it, unless their `main` is another language's.
pub(crate) fn survives_sigpipe() -> bool {
    // SAFETY: sigaction is plain data, for which all zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no action is given; the old one is written to a live value of its type.
    let rc = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action) };
    rc == 0 && action.sa_sigaction != libc::SIG_DFL
}

/// Who is at the other end of a Unix socket; none if it never had one.
pub(crate) fn peer_cred(fd: BorrowedFd<'_>) -> Option<PeerCred> {
    let mut cred = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the option value is a live ucred of the length given, and any bytes are a valid one.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    };
    let is_whole = rc == 0 && len as usize == size_of::<libc::ucred>();
    let is_known = is_whole && cred.uid != u32::MAX;
    is_known.then_some(PeerCred { pid: cred.pid, uid: cred.uid, gid: cred.gid })
}

/// Takes one entry off the error queue; `Ok(None)` for entries of another kind.
pub(crate) fn take_completion(fd: BorrowedFd<'_>) -> io::Result<Option<Completed>> {
    #[repr(align(8))]
    struct Control([u8; 256]);
    let mut control = Control([0; 256]);
    // SAFETY: msghdr is plain data, for which all zeroes is a valid value.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_control = control.0.as_mut_ptr().cast();
    msg.msg_controllen = control.0.len() as _;
    // SAFETY: msg names no data and a control buffer that outlives the call.
    let rc = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut msg, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: msg was filled in by recvmsg, and its control buffer is alive.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&msg) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return aligned headers inside the control buffer.
        let h = unsafe { &*header };
        let is_error = (h.cmsg_level == libc::SOL_IP && h.cmsg_type == libc::IP_RECVERR)
            || (h.cmsg_level == libc::SOL_IPV6 && h.cmsg_type == libc::IPV6_RECVERR);
        if is_error
            && h.cmsg_len as usize >= size_of::<libc::cmsghdr>() + size_of::<libc::sock_extended_err>()
        {
            // SAFETY: cmsg_len says that a whole sock_extended_err lies there; it may be unaligned.
            let e = unsafe { libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned() };
            if e.ee_errno == 0 && e.ee_origin == SO_EE_ORIGIN_ZEROCOPY {
                let copied = e.ee_code & SO_EE_CODE_ZEROCOPY_COPIED != 0;
                return Ok(Some(Completed { first: e.ee_info, last: e.ee_data, copied }));
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; header is one of this message's.
        header = unsafe { libc::CMSG_NXTHDR(&msg, header) };
    }
    Ok(None)
}
