//! An incoming body.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::deadline::{Deadline, poll_within};
use crate::error::{Error, ErrorKind, Executed};
use crate::link::{Half, Link};
use crate::proto::{BodyItem, Code, Key};

/// A request's body at the server, a response's at the client.
///
/// Its data is the memory that the connection received it in; taking it lets the peer send more.
/// Dropped before its end, a client's body cancels the call; a server's only gives up the rest.
///
/// ```
/// use http_body_util::BodyExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let all = zc_http::Body::empty().collect().await?; // or frame by frame
/// assert!(all.trailers().is_none());
/// assert!(all.to_bytes().is_empty());
/// # Ok(()) }
/// ```
#[derive(Default)]
pub struct Body {
    source: Source,
}

#[derive(Default)]
enum Source {
    #[default]
    Empty,
    Zc(Incoming),
    #[cfg(feature = "hyper")]
    Http(Http),
}

struct Incoming {
    link: Arc<Link>,
    key: Key,
    deadline: Option<Deadline>,
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self::default()
    }

    pub(crate) fn incoming(link: Arc<Link>, key: Key) -> Self {
        Self { source: Source::Zc(Incoming { link, key, deadline: None }) }
    }

    #[cfg(feature = "hyper")]
    pub(crate) fn http(body: hyper::body::Incoming) -> Self {
        Self { source: Source::Http(Http { body, deadline: None }) }
    }

    pub(crate) fn set_deadline(&mut self, deadline: Option<Deadline>) {
        match &mut self.source {
            Source::Empty => {}
            Source::Zc(incoming) => incoming.deadline = deadline,
            #[cfg(feature = "hyper")]
            Source::Http(http) => http.deadline = deadline,
        }
    }

    /// The response's head.
    pub(crate) fn poll_response(&mut self, cx: &Context<'_>) -> Poll<Result<http::response::Parts, Error>> {
        let Source::Zc(Incoming { link, key, .. }) = &self.source else {
            return Poll::Ready(Err(Error::new(ErrorKind::Closed, Executed::Maybe)));
        };
        link.with(|state| match state.endpoint.take_response(*key) {
            Some(Ok(parts)) => Poll::Ready(Ok(parts)),
            Some(Err(ended)) => Poll::Ready(Err(Error::of_call(ended, state.cause.as_ref()))),
            None => {
                state.wait(*key, Half::Rx, cx);
                Poll::Pending
            }
        })
    }
}

impl Incoming {
    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Self { link, key, deadline } = self;
        let taken = poll_within(deadline, cx, |cx| {
            link.with(|state| match state.endpoint.take_body(*key) {
                BodyItem::Pending => {
                    state.wait(*key, Half::Rx, cx);
                    Poll::Pending
                }
                BodyItem::Data(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                BodyItem::Trailers(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                BodyItem::End => Poll::Ready(None),
                BodyItem::Failed(ended) => {
                    Poll::Ready(Some(Err(Error::of_call(ended, state.cause.as_ref()))))
                }
            })
        });
        taken.map(|taken| {
            taken.unwrap_or_else(|| {
                link.with(|state| state.endpoint.cancel(*key, Code::CANCEL));
                Some(Err(Error::new(ErrorKind::Deadline, Executed::Maybe)))
            })
        })
    }
}

/// A body that came over HTTP/1 or HTTP/2.
#[cfg(feature = "hyper")]
struct Http {
    body: hyper::body::Incoming,
    deadline: Option<Deadline>,
}

#[cfg(feature = "hyper")]
impl Http {
    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        use http_body::Body as _;
        let Self { body, deadline } = self;
        let late = || Some(Err(Error::new(ErrorKind::Deadline, Executed::Maybe)));
        let failed = |error: hyper::Error| Error::new(ErrorKind::Http(Arc::new(error)), Executed::Maybe);
        poll_within(deadline, cx, |cx| Pin::new(body).poll_frame(cx).map_err(failed))
            .map(|frame| frame.unwrap_or_else(late))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.link.with(|state| state.endpoint.release_rx(self.key));
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let item = match &mut self.source {
            Source::Empty => return Poll::Ready(None),
            Source::Zc(incoming) => incoming.poll_item(cx),
            #[cfg(feature = "hyper")]
            Source::Http(http) => http.poll_item(cx),
        };
        if let Poll::Ready(None | Some(Err(_))) = item {
            self.source = Source::Empty;
        }
        item
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Zc(Incoming { link, key, .. }) => link.with(|state| state.endpoint.body_hint(*key).0),
            #[cfg(feature = "hyper")]
            Source::Http(http) => http.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let exact = match &self.source {
            Source::Empty => Some(0),
            Source::Zc(Incoming { link, key, .. }) => link.with(|state| state.endpoint.body_hint(*key).1),
            #[cfg(feature = "hyper")]
            Source::Http(http) => return http.body.size_hint(),
        };
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}
