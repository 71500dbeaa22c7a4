//! An operation, and what it owns until the kernel is done with it (M1, M2).

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{cqueue, opcode, squeue, types::CancelBuilder, types::Fd, types::FsyncFlags};
use smallvec::SmallVec;
use zc_core::memory::{Message, PinnedBuf, PinnedBufMut};

use crate::limits::MAX_TRANSFER_BYTES;
use crate::slab::Token;

// Asks for a notification that says whether the kernel copied.
const REPORT_USAGE: u16 = 8; // IORING_SEND_ZC_REPORT_USAGE
// What such a notification then says.
const COPIED: u32 = 1 << 31; // IORING_NOTIF_USAGE_ZC_COPIED

/// The memory that the kernel reads or writes. Moving one of these moves no byte of it.
enum Held {
    Nothing,
    /// The unfilled part is written.
    Fill(PinnedBufMut),
    /// Read; immutable.
    Bytes(#[allow(dead_code, reason = "the kernel reads it")] PinnedBuf),
    /// Read, with its description.
    Parts(Box<Parts>),
    /// Is closed by the operation.
    Closing(OwnedFd),
}

/// A message, and its description as the kernel wants it.
pub(crate) struct Parts {
    message: Message,
    pieces: SmallVec<[libc::iovec; 8]>,
    header: libc::msghdr,
}

// SAFETY: the pointers lead to `message` and into the box itself, both of which it owns; they are for the
// kernel, and no code of ours follows them (M1).
unsafe impl Send for Parts {}
// SAFETY: as for Send: behind a shared reference nothing can be done with it.
unsafe impl Sync for Parts {}

impl Parts {
    fn new() -> Box<Self> {
        // SAFETY: msghdr is plain data, for which all zeroes is a valid value.
        let header = unsafe { std::mem::zeroed() };
        Box::new(Self { message: Message::new(), pieces: SmallVec::new(), header })
    }

    fn describe(&mut self, message: Message) {
        self.message = message;
        let mut room = MAX_TRANSFER_BYTES;
        for piece in self.message.segments() {
            let len = piece.len().min(room);
            room -= len;
            self.pieces.push(libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: len });
        }
        self.header.msg_iov = self.pieces.as_mut_ptr();
        self.header.msg_iovlen = self.pieces.len() as _;
    }

    fn clear(&mut self) {
        self.message = Message::new();
        self.pieces.clear();
    }
}

/// Where the ring knows the memory of an operation, if it does.
pub(crate) type Known = Option<u16>;

/// One operation.
pub(crate) struct Request {
    entry: squeue::Entry,
    held: Held,
    /// Kept open: the number must not become another file's before the kernel has looked.
    files: SmallVec<[Arc<OwnedFd>; 2]>,
    /// Whether it may be done once more when it came back untouched, see [`Request::may_repeat`].
    repeatable: bool,
    /// Whether the ring knows its memory ahead.
    is_on_fixed: bool,
    /// Whether it is over only when the peer has acknowledged what was sent.
    is_zero_copy: bool,
    /// Whether it receives into the ring's area.
    is_into_area: bool,
}

fn fd(file: &Arc<OwnedFd>) -> Fd {
    Fd(file.as_raw_fd())
}

/// What the kernel takes in one transfer.
fn transfer_len(len: usize) -> u32 {
    len.min(MAX_TRANSFER_BYTES) as u32
}

fn flags(all: bool) -> i32 {
    libc::MSG_NOSIGNAL | if all { libc::MSG_WAITALL } else { 0 }
}

impl Request {
    fn new(entry: squeue::Entry, held: Held, files: &[&Arc<OwnedFd>]) -> Self {
        let files = files.iter().map(|file| Arc::clone(file)).collect();
        Self {
            entry,
            held,
            files,
            repeatable: true,
            is_on_fixed: false,
            is_zero_copy: false,
            is_into_area: false,
        }
    }

    fn on_fixed(self, known: Known) -> Self {
        Self { is_on_fixed: known.is_some(), ..self }
    }

