//! Links that carry another protocol than zc.

use std::fmt;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use zc_core::transport::{ControlLink, Transport, Unavailable};
use zc_core::wire::Stage;

use crate::identity::PeerIdentity;
use crate::report::{Outcome, SelectionReport};

/// What a [`PlainStream`]'s report says is chosen.
pub const PLAIN: &str = "plain";

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
            let count = ready!(self.read_into(cx, out.initialize_unfilled()))?;
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

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.link.poll_shutdown(cx)
        }
    }
}
