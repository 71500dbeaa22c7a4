//! Where completions come in, and who owns what is under way.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::context::{Context, set_nonblocking};
use super::error::{VerbsError, WorkError};
use super::flights::{Completion, Flights, QueueId, Received};
use super::slab::Token;
use crate::limits::{ACK_BATCH, POLL_BATCH};
use crate::sys;

/// A completion queue with a channel that tells of completions, and the owner of all work that ends in it.
///
/// ```
/// use zc_transport_rdma::{CompletionQueue, Device};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(devices) = Device::all() else { return Ok(()) };
/// let queue = CompletionQueue::new(&devices[0].open()?, 64)?;
/// let mut completions = Vec::new();
/// assert_eq!(queue.poll(&mut completions)?, 0);
/// # Ok(())
/// # }
/// ```
pub struct CompletionQueue {
    context: Arc<Context>,
    raw: NonNull<sys::ibv_cq>,
    channel: NonNull<sys::ibv_comp_channel>,
    entries: u32,
    state: Mutex<State>,
}

// SAFETY: the library's objects may be used from any thread, several at a time (its manual).
unsafe impl Send for CompletionQueue {}
// SAFETY: as for Send.
unsafe impl Sync for CompletionQueue {}

/// A place that holds none.
const NO_COMPLETION: sys::ibv_wc = sys::ibv_wc {
    wr_id: 0,
    status: 0,
    opcode: 0,
    vendor_err: 0,
    byte_len: 0,
    imm_data: 0,
    qp_num: 0,
    src_qp: 0,
    wc_flags: 0,
    pkey_index: 0,
    slid: 0,
    sl: 0,
    dlid_path_bits: 0,
};

pub(super) struct State {
    pub(super) flights: Flights,
    /// What all queues together may have under way: it fits the entries, so none is ever lost.
    reserved: u32,
    /// Of that, what belonged to queues that are gone: completions of theirs may still lie in the queue.
    retired: u32,
    /// Signals that were taken and not acknowledged.
    signals: u32,
    /// Where the device puts completions. Kept, since whoever looks for them does so again and again; nothing but zeros in
    /// between, as long as the device does not fail.
    found: Box<[sys::ibv_wc; POLL_BATCH]>,
}

