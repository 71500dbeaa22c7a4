//! A connection as a stream of bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use zc_core::memory::{AllocWaiter, CopyPlace, Message, PinnedBufMut, copy_payload};
use zc_core::transport::Completion;

use super::Connection;
use super::error::ConnectionError;
use super::receiver::Receiver;
use super::sender::{finish, hand_over, push_out};
use super::turn::{poll_flush, poll_turn};

/// The most bytes that one write puts into one message.
pub const BYTE_STREAM_MESSAGE: usize = 64 << 10;

/// Reads and writes bytes over a connection, with the traits of `futures::io`, and with tokio's under the
/// feature `tokio`. Get one with [`Connection::into_byte_stream`].
///
/// * A write becomes one message of up to [`BYTE_STREAM_MESSAGE`] bytes in memory of the pool, into which
///   the slices of a vectored write are gathered: a copy, counted in the ledger as `Gather`. It is
///   pushed out at once and is pending while the peer does not read.
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
        Self { connection, receiver, current: Message::new(), waiter: AllocWaiter::new() }
    }

    /// The connection under it, for its reports; its receiver is taken.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        while !self.current.has_remaining() {
            match ready!(self.receiver.poll_recv(cx))? {
                Some(message) => self.current = message,
                None => return Poll::Ready(Ok(&[])),
            }
        }
        Poll::Ready(Ok(self.current.chunk()))
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
        let ledger = &self.connection.handle.core().ledger;
        copy_payload(&mut out[..len], &self.current.chunk()[..len], ledger, CopyPlace::App);
        self.consume_read(len);
        Poll::Ready(Ok(len))
    }

    /// Takes up to one message's worth; pending without having taken anything.
    fn write_from(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let core = self.connection.handle.core();
        let most = BYTE_STREAM_MESSAGE.min(core.limits.send_max_message as usize);
        let len = slices.iter().fold(0_usize, |sum, slice| sum.saturating_add(slice.len())).min(most);
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        let place = &mut self.connection.sender.place;
        {
            let mut tx = core.lock_tx();
            match poll_turn(core, &mut tx, *place, len) {
                Poll::Pending => {
                    core.wait(&mut tx, place, cx.waker());
                    return Poll::Pending;
                }
                // Kept while the bytes are gathered, without the lock.
                Poll::Ready(Ok(())) => tx.queue.hold(place),
                Poll::Ready(Err(error)) => {
                    core.leave(&mut tx, place);
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
        let polled = core.pool.poll_alloc(len, &mut self.waiter, cx);
        let gathered = polled.map_ok(|mut buf| {
            gather(&mut buf, slices, len, &core.ledger);
            buf
        });
        let mut tx = core.lock_tx();
        let sent = match gathered {
            Poll::Pending => {
                core.leave(&mut tx, place);
                return Poll::Pending;
            }
            Poll::Ready(Err(error)) => Err(io::Error::new(io::ErrorKind::OutOfMemory, error)),
            Poll::Ready(Ok(buf)) => match tx.refusal() {
                Some(error) => Err(error.into()),
                None => hand_over(core, &mut tx, buf.into(), Completion::Accepted).map_err(io::Error::from),
            },
        };
        core.leave(&mut tx, place);
        Poll::Ready(match sent {
            Ok(_) => push_out(core, tx).map(|()| len).map_err(io::Error::from),
            Err(error) => Err(error),
        })
    }

    fn flush_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        poll_flush(self.connection.handle.core(), &mut self.connection.sender.place, cx)
    }

    fn shut_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let core = self.connection.handle.core();
        finish(core, &mut core.lock_tx())?;
        self.flush_out(cx).map_err(io::Error::from)
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
        self.get_mut().flush_out(cx).map_err(io::Error::from)
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
            let len = ready!(self.get_mut().read_into(cx, out.initialize_unfilled()))?;
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
            self.get_mut().flush_out(cx).map_err(io::Error::from)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.get_mut().shut_down(cx)
        }
    }
}
