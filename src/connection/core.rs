//! What the handles and the driver of one connection share.
//!
//! Whoever has work does it: a sender talks to the lane under the lock of the sending half, the
//! receiver under that of the receiving half, and the driver does what nobody is there for. Lock
//! order: receiving half, then sending half. Wakers are called when no lock is held ([`super::wake`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::Mutex;
use smallvec::SmallVec;
use zc_core::memory::{BufPool, CopyLedger, LeaseBudget, Message};
use zc_core::transport::{
    Batch, Frame, FrameKind, LaneLimits, LaneRemote, LaneRx, LaneTx, OneSided, Reactor, SendReport, SendToken,
};
use zc_core::wire::{CloseCode, MIN_FRAME_CREDIT_BYTES, RxSeq, SessionRecord, TxSeq};

use super::end::Ending;
use super::error::ConnectionError;
use super::tracked::Tracked;
use super::waiters::{FairQueue, Place};
use super::wake::{Locked, RxWake, TxWake, Watch};
use crate::options::Polling;
use crate::remote::Remote;

/// The peer is told at least every so many messages what has been queued here.
pub(super) const ACK_EVERY: u32 = 1024;
/// Messages beyond the receive window that a lane may deliver, because a batch was under way.
pub const INBOX_SLACK: usize = 64;

/// Batches read in one turn before other tasks get theirs.
pub(super) const READS_PER_TURN: usize = 16;

/// The sending half.
pub(super) struct TxState {
    pub(super) lane: Box<dyn LaneTx>,
    pub(super) seq: TxSeq,
    pub(super) queue: FairQueue,
    /// Who waits for memory of the lane; see [`LaneAlloc`](super::lane_alloc::LaneAlloc).
    pub(super) allocs: FairQueue,
    pub(super) tracked: Tracked,
    pub(super) failed: Option<ConnectionError>,
    /// Set by FIN or by the peer's GOAWAY: data is refused, records still go out.
    pub(super) finished: Option<ConnectionError>,
    /// The last message that the peer takes, once it said GOAWAY.
    pub(super) cut: Option<u64>,
    pub(super) fin_sent: bool,
    /// CLOSE has been handed to the lane: nothing may follow it.
    pub(super) close_sent: bool,
    /// Up to here the peer's messages were taken, and it has yet to be told.
    pub(super) ack_due: Option<u64>,
    /// Something was left in the lane when it was last flushed.
    pub(super) unflushed: bool,
    pub(super) sent_bytes: u64,
    pub(super) stalls: u64,
    pub(super) driver_turns: u64,
    /// Messages that a sink had taken were dropped when sending ended.
    pub(super) parked_lost: bool,
    pub(super) reports: Batch<(SendToken, SendReport)>,
    pub(super) remote: Arc<Remote>,
}

/// The receiving half.
pub(super) struct RxState {
    pub(super) lane: Box<dyn LaneRx>,
    pub(super) batch: Batch<Frame>,
    pub(super) arrived: Arrived,
    /// Nothing more is read.
    pub(super) ended: bool,
    /// The receiver's waker is registered.
    pub(super) waiting: bool,
    pub(super) failed: Option<ConnectionError>,
    /// There is a receiver.
    pub(super) received: bool,
    /// GOAWAY has been said.
    pub(super) go_away_sent: bool,
}

/// What came in.
pub(super) struct Arrived {
    pub(super) seq: RxSeq,
    pub(super) inbox: VecDeque<Message>,
    /// The peer sends no more messages; records may still come.
    pub(super) fin: bool,
    /// The peer asked for an acknowledgement of what came last: it waits.
    pub(super) eager: bool,
    /// No more messages are taken: how many came too late.
    pub(super) refused: Option<u64>,
    /// Taken, and dropped with the receiver.
    pub(super) unread: u64,
    pub(super) bytes: u64,
    /// Something came since the driver last looked.
    pub(super) heard: bool,
    /// When something came, as far as the driver knows.
    pub(super) last_heard: Instant,
    pub(super) pong: Option<u64>,
}

