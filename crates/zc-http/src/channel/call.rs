//! One call at the client.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::{Request, Response, request};
use tokio::task::JoinHandle;

use super::connector::{Connector, Up};
use crate::body::Body;
use crate::deadline::{Deadline, Due, within};
use crate::error::{BoxError, Error, ErrorKind, Executed};
use crate::link::{Link, Refusal};
use crate::proto::{Code, Key};
use crate::send_body::{SendBody, TxHalf};

/// Connections tried for one call: each may turn out to be closing.
const TRIES: usize = 3;

/// Makes a call. Waiting for a connection, and for its turn there, counts towards its deadline.
pub(super) async fn call<B>(
    connector: Arc<Connector>,
    request: Request<B>,
    due: Option<Due>,
) -> Result<Response<Body>, Error>
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    let result = match due {
        Some(due) => make_until(due, &connector, request).await,
        None => {
            let (parts, body) = request.into_parts();
            match open(&connector, parts, None).await {
                Ok(opened) => exchange(opened, body).await,
                Err(error) => Err(error),
            }
        }
    };
    connector.heard(&result);
    result
}

async fn make_until<B>(due: Due, connector: &Connector, request: Request<B>) -> Result<Response<Body>, Error>
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    // Timers need one.
    tokio::runtime::Handle::try_current().map_err(|_| Error::new(ErrorKind::NoRuntime, Executed::No))?;
    let mut deadline = Some(Deadline::from(due));
    let (parts, body) = request.into_parts();
    let late = |executed| Error::new(ErrorKind::Deadline, executed);
    let Some(opened) = within(&mut deadline, open(connector, parts, Some(due))).await else {
        return Err(late(Executed::No));
    };
    let opened = opened?;
    let handle = opened.handle();
    let mut response = std::pin::pin!(exchange(opened, body));
    let Some(response) = within(&mut deadline, response.as_mut()).await else {
        // Asked while the call is still known. Dropping the exchange cancels it.
        return Err(late(handle.give_up()));
    };
    let mut response = response?;
    response.body_mut().set_deadline(deadline);
    Ok(response)
}

async fn exchange<B>(opened: Opened, body: B) -> Result<Response<Body>, Error>
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    let (half, mut response) = match opened {
        Opened::Zc(half, response) => (half, response),
        #[cfg(feature = "hyper")]
        Opened::Http2(http2, parts) => return http2.call(*parts, body).await,
    };
    let (link, key) = (half.link.clone(), half.key);
    let sending = if body.is_end_stream() {
        link.with(|state| state.endpoint.send_end(key, None));
        drop(half);
        None
    } else {
        send(body, half).await?
    };
    let parts = poll_fn(|cx| response.poll_response(cx)).await;
    match parts {
        Ok(parts) => Ok(Response::from_parts(parts, response)),
        // Why the body failed says more than that the call was ended over it: then its task is about to end.
        Err(error) => match (error.kind(), sending) {
            (ErrorKind::Ended(Code::INTERNAL), Some(sending)) => match sending.await {
                Ok(Err(body)) => Err(body_failed(body, executed(&link, key))),
                _ => Err(error),
            },
            _ => Err(error),
        },
    }
}

/// Of a call that has ended.
fn executed(link: &Link, key: Key) -> Executed {
    match link.with(|state| state.endpoint.was_sent(key)) {
        true => Executed::Maybe,
        false => Executed::No,
    }
}

/// What takes a call.
enum Opened {
    /// Dropping one of the halves tells the peer; the call's place is free once both are.
    Zc(TxHalf, Body),
    #[cfg(feature = "hyper")]
    Http2(Arc<super::http2::Http2>, Box<request::Parts>),
}

impl Opened {
    fn handle(&self) -> Handle {
        match self {
            Self::Zc(half, _) => Handle::Zc(half.link.clone(), half.key),
            #[cfg(feature = "hyper")]
            Self::Http2(..) => Handle::Http2,
        }
    }
}

/// Ends a call that is under way.
enum Handle {
    Zc(Arc<Link>, Key),
    /// By dropping it; what was sent of it only HTTP/2 knows.
    #[cfg(feature = "hyper")]
    Http2,
}

