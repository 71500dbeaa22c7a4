//! One call at the client.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::{Request, Response, request};
use parking_lot::Mutex;

use super::connector::{Connector, Up};
use crate::body::Body;
use crate::deadline::Deadline;
use crate::error::{BoxError, Error, ErrorKind, Executed};
use crate::link::{Link, Refusal};
use crate::proto::{Code, Key};
use crate::send_body::{SendBody, TxHalf};

/// Connections tried for one call: each may turn out to be closing.
const TRIES: usize = 3;

/// Makes a call. Its deadline counts from here on, waiting for a connection included.
pub(super) async fn call<B>(connector: Arc<Connector>, request: Request<B>) -> Result<Response<Body>, Error>
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    let Some(mut deadline) = Deadline::of(request.headers()) else {
        return exchange(&connector, request).await;
    };
    let mut response = std::pin::pin!(exchange(&connector, request));
    let response = poll_fn(|cx| match response.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => deadline.poll_passed(cx).map(|()| None),
    });
    match response.await {
        Some(Ok(mut response)) => {
            response.body_mut().set_deadline(Some(deadline));
            Ok(response)
        }
        Some(Err(error)) => Err(error),
        // Dropping the exchange cancels the call.
        None => Err(Error::new(ErrorKind::Deadline, Executed::Maybe)),
    }
}

async fn exchange<B>(connector: &Connector, request: Request<B>) -> Result<Response<Body>, Error>
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    let (parts, body) = request.into_parts();
    let (link, key) = match open(connector, parts).await? {
        Opened::Zc(link, key) => (link, key),
        #[cfg(feature = "hyper")]
        Opened::Http2(http2, parts) => return http2.call(*parts, body).await,
    };
    // From here on, dropping one of the halves tells the peer.
    let half = TxHalf { link: link.clone(), key };
    let mut response = Body::incoming(link.clone(), key);
    let failure = if body.is_end_stream() {
        link.with(|state| state.endpoint.send_end(key, None));
        drop(half);
        None
    } else {
        send(body, half).await?
    };
    let parts = poll_fn(|cx| response.poll_response(cx)).await;
    match parts {
        Ok(parts) => Ok(Response::from_parts(parts, response)),
        // Why the body failed says more than that the call was ended over it.
        Err(error) => Err(match (error.kind(), failure.and_then(|failure| failure.lock().take())) {
            (ErrorKind::Ended(Code::INTERNAL), Some(body)) => body_failed(body),
            _ => error,
        }),
    }
}

/// What takes a call.
enum Opened {
    Zc(Arc<Link>, Key),
    #[cfg(feature = "hyper")]
    Http2(Arc<super::http2::Http2>, Box<request::Parts>),
}

/// A call on a connection that takes it.
async fn open(connector: &Connector, parts: request::Parts) -> Result<Opened, Error> {
    let mut parts = Some(parts);
    let mut tries = 1;
    loop {
        #[cfg_attr(not(feature = "hyper"), allow(clippy::infallible_destructuring_match, reason = "one way"))]
        let link = match connector.up().await? {
            Up::Zc(link) => link,
            #[cfg(feature = "hyper")]
            Up::Http2(http2) => {
                let taken = || Error::new(ErrorKind::Closed, Executed::No);
                return Ok(Opened::Http2(http2, Box::new(parts.take().ok_or_else(taken)?)));
            }
        };
        let mut place = Place { link: &link, ticket: None };
        let opened = poll_fn(|cx| link.poll_open(cx, &mut place.ticket, &mut parts)).await;
        drop(place);
        match opened {
            Ok(key) => return Ok(Opened::Zc(link, key)),
            Err(Refusal::Closed(_)) if tries < TRIES && parts.is_some() && connector.reconnects() => {
                tries += 1;
            }
            Err(refusal) => return Err(refusal.into_error()),
        }
    }
}

/// A place in the queue for calls, given up when the caller goes away.
struct Place<'a> {
    link: &'a Link,
    ticket: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.link.leave_queue(&mut self.ticket);
    }
}

type Failure = Arc<Mutex<Option<BoxError>>>;

/// Sends what the body has now; the rest, if there is any, in a task beside the call.
async fn send<B>(body: B, half: TxHalf) -> Result<Option<Failure>, Error>
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    let mut body = Box::pin(SendBody::new(body, half));
    match poll_fn(|cx| Poll::Ready(body.as_mut().poll(cx))).await {
        Poll::Ready(Ok(())) => return Ok(None),
        Poll::Ready(Err(error)) => return Err(body_failed(error)),
        Poll::Pending => {}
    }
    let runtime = tokio::runtime::Handle::try_current()
        .map_err(|_| Error::new(ErrorKind::NoRuntime, Executed::Maybe))?;
    let failure = Failure::default();
    let sink = failure.clone();
    drop(runtime.spawn(send_rest(body, sink)));
    Ok(Some(failure))
}

async fn send_rest<B>(mut body: Pin<Box<SendBody<B>>>, failure: Failure)
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    if let Err(error) = body.as_mut().await {
        tracing::debug!(%error, "a request's body failed");
        *failure.lock() = Some(error);
    }
}

fn body_failed(error: BoxError) -> Error {
    Error::new(ErrorKind::Body(error.into()), Executed::Maybe)
}
