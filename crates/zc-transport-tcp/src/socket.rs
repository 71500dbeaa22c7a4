//! Opening control links: connect, bind, accept.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use zc_core::transport::{
    BoxFuture, ControlLink, Interest, LinkAddr, LinkError, LinkListener, LinkProvider, Reactor, Readiness,
};

use crate::addr;
use crate::limits::{BACKLOG, UNIX_CONNECT_PAUSE_MS, UNIX_CONNECT_TRIES};
use crate::link::StreamLink;

/// Opens TCP and Unix links.
///
/// A socket file that a dead process left is replaced, a live one is not; the new file is for its owner only.
/// Two processes that begin to listen on one path at the same moment are not kept apart: between its two system
/// calls `bind` and `listen`, a file looks as if it was left, and two may find the same file left. The later one
/// then has the path; the other one listens on, and nobody can reach it. Whoever starts servers sees to that.
/// Names are looked up on other threads, so that the reactor never waits for them.
///
/// ```
/// use zc_core::transport::{LinkAddr, LinkProvider};
/// use zc_transport_tcp::StreamLinks;
///
/// assert!(StreamLinks.accepts(&LinkAddr::Tcp("localhost:7000".into())));
/// assert!(StreamLinks.accepts(&LinkAddr::UnixPath("/run/zc".into())));
/// assert!(!StreamLinks.accepts(&LinkAddr::Memory("test".into())));
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamLinks;

impl LinkProvider for StreamLinks {
    fn accepts(&self, addr: &LinkAddr) -> bool {
        matches!(addr, LinkAddr::Tcp(_) | LinkAddr::UnixPath(_) | LinkAddr::UnixAbstract(_))
    }

    fn connect<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn ControlLink>, LinkError>> {
        Box::pin(async move {
            match addr {
                LinkAddr::Tcp(at) => connect_tcp(at, &**reactor).await,
                _ => connect_unix(addr, &**reactor).await,
            }
        })
    }

    fn bind<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn LinkListener>, LinkError>> {
        Box::pin(async move {
            let (socket, file) = match addr {
                LinkAddr::Tcp(at) => (bind_tcp(at).await?, None),
                _ => bind_unix(addr)?,
            };
            let local = match addr {
                LinkAddr::Tcp(_) => tcp_name(socket.local_addr().map_err(failed("getsockname"))?),
                other => other.clone(),
            };
            let io = register(&**reactor, socket)?;
            Ok(Box::new(StreamListener { io, local, reactor: reactor.clone(), _file: file })
                as Box<dyn LinkListener>)
        })
    }
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> LinkError {
    move |source| LinkError::Io { operation, source }
}

const NO_RUNTIME: LinkError = LinkError::NoRuntime("no runtime with I/O and time is running");

fn register(reactor: &dyn Reactor, socket: impl Into<OwnedFd>) -> Result<Box<dyn Readiness>, LinkError> {
    reactor.register(socket.into()).map_err(|e| match e.kind() {
        io::ErrorKind::NotConnected => NO_RUNTIME,
        _ => failed("register")(e),
    })
}

fn open(domain: Domain) -> Result<Socket, LinkError> {
    Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None).map_err(failed("socket"))
}

fn tcp_name(addr: SockAddr) -> LinkAddr {
    LinkAddr::Tcp(addr.as_socket().map_or_else(|| "unknown".into(), |a| a.to_string()))
}

async fn connect_tcp(at: &str, reactor: &dyn Reactor) -> Result<Box<dyn ControlLink>, LinkError> {
    let mut last = LinkError::Address(at.to_owned());
    for address in addr::resolve(at).await? {
        match connect_one(address.into(), reactor).await {
            Ok(link) => return Ok(link),
            Err(no_runtime @ LinkError::NoRuntime(_)) => return Err(no_runtime),
            Err(e) => last = e,
        }
    }
    Err(last)
}

async fn connect_one(address: SockAddr, reactor: &dyn Reactor) -> Result<Box<dyn ControlLink>, LinkError> {
    let socket = open(address.domain())?;
    socket.set_tcp_nodelay(true).map_err(failed("TCP_NODELAY"))?;
    match socket.connect(&address) {
        Ok(()) => {}
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR)) => {}
        Err(e) => return Err(failed("connect")(e)),
    }
    let io = register(reactor, socket)?;
    std::future::poll_fn(|cx| {
        io.poll_io(cx, Interest::Write, &mut |fd| {
            rustix::net::sockopt::socket_error(fd)??;
            match rustix::net::getpeername(fd) {
                Ok(_) => Ok(0),
                Err(Errno::NOTCONN) => Err(io::ErrorKind::WouldBlock.into()),
                Err(e) => Err(e.into()),
            }
        })
    })
    .await
    .map_err(failed("connect"))?;
    Ok(Box::new(StreamLink::new(io, tcp_name(address))))
}

async fn connect_unix(addr: &LinkAddr, reactor: &dyn Reactor) -> Result<Box<dyn ControlLink>, LinkError> {
    let address = addr::unix(addr)?;
    let mut tries = 0;
    loop {
        let socket = open(Domain::UNIX)?;
        match socket.connect(&address) {
            Ok(()) => {
                let io = register(reactor, socket)?;
                return Ok(Box::new(StreamLink::new(io, addr.clone())));
            }
            // The backlog is full; unlike on TCP, no readiness tells when it is not.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && tries < UNIX_CONNECT_TRIES => tries += 1,
            Err(e) => return Err(failed("connect")(e)),
        }
        let mut timer = reactor.timer().map_err(|_| NO_RUNTIME)?;
        timer.reset(reactor.now() + Duration::from_millis(UNIX_CONNECT_PAUSE_MS));
        std::future::poll_fn(|cx| timer.poll_expired(cx)).await;
    }
}

