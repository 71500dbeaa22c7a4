//! Byte streams for those who bring their own HTTP: hyper, tonic's transport.

mod connector;
mod incoming;
mod watched;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zc::memory::{CopyLedger, CopyPlace, copy_payload};
use zc::{ByteStream, Connection, ConnectionError, LedgerSnapshot, Message, PlainStream};

pub use self::connector::{Connecting, ConnectorIo, ZcConnector};
pub use self::incoming::ZcIncoming;
pub(crate) use self::watched::{Watch, Watched};
use crate::PeerInfo;

/// A zc connection as a stream of bytes, or a plain link that came in beside it.
///
/// HTTP/2 runs over it as over a socket. What it gains is the transport's latency; its copies stay: into a message
/// when writing, out of one when reading, and whatever HTTP/2 does between. [`Channel`](crate::Channel) and
/// [`Server`](crate::Server) do without.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://zc-stream").await?;
/// # let (client, server) = tokio::try_join!(fabric.connect("zc+mem://zc-stream"), listener.accept())?;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use zc_http::ZcStream;
///
/// let (mut near, mut far) = (ZcStream::new(client)?, ZcStream::new(server)?);
/// near.write_all(b"hello").await?;
/// near.shutdown().await?;
/// let mut text = String::new();
/// far.read_to_string(&mut text).await?;
/// assert_eq!(text, "hello");
/// assert_eq!(far.info().report.chosen(), "mem");
/// # Ok(()) }
/// ```
pub struct ZcStream {
    kind: Kind,
    info: PeerInfo,
}

enum Kind {
    Zc { first: Option<Box<First>>, stream: Box<ByteStream> },
    Plain(Box<PlainStream>),
}

/// A message that was looked at before it was known whose it is.
struct First {
    message: Message,
    ledger: CopyLedger,
}

impl ZcStream {
    /// All that the connection carries is bytes from here on.
    ///
    /// # Errors
    /// The connection's receiver is taken.
    pub fn new(connection: Connection) -> Result<Self, ConnectionError> {
        Self::after(None, connection)
    }

    pub(crate) fn after(first: Option<Message>, connection: Connection) -> Result<Self, ConnectionError> {
        let info = PeerInfo::of(&connection);
        let first = first.map(|message| Box::new(First { message, ledger: CopyLedger::new() }));
        Ok(Self { kind: Kind::Zc { first, stream: Box::new(connection.into_byte_stream()?) }, info })
    }

    /// Who is at the other end, and how the connection came about.
    pub fn info(&self) -> &PeerInfo {
        &self.info
    }

    /// What was copied so far; nobody knows for a plain link.
    pub fn ledger(&self) -> Option<LedgerSnapshot> {
        match &self.kind {
            Kind::Zc { stream, .. } => Some(stream.connection().ledger()),
            Kind::Plain(_) => None,
        }
    }
}

impl From<PlainStream> for ZcStream {
    fn from(stream: PlainStream) -> Self {
        let (peer, report) = (Arc::new(stream.peer().clone()), Arc::new(stream.report().clone()));
        Self { kind: Kind::Plain(Box::new(stream)), info: PeerInfo { peer, report } }
    }
}

impl std::fmt::Debug for ZcStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZcStream").field("info", &self.info).finish_non_exhaustive()
    }
}

impl First {
    fn read(&mut self, out: &mut ReadBuf<'_>) {
        use bytes::Buf;
        let chunk = self.message.chunk();
        let len = chunk.len().min(out.remaining());
        copy_payload(out.initialize_unfilled_to(len), &chunk[..len], &self.ledger, CopyPlace::App);
        out.advance(len);
        self.message.advance(len);
    }

    fn is_empty(&self) -> bool {
        self.message.is_empty()
    }
}

impl AsyncRead for ZcStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (first, stream) = match &mut self.get_mut().kind {
            Kind::Zc { first, stream } => (first, stream),
            Kind::Plain(stream) => return Pin::new(stream).poll_read(cx, out),
        };
        if let Some(seen) = first {
            seen.read(out);
            if seen.is_empty() {
                *first = None;
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(stream).poll_read(cx, out)
    }
}

impl AsyncWrite for ZcStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Zc { stream, .. } => Pin::new(stream).poll_write(cx, bytes),
            Kind::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Zc { stream, .. } => Pin::new(stream).poll_write_vectored(cx, slices),
            Kind::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Zc { stream, .. } => stream.is_write_vectored(),
            Kind::Plain(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Zc { stream, .. } => Pin::new(stream).poll_flush(cx),
            Kind::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Zc { stream, .. } => Pin::new(stream).poll_shutdown(cx),
            Kind::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Handlers find a [`PeerInfo`] in the extensions of their requests.
#[cfg(feature = "tonic")]
impl tonic::transport::server::Connected for ZcStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}
