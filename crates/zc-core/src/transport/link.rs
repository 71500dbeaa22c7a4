//! Control links: the byte streams on which a connection begins.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;

use super::{LinkError, Reactor};

/// Who is at the other end of a Unix socket, as the kernel says (`SO_PEERCRED`, unix(7)).
///
/// ```
/// use zc_core::transport::PeerCred;
///
/// let root = |cred: Option<PeerCred>| cred.is_some_and(|cred| cred.uid == 0);
/// assert!(root(Some(PeerCred { pid: 1, uid: 0, gid: 0 })));
/// assert!(!root(None)); // the kernel says nothing about TCP
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerCred {
    /// Process; 0: not visible here, as it is in another process namespace.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Where a control link leads.
///
/// ```
/// use zc_core::transport::LinkAddr;
///
/// assert_eq!(LinkAddr::Tcp("127.0.0.1:7000".into()).to_string(), "127.0.0.1:7000");
/// assert_eq!(LinkAddr::UnixAbstract("orders".into()).to_string(), "@orders");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkAddr {
    /// `host:port`, or an address already resolved.
    Tcp(String),
    /// A path in the file system.
    UnixPath(std::path::PathBuf),
    /// A name in the abstract namespace of Unix sockets.
    UnixAbstract(String),
    /// A name inside this process.
    Memory(String),
}

impl fmt::Display for LinkAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => f.write_str(at),
            Self::UnixPath(path) => write!(f, "{}", path.display()),
            Self::UnixAbstract(name) => write!(f, "@{name}"),
            Self::Memory(name) => f.write_str(name),
        }
    }
}

/// An abstract byte stream, so that an in-process pipe or, later, TLS can stand for a socket.
///
/// ```
/// use std::any::Any;
/// use std::io;
/// use std::task::{Context, Poll, Waker};
/// use zc_core::transport::{ControlLink, LinkAddr};
///
/// /// Takes everything and says nothing.
/// #[derive(Debug)]
/// struct Void;
///
/// impl ControlLink for Void {
///     fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
///         Poll::Ready(Ok(0))
///     }
///     fn poll_write(&mut self, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
///         Poll::Ready(Ok(buf.len()))
///     }
///     fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
///         Poll::Ready(Ok(()))
///     }
///     fn peer(&self) -> LinkAddr {
///         LinkAddr::Memory("void".into())
///     }
///     fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
///         self
///     }
/// }
/// let mut cx = Context::from_waker(Waker::noop());
/// assert!(matches!(Void.poll_write(&mut cx, b"hello"), Poll::Ready(Ok(5))));
/// ```
pub trait ControlLink: Send + fmt::Debug + 'static {
    /// Reads at least one byte; 0 is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Writes at least one byte.
    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>>;
    /// Writes at least one byte of the slices, which follow each other. Default: of the first that has any.
    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty());
        self.poll_write(cx, first.map_or(&[], |buf| buf))
    }
    /// Whether more than one slice goes out with a write. Default: no.
    fn is_write_vectored(&self) -> bool {
        false
    }
    /// Sends the end of the stream.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// The peer's address.
    fn peer(&self) -> LinkAddr;
    /// Who the peer is, on a Unix socket.
    fn peer_cred(&self) -> Option<PeerCred> {
        None
    }
    /// True when descriptors can travel (`SCM_RIGHTS`).
    fn passes_descriptors(&self) -> bool {
        false
    }
    /// Sends one byte with descriptors.
    fn poll_send_descriptors(
        &mut self,
        _cx: &mut Context<'_>,
        _fds: &[BorrowedFd<'_>],
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
    /// Receives one byte with descriptors (close-on-exec), at most `max`; more are closed and an error of the kind
    /// `InvalidData`. When the process can't open them all (`EMFILE`), that is an error, and byte and descriptors stay where they
    /// are: to be received later, or thrown away with a `max` of 0.
    fn poll_recv_descriptors(
        &mut self,
        _cx: &mut Context<'_>,
        _max: usize,
    ) -> Poll<io::Result<Vec<OwnedFd>>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
    /// The stream socket that this link is, if it is nothing else: bytes pass between it and the link's users as they are, and none
    /// are kept on the way. Who duplicates the descriptor and drops the link has all of the stream.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// For an in-band transport that asks which link it is, before it takes it with `into_any`.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }
    /// For an in-band transport that knows the concrete link.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

/// Accepts control links.
///
/// ```
/// use std::task::{Context, Poll};
/// use zc_core::transport::{ControlLink, LinkAddr, LinkError, LinkListener};
///
/// /// Hands out links that were made elsewhere.
/// struct Made(Vec<Box<dyn ControlLink>>);
///
/// impl LinkListener for Made {
///     fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<Result<Box<dyn ControlLink>, LinkError>> {
///         self.0.pop().map_or(Poll::Pending, |link| Poll::Ready(Ok(link)))
///     }
///     fn local(&self) -> LinkAddr {
///         LinkAddr::Memory("made".into())
///     }
/// }
/// assert_eq!(Made(Vec::new()).local().to_string(), "made");
/// ```
pub trait LinkListener: Send {
    /// The next link. Errors that concern one link only (ECONNABORTED) are retried inside;
    /// EMFILE and the like are returned, and the listener stays usable.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn ControlLink>, LinkError>>;
    /// Where it listens, with the real port.
    fn local(&self) -> LinkAddr;
}

/// Opens control links of some kinds of address.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::transport::{BoxFuture, ControlLink, LinkAddr, LinkError, LinkListener, LinkProvider, Reactor};
///
/// /// Opens nothing: every address is refused.
/// struct Offline;
///
/// impl LinkProvider for Offline {
///     fn accepts(&self, _: &LinkAddr) -> bool {
///         true
///     }
///     fn connect<'a>(
///         &'a self,
///         addr: &'a LinkAddr,
///         _: &'a Arc<dyn Reactor>,
///     ) -> BoxFuture<'a, Result<Box<dyn ControlLink>, LinkError>> {
///         Box::pin(async move { Err(LinkError::Address(addr.to_string())) })
///     }
///     fn bind<'a>(
///         &'a self,
///         addr: &'a LinkAddr,
///         _: &'a Arc<dyn Reactor>,
///     ) -> BoxFuture<'a, Result<Box<dyn LinkListener>, LinkError>> {
///         Box::pin(async move { Err(LinkError::Address(addr.to_string())) })
///     }
/// }
/// assert!(Offline.accepts(&LinkAddr::Tcp("127.0.0.1:7000".into())));
/// ```
pub trait LinkProvider: Send + Sync + 'static {
    /// True for addresses that this provider opens.
    fn accepts(&self, addr: &LinkAddr) -> bool;
    /// Connects. Dropping the future abandons the attempt.
    fn connect<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn ControlLink>, LinkError>>;
    /// Listens.
    fn bind<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn LinkListener>, LinkError>>;
}
