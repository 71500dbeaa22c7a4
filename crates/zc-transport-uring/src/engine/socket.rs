//! Stream sockets.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags};
use rustix::pipe::SpliceFlags;
use zc_core::memory::{Deferral, Message, PinnedBuf, PinnedBufMut};

use super::inbox::{Inbox, Next};
use super::op::{Op, ZeroCopySend};
use super::places::{Place, Spilled};
use super::relief::Ledger;
use super::{Engine, Handle, Sends};
use crate::steering::Steered;
use crate::sys::Request;
use crate::zero_copy::{PeerPlace, ZeroCopyMode, ZeroCopyPolicy};

impl Engine {
    /// The two halves of a connected stream socket. It becomes a blocking one for everybody who has it: the ring does
    /// the waiting. The socket is closed when both halves and all of its operations are over.
    ///
    /// # Errors
    /// The system's; [`ResourceBusy`](io::ErrorKind::ResourceBusy): the engine has as many as it may
    /// ([`EngineOptions::max_sockets`](crate::EngineOptions::max_sockets)).
    pub fn socket(&self, socket: OwnedFd) -> io::Result<(SocketTx, SocketRx)> {
        self.socket_of(socket, None)
    }

    /// The same; what is copied because an area is short is counted here.
    pub(crate) fn socket_of(&self, socket: OwnedFd, ledger: Ledger) -> io::Result<(SocketTx, SocketRx)> {
        let Some(place) = self.handle.sockets.take() else {
            let text = "the io_uring engine has as many sockets as it may";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        };
        rustix::io::ioctl_fionbio(&socket, false)?;
        let file = Arc::new(socket);
        // Only TCP itself is received so: no other protocol, and nothing that is put on top of it.
        let is_tcp = || {
            rustix::net::sockopt::socket_protocol(&*file)
                .is_ok_and(|of| of == Some(rustix::net::ipproto::TCP))
        };
        let area = (self.handle.zero_copy_receive == Some(Ok(())) && is_tcp()).then_some(ledger);
        // From here on nobody reads it in another way.
        let steering = self.handle.steering.as_ref().filter(|_| area.is_some());
        let steered = steering.and_then(|steering| steering.steer(&file));
        let inbox = Inbox::new(file.clone(), place, area);
        let rx = SocketRx { handle: self.handle.clone(), inbox, looks_again: false, _steered: steered };
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
        if message.segments().len() == 1 {
            // Which is cheaper for the kernel.
            let bytes = message.into_segments().next().unwrap_or_else(PinnedBuf::empty);
            return self.send(bytes, all);
        }
        let spare = self.handle.shared.core.lock().spare_parts();
        Op::new(&self.handle, Request::send_message(&self.file, message, (all, false), spare), |_, n| Ok(n))
    }

