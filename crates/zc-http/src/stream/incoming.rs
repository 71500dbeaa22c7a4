//! Accepts byte streams for a server that brings its own HTTP.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::ZcStream;
use crate::listening::{Arrived, Listening};
use futures::Stream;

/// What comes in at a listener, as byte streams: for `Router::serve_with_incoming` of tonic. With a
/// [`zc::MixedListener`] plain links are among it, so that one port serves clients on zc and those that know nothing of it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures::StreamExt;
///
/// let fabric = zc::Fabric::auto()?;
/// let mut incoming = zc_http::ZcIncoming::new(fabric.listen("zc+mem://zc-incoming").await?);
/// // With tonic: Server::builder().add_service(service).serve_with_incoming(incoming).await?
/// let accepting = async { incoming.next().await.unwrap() };
/// let (_client, stream) = tokio::try_join!(fabric.connect("zc+mem://zc-incoming"), accepting)?;
/// assert_eq!(stream.info().report.chosen(), "mem");
/// # Ok(()) }
/// ```
pub struct ZcIncoming {
    listener: Listening,
}

impl ZcIncoming {
    /// All that `listener` accepts; it ends when that is closed.
    pub fn new(listener: impl Into<Listening>) -> Self {
        Self { listener: listener.into() }
    }
}

impl Stream for ZcIncoming {
    type Item = Result<ZcStream, zc::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match ready!(self.listener.poll_accept(cx)) {
            Ok(Arrived::Zc(connection) | Arrived::Any(connection)) => {
                Some(ZcStream::new(connection).map_err(zc::Error::from))
            }
            Ok(Arrived::Plain(stream)) => Some(Ok(stream.into())),
            Err(zc::Error::ListenerClosed) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

impl std::fmt::Debug for ZcIncoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZcIncoming").finish_non_exhaustive()
    }
}
