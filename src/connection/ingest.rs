//! Reading: what the lane has goes into the inbox, or is answered at once.

use std::task::{Context, Poll};

use smallvec::SmallVec;
use zc_core::memory::Message;
use zc_core::transport::{Frame, FrameKind, LaneError, LaneRx, Received};
use zc_core::wire::{CloseCode, MAX_RECORD, SessionRecord};

use super::core::{Arrived, Core, RxState, TxState};
use super::error::ConnectionError;

/// How to look at the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nobody is woken by what comes later.
    Once,
    /// If there is nothing, what comes later wakes the receiver or the driver.
    Armed,
}

/// What incoming records ask of the sending half.
#[derive(Default)]
struct Asked {
    pongs: SmallVec<[u64; 2]>,
    ack: Option<u64>,
    fin: bool,
    go_away: Option<(u64, CloseCode, String)>,
    close: Option<(u64, CloseCode, String)>,
    remote: bool,
}

impl Asked {
    fn is_nothing(&self) -> bool {
        let records = self.pongs.is_empty() && self.ack.is_none() && !self.remote;
        records && self.go_away.is_none() && self.close.is_none()
    }
}

impl Core {
    /// Reads one batch. Ready once the inbox may have something, or the end came.
    pub(super) fn poll_ingest(&self, rx: &mut RxState, look: Look) -> Poll<()> {
        if rx.ended {
            return Poll::Ready(());
        }
        let found = match look {
            Look::Once => match rx.lane.try_recv(&mut rx.batch) {
                Ok(None) => return Poll::Pending,
                Ok(Some(received)) => Ok(received),
                Err(error) => Err(error),
            },
            Look::Armed => {
                self.watch.arm();
                match rx.lane.poll_recv(&mut Context::from_waker(&self.rx_waker), &mut rx.batch) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(result) => result,
                }
            }
        };
        self.watch.disarm();
        let result = match found {
            Ok(Received::Some) => self.ingest(rx),
            Ok(Received::Closed) => Err(LaneError::PeerGone("its stream ended without FIN or CLOSE").into()),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = result {
            let mut tx = self.lock_tx();
            // After our CLOSE the peer may hang up as it likes.
            let error = if tx.close_sent { ConnectionError::ClosedHere } else { error };
            rx.failed.get_or_insert_with(|| error.clone());
            rx.end_reading();
            tx.fail(error);
            self.watch.wake_driver();
        }
        Poll::Ready(())
    }

    fn ingest(&self, rx: &mut RxState) -> Result<(), ConnectionError> {
        let mut asked = Asked::default();
        let before = rx.arrived.bytes;
        let sorted = self.sort(rx, &mut asked);
        // Once per batch: it costs as much as a message of its own.
        self.ledger.moved((rx.arrived.bytes - before) as usize);
        sorted?;
        let seq = &mut rx.arrived.seq;
        let ack = if asked.fin { seq.flush_ack() } else { seq.take_ack() };
        if let Some((_, code, reason)) = &asked.close {
            rx.end_reading();
            if *code != CloseCode::NORMAL {
                let error = ConnectionError::ClosedByPeer { code: *code, reason: reason.clone() };
                rx.failed.get_or_insert(error);
            }
        }
        if asked.is_nothing() && ack.is_none() { Ok(()) } else { self.answer(asked, ack) }
    }

    /// Messages go to the inbox; of records it is noted what they ask for.
    fn sort(&self, rx: &mut RxState, asked: &mut Asked) -> Result<(), ConnectionError> {
        let RxState { lane, batch, arrived, .. } = rx;
        (arrived.heard, arrived.eager) = (true, self.remote.is_granted());
        for frame in batch.drain() {
            match frame.kind {
                FrameKind::Data if arrived.fin => {
                    return Err(ConnectionError::Session("a message after FIN".into()));
                }
                FrameKind::Data => self.accept(&mut **lane, arrived, frame)?,
                FrameKind::Remote => {
                    self.remote.arrived(frame.payload).map_err(ConnectionError::Session)?;
                    asked.remote = true;
                }
                FrameKind::Session => match decode(&frame.payload)? {
                    SessionRecord::Ping { nonce } => asked.pongs.push(nonce),
                    SessionRecord::Pong { nonce } => arrived.pong = Some(nonce),
                    SessionRecord::Ack { seq } => asked.ack = asked.ack.max(Some(seq)),
                    SessionRecord::Fin { last_seq } => {
                        arrived.check_fin(last_seq)?;
                        arrived.fin = true;
                        asked.fin = true;
                    }
                    SessionRecord::GoAway { last_seq, code, reason } => {
                        asked.go_away = Some((last_seq, code, reason));
                    }
                    SessionRecord::Close { code, last_seq, reason } => {
                        asked.close = Some((last_seq, code, reason));
                        break;
                    }
                },
            }
        }
        Ok(())
    }

