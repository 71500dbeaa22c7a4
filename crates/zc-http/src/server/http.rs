//! Serves HTTP/1 and HTTP/2 on byte streams, told apart by their first bytes: the same service under
//! the same limits as on zc.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::watch;
use tower_service::Service;

use super::PeerInfo;
use super::call::{Permit, deadline_exceeded, grpc_response, is_grpc};
use super::preface::Prefaced;
use crate::body::Body;
use crate::deadline::Deadline;
use crate::error::{BoxError, ErrorKind};
use crate::proto::Limits;
use crate::stream::ZcStream;

/// The longest that a client may take until it is known that it speaks HTTP/2, or for its headers over HTTP/1.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// How often a peer on HTTP/2 that says nothing is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// The least that hyper takes for the headers of a request over HTTP/1, whatever the limit.
const MIN_HTTP1_BUFFER_BYTES: usize = 8192;

/// What every call of a stream needs.
#[derive(Clone)]
pub(super) struct Calls<S> {
    pub(super) service: S,
    pub(super) running: Arc<AtomicUsize>,
    pub(super) concurrency: usize,
    pub(super) info: Option<PeerInfo>,
}

/// Serves until the peer has finished, or, once `stopping` has ended, until its calls have.
pub(super) async fn serve<S, B>(
    stream: ZcStream,
    limits: &Limits,
    calls: Calls<S>,
    mut stopping: watch::Receiver<()>,
) -> ErrorKind
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size((limits.max_header_bytes as usize).max(MIN_HTTP1_BUFFER_BYTES))
        .max_headers(limits.max_header_count as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .max_concurrent_streams(limits.max_calls)
        .max_header_list_size(limits.max_header_bytes)
        .initial_stream_window_size(limits.call_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes);
    let service = hyper::service::service_fn(move |request| calls.clone().call(request));
    let io = TokioIo::new(Prefaced::within(HEADER_TIME, stream));
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let served = tokio::select! {
        biased;
        // The sender's end is the signal.
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        served = connection.as_mut() => served,
    };
    match served {
        Ok(()) => ErrorKind::Closed,
        Err(error) => ErrorKind::Http(error.into()),
    }
}

impl<S, B> Calls<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    /// An error ends the call without an answer.
    async fn call(mut self, request: Request<Incoming>) -> Result<Response<Answer<B>>, BoxError> {
        let is_grpc = is_grpc(request.headers());
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        let permit = Permit(self.running.clone());
        if before >= self.concurrency {
            return Ok(refused(is_grpc));
        }
        let deadline = Deadline::of(request.headers());
        let mut request = request.map(Body::http);
        if let Some(info) = self.info.take() {
            request.extensions_mut().insert(info);
        }
        let service = &mut self.service;
        let answering = async {
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        };
        let (answer, deadline) = within(deadline, answering).await;
        match answer {
            Some(Ok(response)) => {
                let guard = Guard { deadline, is_grpc, _permit: permit };
                Ok(response.map(|body| Answer::Body { body, guard }))
            }
            Some(Err(error)) => {
                let error = error.into();
                tracing::debug!(%error, "a service failed");
                if is_grpc { failed(error) } else { Err(error) }
            }
            None if is_grpc => Ok(trailers_only(deadline_exceeded())),
            None => Err("the deadline of the call has passed".into()),
        }
    }
}

/// The future's answer, if it comes in time, and the deadline for what comes after it.
async fn within<F: Future>(
    mut deadline: Option<Deadline>,
    future: F,
) -> (Option<F::Output>, Option<Deadline>) {
    let mut future = std::pin::pin!(future);
    let done = poll_fn(|cx| match (future.as_mut().poll(cx), &mut deadline) {
        (Poll::Ready(done), _) => Poll::Ready(Some(done)),
        (Poll::Pending, Some(deadline)) => deadline.poll_passed(cx).map(|()| None),
        (Poll::Pending, None) => Poll::Pending,
    });
    let done = done.await;
    (done, deadline)
}

/// No service has seen it, and the caller may learn that.
fn refused<B>(is_grpc: bool) -> Response<Answer<B>> {
    if is_grpc {
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        headers.insert("grpc-message", HeaderValue::from_static("refused: too many calls"));
        return trailers_only(headers);
    }
    let mut response = Response::new(Answer::Empty);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

fn failed<B>(error: BoxError) -> Result<Response<Answer<B>>, BoxError> {
    let text = error.to_string();
    let parts = grpc_response(error).ok_or(text)?;
    Ok(Response::from_parts(parts, Answer::Empty))
}

fn trailers_only<B>(headers: HeaderMap) -> Response<Answer<B>> {
    let mut response = Response::new(Answer::Empty);
    *response.headers_mut() = headers;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// What a call holds until its answer is sent.
struct Guard {
    deadline: Option<Deadline>,
    is_grpc: bool,
    _permit: Permit,
}

pin_project_lite::pin_project! {
    /// A response's body, under the call's deadline.
    #[project = AnswerProj]
    enum Answer<B> {
        Empty,
        Body { #[pin] body: B, guard: Guard },
    }
}

impl<B> http_body::Body for Answer<B>
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let AnswerProj::Body { body, guard } = self.as_mut().project() else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = body.poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| match frame {
                Ok(frame) => Ok(frame.map_data(Into::into)),
                Err(error) => Err(error.into()),
            }));
        }
        let Some(deadline) = &mut guard.deadline else { return Poll::Pending };
        std::task::ready!(deadline.poll_passed(cx));
        let last = match guard.is_grpc {
            true => Ok(Frame::trailers(deadline_exceeded())),
            false => Err("the deadline of the call has passed".into()),
        };
        self.set(Self::Empty);
        Poll::Ready(Some(last))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Body { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Body { body, .. } => body.size_hint(),
        }
    }
}
