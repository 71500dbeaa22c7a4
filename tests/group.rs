//! One buffer for many connections.

#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use zc::memory::{
    AllocError, BufPool, Membership, MemoryGroup, Region, RegionId, RegisterError, Registrar, RegistrarId,
    RegistrarSlot,
};
use zc::testing::{FaultPlan, FaultTransport, Tracer, fabric_over, mem_transport, pair, stream_transport};
use zc::transport::{
    AllocFailure, Batch, BoxFuture, Caps, ControlLink, Frame, FrameKind, Lane, LaneError, LaneTx, Offer,
    OfferContext, Role, SendRejected, SendReport, SendToken, Transport, Unavailable, WireupError,
};
use zc::{Connection, Fabric, PinnedBuf, PinnedBufMut};

const GUARD: Duration = Duration::from_secs(60);
const LARGE: usize = 1 << 20;
/// Messages after which a receiver knows the size.
const WARM_UP: usize = 5;

async fn guarded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future).await.expect("it hangs")
}

/// Both ends of a connection over a real socket.
async fn over_tcp(fabric: &Fabric) -> (Connection, Connection) {
    let mut listener = fabric.listen("zc+tcp://127.0.0.1:0").await.unwrap();
    let uri = listener.local_uri().to_string();
    tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap()
}

fn filled(mut buf: PinnedBufMut, len: usize) -> PinnedBuf {
    buf.resize(len, 0);
    buf.iter_mut().zip((0..251_u8).cycle()).for_each(|(byte, value)| *byte = value);
    buf.freeze()
}

/// Sends one buffer of the group to all, and takes it at the other ends.
async fn to_all(ends: &mut [(Connection, Connection)], buf: &PinnedBuf) {
    let sending = ends.iter().map(|(sender, _)| sender.send(buf.clone()));
    // Each is polled along with its receiver: a megabyte does not fit into a socket.
    let sent = futures::future::try_join_all(sending).await.unwrap();
    assert_eq!(sent.len(), ends.len());
    for (_, receiver) in ends {
        let message = receiver.recv().await.unwrap().unwrap();
        assert_eq!(message, buf[..]);
    }
}

async fn one_buffer_goes_to_three(mut ends: Vec<(Connection, Connection)>, fabric: &Fabric) {
    let group = fabric.group();
    for (sender, _) in &ends {
        group.admit(sender).unwrap();
        group.admit(sender).unwrap();
    }
    let mut before = Vec::new();
    for round in 0..10 {
        if round == WARM_UP {
            before = ends.iter().map(|(_, receiver)| receiver.ledger()).collect();
        }
        let buf = filled(group.alloc(LARGE).await.unwrap(), LARGE);
        let place = buf.as_ptr();
        to_all(&mut ends, &buf).await;
        assert_eq!(buf.as_ptr(), place, "round {round}");
    }
    for ((sender, receiver), before) in ends.iter().zip(&before) {
        let (out, back) = (sender.ledger(), receiver.ledger().since(before));
        assert_eq!((out.copied_bytes(), back.copied_bytes()), (0, 0), "{out:?} {back:?}");
        assert_eq!(out.moved_bytes, 10 * LARGE as u64);
        sender.drain(GUARD).await.unwrap();
    }
    assert_eq!(group.memory().pool().stats().in_use_bytes, 0, "all of it came back");
}

#[tokio::test]
async fn over_tcp_nobody_copies_a_large_one() {
    let fabric = Fabric::auto_builder().build().unwrap();
    let ends = [over_tcp(&fabric).await, over_tcp(&fabric).await, over_tcp(&fabric).await];
    guarded(one_buffer_goes_to_three(ends.into(), &fabric)).await;
}

#[tokio::test]
async fn in_memory_nobody_copies_a_large_one() {
    let fabric = fabric_over(mem_transport()).build().unwrap();
    let mut ends = Vec::new();
    for _ in 0..3 {
        ends.push(pair(&fabric).await.unwrap());
    }
    guarded(one_buffer_goes_to_three(ends, &fabric)).await;
}

#[tokio::test]
async fn memory_comes_back_when_the_last_connection_has_sent_it() {
    let fabric = fabric_over(mem_transport()).build().unwrap();
    let group = fabric.group_with(BufPool::builder().max_bytes(LARGE));
    let (one, mut at_one) = pair(&fabric).await.unwrap();
    let (other, mut at_other) = pair(&fabric).await.unwrap();
    let buf = filled(group.try_alloc(LARGE).unwrap(), LARGE);
    assert!(matches!(group.try_alloc(1), Err(AllocError::Exhausted { .. })));
    assert!(matches!(group.try_alloc(LARGE + 1), Err(AllocError::TooLarge { .. })));
    one.send(buf.clone()).await.unwrap();
    other.send(buf.clone()).await.unwrap();
    let mut waiting = std::pin::pin!(group.alloc(LARGE));
    for (sender, receiver) in [(&one, &mut at_one), (&other, &mut at_other)] {
        assert_eq!(guarded(receiver.recv()).await.unwrap().unwrap(), buf[..]);
        sender.drain(GUARD).await.unwrap();
        assert!(futures::poll!(&mut waiting).is_pending(), "it is still ours");
    }
    drop(buf);
    guarded(waiting).await.unwrap();
}

