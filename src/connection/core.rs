//! What the handles and the driver of one connection share.
//!
//! Whoever has work does it: a sender talks to the lane under the lock of the sending half, the
//! receiver under that of the receiving half, and the driver does what nobody is there for. Lock
//! order: receiving half, then sending half.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use smallvec::SmallVec;
use zc_core::memory::{BufPool, CopyLedger, Message};
use zc_core::transport::{
    Batch, Frame, FrameKind, LaneLimits, LaneRx, LaneTx, Received, SendReport, SendToken,
};
use zc_core::wire::{CloseCode, Delivery, MAX_RECORD, RxSeq, SessionRecord, TxSeq};

use super::error::ConnectionError;
use super::waiters::FairQueue;

/// The peer is told at least every so many messages what has been queued here.
pub(super) const ACK_EVERY: u32 = 1024;
/// Messages queued and not taken by the application, after which reading stops.
pub(super) const MAX_INBOX_MESSAGES: usize = 8192;

pub(super) type Wakers = SmallVec<[Waker; 4]>;

pub(super) fn wake_all(wakers: Wakers) {
    wakers.into_iter().for_each(Waker::wake);
}

/// Wakes the receiver, if it waits, and the driver, which arms the lane again when nobody else does.
pub(super) struct RxWake {
    pub(super) receiver: AtomicWaker,
    pub(super) driver: Arc<DriverWake>,
}

impl Wake for RxWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.receiver.wake();
        self.driver.0.wake();
    }
}

/// Wakes the driver.
#[derive(Default)]
pub(super) struct DriverWake(pub(super) AtomicWaker);

impl Wake for DriverWake {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

/// A send whose end somebody awaits.
pub(super) struct Tracked {
    pub(super) seq: u64,
    pub(super) token: Option<SendToken>,
    pub(super) report: Option<SendReport>,
    pub(super) waker: Waker,
}

/// The sending half.
pub(super) struct TxState {
    pub(super) lane: Box<dyn LaneTx>,
    pub(super) seq: TxSeq,
    pub(super) queue: FairQueue,
    pub(super) tracked: VecDeque<Tracked>,
    pub(super) failed: Option<ConnectionError>,
    /// Set by FIN or by the peer's GOAWAY: data is refused, records still go out.
    pub(super) finished: Option<ConnectionError>,
    pub(super) fin_sent: bool,
    /// CLOSE has been handed to the lane: nothing may follow it.
    pub(super) close_sent: bool,
    pub(super) idle_wakers: Vec<Waker>,
    reports: Batch<(SendToken, SendReport)>,
}

/// The receiving half.
pub(super) struct RxState {
    pub(super) lane: Box<dyn LaneRx>,
    pub(super) seq: RxSeq,
    pub(super) inbox: VecDeque<Message>,
    /// The peer sends no more messages; records may still come.
    pub(super) fin: bool,
    /// Nothing more is read.
    pub(super) ended: bool,
    /// The lane was left pending, with our waker: something new wakes somebody.
    pub(super) armed: bool,
    pub(super) failed: Option<ConnectionError>,
    batch: Batch<Frame>,
}

/// What incoming records ask of the sending half.
#[derive(Default)]
struct Asked {
    pongs: SmallVec<[u64; 2]>,
    ack: Option<u64>,
    fin: bool,
    go_away: Option<(u64, String)>,
    close: Option<(u64, CloseCode, String)>,
}

pub(super) struct Core {
    pub(super) tx: Mutex<TxState>,
    pub(super) rx: Mutex<RxState>,
    pub(super) driver: Arc<DriverWake>,
    pub(super) rx_wake: Arc<RxWake>,
    pub(super) rx_waker: Waker,
    pub(super) tx_waker: Waker,
    /// Something came since the driver last looked.
    pub(super) heard: AtomicBool,
    pub(super) pong: Mutex<Option<u64>>,
    pub(super) senders: AtomicUsize,
    pub(super) handles: AtomicUsize,
    pub(super) receiver_taken: AtomicBool,
    pub(super) limits: LaneLimits,
    pub(super) pool: BufPool,
    pub(super) ledger: Arc<CopyLedger>,
}

impl Core {
    pub(super) fn new(
        tx: Box<dyn LaneTx>,
        rx: Box<dyn LaneRx>,
        limits: LaneLimits,
        pool: BufPool,
        ledger: Arc<CopyLedger>,
    ) -> Arc<Self> {
        let driver = Arc::new(DriverWake::default());
        let rx_wake = Arc::new(RxWake { receiver: AtomicWaker::new(), driver: driver.clone() });
        Arc::new(Self {
            tx: Mutex::new(TxState {
                lane: tx,
                seq: TxSeq::new(u32::MAX),
                queue: FairQueue::default(),
                tracked: VecDeque::new(),
                failed: None,
                finished: None,
                fin_sent: false,
                close_sent: false,
                idle_wakers: Vec::new(),
                reports: Batch::new(),
            }),
            rx: Mutex::new(RxState {
                lane: rx,
                seq: RxSeq::new(ACK_EVERY),
                inbox: VecDeque::new(),
                fin: false,
                ended: false,
                armed: false,
                failed: None,
                batch: Batch::new(),
            }),
            rx_waker: rx_wake.clone().into(),
            tx_waker: driver.clone().into(),
            rx_wake,
            driver,
            heard: AtomicBool::new(false),
            pong: Mutex::new(None),
            senders: AtomicUsize::new(0),
            handles: AtomicUsize::new(0),
            receiver_taken: AtomicBool::new(false),
            limits,
            pool,
            ledger,
        })
    }

