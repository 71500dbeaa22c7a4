//! UDP sockets: several datagrams of one length in one system call, out (GSO) and in (GRO).

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::net::SocketAddrAny;

/// Room for one control message with an integer in it.
#[repr(C, align(8))]
struct Control([u8; 32]);

/// What one call received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Came {
    pub(crate) bytes: usize,
    /// The length of each datagram in it; only the last may be shorter.
    pub(crate) each_bytes: usize,
}

/// Asks for datagrams of one sender and length to come together.
pub(crate) fn receive_together(fd: BorrowedFd<'_>) -> io::Result<()> {
    set(fd, libc::UDP_GRO, 1)
}

/// Whether the kernel cuts what is sent into datagrams.
pub(crate) fn cuts(fd: BorrowedFd<'_>) -> bool {
    set(fd, libc::UDP_SEGMENT, 0).is_ok()
}

fn set(fd: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let (at, len) = ((&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: setsockopt(2) reads the one integer, which is alive.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_UDP, option, at, len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends one datagram, or with `each_bytes` several of that length, of which the last may be shorter.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    to: &SocketAddrAny,
    pieces: &[IoSlice<'_>],
    each_bytes: Option<u16>,
) -> io::Result<()> {
    let mut control = Control([0; 32]);
    // SAFETY: a message of zeros is one without address, pieces or control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.addr_len();
    // The standard library says that an `IoSlice` is an `iovec` here.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len();
    if let Some(each_bytes) = each_bytes {
        message.msg_control = (&raw mut control).cast();
        // SAFETY: only computes a length; 24 bytes fit into `control`.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(2) } as usize;
        // SAFETY: `control` is aligned for a header and has room for one with two bytes of data, so neither pointer is null
        // or leads outside of it.
        unsafe {
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            (*head).cmsg_level = libc::SOL_UDP;
            (*head).cmsg_type = libc::UDP_SEGMENT;
            (*head).cmsg_len = libc::CMSG_LEN(2) as usize;
            libc::CMSG_DATA(head).cast::<u16>().write_unaligned(each_bytes);
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: address, pieces and control are alive and only read, and the kernel has copied them when this returns (M1).
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one datagram, or several at once. One that does not fit is cut.
pub(crate) fn receive(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Came> {
    let mut control = Control([0; 32]);
    let mut piece = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: a message of zeros is one without address, pieces or control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: the kernel writes at most the lengths that are given, into memory that is borrowed for writing (M1).
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(bytes) = usize::try_from(got) else { return Err(io::Error::last_os_error()) };
    let bytes = bytes.min(into.len());
    let each = together(&message).filter(|each| *each > 0);
    Ok(Came { bytes, each_bytes: each.unwrap_or(bytes) })
}

/// The length of each datagram, if several came together.
fn together(message: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has written whole control messages, and how many bytes, which the macros stay within; an integer
    // belongs to this type of them, and its length is looked at.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(message);
        while !head.is_null() {
            let fits = (*head).cmsg_len >= libc::CMSG_LEN(size_of::<libc::c_int>() as u32) as usize;
            if (*head).cmsg_level == libc::SOL_UDP && (*head).cmsg_type == libc::UDP_GRO && fits {
                let each = libc::CMSG_DATA(head).cast::<libc::c_int>().read_unaligned();
                return usize::try_from(each).ok();
            }
            head = libc::CMSG_NXTHDR(message, head);
        }
    }
    None
}