    /// Whether the ring knows its memory ahead.
    pub(super) fn is_on_fixed(&self) -> bool {
        self.is_on_fixed
    }

    pub(crate) fn nop() -> Self {
        Self::new(opcode::Nop::new().build(), Held::Nothing, &[])
    }

    /// Receives into the group's buffers until it is stopped, or there is no buffer left.
    pub(crate) fn recv_many(file: &Arc<OwnedFd>, group: u16, bundles: bool) -> Self {
        let entry = match bundles {
            true => opcode::RecvMultiBundle::new(fd(file), group).build(),
            false => opcode::RecvMulti::new(fd(file), group).build(),
        };
        Self { repeatable: false, ..Self::new(entry, Held::Nothing, &[file]) }
    }

    /// Receives into the area of this number until it is stopped, or there is no room in it.
    pub(crate) fn recv_into_area(file: &Arc<OwnedFd>, area: u32) -> Self {
        let entry = opcode::RecvZc::new(fd(file), 0).ifq(area).build();
        Self { repeatable: false, is_into_area: true, ..Self::new(entry, Held::Nothing, &[file]) }
    }

    /// Receives into what is unfilled of `buf`, at most `len` bytes; `all`: as many.
    pub(crate) fn recv(file: &Arc<OwnedFd>, mut buf: PinnedBufMut, len: usize, all: bool) -> Self {
        let space = buf.unfilled_mut();
        let len = transfer_len(len.min(space.len()));
        let flags = if all { libc::MSG_WAITALL } else { 0 };
        let entry = opcode::Recv::new(fd(file), space.as_mut_ptr(), len).flags(flags).build();
        Self::new(entry, Held::Fill(buf), &[file])
    }

    pub(crate) fn send(file: &Arc<OwnedFd>, buf: PinnedBuf, all: bool) -> Self {
        let len = transfer_len(buf.len());
        let entry = opcode::Send::new(fd(file), buf.as_ptr(), len).flags(flags(all)).build();
        Self::new(entry, Held::Bytes(buf), &[file])
    }

    /// The pieces in order; `spare` is a description that was used before.
    /// Sends a part of the message, or all; `more` follows at once.
    pub(crate) fn send_message(
        file: &Arc<OwnedFd>,
        message: Message,
        (all, more): (bool, bool),
        spare: Option<Box<Parts>>,
    ) -> Self {
        let mut parts = spare.unwrap_or_else(Parts::new);
        parts.describe(message);
        let how = flags(all) | if more { libc::MSG_MORE } else { 0 };
        let entry = opcode::SendMsg::new(fd(file), &raw const parts.header).flags(how as u32).build();
        Self::new(entry, Held::Parts(parts), &[file])
    }

    /// The same out of the memory itself; two completions, the second of which lets go of all pieces (M2).
    pub(crate) fn send_message_zero_copy(
        file: &Arc<OwnedFd>,
        message: Message,
        all: bool,
        spare: Option<Box<Parts>>,
    ) -> Self {
        let mut parts = spare.unwrap_or_else(Parts::new);
        parts.describe(message);
        let entry = opcode::SendMsgZc::new(fd(file), &raw const parts.header);
        let entry = entry.flags(flags(all) as u32).ioprio(REPORT_USAGE).build();
        Self { is_zero_copy: true, ..Self::new(entry, Held::Parts(parts), &[file]) }
    }

    /// Sends out of the memory itself; two completions. `known`: where the ring knows it.
    pub(crate) fn send_zero_copy(file: &Arc<OwnedFd>, buf: PinnedBuf, all: bool, known: Known) -> Self {
        let len = transfer_len(buf.len());
        let entry = opcode::SendZc::new(fd(file), buf.as_ptr(), len);
        let entry = entry.flags(flags(all)).zc_flags(REPORT_USAGE).buf_index(known).build();
        Self { is_zero_copy: true, ..Self::new(entry, Held::Bytes(buf), &[file]).on_fixed(known) }
    }