impl Handle {
    fn give_up(&self) -> Executed {
        match self {
            Self::Zc(link, key) => {
                link.with(|state| state.endpoint.cancel(*key, Code::CANCEL));
                executed(link, *key)
            }
            #[cfg(feature = "hyper")]
            Self::Http2 => Executed::Maybe,
        }
    }
}

/// A call on a connection that takes it. What it has waited by then is taken off the time that the server sees.
async fn open(connector: &Connector, parts: request::Parts, due: Option<Due>) -> Result<Opened, Error> {
    let mut parts = Some(parts);
    let mut tries = 1;
    loop {
        #[cfg_attr(not(feature = "hyper"), allow(clippy::infallible_destructuring_match, reason = "one way"))]
        let link = match connector.up().await? {
            Up::Zc(link) => link,
            #[cfg(feature = "hyper")]
            Up::Http2(http2) => {
                let taken = || Error::new(ErrorKind::Closed, Executed::No);
                shorten(&mut parts, due);
                return Ok(Opened::Http2(http2, Box::new(parts.take().ok_or_else(taken)?)));
            }
        };
        let mut place = Place { link: &link, ticket: None };
        let opened = poll_fn(|cx| {
            shorten(&mut parts, due);
            link.poll_open(cx, &mut place.ticket, &mut parts)
        });
        let opened = opened.await;
        drop(place);
        match opened {
            Ok(key) => {
                let response = Body::incoming(link.clone(), key);
                return Ok(Opened::Zc(TxHalf { link, key }, response));
            }
            Err(Refusal::Closed(_)) if tries < TRIES && parts.is_some() && connector.reconnects() => {
                tries += 1;
            }
            Err(refusal) => return Err(refusal.into_error()),
        }
    }
}

fn shorten(parts: &mut Option<request::Parts>, due: Option<Due>) {
    if let (Some(parts), Some(due)) = (parts, due) {
        due.shorten(&mut parts.headers);
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

/// The task that sends the rest of a body; what it failed with.
type Sending = JoinHandle<Result<(), BoxError>>;

/// Sends what the body has now; the rest, if there is any, in a task beside the call.
async fn send<B>(body: B, half: TxHalf) -> Result<Option<Sending>, Error>
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    let (link, key) = (half.link.clone(), half.key);
    let mut body = Box::pin(SendBody::new(body, half));
    match poll_fn(|cx| Poll::Ready(body.as_mut().poll(cx))).await {
        Poll::Ready(Ok(())) => return Ok(None),
        Poll::Ready(Err(error)) => return Err(body_failed(error, executed(&link, key))),
        Poll::Pending => {}
    }
    let runtime = tokio::runtime::Handle::try_current()
        .map_err(|_| Error::new(ErrorKind::NoRuntime, Executed::Maybe))?;
    Ok(Some(runtime.spawn(send_rest(body))))
}

async fn send_rest<B>(mut body: Pin<Box<SendBody<B>>>) -> Result<(), BoxError>
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    let sent = body.as_mut().await;
    if let Err(error) = &sent {
        tracing::debug!(%error, "a request's body failed");
    }
    sent
}

fn body_failed(error: BoxError, executed: Executed) -> Error {
    Error::new(ErrorKind::Body(error.into()), executed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::channel::Channel;

    #[tokio::test]
    async fn a_call_that_is_late_before_it_begins_leaves_nothing() {
        let fabric = zc::Fabric::auto().unwrap();
        let uri = "zc+mem://call-opened-only";
        let listener = fabric.listen(uri).await.unwrap();
        let service = tower::service_fn(|_request: Request<Body>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        });
        tokio::spawn(crate::Server::new().serve(listener, service));
        let channel = Channel::new(&fabric, uri).unwrap();
        channel.connect().await.unwrap();
        let (parts, ()) = Request::get("/").body(()).unwrap().into_parts();
        let opened = open(&channel.connector, parts, None).await.unwrap();
        // As for a deadline that passes right then.
        let handle = opened.handle();
        assert_eq!(handle.give_up(), Executed::No);
        drop(opened);
        #[cfg_attr(not(feature = "hyper"), allow(irrefutable_let_patterns, reason = "one way"))]
        let Handle::Zc(link, _) = handle else { unreachable!() };
        assert_eq!(link.with(|state| state.endpoint.held_calls()), 0);
    }
}
