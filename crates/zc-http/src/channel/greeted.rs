//! Whether a server answers HTTP/2 with HTTP/2.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::stream::ZcStream;

/// The head of a frame: length, kind, flags, stream.
const FRAME_HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;

/// A stream that tells once the server has begun with SETTINGS, as HTTP/2 wants it. hyper takes a connection for good
/// before it has heard anything.
pub(super) struct Greeted {
    stream: ZcStream,
    awaited: Option<Awaited>,
}

struct Awaited {
    head: Vec<u8>,
    greeted: oneshot::Sender<()>,
}

impl Greeted {
    /// The receiver fails when the server says something else first, or nothing.
    pub(super) fn new(stream: ZcStream) -> (Self, oneshot::Receiver<()>) {
        let (greeted, heard) = oneshot::channel();
        (
            Self { stream, awaited: Some(Awaited { head: Vec::with_capacity(FRAME_HEAD_BYTES), greeted }) },
            heard,
        )
    }

    fn saw(&mut self, bytes: &[u8]) {
        let Some(Awaited { head, .. }) = &mut self.awaited else { return };
        head.extend(bytes.iter().take(FRAME_HEAD_BYTES - head.len()));
        let is_settings = head.len() == FRAME_HEAD_BYTES && head[3] == SETTINGS && head[5..] == [0; 4];
        if (head.len() == FRAME_HEAD_BYTES || bytes.is_empty())
            && let Some(Awaited { greeted, .. }) = self.awaited.take()
            && is_settings
        {
            let _ = greeted.send(());
        }
    }
}

impl AsyncRead for Greeted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        if read.is_ready() {
            self.saw(&out.filled()[before..]);
        }
        read
    }
}

impl AsyncWrite for Greeted {
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