    pub(crate) fn read(
        file: &Arc<OwnedFd>,
        mut buf: PinnedBufMut,
        len: usize,
        offset: u64,
        known: Known,
    ) -> Self {
        let space = buf.unfilled_mut();
        let len = transfer_len(len.min(space.len()));
        let (file_fd, to) = (fd(file), space.as_mut_ptr());
        let entry = match known {
            Some(place) => opcode::ReadFixed::new(file_fd, to, len, place).offset(offset).build(),
            None => opcode::Read::new(file_fd, to, len).offset(offset).build(),
        };
        Self::new(entry, Held::Fill(buf), &[file]).on_fixed(known)
    }

    pub(crate) fn write(file: &Arc<OwnedFd>, buf: PinnedBuf, offset: u64, known: Known) -> Self {
        let (file_fd, from, len) = (fd(file), buf.as_ptr(), transfer_len(buf.len()));
        let entry = match known {
            Some(place) => opcode::WriteFixed::new(file_fd, from, len, place).offset(offset).build(),
            None => opcode::Write::new(file_fd, from, len).offset(offset).build(),
        };
        Self::new(entry, Held::Bytes(buf), &[file]).on_fixed(known)
    }

    pub(crate) fn fsync(file: &Arc<OwnedFd>, data_only: bool) -> Self {
        let flags = if data_only { FsyncFlags::DATASYNC } else { FsyncFlags::empty() };
        Self::new(opcode::Fsync::new(fd(file)).flags(flags).build(), Held::Nothing, &[file])
    }

    /// Waits until there is room to write, or the connection is over.
    pub(crate) fn writable(file: &Arc<OwnedFd>) -> Self {
        let entry = opcode::PollAdd::new(fd(file), libc::POLLOUT as u32).build();
        Self::new(entry, Held::Nothing, &[file])
    }

    /// Waits until the peer sends no more, or the connection is over.
    pub(crate) fn end(file: &Arc<OwnedFd>) -> Self {
        // Errors, and the end of both directions, are told without being asked for.
        let entry = opcode::PollAdd::new(fd(file), libc::POLLRDHUP as u32).build();
        Self::new(entry, Held::Nothing, &[file])
    }

    /// Moves pages between two descriptors, one of them a pipe; an offset of `None` is where the file stands.
    pub(crate) fn splice(
        from: (&Arc<OwnedFd>, Option<u64>),
        to: (&Arc<OwnedFd>, Option<u64>),
        len: usize,
    ) -> Self {
        let at = |offset: Option<u64>| offset.map_or(-1, |n| n.min(i64::MAX as u64) as i64);
        let entry =
            opcode::Splice::new(fd(from.0), at(from.1), fd(to.0), at(to.1), transfer_len(len)).build();
        Self::new(entry, Held::Nothing, &[from.0, to.0])
    }

    pub(crate) fn close(file: OwnedFd) -> Self {
        let entry = opcode::Close::new(Fd(file.as_raw_fd())).build();
        Self { repeatable: false, ..Self::new(entry, Held::Closing(file), &[]) }
    }

    /// The entry, as its completions will name it.
    pub(super) fn entry(&self, token: Token) -> squeue::Entry {
        self.entry.clone().user_data(token.to_bits())
    }

    /// Whether to do it again: it came back untouched although nobody had cancelled it. That happens when the
    /// thread ends that submitted it (a worker in `block_in_place` becomes one that does).
    pub(super) fn may_repeat(&self, result: i32) -> bool {
        self.repeatable && [-libc::ECANCELED, -libc::EINTR].contains(&result)
    }

    /// The kernel is done.
    pub(super) fn landed(&mut self, result: i32) {
        if let Held::Closing(_) = self.held
            && result != -libc::ECANCELED
            && let Held::Closing(file) = std::mem::replace(&mut self.held, Held::Nothing)
        {
            // The kernel has closed it, or it was none: the number may be somebody else's by now.
            let _ = file.into_raw_fd();
        }
    }

