//! Calls over HTTP/2, to servers that speak nothing better.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, request};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::connector::Target;
use super::greeted::Greeting;
use crate::body::Body;
use crate::error::{BoxError, Error, ErrorKind, Executed};
use crate::proto::Limits;
use crate::server::PeerInfo;
use crate::stream::ZcStream;

/// How often a server that says nothing is asked whether it lives, and the time for its answer.
const KEEPALIVE: Duration = Duration::from_secs(20);

type OutBody = UnsyncBoxBody<Bytes, BoxError>;

/// A connection on which HTTP/2 is spoken.
pub(super) struct Http2 {
    sender: SendRequest<OutBody>,
    authority: Authority,
    pub(super) info: PeerInfo,
}

/// What a server has to speak.
#[derive(Clone, Copy)]
pub(super) enum Under {
    /// zc, as a byte stream.
    Zc,
    /// Nothing but HTTP/2.
    Plain,
}

impl Http2 {
    pub(super) async fn connect(
        target: &Target,
        under: Under,
        limits: &Limits,
        greeting: Duration,
    ) -> Result<Self, Error> {
        let opening = async {
            let stream = match under {
                Under::Zc => {
                    let connection = target.fabric.connect(&target.uri).await.map_err(no_connection)?;
                    ZcStream::new(connection).map_err(|error| no_connection(error.into()))?
                }
                Under::Plain => target.fabric.connect_plain(&target.uri).await.map_err(no_connection)?.into(),
            };
            Self::on(stream, target.authority(), limits).await
        };
        let late = |_| Error::new(ErrorKind::NoGreeting, Executed::No);
        tokio::time::timeout(greeting, opening).await.map_err(late)?
    }

    async fn on(stream: ZcStream, authority: Authority, limits: &Limits) -> Result<Self, Error> {
        let info = stream.info().clone();
        let (stream, greeted) = Greeting::of(stream);
        let (mut sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .initial_stream_window_size(limits.call_window_bytes)
            .initial_connection_window_size(limits.connection_window_bytes)
            .max_header_list_size(limits.max_header_bytes)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(not_executed)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection on HTTP/2 ended");
            }
        });
        greeted.await.map_err(|_| Error::new(ErrorKind::NoGreeting, Executed::No))?;
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(not_executed)?;
        Ok(Self { sender, authority, info })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) async fn ready(&self) -> Result<(), Error> {
        let mut sender = self.sender.clone();
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(not_executed)
    }

    pub(super) async fn call<B>(&self, parts: request::Parts, body: B) -> Result<Response<Body>, Error>
    where
        B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
    {
        let body = body.map_frame(|frame| frame.map_data(Into::into)).map_err(Into::into).boxed_unsync();
        let mut request = Request::from_parts(parts, body);
        self.complete(request.uri_mut());
        let mut sender = self.sender.clone();
        match sender.try_send_request(request).await {
            Ok(response) => Ok(response.map(Body::http)),
            Err(mut failed) => {
                let unsent = failed.take_message().is_some();
                let error = failed.into_error();
                let executed = if unsent || not_taken(&error) { Executed::No } else { Executed::Maybe };
                Err(Error::new(ErrorKind::Http(Arc::new(error)), executed))
            }
        }
    }

    /// HTTP/2 wants to know the scheme and the server's name; zc-http carries what the caller gave.
    fn complete(&self, uri: &mut http::Uri) {
        let mut parts = std::mem::take(uri).into_parts();
        parts.scheme.get_or_insert(Scheme::HTTP);
        parts.authority.get_or_insert_with(|| self.authority.clone());
        parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
        *uri = http::Uri::from_parts(parts).unwrap_or_default();
    }
}

fn no_connection(error: zc::Error) -> Error {
    Error::new(ErrorKind::Connect(Arc::new(error)), Executed::No)
}

/// Whether the server said that no service has seen the call: it refused its stream, or went away with a last stream
/// that lies below. Others of a connection that ends fail with that, and not with the server's GOAWAY.
fn not_taken(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return error.is_remote() && (refused || error.is_go_away());
        }
        source = error.source();
    }
    false
}

fn not_executed(error: hyper::Error) -> Error {
    Error::new(ErrorKind::Http(Arc::new(error)), Executed::No)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use http_body_util::Empty;

    use super::*;

    #[tokio::test]
    async fn a_server_that_is_gone_has_refused_nothing() {
        let fabric = zc::Fabric::auto().unwrap();
        let uri = "zc+mem://http2-refuses";
        let listener = fabric.listen_mixed(uri).await.unwrap();
        let service = tower::service_fn(|_request: Request<Body>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        });
        let serving = tokio::spawn(crate::Server::new().concurrency_limit(0).serve(listener, service));
        let target = Target { fabric, uri: uri.to_owned(), fall_back: true };
        let greeting = Duration::from_secs(60);
        let http2 = Http2::connect(&target, Under::Plain, &Limits::default(), greeting).await.unwrap();
        let call = async || {
            let (parts, body) = Request::get("/").body(Empty::<Bytes>::new()).unwrap().into_parts();
            http2.call(parts, body).await.unwrap_err()
        };
        let refused = call().await;
        assert_eq!((refused.executed(), refused.is_refusal()), (Executed::No, true), "{refused:?}");
        serving.abort();
        while !http2.is_closed() {
            tokio::task::yield_now().await;
        }
        let lost = call().await;
        assert!(matches!(lost.kind(), ErrorKind::Http(_)), "{lost:?}");
        assert_eq!((lost.executed(), lost.is_refusal()), (Executed::No, false), "{lost:?}");
    }
}
