//! From an open control link to a connection: moves the handshake's bytes, under a deadline per
//! stage, and decides by policy. The order of things is the business of [`zc_core::wire`].

mod authenticate;
mod commit;
mod hello;
mod io;
mod join;
mod join_link;
mod lanes;
mod machine;
mod offers;
mod peer;
mod same_host;
mod shared;
#[cfg(all(test, feature = "tcp", feature = "tokio"))]
mod tests;
mod trial;

use std::future::poll_fn;
use std::io as stdio;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zc_core::memory::CopyLedger;
use zc_core::transport::{ControlLink, Lane, LinkAddr, LinkError, OfferContext, Role, Unavailable};
use zc_core::wire::{ControlMessage, Hello, SameHost, Stage, VersionRange, WireError};

pub(crate) use self::io::deadline;
pub use self::same_host::MAX_HALF_PROOFS;
pub(crate) use self::same_host::Prover;
pub(crate) use self::shared::{Request, Shared};

use self::io::LinkIo;
use self::join_link::{Side as DescriptorSide, Ways};
use self::machine::Machine;
use self::same_host::Claim;
use self::shared::stream_name;
use crate::connection::{Connection, Parts};
use crate::error::Error;
use crate::event::{FellBack, HandshakeFailed, quietly};
use crate::fabric::PlainStream;
use crate::identity::PeerIdentity;
use crate::policy::Fallback;
use crate::report::SelectionReport;

/// How far a handshake has come, for whoever has to choose one to give up.
#[derive(Debug, Default)]
pub(crate) struct Progress(AtomicU8);

impl Progress {
    /// The stage that it has reached.
    pub(crate) fn stage(&self) -> Stage {
        match self.0.load(Ordering::Relaxed) {
            0 => Stage::Hello,
            1 => Stage::Authenticate,
            2 => Stage::Offers,
            3 => Stage::Join,
            _ => Stage::Commit,
        }
    }

    fn reached(&self, stage: Stage) {
        let number = match stage {
            Stage::Connect | Stage::Hello => 0,
            Stage::Authenticate => 1,
            Stage::Offers => 2,
            Stage::Join => 3,
            Stage::Commit => 4,
        };
        self.0.store(number, Ordering::Relaxed);
    }
}

/// One end's part of a wire-up.
pub(crate) struct Side<'a> {
    pub(crate) role: Role,
    pub(crate) request: &'a Request,
    /// Where clients of this listener prove that they are on this host; why they can't, at the end of a
    /// client too.
    pub(crate) prover: Result<&'a Prover, Unavailable>,
    pub(crate) progress: &'a Progress,
    /// Where a link goes whose first bytes are no HELLO; without it that is a failure.
    pub(crate) plain: Option<&'a Mutex<Option<PlainStream>>>,
}

/// Brings a connection up on an open link, and tells the observer how it went. `failures` counts one
/// more and says how many there are.
pub(crate) async fn run(
    shared: &Shared,
    side: Side<'_>,
    link: Box<dyn ControlLink>,
    failures: impl FnOnce() -> u64,
) -> Result<Connection, Error> {
    let (role, peer, plain) = (side.role, link.peer(), side.plain);
    let mut attempt = match Attempt::new(shared, side, link) {
        Ok(attempt) => attempt,
        Err(error) => {
            failed(shared, role, peer, &error, failures());
            return Err(error);
        }
    };
    let result = match attempt.run().await {
        Ok(lane) => attempt.start(lane),
        Err(error) => Err(error),
    };
    if let (Err(Error::Wire { source: WireError::BadMagic { .. }, .. }), Some(plain), None) =
        (&result, plain, &attempt.foreign)
    {
        *plain.lock() = attempt.into_plain();
        return result;
    }
    // Whoever sees the link close can rely on the count.
    if let Err(error) = &result {
        failed(shared, role, peer, error, failures());
    }
    drop(attempt);
    result
}

/// Why nothing may run on this link, zc or not. Anyone may bind or connect to an abstract name: it has no file
/// mode, so the policy's users count.
pub(crate) fn foreign(shared: &Shared, link: &dyn ControlLink) -> Option<Unavailable> {
    match link.peer() {
        LinkAddr::UnixAbstract(_) => same_host::accepted(shared, link.peer_cred()).err(),
        _ => None,
    }
}

