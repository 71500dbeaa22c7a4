//! The byte stream under a lane: a socket, or any other control link.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown};
use rustix::pipe::SpliceFlags;
use zc_core::transport::{ControlLink, Interest, Piped, Readiness};

use crate::sys;

/// A stream that both halves of a lane hold.
#[derive(Clone)]
pub(crate) enum ByteIo {
    /// A socket; `tcp` says of which kind.
    Socket { io: Arc<dyn Readiness>, tcp: bool },
    /// A link that we know nothing else about.
    Link(LinkIo),
}

/// A link, which keeps the waker of the last read only.
#[derive(Clone)]
pub(crate) struct LinkIo {
    link: Arc<Mutex<Box<dyn ControlLink>>>,
    /// Whom a pending read is to wake: a read that arms nothing must not replace it.
    armed: Option<Waker>,
}

impl LinkIo {
    pub(crate) fn new(link: Box<dyn ControlLink>) -> Self {
        Self { link: Arc::new(Mutex::new(link)), armed: None }
    }

    fn poll_read(&mut self, cx: Option<&mut Context<'_>>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Some(cx) = cx {
            self.armed = Some(cx.waker().clone());
        }
        let waker = self.armed.as_ref().unwrap_or(Waker::noop());
        let done = self.link.lock().poll_read(&mut Context::from_waker(waker), buf);
        if done.is_ready() {
            self.armed = None;
        }
        done
    }
}

/// How to write.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WriteMode {
    /// More follows at once.
    pub(crate) more: bool,
    /// The kernel may keep using the memory.
    pub(crate) zero_copy: bool,
}

impl WriteMode {
    fn flags(self) -> SendFlags {
        let mut flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        flags.set(SendFlags::MORE, self.more);
        flags.set(SendFlags::from_bits_retain(libc::MSG_ZEROCOPY as u32), self.zero_copy);
        flags
    }
}

impl ByteIo {
    /// Reads into the pieces, in order: the rest of a body, and what may follow; 0 is the end. Without a
    /// context nothing is armed, and what is armed stays so.
    pub(crate) fn poll_read(
        &mut self,
        cx: Option<&mut Context<'_>>,
        pieces: [&mut [u8]; 3],
    ) -> Poll<io::Result<usize>> {
        let asked: usize = pieces.iter().map(|piece| piece.len()).sum();
        let body = pieces[0].len();
        let mut full = pieces.into_iter().filter(|piece| !piece.is_empty());
        let (Some(first), second) = (full.next(), full.next()) else { return Poll::Ready(Ok(0)) };
        let io = match self {
            Self::Socket { io, .. } => io,
            Self::Link(link) => return link.poll_read(cx, first),
        };
        let mut pieces = [IoSliceMut::new(first), IoSliceMut::new(second.unwrap_or_default())];
        let mut read = |fd: BorrowedFd<'_>| match &mut pieces {
            [one, none] if none.is_empty() => retry(|| rustix::io::read(fd, &mut **one)),
            both => retry(|| rustix::io::readv(fd, both)),
        };
        match cx {
            // In the middle of a body more is on its way: to look again costs less than to wait for news.
            Some(cx) => {
                io.poll_read_stream(cx, &mut |fd| read(fd).map(|n| (n, 0 < n && body <= n && n < asked)))
            }
            None => match read(io.fd()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                done => Poll::Ready(done),
            },
        }
    }

    /// Writes a part of `bytes`; 0 is possible on a link that takes no more.
    pub(crate) fn poll_write_one(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket { io, .. } => io.poll_io(cx, Interest::Write, &mut |fd| {
                retry(|| rustix::net::send(fd, bytes, WriteMode::default().flags()))
            }),
            Self::Link(link) => link.link.lock().poll_write(cx, bytes),
        }
    }

    /// How many bytes of the pieces a write takes as long as there is room.
    pub(crate) fn offers(&self, pieces: &[IoSlice<'_>]) -> usize {
        let mut full = pieces.iter().map(|piece| piece.len()).filter(|len| *len > 0);
        match self {
            Self::Socket { .. } => full.sum(),
            Self::Link(_) => full.next().unwrap_or_default(),
        }
    }

    /// Writes a part of the pieces; 0 is possible, too.
    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
        mode: WriteMode,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket { io, .. } => io.poll_io(cx, Interest::Write, &mut |fd| {
                retry(|| rustix::net::sendmsg(fd, pieces, &mut SendAncillaryBuffer::default(), mode.flags()))
            }),
            Self::Link(link) => match pieces.iter().find(|p| !p.is_empty()) {
                Some(piece) => link.link.lock().poll_write(cx, piece),
                None => Poll::Ready(Ok(0)),
            },
        }
    }

    /// Whether [`poll_splice`](Self::poll_splice) can be used. Splicing has no flag that keeps the signal of a broken pipe
    /// away, so it is only for processes that do not die of it.
    pub(crate) fn can_splice(&self) -> bool {
        matches!(self, Self::Socket { .. }) && sys::survives_sigpipe()
    }

    /// Moves at most `len` bytes out of a pipe that holds them; 0 if that can't be done.
    pub(crate) fn poll_splice(
        &self,
        cx: &mut Context<'_>,
        piped: &Piped,
        len: usize,
        more: bool,
    ) -> Poll<io::Result<usize>> {
        let Self::Socket { io, .. } = self else { return Poll::Ready(Ok(0)) };
        let mut flags = SpliceFlags::NONBLOCK;
        flags.set(SpliceFlags::MORE, more);
        io.poll_io(cx, Interest::Write, &mut |fd| {
            retry(|| rustix::pipe::splice(piped.source(), None, fd, None, len, flags))
        })
    }

    /// Ends our direction.
    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket { io, .. } => Poll::Ready(shutdown(&**io, Shutdown::Write)),
            Self::Link(link) => link.link.lock().poll_shutdown(cx),
        }
    }
}

/// Shuts a socket down; one that is not connected any more counts as shut.
pub(crate) fn shutdown(io: &dyn Readiness, how: Shutdown) -> io::Result<()> {
    match rustix::net::shutdown(io.fd(), how) {
        Ok(()) | Err(Errno::NOTCONN) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done.map_err(io::Error::from),
        }
    }
}
