//! The bells: how a side that sleeps is woken. Each side owns one and gives the peer a copy.
//!
//! An eventfd between processes of one trust domain. Its copies share their file flags, so a peer could
//! make ours block; to others a socket pair is given, whose calls never block whatever its flags are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use rustix::event::EventfdFlags;
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use zc_core::transport::{Reactor, Readiness};

/// What the bells of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BellKind {
    Eventfd,
    Socket,
}

/// Our own bell.
pub(crate) struct Bell {
    io: Box<dyn Readiness>,
    kind: BellKind,
}

impl Bell {
    /// A bell, and the end that the peer gets.
    pub(crate) fn new(kind: BellKind, reactor: &dyn Reactor) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = match kind {
            BellKind::Eventfd => {
                let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let copy = rustix::io::fcntl_dupfd_cloexec(&fd, 0)?;
                (fd, copy)
            }
            BellKind::Socket => rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )?,
        };
        Ok((Self { io: reactor.register_to_read(ours)?, kind }, theirs))
    }

    /// Ready when it rang; it is silent again then.
    pub(crate) fn poll_rung(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let kind = self.kind;
        let done = self.io.poll_read_stream(cx, &mut |fd| silence(fd, kind));
        done.map_ok(drop)
    }
}

/// Takes what rang off, and says whether that was all; never blocks, even if the peer cleared `O_NONBLOCK`.
fn silence(fd: BorrowedFd<'_>, kind: BellKind) -> io::Result<(usize, bool)> {
    let mut bytes = [0; 64];
    let done = match kind {
        BellKind::Eventfd => {
            let into = &mut [io::IoSliceMut::new(&mut bytes[..8])];
            match rustix::io::preadv2(fd, into, u64::MAX, ReadWriteFlags::NOWAIT) {
                Err(Errno::OPNOTSUPP | Errno::SPIPE | Errno::NOSYS) => rustix::io::read(fd, &mut bytes[..8]),
                done => done,
            }
        }
        BellKind::Socket => rustix::net::recv(fd, &mut bytes, RecvFlags::DONTWAIT).map(|(n, _)| n),
    };
    match done {
        Ok(0) => Err(Errno::PIPE.into()),
        // A signal: look again rather than sleep.
        Err(Errno::INTR) => Ok((0, false)),
        // An eventfd is read as a whole.
        done => done.map(|n| (n, kind == BellKind::Eventfd || n < bytes.len())).map_err(io::Error::from),
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread rang.
    pub(crate) static RINGS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// The peer's bell.
pub(crate) struct PeerBell {
    fd: OwnedFd,
    kind: BellKind,
}

impl PeerBell {
    /// A descriptor that a peer sent; `None` if it is not of that kind.
    pub(crate) fn new(fd: OwnedFd, kind: BellKind) -> Option<Self> {
        let fits = match kind {
            // Eventfds have no file type; files, pipes and sockets, which could block, do.
            BellKind::Eventfd => rustix::fs::fstat(&fd).is_ok_and(|s| s.st_mode & libc::S_IFMT == 0),
            // Others may wait on what `MSG_DONTWAIT` says nothing about.
            BellKind::Socket => {
                use rustix::net::sockopt::{socket_domain, socket_type};
                socket_domain(&fd).is_ok_and(|family| family == AddressFamily::UNIX)
                    && socket_type(&fd).is_ok_and(|kind| kind == SocketType::STREAM)
            }
        };
        fits.then_some(Self { fd, kind })
    }

    /// Wakes the peer. Failures don't matter: a bell that is full rings already, and that the peer is
    /// gone is seen on the link.
    pub(crate) fn ring(&self) {
        #[cfg(test)]
        RINGS.set(RINGS.get() + 1);
        let fd = self.fd.as_fd();
        let _ = match self.kind {
            BellKind::Eventfd => rustix::io::write(fd, &1u64.to_ne_bytes()),
            BellKind::Socket => rustix::net::send(fd, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
        };
    }
}