/// Bytes that the session layer sends: `front`, and `len` more that `fill` fills. A full pool must not silence it.
pub(crate) fn control_bytes(
    pool: &BufPool,
    front: &[u8],
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Message {
    match pool.try_alloc(front.len() + len) {
        Ok(mut buf) => {
            buf.put_slice(front);
            fill(&mut buf.unfilled_mut()[..len]);
            buf.advance(len);
            buf.into()
        }
        Err(_) => {
            let mut bytes = Vec::from(front);
            bytes.resize(front.len() + len, 0);
            fill(&mut bytes[front.len()..]);
            bytes.into()
        }
    }
}

pub(super) struct Core {
    tx: Mutex<TxState>,
    rx: Mutex<RxState>,
    pub(super) watch: Arc<Watch>,
    pub(super) rx_waker: Waker,
    pub(super) tx_waker: Waker,
    pub(super) senders: AtomicUsize,
    pub(super) handles: AtomicUsize,
    pub(super) started: Instant,
    pub(super) reactor: Arc<dyn Reactor>,
    /// How one-sided operations wait, which a lane does itself.
    pub(super) polling: Polling,
    pub(super) leases: Arc<LeaseBudget>,
    pub(super) limits: LaneLimits,
    pub(super) max_inbox: usize,
    pub(super) pool: BufPool,
    pub(super) ledger: Arc<CopyLedger>,
    pub(super) remote: Arc<Remote>,
    pub(super) ending: Ending,
    /// The lane sends memory of its own as it is, and copies that of pools.
    pub(super) own_memory: bool,
}

/// What a [`Core`] is made of.
pub(super) struct Halves {
    pub(super) tx: Box<dyn LaneTx>,
    pub(super) rx: Box<dyn LaneRx>,
    pub(super) leases: Arc<LeaseBudget>,
    pub(super) limits: LaneLimits,
    pub(super) pool: BufPool,
    pub(super) ledger: Arc<CopyLedger>,
    pub(super) reactor: Arc<dyn Reactor>,
    pub(super) remote: (OneSided, Option<Box<dyn LaneRemote>>),
    pub(super) ending: Ending,
    pub(super) own_memory: bool,
    pub(super) polling: Polling,
}

impl Core {
    pub(super) fn new(halves: Halves) -> Arc<Self> {
        let watch = Arc::new(Watch::default());
        let started = halves.reactor.now();
        let tx_waker: Waker = Arc::new(TxWake(watch.clone())).into();
        let (mode, lane) = halves.remote;
        let remote = Remote::new(mode, lane, halves.pool.clone(), halves.ledger.clone(), tx_waker.clone());
        Arc::new(Self {
            tx: Mutex::new(TxState {
                lane: halves.tx,
                seq: TxSeq::new(u32::MAX),
                queue: FairQueue::default(),
                allocs: FairQueue::default(),
                tracked: Tracked::default(),
                failed: None,
                finished: None,
                cut: None,
                fin_sent: false,
                close_sent: false,
                ack_due: None,
                unflushed: false,
                sent_bytes: 0,
                stalls: 0,
                driver_turns: 0,
                parked_lost: false,
                reports: Batch::new(),
                remote: remote.clone(),
            }),
            rx: Mutex::new(RxState {
                lane: halves.rx,
                batch: Batch::new(),
                arrived: Arrived {
                    seq: RxSeq::new(ACK_EVERY),
                    inbox: VecDeque::new(),
                    fin: false,
                    eager: false,
                    refused: None,
                    unread: 0,
                    bytes: 0,
                    heard: false,
                    last_heard: started,
                    pong: None,
                },
                ended: false,
                waiting: false,
                failed: None,
                received: true,
                go_away_sent: false,
            }),
            rx_waker: Arc::new(RxWake(watch.clone())).into(),
            tx_waker,
            watch,
            senders: AtomicUsize::new(0),
            handles: AtomicUsize::new(0),
            started,
            reactor: halves.reactor,
            polling: halves.polling,
            leases: halves.leases,
            max_inbox: halves.limits.recv_window as usize / MIN_FRAME_CREDIT_BYTES + INBOX_SLACK,
            limits: halves.limits,
            pool: halves.pool,
            ledger: halves.ledger,
            remote,
            ending: halves.ending,
            own_memory: halves.own_memory,
        })
    }

    pub(super) fn lock_tx(&self) -> Locked<'_, TxState> {
        Locked::new(self.tx.lock())
    }

    pub(super) fn lock_rx(&self) -> Locked<'_, RxState> {
        Locked::new(self.rx.lock())
    }

    /// Ends the connection for everyone; the first reason stays. In one step: whoever is told of it while
    /// receiving finds that nothing can be sent either.
    pub(super) fn fail(&self, error: ConnectionError) {
        let mut rx = self.lock_rx();
        rx.failed.get_or_insert_with(|| error.clone());
        rx.end_reading();
        self.lock_tx().fail(error);
        self.watch.wake_receiver();
        self.watch.wake_driver();
    }

    /// Ends sending. What the peer sent before is still read: its CLOSE may say why.
    pub(super) fn fail_sending(&self, error: ConnectionError) {
        self.lock_tx().fail(error);
        self.watch.wake_driver();
    }

    /// Ends both directions in order: CLOSE follows what was accepted, and later calls see `error`.
    pub(super) fn close(&self, code: CloseCode, reason: &str, error: ConnectionError) {
        let mut rx = self.lock_rx();
        let last_seq = rx.arrived.seq.last();
        rx.failed.get_or_insert_with(|| error.clone());
        let mut tx = self.lock_tx();
        if tx.failed.is_none() {
            // What comes from now on is not received: the peer is told that it was not sent.
            rx.arrived.refused.get_or_insert(0);
            self.push_parked(&mut tx);
            self.push_close(&mut tx, SessionRecord::Close { code, last_seq, reason: reason.into() });
            let _ = tx.lane.poll_close(&mut Context::from_waker(&self.tx_waker));
            tx.fail(error);
        }
        self.watch.wake_receiver();
        self.watch.wake_driver();
    }

    /// Hands over the last record there is; what goes wrong now shows when the lane is closed.
    pub(super) fn push_close(&self, tx: &mut TxState, close: SessionRecord) {
        if !tx.close_sent {
            let _ = self.push_record(tx, &close);
            tx.close_sent = true;
            let _ = self.flush(tx);
        }
    }

    /// Hands a session record to the lane.
    pub(super) fn push_record(
        &self,
        tx: &mut TxState,
        record: &SessionRecord,
    ) -> Result<(), ConnectionError> {
        let mut bytes = SmallVec::<[u8; 64]>::new();
        record.encode(&mut bytes);
        let payload = control_bytes(&self.pool, &bytes, 0, |_| ());
        let frame = Frame { kind: FrameKind::Session, ack: false, seq: 0, payload };
        match tx.lane.start_send(frame, false) {
            Ok(_) => Ok(()),
            Err(rejected) => Err(rejected.error.into()),
        }
    }

    /// Pushes out what the lane holds; what does not fit now is the driver's. True if nothing is left.
    pub(super) fn flush(&self, tx: &mut TxState) -> Result<bool, ConnectionError> {
        self.push_answers(tx)?;
        self.push_ack(tx)?;
        loop {
            let flushed = tx.lane.poll_flush(&mut Context::from_waker(&self.tx_waker));
            tx.unflushed = flushed.is_pending();
            match flushed {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Ready(Ok(())) if self.push_ack(tx)? => {}
                Poll::Ready(Ok(())) => break,
            }
        }
        if tx.queue.flushed() {
            self.watch.wake_driver();
        }
        Ok(true)
    }

    /// Acknowledges what is due, if the lane takes it soon. A lane that is busy with one long message takes nothing else
    /// meanwhile, and the other direction goes on: so what waits is one number, not a record for each batch. True if one
    /// was handed over.
    pub(super) fn push_ack(&self, tx: &mut TxState) -> Result<bool, ConnectionError> {
        if tx.ack_due.is_none() || tx.failed.is_some() || tx.close_sent {
            return Ok(false);
        }
        if tx.unflushed {
            match tx.lane.poll_ready(&mut Context::from_waker(&self.tx_waker), 0) {
                Poll::Pending => return Ok(false),
                Poll::Ready(room) => room?,
            }
        }
        match tx.ack_due.take() {
            Some(seq) => self.push_record(tx, &SessionRecord::Ack { seq }).map(|()| true),
            None => Ok(false),
        }
    }

    /// Somebody waits in the queue, or for the end of a send.
    pub(super) fn wait(&self, tx: &mut TxState, place: &mut Option<Place>, waker: &Waker) {
        if tx.queue.wait(place, waker) {
            tx.stalls += 1;
        }
        self.watch.need();
    }

    /// Gives up a place in the queue.
    pub(super) fn leave(&self, tx: &mut TxState, place: &mut Option<Place>) {
        if place.is_none() {
            return;
        }
        if tx.queue.leave(place) {
            self.watch.wake_driver();
        }
        self.rest(tx);
    }

    /// The same in the queue for memory.
    pub(super) fn leave_allocs(&self, tx: &mut TxState, place: &mut Option<Place>) {
        if place.is_some() {
            let _nothing_is_parked_there = tx.allocs.leave(place);
            self.rest(tx);
        }
    }

    /// Says so if nobody waits any more.
    pub(super) fn rest(&self, tx: &TxState) {
        if tx.queue.is_empty() && tx.allocs.is_empty() && tx.tracked.is_empty() && self.remote.is_quiet() {
            self.watch.need_nothing();
        }
    }
}
