//! The ring: set-up, entering, the eventfd and its mask.
//!
//! The crate `io-uring` maps the queues. Entering is done here, because its submitter forgets between two calls
//! under which number the ring is registered with the thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering::SeqCst, fence};
use std::thread::ThreadId;

use io_uring::types::io_uring_zcrx_ifq_reg;
use io_uring::{EnterFlags, IoUring, Parameters, Probe, SubmissionQueue, Submitter, cqueue, opcode, squeue};
use rustix::event::EventfdFlags;

use super::request::Completion;

/// Whether the eventfd is masked while the engine runs anyway. That a signal which was masked is found afterwards
/// takes a full barrier in the kernel between noting work and looking at the mask. On x86-64 the atomic operation in
/// between is one; elsewhere it is not promised, so the eventfd stays open there.
const MASKS_EVENTFD: bool = cfg!(target_arch = "x86_64");

/// With which flags a ring is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setup {
    /// One thread alone enters it; the ring is made disabled, and belongs to the thread that enables it.
    pub(crate) single_issuer: bool,
    /// Completions are made when that thread asks for them.
    pub(crate) defer_taskrun: bool,
    /// A thread is not interrupted for a completion: it sees to it when it is in the kernel anyway, or at the next tick.
    pub(crate) coop_taskrun: bool,
    /// Completions of twice the size, which have room to say where in an area bytes lie.
    pub(crate) wide: bool,
}

/// Operations that a kernel may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    Recv,
    Send,
    SendMsg,
    SendZc,
    SendMsgZc,
    Read,
    Write,
    ReadFixed,
    WriteFixed,
    Fsync,
    Splice,
    Cancel,
    Close,
    RecvZc,
    PollAdd,
}

impl Opcode {
    fn code(self) -> u8 {
        match self {
            Self::Recv => opcode::Recv::CODE,
            Self::Send => opcode::Send::CODE,
            Self::SendMsg => opcode::SendMsg::CODE,
            Self::SendZc => opcode::SendZc::CODE,
            Self::SendMsgZc => opcode::SendMsgZc::CODE,
            Self::Read => opcode::Read::CODE,
            Self::Write => opcode::Write::CODE,
            Self::ReadFixed => opcode::ReadFixed::CODE,
            Self::WriteFixed => opcode::WriteFixed::CODE,
            Self::Fsync => opcode::Fsync::CODE,
            Self::Splice => opcode::Splice::CODE,
            Self::Cancel => opcode::AsyncCancel::CODE,
            Self::Close => opcode::Close::CODE,
            Self::RecvZc => opcode::RecvZc::CODE,
            Self::PollAdd => opcode::PollAdd::CODE,
        }
    }
}

/// A system call that the kernel refused.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) call: &'static str,
    pub(crate) error: io::Error,
}

impl Refused {
    pub(crate) fn of(call: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self { call, error }
    }
}

type Wide = IoUring<squeue::Entry, cqueue::Entry32>;

/// One with completions of either size.
enum Uring {
    Narrow(IoUring),
    Wide(Wide),
}

fn build<C: cqueue::EntryMarker>(
    setup: Setup,
    sq_entries: u32,
    cq_entries: u32,
) -> io::Result<IoUring<squeue::Entry, C>> {
    let mut builder = IoUring::<squeue::Entry, C>::builder();
    builder.dontfork().setup_clamp().setup_cqsize(cq_entries).setup_submit_all();
    if setup.single_issuer {
        builder.setup_single_issuer().setup_r_disabled();
    }
    if setup.defer_taskrun {
        builder.setup_defer_taskrun().setup_taskrun_flag();
    }
    // Without the flag: it would also tell of work that waits for another thread, which no call of this one does.
    if setup.coop_taskrun {
        builder.setup_coop_taskrun();
    }
    builder.build(sq_entries)
}

impl Uring {
    fn new(setup: Setup, sq_entries: u32, cq_entries: u32) -> io::Result<Self> {
        match setup.wide {
            false => build(setup, sq_entries, cq_entries).map(Self::Narrow),
            true => build(setup, sq_entries, cq_entries).map(Self::Wide),
        }
    }

