//! Handshakes with each other, and with peers that mean no good, in simulated time.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use zc_core::memory::PinnedBufMut;
use zc_core::transport::{
    AllocFailure, Batch, BoxFuture, Caps, Frame, LaneError, LaneRx, LaneTx, Offer, Received, SendRejected,
    SendReport, SendToken, WireupError,
};
use zc_core::wire::{
    CONTROL_LANE, ClientHandshake, FrameFlags, FrameHeader, HelloRole, OfferEntry, ServerHandshake,
    SessionRecord,
};
use zc_transport_tcp::TcpTransport;

use super::*;
use crate::fabric::{Fabric, FabricBuilder};
use crate::mem::{PipeLink, duplex};
use crate::report::Outcome;

/// What a [`Fake`] does when it joins.
#[derive(Clone, Copy, PartialEq)]
enum Join {
    /// Greets the other end, then brings up a stream lane on a pipe of its own.
    Works,
    /// The same, but nobody is at the other end of the pipe's bytes.
    Mute,
    /// The pipe's other end is gone.
    Dead,
    /// Passes its ping, and breaks right after.
    Breaks,
    /// Fails at once.
    Fails,
    /// Waits for ever.
    Hangs,
    /// Sends more messages than are allowed.
    Babbles,
    /// Is made for other links.
    NotHere,
}

/// An out-of-band transport inside the process. Pipes are handed over by their client's instance.
struct Fake {
    name: &'static str,
    join: Join,
}

static PIPES: Mutex<Vec<(&'static str, [u8; 16], PipeLink)>> = Mutex::new(Vec::new());

fn fake(name: &'static str, join: Join) -> Arc<dyn Transport> {
    Arc::new(Fake { name, join })
}

async fn greet(link: &mut dyn ControlLink, role: Role, id: &mut [u8; 16]) -> stdio::Result<()> {
    match role {
        Role::Client => {
            io::write_all(link, id).await?;
            io::read_exact(link, &mut [0]).await
        }
        Role::Server => {
            io::read_exact(link, id).await?;
            io::write_all(link, b"!").await
        }
    }
}

impl Transport for Fake {
    fn name(&self) -> &'static str {
        self.name
    }
    fn probe(&self) -> Result<Caps, Unavailable> {
        Ok(Caps::stream())
    }
    fn params(&self) -> &'static [&'static str] {
        &["dev"]
    }
    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        if self.join == Join::NotHere {
            return Err(Unavailable::NotApplicable { needs: "another link" });
        }
        assert_eq!((cx.same_host.clone(), cx.trust), (Ok(()), zc_core::transport::Trust::Cooperative));
        Ok(Offer { version: 1, bytes: self.name.into() })
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
            assert_eq!(mine, peer);
            let link = link.as_mut().unwrap();
            let failed = |source| LinkError::Io { operation: "greet", source };
            match self.join {
                Join::Fails => return Err(Unavailable::NoDevice.into()),
                Join::Hangs => std::future::pending::<()>().await,
                Join::Babbles => loop {
                    io::write_all(&mut **link, b"x").await.map_err(failed)?;
                },
                _ => {}
            }
            let (near, far) = duplex("lane");
            let mut id = near.id();
            PIPES.lock().push((self.name, id, far));
            greet(&mut **link, role, &mut id).await.map_err(failed)?;
            let pipe = match (role, self.join) {
                (Role::Client, Join::Works | Join::Breaks | Join::Mute) => near,
                (Role::Server, Join::Works | Join::Breaks) => {
                    let mut pipes = PIPES.lock();
                    let at = pipes.iter().position(|(name, of, _)| (*name, *of) == (self.name, id)).unwrap();
                    pipes.remove(at).2
                }
                (_, Join::Dead) => {
                    PIPES.lock().retain(|(_, of, _)| *of != near.id());
                    near
                }
                _ => near,
            };
            let lane = TcpTransport.join(role, mine, peer, &mut Some(Box::new(pipe)), cx).await?;
            Ok(if self.join == Join::Breaks { breaking(lane) } else { lane })
        })
    }
}