/// Tells the observer.
pub(crate) fn failed(shared: &Shared, role: Role, peer: LinkAddr, error: &Error, failures: u64) {
    let stage = error.stage().unwrap_or(Stage::Connect);
    let event = HandshakeFailed { role, peer, stage, reason: error.to_string(), failures };
    quietly(|| shared.observer.handshake_failed(&event));
}

/// One wire-up under way.
struct Attempt<'a> {
    shared: &'a Shared,
    role: Role,
    request: &'a Request,
    prover: Result<&'a Prover, Unavailable>,
    progress: &'a Progress,
    machine: Machine,
    /// Away while a transport joins over it, and for good when one kept it.
    ways: Option<Ways>,
    identity: PeerIdentity,
    report: SelectionReport,
    cx: OfferContext,
    /// What our HELLO says about this host.
    same_host: Option<SameHost>,
    claim: Option<Claim>,
    /// Why nothing may run on this link.
    foreign: Option<Unavailable>,
    begin: Instant,
}

impl<'a> Attempt<'a> {
    fn new(shared: &'a Shared, side: Side<'a>, link: Box<dyn ControlLink>) -> Result<Self, Error> {
        let Side { role, request, prover, progress, plain: _ } = side;
        let addr = link.peer();
        // Even without a use for it here: the peer learns from the tags that there is nothing to miss.
        let same_host = match &addr {
            LinkAddr::Tcp(_) => Some(same_host::hello(prover.as_ref().map_or("", |prover| prover.name()))?),
            _ => None,
        };
        let foreign = foreign(shared, &*link);
        let hello = |role| Hello {
            versions: VersionRange::SUPPORTED,
            role,
            instance: shared.instance,
            max_message: shared.limits.recv_max_message,
            window: shared.limits.recv_window,
            auth_method: shared.authenticator.as_ref().map_or("", |auth| auth.method()).to_owned(),
            keepalive_ms: u32::try_from(shared.options.keepalive_interval.as_millis()).unwrap_or(u32::MAX),
            agent: concat!("zc/", env!("CARGO_PKG_VERSION")).to_owned(),
            same_host: same_host.clone(),
            control_lane: foreign.is_none() && shared.control_lane(&addr, request),
            remote: true,
        };
        let machine =
            Machine::new(role, hello).map_err(|source| Error::Wire { stage: Stage::Hello, source })?;
        let (reactor, ledger) = (shared.reactor.clone(), Arc::new(CopyLedger::new()));
        let mut cx = OfferContext::new(reactor, shared.pool.clone(), ledger, shared.limits);
        cx.params = request.params.clone();
        cx.socket = link.socket().is_some();
        (cx.local, cx.remote) = link.socket().map_or((None, None), addresses);
        cx.named = request.named.is_some();
        Ok(Self {
            shared,
            role,
            request,
            prover,
            progress,
            machine,
            identity: PeerIdentity::unknown(addr, link.peer_cred()),
            ways: Some(Ways { io: LinkIo::new(link), side: DescriptorSide::Link }),
            report: SelectionReport::default(),
            cx,
            same_host,
            claim: None,
            foreign,
            begin: shared.reactor.now(),
        })
    }

    async fn run(&mut self) -> Result<Lane, Error> {
        // Not even the authentication method may hear of a server that squats on the name. A client that is
        // not accepted is told so, at its offers.
        if let (Role::Client, Some(why)) = (self.role, self.foreign.clone()) {
            return Err(self.nothing_for(&why));
        }
        self.hello().await?;
        self.reached(Stage::Authenticate);
        let (reactor, times) = (&*self.shared.reactor, &self.shared.deadlines);
        let limit = self.limit(times.authenticate);
        deadline(reactor, Stage::Authenticate, limit, self.authenticate()).await?;
        self.reached(Stage::Offers);
        let limit = self.limit(times.offers);
        let (mine, theirs) = deadline(reactor, Stage::Offers, limit, self.offers()).await?;
        self.bring_up(&mine, &theirs).await
    }

    fn start(&mut self, mut lane: Lane) -> Result<Connection, Error> {
        let shared = self.shared;
        let link = self.ways.take().and_then(|ways| hand_over(&mut lane, ways));
        let report = Arc::new(std::mem::take(&mut self.report));
        let peer_remote = self.machine.peer().is_some_and(|hello| hello.remote);
        let connection = Connection::start(Parts {
            lane,
            link,
            role: self.role,
            reactor: shared.reactor.clone(),
            pool: shared.pool.clone(),
            ledger: self.cx.ledger.clone(),
            limits: self.cx.limits,
            peer_remote,
            options: shared.options.clone(),
            report: report.clone(),
            peer: self.identity.clone(),
            observer: shared.observer.clone(),
            began: self.begin,
        })?;
        if shared.policy.fallback_rule() == Fallback::Warn
            && report.lost_above(report.chosen(), &shared.policy)
        {
            let peer = self.identity.addr.clone();
            shared.observer.fell_back(&FellBack { peer, report });
        }
        Ok(connection)
    }