    fn submitter(&self) -> Submitter<'_> {
        match self {
            Self::Narrow(uring) => uring.submitter(),
            Self::Wide(uring) => uring.submitter(),
        }
    }

    fn submission(&mut self) -> SubmissionQueue<'_, squeue::Entry> {
        match self {
            Self::Narrow(uring) => uring.submission(),
            Self::Wide(uring) => uring.submission(),
        }
    }

    fn params(&self) -> &Parameters {
        match self {
            Self::Narrow(uring) => uring.params(),
            Self::Wide(uring) => uring.params(),
        }
    }

    fn fd(&self) -> RawFd {
        match self {
            Self::Narrow(uring) => uring.as_raw_fd(),
            Self::Wide(uring) => uring.as_raw_fd(),
        }
    }

    fn signal(&mut self, signals: bool) {
        match (self, signals) {
            (Self::Narrow(uring), true) => uring.completion().enable_eventfd(),
            (Self::Narrow(uring), false) => uring.completion().disable_eventfd(),
            (Self::Wide(uring), true) => uring.completion().enable_eventfd(),
            (Self::Wide(uring), false) => uring.completion().disable_eventfd(),
        }
    }
}

/// Completions that lie in the queue.
enum Completions<'a> {
    Narrow(cqueue::CompletionQueue<'a, cqueue::Entry>),
    Wide(cqueue::CompletionQueue<'a, cqueue::Entry32>),
}

impl Iterator for Completions<'_> {
    type Item = Completion;

    fn next(&mut self) -> Option<Completion> {
        match self {
            Self::Narrow(queue) => queue.next().map(|entry| Completion::new(&entry)),
            Self::Wide(queue) => queue.next().map(|entry| Completion::of_wide(&entry)),
        }
    }
}

/// One io_uring.
pub(crate) struct Ring {
    uring: Uring,
    setup: Setup,
    /// Its number with the thread that enabled it, which saves a look-up for each call.
    number: Option<(ThreadId, u32)>,
    /// The read end of a pipe whose write end only the ring holds: it ends when the ring is gone, and with that
    /// everything that used memory of ours (M2).
    gone: OwnedFd,
    eventfd: OwnedFd,
}

impl Ring {
    pub(crate) fn new(setup: Setup, sq_entries: u32, cq_entries: u32) -> Result<Self, Refused> {
        let uring = Uring::new(setup, sq_entries, cq_entries).map_err(Refused::of("io_uring_setup"))?;
        let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (gone, held) = pipe.map_err(|error| Refused::of("pipe")(error.into()))?;
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let eventfd = eventfd.map_err(|error| Refused::of("eventfd")(error.into()))?;
        let submitter = uring.submitter();
        let registered = submitter.register_files(&[held.as_raw_fd()]);
        registered.map_err(Refused::of("io_uring_register"))?;
        submitter.register_eventfd(eventfd.as_raw_fd()).map_err(Refused::of("io_uring_register"))?;
        Ok(Self { uring, setup, number: None, gone, eventfd })
    }

    pub(crate) fn setup(&self) -> Setup {
        self.setup
    }

    /// Is written to when completions come in, unless masked.
    pub(crate) fn eventfd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// From here on the ring belongs to this thread, if it is for one alone.
    pub(crate) fn enable(&mut self) -> io::Result<()> {
        if self.setup.single_issuer {
            self.uring.submitter().register_enable_rings()?;
            let number = register_ring_fd(&self.uring).ok();
            self.number = number.map(|number| (std::thread::current().id(), number));
        }
        Ok(())
    }

    /// Gives the number back, which would keep the ring alive; whether there is none any more. Only its thread can;
    /// if that is another one, it keeps the ring until it ends.
    fn forget_number(&mut self) -> bool {
        let Some((thread, number)) = self.number.take() else { return true };
        thread == std::thread::current().id() && unregister_ring_fd(&self.uring, number)
    }

    pub(crate) fn has_bundles(&self) -> bool {
        self.uring.params().is_feature_recvsend_bundle()
    }

    /// Asks the kernel which operations it has.
    pub(crate) fn opcodes(&self) -> io::Result<impl Fn(Opcode) -> bool + use<>> {
        let mut probe = Probe::new();
        self.uring.submitter().register_probe(&mut probe)?;
        Ok(move |op: Opcode| probe.is_supported(op.code()))
    }