/// Half of a lane that breaks once a ping has passed.
struct Breaking<T: ?Sized> {
    inner: Box<T>,
    /// Of the PING and the PONG, those that came.
    frames: Arc<AtomicUsize>,
    flushed: bool,
}

fn breaking(lane: Lane) -> Lane {
    let frames = Arc::<AtomicUsize>::default();
    Lane {
        tx: Box::new(Breaking { inner: lane.tx, frames: frames.clone(), flushed: false }),
        rx: Box::new(Breaking { inner: lane.rx, frames, flushed: false }),
        ..lane
    }
}

impl<T: ?Sized> Breaking<T> {
    fn broken(&self) -> Result<(), LaneError> {
        let passed = self.frames.load(Ordering::Relaxed) >= 2;
        if passed { Err(LaneError::Os { errno: 5, operation: "break" }) } else { Ok(()) }
    }
}

impl LaneRx for Breaking<dyn LaneRx> {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        self.broken()?;
        let received = self.inner.poll_recv(cx, out);
        self.frames.fetch_add(out.len(), Ordering::Relaxed);
        received
    }
    fn release(&mut self, bytes: usize) {
        self.inner.release(bytes);
    }
    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        self.broken()?;
        self.inner.try_recv(out)
    }
}

impl LaneTx for Breaking<dyn LaneTx> {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        self.inner.poll_alloc(cx, len)
    }
    fn poll_ready(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), LaneError>> {
        self.inner.poll_ready(cx, len)
    }
    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        self.inner.start_send(frame, report)
    }
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        // The flush that ends the ping still works.
        if self.flushed {
            self.broken()?;
        }
        self.flushed = self.broken().is_err();
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
}

/// Collects what is observed.
#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Observer for Seen {
    fn connected(&self, event: &crate::event::Connected) {
        self.0.lock().push(format!("{:?} connected over {}", event.role, event.report.chosen()));
    }
    fn handshake_failed(&self, event: &HandshakeFailed) {
        self.0.lock().push(format!("{:?} failed in {}", event.role, event.stage));
    }
    fn fell_back(&self, event: &FellBack) {
        self.0.lock().push(format!("fell back to {}", event.report.chosen()));
    }
}

/// An in-band transport that only exists here, so that the plan can end with one.
fn stream() -> Arc<dyn Transport> {
    Arc::new(crate::mem::MemTransport::over(Arc::new(TcpTransport)))
}

fn with(transports: impl IntoIterator<Item = Arc<dyn Transport>>) -> FabricBuilder {
    transports.into_iter().fold(Fabric::builder(), FabricBuilder::transport)
}

type Ends = (Result<Connection, Error>, Result<Connection, Error>);

async fn connect_as(client: FabricBuilder, server: FabricBuilder, named: Option<&str>) -> Ends {
    let (near, far) = duplex("test");
    let (client, server) = (client.build().unwrap(), server.build().unwrap());
    let request = Request { named: named.map(str::to_owned), params: UriParams::default() };
    let none = Request::default();
    let progress = [Progress::default(), Progress::default()];
    let [for_client, for_server] = &progress;
    let near_side =
        Side { role: Role::Client, request: &request, prover: None, progress: for_client, plain: None };
    let far_side =
        Side { role: Role::Server, request: &none, prover: None, progress: for_server, plain: None };
    futures::future::join(
        run(client.shared(), near_side, Box::new(near), || 1),
        run(server.shared(), far_side, Box::new(far), || 1),
    )
    .await
}

async fn connect(client: FabricBuilder, server: FabricBuilder) -> Ends {
    connect_as(client, server, None).await
}

/// Both ends chose it, and a message goes either way.
async fn both_chose(ends: Ends, name: &str) -> [String; 2] {
    let (mut client, mut server) = (ends.0.unwrap(), ends.1.unwrap());
    assert_eq!((client.report().chosen(), server.report().chosen()), (name, name));
    client.send(&b"there"[..]).await.unwrap();
    assert_eq!(server.recv().await.unwrap().unwrap(), b"there"[..]);
    server.send(&b"back"[..]).await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), b"back"[..]);
    [client.report().to_string(), server.report().to_string()]
}

