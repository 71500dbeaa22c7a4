//! One lane: its state machines, and the endpoint that moves what they say.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::task::{ArcWake, AtomicWaker};
use parking_lot::Mutex;
use smallvec::SmallVec;
use zc_core::memory::{
    AllocError, AllocWaiter, BufPool, CopyLedger, CopyPlace, Deferral, LeaseBudget, Message, PinnedBuf,
    PinnedBufMut, Pressure, copy_inline, copy_payload,
};
use zc_core::stream::Life;
use zc_core::transport::{Frame, FrameKind, LaneError, LaneLimits, OfferContext, SendReport, SendToken};
use zc_core::wire::WireError;

mod one_sided;
mod receiving;
mod sending;

use super::credit::Credit;
use super::inbound::Inbound;
use super::outbound::{Cut, Left, Out, Reports, Shown, cut};
use super::record::{Announce, Kind, MAX_ANNOUNCE_BYTES, Piece, STATE_BYTES, State, Word};
use super::remote::Remote;
use super::slots::Slots;
use super::starving::{Need, Starving};
use crate::engine::{Endpoint, EndpointEnd, Finished};
use crate::limits::{
    COPY_MAX_BYTES, MAX_PIECES, MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, MAX_QUEUED_RECORD_BYTES,
    MIN_EAGER_BYTES, RECORD_PIECES, RESERVED_WORK,
};
use crate::verbs::{Operation, Received, WindowId, Work, WorkFault, unavailable};
use crate::wire::End;

/// Whom an end of work may concern.
#[derive(Default)]
pub(super) struct Wakers {
    pub(super) tx: AtomicWaker,
    pub(super) rx: AtomicWaker,
    pub(super) drive: AtomicWaker,
    pub(super) remote: AtomicWaker,
}

/// Wakes the one-sided half alone.
struct WakeRemote(Arc<Wakers>);

impl ArcWake for WakeRemote {
    fn wake_by_ref(this: &Arc<Self>) {
        this.0.remote.wake();
    }
}

impl ArcWake for Wakers {
    fn wake_by_ref(this: &Arc<Self>) {
        this.tx.wake();
        this.rx.wake();
        this.drive.wake();
    }
}

/// What both halves and the drive share.
pub(super) struct Shared {
    pub(super) core: Mutex<Core>,
    pub(super) wakers: Arc<Wakers>,
}

/// What the end of a work request is about: the upper byte of its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Nothing,
    Report(SendToken),
    Read(u64),
    Window(WindowId),
    /// A notification of ours.
    Notification,
}

const TAG_BITS: u32 = 60;

impl About {
    fn tag(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Report(token) => 1 << TAG_BITS | token.0,
            Self::Read(id) => 2 << TAG_BITS | id,
            Self::Window(window) => 3 << TAG_BITS | u64::from(window.0),
            Self::Notification => 4 << TAG_BITS,
        }
    }

    fn of(tag: u64) -> Self {
        let low = tag & ((1 << TAG_BITS) - 1);
        match tag >> TAG_BITS {
            1 => Self::Report(SendToken(low)),
            2 => Self::Read(low),
            3 => Self::Window(WindowId(low as u32)),
            4 => Self::Notification,
            _ => Self::Nothing,
        }
    }
}

/// What the two sides told each other at first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Up to this length messages go at once.
    pub(crate) eager_bytes: usize,
    /// Receive buffers that the peer promised.
    pub(crate) theirs: u32,
    /// Those that we promised.
    pub(crate) ours: u32,
    /// Reads under way.
    pub(crate) max_reads: usize,
    /// The longest packets between the two.
    pub(crate) packet_bytes: usize,
}

pub(super) struct Core {
    pub(super) endpoint: Endpoint,
    wakers: Arc<Wakers>,
    /// All of them.
    waker: Waker,
    /// The one-sided half alone.
    remote_waker: Waker,
    terms: Terms,
    /// What the peer said of its queue pair.
    peer: End,
    limits: LaneLimits,
    tx_pool: BufPool,
    rx_pool: BufPool,
    ledger: Arc<CopyLedger>,
    pub(super) leases: Arc<LeaseBudget>,
    pub(super) life: Life,
    slots: Slots,
    pub(super) credit: Credit,

    queue: VecDeque<Out>,
    queued_bytes: usize,
    record_bytes: usize,
    tokens: u64,
    /// The number of the next data message, as the peer expects it.
    next_seq: u64,
    shown: Shown,
    free_windows: Vec<WindowId>,
    windows: usize,
    /// What the peer was told last that it may send, and that we have read.
    told: (u64, u64),
    pub(super) reports: Reports,
    /// Nothing more is taken.
    pub(super) is_shut: bool,
    pub(super) starving: Starving,
    /// Something came that the sending half may wait for.
    pub(super) tx_news: bool,

    inbound: Inbound,
    arrived: VecDeque<(PinnedBufMut, Received)>,
    finished: Vec<Finished>,
    waiter: AllocWaiter,
    expected_seq: u64,
    pub(super) peer_ended: bool,
    /// Reading was given up.
    pub(super) is_stopped: bool,
    /// Of one-sided operations, once there were any.
    remote: Option<Box<Remote>>,
    /// Why nothing more is sent.
    failed: Option<LaneError>,
    /// Why nothing more comes.
    ended: Option<LaneError>,
}

fn end_error(end: &EndpointEnd) -> LaneError {
    match end {
        EndpointEnd::Work(error) if error.fault() == WorkFault::NotAcknowledged => {
            LaneError::PeerGone("it does not acknowledge what is sent")
        }
        EndpointEnd::BeyondShare => WireError::BadValue { field: "rdma slots" }.into(),
        other => LaneError::Other(other.to_string()),
    }
}

