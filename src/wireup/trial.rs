//! An out-of-band lane before it is committed to: it must pass a ping, and is kept going meanwhile.

use std::sync::Arc;
use std::task::{Context, Poll};

use smallvec::SmallVec;
use zc_core::memory::{BufPool, Message};
use zc_core::transport::{Batch, Frame, FrameKind, Lane, LaneError, Reactor, Received, Role, Timer};
use zc_core::wire::{MAX_RECORD, SessionRecord};

use crate::error::Error;

/// The nonce of the PING; one is sent per lane.
const NONCE: u64 = 1;

pub(super) struct Trial {
    role: Role,
    lane: Lane,
    pool: BufPool,
    reactor: Arc<dyn Reactor>,
    timer: Box<dyn Timer>,
    batch: Batch<Frame>,
    /// Our PING is on its way.
    asked: bool,
    /// The peer's PING came and was answered.
    answered: bool,
    /// The PONG came.
    heard: bool,
    /// Why it failed after it had passed.
    failed: Option<LaneError>,
}

impl Trial {
    pub(super) fn new(
        role: Role,
        lane: Lane,
        pool: BufPool,
        reactor: Arc<dyn Reactor>,
    ) -> Result<Self, Error> {
        let timer = reactor.timer().map_err(|error| Error::NoRuntime(error.to_string()))?;
        let batch = Batch::new();
        Ok(Self {
            role,
            lane,
            pool,
            reactor,
            timer,
            batch,
            asked: false,
            answered: false,
            heard: false,
            failed: None,
        })
    }

    pub(super) fn into_lane(self) -> Lane {
        self.lane
    }

    /// Ready once a PING was answered in both directions.
    pub(super) fn poll_pinged(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        if !self.asked {
            self.send(&SessionRecord::Ping { nonce: NONCE })?;
            self.asked = true;
        }
        while !(self.answered && self.heard) {
            match self.lane.rx.poll_recv(cx, &mut self.batch)? {
                Poll::Pending => break,
                Poll::Ready(Received::Closed) => {
                    return Poll::Ready(Err(LaneError::PeerGone("it closed the lane before COMMIT")));
                }
                Poll::Ready(Received::Some) => self.take_frames()?,
            }
        }
        let flushed = self.lane.tx.poll_flush(cx)?;
        self.drive(cx)?;
        if self.answered && self.heard && flushed.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Does what the lane itself has to do while nothing is sent: acknowledges, retransmits.
    pub(super) fn keep(&mut self, cx: &mut Context<'_>) {
        if self.failed.is_none() {
            self.failed = self.try_keep(cx).err();
        }
    }

    fn try_keep(&mut self, cx: &mut Context<'_>) -> Result<(), LaneError> {
        // To the server data may come before the COMMIT that allows it; to the client, nothing.
        if self.role == Role::Client
            && let Poll::Ready(received) = self.lane.rx.poll_recv(cx, &mut self.batch)?
        {
            return Err(match received {
                Received::Closed => LaneError::PeerGone("it closed the lane before COMMIT"),
                Received::Some => LaneError::Other("a frame came before COMMIT".into()),
            });
        }
        let _pending = self.lane.tx.poll_flush(cx)?;
        self.drive(cx)
    }

    /// Why it is of no use any more, if so.
    pub(super) fn broken(&mut self, cx: &mut Context<'_>) -> Option<LaneError> {
        self.keep(cx);
        self.failed.clone()
    }

    fn take_frames(&mut self) -> Result<(), LaneError> {
        let frames: SmallVec<[Frame; 2]> = self.batch.drain().collect();
        for frame in frames {
            match record(&frame)? {
                Some(SessionRecord::Ping { nonce }) if !self.answered => {
                    self.send(&SessionRecord::Pong { nonce })?;
                    self.answered = true;
                }
                Some(SessionRecord::Pong { nonce: NONCE }) if !self.heard => self.heard = true,
                _ => return Err(LaneError::Other("a frame that is no ping came before COMMIT".into())),
            }
        }
        Ok(())
    }

    fn send(&mut self, record: &SessionRecord) -> Result<(), LaneError> {
        let mut bytes = SmallVec::<[u8; 64]>::new();
        record.encode(&mut bytes);
        let payload = match self.pool.try_alloc(bytes.len()) {
            Ok(mut buf) => {
                buf.put_slice(&bytes);
                Message::from(buf.freeze())
            }
            Err(_) => Message::from(bytes.into_vec()),
        };
        let frame = Frame { kind: FrameKind::Session, ack: false, seq: 0, payload };
        self.lane.tx.start_send(frame, false).map(drop).map_err(|rejected| rejected.error)
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Result<(), LaneError> {
        let Some(drive) = &mut self.lane.drive else { return Ok(()) };
        if let Some(next) = drive.poll_drive(cx, self.reactor.now())? {
            self.timer.reset(next);
            if self.timer.poll_expired(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Ok(())
    }
}

/// The session record in a frame, parsed from a private copy (M6).
fn record(frame: &Frame) -> Result<Option<SessionRecord>, LaneError> {
    if frame.kind != FrameKind::Session || frame.payload.len() > MAX_RECORD {
        return Ok(None);
    }
    let bytes: SmallVec<[u8; 64]> =
        frame.payload.segments().iter().flat_map(|segment| segment.iter().copied()).collect();
    Ok(Some(SessionRecord::decode(&bytes)?))
}
