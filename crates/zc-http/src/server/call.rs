//! One call at the server: its handler, then the response's body.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tower_service::Service;

use crate::body::Body;
use crate::deadline::{Deadline, Due};
use crate::error::BoxError;
use crate::link::{Half, Link};
use crate::proto::{Code, Key, SendRoom};
use crate::send_body::{TxHalf, poll_send_body};

/// Counts a call as running until it is dropped.
pub(super) struct Permit(pub(super) Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pin_project_lite::pin_project! {
    #[project = StageProj]
    #[project_replace = StageOwn]
    enum Stage<S, F, B> {
        Begin { service: S, request: Request<Body> },
        Handler { #[pin] future: F },
        Body { #[pin] body: B },
        /// The response is handed over.
        Done,
    }
}

pin_project_lite::pin_project! {
    /// Ready when the response is handed over or nobody wants it any more; under a deadline, when what is handed over needs no more
    /// credit.
    pub(super) struct CallTask<S, F, B> {
        // Dropped first: what the handler holds goes before the call.
        #[pin]
        stage: Stage<S, F, B>,
        half: TxHalf,
        deadline: Option<Deadline>,
        is_grpc: bool,
        head_sent: bool,
        _permit: Permit,
    }
}

impl<S, B> CallTask<S, S::Future, B>
where
    S: Service<Request<Body>, Response = Response<B>>,
{
    pub(super) fn new(link: Arc<Link>, key: Key, service: S, request: Request<Body>, permit: Permit) -> Self {
        let headers = request.headers();
        Self {
            half: TxHalf { link, key },
            deadline: Due::of(headers).map(Deadline::from),
            is_grpc: is_grpc(headers),
            head_sent: false,
            stage: Stage::Begin { service, request },
            _permit: permit,
        }
    }
}

pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

impl<S, B> Future for CallTask<S, S::Future, B>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.as_mut().project();
        if let StageProj::Done = this.stage.project() {
            return poll_taken(this.half, this.deadline, cx);
        }
        // First: what the service sends may never end.
        if this.deadline.as_ref().is_some_and(Deadline::has_passed) {
            this.half.deadline_passed(*this.is_grpc, *this.head_sent);
            return Poll::Ready(());
        }
        if self.as_mut().poll_stages(cx).is_ready() {
            let mut this = self.as_mut().project();
            // What the service still holds need not wait.
            this.stage.set(Stage::Done);
            return poll_taken(this.half, this.deadline, cx);
        }
        let this = self.as_mut().project();
        // The call's end has to wake us.
        let TxHalf { link, key } = this.half;
        let gone = link.with(|state| {
            state.wait(*key, Half::Tx, cx);
            state.endpoint.send_room(*key) == SendRoom::Gone
        });
        if gone {
            return Poll::Ready(());
        }
        // Only now: a call that need not wait needs no timer.
        let Some(deadline) = this.deadline else { return Poll::Pending };
        std::task::ready!(deadline.poll_passed(cx));
        this.half.deadline_passed(*this.is_grpc, *this.head_sent);
        Poll::Ready(())
    }
}

/// A caller that does not read may never take the last of a body: the deadline ends that wait too.
fn poll_taken(half: &TxHalf, deadline: &mut Option<Deadline>, cx: &mut Context<'_>) -> Poll<()> {
    let (Some(deadline), TxHalf { link, key }) = (deadline, half) else { return Poll::Ready(()) };
    let waits = link.with(|state| {
        let waits = state.endpoint.needs_credit(*key);
        if waits {
            state.wait(*key, Half::Tx, cx);
        }
        waits
    });
    if waits {
        std::task::ready!(deadline.poll_passed(cx));
        link.with(|state| {
            if state.endpoint.needs_credit(*key) {
                state.endpoint.cancel(*key, Code::CANCEL);
            }
        });
    }
    Poll::Ready(())
}

impl<S, B> CallTask<S, S::Future, B>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>>,
{
    fn poll_stages(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            match this.stage.as_mut().project() {
                StageProj::Begin { service, .. } => {
                    if let Err(error) = std::task::ready!(service.poll_ready(cx)) {
                        this.half.fail(error.into(), *this.is_grpc);
                        return Poll::Ready(());
                    }
                    if let StageOwn::Begin { mut service, request } =
                        this.stage.as_mut().project_replace(Stage::Done)
                    {
                        let future = service.call(request);
                        this.stage.set(Stage::Handler { future });
                    }
                }
                StageProj::Handler { future } => {
                    let response = match std::task::ready!(future.poll(cx)) {
                        Ok(response) => response,
                        Err(error) => {
                            this.half.fail(error.into(), *this.is_grpc);
                            return Poll::Ready(());
                        }
                    };
                    let (parts, body) = response.into_parts();
                    let end = body.is_end_stream();
                    if !this.half.respond(parts, end) || end {
                        return Poll::Ready(());
                    }
                    *this.head_sent = true;
                    this.stage.set(Stage::Body { body });
                }
                StageProj::Body { body } => {
                    if let Err(error) = std::task::ready!(poll_send_body(body, this.half, cx)) {
                        tracing::debug!(%error, "a response's body failed");
                    }
                    return Poll::Ready(());
                }
                StageProj::Done => return Poll::Ready(()),
            }
        }
    }
}

impl TxHalf {
    /// False when it can't be sent: the call is over.
    fn respond(&self, parts: http::response::Parts, end: bool) -> bool {
        let Self { link, key } = self;
        link.with(|state| {
            let fits = state.endpoint.respond(*key, parts);
            if !fits {
                tracing::debug!("a response has more headers than the peer takes");
                state.endpoint.cancel(*key, Code::INTERNAL);
            } else if end {
                state.endpoint.send_end(*key, None);
            }
            fits
        })
    }

    /// A handler's error: what the caller sees depends on what it speaks.
    fn fail(&self, error: BoxError, is_grpc: bool) {
        tracing::debug!(%error, "a service failed");
        match grpc_response(error).filter(|_| is_grpc) {
            Some(parts) => {
                self.respond(parts, true);
            }
            None => self.link.with(|state| state.endpoint.cancel(self.key, Code::INTERNAL)),
        }
    }

    /// Trailers come after what waits to be sent, and the caller may never take that: then the call is cut off.
    fn deadline_passed(&self, is_grpc: bool, head_sent: bool) {
        let Self { link, key } = self;
        if !is_grpc {
            link.with(|state| state.endpoint.cancel(*key, Code::CANCEL));
        } else if head_sent {
            link.with(|state| match state.endpoint.has_unsent_body(*key) {
                true => state.endpoint.cancel(*key, Code::CANCEL),
                false => drop(state.endpoint.send_end(*key, Some(deadline_exceeded()))),
            });
        } else {
            let (mut parts, ()) = Response::new(()).into_parts();
            parts.status = StatusCode::OK;
            parts.headers = deadline_exceeded();
            parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            self.respond(parts, true);
        }
    }
}

/// gRPC's status 4.
pub(super) fn deadline_exceeded() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert("grpc-status", HeaderValue::from_static("4"));
    headers.insert("grpc-message", HeaderValue::from_static("the deadline has passed"));
    headers
}

#[cfg(feature = "tonic")]
pub(super) fn grpc_response(error: BoxError) -> Option<http::response::Parts> {
    Some(tonic::Status::from_error(error).into_http::<()>().into_parts().0)
}

#[cfg(not(feature = "tonic"))]
pub(super) fn grpc_response(_error: BoxError) -> Option<http::response::Parts> {
    None
}