    /// The link, with what was read of it, for whoever speaks its protocol.
    fn into_plain(self) -> Option<PlainStream> {
        let Ways { mut io, .. } = self.ways?;
        let seen = io.take_filled();
        let transports = self.shared.transports.iter().map(|transport| &**transport);
        Some(PlainStream::new(io.into_link(), seen, transports))
    }

    /// A stage's time, cut to what is left of the whole.
    fn limit(&self, stage: Duration) -> Duration {
        let spent = self.shared.reactor.now().saturating_duration_since(self.begin);
        stage.min(self.shared.deadlines.total.saturating_sub(spent))
    }

    fn reached(&self, stage: Stage) {
        self.progress.reached(stage);
    }

    fn stream_name(&self) -> &'static str {
        stream_name(&self.identity.addr)
    }

    fn wire<T>(&self, result: Result<T, WireError>) -> Result<T, Error> {
        result.map_err(|source| Error::Wire { stage: self.machine.stage(), source })
    }

    fn bad(&self, field: &'static str) -> Error {
        Error::Wire { stage: self.machine.stage(), source: WireError::BadValue { field } }
    }

    fn unexpected(&self, message: &ControlMessage) -> Error {
        let stage = self.machine.stage();
        Error::Wire { stage, source: WireError::UnexpectedMessage { message: message.name(), stage } }
    }

    fn link_gone(&self) -> Error {
        let source =
            LinkError::Io { operation: "control link", source: stdio::ErrorKind::NotConnected.into() };
        Error::Link { stage: self.machine.stage(), source }
    }

    fn no_transport(&mut self) -> Error {
        Error::NoTransport(Box::new(std::mem::take(&mut self.report)))
    }

    fn io(&mut self) -> Result<&mut LinkIo, Error> {
        let gone = self.link_gone();
        self.ways.as_mut().map(|ways| &mut ways.io).ok_or(gone)
    }

    /// Sends what the machine has written.
    async fn flush(&mut self) -> Result<(), Error> {
        let (bytes, stage) = (self.machine.take_output(), self.machine.stage());
        let io = self.io()?;
        io.push(bytes);
        io.flush().await.map_err(|fault| fault.at(stage))
    }

    /// The next message of the peer, once the machine has found it in order.
    async fn next(&mut self) -> Result<ControlMessage, Error> {
        let stage = self.machine.stage();
        let io = self.io()?;
        let message = poll_fn(|cx| io.poll_message(cx)).await.map_err(|fault| fault.at(stage))?;
        self.machine.handle(&message).map_err(|source| Error::Wire { stage, source })?;
        Ok(message)
    }

    /// Refuses a client, in words that it may know, and says `error` here.
    async fn refuse(&mut self, reason: &str, error: Error) -> Error {
        if self.machine.reject(reason).is_ok() {
            let limit = self.limit(self.shared.deadlines.offers);
            let reactor = &*self.shared.reactor;
            let _ = deadline(reactor, self.machine.stage(), limit, self.flush()).await;
        }
        error
    }
}

/// The addresses of a TCP socket: ours and the peer's.
fn addresses(socket: BorrowedFd<'_>) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let local = rustix::net::getsockname(socket).ok().and_then(|addr| addr.try_into().ok());
    let remote = rustix::net::getpeername(socket).ok().flatten().and_then(|addr| addr.try_into().ok());
    (local, remote)
}

/// The link over which descriptors travelled goes on with the lane, if that wants it; what stays is
/// watched by the connection.
fn hand_over(lane: &mut Lane, ways: Ways) -> Option<Box<dyn ControlLink>> {
    let Ways { io, side } = ways;
    let control = io.into_link();
    let Some(drive) = &mut lane.drive else { return Some(control) };
    match side {
        DescriptorSide::Socket(side) => {
            drop(drive.adopt_link(side));
            Some(control)
        }
        DescriptorSide::Link => drive.adopt_link(control),
        DescriptorSide::Lost => Some(control),
    }
}
