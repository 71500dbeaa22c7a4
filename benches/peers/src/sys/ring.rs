//! An io_uring whose buffers the kernel fills and sends; no reference to their bytes is ever made.
//!
//! The ring's memory is never freed: the process ends with it, and the kernel may use it as long as that takes.

use std::collections::VecDeque;
use std::io;
use std::mem::zeroed;
use std::sync::atomic::{AtomicU16, Ordering::Release};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

const GROUP: u16 = 0;
const SQ_ENTRIES: u32 = 512;
const CQ_ENTRIES: u32 = 4096;

/// What has happened.
pub(crate) enum Done {
    Received {
        socket: usize,
        /// In order, with how much is in each.
        buffers: Vec<(u16, usize)>,
        goes_on: bool,
        has_ended: bool,
    },
    Sent {
        socket: usize,
        bytes: usize,
    },
}

/// The description of a socket's vectored send.
struct Parts {
    /// The kernel has it.
    is_taken: bool,
    header: libc::msghdr,
    pieces: Vec<libc::iovec>,
}

pub(crate) struct EchoRing {
    uring: IoUring,
    sockets: Vec<OwnedFd>,
    parts: &'static mut [Parts],
    entries: *mut BufRingEntry,
    memory: *mut u8,
    buffers: u16,
    buffer_bytes: usize,
    tail: u16,
    /// The buffers that the kernel has, in the order in which it takes them.
    order: VecDeque<u16>,
}

fn map(bytes: usize) -> io::Result<*mut u8> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let memory = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, MapFlags::PRIVATE)? };
    Ok(memory.cast())
}

impl EchoRing {
    /// `buffers` is a power of two.
    pub(crate) fn new(sockets: Vec<OwnedFd>, buffers: u16, buffer_bytes: usize) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_cqsize(CQ_ENTRIES);
        let uring = builder.build(SQ_ENTRIES)?;
        let entries = map(usize::from(buffers) * size_of::<BufRingEntry>())?;
        // SAFETY: as many entries as are told are mapped there, page aligned, and never unmapped.
        unsafe { uring.submitter().register_buf_ring_with_flags(entries as u64, buffers, GROUP, 0)? };
        // SAFETY: a header of zeroes is a valid one, of nothing.
        let parts = || Parts { is_taken: false, header: unsafe { zeroed() }, pieces: Vec::new() };
        let mut ring = Self {
            uring,
            parts: Vec::leak(sockets.iter().map(|_| parts()).collect()),
            sockets,
            entries: entries.cast(),
            memory: map(usize::from(buffers) * buffer_bytes)?,
            buffers,
            buffer_bytes,
            tail: 0,
            order: VecDeque::with_capacity(buffers.into()),
        };
        (0..buffers).for_each(|buffer| ring.give_back(buffer));
        Ok(ring)
    }

    pub(crate) fn has_buffers(&self) -> bool {
        !self.order.is_empty()
    }

    fn at(&self, buffer: u16) -> *mut u8 {
        assert!(buffer < self.buffers);
        // SAFETY: the mapping has room for all buffers below that count.
        unsafe { self.memory.add(usize::from(buffer) * self.buffer_bytes) }
    }

    /// The kernel may fill it again. It has not had it.
    pub(crate) fn give_back(&mut self, buffer: u16) {
        assert!(self.order.len() < self.buffers.into());
        let (addr, index) = (self.at(buffer), self.tail & (self.buffers - 1));
        // SAFETY: the entry lies in the mapping, and the kernel does not look at it before the tail has passed it.
        let entry = unsafe { &mut *self.entries.add(index.into()) };
        entry.set_addr(addr as u64);
        entry.set_len(self.buffer_bytes as u32);
        entry.set_bid(buffer);
        self.order.push_back(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the mapping, and both sides access it as an atomic.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()) };
        tail.store(self.tail, Release);
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what the entries of this module point to is never freed, and not changed while the kernel has it.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.uring.submit()?;
        }
        Ok(())
    }

    /// Until there is no buffer, or the stream ends.
    pub(crate) fn receive(&mut self, socket: usize) -> io::Result<()> {
        let fd = Fd(self.sockets[socket].as_raw_fd());
        let entry = opcode::RecvMultiBundle::new(fd, GROUP).build();
        self.push(entry.user_data((socket as u64) << 1))
    }

    /// All of it, in order. One call at a time for each socket; the buffers are the caller's until it is done.
    pub(crate) fn send(&mut self, socket: usize, buffers: &[(u16, usize)]) -> io::Result<()> {
        let fd = Fd(self.sockets[socket].as_raw_fd());
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = if let [(buffer, len)] = buffers {
            opcode::Send::new(fd, self.at(*buffer), *len as u32).flags(flags).build()
        } else {
            let piece = |(buffer, len): &(u16, usize)| libc::iovec {
                iov_base: self.at(*buffer).cast(),
                iov_len: *len,
            };
            let pieces: Vec<_> = buffers.iter().map(piece).collect();
            let parts = &mut self.parts[socket];
            assert!(!std::mem::replace(&mut parts.is_taken, true), "one at a time");
            parts.pieces.clear();
            parts.pieces.extend(pieces);
            parts.header.msg_iov = parts.pieces.as_mut_ptr();
            parts.header.msg_iovlen = parts.pieces.len();
            opcode::SendMsg::new(fd, &raw const parts.header).flags(flags as u32).build()
        };
        self.push(entry.user_data((socket as u64) << 1 | 1))
    }

    /// Submits, and waits until something has happened.
    pub(crate) fn enter(&mut self) -> io::Result<()> {
        match self.uring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn next(&mut self) -> Option<io::Result<Done>> {
        let entry = self.uring.completion().next()?;
        let (socket, result) = ((entry.user_data() >> 1) as usize, entry.result());
        if entry.user_data() & 1 == 1 {
            self.parts[socket].is_taken = false;
            let bytes = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            return Some(bytes.map(|bytes| Done::Sent { socket, bytes }));
        }
        if result < 0 && result != -libc::ENOBUFS {
            return Some(Err(io::Error::from_raw_os_error(-result)));
        }
        let len = usize::try_from(result).unwrap_or(0);
        let mut buffers = Vec::with_capacity(len.div_ceil(self.buffer_bytes));
        let mut left = len;
        while left > 0 {
            let Some(buffer) = self.order.pop_front() else { break };
            buffers.push((buffer, left.min(self.buffer_bytes)));
            left = left.saturating_sub(self.buffer_bytes);
        }
        let named = cqueue::buffer_select(entry.flags());
        if left > 0 || (len > 0 && named != buffers.first().map(|(buffer, _)| *buffer)) {
            return Some(Err(io::Error::other("the kernel took buffers in another order")));
        }
        let goes_on = cqueue::more(entry.flags());
        Some(Ok(Done::Received { socket, buffers, goes_on, has_ended: result == 0 }))
    }
}
