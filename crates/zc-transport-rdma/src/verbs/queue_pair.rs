//! A connection of a device.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::*};

use parking_lot::Mutex;
use smallvec::SmallVec;
use zc_core::memory::{PinnedBuf, Region};

use super::completion_queue::{CompletionQueue, State};
use super::error::{PostError, VerbsError};
use super::exported::{RemoteAccess, Showable};
use super::flights::{Flight, QueueId};
use super::protection_domain::{ProtectionDomain, Registered};
use super::shared_receive_queue::{SharedReceiveQueue, taken};
use super::slab::Token;
use super::windows::{WindowId, Windows};
use super::work::{Operation, RemotePlace, Unfit, WORD_BYTES, Work};
use crate::gid::{Gid, GidEntry};
use crate::limits::{
    HOP_LIMIT, INLINE_BYTES, POST_BATCH, RETRIES, RETRY_TIMEOUT_CODE, RNR_RETRIES, RNR_TIMER_CODE,
    SEND_DEPTH, SEND_SEGMENTS, SIGNAL_DIVISOR,
};
use crate::sys;
use crate::wire::{PathMtu, Psn, QueuePairNumber};

/// What a queue pair is asked to have, and what it was granted.
///
/// ```
/// use zc_transport_rdma::QueuePairCaps;
///
/// let caps = QueuePairCaps { depth: 16, ..QueuePairCaps::default() };
/// assert!(caps.segments >= 1);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePairCaps {
    /// Work requests under way.
    pub depth: u32,
    /// Pieces that one gathers.
    pub segments: u32,
    /// Bytes that are sent out of the request itself.
    pub inline_bytes: u32,
}

impl Default for QueuePairCaps {
    fn default() -> Self {
        Self { depth: SEND_DEPTH, segments: SEND_SEGMENTS, inline_bytes: INLINE_BYTES }
    }
}

/// How far a queue pair is.
///
/// ```
/// use zc_transport_rdma::QueuePairState;
///
/// assert!(QueuePairState::Reset < QueuePairState::Sending);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum QueuePairState {
    /// New.
    Reset,
    /// At a port.
    Init,
    /// It hears the peer.
    Receiving,
    /// Connected.
    Sending,
    /// Nothing more is begun; what was is given back.
    Failed,
}

const STATES: [QueuePairState; 5] = [
    QueuePairState::Reset,
    QueuePairState::Init,
    QueuePairState::Receiving,
    QueuePairState::Sending,
    QueuePairState::Failed,
];

/// The way to a peer's queue pair.
///
/// ```
/// use zc_transport_rdma::{Gid, GidEntry, GidKind, Path, PathMtu, Psn, QueuePairNumber};
///
/// let local = GidEntry { gid: Gid::from_ip([10, 0, 0, 1].into()), index: 1, port: 1, kind: GidKind::RoceV2 };
/// let path = Path {
///     local,
///     gid: Gid::from_ip([10, 0, 0, 2].into()),
///     number: QueuePairNumber::new(17).unwrap(),
///     psn: Psn::new(0x1234),
///     mtu: PathMtu::from_bytes(1024).unwrap(),
///     reads: 8,
/// };
/// assert_eq!(path.mtu.bytes(), 1024);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Where it leaves us.
    pub local: GidEntry,
    /// The peer's port.
    pub gid: Gid,
    /// The peer's queue pair.
    pub number: QueuePairNumber,
    /// The number of the peer's first packet.
    pub psn: Psn,
    /// The longest packets.
    pub mtu: PathMtu,
    /// Reads and atomics of the peer that are served at a time.
    pub reads: u8,
}