fn refused(result: Result<Connection, Error>) -> SelectionReport {
    match result.err() {
        Some(Error::NoTransport(report)) => *report,
        other => panic!("{other:?}"),
    }
}

fn outcome(report: &SelectionReport, name: &str) -> Outcome {
    let found = report.candidates().iter().find(|candidate| candidate.transport == name);
    found.unwrap_or_else(|| panic!("{name} is not in\n{report}")).outcome.clone()
}

#[tokio::test(start_paused = true)]
async fn the_best_lane_is_taken() {
    let all = || with([stream(), fake("rdma", Join::Works), fake("shm", Join::Works)]);
    let start = tokio::time::Instant::now();
    let (client, server) = connect(all(), all()).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    let report = client.as_ref().unwrap().report().clone();
    assert_eq!(outcome(&report, "rdma"), Outcome::NotNeeded);
    assert_eq!(client.as_ref().unwrap().peer().agent, concat!("zc/", env!("CARGO_PKG_VERSION")));
    both_chose((client, server), "shm").await;
}

#[tokio::test(start_paused = true)]
async fn lanes_that_fail_in_every_way_give_way_in_order() {
    let side = |join| {
        with([
            stream(),
            fake("shm", join),
            fake("rdma", Join::Hangs),
            fake("xdp", Join::Mute),
            fake("uring", Join::Dead),
        ])
    };
    for (near, far) in [(Join::Works, Join::Fails), (Join::Fails, Join::Works), (Join::Fails, Join::Fails)] {
        let reports = both_chose(connect(side(near), side(far)).await, "mem").await;
        assert!(reports.iter().any(|text| text.contains("no_device")), "{reports:?}");
        for text in reports {
            let line = |name| text.lines().find(|line: &&str| line.starts_with(name)).unwrap().to_owned();
            assert!(line("shm").contains("no_device"), "the reason is on both sides: {text}");
            assert!(line("rdma").contains("timeout (stage join)"), "{text}");
            assert!(line("xdp").contains("timeout (stage join)"), "{text}");
            assert!(line("uring").contains("unavailable: "), "{text}");
            assert!(line("mem").ends_with("chosen"), "{text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_gives_up_is_heard_while_we_ping() {
    let start = tokio::time::Instant::now();
    let side = |join| with([stream(), fake("shm", join)]);
    both_chose(connect(side(Join::Fails), side(Join::Works)).await, "mem").await;
    assert_eq!(start.elapsed(), Duration::ZERO, "no deadline had to pass");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_gives_up_is_heard_while_a_transport_does_not_read() {
    let side = |join| with([stream(), fake("shm", join)]);
    let start = tokio::time::Instant::now();
    // What is said before it gives up is read ahead of a transport that hangs.
    for (near, far) in [
        (Join::Fails, Join::Hangs),
        (Join::Hangs, Join::Fails),
        (Join::Babbles, Join::Hangs),
        (Join::Hangs, Join::Babbles),
    ] {
        let reports = both_chose(connect(side(near), side(far)).await, "mem").await;
        for text in reports {
            assert!(text.contains("no_device") || text.contains("too many messages"), "{text}");
        }
    }
    assert_eq!(start.elapsed(), Duration::ZERO, "no deadline had to pass");
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_breaks_before_commit_gives_way_at_the_client() {
    let side = |join| with([stream(), fake("shm", join), fake("rdma", Join::Works)]);
    for name in ["rdma", "mem"] {
        let side = |join| if name == "rdma" { side(join) } else { with([stream(), fake("shm", join)]) };
        let [client, server] = both_chose(connect(side(Join::Breaks), side(Join::Works)).await, name).await;
        assert!(client.contains("os (break: errno 5)"), "{client}");
        assert!(server.contains("peer_failed (break: "), "{server}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_breaks_at_the_server_ends_in_a_typed_error() {
    let side = |join| with([stream(), fake("shm", join)]);
    let (client, server) = connect(side(Join::Works), side(Join::Breaks)).await;
    let error = server.err().unwrap();
    let lane =
        matches!(&error, Error::Connection(crate::ConnectionError::Lane(LaneError::Os { errno: 5, .. })));
    assert!(lane, "{error}");
    assert_eq!(error.stage(), Some(Stage::Commit));
    // It had committed, and hears of it as it would of any peer that goes away.
    let mut client = client.unwrap();
    assert!(matches!(client.recv().await, Err(crate::ConnectionError::Lane(_))));
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_babbles_fails_alone() {
    let side = |join| with([stream(), fake("shm", join)]);
    let reports = both_chose(connect(side(Join::Babbles), side(Join::Hangs)).await, "mem").await;
    assert!(reports[0].contains("unavailable"), "{reports:?}");
}

#[tokio::test(start_paused = true)]
async fn one_side_alone_has_it() {
    let ends = connect(with([stream(), fake("shm", Join::Works)]), with([stream()])).await;
    let report = ends.0.as_ref().unwrap().report().clone();
    assert_eq!(outcome(&report, "shm"), Outcome::Unavailable(Unavailable::PeerLacks));
    both_chose(ends, "mem").await;
}

#[tokio::test(start_paused = true)]
async fn the_control_link_is_the_last_resort() {
    let only = |join| with([fake("shm", join)]);
    let reports = both_chose(connect(only(Join::Fails), only(Join::Hangs)).await, "mem").await;
    assert!(reports[0].contains("no_device"), "{reports:?}");
    assert!(reports[1].contains("unavailable"), "{reports:?}");
    let empty = connect(only(Join::Works), with([fake("rdma", Join::Works)])).await;
    both_chose(empty, "mem").await;
    both_chose(connect(with([]), with([])).await, "mem").await;
}

#[tokio::test(start_paused = true)]
async fn a_uri_that_names_a_transport_gets_that_or_nothing() {
    let only = |join| with([stream(), fake("shm", join), fake("rdma", Join::Works)]);
    both_chose(connect_as(only(Join::Works), only(Join::Works), Some("rdma")).await, "rdma").await;
    let (client, server) = connect_as(only(Join::Works), only(Join::Fails), Some("shm")).await;
    let (client, server) = (refused(client), refused(server));
    assert_eq!(outcome(&client, "rdma"), Outcome::Unavailable(Unavailable::ForbiddenByPolicy));
    assert!(
        matches!(outcome(&client, "shm"), Outcome::Unavailable(Unavailable::PeerFailed { .. })),
        "{client}"
    );
    assert_eq!(outcome(&server, "shm"), Outcome::Unavailable(Unavailable::NoDevice));
    let (client, _) = connect_as(only(Join::Works), only(Join::Works), Some("none")).await;
    assert!(refused(client).to_string().contains("register or compile in"));
}

#[tokio::test(start_paused = true)]
async fn fallback_is_told_or_denied() {
    let seen = Arc::new(Seen::default());
    let side = |rule, join| {
        let policy = Policy::default().fallback(rule);
        with([stream(), fake("shm", join)]).policy(policy).observer(seen.clone())
    };
    both_chose(connect(side(Fallback::Warn, Join::Fails), side(Fallback::Allow, Join::Works)).await, "mem")
        .await;
    let mut events = std::mem::take(&mut *seen.0.lock());
    events.sort();
    assert_eq!(events, ["Client connected over mem", "Server connected over mem", "fell back to mem"]);
    for (near, far) in [(Fallback::Deny, Fallback::Warn), (Fallback::Warn, Fallback::Deny)] {
        let (client, server) = connect(side(near, Join::Works), side(far, Join::Fails)).await;
        assert!(client.is_err() && server.is_err());
        let denier = if near == Fallback::Deny { client } else { server };
        assert!(refused(denier).to_string().contains("shm"));
    }
    let events = std::mem::take(&mut *seen.0.lock());
    assert_eq!(events.iter().filter(|event| event.contains("failed in")).count(), 4, "{events:?}");
    // What is not made for this link is missed only by name.
    let stranger = || fake("xdp", Join::NotHere);
    for (policy, told) in [(Policy::default(), false), (Policy::default().prefer(["xdp"]), true)] {
        let side = || with([stream(), stranger()]).policy(policy.clone()).observer(seen.clone());
        both_chose(connect(side(), side()).await, "mem").await;
        let events = std::mem::take(&mut *seen.0.lock());
        assert_eq!(events.iter().any(|event| event.contains("fell back")), told, "{events:?}");
        let deny = || side().policy(policy.clone().fallback(Fallback::Deny));
        let (client, server) = connect(deny(), deny()).await;
        assert_eq!((client.is_err(), server.is_err()), (told, told));
        seen.0.lock().clear();
    }
    // The first choice is no fallback.
    let deny = || side(Fallback::Deny, Join::Works);
    both_chose(connect(deny(), deny()).await, "shm").await;
}

#[tokio::test(start_paused = true)]
async fn encryption_can_not_be_had() {
    let policy = Policy::default().require_encrypted();
    let (client, server) = connect(with([stream()]).policy(policy), with([stream()])).await;
    assert_eq!(outcome(&refused(client), "mem"), Outcome::Unavailable(Unavailable::NoEncryption));
    refused(server);
}

/// A peer driven by hand: sends bytes, then stays silent or hangs up. Returns how the server ended.
async fn hostile_to(server: FabricBuilder, bytes: &[u8], hang_up: bool) -> Error {
    let server = server.build().unwrap();
    let (mut near, far) = duplex("hostile");
    io::write_all(&mut near, bytes).await.unwrap();
    if hang_up {
        poll_fn(|cx| near.poll_shutdown(cx)).await.unwrap();
    }
    let (request, progress) = (Request::default(), Progress::default());
    let side = Side { role: Role::Server, request: &request, prover: None, progress: &progress, plain: None };
    let result = run(server.shared(), side, Box::new(far), || 1).await;
    drop(near);
    result.err().unwrap()
}

async fn hostile(bytes: &[u8]) -> Error {
    hostile_to(with([stream(), fake("shm", Join::Works)]), bytes, false).await
}

fn hello() -> Vec<u8> {
    let mut bytes = Vec::new();
    hello_of(HelloRole::Client, VersionRange::SUPPORTED).encode(&mut bytes).unwrap();
    bytes
}

fn hello_of(role: HelloRole, versions: VersionRange) -> Hello {
    Hello {
        versions,
        role,
        instance: [1; 16],
        max_message: 1 << 20,
        window: 1 << 20,
        auth_method: String::new(),
        keepalive_ms: 0,
        agent: "test".into(),
        same_host: None,
        control_lane: true,
        remote: true,
    }
}

fn encoded(messages: &[ControlMessage]) -> Vec<u8> {
    let mut bytes = hello();
    for message in messages {
        message.encode(&mut bytes).unwrap();
    }
    bytes
}

fn offers(names: &[&str]) -> ControlMessage {
    let offer = |name: &&str| OfferEntry { transport: (*name).into(), version: 1, bytes: (*name).into() };
    ControlMessage::Offers(names.iter().map(offer).collect())
}

/// Everything that a good client says, lane by lane, and the stage that follows each message.
fn good() -> Vec<(ControlMessage, Stage)> {
    let up = |index| ControlMessage::LaneUp { index };
    let down = ControlMessage::LaneDown { index: 0, reason: "no".into() };
    vec![(offers(&["shm", "mem"]), Stage::Join), (down, Stage::Join), (up(1), Stage::Commit)]
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stalls_ends_in_the_stage_where_it_did() {
    let start = tokio::time::Instant::now();
    assert!(matches!(hostile(b"").await, Error::Timeout { stage: Stage::Hello }));
    assert!(start.elapsed() >= crate::options::DEFAULT_STAGE);
    let hello = hello();
    for len in [1, 4, 11, 12, hello.len() - 1] {
        assert!(matches!(hostile(&hello[..len]).await, Error::Timeout { stage: Stage::Hello }), "{len}");
    }
    assert!(matches!(hostile(&hello).await, Error::Timeout { stage: Stage::Offers }));
    for (at, (_, expected)) in good().into_iter().enumerate() {
        let said: Vec<_> = good().into_iter().take(at + 1).map(|(message, _)| message).collect();
        let bytes = encoded(&said);
        let error = hostile(&bytes).await;
        assert!(matches!(error, Error::Timeout { stage } if stage == expected), "{at}: {error}");
        let error = hostile(&bytes[..bytes.len() - 1]).await;
        assert!(matches!(error, Error::Timeout { .. }), "{at}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_hangs_up_is_noticed_at_once_at_every_byte() {
    let said: Vec<_> = good().into_iter().map(|(message, _)| message).collect();
    let bytes = encoded(&said);
    let start = tokio::time::Instant::now();
    for len in 0..bytes.len() {
        let error = hostile_to(with([stream()]), &bytes[..len], true).await;
        assert!(matches!(error, Error::Link { .. } | Error::Wire { .. }), "{len}: {error}");
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn messages_in_the_wrong_order_are_refused_at_once() {
    let start = tokio::time::Instant::now();
    let join = |index, len| ControlMessage::Join { index, bytes: vec![0; len] };
    let up = |index| ControlMessage::LaneUp { index };
    let commit = |index| ControlMessage::Commit { index };
    let reject = ControlMessage::Reject { code: zc_core::wire::CloseCode::REJECTED, reason: "no".into() };
    for (wrong, stage) in [
        (vec![ControlMessage::Auth { bytes: vec![1] }], Stage::Offers),
        (vec![ControlMessage::AuthOk], Stage::Offers),
        (vec![ControlMessage::Plan(vec![])], Stage::Offers),
        (vec![join(0, 1)], Stage::Offers),
        (vec![reject], Stage::Offers),
        (vec![commit(0)], Stage::Offers),
        (vec![offers(&["mem", "mem"])], Stage::Offers),
        (vec![offers(&["mem"]), offers(&["mem"])], Stage::Join),
        (vec![offers(&["mem"]), up(1)], Stage::Join),
        (vec![offers(&["mem"]), join(1, 1)], Stage::Join),
        (vec![offers(&["mem"]), commit(0)], Stage::Join),
        (vec![offers(&["mem"]), up(0), commit(1)], Stage::Commit),
        (vec![offers(&["mem"]), up(0), commit(CONTROL_LANE)], Stage::Commit),
        (vec![offers(&["mem"]), up(0), up(0)], Stage::Commit),
    ] {
        let error = hostile(&encoded(&wrong)).await;
        assert!(matches!(&error, Error::Wire { stage: at, .. } if *at == stage), "{wrong:?}: {error}");
    }
    let mut flood = vec![offers(&["mem"])];
    flood.extend((0..300).map(|_| join(0, 1)));
    let error = hostile(&encoded(&flood)).await;
    assert!(error.to_string().contains("join messages"), "{error}");
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn descriptors_announced_on_a_link_that_has_none_cost_the_lane_only() {
    // The byte behind an empty JOIN is read and dropped, so the link keeps its place.
    let mut bytes = encoded(&[offers(&["shm", "mem"]), ControlMessage::Join { index: 0, bytes: vec![] }]);
    bytes.push(0);
    ControlMessage::LaneDown { index: 0, reason: "no".into() }.encode(&mut bytes).unwrap();
    ControlMessage::LaneUp { index: 1 }.encode(&mut bytes).unwrap();
    let error = hostile(&bytes).await;
    assert!(matches!(error, Error::Timeout { stage: Stage::Commit }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn garbage_is_told_apart_at_once() {
    let start = tokio::time::Instant::now();
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0\r\n", &[0x16, 3, 1, 0]] {
        let error = hostile(bytes).await;
        let magic = matches!(error, Error::Wire { stage: Stage::Hello, source: WireError::BadMagic { .. } });
        assert!(magic, "{error}");
    }
    let mut long = hello();
    long[8..12].fill(0xFF);
    assert!(matches!(hostile(&long).await, Error::Wire { stage: Stage::Hello, .. }));
    let mut message = hello();
    message.extend([3, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    assert!(matches!(hostile(&message).await, Error::Wire { stage: Stage::Offers, .. }));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn random_bytes_end_in_a_typed_error() {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    for round in 0..200 {
        // Some get past the HELLO, some past the offers.
        let mut bytes = match round % 3 {
            0 => Vec::new(),
            1 => hello(),
            _ => encoded(&[offers(&["shm", "mem"])]),
        };
        bytes.extend((0..round).map(|_| random()));
        let error = hostile(&bytes).await;
        assert!(matches!(error, Error::Wire { .. } | Error::Timeout { .. }), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_is_bounded_too() {
    let deadlines = Deadlines { total: Duration::from_secs(7), ..Deadlines::default() };
    let hang = |name| fake(name, Join::Hangs);
    let side = || with([hang("shm"), hang("rdma"), hang("xdp")]).deadlines(deadlines.clone());
    let start = tokio::time::Instant::now();
    let (client, server) = connect(side(), side()).await;
    assert!(client.is_err() && server.is_err());
    assert!(start.elapsed() <= Duration::from_millis(7_100), "{:?}", start.elapsed());
}

/// A client of other versions, as far as HELLO.
async fn other_client(versions: VersionRange) -> (Error, Result<Option<u8>, WireError>) {
    let (mut near, far) = duplex("version");
    let mut hs = ClientHandshake::new(hello_of(HelloRole::Client, versions)).unwrap();
    io::write_all(&mut near, &hs.take_output()).await.unwrap();
    poll_fn(|cx| near.poll_shutdown(cx)).await.unwrap();
    let server = with([stream()]).build().unwrap();
    let (request, progress) = (Request::default(), Progress::default());
    let side = Side { role: Role::Server, request: &request, prover: None, progress: &progress, plain: None };
    let ours = run(server.shared(), side, Box::new(far), || 1).await.err().unwrap();
    let mut answer = vec![0; 4096];
    let count = poll_fn(|cx| near.poll_read(cx, &mut answer)).await.unwrap();
    let theirs = hs.handle_hello(&answer[..count]).map(|_| hs.version());
    (ours, theirs)
}

#[tokio::test(start_paused = true)]
async fn a_newer_peer_agrees_or_both_say_why() {
    let (ours, theirs) = other_client(VersionRange::new(1, 2).unwrap()).await;
    assert_eq!(theirs, Ok(Some(1)));
    assert!(matches!(ours, Error::Link { stage: Stage::Offers, .. }), "it only hung up: {ours}");

    let newer = VersionRange::new(2, 3).unwrap();
    let (ours, theirs) = other_client(newer).await;
    let mismatch = |ours, theirs| WireError::VersionMismatch { ours, theirs };
    assert_eq!(theirs, Err(mismatch(newer, VersionRange::SUPPORTED)));
    let Error::Wire { stage: Stage::Hello, source } = ours else { panic!("{ours}") };
    assert_eq!(source, mismatch(VersionRange::SUPPORTED, newer));
}

/// A server of other versions by hand, against our client.
async fn other_server(versions: VersionRange) -> (Error, Result<Option<u8>, WireError>) {
    let (near, mut far) = duplex("version");
    let mut hs = ServerHandshake::new(hello_of(HelloRole::Server, versions)).unwrap();
    let by_hand = async move {
        let mut bytes = vec![0; 4096];
        let count = poll_fn(|cx| far.poll_read(cx, &mut bytes)).await.unwrap();
        let taken = hs.handle_hello(&bytes[..count]).map(|_| hs.version());
        io::write_all(&mut far, &hs.take_output()).await.unwrap();
        taken
    };
    let client = with([stream()]).build().unwrap();
    let (request, progress) = (Request::default(), Progress::default());
    let side = Side { role: Role::Client, request: &request, prover: None, progress: &progress, plain: None };
    let ours = run(client.shared(), side, Box::new(near), || 1);
    let (ours, theirs) = futures::future::join(ours, by_hand).await;
    (ours.err().unwrap(), theirs)
}

#[tokio::test(start_paused = true)]
async fn a_newer_server_agrees_or_both_say_why() {
    let (ours, theirs) = other_server(VersionRange::new(1, 2).unwrap()).await;
    assert_eq!(theirs, Ok(Some(1)));
    assert!(matches!(ours, Error::Link { stage: Stage::Offers, .. }), "it only hung up: {ours}");

    let newer = VersionRange::new(2, 3).unwrap();
    let (ours, theirs) = other_server(newer).await;
    let mismatch = |ours, theirs| WireError::VersionMismatch { ours, theirs };
    assert_eq!(theirs, Err(mismatch(newer, VersionRange::SUPPORTED)));
    let Error::Wire { stage: Stage::Hello, source } = ours else { panic!("{ours}") };
    assert_eq!(source, mismatch(VersionRange::SUPPORTED, newer));
}

#[tokio::test]
async fn a_client_of_another_version_hears_of_it_over_tcp_before_the_end() {
    let mut listener = Fabric::auto().unwrap().listen("zc://127.0.0.1:0").await.unwrap();
    let address = listener.local_uri().to_string().replace("zc://", "");
    let newer = VersionRange::new(2, 3).unwrap();
    let mut bytes = Vec::new();
    hello_of(HelloRole::Client, newer).encode(&mut bytes).unwrap();
    let heard = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        // A reset here could overtake what was said before it.
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    let heard = futures::future::select(Box::pin(listener.accept()), heard).await;
    let futures::future::Either::Right((heard, _)) = heard else { panic!("accepted") };
    let theirs = Hello::decode(&heard.unwrap(), newer);
    let mismatch = WireError::VersionMismatch { ours: newer, theirs: VersionRange::SUPPORTED };
    assert_eq!(theirs, Err(mismatch));
}

/// A frame as a stream lane writes it.
fn frame(header: FrameHeader, payload: &[u8]) -> Vec<u8> {
    header.encode().into_iter().chain(payload.iter().copied()).collect()
}

/// Runs a trial against bytes that a peer wrote.
async fn trial(bytes: &[u8]) -> Result<(), LaneError> {
    let fabric = with([]).build().unwrap();
    let shared = fabric.shared();
    let (mut near, far) = duplex("trial");
    io::write_all(&mut near, bytes).await.unwrap();
    let ledger = Arc::new(CopyLedger::new());
    let cx = OfferContext::new(shared.reactor.clone(), shared.pool.clone(), ledger, shared.limits);
    let link: Box<dyn ControlLink> = Box::new(far);
    let lane = TcpTransport.join(Role::Server, Offer::default(), Offer::default(), &mut Some(link), cx).await;
    let mut trial =
        super::trial::Trial::new(Role::Server, lane.unwrap(), shared.pool.clone(), shared.reactor.clone())
            .unwrap();
    poll_fn(|cx| trial.poll_pinged(cx)).await
}

#[tokio::test(start_paused = true)]
async fn only_a_ping_and_a_pong_may_come_before_commit() {
    let record = |record: SessionRecord| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        frame(FrameHeader::session(bytes.len() as u32), &bytes)
    };
    let (ping, pong) = (record(SessionRecord::Ping { nonce: 5 }), record(SessionRecord::Pong { nonce: 1 }));
    let good = [ping.clone(), pong.clone()].concat();
    trial(&good).await.unwrap();
    let flags = FrameFlags { ext: false, ack_requested: true };
    for wrong in [
        frame(FrameHeader { flags, ..FrameHeader::data(1, 1) }, b"x"),
        record(SessionRecord::Fin { last_seq: 0 }),
        record(SessionRecord::Pong { nonce: 2 }),
        [ping.clone(), ping.clone()].concat(),
        [good, pong].concat(),
        frame(FrameHeader::session(3), b"xyz"),
    ] {
        let error = trial(&wrong).await.unwrap_err();
        assert!(!error.to_string().is_empty());
    }
}