    /// Puts an entry into the submission queue; false: it is full.
    ///
    /// # Safety
    /// What the entry points to stays as it is, and nobody else uses what it writes to, until the last
    /// completion with its user data, or until the ring is gone (M1, M2).
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    pub(crate) fn has_submissions(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// Whether there is something that a look at the completion queue would not show: work that waits for the
    /// thread to ask for it, or completions that did not fit.
    pub(crate) fn has_hidden_work(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.cq_overflow() || queue.taskrun()
    }

    pub(crate) fn has_completions(&mut self) -> bool {
        match &mut self.uring {
            Uring::Narrow(uring) => !uring.completion().is_empty(),
            Uring::Wide(uring) => !uring.completion().is_empty(),
        }
    }

    /// Submits what is queued and runs what waits for this thread; never sleeps. How many entries were taken.
    pub(crate) fn enter(&mut self) -> io::Result<usize> {
        let queued = self.uring.submission().len() as u32;
        let mut flags = EnterFlags::GETEVENTS;
        let fd = match self.number {
            Some((_, number)) => {
                flags |= EnterFlags::REGISTERED_RING;
                number as i32
            }
            None => self.uring.fd(),
        };
        let none = std::ptr::null::<libc::sigset_t>();
        // SAFETY: io_uring_enter(2) with plain integers and no signal mask. What the entries point to is
        // vouched for by who pushed them (M1).
        let taken = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, fd, queued, 0u32, flags.bits(), none, size_of::<usize>())
        };
        if taken < 0 { Err(io::Error::last_os_error()) } else { Ok(taken as usize) }
    }

    /// Takes completions out of the queue, as many as lie there now.
    pub(super) fn completions(&mut self) -> impl Iterator<Item = Completion> {
        match &mut self.uring {
            Uring::Narrow(uring) => Completions::Narrow(uring.completion()),
            Uring::Wide(uring) => Completions::Wide(uring.completion()),
        }
    }

    /// No signal from here on.
    pub(crate) fn mask(&mut self) {
        if MASKS_EVENTFD {
            self.uring.signal(false);
        }
    }

    /// Signals again. Whoever then finds neither completions nor hidden work will get one.
    pub(crate) fn unmask(&mut self) {
        if MASKS_EVENTFD {
            self.uring.signal(true);
        }
        fence(SeqCst);
    }

    /// Makes a ring of receive buffers known.
    ///
    /// # Safety
    /// `base` is the beginning of `entries` entries of 16 bytes, page aligned and writable, which nobody uses
    /// otherwise than the kernel asks, until it is unregistered or the ring is gone (M2).
    pub(crate) unsafe fn register_buffers(
        &self,
        base: *mut u8,
        entries: u16,
        group: u16,
        incremental: bool,
    ) -> io::Result<()> {
        const INCREMENTAL: u16 = 2; // IOU_PBUF_RING_INC
        let flags = if incremental { INCREMENTAL } else { 0 };
        // SAFETY: the caller vouches for the memory.
        unsafe { self.uring.submitter().register_buf_ring_with_flags(base as u64, entries, group, flags) }
    }

    pub(crate) fn unregister_buffers(&self, group: u16) -> io::Result<()> {
        self.uring.submitter().unregister_buf_ring(group)
    }

    /// An empty table for memory that is known ahead.
    pub(crate) fn register_table(&self, places: u32) -> io::Result<()> {
        self.uring.submitter().register_buffers_sparse(places)
    }

    pub(crate) fn unregister_table(&self) -> io::Result<()> {
        self.uring.submitter().unregister_buffers()
    }

    /// Makes memory known; only for the thread that enters the ring, if that is one alone.
    ///
    /// # Safety
    /// The memory is mapped while this runs; from then on the kernel holds its pages. Nobody else uses what an operation
    /// on this place writes to while it is under way (M1, M2).
    pub(crate) unsafe fn register_memory(&self, place: u32, base: *mut u8, len: usize) -> io::Result<()> {
        let part = [libc::iovec { iov_base: base.cast(), iov_len: len }];
        // SAFETY: the caller vouches for the memory, and the description is alive.
        unsafe { self.uring.submitter().register_buffers_update(place, &part, None) }
    }

    /// Forgets what is known at this place; what uses it goes on.
    pub(crate) fn unregister_memory(&self, place: u32) -> io::Result<()> {
        let nothing = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }];
        // SAFETY: no memory is named; the description is alive.
        unsafe { self.uring.submitter().register_buffers_update(place, &nothing, None) }
    }

    /// Makes a receive queue and an area for it known, as `wanted` says, and says there how.
    ///
    /// # Safety
    /// The descriptions and the memory that they name are alive while this runs; from then on the kernel holds the pages. Nobody
    /// reads or writes those otherwise than the kernel asks, until the ring is gone (M1, M2).
    pub(super) unsafe fn register_receive_queue(&self, wanted: *mut io_uring_zcrx_ifq_reg) -> io::Result<()> {
        // SAFETY: the caller vouches for what is named.
        unsafe { register(&self.uring, REGISTER_ZCRX_IFQ, wanted.cast(), 1) }
    }

    /// Has the kernel take all that lies on the refill ring of a receive queue; only for the thread that enters the ring.
    pub(super) fn flush_refill(&self, queue: u32) -> io::Result<()> {
        let mut control = ReceiveControl { queue, operation: FLUSH_REFILL, rest: [0; 8] };
        let control: *mut ReceiveControl = &mut control;
        // SAFETY: io_uring_register(2) reads the one description, which is alive.
        unsafe { register(&self.uring, REGISTER_ZCRX_CTRL, control.cast(), 0) }
    }

    /// Another descriptor of it.
    #[cfg(test)]
    pub(super) fn duplicate(&self) -> OwnedFd {
        use std::os::fd::BorrowedFd;
        // SAFETY: the ring keeps its descriptor open.
        unsafe { BorrowedFd::borrow_raw(self.uring.fd()) }.try_clone_to_owned().unwrap()
    }

    /// Closes the ring. The pipe ends when the kernel is done with it; false: that may be as late as the end of the
    /// ring's thread, and until then nothing is cancelled.
    pub(crate) fn close(mut self) -> (OwnedFd, bool) {
        let goes = self.forget_number();
        (self.gone, goes)
    }
}

