//! The session layer over a lane that does what a test says.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{FutureExt, SinkExt, StreamExt};
use parking_lot::Mutex;
use zc_core::memory::{BufPool, CopyLedger, LeaseBudget, Message, PinnedBufMut};
use zc_core::transport::{
    Access, AllocFailure, Batch, Caps, ControlLink, Frame, FrameKind, Lane, LaneDrive, LaneError, LaneLimits,
    LaneRemote, LaneRx, LaneTx, LinkAddr, OneSided, Reactor, Readiness, Received, RemoteCompletion,
    RemoteGrant, RemoteKey, RemoteOp, RemoteToken, Revoked, Role, SendRejected, SendReport, SendToken,
    TaskHandle, Timer,
};
use zc_core::wire::{CloseCode, SessionRecord};

use super::{Connection, ConnectionError, Parts};
use crate::event::{Closed, Connected, Observer, TracingObserver};
use crate::identity::PeerIdentity;
use crate::options::{ConnectionOptions, Polling};
use crate::reactor::TokioReactor;
use crate::remote::Export;
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
    start_on(Box::new(Sinkhole(0)), frames, link, Arc::new(TokioReactor::new()), Arc::new(TracingObserver))
}

fn start_on(
    tx: Box<dyn LaneTx>,
    frames: impl IntoIterator<Item = Frame>,
    link: Option<Box<dyn ControlLink>>,
    reactor: Arc<dyn Reactor>,
    observer: Arc<dyn Observer>,
) -> Connection {
    let options = ConnectionOptions { polling: Polling::Interrupt, ..ConnectionOptions::default() };
    let script = Box::new(Script(frames.into_iter().collect()));
    start_lane(tx, script, link, reactor, observer, options)
}

fn start_lane(
    tx: Box<dyn LaneTx>,
    rx: Box<dyn LaneRx>,
    link: Option<Box<dyn ControlLink>>,
    reactor: Arc<dyn Reactor>,
    observer: Arc<dyn Observer>,
    options: ConnectionOptions,
) -> Connection {
    let limits = LaneLimits::default();
    let leases = LeaseBudget::new(limits.lease_soft, limits.lease_hard);
    let lane = Lane { tx, rx, drive: None, remote: None, caps: Caps::stream(), leases };
    start_whole(lane, link, reactor, observer, options)
}