/// A reliable connected queue pair, whose receive buffers are a shared queue's, if it has any.
///
/// ```text
/// Reset --init--> Init --receive--> Receiving --send--> Sending
///   any --fail--> Failed: all that is under way ends, as flushed
/// ```
///
/// ```
/// # use zc_transport_rdma::*;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(devices) = Device::all() else { return Ok(()) };
/// # let context = devices[0].open()?;
/// # let domain = ProtectionDomain::new(&context)?;
/// # let completions = CompletionQueue::new(&context, 512)?;
/// # let receives = SharedReceiveQueue::new(&domain, &completions, 16)?;
/// let queue_pair = QueuePair::new(&domain, &receives, QueuePairCaps::default())?;
/// assert_eq!(queue_pair.state(), QueuePairState::Reset);
/// println!("number {}, {:?}", queue_pair.number(), queue_pair.caps());
/// # Ok(())
/// # }
/// ```
pub struct QueuePair {
    /// Taken down in front of all else.
    windows: ManuallyDrop<Mutex<Windows>>,
    domain: Arc<ProtectionDomain>,
    completions: Arc<CompletionQueue>,
    /// None: it receives nothing.
    receives: Option<Arc<SharedReceiveQueue>>,
    raw: NonNull<sys::ibv_qp>,
    number: QueuePairNumber,
    id: QueueId,
    caps: QueuePairCaps,
    /// Transitions happen one after the other.
    transition: Mutex<()>,
    state: AtomicU8,
    /// Reads and atomics that it begins at a time; as many as can be until that is known.
    reads: AtomicU8,
}

// SAFETY: the library's objects may be used from any thread, several at a time (its manual).
unsafe impl Send for QueuePair {}
// SAFETY: as for Send.
unsafe impl Sync for QueuePair {}

