//! Stream sockets.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use zc_core::memory::{Deferral, Message, PinnedBuf, PinnedBufMut};

use super::inbox::{Inbox, Next};
use super::op::{Op, ZeroCopySend};
use super::{Engine, Handle};
use crate::sys::Request;

impl Engine {
    /// The two halves of a connected stream socket. It becomes a blocking one for everybody who has it: the ring does
    /// the waiting. The socket is closed when both halves and all of its operations are over.
    ///
    /// # Errors
    /// The system's; [`ResourceBusy`](io::ErrorKind::ResourceBusy): the engine has as many as it may
    /// ([`EngineOptions::max_sockets`](crate::EngineOptions::max_sockets)).
    pub fn socket(&self, socket: OwnedFd) -> io::Result<(SocketTx, SocketRx)> {
        let Some(place) = self.handle.sockets.take() else {
            let text = "the io_uring engine has as many sockets as it may";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        };
        rustix::io::ioctl_fionbio(&socket, false)?;
        let file = Arc::new(socket);
        let inbox = Inbox::new(file.clone(), place, self.handle.min_piece_bytes);
        let rx = SocketRx { handle: self.handle.clone(), inbox };
        Ok((SocketTx { handle: self.handle.clone(), file }, rx))
    }
}

/// The sending half of a socket.
///
/// Operations of one socket that are under way at the same time are not ordered: wait for one before the next.
///
/// ```
/// # async fn example(tx: zc_transport_uring::SocketTx) -> std::io::Result<()> {
/// let n = tx.send(b"hello".as_slice().into(), true).await?;
/// assert_eq!(n, 5);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SocketTx {
    handle: Arc<Handle>,
    file: Arc<OwnedFd>,
}

impl AsFd for SocketTx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl SocketTx {
    /// Sends a part of the bytes, with `all` all of them unless it fails in between, or the thread ends that the
    /// engine ran in when it began (a worker that blocks may become another thread); how many went out. Dropped in between,
    /// it may have sent a part.
    pub fn send(&self, bytes: PinnedBuf, all: bool) -> Op<usize> {
        Op::new(&self.handle, Request::send(&self.file, bytes, all), |_, n| Ok(n))
    }

    /// As [`send`](Self::send), for the pieces of a message in order.
    pub fn send_message(&self, message: Message, all: bool) -> Op<usize> {
        let spare = self.handle.shared.core.lock().spare_parts();
        Op::new(&self.handle, Request::send_message(&self.file, message, all, spare), |_, n| Ok(n))
    }

    /// As [`send`](Self::send), out of the memory itself where the kernel can. When that thread ends before anything went
    /// out, this one fails as cancelled (`ECANCELED`), where others are begun anew.
    pub fn send_zero_copy(&self, bytes: PinnedBuf, all: bool) -> ZeroCopySend {
        ZeroCopySend::new(&self.handle, Request::send_zero_copy(&self.file, bytes, all))
    }

    pub(super) fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }
}

/// The receiving half of a socket. It receives by itself, into buffers that the kernel chooses from those of
/// the engine, while somebody wants to read, up to a bound ([`MAX_INBOX_BYTES`](crate::MAX_INBOX_BYTES)).
///
/// Futures of it may be dropped at any time: what comes later is there for the next one.
///
/// ```
/// # async fn example(mut rx: zc_transport_uring::SocketRx) -> std::io::Result<()> {
/// loop {
///     let piece = rx.recv().await?;
///     if piece.is_empty() {
///         break; // The end.
///     }
///     println!("{} bytes", piece.len());
/// }
/// # Ok(())
/// # }
/// ```
pub struct SocketRx {
    handle: Arc<Handle>,
    inbox: Arc<Inbox>,
}

impl AsFd for SocketRx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.file.as_fd()
    }
}

impl SocketRx {
    /// The next bytes, as they lie in the engine's receive buffers; none at the end of the stream.
    ///
    /// # Errors
    /// The system's, or the engine has ended.
    pub async fn recv(&mut self) -> io::Result<PinnedBuf> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// See [`recv`](Self::recv).
    ///
    /// # Errors
    /// The system's, or the engine has ended.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<PinnedBuf>> {
        let _deferral = Deferral::begin();
        let (done, next) = self.inbox.poll_take(Some(cx));
        self.follow(next);
        done
    }

    /// What has come already, without waiting and without asking for more.
    ///
    /// # Errors
    /// The system's, or the engine has ended.
    pub fn try_recv(&mut self) -> Poll<io::Result<PinnedBuf>> {
        let _deferral = Deferral::begin();
        self.inbox.poll_take(None).0
    }

    /// Stops receiving by itself. When this is ready, what [`try_recv`](Self::try_recv) gives is all that was taken from
    /// the stream; [`recv_into`](Self::recv_into) goes on from there, and so does [`recv`](Self::recv).
    pub fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _deferral = Deferral::begin();
        let (done, next) = self.inbox.poll_quiet(cx);
        self.follow(next);
        done
    }

    /// Receives at most `len` bytes straight into what is unfilled of `buf`; with `all` so many, unless the stream ends.
    /// The socket must be quiet and everything taken. Dropped in between, what has come is there for `recv`.
    pub fn recv_into(&mut self, buf: PinnedBufMut, len: usize, all: bool) -> Op<PinnedBufMut> {
        if len == 0 || buf.len() == buf.capacity() {
            // The system would answer as at the end of the stream.
            return Op::refused(&self.handle, "there is no room to receive into");
        }
        let request = Request::recv(&self.inbox.file, buf, len, all);
        Op::filling(&self.handle, request).for_inbox(self.inbox.clone())
    }

    fn follow(&self, next: Next) {
        if next != Next::Nothing {
            self.handle.shared.core.lock().follow(&self.inbox, next);
        }
    }
}

impl Drop for SocketRx {
    fn drop(&mut self) {
        let _deferral = Deferral::begin();
        let next = self.inbox.close();
        self.follow(next);
    }
}