    /// What happened to it will never be known.
    pub(super) fn lost(&mut self) {
        self.landed(0);
    }

    /// Nobody cancels it: its sockets end, so that their peers hear of it and nothing is received any more.
    pub(super) fn hang_up(&self) {
        for file in &self.files {
            // What is no socket, or is not connected, has no peer.
            let _ = rustix::net::shutdown(file, rustix::net::Shutdown::Both);
        }
    }

    /// Whether it receives into the ring's area.
    pub(super) fn is_into_area(&self) -> bool {
        self.is_into_area
    }

    /// The connections of its sockets are cut, and what they had received is gone: nothing is put into the area any more.
    pub(super) fn cut(&self) {
        for file in &self.files {
            // One that is not connected has nothing to receive.
            let _ = rustix::net::connect_unspec(file);
        }
    }

    /// If a peer that acknowledges nothing keeps the kernel at it, the connection is cut, and with it goes what was to be sent.
    /// Whether that can have helped.
    pub(super) fn abort(&self) -> bool {
        let cut = |file: &Arc<OwnedFd>| rustix::net::connect_unspec(file).is_ok();
        self.is_zero_copy && self.files.iter().filter(|file| cut(file)).count() > 0
    }

    /// The kernel has looked long ago, and has the files itself.
    pub(super) fn close_files(&mut self) {
        self.files.clear();
    }

    /// The buffer that was to be filled, with `n` bytes more in it.
    pub(crate) fn take_filled(&mut self, n: usize) -> Option<PinnedBufMut> {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Fill(mut buf) => {
                buf.advance(n);
                Some(buf)
            }
            other => {
                self.held = other;
                None
            }
        }
    }

    /// The message of a vectored send that is over.
    pub(crate) fn take_message(&mut self) -> Message {
        match &mut self.held {
            Held::Parts(parts) => std::mem::take(&mut parts.message),
            _ => Message::new(),
        }
    }

    /// The description of a vectored send, to be used again.
    pub(crate) fn into_parts(self) -> Option<Box<Parts>> {
        match self.held {
            Held::Parts(mut parts) => {
                parts.clear();
                Some(parts)
            }
            _ => None,
        }
    }
}

/// Cancels one operation.
pub(super) fn cancel(token: Token) -> squeue::Entry {
    opcode::AsyncCancel::new(token.to_bits()).build().user_data(token.to_cancel_bits())
}

/// Cancels all operations.
pub(super) fn cancel_all() -> squeue::Entry {
    opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(NOBODYS)
}

// Of completions that nobody waits for. No token is 0.
pub(super) const NOBODYS: u64 = 0;

/// A completion, taken apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    /// Another one follows.
    pub(super) more: bool,
    /// The notification of a zero-copy send.
    pub(super) is_notification: bool,
    /// The receive buffer that was chosen.
    pub(super) buffer: Option<u16>,
    /// More will be put into it.
    pub(super) buffer_more: bool,
    /// Where in an area the bytes lie; of completions that are wide.
    pub(super) offset: u64,
}

impl Completion {
    pub(super) fn new(entry: &cqueue::Entry) -> Self {
        Self::of(entry.user_data(), entry.result(), entry.flags(), 0)
    }

    pub(super) fn of_wide(entry: &cqueue::Entry32) -> Self {
        Self::of(entry.user_data(), entry.result(), entry.flags(), entry.big_cqe()[0])
    }

    fn of(user_data: u64, result: i32, flags: u32, offset: u64) -> Self {
        Self {
            user_data,
            result,
            more: cqueue::more(flags),
            is_notification: cqueue::notif(flags),
            buffer: cqueue::buffer_select(flags),
            buffer_more: cqueue::buffer_more(flags),
            offset,
        }
    }

    /// Of a notification: whether the kernel copied.
    pub(super) fn was_copied(&self) -> bool {
        self.result as u32 & COPIED != 0
    }
}