/// What members have registered, and how many messages came from memory of a group or from elsewhere.
#[derive(Default)]
struct Seen {
    registered: Mutex<Vec<(RegistrarId, RegionId)>>,
    by_place: AtomicUsize,
    foreign: AtomicUsize,
}

struct Member {
    slot: RegistrarSlot,
    seen: Arc<Seen>,
}

impl Registrar for Member {
    fn id(&self) -> RegistrarId {
        self.slot.id()
    }
    fn register(&self, region: &Region) -> Result<u64, RegisterError> {
        self.seen.registered.lock().unwrap().push((self.id(), region.id()));
        Ok(region.id().0)
    }
    fn deregister(&self, region: RegionId, _: u64) -> std::io::Result<()> {
        self.seen.registered.lock().unwrap().retain(|known| *known != (self.id(), region));
        Ok(())
    }
}

/// A stream whose lanes must know the memory that they send.
struct Registering(Arc<dyn Transport>, Arc<Seen>);

impl Transport for Registering {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn probe(&self) -> Result<Caps, Unavailable> {
        self.0.probe()
    }
    fn in_band(&self) -> bool {
        true
    }
    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        self.0.offer(cx)
    }
    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async move {
            let lane = self.0.join(role, mine, peer, link, cx).await?;
            let slot = RegistrarSlot::allocate().unwrap();
            let member: Arc<dyn Registrar> = Arc::new(Member { slot, seen: self.1.clone() });
            let tx = Tx { inner: lane.tx, groups: Vec::new(), member, seen: self.1.clone() };
            Ok(Lane { tx: Box::new(tx), ..lane })
        })
    }
}

struct Tx {
    inner: Box<dyn LaneTx>,
    /// In front of the registrar that they name, so that they leave first.
    groups: Vec<Membership>,
    member: Arc<dyn Registrar>,
    seen: Arc<Seen>,
}

impl LaneTx for Tx {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        self.inner.poll_alloc(cx, len)
    }
    fn poll_ready(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), LaneError>> {
        self.inner.poll_ready(cx, len)
    }
    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        if frame.kind == FrameKind::Data {
            let known = |part| self.groups.iter().any(|group| group.place_of(part).is_ok());
            let all = frame.payload.segments().iter().all(known);
            let count = if all { &self.seen.by_place } else { &self.seen.foreign };
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.start_send(frame, report)
    }
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.inner.poll_flush(cx)
    }
    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>> {
        self.inner.poll_completions(cx, out)
    }
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.inner.poll_close(cx)
    }
    fn join_group(&mut self, group: &MemoryGroup) -> Result<(), RegisterError> {
        self.groups.push(group.join(&self.member)?);
        Ok(())
    }
}

/// Admitted connections register each region once; others never see one, and leaving undoes it.
async fn admission(transport: Arc<dyn Transport>, seen: Arc<Seen>) {
    let fabric = fabric_over(transport).build().unwrap();
    let group = fabric.group();
    let mut ends = Vec::new();
    for _ in 0..3 {
        ends.push(pair(&fabric).await.unwrap());
    }
    let outsider = pair(&fabric).await.unwrap();
    for (sender, _) in &ends {
        group.admit(sender).unwrap();
        group.admit(sender).unwrap();
    }
    assert_eq!(group.memory().members(), 3);
    ends.push(outsider);
    for _ in 0..5 {
        let buf = filled(group.alloc(1000).await.unwrap(), 1000);
        to_all(&mut ends, &buf).await;
    }
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    assert_eq!((count(&seen.by_place), count(&seen.foreign)), (15, 5));
    let known = seen.registered.lock().unwrap().clone();
    assert_eq!(known.len(), 3, "once per member: {known:?}");
    assert!(known.iter().all(|(_, region)| *region == known[0].1));

    for (sender, receiver) in ends {
        sender.drain(GUARD).await.unwrap();
        drop((sender, receiver));
    }
    while group.memory().members() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(seen.registered.lock().unwrap().is_empty(), "what was registered is forgotten");
}

#[tokio::test]
async fn only_admitted_connections_register_memory() {
    let seen = Arc::<Seen>::default();
    guarded(admission(Arc::new(Registering(mem_transport(), seen.clone())), seen)).await;
}

#[tokio::test]
async fn lanes_that_wrap_others_pass_admission_on() {
    let seen = Arc::<Seen>::default();
    let inner = Arc::new(Registering(mem_transport(), seen.clone()));
    let traced = Arc::new(Tracer::new(inner));
    guarded(admission(Arc::new(FaultTransport::new(traced, FaultPlan::new(1))), seen)).await;
}

#[tokio::test]
async fn each_group_is_a_circle_of_its_own() {
    let fabric = fabric_over(stream_transport()).build().unwrap();
    let (one, other) = (fabric.group(), fabric.group());
    let (a, b) = (one.try_alloc(10).unwrap(), other.try_alloc(10).unwrap());
    assert_eq!(a.region().unwrap().group(), Some(one.memory().id()));
    assert_ne!(a.region().unwrap().group(), b.region().unwrap().group());
}