impl std::fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("QueuePair");
        f.field("number", &self.number).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl QueuePair {
    /// A queue pair that is not connected; its completions come where those of `receives` do.
    ///
    /// # Errors
    /// What the library says; `ENOSPC` if the completion queue is too short for one more.
    pub fn new(
        domain: &Arc<ProtectionDomain>,
        receives: &Arc<SharedReceiveQueue>,
        wanted: QueuePairCaps,
    ) -> Result<Self, VerbsError> {
        // By their handles alone the kernel would take another device's queues for its own.
        if !Arc::ptr_eq(domain, receives.domain()) {
            return Err(VerbsError { operation: "a queue pair of two domains", errno: libc::EINVAL });
        }
        Self::create(domain, receives.completions(), Some(receives), wanted)
    }

    /// One that receives nothing: what its peer sends is refused, and only reads, writes and atomics go over it.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn one_sided(
        domain: &Arc<ProtectionDomain>,
        completions: &Arc<CompletionQueue>,
        wanted: QueuePairCaps,
    ) -> Result<Self, VerbsError> {
        if !Arc::ptr_eq(domain.context(), completions.context()) {
            return Err(VerbsError { operation: "a queue pair of two devices", errno: libc::EINVAL });
        }
        Self::create(domain, completions, None, wanted)
    }

    fn create(
        domain: &Arc<ProtectionDomain>,
        completions: &Arc<CompletionQueue>,
        receives: Option<&Arc<SharedReceiveQueue>>,
        wanted: QueuePairCaps,
    ) -> Result<Self, VerbsError> {
        let id = completions.open(wanted.depth)?;
        let close = |_: &VerbsError| completions.close(id);
        let (raw, granted) =
            create(domain, completions, receives.map(|all| &**all), wanted).inspect_err(close)?;
        // SAFETY: just made, and laid out so in all versions.
        let number = unsafe { (*raw.as_ptr()).qp_num };
        let Some(number) = QueuePairNumber::new(number) else {
            // SAFETY: just made, and nothing was posted (M4).
            unsafe { (domain.context().verbs().destroy_qp)(raw.as_ptr()) };
            return Err(VerbsError { operation: "ibv_create_qp", errno: libc::EPROTO }).inspect_err(close);
        };
        Ok(Self {
            windows: ManuallyDrop::new(Mutex::new(Windows::new(domain))),
            domain: domain.clone(),
            completions: completions.clone(),
            receives: receives.cloned(),
            raw,
            number,
            id,
            // The queue may be deeper than what was asked for; its completions have no more room than that.
            caps: QueuePairCaps {
                depth: wanted.depth,
                segments: granted.max_send_sge,
                inline_bytes: granted.max_inline_data,
            },
            transition: Mutex::new(()),
            state: AtomicU8::new(QueuePairState::Reset as u8),
            reads: AtomicU8::new(u8::MAX),
        })
    }

    /// By which peers find it.
    pub fn number(&self) -> QueuePairNumber {
        self.number
    }

    /// By which its completions are known.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// What was granted.
    pub fn caps(&self) -> QueuePairCaps {
        self.caps
    }

    /// How far it is, as far as is known here: a device fails it by itself.
    pub fn state(&self) -> QueuePairState {
        STATES[usize::from(self.state.load(Acquire)).min(STATES.len() - 1)]
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> u32 {
        self.completions.state().flights.count(self.id)
    }

    /// How many more it takes.
    pub fn room(&self) -> u32 {
        self.completions.state().flights.room(self.id)
    }

    /// Binds it to a port, with what its peer may do with exported memory.
    ///
    /// # Errors
    /// `EINVAL` out of turn, and what the library says.
    pub fn init(&self, port: u8, access: RemoteAccess) -> Result<(), VerbsError> {
        let mut attr = attributes(sys::IBV_QPS_INIT);
        attr.port_num = port;
        attr.qp_access_flags = access.flags() as u32;
        let mask = sys::IBV_QP_PKEY_INDEX | sys::IBV_QP_PORT | sys::IBV_QP_ACCESS_FLAGS;
        self.step(QueuePairState::Reset, QueuePairState::Init, attr, mask)
    }

    /// Has it hear the peer.
    ///
    /// # Errors
    /// `EINVAL` out of turn, and what the library says.
    pub fn receive(&self, path: &Path) -> Result<(), VerbsError> {
        let mut attr = attributes(sys::IBV_QPS_RTR);
        attr.path_mtu = path.mtu.code().into();
        attr.dest_qp_num = path.number.value();
        attr.rq_psn = path.psn.value();
        attr.max_dest_rd_atomic = path.reads;
        attr.min_rnr_timer = RNR_TIMER_CODE;
        attr.ah_attr.is_global = 1;
        attr.ah_attr.port_num = path.local.port;
        attr.ah_attr.grh.dgid.raw = path.gid.0;
        attr.ah_attr.grh.sgid_index = path.local.index;
        attr.ah_attr.grh.hop_limit = HOP_LIMIT;
        let mask = sys::IBV_QP_AV
            | sys::IBV_QP_PATH_MTU
            | sys::IBV_QP_DEST_QPN
            | sys::IBV_QP_RQ_PSN
            | sys::IBV_QP_MAX_DEST_RD_ATOMIC
            | sys::IBV_QP_MIN_RNR_TIMER;
        self.step(QueuePairState::Init, QueuePairState::Receiving, attr, mask)
    }

    /// Has it send: its first packet has the number `psn`, and at most `reads` reads and atomics are under way. If that is
    /// none, they are refused: devices would wait for ever with them, and with all that follows.
    ///
    /// # Errors
    /// `EINVAL` out of turn, and what the library says.
    pub fn send(&self, psn: Psn, reads: u8) -> Result<(), VerbsError> {
        let mut attr = attributes(sys::IBV_QPS_RTS);
        attr.sq_psn = psn.value();
        attr.max_rd_atomic = reads;
        attr.timeout = RETRY_TIMEOUT_CODE;
        attr.retry_cnt = RETRIES;
        attr.rnr_retry = RNR_RETRIES;
        let mask = sys::IBV_QP_SQ_PSN
            | sys::IBV_QP_MAX_QP_RD_ATOMIC
            | sys::IBV_QP_TIMEOUT
            | sys::IBV_QP_RETRY_CNT
            | sys::IBV_QP_RNR_RETRY;
        self.step(QueuePairState::Receiving, QueuePairState::Sending, attr, mask)
    }

    /// Begins nothing more; what is under way comes back. May be called at any time.
    ///
    /// # Errors
    /// What the library says. Nothing more is posted then, either.
    pub fn fail(&self) -> Result<(), VerbsError> {
        let _one_at_a_time = self.transition.lock();
        if self.state.swap(QueuePairState::Failed as u8, AcqRel) == QueuePairState::Failed as u8 {
            return Ok(());
        }
        self.modify(attributes(sys::IBV_QPS_ERR), 0)
    }

    fn step(
        &self,
        from: QueuePairState,
        to: QueuePairState,
        attr: sys::ibv_qp_attr,
        mask: c_int,
    ) -> Result<(), VerbsError> {
        let _one_at_a_time = self.transition.lock();
        if self.state() != from {
            return Err(VerbsError { operation: "ibv_modify_qp out of turn", errno: libc::EINVAL });
        }
        self.modify(attr, mask)?;
        if mask & sys::IBV_QP_MAX_QP_RD_ATOMIC != 0 {
            self.reads.store(attr.max_rd_atomic, Relaxed);
        }
        self.state.store(to as u8, Release);
        Ok(())
    }

    fn modify(&self, mut attr: sys::ibv_qp_attr, mask: c_int) -> Result<(), VerbsError> {
        let modify = self.domain.context().verbs().modify_qp;
        // SAFETY: the queue pair exists (M4); the library reads what the mask names.
        let returned = unsafe { modify(self.raw.as_ptr(), &mut attr, mask | sys::IBV_QP_STATE) };
        VerbsError::check("ibv_modify_qp", returned)
    }

    /// A memory window more, which shows nothing yet. They go with the queue pair.
    ///
    /// # Errors
    /// `EOPNOTSUPP`, or what else the library says.
    pub fn add_window(&self) -> Result<WindowId, VerbsError> {
        self.windows.lock().add()
    }

    /// What a window will show the peer, for reading, once it is [bound](Operation::Bind); it holds the memory until it is
    /// [let go of](Self::let_go). Memory that is not registered is.
    ///
    /// # Errors
    /// The memory can't be registered, or the window shows something already.
    pub fn aim(&self, window: WindowId, memory: PinnedBuf) -> Result<RemotePlace, Unfit> {
        let region = memory.region().ok_or(Unfit::NotRegistered)?;
        self.domain.lkey(region).map_err(|_| Unfit::NotRegistered)?;
        self.windows.lock().aim(window, memory).ok_or(Unfit::Window)
    }

    /// What a window will let the peer do with exported memory, once it is [bound](Operation::Bind), until it is
    /// [closed](Self::close_window).
    ///
    /// # Errors
    /// What the library says.
    pub fn open_window(
        &self,
        memory: Arc<Showable>,
        access: RemoteAccess,
    ) -> Result<(WindowId, RemotePlace), VerbsError> {
        let mut windows = self.windows.lock();
        let window = windows.add()?;
        let place = windows.open(window, memory, access);
        // It is new, so it shows nothing yet.
        place
            .map(|place| (window, place))
            .ok_or(VerbsError { operation: "a memory window", errno: libc::EBUSY })
    }

    /// Ends a window at once: the device lets nobody in by it any more. A request that binds it and was not handed over can't be
    /// any more; one that the device has binds nothing.
    ///
    /// # Errors
    /// What the library says. The device may go on as before, and what the window shows is leaked.
    pub fn close_window(&self, window: WindowId) -> Result<(), VerbsError> {
        // Whoever hands over requests holds that one from when a window's pointer is copied into a request until the library has
        // read all through it. So nobody is at it, and nobody finds it from here on.
        let posting = self.completions.state();
        let gone = self.windows.lock().take(window);
        drop(posting);
        gone.map_or(Ok(()), |gone| gone.end(&self.domain))
    }

    /// What a window has shown: for when the device has said that it is invalid.
    pub fn let_go(&self, window: WindowId) -> Option<PinnedBuf> {
        self.windows.lock().let_go(window)
    }

    /// Makes sure that this queue pair can do it, registering memory that is not. That takes a while for a long region.
    ///
    /// # Errors
    /// Why it can't.
    pub fn prepare(&self, work: &Work) -> Result<(), Unfit> {
        if !self.goes_inline(work) {
            let of_target = match &work.operation {
                Operation::Read { into, .. }
                | Operation::CompareSwap { into, .. }
                | Operation::FetchAdd { into, .. } => Some(into.region().cloned()),
                _ => None,
            };
            let of_payload =
                work.payload().into_iter().flat_map(|all| all.segments()).map(|one| one.region().cloned());
            for region in of_payload.chain(of_target) {
                let region: Region = region.ok_or(Unfit::NotRegistered)?;
                self.domain.lkey(&region).map_err(|error| {
                    tracing::debug!(%error, "memory can't be sent from where it lies");
                    Unfit::NotRegistered
                })?;
            }
        }
        self.fits(work)
    }

    fn fits(&self, work: &Work) -> Result<(), Unfit> {
        let too_long =
            |len: usize, max: usize| if len > max { Err(Unfit::TooLong { len, max }) } else { Ok(()) };
        if !work.is_one_way() && self.reads.load(Relaxed) == 0 {
            return Err(Unfit::NoReads);
        }
        match &work.operation {
            Operation::Read { into, len, .. } => {
                too_long(*len, (into.capacity() - into.len()).min(MAX_TRANSFER))
            }
            Operation::Bind { window } | Operation::Invalidate { window } => {
                self.windows.lock().key(*window).map(drop).ok_or(Unfit::Window)
            }
            Operation::CompareSwap { into, .. } | Operation::FetchAdd { into, .. } => {
                too_long(WORD_BYTES, into.capacity())
            }
            Operation::Send { payload, .. } | Operation::Write { payload, .. } => {
                let (count, max) = (payload.segments().len(), self.caps.segments as usize);
                if count > max {
                    return Err(Unfit::Segments { count, max });
                }
                too_long(payload.len(), MAX_TRANSFER)
            }
        }
    }

    /// Whether a request carries its bytes itself.
    fn goes_inline(&self, work: &Work) -> bool {
        work.payload().is_some_and(|payload| payload.len() <= self.caps.inline_bytes as usize)
    }

    /// Hands over requests from the front, as many as there is room for and at most [`POST_BATCH`], ringing the doorbell
    /// once; says how many. They were [prepared](Self::prepare). The last one is signalled, whether it wants to be or not.
    ///
    /// # Errors
    /// Those that were not handed over are still there.
    pub fn post(&self, work: &mut VecDeque<Work>) -> Result<usize, PostError> {
        let mut state = self.completions.state();
        if self.state() != QueuePairState::Sending {
            return Err(PostError::NotReady);
        }
        let room = work.len().min(POST_BATCH).min(state.flights.room(self.id) as usize);
        let mut batch = Batch::default();
        if work.iter().take(room).any(|work| matches!(work.operation, Operation::Bind { .. })) {
            // While it is held nothing is deregistered that a request names by its pointer.
            batch.regions = Some(self.domain.registered());
        }
        while batch.requests.len() < room {
            match work.front_mut().map(|next| self.describe(next, &mut batch)) {
                Some(Ok(())) => {}
                Some(Err(unfit)) if batch.requests.is_empty() => return Err(unfit.into()),
                Some(Err(_)) | None => break,
            }
            let Some(next) = work.pop_front() else { break };
            self.own(next, &mut batch, &mut state);
        }
        // Only here is it known which one is the last: perhaps nothing follows that would end it, too.
        let Some(last) = batch.requests.last_mut() else { return Ok(0) };
        last.send_flags |= sys::IBV_SEND_SIGNALED;
        state.flights.was_signalled(self.id);
        let posted = self.ring(&mut batch);
        batch.regions = None;
        if posted.is_ok() && !batch.bound.is_empty() {
            let mut windows = self.windows.lock();
            batch.bound.iter().for_each(|window| windows.was_bound(*window));
        }
        let Err((error, taken)) = posted else { return Ok(batch.requests.len()) };
        for token in batch.tokens.drain(taken..).rev() {
            if let Some(Flight::Send { work: back, .. }) = state.flights.undo(token) {
                work.push_front(back);
            }
        }
        drop(state);
        // What the device has of them must come back as flushed.
        if let Err(error) = self.fail() {
            tracing::debug!(%error, "a queue pair that refuses work can't be failed");
        }
        Err(error.into())
    }

    /// Describes a request behind those in the batch.
    fn describe(&self, work: &mut Work, batch: &mut Batch<'_>) -> Result<(), Unfit> {
        self.fits(work)?;
        let inline = self.goes_inline(work);
        let first_piece = batch.pieces.len();
        if let Err(unfit) = self.pieces(work, inline, batch) {
            batch.pieces.truncate(first_piece);
            return Err(unfit);
        }
        let mut bind_mw = NO_WINDOW;
        let (opcode, immediate, wr) = match &work.operation {
            Operation::Bind { window } => {
                let region = |memory: &PinnedBuf| batch.regions.as_ref()?.raw(memory.region()?.id());
                bind_mw = self.windows.lock().description(*window, region).ok_or(Unfit::NotRegistered)?;
                batch.bound.push(*window);
                (sys::IBV_WR_BIND_MW, 0, NO_TARGET)
            }
            Operation::Invalidate { window } => {
                let key = self.windows.lock().key(*window).ok_or(Unfit::Window)?;
                // In the order of this machine, and below all is put into the network's.
                (sys::IBV_WR_LOCAL_INV, u32::from_be(key), NO_TARGET)
            }
            other => target(other),
        };
        let flag = |wanted: bool, flag| if wanted { flag } else { 0 };
        batch.first_piece.push(first_piece);
        batch.requests.push(sys::ibv_send_wr {
            wr_id: 0,
            next: null_mut(),
            sg_list: null_mut(),
            num_sge: (batch.pieces.len() - first_piece) as c_int,
            opcode,
            send_flags: flag(inline, sys::IBV_SEND_INLINE) | flag(work.fenced, sys::IBV_SEND_FENCE),
            imm_data: immediate.to_be(),
            wr,
            qp_type: 0,
            bind_mw,
        });
        Ok(())
    }

    /// The pieces of memory of a request. None is empty: to some devices a length of 0 means 2 GiB.
    fn pieces(&self, work: &mut Work, inline: bool, batch: &mut Batch<'_>) -> Result<(), Unfit> {
        let known = |region: Option<&Region>| region.and_then(|region| self.domain.known(region));
        let appends = matches!(work.operation, Operation::Read { .. });
        if let Some((buf, filled)) = work.target_mut() {
            let lkey = known(buf.region()).ok_or(Unfit::NotRegistered)?;
            if !appends {
                buf.clear();
            }
            let length = filled - buf.len();
            let addr = buf.unfilled_mut().as_mut_ptr().expose_provenance() as u64;
            if length > 0 {
                batch.pieces.push(sys::ibv_sge { addr, length: length as u32, lkey });
            }
            return Ok(());
        }
        let of_payload = work.payload().into_iter().flat_map(|payload| payload.segments());
        for piece in of_payload.filter(|piece| !piece.is_empty()) {
            let lkey = if inline { 0 } else { known(piece.region()).ok_or(Unfit::NotRegistered)? };
            let addr = piece.as_ptr().expose_provenance() as u64;
            batch.pieces.push(sys::ibv_sge { addr, length: piece.len() as u32, lkey });
        }
        Ok(())
    }

    /// From here on the completion queue owns the memory of the request that was described last (M1).
    fn own(&self, work: Work, batch: &mut Batch<'_>, state: &mut State) {
        let wanted = work.signalled || !work.is_one_way();
        let every = (self.caps.depth / SIGNAL_DIVISOR).max(1);
        let signal = state.flights.signal(self.id, wanted, every);
        let token = state.flights.begin(Flight::Send { queue: self.id, work });
        if let Some(request) = batch.requests.last_mut() {
            request.wr_id = token.to_bits();
            request.send_flags |= if signal { sys::IBV_SEND_SIGNALED } else { 0 };
        }
        batch.tokens.push(token);
    }

    /// Hands a batch to the device; after an error with how many it has.
    fn ring(&self, batch: &mut Batch<'_>) -> Result<(), (VerbsError, usize)> {
        let count = batch.requests.len();
        let (first, pieces) = (batch.requests.as_mut_ptr(), batch.pieces.as_mut_ptr());
        for (index, first_piece) in batch.first_piece.iter().enumerate() {
            // SAFETY: both lists are complete and do not move any more; the indices are theirs.
            unsafe {
                let request = first.add(index);
                (*request).sg_list = pieces.add(*first_piece);
                (*request).next = if index + 1 < count { first.add(index + 1) } else { null_mut() };
            }
        }
        let mut bad = null_mut();
        let post = self.domain.context().operations().post_send;
        // SAFETY: a list that ends with null, and is the caller's again when this returns; so is memory that is sent
        // inline. All other memory in it is owned by the completion queue until its completions were taken (M1, M2). The
        // queue pair exists (M4).
        let returned = unsafe { post(self.raw.as_ptr(), first, &mut bad) };
        VerbsError::check("ibv_post_send", returned).map_err(|error| (error, taken(first, bad, count)))
    }
}