    /// Ends the connection for everyone; the first reason stays.
    pub(super) fn fail(&self, error: ConnectionError) {
        let mut wakers = Wakers::new();
        {
            let mut rx = self.rx.lock();
            rx.failed.get_or_insert_with(|| error.clone());
            rx.ended = true;
        }
        self.tx.lock().fail(error, &mut wakers);
        wake_all(wakers);
        self.rx_wake.receiver.wake();
        self.driver.0.wake();
    }

    /// Ends sending. What the peer sent before is still read: its CLOSE may say why.
    pub(super) fn fail_sending(&self, error: ConnectionError) {
        let mut wakers = Wakers::new();
        self.tx.lock().fail(error, &mut wakers);
        wake_all(wakers);
        self.driver.0.wake();
    }

    /// Reads what the lane has: into the inbox, or at once for session records.
    ///
    /// `spin` reads without arming a wake-up. Ready once the inbox may have something, or the end came.
    pub(super) fn poll_ingest(&self, rx: &mut RxState, spin: bool) -> Poll<()> {
        if rx.ended {
            return Poll::Ready(());
        }
        let found = if spin {
            match rx.lane.try_recv(&mut rx.batch) {
                Ok(None) => return Poll::Pending,
                Ok(Some(received)) => {
                    rx.armed = false;
                    Ok(received)
                }
                Err(error) => Err(error),
            }
        } else {
            let polled = rx.lane.poll_recv(&mut Context::from_waker(&self.rx_waker), &mut rx.batch);
            rx.armed = polled.is_pending();
            match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(result) => result,
            }
        };
        let mut wakers = Wakers::new();
        let result = match found {
            Ok(Received::Some) => self.ingest(rx, &mut wakers),
            Ok(Received::Closed) => {
                Err(zc_core::transport::LaneError::PeerGone("its stream ended without FIN or CLOSE").into())
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = result {
            if !rx.fin {
                rx.failed.get_or_insert_with(|| error.clone());
            }
            rx.ended = true;
            self.tx.lock().fail(error, &mut wakers);
            self.driver.0.wake();
        }
        wake_all(wakers);
        Poll::Ready(())
    }

    fn ingest(&self, rx: &mut RxState, wakers: &mut Wakers) -> Result<(), ConnectionError> {
        self.heard.store(true, Ordering::Relaxed);
        let mut asked = Asked::default();
        for frame in rx.batch.drain() {
            match frame.kind {
                FrameKind::Data => {
                    if rx.fin || asked.fin {
                        return Err(ConnectionError::Session("a message after FIN".into()));
                    }
                    rx.seq.accept(frame.seq, frame.ack)?;
                    self.ledger.moved(frame.payload.len());
                    rx.inbox.push_back(frame.payload);
                }
                FrameKind::Session => match decode(&frame.payload)? {
                    SessionRecord::Ping { nonce } => asked.pongs.push(nonce),
                    SessionRecord::Pong { nonce } => *self.pong.lock() = Some(nonce),
                    SessionRecord::Ack { seq } => asked.ack = asked.ack.max(Some(seq)),
                    SessionRecord::Fin { last_seq } => {
                        rx.seq.check_fin(last_seq)?;
                        asked.fin = true;
                    }
                    SessionRecord::GoAway { last_seq, reason, .. } => {
                        asked.go_away = Some((last_seq, reason))
                    }
                    SessionRecord::Close { code, last_seq, reason } => {
                        asked.close = Some((last_seq, code, reason));
                        break;
                    }
                },
            }
        }
        let ack = if asked.fin { rx.seq.flush_ack() } else { rx.seq.take_ack() };
        rx.fin |= asked.fin;
        if let Some((_, code, reason)) = &asked.close {
            rx.ended = true;
            if *code != CloseCode::NORMAL {
                rx.failed = Some(ConnectionError::ClosedByPeer { code: *code, reason: reason.clone() });
            }
        }
        self.answer(asked, ack, wakers)
    }

    fn answer(&self, asked: Asked, ack: Option<u64>, wakers: &mut Wakers) -> Result<(), ConnectionError> {
        let nothing = asked.pongs.is_empty()
            && asked.ack.is_none()
            && ack.is_none()
            && asked.go_away.is_none()
            && asked.close.is_none();
        if nothing {
            return Ok(());
        }
        let mut tx = self.tx.lock();
        if let Some(seq) = asked.ack {
            tx.seq.on_ack(seq)?;
            tx.wake_delivered(wakers);
        }
        if let Some((last_seq, reason)) = asked.go_away {
            tx.seq.on_go_away(last_seq)?;
            tx.finished
                .get_or_insert(ConnectionError::Finished { reason: format!("the peer goes away: {reason}") });
            wakers.extend(tx.queue.all());
        }
        if let Some((last_seq, code, reason)) = asked.close {
            tx.seq.on_close(last_seq)?;
            tx.wake_delivered(wakers);
            tx.fail(ConnectionError::ClosedByPeer { code, reason }, wakers);
            self.driver.0.wake();
            return Ok(());
        }
        if tx.failed.is_some() || tx.close_sent {
            return Ok(());
        }
        for nonce in asked.pongs {
            self.push_record(&mut tx, &SessionRecord::Pong { nonce })?;
        }
        if let Some(seq) = ack {
            self.push_record(&mut tx, &SessionRecord::Ack { seq })?;
        }
        self.flush(&mut tx)
    }

    /// Hands a session record to the lane.
    pub(super) fn push_record(
        &self,
        tx: &mut TxState,
        record: &SessionRecord,
    ) -> Result<(), ConnectionError> {
        let mut bytes = SmallVec::<[u8; 64]>::new();
        record.encode(&mut bytes);
        let payload = match self.pool.try_alloc(bytes.len()) {
            Ok(mut buf) => {
                buf.put_slice(&bytes);
                Message::from(buf.freeze())
            }
            // A full pool must not silence the session layer.
            Err(_) => Message::from(bytes.into_vec()),
        };
        let frame = Frame { kind: FrameKind::Session, ack: false, seq: 0, payload };
        match tx.lane.start_send(frame, false) {
            Ok(_) => Ok(()),
            Err(rejected) => Err(rejected.error.into()),
        }
    }

    /// Pushes out what the lane holds; what does not fit now is the driver's.
    pub(super) fn flush(&self, tx: &mut TxState) -> Result<(), ConnectionError> {
        match tx.lane.poll_flush(&mut Context::from_waker(&self.tx_waker)) {
            Poll::Ready(Err(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl TxState {
    /// Why no data can be sent, if so.
    pub(super) fn refusal(&self) -> Option<ConnectionError> {
        self.failed.clone().or_else(|| self.finished.clone())
    }

    pub(super) fn fail(&mut self, error: ConnectionError, wakers: &mut Wakers) {
        self.failed.get_or_insert(error);
        wakers.extend(self.queue.all());
        wakers.extend(self.tracked.iter().map(|tracked| tracked.waker.clone()));
        wakers.extend(self.idle_wakers.drain(..));
    }

    fn wake_delivered(&mut self, wakers: &mut Wakers) {
        let acked = self.seq.acked();
        wakers.extend(
            self.tracked.iter().filter(|tracked| tracked.seq <= acked).map(|tracked| tracked.waker.clone()),
        );
        if self.seq.unacked() == 0 {
            wakers.extend(self.idle_wakers.drain(..));
        }
    }

    /// Collects completions that the lane has.
    pub(super) fn collect(
        &mut self,
        cx: &mut Context<'_>,
        wakers: &mut Wakers,
    ) -> Result<(), ConnectionError> {
        if !self.tracked.iter().any(|tracked| tracked.token.is_some() && tracked.report.is_none()) {
            return Ok(());
        }
        while let Poll::Ready(result) = self.lane.poll_completions(cx, &mut self.reports) {
            result?;
            if self.reports.is_empty() {
                break;
            }
            for (token, report) in self.reports.drain() {
                if let Some(tracked) = self.tracked.iter_mut().find(|tracked| tracked.token == Some(token)) {
                    tracked.report = Some(report);
                    wakers.push(tracked.waker.clone());
                }
            }
        }
        Ok(())
    }

    /// What a failed send can say about message `seq`.
    pub(super) fn delivery(&self, seq: u64) -> Delivery {
        self.seq.delivery_of(seq)
    }
}

/// Parses a record from a private copy of its bytes (M6).
#[allow(clippy::disallowed_methods, reason = "control bytes, not payload")]
fn decode(payload: &Message) -> Result<SessionRecord, ConnectionError> {
    if payload.len() > MAX_RECORD {
        return Err(ConnectionError::Session(format!("a session record of {} bytes", payload.len())));
    }
    let mut bytes = SmallVec::<[u8; 64]>::new();
    for segment in payload.segments() {
        bytes.extend_from_slice(segment);
    }
    Ok(SessionRecord::decode(&bytes)?)
}