impl std::fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompletionQueue").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl CompletionQueue {
    /// A queue of at least so many entries.
    ///
    /// # Errors
    /// What the library says.
    pub fn new(context: &Arc<Context>, entries: u32) -> Result<Arc<Self>, VerbsError> {
        let verbs = context.verbs();
        // SAFETY: the context is open (M4).
        let channel = unsafe { (verbs.create_comp_channel)(context.raw()) };
        let channel = VerbsError::non_null("ibv_create_comp_channel", channel)?;
        let wanted = i32::try_from(entries).unwrap_or(i32::MAX);
        // SAFETY: of the same open context (M4).
        let raw = unsafe { (verbs.create_cq)(context.raw(), wanted, null_mut(), channel.as_ptr(), 0) };
        let raw = VerbsError::non_null("ibv_create_cq", raw).inspect_err(|_| {
            // SAFETY: nothing was made of it (M4).
            unsafe { (verbs.destroy_comp_channel)(channel.as_ptr()) };
        })?;
        // SAFETY: just made, and laid out so in all versions.
        let granted = unsafe { (*raw.as_ptr()).cqe };
        let found = Box::new([NO_COMPLETION; POLL_BATCH]);
        let state = State { flights: Flights::new(), reserved: 0, retired: 0, signals: 0, found };
        let queue = Arc::new(Self {
            context: context.clone(),
            raw,
            channel,
            // Not what was asked for: if it is less, completions beyond it would be lost.
            entries: u32::try_from(granted).unwrap_or(0),
            state: Mutex::new(state),
        });
        set_nonblocking(queue.channel_fd())
            .map_err(|error| VerbsError { operation: "fcntl", errno: error.raw_os_error().unwrap_or(0) })?;
        Ok(queue)
    }

    /// The device.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_cq {
        self.raw.as_ptr()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// How many work requests are under way.
    pub fn under_way(&self) -> usize {
        self.state.lock().flights.flying()
    }

    /// Completions that named no work request.
    pub fn unknown(&self) -> u64 {
        self.state.lock().flights.unknown()
    }

    /// Opens a queue of the given depth, if all its completions fit, and those of queues that are gone and may still be there.
    pub(super) fn open(&self, depth: u32) -> Result<QueueId, VerbsError> {
        let mut state = self.state.lock();
        let reserved = state.reserved.checked_add(depth).filter(|all| *all <= self.entries);
        state.reserved =
            reserved.ok_or(VerbsError { operation: "room in the completion queue", errno: libc::ENOSPC })?;
        Ok(state.flights.open(depth))
    }

    /// The device is done with a queue: its memory is given back; its room is when nothing is left that was completed
    /// before.
    pub(super) fn close(&self, queue: QueueId) {
        let left = {
            let mut state = self.state.lock();
            let (left, depth) = state.flights.close(queue);
            state.retired += depth;
            left
        };
        // Owners of foreign bytes run where no lock is held.
        drop(left);
    }

    /// Takes out what is complete, at most [`POLL_BATCH`] completions of the device; each may end several requests.
    ///
    /// # Errors
    /// The device is gone.
    pub fn poll(&self, out: &mut Vec<Completion>) -> Result<usize, VerbsError> {
        let poll_cq = self.context.operations().poll_cq;
        // Held over the poll: completions end requests in the order of the queue.
        let state = &mut *self.state.lock();
        // SAFETY: room for as many as is said, which is nobody else's while the lock is held (M6: plain words, copied out below);
        // the queue exists (M4).
        let count = unsafe { poll_cq(self.raw.as_ptr(), POLL_BATCH as i32, state.found.as_mut_ptr()) };
        let count = usize::try_from(count)
            .map_err(|_| VerbsError { operation: "ibv_poll_cq", errno: count.saturating_abs() })?;
        for one in state.found.iter_mut().take(count) {
            // Devices set what has a meaning for a completion, and no more: the rest is zero. After an error only the number, the
            // status, the vendor's word and the queue pair mean something.
            let one = std::mem::replace(one, NO_COMPLETION);
            state.flights.complete(Token::from_bits(one.wr_id), one.qp_num, result(&one), out);
        }
        if count < POLL_BATCH {
            // Whatever queues that are gone had left was taken.
            state.reserved -= std::mem::take(&mut state.retired);
        }
        Ok(count)
    }

    /// How many completions it holds at most.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Asks for a signal with the next completion. What came before gives none: poll again, then sleep.
    ///
    /// # Errors
    /// What the library says.
    pub fn arm(&self) -> Result<(), VerbsError> {
        // SAFETY: the queue exists (M4).
        let returned = unsafe { (self.context.operations().req_notify_cq)(self.raw.as_ptr(), 0) };
        VerbsError::check("ibv_req_notify_cq", returned)
    }

    fn channel_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the library keeps the descriptor open as long as the channel (M4).
        unsafe { BorrowedFd::borrow_raw((*self.channel.as_ptr()).fd) }
    }

    /// A descriptor that can be read when there is a signal.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn signal_fd(&self) -> io::Result<OwnedFd> {
        self.channel_fd().try_clone_to_owned()
    }

    /// Takes one signal, if there is one.
    ///
    /// # Errors
    /// What the library says.
    pub fn take_signal(&self) -> Result<bool, VerbsError> {
        let (mut queue, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel exists (M4), and its descriptor does not block.
        let returned =
            unsafe { (self.context.verbs().get_cq_event)(self.channel.as_ptr(), &mut queue, &mut context) };
        if returned != 0 {
            let error = VerbsError::last("ibv_get_cq_event");
            return if error.errno == libc::EAGAIN { Ok(false) } else { Err(error) };
        }
        let mut state = self.state.lock();
        state.signals += 1;
        if state.signals >= ACK_BATCH {
            self.acknowledge(&mut state);
        }
        Ok(true)
    }

    fn acknowledge(&self, state: &mut State) {
        // SAFETY: so many were taken; the queue exists (M4).
        unsafe { (self.context.verbs().ack_cq_events)(self.raw.as_ptr(), state.signals) };
        state.signals = 0;
    }
}

fn result(one: &sys::ibv_wc) -> Result<Received, WorkError> {
    if one.status != sys::IBV_WC_SUCCESS {
        return Err(WorkError { status: one.status, vendor: one.vendor_err });
    }
    let has_word = one.wc_flags & sys::IBV_WC_WITH_IMM != 0;
    Ok(Received {
        bytes: one.byte_len,
        immediate: has_word.then(|| u32::from_be(one.imm_data)),
        was_write: one.opcode == sys::IBV_WC_RECV_RDMA_WITH_IMM,
    })
}

impl Drop for CompletionQueue {
    /// No queue is left, or those that could not be destroyed would hold this.
    fn drop(&mut self) {
        if !self.context.is_ours() {
            return;
        }
        {
            let mut state = self.state.lock();
            // Destroying waits for it.
            self.acknowledge(&mut state);
        }
        let verbs = self.context.verbs();
        // SAFETY: the queues that used it are gone, for each of those holds it (M4).
        let returned = unsafe { (verbs.destroy_cq)(self.raw.as_ptr()) };
        if let Err(error) = VerbsError::check("ibv_destroy_cq", returned) {
            tracing::error!(%error, "a completion queue is leaked (M4)");
            std::mem::forget(self.context.clone());
            return;
        }
        // SAFETY: its one queue is gone (M4).
        unsafe { (verbs.destroy_comp_channel)(self.channel.as_ptr()) };
    }
}