/// The longest transfer, as the protocol has it.
const MAX_TRANSFER: usize = 1 << 31;

const NO_WINDOW: sys::send_wr_bind_mw = sys::send_wr_bind_mw {
    mw: null_mut(),
    rkey: 0,
    bind_info: sys::ibv_mw_bind_info { mr: null_mut(), addr: 0, length: 0, mw_access_flags: 0 },
};

/// Requests that are handed over together.
#[derive(Default)]
struct Batch<'a> {
    requests: SmallVec<[sys::ibv_send_wr; POST_BATCH]>,
    pieces: SmallVec<[sys::ibv_sge; 2 * POST_BATCH]>,
    /// Where those of each request begin.
    first_piece: SmallVec<[usize; POST_BATCH]>,
    tokens: SmallVec<[Token; POST_BATCH]>,
    /// Held if windows are bound to some of them.
    regions: Option<Registered<'a>>,
    bound: SmallVec<[WindowId; POST_BATCH]>,
}

/// Of requests that are about no memory of the peer's.
const NO_TARGET: sys::send_wr_target =
    sys::send_wr_target { atomic: sys::send_wr_atomic { remote_addr: 0, compare_add: 0, swap: 0, rkey: 0 } };

/// The code of an operation, the word that goes with it, and what it is about at the peer's.
fn target(operation: &Operation) -> (c_int, u32, sys::send_wr_target) {
    let rdma = |remote_addr, rkey| sys::send_wr_target { rdma: sys::send_wr_rdma { remote_addr, rkey } };
    // All of the union is set, also where the device reads only some of it.
    let atomic = |at: &super::work::RemotePlace, compare_add, swap| sys::send_wr_target {
        atomic: sys::send_wr_atomic { remote_addr: at.address, compare_add, swap, rkey: at.key },
    };
    match operation {
        Operation::Send { immediate: None, .. } => (sys::IBV_WR_SEND, 0, rdma(0, 0)),
        Operation::Send { immediate: Some(word), .. } => (sys::IBV_WR_SEND_WITH_IMM, *word, rdma(0, 0)),
        Operation::Write { to, immediate: None, .. } => (sys::IBV_WR_RDMA_WRITE, 0, rdma(to.address, to.key)),
        Operation::Write { to, immediate: Some(word), .. } => {
            (sys::IBV_WR_RDMA_WRITE_WITH_IMM, *word, rdma(to.address, to.key))
        }
        Operation::Read { from, .. } => (sys::IBV_WR_RDMA_READ, 0, rdma(from.address, from.key)),
        Operation::CompareSwap { at, compare, swap, .. } => {
            (sys::IBV_WR_ATOMIC_CMP_AND_SWP, 0, atomic(at, *compare, *swap))
        }
        Operation::FetchAdd { at, add, .. } => (sys::IBV_WR_ATOMIC_FETCH_AND_ADD, 0, atomic(at, *add, 0)),
        // These are about our own memory.
        Operation::Bind { .. } => (sys::IBV_WR_BIND_MW, 0, NO_TARGET),
        Operation::Invalidate { .. } => (sys::IBV_WR_LOCAL_INV, 0, NO_TARGET),
    }
}

