//! Serves HTTP/1 and HTTP/2 on byte streams, told apart by their first bytes: the same service under
//! the same limits as on zc.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::watch;
use tower_service::Service;

use super::PeerInfo;
use super::call::{Permit, deadline_exceeded, grpc_response, is_grpc};
use super::preface::Preface;
use crate::body::Body;
use crate::deadline::{Deadline, Due};
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
    let mut builder = auto::Builder::new(CallTasks);
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
    let io = TokioIo::new(Preface::within(HEADER_TIME, stream));
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    // Over HTTP/1 its calls run in this task.
    let served = until_due(async {
        tokio::select! {
            biased;
            // The sender's end is the signal.
            _ = stopping.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            served = connection.as_mut() => served,
        }
    });
    match served.await {
        Some(Ok(())) => ErrorKind::Closed,
        Some(Err(error)) => ErrorKind::Http(error.into()),
        None => ErrorKind::Deadline,
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
            return refused(request.version(), is_grpc);
        }
        let running = Running::begin(Due::of(request.headers()), is_grpc, permit);
        let mut request = request.map(Body::http);
        if let Some(info) = self.info.take() {
            request.extensions_mut().insert(info);
        }
        let service = &mut self.service;
        let answering = async {
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        };
        let mut answering = std::pin::pin!(answering);
        // Its task is woken when the deadline has passed.
        let answer = poll_fn(|cx| match running.is_late() {
            true => Poll::Ready(None),
            false => answering.as_mut().poll(cx).map(Some),
        });
        match answer.await {
            Some(Ok(response)) => Ok(response.map(|body| Answer::Body { body, running })),
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

tokio::task_local! {
    /// The deadline of the call that runs in this task, as far as this poll has changed it.
    static CHANGED: Cell<Option<Change>>;
}

enum Change {
    Begun(Deadline),
    Over,
}

impl Change {
    fn tell(self) {
        // Outside of a poll the task itself is over.
        let _ = CHANGED.try_with(|changed| changed.set(Some(self)));
    }
}

/// Runs what serves a call to its end, or until that call's deadline has passed. Where HTTP waits for a client to read it does not
/// ask a body, which therefore can't look at the deadline itself; a call that is asked then, and does not end, is dropped.
async fn until_due<F: Future>(serving: F) -> Option<F::Output> {
    let mut deadline = None;
    let mut serving = std::pin::pin!(serving);
    poll_fn(|cx| {
        loop {
            let mut told = deadline.as_ref().is_some_and(Deadline::has_passed);
            let (polled, changed) = CHANGED.sync_scope(Cell::default(), || {
                let polled = serving.as_mut().poll(cx);
                (polled, CHANGED.with(Cell::take))
            });
            if let Poll::Ready(served) = polled {
                return Poll::Ready(Some(served));
            }
            if let Some(change) = changed {
                told = false;
                deadline = match change {
                    Change::Begun(deadline) => Some(deadline),
                    Change::Over => None,
                };
            }
            if !deadline.as_mut().is_some_and(|deadline| deadline.poll_passed(cx).is_ready()) {
                return Poll::Pending;
            }
            if told {
                return Poll::Ready(None);
            }
        }
    })
    .await
}

/// Runs each call over HTTP/2 as a task, under its deadline: one that is dropped resets its stream.
#[derive(Clone, Copy)]
struct CallTasks;

impl<F> hyper::rt::Executor<F> for CallTasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, call: F) {
        drop(tokio::spawn(until_due(call)));
    }
}

/// What a call holds until its answer is sent.
struct Running {
    due: Option<Due>,
    is_grpc: bool,
    _permit: Permit,
}

impl Running {
    fn begin(due: Option<Due>, is_grpc: bool, permit: Permit) -> Self {
        if let Some(due) = due {
            Change::Begun(due.into()).tell();
        }
        Self { due, is_grpc, _permit: permit }
    }

    fn is_late(&self) -> bool {
        self.due.is_some_and(|due| due.has_passed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.due.is_some() {
            Change::Over.tell();
        }
    }
}

/// No service has seen it, and the caller may learn that.
fn refused<B>(version: Version, is_grpc: bool) -> Result<Response<Answer<B>>, BoxError> {
    if version == Version::HTTP_2 {
        // What the stream is reset with.
        return Err(h2::Error::from(h2::Reason::REFUSED_STREAM).into());
    }
    if is_grpc {
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        headers.insert("grpc-message", HeaderValue::from_static("refused: too many calls"));
        return Ok(trailers_only(headers));
    }
    let mut response = Response::new(Answer::Empty);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    Ok(response)
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

pin_project_lite::pin_project! {
    /// A response's body, under the call's deadline.
    #[project = AnswerProj]
    enum Answer<B> {
        Empty,
        Body { #[pin] body: B, running: Running },
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
        let AnswerProj::Body { body, running } = self.as_mut().project() else { return Poll::Ready(None) };
        // First: what the service sends may never end.
        if running.is_late() {
            let last = match running.is_grpc {
                true => Ok(Frame::trailers(deadline_exceeded())),
                false => Err("the deadline of the call has passed".into()),
            };
            self.set(Self::Empty);
            return Poll::Ready(Some(last));
        }
        body.poll_frame(cx).map(|frame| {
            frame.map(|frame| match frame {
                Ok(frame) => Ok(frame.map_data(Into::into)),
                Err(error) => Err(error.into()),
            })
        })
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
