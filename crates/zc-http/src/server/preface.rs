//! The time in which a client must have said which HTTP it speaks.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::stream::ZcStream;

/// What a client on HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream on which reading fails once the time is up, for as long as what was read may still become the preface of
/// HTTP/2 and is not yet. From then on times are the protocol's.
pub(super) struct Prefaced {
    stream: ZcStream,
    /// Of the preface, what was read; and until when the rest is awaited.
    awaited: Option<(usize, Pin<Box<Sleep>>)>,
}

impl Prefaced {
    /// The time begins now.
    pub(super) fn within(time: Duration, stream: ZcStream) -> Self {
        Self { stream, awaited: Some((0, Box::pin(tokio::time::sleep(time)))) }
    }

    fn saw(&mut self, bytes: &[u8]) {
        let Some((seen, _)) = &mut self.awaited else { return };
        let rest = &PREFACE[*seen..];
        *seen += bytes.len();
        if *seen >= PREFACE.len() || !rest.starts_with(bytes) {
            self.awaited = None;
        }
    }
}

impl AsyncRead for Prefaced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        if read.is_ready() {
            self.saw(&out.filled()[before..]);
        } else if let Some((_, time)) = &mut self.awaited
            && time.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Prefaced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