impl Core {
    pub(super) fn new(
        endpoint: Endpoint,
        terms: Terms,
        peer: End,
        wakers: Arc<Wakers>,
        cx: &OfferContext,
    ) -> Self {
        let limits = cx.limits;
        let max_read = endpoint.message_bytes() as usize;
        Self {
            slots: Slots::new(terms.theirs, terms.ours, endpoint.share()),
            endpoint,
            waker: futures::task::waker(wakers.clone()),
            remote_waker: futures::task::waker(Arc::new(WakeRemote(wakers.clone()))),
            wakers,
            terms,
            peer,
            limits,
            tx_pool: cx.pool.with_origin("rdma tx"),
            rx_pool: cx.pool.with_origin("rdma rx"),
            ledger: cx.ledger.clone(),
            leases: LeaseBudget::new(limits.lease_soft, limits.lease_hard),
            life: Life::default(),
            credit: Credit::new(limits.send_window, limits.recv_window),
            queue: VecDeque::from([Out::Probe]),
            queued_bytes: 0,
            record_bytes: 0,
            tokens: 0,
            next_seq: 1,
            shown: Shown::default(),
            free_windows: Vec::new(),
            windows: 0,
            told: (limits.recv_window.into(), 0),
            reports: Reports::default(),
            is_shut: false,
            starving: Starving::default(),
            tx_news: false,
            inbound: Inbound::new(limits.recv_max_message as usize, terms.max_reads, max_read),
            arrived: VecDeque::new(),
            finished: Vec::new(),
            waiter: AllocWaiter::new(),
            expected_seq: 1,
            peer_ended: false,
            is_stopped: false,
            remote: None,
            failed: None,
            ended: None,
        }
    }

    pub(super) fn check(&self) -> Result<(), LaneError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Nothing more is sent or comes.
    pub(super) fn fail(&mut self, error: LaneError) -> LaneError {
        self.endpoint.fail(EndpointEnd::QueuePairFailed);
        self.end(error.clone());
        self.ended.get_or_insert(error).clone()
    }

    fn end(&mut self, error: LaneError) {
        self.tx_news = true;
        self.failed.get_or_insert(error);
        self.queue.clear();
        (self.queued_bytes, self.record_bytes) = (0, 0);
        if let Some(remote) = &mut self.remote {
            remote.fail();
            self.wakers.remote.wake();
        }
    }

    /// Takes what has come and what is over. `cx` is the receiving half's.
    pub(super) fn look(&mut self, cx: Option<&Context<'_>>) -> Result<(), LaneError> {
        let mut finished = std::mem::take(&mut self.finished);
        let mut arrived = std::mem::take(&mut self.arrived);
        let end = self.endpoint.look(cx, &mut finished, &mut arrived);
        let mut result = Ok(());
        for one in finished.drain(..) {
            self.finish(one);
        }
        for (buf, info) in arrived.drain(..) {
            if result.is_ok() && self.ended.is_none() {
                result = self.take_in(buf, info);
            } else {
                drop(buf);
            }
        }
        (self.finished, self.arrived) = (finished, arrived);
        if let Err(error) = result {
            return Err(self.fail(error));
        }
        if let Some(end) = end {
            let error = end_error(&end);
            self.end(error.clone());
            self.ended.get_or_insert(error);
        }
        Ok(())
    }

    fn finish(&mut self, finished: Finished) {
        let Finished { work, result } = finished;
        let is_done = result.is_ok();
        match About::of(work.tag) {
            About::Report(token) => {
                self.reports.tell(token, if is_done { SendReport::Sent } else { SendReport::Failed });
            }
            About::Read(id) => {
                if let Operation::Read { into, .. } = work.operation
                    && is_done
                {
                    self.life.show();
                    self.inbound.fetched(id, into);
                }
            }
            // Else it goes with the queue pair.
            About::Window(window) if is_done => {
                drop(self.endpoint.let_go(window));
                self.free_windows.push(window);
                if let Some(token) = self.shown.free(window) {
                    self.reports.tell(token, SendReport::Sent);
                }
            }
            About::Notification if is_done => {
                if let Some(remote) = &mut self.remote {
                    remote.user.told();
                }
            }
            About::Window(_) | About::Notification | About::Nothing => {}
        }
    }

    /// Whether the device knows memory that the pool gave. If not, there is none for now; for too long, it is why the lane ends.
    fn is_registered(&mut self, memory: &PinnedBufMut, need: Need) -> Result<bool, LaneError> {
        let Err(error) = self.endpoint.register(memory.region()) else {
            self.starving.not_refused(need);
            return Ok(true);
        };
        if self.starving.refused(need, self.endpoint.now()) {
            return Ok(false);
        }
        let why = unavailable(error, memory.region().map_or(0, |region| region.len()));
        Err(LaneError::Other(format!("memory of the pool can't be registered: {why}: {}", why.remedy())))
    }

    /// Has the halves woken when work is over.
    pub(super) fn await_work(&self, sends: bool) {
        self.endpoint.await_work(&Context::from_waker(&self.waker), sends);
    }
}

#[allow(clippy::disallowed_methods, reason = "session records, and what is counted as inline")]
fn copy_unseen(to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(from);
}

const _: () = assert!(STATE_BYTES <= MIN_EAGER_BYTES && MAX_ANNOUNCE_BYTES <= MIN_EAGER_BYTES);