/// The argument of `IORING_REGISTER_RING_FDS`.
#[repr(C)]
struct RingFdUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// `struct zcrx_ctrl`.
#[repr(C)]
struct ReceiveControl {
    queue: u32,
    operation: u32,
    rest: [u64; 8],
}

const FLUSH_REFILL: u32 = 0; // ZCRX_CTRL_FLUSH_RQ

const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;
const REGISTER_ZCRX_IFQ: u32 = 32;
const REGISTER_ZCRX_CTRL: u32 = 36;

/// # Safety
/// What `argument` leads to is what the kernel expects there, alive while this runs, and stays so as long as the kernel uses it.
unsafe fn register(uring: &Uring, what: u32, argument: *mut libc::c_void, count: u32) -> io::Result<()> {
    // SAFETY: the caller vouches for the argument.
    let done = unsafe { libc::syscall(libc::SYS_io_uring_register, uring.fd(), what, argument, count) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn update_ring_fds(uring: &Uring, what: u32, update: &mut RingFdUpdate) -> io::Result<()> {
    let update: *mut RingFdUpdate = update;
    // SAFETY: io_uring_register(2) reads and writes the one update, which is alive.
    unsafe { register(uring, what, update.cast(), 1) }
}

fn register_ring_fd(uring: &Uring) -> io::Result<u32> {
    let mut update = RingFdUpdate { offset: u32::MAX, reserved: 0, data: uring.fd() as u64 };
    update_ring_fds(uring, REGISTER_RING_FDS, &mut update)?;
    Ok(update.offset)
}

/// Only for the thread that registered it.
fn unregister_ring_fd(uring: &Uring, number: u32) -> bool {
    let mut update = RingFdUpdate { offset: number, reserved: 0, data: 0 };
    let done = update_ring_fds(uring, UNREGISTER_RING_FDS, &mut update);
    if let Err(error) = &done {
        tracing::debug!(%error, "a ring's number was not given back");
    }
    done.is_ok()
}
