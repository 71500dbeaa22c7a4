//! A connection as a stream of bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use zc_core::memory::{AllocWaiter, CopyPlace, Message, PinnedBufMut, copy_payload};

use super::Connection;
use super::core::READS_PER_TURN;
use super::lane_alloc::try_lane_alloc;
use super::receiver::Receiver;
use super::sender::push_out;

/// The most bytes that one write puts into one message.
pub const BYTE_STREAM_MESSAGE: usize = 64 << 10;

/// Reads and writes bytes over a connection, with the traits of `futures::io`, and with tokio's under the
/// feature `tokio`. Get one with [`Connection::into_byte_stream`].
///
/// * A write becomes one message of up to [`BYTE_STREAM_MESSAGE`] bytes in memory of the pool, into which
///   the slices of a vectored write are gathered: a copy, counted in the ledger as `Gather`. It is
///   pushed out at once. Without room one message waits in its turn, and the next write is pending.
/// * A read copies out of the received message, counted as `App`. `poll_fill_buf` (`AsyncBufRead`)
///   lends the received memory instead and copies nothing.
/// * A flush is ready when nothing is left in this process's queue. Closing (shutdown) says FIN and
///   is ready when that is pushed out; the peer then reads the end, and can go on writing.
///
/// Cancelled reads and writes lose nothing: a pending write has taken nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://byte-stream").await?;
/// # let (client, server) = tokio::try_join!(fabric.connect("zc+mem://byte-stream"), listener.accept())?;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// let (mut near, mut far) = (client.into_byte_stream()?, server.into_byte_stream()?);
/// near.write_all(b"hello").await?;
/// near.shutdown().await?;
/// let mut text = String::new();
/// far.read_to_string(&mut text).await?;
/// assert_eq!(text, "hello");
/// # Ok(()) }
/// ```
pub struct ByteStream {
    connection: Connection,
    receiver: Receiver,
    /// What is being read.
    current: Message,
    waiter: AllocWaiter,
}

impl ByteStream {
    pub(super) fn new(connection: Connection, receiver: Receiver) -> Self {
        Self { connection, receiver, current: Message::new(), waiter: AllocWaiter::fleeting() }
    }

    /// The connection under it, for its reports; its receiver is taken.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        for _ in 0..READS_PER_TURN {
            if self.current.has_remaining() {
                return Poll::Ready(Ok(self.current.chunk()));
            }
            match ready!(self.receiver.poll_recv(cx))? {
                Some(message) => self.current = message,
                None => return Poll::Ready(Ok(&[])),
            }
        }
        // Other tasks have their turn, even if the peer floods this one with empty messages.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn consume_read(&mut self, len: usize) {
        self.current.advance(len);
        if !self.current.has_remaining() {
            // Its memory goes back now, not with the next message.
            self.current = Message::new();
        }
    }

    fn read_into(&mut self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        if out.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let len = ready!(self.fill(cx))?.len().min(out.len());
        let ledger = &self.connection.sender.core().ledger;
        copy_payload(&mut out[..len], &self.current.chunk()[..len], ledger, CopyPlace::App);
        self.consume_read(len);
        Poll::Ready(Ok(len))
    }

    /// Takes up to one message's worth; pending without having taken anything.
    fn write_from(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let (core, polled) = self.connection.sender.parts();
        let most = BYTE_STREAM_MESSAGE.min(core.limits.send_max_message as usize);
        let len = slices.iter().fold(0_usize, |sum, slice| sum.saturating_add(slice.len())).min(most);
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        if let Err(error) = ready!(polled.poll_ready(core, cx)) {
            self.waiter = AllocWaiter::fleeting();
            return Poll::Ready(Err(error.into()));
        }
        // A stream may be left alone after any poll, so it never waits in the queue for a lane's memory.
        let mut buf = match try_lane_alloc(core, len).map_or_else(|| core.pool.try_alloc(len), Ok) {
            Ok(buf) => {
                self.waiter = AllocWaiter::fleeting();
                buf
            }
            Err(_) => {
                let got = core.pool.poll_alloc(len, &mut self.waiter, cx);
                ready!(got).map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?
            }
        };
        gather(&mut buf, slices, len, &core.ledger);
        let mut tx = core.lock_tx();
        match polled.submit(core, &mut tx, buf.into())? {
            true => push_out(core, tx)?,
            false => drop(tx),
        }
        Poll::Ready(Ok(len))
    }

    fn flush_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (core, polled) = self.connection.sender.parts();
        polled.poll_flush(core, cx).map_err(io::Error::from)
    }

    fn shut_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (core, polled) = self.connection.sender.parts();
        polled.poll_finish(core, cx).map_err(io::Error::from)
    }
}

fn gather(buf: &mut PinnedBufMut, slices: &[IoSlice<'_>], len: usize, ledger: &zc_core::memory::CopyLedger) {
    let mut left = len;
    for slice in slices {
        let part = &slice[..slice.len().min(left)];
        copy_payload(&mut buf.unfilled_mut()[..part.len()], part, ledger, CopyPlace::Gather);
        buf.advance(part.len());
        left -= part.len();
    }
}

impl futures::io::AsyncRead for ByteStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        self.get_mut().read_into(cx, out)
    }
}

impl futures::io::AsyncBufRead for ByteStream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.get_mut().fill(cx)
    }

    fn consume(self: Pin<&mut Self>, len: usize) {
        self.get_mut().consume_read(len);
    }
}

impl futures::io::AsyncWrite for ByteStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write_from(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write_from(cx, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().flush_out(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().shut_down(cx)
    }
}

#[cfg(feature = "tokio")]
mod with_tokio {
    use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    impl AsyncRead for ByteStream {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            if out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            // As much as there is, so that no more of the caller's buffer is cleared than is filled.
            let len = ready!(this.fill(cx))?.len().min(out.remaining());
            let len = ready!(this.read_into(cx, out.initialize_unfilled_to(len)))?;
            out.advance(len);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncBufRead for ByteStream {
        fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
            self.get_mut().fill(cx)
        }

        fn consume(self: Pin<&mut Self>, len: usize) {
            self.get_mut().consume_read(len);
        }
    }

    impl AsyncWrite for ByteStream {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.get_mut().write_from(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.get_mut().write_from(cx, slices)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.get_mut().flush_out(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.get_mut().shut_down(cx)
        }
    }
}