fn attributes(state: c_int) -> sys::ibv_qp_attr {
    // SAFETY: plain numbers, of which zero is a value.
    let mut attr: sys::ibv_qp_attr = unsafe { std::mem::zeroed() };
    attr.qp_state = state;
    attr
}

fn create(
    domain: &ProtectionDomain,
    completions: &CompletionQueue,
    receives: Option<&SharedReceiveQueue>,
    wanted: QueuePairCaps,
) -> Result<(NonNull<sys::ibv_qp>, sys::ibv_qp_cap), VerbsError> {
    let mut inline_bytes = wanted.inline_bytes;
    // A queue of its own, into which nothing is put; some devices have none of length 0.
    let own_receives = u32::from(receives.is_none());
    loop {
        let cap = sys::ibv_qp_cap {
            max_send_wr: wanted.depth,
            max_recv_wr: own_receives,
            max_send_sge: wanted.segments,
            max_recv_sge: own_receives,
            max_inline_data: inline_bytes,
        };
        let mut attr = sys::ibv_qp_init_attr {
            qp_context: null_mut(),
            send_cq: completions.raw(),
            recv_cq: completions.raw(),
            srq: receives.map_or(null_mut(), SharedReceiveQueue::raw),
            cap,
            qp_type: sys::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: all that it is made of exists (M4), and is of one context (`QueuePair::new`).
        let raw = unsafe { (domain.context().verbs().create_qp)(domain.raw(), &mut attr) };
        match VerbsError::non_null("ibv_create_qp", raw) {
            Ok(raw) => return Ok((raw, attr.cap)),
            // Devices refuse more than they have, instead of granting less.
            Err(error) if error.errno == libc::EINVAL && inline_bytes > 0 => inline_bytes /= 2,
            Err(error) => return Err(error),
        }
    }
}

impl Drop for QueuePair {
    /// What was not completed comes back, too: a device is done with what it no longer has.
    fn drop(&mut self) {
        if !self.domain.context().is_ours() {
            return;
        }
        // Nothing is read any more when that has failed, and nothing is sent.
        if let Err(error) = self.fail() {
            tracing::debug!(%error, "a queue pair can't be failed");
        }
        // SAFETY: taken once, here (M7).
        drop(unsafe { ManuallyDrop::take(&mut self.windows) });
        // SAFETY: destroyed once; nobody uses it any more (M4).
        let returned = unsafe { (self.domain.context().verbs().destroy_qp)(self.raw.as_ptr()) };
        match VerbsError::check("ibv_destroy_qp", returned) {
            Ok(()) => self.completions.close(self.id),
            Err(error) => {
                tracing::error!(%error, "a queue pair and what it has under way are leaked (M4)");
                std::mem::forget((self.domain.clone(), self.completions.clone(), self.receives.clone()));
            }
        }
    }
}
