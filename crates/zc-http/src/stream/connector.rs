//! Opens byte streams for a client that brings its own HTTP.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tower_service::Service;

use super::ZcStream;

/// Connects for whoever asks, always to the same zc address: for `Endpoint::connect_with_connector` of tonic. The URI
/// that it is called with goes into the requests and is not looked at here.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_service::Service;
///
/// let fabric = zc::Fabric::auto()?;
/// let mut listener = fabric.listen("zc+mem://zc-connector").await?;
/// let mut connector = zc_http::ZcConnector::new(&fabric, "zc+mem://zc-connector")?;
/// // With tonic: Endpoint::from_static("http://any.name").connect_with_connector(connector).await?
/// let connecting = async { Ok(connector.call("http://any.name".parse()?).await?) };
/// let accepting = async { Ok::<_, Box<dyn std::error::Error>>(listener.accept().await?) };
/// let (stream, _server) = tokio::try_join!(connecting, accepting)?;
/// assert_eq!(stream.inner().info().report.chosen(), "mem");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ZcConnector {
    fabric: zc::Fabric,
    uri: String,
}

impl ZcConnector {
    /// To `uri`; nothing is connected yet.
    ///
    /// # Errors
    /// The URI can't be read.
    pub fn new(fabric: &zc::Fabric, uri: &str) -> Result<Self, zc::UriError> {
        let _: zc::Uri = uri.parse()?;
        Ok(Self { fabric: fabric.clone(), uri: uri.to_owned() })
    }
}

impl std::fmt::Debug for ZcConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZcConnector").field("uri", &self.uri).finish_non_exhaustive()
    }
}

impl Service<http::Uri> for ZcConnector {
    type Response = ConnectorIo;
    type Error = zc::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), zc::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: http::Uri) -> Connecting {
        let Self { fabric, uri } = self.clone();
        Connecting(Box::pin(async move { Ok(ZcStream::new(fabric.connect(&uri).await?)?) }))
    }
}

/// A [`ZcConnector`] at work. Dropping it abandons the attempt.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_service::Service;
///
/// let fabric = zc::Fabric::auto()?;
/// let mut connector = zc_http::ZcConnector::new(&fabric, "zc+mem://nobody-is-there")?;
/// let connecting: zc_http::Connecting = connector.call("http://any.name".parse()?);
/// assert!(connecting.await.is_err());
/// # Ok(()) }
/// ```
pub struct Connecting(BoxFuture<'static, Result<ZcStream, zc::Error>>);

impl Future for Connecting {
    type Output = Result<ConnectorIo, zc::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map_ok(|stream| ConnectorIo(TokioIo::new(stream)))
    }
}

impl std::fmt::Debug for Connecting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connecting").finish_non_exhaustive()
    }
}

/// What a [`ZcConnector`] has opened: a [`ZcStream`] with the traits that hyper reads and writes with.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_service::Service;
///
/// let fabric = zc::Fabric::auto()?;
/// let _listener = fabric.listen("zc+mem://zc-connector-io").await?;
/// let mut connector = zc_http::ZcConnector::new(&fabric, "zc+mem://zc-connector-io")?;
/// let io: zc_http::ConnectorIo = connector.call("http://any.name".parse()?).await?;
/// let stream: zc_http::ZcStream = io.into_inner();
/// assert_eq!(stream.info().report.chosen(), "mem");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ConnectorIo(TokioIo<ZcStream>);

impl ConnectorIo {
    /// The stream.
    pub fn inner(&self) -> &ZcStream {
        self.0.inner()
    }

    /// The stream, with the traits of tokio.
    pub fn into_inner(self) -> ZcStream {
        self.0.into_inner()
    }
}

impl Read for ConnectorIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, out)
    }
}

impl Write for ConnectorIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