    /// Queues a message, unless none is taken any more.
    fn accept(
        &self,
        lane: &mut dyn LaneRx,
        arrived: &mut Arrived,
        frame: Frame,
    ) -> Result<(), ConnectionError> {
        let len = frame.payload.len();
        if let Some(refused) = arrived.refused {
            let expected = arrived.seq.last() + refused + 1;
            if frame.seq != expected {
                let text = format!("message {} instead of {expected}, after GOAWAY", frame.seq);
                return Err(ConnectionError::Session(text));
            }
            arrived.refused = Some(refused + 1);
            lane.release(len);
            return Ok(());
        }
        arrived.seq.accept(frame.seq, frame.ack)?;
        if arrived.inbox.len() >= self.max_inbox {
            let text = format!("more than {} messages at once: its credit was for fewer", self.max_inbox);
            return Err(ConnectionError::Session(text));
        }
        arrived.eager |= frame.ack;
        arrived.bytes += len as u64;
        arrived.inbox.push_back(frame.payload);
        Ok(())
    }

    fn answer(&self, asked: Asked, ack: Option<u64>) -> Result<(), ConnectionError> {
        let mut tx = self.lock_tx();
        if let Some(seq) = asked.ack {
            tx.seq.on_ack(seq)?;
            tx.wake_delivered();
        }
        if let Some((last_seq, code, reason)) = asked.go_away {
            tx.seq.on_go_away(last_seq)?;
            tx.cut = Some(last_seq);
            tx.drop_parked();
            tx.finish(ConnectionError::PeerGoesAway { code, reason });
            tx.tracked.wake_all();
        }
        if let Some((last_seq, code, reason)) = asked.close {
            tx.seq.on_close(last_seq)?;
            tx.wake_delivered();
            tx.fail(ConnectionError::ClosedByPeer { code, reason });
            self.watch.wake_driver();
            return Ok(());
        }
        self.rest(&tx);
        if tx.failed.is_some() || tx.close_sent {
            return Ok(());
        }
        let pongs = asked.pongs.into_iter().map(|nonce| SessionRecord::Pong { nonce });
        tx.ack_due = tx.ack_due.max(ack);
        if let Err(error) = self.push_records(&mut tx, pongs) {
            // What the peer sent before is still read: its CLOSE may say why.
            tx.fail(error);
            self.watch.wake_driver();
        }
        Ok(())
    }

    fn push_records(
        &self,
        tx: &mut TxState,
        mut records: impl Iterator<Item = SessionRecord>,
    ) -> Result<(), ConnectionError> {
        records.try_for_each(|record| self.push_record(tx, &record))?;
        self.flush(tx).map(drop)
    }

    /// Says GOAWAY: messages up to here are taken, later ones are not. Once.
    pub(super) fn go_away(&self, code: CloseCode, reason: &str) -> Result<(), ConnectionError> {
        let mut rx = self.lock_rx();
        let mut tx = self.lock_tx();
        if let Some(error) = tx.failed.clone() {
            return Err(error);
        }
        if rx.go_away_sent || rx.arrived.fin {
            return Ok(());
        }
        rx.go_away_sent = true;
        rx.arrived.refused.get_or_insert(0);
        tx.ack_due = tx.ack_due.max(rx.arrived.seq.flush_ack());
        let last_seq = rx.arrived.seq.last();
        let go_away = SessionRecord::GoAway { code, last_seq, reason: reason.into() };
        self.push_records(&mut tx, [go_away].into_iter())?;
        self.watch.wake_receiver();
        Ok(())
    }
}

impl Arrived {
    fn check_fin(&self, last_seq: u64) -> Result<(), ConnectionError> {
        let refused = self.refused.unwrap_or(0);
        match last_seq.checked_sub(refused) {
            Some(last) => Ok(self.seq.check_fin(last)?),
            None => Err(ConnectionError::Session(format!("FIN {last_seq} after {refused} refused messages"))),
        }
    }
}

impl RxState {
    /// Nothing more is read: what the lane keeps for it goes back now, however long handles are kept.
    pub(super) fn end_reading(&mut self) {
        if !self.ended {
            self.ended = true;
            self.lane.stop();
        }
    }

    /// How receiving ends, once the inbox is empty; `None` while more may come.
    pub(super) fn end(&self) -> Option<Result<(), ConnectionError>> {
        if self.arrived.fin || (self.arrived.refused.is_some() && self.failed.is_none()) {
            return Some(Ok(()));
        }
        match &self.failed {
            Some(error) => Some(Err(error.clone())),
            None => self.ended.then_some(Ok(())),
        }
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
