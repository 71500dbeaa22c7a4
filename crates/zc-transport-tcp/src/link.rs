//! A control link over a stream socket.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown,
};
use zc_core::transport::{ControlLink, Interest, LinkAddr, PeerCred, Readiness};

use crate::io::{ByteIo, retry, shutdown};
use crate::limits::MAX_DESCRIPTORS;
use crate::sys;

/// Slices of one write: what the kernel takes (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

/// A connected TCP or Unix stream socket.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use std::sync::Arc;
/// use zc_core::transport::{ControlLink, LinkAddr, Reactor};
/// use zc_transport_tcp::StreamLink;
///
/// /// One end of a pair, for instance one that a parent process left us.
/// fn link(reactor: &Arc<dyn Reactor>, end: UnixStream) -> std::io::Result<Box<dyn ControlLink>> {
///     end.set_nonblocking(true)?;
///     let io = reactor.register(end.into())?;
///     Ok(Box::new(StreamLink::new(io, LinkAddr::UnixAbstract("pair".into()))))
/// }
/// # let _ = link;
/// ```
pub struct StreamLink {
    io: Arc<dyn Readiness>,
    tcp: bool,
    peer: LinkAddr,
}

impl StreamLink {
    /// A link over a watched, non-blocking, connected stream socket. `peer` tells TCP from Unix.
    pub fn new(io: Box<dyn Readiness>, peer: LinkAddr) -> Self {
        Self { io: io.into(), tcp: matches!(peer, LinkAddr::Tcp(_)), peer }
    }

    pub(crate) fn into_io(self) -> ByteIo {
        ByteIo::Socket { io: self.io, tcp: self.tcp }
    }
}

impl fmt::Debug for StreamLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamLink").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// For the socket's options; what travels over it is the link's.
impl AsFd for StreamLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.fd()
    }
}

impl ControlLink for StreamLink {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.io.poll_io(cx, Interest::Read, &mut |fd| retry(|| rustix::io::read(fd, &mut *buf)))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        self.io.poll_io(cx, Interest::Write, &mut |fd| retry(|| rustix::net::send(fd, buf, flags)))
    }

    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let bufs = &bufs[..bufs.len().min(MAX_SLICES)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        self.io.poll_io(cx, Interest::Write, &mut |fd| {
            retry(|| rustix::net::sendmsg(fd, bufs, &mut SendAncillaryBuffer::default(), flags))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&*self.io, Shutdown::Write))
    }

    fn peer(&self) -> LinkAddr {
        self.peer.clone()
    }

    fn peer_cred(&self) -> Option<PeerCred> {
        if self.tcp {
            return None;
        }
        sys::peer_cred(self.io.fd())
    }

    fn passes_descriptors(&self) -> bool {
        !self.tcp
    }

    fn poll_send_descriptors(
        &mut self,
        cx: &mut Context<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Poll<io::Result<()>> {
        if self.tcp {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        if fds.len() > MAX_DESCRIPTORS {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        }
        let sent = self.io.poll_io(cx, Interest::Write, &mut |fd| retry(|| send_descriptors(fd, fds)));
        sent.map_ok(|_| ())
    }

    fn poll_recv_descriptors(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<Vec<OwnedFd>>> {
        if self.tcp {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        let max = max.min(MAX_DESCRIPTORS);
        let mut fds = Vec::new();
        let done = self.io.poll_io(cx, Interest::Read, &mut |fd| {
            fds.clear();
            recv_descriptors(fd, max, &mut fds)
        });
        done.map_ok(|_| fds)
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.io.fd())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

fn send_descriptors(fd: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::INVAL);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(fd, &[IoSlice::new(&[0])], &mut control, flags)
}

/// What can't be opened would be lost, so it is looked at first: that opens copies, and takes nothing away.
fn recv_descriptors(fd: BorrowedFd<'_>, max: usize, out: &mut Vec<OwnedFd>) -> io::Result<usize> {
    if max > 0 {
        look_at_descriptors(fd, max, out)?;
    }
    let taken = recv_byte(fd, &mut RecvAncillaryBuffer::new(&mut []), RecvFlags::empty())?;
    if out.len() > max || max == 0 && taken.contains(ReturnFlags::CTRUNC) {
        out.clear();
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than allowed"));
    }
    Ok(1)
}

/// All descriptors that came are owned before anything is judged, so none leaks. No more are opened than it takes to see that
/// there are too many.
fn look_at_descriptors(fd: BorrowedFd<'_>, max: usize, out: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space[..rustix::cmsg_space!(ScmRights(max + 1))]);
    let flags = recv_byte(fd, &mut control, RecvFlags::PEEK)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            out.extend(fds);
        }
    }
    if flags.contains(ReturnFlags::CTRUNC) && out.len() <= max {
        // There was room for one more: we could not open them all.
        out.clear();
        return Err(Errno::MFILE.into());
    }
    Ok(())
}

fn recv_byte(
    fd: BorrowedFd<'_>,
    control: &mut RecvAncillaryBuffer<'_>,
    flags: RecvFlags,
) -> io::Result<ReturnFlags> {
    let mut byte = [0u8];
    let flags = flags | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = retry(|| rustix::net::recvmsg(fd, &mut [IoSliceMut::new(&mut byte)], control, flags))?;
    if got.bytes == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(got.flags) }
}