fn start_whole(
    lane: Lane,
    link: Option<Box<dyn ControlLink>>,
    reactor: Arc<dyn Reactor>,
    observer: Arc<dyn Observer>,
    options: ConnectionOptions,
) -> Connection {
    let limits = LaneLimits::default();
    Connection::start(Parts {
        lane,
        link,
        role: Role::Client,
        reactor,
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
        observer,
        began: std::time::Instant::now(),
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
async fn a_lane_that_is_empty_after_its_link_ended_fails_at_once() {
    let began = tokio::time::Instant::now();
    let mut conn = start((1..=5).map(data), Some(Box::new(Ended)));
    for _ in 0..5 {
        conn.recv().await.unwrap().unwrap();
    }
    let error = conn.recv().await.unwrap_err();
    assert!(matches!(error, ConnectionError::Lane(LaneError::PeerGone(_))), "{error}");
    assert!(began.elapsed().is_zero(), "nothing is waited for: {:?}", began.elapsed());
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

/// A sending half that goes wrong.
#[derive(Clone, Default)]
struct Faulty(Arc<Mutex<Faults>>);

#[derive(Default)]
struct Faults {
    has_room: bool,
    flushes: bool,
    waker: Option<Waker>,
}

impl Faulty {
    fn make_room(&self) {
        let waker = {
            let mut faults = self.0.lock();
            faults.has_room = true;
            faults.waker.take()
        };
        waker.unwrap().wake();
    }
}

impl LaneTx for Faulty {
    fn poll_alloc(&mut self, _: &mut Context<'_>, _: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        Poll::Ready(Err(LaneError::Closed.into()))
    }
    fn poll_ready(&mut self, cx: &mut Context<'_>, _: usize) -> Poll<Result<(), LaneError>> {
        let mut faults = self.0.lock();
        faults.waker = Some(cx.waker().clone());
        if faults.has_room { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
    fn start_send(&mut self, frame: Frame, _: bool) -> Result<SendToken, SendRejected> {
        match frame.kind {
            FrameKind::Data => Err(SendRejected { frame, error: LaneError::PeerGone("in between") }),
            FrameKind::Session | FrameKind::Remote => Ok(SendToken(0)),
        }
    }
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let flushes = self.0.lock().flushes;
        Poll::Ready(if flushes { Ok(()) } else { Err(LaneError::PeerGone("a broken pipe")) })
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

fn start_faulty(lane: &Faulty, frames: impl IntoIterator<Item = Frame>) -> Connection {
    let reactor = Arc::new(TokioReactor::new());
    start_on(Box::new(lane.clone()), frames, None, reactor, Arc::new(TracingObserver))
}

#[tokio::test(start_paused = true)]
async fn a_message_that_the_lane_refuses_fails_everyone_who_waits() {
    let lane = Faulty::default();
    lane.0.lock().flushes = true;
    let mut conn = start_faulty(&lane, []);
    let sends: Vec<_> = (0..3)
        .map(|_| {
            let sender = conn.sender();
            tokio::spawn(async move { sender.send(&b"message"[..]).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    lane.make_room();
    let began = tokio::time::Instant::now();
    for send in sends {
        let error = send.await.unwrap().unwrap_err();
        assert!(matches!(error.error, ConnectionError::Lane(LaneError::PeerGone(_))), "{error}");
        assert!(error.is_retryable());
    }
    assert!(began.elapsed().is_zero());
    let error = conn.recv().await.unwrap_err();
    assert!(matches!(error, ConnectionError::Lane(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_close_is_read_although_an_answer_could_not_be_written() {
    let close =
        record(SessionRecord::Close { code: CloseCode::app(1).unwrap(), last_seq: 0, reason: "bye".into() });
    let ping = record(SessionRecord::Ping { nonce: 7 });
    let mut conn = start_faulty(&Faulty::default(), [data(1), ping, data(2), close]);
    let closed = conn.closed();
    for _ in 0..2 {
        assert_eq!(conn.recv().await.unwrap().unwrap(), b"data"[..]);
    }
    for error in [conn.recv().await.unwrap_err(), closed.await] {
        assert!(matches!(&error, ConnectionError::ClosedByPeer { reason, .. } if reason == "bye"), "{error}");
    }
}

/// Polls a task before it is spawned, so that it may end first.
struct Eager(TokioReactor);

impl Reactor for Eager {
    fn register(&self, fd: std::os::fd::OwnedFd) -> io::Result<Box<dyn Readiness>> {
        self.0.register(fd)
    }
    fn timer(&self) -> io::Result<Box<dyn Timer>> {
        self.0.timer()
    }
    fn spawn(&self, mut task: BoxFuture<'static, ()>) -> io::Result<Box<dyn TaskHandle>> {
        let ended = task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        self.0.spawn(if ended { Box::pin(std::future::ready(())) } else { task })
    }
    fn now(&self) -> Instant {
        self.0.now()
    }
}

#[derive(Default)]
struct Order(Mutex<Vec<&'static str>>);

impl Observer for Order {
    fn connected(&self, _: &Connected) {
        self.0.lock().push("connected");
    }
    fn closed(&self, _: &Closed) {
        self.0.lock().push("closed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_at_once_was_connected_first() {
    let order = Arc::new(Order::default());
    let close = record(SessionRecord::Close { code: CloseCode::NORMAL, last_seq: 0, reason: String::new() });
    let (reactor, lane) = (Arc::new(Eager(TokioReactor::new())), Box::new(Sinkhole(0)));
    let mut conn = start_on(lane, [close], None, reactor, order.clone());
    assert_eq!(*order.0.lock(), ["connected", "closed"]);
    assert!(conn.recv().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_records_lets_other_tasks_run() {
    let pings = (0..1000).map(|nonce| record(SessionRecord::Ping { nonce }));
    let mut conn = start(pings.chain([data(1)]), None);
    let mut polls = 0;
    let mut receiving = std::pin::pin!(conn.recv());
    let message = std::future::poll_fn(|cx| {
        polls += 1;
        receiving.as_mut().poll(cx)
    });
    assert_eq!(message.await.unwrap().unwrap(), b"data"[..]);
    assert!(polls > 1, "the driver has its turn, too");
}

/// A lane whose other end is the test.
#[derive(Clone)]
struct Wire(Arc<Mutex<Ends>>);

struct Ends {
    incoming: VecDeque<Frame>,
    rx_waker: Option<Waker>,
    sent: Vec<Frame>,
    room: u64,
    /// Something that was taken before is under way for long.
    busy: bool,
    tx_waker: Option<Waker>,
}

impl Wire {
    /// With room for so many messages.
    fn new(room: u64) -> Self {
        let (incoming, sent) = (VecDeque::new(), Vec::new());
        let ends = Ends { incoming, rx_waker: None, sent, room, busy: false, tx_waker: None };
        Self(Arc::new(Mutex::new(ends)))
    }

    fn start(&self, change: impl FnOnce(&mut ConnectionOptions)) -> Connection {
        let mut options = ConnectionOptions { polling: Polling::Interrupt, ..ConnectionOptions::default() };
        change(&mut options);
        let (tx, rx) = (Box::new(self.clone()), Box::new(self.clone()));
        start_lane(tx, rx, None, Arc::new(TokioReactor::new()), Arc::new(TracingObserver), options)
    }

    /// The frame is there, but nobody has been told yet.
    fn slip(&self, frame: Frame) {
        self.0.lock().incoming.push_back(frame);
    }

    fn feed(&self, frame: Frame) {
        self.slip(frame);
        let waker = self.0.lock().rx_waker.take();
        waker.into_iter().for_each(Waker::wake);
    }

    fn make_room(&self, room: u64) {
        let waker = {
            let mut ends = self.0.lock();
            ends.room += room;
            ends.tx_waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// The session records that have been sent.
    fn records(&self) -> Vec<SessionRecord> {
        let decode = |frame: &Frame| SessionRecord::decode(frame.payload.as_contiguous().unwrap()).unwrap();
        self.0.lock().sent.iter().filter(|frame| frame.kind == FrameKind::Session).map(decode).collect()
    }
}

impl LaneTx for Wire {
    fn poll_alloc(&mut self, _: &mut Context<'_>, _: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        Poll::Ready(Err(LaneError::Closed.into()))
    }
    fn poll_ready(&mut self, cx: &mut Context<'_>, _: usize) -> Poll<Result<(), LaneError>> {
        let mut ends = self.0.lock();
        ends.tx_waker = Some(cx.waker().clone());
        if ends.room > 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
    fn start_send(&mut self, frame: Frame, _: bool) -> Result<SendToken, SendRejected> {
        let mut ends = self.0.lock();
        ends.room -= u64::from(frame.kind == FrameKind::Data);
        ends.sent.push(frame);
        Ok(SendToken(0))
    }
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let mut ends = self.0.lock();
        ends.tx_waker = Some(cx.waker().clone());
        if ends.busy { Poll::Pending } else { Poll::Ready(Ok(())) }
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

impl LaneRx for Wire {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        match self.try_recv(out) {
            Ok(None) => {
                self.0.lock().rx_waker = Some(cx.waker().clone());
                Poll::Pending
            }
            done => Poll::Ready(done.map(|_| Received::Some)),
        }
    }
    fn release(&mut self, _: usize) {}
    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        let mut ends = self.0.lock();
        let Some(frame) = ends.incoming.pop_front() else { return Ok(None) };
        // Who was served comes back.
        ends.rx_waker = None;
        out.push(frame);
        Ok(Some(Received::Some))
    }
}

/// As long as whatever is under way at this moment takes.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_our_close_is_not_received() {
    let wire = Wire::new(u64::MAX);
    let mut conn = wire.start(|_| ());
    let (sender, mut receiver) = conn.split();
    wire.feed(data(1));
    settle().await;
    conn.close(CloseCode::app(1).unwrap(), "enough").await;
    wire.feed(data(2));
    settle().await;
    // The peer is told that the second one was not sent: whoever repeats it must not make two of it.
    let told = wire.records();
    assert!(matches!(told[..], [SessionRecord::Close { last_seq: 1, .. }]), "{told:?}");
    assert_eq!(receiver.recv().await.unwrap().unwrap(), b"data"[..]);
    let error = receiver.recv().await.unwrap_err();
    assert!(matches!(error, ConnectionError::ClosedHere), "{error}");
    assert_eq!(sender.core().stats().discarded_messages, 1);
}

/// While one long message goes out, any number may come in.
#[tokio::test(start_paused = true)]
async fn acknowledgements_add_up_while_the_lane_is_busy() {
    for room in [0, 1] {
        let wire = Wire::new(room);
        wire.0.lock().busy = true;
        let mut conn = wire.start(|_| ());
        for seq in 1..=3000 {
            wire.feed(Frame { ack: true, ..data(seq) });
            conn.recv().await.unwrap().unwrap();
        }
        let told = wire.records();
        assert!(if room == 0 { told.len() == 1 } else { told.len() == 3000 }, "{}", told.len());
        wire.0.lock().busy = false;
        wire.make_room(0);
        settle().await;
        let told = wire.records();
        assert!(matches!(told.last(), Some(SessionRecord::Ack { seq: 3000 })), "{told:?}");
        assert!(room == 1 || told.len() == 2, "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_with_the_last_acknowledgement() {
    let wire = Wire::new(1);
    let conn = Arc::new(wire.start(|_| ()));
    conn.send(&b"one"[..]).await.unwrap();
    let mut sink = conn.sender();
    SinkExt::feed(&mut sink, Message::from(&b"two, without room"[..])).await.unwrap();
    let drained = conn.clone();
    let draining = tokio::spawn(async move { drained.drain(Duration::from_secs(100)).await });
    settle().await;
    wire.feed(record(SessionRecord::Ack { seq: 1 }));
    settle().await;
    wire.make_room(1);
    settle().await;
    assert!(!draining.is_finished());
    wire.feed(record(SessionRecord::Ack { seq: 2 }));
    let began = tokio::time::Instant::now();
    draining.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_empty_messages_lets_other_tasks_run() {
    let empty = |seq| Frame { payload: Message::new(), ..data(seq) };
    let conn = start((1..=1000).map(empty).chain([data(1001)]), None);
    let mut stream = conn.into_byte_stream().unwrap();
    let (mut polls, mut out) = (0, [0; 10]);
    let len = std::future::poll_fn(|cx| {
        polls += 1;
        futures::AsyncRead::poll_read(std::pin::Pin::new(&mut stream), cx, &mut out)
    });
    assert_eq!(len.await.unwrap(), 4);
    assert!(polls > 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_spins_and_is_left_alone_leaves_the_lane_to_the_driver() {
    let wire = Wire::new(u64::MAX);
    let mut conn = wire.start(|options| options.polling = Polling::Busy);
    settle().await;
    let mut receiver = conn.take_receiver().unwrap();
    // Found by the receiver, so that the lane forgets whom to wake.
    wire.slip(record(SessionRecord::Ping { nonce: 1 }));
    assert!(receiver.next().now_or_never().is_none());
    wire.feed(record(SessionRecord::Ping { nonce: 2 }));
    settle().await;
    let answers = wire.records();
    let [SessionRecord::Pong { nonce: 1 }, SessionRecord::Pong { nonce: 2 }] = answers[..] else {
        panic!("{answers:?}")
    };
}

#[tokio::test(start_paused = true)]
async fn times_without_a_bound_are_no_panic() {
    let wire = Wire::new(1);
    let conn = wire.start(|options| {
        options.drain = Duration::MAX;
        options.idle = Some(Duration::MAX);
        options.keepalive_interval = Duration::MAX;
        options.keepalive_timeout = Duration::MAX;
    });
    conn.send(&b"one"[..]).await.unwrap();
    let waiting = conn.send(&b"two"[..]).timeout(Duration::MAX);
    assert!(tokio::time::timeout(Duration::from_secs(1), waiting).await.is_err());
    let draining = conn.drain(Duration::MAX);
    assert!(tokio::time::timeout(Duration::from_secs(1), draining).await.is_err());
    // Keepalive has a bound of its own.
    let error = conn.closed().await;
    assert!(matches!(error, ConnectionError::Dead { .. }), "{error}");

    let wire = Wire::new(1);
    drop(wire.start(|options| options.drain = Duration::MAX));
    settle().await;
    let said = wire.records();
    assert!(matches!(said.last(), Some(SessionRecord::Close { .. })), "{said:?}");
}

/// Its peer goes on with a long message until then.
struct GoesOn(tokio::time::Instant);

impl LaneDrive for GoesOn {
    fn poll_drive(&mut self, _: &mut Context<'_>, _: Instant) -> Result<Option<Instant>, LaneError> {
        Ok(None)
    }

    fn heard(&mut self) -> bool {
        tokio::time::Instant::now() < self.0
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_goes_on_with_a_long_message_is_neither_dead_nor_idle() {
    for idle in [None, Some(Duration::from_secs(60))] {
        goes_on_for_an_hour(idle).await;
    }
}

async fn goes_on_for_an_hour(idle: Option<Duration>) {
    let (began, hour) = (tokio::time::Instant::now(), Duration::from_secs(3600));
    let limits = LaneLimits::default();
    let lane = Lane {
        tx: Box::new(Sinkhole(0)),
        rx: Box::new(Script(VecDeque::new())),
        drive: Some(Box::new(GoesOn(began + hour))),
        remote: None,
        caps: Caps::stream(),
        leases: LeaseBudget::new(limits.lease_soft, limits.lease_hard),
    };
    let options = ConnectionOptions { polling: Polling::Interrupt, idle, ..ConnectionOptions::default() };
    let (reactor, observer) = (Arc::new(TokioReactor::new()), Arc::new(TracingObserver));
    let conn = start_whole(lane, None, reactor, observer, options);
    let error = conn.closed().await;
    assert!(matches!(error, ConnectionError::Dead { .. }), "{error}");
    let after = began.elapsed();
    assert!(hour < after && after < hour + Duration::from_secs(60), "{after:?}");
}

/// What is in front of messages until the drive takes it away, once that may.
#[derive(Default)]
struct Gate {
    may_open: bool,
    is_open: bool,
    rx: Option<Waker>,
    drive: Option<Waker>,
}

/// Messages behind a gate, which is there again after each of them.
struct Behind(Script, Arc<Mutex<Gate>>);

impl LaneRx for Behind {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        let mut gate = self.1.lock();
        gate.rx = Some(cx.waker().clone());
        if std::mem::take(&mut gate.is_open) { self.0.poll_recv(cx, out) } else { Poll::Pending }
    }
    fn release(&mut self, _: usize) {}
    fn try_recv(&mut self, _: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        Ok(None)
    }
}

struct Opens(Arc<Mutex<Gate>>);

impl LaneDrive for Opens {
    fn poll_drive(&mut self, cx: &mut Context<'_>, _: Instant) -> Result<Option<Instant>, LaneError> {
        let mut gate = self.0.lock();
        gate.drive = Some(cx.waker().clone());
        gate.is_open = gate.may_open;
        let woken = if gate.is_open { gate.rx.take() } else { None };
        drop(gate);
        woken.into_iter().for_each(Waker::wake);
        Ok(None)
    }
}

fn start_behind(
    gate: &Arc<Mutex<Gate>>,
    tx: Box<dyn LaneTx>,
    link: Option<Box<dyn ControlLink>>,
) -> Connection {
    let limits = LaneLimits::default();
    let lane = Lane {
        tx,
        rx: Box::new(Behind(Script([data(1)].into()), gate.clone())),
        drive: Some(Box::new(Opens(gate.clone()))),
        remote: None,
        caps: Caps::stream(),
        leases: LeaseBudget::new(limits.lease_soft, limits.lease_hard),
    };
    let options = ConnectionOptions { polling: Polling::Interrupt, ..ConnectionOptions::default() };
    start_whole(lane, link, Arc::new(TokioReactor::new()), Arc::new(TracingObserver), options)
}

#[tokio::test(start_paused = true)]
async fn a_lane_is_driven_as_long_as_it_may_have_messages_though_sending_failed() {
    let gate = Arc::new(Mutex::new(Gate::default()));
    let mut conn = start_behind(&gate, Box::new(Faulty::default()), None);
    settle().await;
    conn.sender().flush().await.unwrap_err();
    settle().await;
    let drive = {
        let mut gate = gate.lock();
        gate.may_open = true;
        gate.drive.take()
    };
    drive.unwrap().wake();
    assert_eq!(conn.recv().await.unwrap().unwrap(), b"data"[..]);
}

#[tokio::test(start_paused = true)]
async fn a_lane_is_driven_before_it_is_looked_at_for_the_last_time() {
    let gate = Arc::new(Mutex::new(Gate { may_open: true, ..Gate::default() }));
    let mut conn = start_behind(&gate, Box::new(Sinkhole(0)), Some(Box::new(Ended)));
    assert_eq!(conn.recv().await.unwrap().unwrap(), b"data"[..]);
    let error = conn.recv().await.unwrap_err();
    assert!(matches!(error, ConnectionError::Lane(LaneError::PeerGone(_))), "{error}");
}

/// Lets others go first in front of each message.
struct Polite(Script, bool);

impl LaneRx for Polite {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        self.1 = !self.1;
        if self.1 && !self.0.0.is_empty() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.0.poll_recv(cx, out)
    }
    fn release(&mut self, _: usize) {}
    fn try_recv(&mut self, _: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        Ok(None)
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_goes_on_in_another_turn_is_not_empty() {
    let began = tokio::time::Instant::now();
    let (reactor, observer) = (Arc::new(TokioReactor::new()), Arc::new(TracingObserver));
    let options = ConnectionOptions { polling: Polling::Interrupt, ..ConnectionOptions::default() };
    let rx = Box::new(Polite(Script((1..=3).map(data).collect()), false));
    let link = Some(Box::new(Ended) as Box<dyn ControlLink>);
    let mut conn = start_lane(Box::new(Sinkhole(0)), rx, link, reactor, observer, options);
    for _ in 0..3 {
        assert_eq!(conn.recv().await.unwrap().unwrap(), b"data"[..]);
    }
    let error = conn.recv().await.unwrap_err();
    assert!(matches!(error, ConnectionError::Lane(LaneError::PeerGone(_))), "{error}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

/// The peer does not say that it has what was sent.
struct Unheard(Sinkhole);

impl LaneTx for Unheard {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        self.0.poll_alloc(cx, len)
    }
    fn poll_ready(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), LaneError>> {
        self.0.poll_ready(cx, len)
    }
    fn start_send(&mut self, frame: Frame, tracked: bool) -> Result<SendToken, SendRejected> {
        self.0.start_send(frame, tracked)
    }
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.0.poll_flush(cx)
    }
    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>> {
        self.0.poll_completions(cx, out)
    }
    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        Poll::Pending
    }
}

/// Lends memory, and says when it was taken back.
struct Lends(Arc<Mutex<Option<tokio::time::Instant>>>);

impl LaneRemote for Lends {
    fn grant(&mut self, _: RemoteGrant) -> Result<RemoteKey, LaneError> {
        Ok(RemoteKey::from_bytes(&[1; 16]).unwrap())
    }
    fn revoke(&mut self, _: &RemoteKey) -> Revoked {
        self.0.lock().get_or_insert_with(tokio::time::Instant::now);
        Revoked::Done
    }
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        Poll::Pending
    }
    fn start(&mut self, _: &RemoteKey, _: u64, _: RemoteOp) -> Result<RemoteToken, LaneError> {
        Err(LaneError::Closed)
    }
    fn poll_completions(
        &mut self,
        _: &mut Context<'_>,
        _: &mut Batch<RemoteCompletion>,
    ) -> Poll<Result<(), LaneError>> {
        Poll::Pending
    }
}

/// The lane lives on after the peer's CLOSE, for as long as `drain` if the peer wants, and with it what the peer was lent.
#[tokio::test(start_paused = true)]
async fn grants_end_in_time_while_the_connection_closes() {
    let ended = Arc::new(Mutex::new(None));
    let limits = LaneLimits::default();
    let mut caps = Caps::stream();
    caps.one_sided = OneSided::Native;
    let close = record(SessionRecord::Close { code: CloseCode::NORMAL, last_seq: 0, reason: String::new() });
    let lane = Lane {
        tx: Box::new(Unheard(Sinkhole(0))),
        rx: Box::new(Script([close].into())),
        drive: None,
        remote: Some(Box::new(Lends(ended.clone()))),
        caps,
        leases: LeaseBudget::new(limits.lease_soft, limits.lease_hard),
    };
    let options = ConnectionOptions { polling: Polling::Interrupt, ..ConnectionOptions::default() };
    let lasts = options.drain / 10;
    let mut conn = start_whole(lane, None, Arc::new(TokioReactor::new()), Arc::new(TracingObserver), options);
    let export = Export::new(4096, false).unwrap();
    let granted = tokio::time::Instant::now();
    export.grant_for(&conn, Access::WRITE, .., lasts).unwrap();
    assert!(conn.recv().await.unwrap().is_none());
    tokio::time::sleep(3 * lasts).await;
    let ended = ended.lock().expect("it has had its time");
    assert!(ended >= granted + lasts, "not before");
}

/// How often a receiver looks before the lane calls it.
const LOOKS_IN_VAIN: usize = 100;

/// A lane whose second message takes a poll with a waker, which it says by calling the one that it has.
#[derive(Default)]
struct Particular {
    waker: Option<Waker>,
    messages: u64,
    looks: usize,
}

impl Particular {
    fn give(&mut self, out: &mut Batch<Frame>) -> Received {
        self.messages += 1;
        out.push(Frame { ack: true, ..data(self.messages) });
        Received::Some
    }
}

impl LaneRx for Particular {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        if self.messages == 1 && self.looks > LOOKS_IN_VAIN {
            return Poll::Ready(Ok(self.give(out)));
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
    fn release(&mut self, _: usize) {}
    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        if self.messages == 0 {
            return Ok(Some(self.give(out)));
        }
        self.looks += 1;
        assert!(self.looks < 100 * LOOKS_IN_VAIN, "it looks for ever");
        if self.looks > LOOKS_IN_VAIN {
            self.waker.take().into_iter().for_each(Waker::wake);
        }
        Ok(None)
    }
}

/// Time stands still as long as somebody looks: the driver, which would come in ten milliseconds, does not.
#[tokio::test(start_paused = true)]
async fn who_is_called_while_it_looks_polls_with_a_waker() {
    let options = ConnectionOptions { polling: Polling::Busy, ..ConnectionOptions::default() };
    let (reactor, observer) = (Arc::new(TokioReactor::new()), Arc::new(TracingObserver));
    let lane = Box::new(Particular::default());
    let mut connection = start_lane(Box::new(Sinkhole(0)), lane, None, reactor, observer, options);
    for _ in 0..2 {
        assert!(connection.recv().await.unwrap().is_some());
    }
}