async fn bind_tcp(at: &str) -> Result<Socket, LinkError> {
    let addresses = addr::resolve(at).await?;
    bind_first(addresses.into_iter().map(SockAddr::from), at)
}

/// The first address that can be listened on; the system may lack the family of one.
fn bind_first(addresses: impl Iterator<Item = SockAddr>, at: &str) -> Result<Socket, LinkError> {
    let mut last = LinkError::Address(at.to_owned());
    for address in addresses {
        match bind_one(&address) {
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn bind_one(address: &SockAddr) -> Result<Socket, LinkError> {
    let socket = open(address.domain())?;
    socket.set_reuse_address(true).map_err(failed("SO_REUSEADDR"))?;
    bind_and_listen(&socket, address)?;
    Ok(socket)
}

fn bind_unix(addr: &LinkAddr) -> Result<(Socket, Option<SocketFile>), LinkError> {
    let address = addr::unix(addr)?;
    let socket = open(Domain::UNIX)?;
    let LinkAddr::UnixPath(path) = addr else {
        bind_and_listen(&socket, &address)?;
        return Ok((socket, None));
    };
    // The file takes the socket's mode, so that it is never open to others, not even for a moment.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600)).map_err(|e| failed("fchmod")(e.into()))?;
    match bind_and_listen(&socket, &address) {
        Err(LinkError::Io { source, .. })
            if source.kind() == io::ErrorKind::AddrInUse && is_stale(path, &address) =>
        {
            std::fs::remove_file(path).map_err(failed("unlink a stale socket"))?;
            bind_and_listen(&socket, &address)?;
        }
        other => other?,
    }
    let file = SocketFile::of(path).map_err(failed("stat"))?;
    Ok((socket, Some(file)))
}

/// At once: a socket file on which nobody listens yet is taken for a stale one.
fn bind_and_listen(socket: &Socket, address: &SockAddr) -> Result<(), LinkError> {
    socket.bind(address).map_err(failed("bind"))?;
    socket.listen(BACKLOG).map_err(failed("listen"))
}

/// Whether this is a socket file on which nobody listens any more. Two processes that start on one path at
/// the same moment may both find it stale; the later one then has it.
fn is_stale(path: &Path, address: &SockAddr) -> bool {
    // To connect to an ordinary file is refused as well: that one is not ours to remove.
    let Ok(before) = file_id(path) else { return false };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let refused = open(Domain::UNIX).is_ok_and(|probe| {
        probe.connect(address).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    });
    is_socket && refused && file_id(path).is_ok_and(|now| now == before)
}

/// A socket file of ours; removed on drop, unless another took its place.
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: file_id(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|now| now == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

struct StreamListener {
    io: Box<dyn Readiness>,
    local: LinkAddr,
    reactor: Arc<dyn Reactor>,
    _file: Option<SocketFile>,
}

impl StreamListener {
    fn link(&self, fd: OwnedFd) -> Result<Box<dyn ControlLink>, LinkError> {
        let peer = match &self.local {
            LinkAddr::Tcp(_) => {
                let socket = SockRef::from(&fd);
                // It can only fail on a connection that is over already; whoever reads finds out.
                let _ = socket.set_tcp_nodelay(true);
                socket.peer_addr().map_or_else(|_| LinkAddr::Tcp("unknown".into()), tcp_name)
            }
            unix => unix.clone(),
        };
        Ok(Box::new(StreamLink::new(register(&*self.reactor, fd)?, peer)))
    }
}

/// Errors of a connection that ended while it waited; accept(2) says to treat them as none.
fn concerns_one_link(error: Errno) -> bool {
    matches!(
        error,
        Errno::CONNABORTED
            | Errno::INTR
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH
    )
}

impl LinkListener for StreamListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn ControlLink>, LinkError>> {
        let mut accepted = None;
        let done = self.io.poll_io(cx, Interest::Read, &mut |fd| {
            loop {
                match rustix::net::accept_with(fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                    Ok(link) => {
                        accepted = Some(link);
                        return Ok(0);
                    }
                    Err(e) if concerns_one_link(e) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        });
        match (done, accepted) {
            (Poll::Pending, _) => Poll::Pending,
            (Poll::Ready(Err(e)), _) => Poll::Ready(Err(failed("accept")(e))),
            (Poll::Ready(Ok(_)), Some(fd)) => Poll::Ready(self.link(fd)),
            (Poll::Ready(Ok(_)), None) => Poll::Ready(Err(failed("accept")(io::ErrorKind::Other.into()))),
        }
    }

    fn local(&self) -> LinkAddr {
        self.local.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};

    #[test]
    fn an_address_of_a_family_that_is_missing_is_passed_over() {
        // No machine of ours is the one with this number, and many kernels lack the family.
        let other = SockAddr::vsock(12_345, 7000);
        let here = SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let socket = bind_first([other, here].into_iter(), "test").unwrap();
        assert!(socket.local_addr().unwrap().as_socket().unwrap().port() != 0);
    }
}
