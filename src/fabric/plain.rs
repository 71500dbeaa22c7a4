//! Links that carry another protocol than zc.

use std::fmt;
use std::io::{self, IoSlice, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use zc_core::transport::{ControlLink, Transport, Unavailable};
use zc_core::wire::Stage;

use crate::identity::PeerIdentity;
use crate::report::{Outcome, SelectionReport};

/// What a [`PlainStream`]'s report says is chosen.
pub const PLAIN: &str = "plain";

/// Silence after which the kernel asks the peer of a [`PlainStream`] over TCP whether it is still there: what runs on
/// it may have no keepalive, as a zc connection has.
pub const PLAIN_KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// The time between two such questions.
pub const PLAIN_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Questions without an answer after which the peer is gone.
pub const PLAIN_KEEPALIVE_PROBES: u32 = 6;

/// Most bytes of a reader's buffer that are cleared for one read of the link.
#[cfg(feature = "tokio")]
const READ_BYTES: usize = 16 * 1024;

/// A link on which no zc is spoken: bytes as they come, with the traits of `futures::io`, and with tokio's
/// under the feature `tokio`. Nothing is proved on it, and no ledger counts its copies: they are the kernel's.
///
/// Listeners hand them out if asked to ([`Fabric::listen_mixed`](crate::Fabric::listen_mixed)), clients open them
/// with [`Fabric::connect_plain`](crate::Fabric::connect_plain).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// let fabric = zc::Fabric::auto()?;
/// let mut listener = fabric.listen_mixed("zc+mem://plain").await?;
/// let mut client = fabric.connect_plain("zc+mem://plain").await?;
/// client.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
/// let zc::Incoming::Plain(mut server) = listener.accept().await? else { panic!("that was no HELLO") };
/// let mut method = [0; 3];
/// server.read_exact(&mut method).await?;
/// assert_eq!(&method, b"GET"); // nothing of it is lost
/// # Ok(()) }
/// ```
pub struct PlainStream {
    link: Box<dyn ControlLink>,
    /// What was read to find out that it is no HELLO.
    seen: Vec<u8>,
    at: usize,
    peer: PeerIdentity,
    report: SelectionReport,
}

impl PlainStream {
    pub(crate) fn new<'a>(
        link: Box<dyn ControlLink>,
        seen: Vec<u8>,
        transports: impl Iterator<Item = &'a dyn Transport>,
    ) -> Self {
        let mut report = SelectionReport::default();
        for transport in transports {
            let remedy = "the peer does not speak zc: use it there, too".to_owned();
            let why = Unavailable::Other { code: "not_zc", remedy };
            report.set(transport.name(), Stage::Hello, Outcome::Unavailable(why));
        }
        report.set(PLAIN, Stage::Connect, Outcome::Chosen);
        let peer = PeerIdentity::unknown(link.peer(), link.peer_cred());
        #[cfg(feature = "tcp")]
        if let Err(error) = keep_alive(&*link) {
            tracing::debug!(%error, peer = %peer.addr, "no keepalive on a plain link");
        }
        Self { link, seen, at: 0, peer, report }
    }

    /// Who is at the other end: an address, and on a Unix socket what the kernel says.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// That no transport carries it, and why.
    pub fn report(&self) -> &SelectionReport {
        &self.report
    }

    fn read_into(&mut self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        if out.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut rest = &self.seen[self.at..];
        if rest.is_empty() {
            return self.link.poll_read(cx, out);
        }
        let count = rest.read(out)?;
        self.at += count;
        Poll::Ready(Ok(count))
    }
}

/// So that a peer that vanished does not hold the link for ever. Links of others look after themselves.
#[cfg(feature = "tcp")]
fn keep_alive(link: &dyn ControlLink) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    use zc_core::transport::LinkAddr;

    let stream = link.as_any().and_then(|link| link.downcast_ref::<zc_transport_tcp::StreamLink>());
    let (Some(stream), LinkAddr::Tcp(_)) = (stream, link.peer()) else { return Ok(()) };
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PLAIN_KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, PLAIN_KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, PLAIN_KEEPALIVE_PROBES)
}

impl fmt::Debug for PlainStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainStream").field("peer", &self.peer.addr).finish_non_exhaustive()
    }
}

impl futures::io::AsyncRead for PlainStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        self.read_into(cx, out)
    }
}

impl futures::io::AsyncWrite for PlainStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.link.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.link.poll_write_vectored(cx, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.link.poll_shutdown(cx)
    }
}

#[cfg(feature = "tokio")]
mod with_tokio {
    use std::task::ready;

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    impl AsyncRead for PlainStream {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            // No more of the caller's buffer is cleared than may be filled.
            let most = match self.seen.len() - self.at {
                0 => READ_BYTES,
                seen => seen,
            };
            let len = out.remaining().min(most);
            let count = ready!(self.read_into(cx, out.initialize_unfilled_to(len)))?;
            out.advance(count);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for PlainStream {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.link.poll_write(cx, bytes)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.link.poll_write_vectored(cx, slices)
        }

        fn is_write_vectored(&self) -> bool {
            self.link.is_write_vectored()
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.link.poll_shutdown(cx)
        }
    }
}

#[cfg(all(test, feature = "tcp", feature = "tokio"))]
mod tests {
    use std::future::poll_fn;
    use std::mem::MaybeUninit;

    use rustix::net::sockopt;
    use tokio::io::{AsyncRead, ReadBuf};
    use zc_transport_tcp::StreamLink;

    use super::*;
    use crate::fabric::{Fabric, Incoming};

    #[tokio::test]
    async fn a_reader_has_no_more_of_its_buffer_cleared_than_may_be_filled() {
        let (near, mut far) = crate::mem::duplex("cleared");
        let mut stream = PlainStream::new(Box::new(near), b"GET ".into(), std::iter::empty());
        let path = b"/ HTTP/1.1";
        poll_fn(|cx| far.poll_write(cx, path)).await.unwrap();
        let mut space = vec![MaybeUninit::uninit(); 1 << 20];
        for (bytes, most) in [(&b"GET "[..], 4), (path, READ_BYTES)] {
            let mut out = ReadBuf::uninit(&mut space);
            poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut out)).await.unwrap();
            assert_eq!(out.filled(), bytes);
            assert_eq!(out.initialized().len(), most);
        }
    }

    #[tokio::test]
    async fn over_tcp_the_kernel_finds_out_that_a_peer_is_gone() {
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen_mixed("zc+tcp://127.0.0.1:0").await.unwrap();
        let uri = listener.local_uri().to_string();
        let mut client = fabric.connect_plain(&uri).await.unwrap();
        // One byte of another protocol is enough.
        poll_fn(|cx| client.link.poll_write(cx, b"G")).await.unwrap();
        let accepted = tokio::time::timeout(Duration::from_secs(60), listener.accept()).await;
        let Incoming::Plain(server) = accepted.expect("it hangs").unwrap() else {
            panic!("that is no HELLO")
        };
        for stream in [client, server] {
            let link = stream.link.as_any().unwrap().downcast_ref::<StreamLink>().unwrap();
            assert!(sockopt::socket_keepalive(link).unwrap());
            assert_eq!(sockopt::tcp_keepidle(link).unwrap(), PLAIN_KEEPALIVE_IDLE);
            assert_eq!(sockopt::tcp_keepintvl(link).unwrap(), PLAIN_KEEPALIVE_INTERVAL);
            assert_eq!(sockopt::tcp_keepcnt(link).unwrap(), PLAIN_KEEPALIVE_PROBES);
        }
    }
}
