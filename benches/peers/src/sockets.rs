//! Connected sockets: TCP on loopback, and Unix ones on tokio. The server inherits its end.

use std::io::{stdin, stdout};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::Result;
use crate::child::{Running, serve};
use crate::job::Job;

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Either kind of socket.
pub(crate) type Stream = Box<dyn Io>;

/// Starts the server of a job, and connects to it.
pub(crate) fn client(job: &Job, tcp: bool) -> Result<(Running, Stream)> {
    let (theirs, ours): (OwnedFd, OwnedFd) = if tcp {
        let (theirs, ours) = tcp_pair()?;
        (theirs.into(), ours.into())
    } else {
        let (theirs, ours) = UnixStream::pair()?;
        (theirs.into(), ours.into())
    };
    Ok((serve(job, theirs, Stdio::null())?, on_tokio(ours, tcp)?))
}

/// The server's end.
pub(crate) fn server(tcp: bool) -> Result<Stream> {
    on_tokio(inherited()?.0, tcp)
}

/// What the parent gave as standard input and output.
pub(crate) fn inherited() -> Result<(OwnedFd, OwnedFd)> {
    Ok((stdin().as_fd().try_clone_to_owned()?, stdout().as_fd().try_clone_to_owned()?))
}

/// Two connected sockets on loopback, without Nagle's delay.
pub(crate) fn tcp_pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let (theirs, from) = listener.accept()?;
    if from != ours.local_addr()? {
        return Err("somebody else connected".into());
    }
    theirs.set_nodelay(true)?;
    ours.set_nodelay(true)?;
    Ok((theirs, ours))
}

fn on_tokio(socket: OwnedFd, tcp: bool) -> Result<Stream> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(if tcp {
        Box::new(tokio::net::TcpStream::from_std(socket.into())?)
    } else {
        Box::new(tokio::net::UnixStream::from_std(socket.into())?)
    })
}
