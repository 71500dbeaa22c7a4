//! Moves an outgoing body into a call, as fast as the peer takes it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;

use crate::error::BoxError;
use crate::link::{Half, Link};
use crate::proto::{Code, Key, SendRoom};

/// Frames of a body that is always ready which are moved before other tasks get their turn.
const TURN_FRAMES: usize = 256;

pin_project_lite::pin_project! {
    /// Ready with the body's error, or when all is handed over or nobody wants it.
    pub(crate) struct SendBody<B> {
        #[pin]
        body: B,
        half: TxHalf,
    }
}

/// The sending half of a call. Dropped without an end, the call is cancelled.
pub(crate) struct TxHalf {
    pub(crate) link: Arc<Link>,
    pub(crate) key: Key,
}

impl Drop for TxHalf {
    fn drop(&mut self) {
        self.link.with(|state| state.endpoint.release_tx(self.key));
    }
}

impl<B> SendBody<B> {
    pub(crate) fn new(body: B, half: TxHalf) -> Self {
        Self { body, half }
    }
}

impl<B> Future for SendBody<B>
where
    B: Body<Data: Into<Bytes>, Error: Into<BoxError>>,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        poll_send_body(this.body, this.half, cx)
    }
}

/// Moves what the body has.
pub(crate) fn poll_send_body<B>(
    mut body: Pin<&mut B>,
    half: &TxHalf,
    cx: &mut Context<'_>,
) -> Poll<Result<(), BoxError>>
where
    B: Body<Data: Into<Bytes>, Error: Into<BoxError>>,
{
    let TxHalf { link, key } = half;
    for _ in 0..TURN_FRAMES {
        let room = link.with(|state| {
            let room = state.endpoint.send_room(*key);
            if room == SendRoom::Full {
                state.wait(*key, Half::Tx, cx);
            }
            room
        });
        match room {
            SendRoom::Gone => return Poll::Ready(Ok(())),
            SendRoom::Full => return Poll::Pending,
            SendRoom::Ready => {}
        }
        let frame = match body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                // The call's end has to wake us too.
                let gone = link.with(|state| {
                    state.wait(*key, Half::Tx, cx);
                    state.endpoint.send_room(*key) == SendRoom::Gone
                });
                return if gone { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        };
        let sent = match frame {
            None => link.with(|state| state.endpoint.send_end(*key, None)),
            Some(Err(error)) => {
                link.with(|state| state.endpoint.cancel(*key, Code::INTERNAL));
                return Poll::Ready(Err(error.into()));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let end = body.is_end_stream();
                    link.with(|state| {
                        state.endpoint.send_data(*key, data.into());
                        if end {
                            state.endpoint.send_end(*key, None);
                        }
                    });
                    if !end {
                        continue;
                    }
                    true
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().ok();
                    link.with(|state| state.endpoint.send_end(*key, trailers))
                }
            },
        };
        if !sent {
            link.with(|state| state.endpoint.cancel(*key, Code::INTERNAL));
            return Poll::Ready(Err("the trailers are more than the peer takes".into()));
        }
        return Poll::Ready(Ok(()));
    }
    // Its deadline, and others, get their turn.
    cx.waker().wake_by_ref();
    Poll::Pending
}
