//! From addresses of links to addresses of sockets.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use futures::channel::oneshot;
use socket2::SockAddr;
use zc_core::transport::{LinkAddr, LinkError};

/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

/// The addresses of `host:port`; names are looked up on a thread of their own.
pub(crate) async fn resolve(at: &str) -> Result<Vec<SocketAddr>, LinkError> {
    if let Ok(numeric) = at.parse::<SocketAddr>() {
        return Ok(vec![numeric]);
    }
    let (done, answer) = oneshot::channel();
    let name = at.to_owned();
    let look_up = move || {
        let found = name.to_socket_addrs().map(|all| all.take(MAX_ADDRESSES).collect::<Vec<_>>());
        let _ = done.send(found);
    };
    std::thread::Builder::new()
        .name("zc-resolve".into())
        .spawn(look_up)
        .map_err(|source| LinkError::Io { operation: "start a thread", source })?;
    let found = answer.await.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()));
    let found = found.map_err(|e| LinkError::Address(format!("{at}: {e}")))?;
    if found.is_empty() { Err(LinkError::Address(format!("{at}: no address"))) } else { Ok(found) }
}

/// The socket address of a Unix link.
pub(crate) fn unix(addr: &LinkAddr) -> Result<SockAddr, LinkError> {
    let made = match addr {
        LinkAddr::UnixPath(path) => SockAddr::unix(path),
        LinkAddr::UnixAbstract(name) => SockAddr::unix(format!("\0{name}")),
        other => return Err(LinkError::Address(format!("{other} is no Unix socket"))),
    };
    made.map_err(|e| LinkError::Address(format!("{addr}: {e}")))
}
