//! The session layer over a lane that does what a test says.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use zc_core::memory::{BufPool, CopyLedger, LeaseBudget, Message, PinnedBufMut};
use zc_core::transport::{
    AllocFailure, Batch, Caps, ControlLink, Frame, FrameKind, Lane, LaneError, LaneLimits, LaneRx, LaneTx,
    LinkAddr, Received, Role, SendRejected, SendReport, SendToken,
};
use zc_core::wire::{CloseCode, SessionRecord};

use super::{Connection, ConnectionError, Parts};
use crate::event::TracingObserver;
use crate::identity::PeerIdentity;
use crate::options::{ConnectionOptions, Polling};
use crate::reactor::TokioReactor;
use crate::report::SelectionReport;

/// Takes everything and sends it nowhere.
struct Sinkhole(u64);

impl LaneTx for Sinkhole {
    fn poll_alloc(&mut self, _: &mut Context<'_>, _: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        Poll::Ready(Err(LaneError::Closed.into()))
    }
    fn poll_ready(&mut self, _: &mut Context<'_>, _: usize) -> Poll<Result<(), LaneError>> {
        Poll::Ready(Ok(()))
    }
    fn start_send(&mut self, _: Frame, _: bool) -> Result<SendToken, SendRejected> {
        self.0 += 1;
        Ok(SendToken(self.0))
    }
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        Poll::Ready(Ok(()))
    }
    fn poll_completions(
        &mut self,
        _: &mut Context<'_>,
        _: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>> {
        Poll::Pending
    }
    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        Poll::Ready(Ok(()))
    }
}

/// Gives out these frames, one at a time, and then nothing more.
struct Script(VecDeque<Frame>);

impl LaneRx for Script {
    fn poll_recv(
        &mut self,
        _: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        let Some(frame) = self.0.pop_front() else { return Poll::Pending };
        out.push(frame);
        Poll::Ready(Ok(Received::Some))
    }
    fn release(&mut self, _: usize) {}
    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        match self.poll_recv(&mut Context::from_waker(std::task::Waker::noop()), out) {
            Poll::Ready(result) => result.map(Some),
            Poll::Pending => Ok(None),
        }
    }
}

/// A link whose other end is gone.
#[derive(Debug)]
struct Ended;

impl ControlLink for Ended {
    fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }
    fn poll_write(&mut self, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }
    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn peer(&self) -> LinkAddr {
        LinkAddr::Memory("script".into())
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

fn data(seq: u64) -> Frame {
    Frame { kind: FrameKind::Data, ack: false, seq, payload: Message::from(&b"data"[..]) }
}

fn record(record: SessionRecord) -> Frame {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: bytes.into() }
}

fn start(frames: impl IntoIterator<Item = Frame>, link: Option<Box<dyn ControlLink>>) -> Connection {
    let limits = LaneLimits::default();
    let options = ConnectionOptions { polling: Polling::Interrupt, ..ConnectionOptions::default() };
    let lane = Lane {
        tx: Box::new(Sinkhole(0)),
        rx: Box::new(Script(frames.into_iter().collect())),
        drive: None,
        remote: None,
        caps: Caps::stream(),
        leases: LeaseBudget::new(limits.lease_soft, limits.lease_hard),
    };
    Connection::start(Parts {
        lane,
        link,
        role: Role::Client,
        reactor: Arc::new(TokioReactor::new()),
        pool: BufPool::builder().max_bytes(1 << 20).build(),
        ledger: Arc::new(CopyLedger::new()),
        limits,
        peer_remote: true,
        options,
        report: Arc::new(SelectionReport::default()),
        peer: PeerIdentity {
            addr: LinkAddr::Memory("script".into()),
            cred: None,
            agent: String::new(),
            instance: [0; 16],
            authenticated: None,
        },
        observer: Arc::new(TracingObserver),
    })
    .unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_the_lane_holds_is_read_after_its_link_ended() {
    let close =
        record(SessionRecord::Close { code: CloseCode::app(1).unwrap(), last_seq: 0, reason: "bye".into() });
    let mut conn = start((1..=200).map(data).chain([close]), Some(Box::new(Ended)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..200 {
        assert_eq!(conn.recv().await.unwrap().unwrap(), b"data"[..]);
    }
    let error = conn.recv().await.unwrap_err();
    assert!(matches!(&error, ConnectionError::ClosedByPeer { reason, .. } if reason == "bye"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_falls_silent_after_its_link_ended_fails_soon() {
    let mut conn = start((1..=5).map(data), Some(Box::new(Ended)));
    for _ in 0..5 {
        conn.recv().await.unwrap().unwrap();
    }
    let began = tokio::time::Instant::now();
    let error = conn.recv().await.unwrap_err();
    assert!(matches!(error, ConnectionError::Lane(LaneError::PeerGone(_))), "{error}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn more_messages_than_credit_allows_are_an_error() {
    let most = LaneLimits::default().recv_window as u64 / 512 + 64;
    let mut conn = start((1..=most).map(data), None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(conn.stats().inbox_messages as u64, most);
    for _ in 0..most {
        conn.recv().await.unwrap().unwrap();
    }
    let mut conn = start((1..=most + 1).map(data), None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..most {
        conn.recv().await.unwrap().unwrap();
    }
    let error = conn.recv().await.unwrap_err();
    assert!(matches!(error, ConnectionError::Session(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn after_go_away_a_gap_and_a_wrong_fin_are_errors() {
    let cases: [(&[Frame], bool); 3] = [
        (&[data(1), data(2), record(SessionRecord::Fin { last_seq: 2 })], true),
        (&[data(1), data(3)], false),
        (&[data(1), record(SessionRecord::Fin { last_seq: 0 })], false),
    ];
    for (frames, good) in cases {
        let frames = frames.iter().map(|f| Frame { payload: f.payload.clone(), ..*f });
        let mut conn = start(frames, None);
        conn.go_away("nothing at all").unwrap();
        assert!(conn.recv().await.unwrap().is_none());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(conn.send(&b"x"[..]).await.is_ok(), good);
        assert_eq!(conn.stats().received_messages, 0);
    }
}