    /// Sends what there is room for, without the ring, also if that is less than all; `WouldBlock`: there is none.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        retry_on_intr(|| rustix::net::send(&self.file, bytes, flags)).map_err(io::Error::from)
    }

    /// As [`try_send`](Self::try_send), for pieces in order; `more` follows at once.
    pub(crate) fn try_send_pieces(&self, pieces: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
        let mut flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        flags.set(SendFlags::MORE, more);
        let mut none = SendAncillaryBuffer::default();
        retry_on_intr(|| rustix::net::sendmsg(&self.file, pieces, &mut none, flags)).map_err(io::Error::from)
    }

    /// Moves at most `len` bytes out of a pipe that holds them, as far as there is room; `WouldBlock`: there is none.
    /// `more` follows at once.
    ///
    /// Not by the ring: it has a kernel's thread wait for room, one for each socket whose peer is slow.
    ///
    /// Splicing asks the socket's own `O_NONBLOCK` whether to wait, so that is set for the moment of the call. Of the ring's
    /// operations on sockets only `SENDMSG` looks at it, so the caller, who keeps the order of what is sent, has none under way;
    /// receives and polls go by flags of their own. So the engine's lock is not held while pages move.
    pub(crate) fn try_splice(&self, pipe: BorrowedFd<'_>, len: usize, more: bool) -> io::Result<usize> {
        let mut flags = SpliceFlags::NONBLOCK;
        flags.set(SpliceFlags::MORE, more);
        self.handle.shared.core.lock().check()?;
        rustix::io::ioctl_fionbio(&self.file, true)?;
        let spliced = retry_on_intr(|| rustix::pipe::splice(pipe, None, &self.file, None, len, flags));
        rustix::io::ioctl_fionbio(&self.file, false)?;
        spliced.map_err(io::Error::from)
    }

    /// Waits until there is room to write, or the connection is over.
    pub(crate) fn writable(&self) -> Op<()> {
        Op::new(&self.handle, Request::writable(&self.file), |_, _| Ok(()))
    }

    /// As [`send_message`](Self::send_message), a part of it, with the message back, to be used again: what it is made of takes
    /// no allocation then. `more` follows at once.
    pub(crate) fn send_batch(&self, batch: Message, more: bool) -> Op<(usize, Message)> {
        let spare = self.handle.shared.core.lock().spare_parts();
        let request = Request::send_message(&self.file, batch, (false, more), spare);
        Op::new(&self.handle, request, |request, n| Ok((n, request.take_message())))
    }

    /// As [`send`](Self::send), out of the memory itself where the kernel can. When that thread ends before anything went
    /// out, this one fails as cancelled (`ECANCELED`), where others are begun anew. Unix sockets refuse it.
    ///
    /// A kernel that can't tell whether it copied (before 6.2) is not asked to: the bytes are sent as by
    /// [`send`](Self::send), and the answer is [`Usage::Copied`](super::Usage::Copied).
    pub fn send_zero_copy(&self, bytes: PinnedBuf, all: bool) -> ZeroCopySend {
        let request = match self.handle.zero_copy.bytes {
            true => {
                let known = self.handle.known(bytes.region(), true);
                Request::send_zero_copy(&self.file, bytes, all, known)
            }
            false => Request::send(&self.file, bytes, all),
        };
        ZeroCopySend::new(&self.handle, request)
    }

    /// As [`send_zero_copy`](Self::send_zero_copy), for the pieces of a message in order.
    pub fn send_message_zero_copy(&self, message: Message, all: bool) -> ZeroCopySend {
        let spare = self.handle.shared.core.lock().spare_parts();
        let request = match self.handle.zero_copy.messages {
            true => Request::send_message_zero_copy(&self.file, message, all, spare),
            false => Request::send_message(&self.file, message, (all, false), spare),
        };
        ZeroCopySend::new(&self.handle, request)
    }

    /// What decides which payloads to this peer are sent out of the memory itself, as the engine's options and the
    /// kernel have it ([`EngineOptions::zero_copy`](crate::EngineOptions::zero_copy)).
    pub fn zero_copy_policy(&self) -> ZeroCopyPolicy {
        let Sends { bytes, messages, mode } = self.handle.zero_copy;
        let mode = if bytes && messages { mode } else { ZeroCopyMode::Never };
        ZeroCopyPolicy::new(mode, PeerPlace::of(&self.file))
    }

    /// Leave to wait for the kernel when the stream is gone, if there is any left.
    pub(crate) fn linger_place(&self) -> Option<Place> {
        self.handle.lingers.take()
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
    /// The last look found nothing, and nobody has waited since.
    looks_again: bool,
    /// By which queue of a NIC it comes, until nothing is received any more.
    _steered: Option<Steered>,
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
        self.looks_again = false;
        // Looks first and waits afterwards: who finds it here need not be woken for it.
        if self.inbox.is_awaited() {
            self.handle.shared.look(false);
        }
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
        let done = match self.inbox.poll_take(None).0 {
            Poll::Pending if self.handle.shared.look(self.looks_again) => self.inbox.poll_take(None).0,
            done => done,
        };
        self.looks_again = done.is_pending();
        done
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
        if self.is_into_area() {
            // What a NIC has put there can't be read otherwise.
            return Op::refused(&self.handle, "the socket is received into the engine's area");
        }
        if len == 0 || buf.len() == buf.capacity() {
            // The system would answer as at the end of the stream.
            return Op::refused(&self.handle, "there is no room to receive into");
        }
        let request = Request::recv(&self.inbox.file, buf, len, all);
        Op::filling(&self.handle, request).for_inbox(self.inbox.clone())
    }

    /// Takes what has come into the pieces, in order, without the ring and without waiting; 0 is the end. The socket must be quiet
    /// and everything taken. `WouldBlock`: nothing has come.
    pub(crate) fn try_recv_into<const N: usize>(&self, pieces: [&mut [u8]; N]) -> io::Result<usize> {
        self.inbox.check_quiet()?;
        let mut pieces = pieces.map(IoSliceMut::new);
        if pieces.iter().all(|piece| piece.is_empty()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no room to receive into"));
        }
        let mut none = RecvAncillaryBuffer::default();
        let flags = RecvFlags::DONTWAIT;
        let received =
            retry_on_intr(|| rustix::net::recvmsg(&self.inbox.file, &mut pieces, &mut none, flags));
        Ok(received?.bytes)
    }

    /// Stops receiving by itself as soon as may be, until somebody waits in [`poll_recv`](Self::poll_recv).
    pub(crate) fn pause(&self) {
        let _deferral = Deferral::begin();
        self.follow(self.inbox.pause());
    }

    /// It receives nothing by itself, and all that came is taken.
    pub(crate) fn is_quiet(&self) -> bool {
        self.inbox.is_quiet()
    }

    /// Leave to read past the ring, if there is any left.
    pub(crate) fn hot_place(&self) -> Option<Place> {
        self.handle.hot.take()
    }

    /// Whether it would receive by itself, and the engine has no buffer and no memory for one. The reader is woken when that
    /// begins. [`poll_quiet`](Self::poll_quiet) leads out of it: who receives into memory of its own needs none of the engine's.
    pub(crate) fn is_starved(&self) -> bool {
        self.inbox.is_starved()
    }

    /// Whether what comes lies in memory into which a NIC receives ([`EngineOptions::zero_copy_receive`](crate::EngineOptions::zero_copy_receive)).
    pub fn is_into_area(&self) -> bool {
        self.inbox.is_into_area()
    }

    /// Whether the kernel copies all that it receives here; `None`: only a NIC knows.
    pub(crate) fn kernel_copies(&self) -> Option<bool> {
        match self.is_into_area() {
            true => self.handle.area_is_copied.then_some(true),
            false => Some(true),
        }
    }

    /// What it has of the bytes that may lie on the heap.
    pub(crate) fn spilled(&self) -> Spilled {
        Spilled::of(&self.handle.spilled)
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
        self.handle.shared.core.lock().forsake(&self.inbox);
    }
}
