//! Handshakes with each other, and with peers that mean no good, in simulated time. Here is what they share.

#![allow(clippy::unwrap_used, reason = "test helpers")]

mod hostile;
mod lanes;
mod policy;
mod trial;
mod versions;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use zc_core::memory::{MemoryGroup, PinnedBufMut, RegisterError};
use zc_core::transport::{
    AllocFailure, Batch, BoxFuture, Caps, Frame, LaneError, LaneRx, LaneTx, Offer, Received, SendRejected,
    SendReport, SendToken, Transport, WireupError,
};
use zc_core::wire::{
    CONTROL_LANE, ClientHandshake, FrameFlags, FrameHeader, HelloRole, OfferEntry, ServerHandshake,
    SessionRecord,
};
use zc_transport_tcp::TcpTransport;

use super::*;
use crate::event::Observer;
use crate::fabric::{Fabric, FabricBuilder};
use crate::mem::{PipeLink, duplex};
use crate::options::Deadlines;
use crate::policy::Policy;
use crate::report::Outcome;

/// What a [`Fake`] does when it joins.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// The machine does not have it.
    Refused,
    /// So it is, which is found out when a half of a lane is made.
    NoHalf,
    /// Reads two bytes in a task of its own, and fails.
    Elsewhere,
}

/// An out-of-band transport inside the process. Pipes are handed over by their client's instance.
struct Fake {
    name: &'static str,
    wire: &'static str,
    second: Option<&'static str>,
    join: Join,
}

static PIPES: Mutex<Vec<(&'static str, [u8; 16], PipeLink)>> = Mutex::new(Vec::new());

fn fake(name: &'static str, join: Join) -> Arc<dyn Transport> {
    engine(name, name, join)
}

/// One that speaks `wire` to the peer.
fn engine(name: &'static str, wire: &'static str, join: Join) -> Arc<dyn Transport> {
    Arc::new(Fake { name, wire, second: None, join })
}

/// One that makes another offer under a second name.
fn last_resort(name: &'static str, [wire, second]: [&'static str; 2], join: Join) -> Arc<dyn Transport> {
    Arc::new(Fake { name, wire, second: Some(second), join })
}

/// What such an offer is for; behind that stands whose it is.
fn wire_of(offer: &Offer) -> Option<&[u8]> {
    offer.bytes.split(|byte| *byte == b' ').next()
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
    fn wire_name(&self) -> &'static str {
        self.wire
    }
    fn second_name(&self) -> Option<&'static str> {
        self.second
    }
    fn is_same_way(&self, first: &Offer, second: &Offer) -> bool {
        first == second
    }
    fn probe(&self) -> Result<Caps, Unavailable> {
        if self.join == Join::Refused { Err(Unavailable::NoDevice) } else { Ok(Caps::stream()) }
    }
    fn params(&self) -> &'static [&'static str] {
        &["dev"]
    }
    fn suits(&self, _: &OfferContext) -> Result<(), Unavailable> {
        match self.join {
            Join::NotHere => Err(Unavailable::NotApplicable { needs: "another link" }),
            _ => Ok(()),
        }
    }
    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        assert_eq!((cx.same_host.clone(), cx.trust), (Ok(()), zc_core::transport::Trust::Cooperative));
        if self.join == Join::NoHalf {
            return Err(Unavailable::NoDevice);
        }
        let bytes = if self.name == self.wire {
            self.wire.into()
        } else {
            format!("{} {}", self.wire, self.name).into()
        };
        Ok(Offer { version: 1, bytes })
    }
    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        peer: Offer,
        slot: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async move {
            assert_eq!(wire_of(&mine), wire_of(&peer));
            let failed = |source| LinkError::Io { operation: "greet", source };
            match self.join {
                Join::Fails => return Err(Unavailable::NoDevice.into()),
                Join::Hangs => std::future::pending::<()>().await,
                Join::Elsewhere => {
                    let mut link = slot.take().unwrap();
                    let reading = tokio::spawn(async move { io::read_exact(&mut *link, &mut [0; 2]).await });
                    // The reader waits by now; a poll of this task makes it the one that the link wakes.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    reading.await.unwrap().map_err(failed)?;
                    return Err(Unavailable::NoDevice.into());
                }
                Join::Babbles => loop {
                    io::write_all(&mut **slot.as_mut().unwrap(), b"x").await.map_err(failed)?;
                },
                _ => {}
            }
            let link = slot.as_mut().unwrap();
            let (near, far) = duplex("lane");
            let mut id = near.id();
            PIPES.lock().push((self.wire, id, far));
            greet(&mut **link, role, &mut id).await.map_err(failed)?;
            let pipe = match (role, self.join) {
                (Role::Client, Join::Works | Join::Breaks | Join::Mute) => near,
                (Role::Server, Join::Works | Join::Breaks) => {
                    let mut pipes = PIPES.lock();
                    let at = pipes.iter().position(|(wire, of, _)| (*wire, *of) == (self.wire, id)).unwrap();
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
    fn stop(&mut self) {
        self.inner.stop();
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
    fn join_group(&mut self, group: &MemoryGroup) -> Result<(), RegisterError> {
        self.inner.join_group(group)
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

const NO_PROOFS: Result<&Prover, Unavailable> = Err(Unavailable::HostNotProved);

fn side_of<'a>(role: Role, request: &'a Request, progress: &'a Progress) -> Side<'a> {
    Side { role, request, prover: NO_PROOFS, progress, plain: None }
}

type Ends = (Result<Connection, Error>, Result<Connection, Error>);

async fn connect_as(client: FabricBuilder, server: FabricBuilder, named: Option<&str>) -> Ends {
    let (near, far) = duplex("test");
    let (client, server) = (client.build().unwrap(), server.build().unwrap());
    let request = Request { named: named.map(str::to_owned), ..Request::default() };
    let none = Request::default();
    let progress = [Progress::default(), Progress::default()];
    let [for_client, for_server] = &progress;
    let near_side = side_of(Role::Client, &request, for_client);
    let far_side = side_of(Role::Server, &none, for_server);
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
