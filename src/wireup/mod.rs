//! From an open control link to a connection: moves the handshake's bytes, under a deadline per
//! stage, and decides by policy. The order of things is the business of [`zc_core::wire`].

mod authenticate;
mod io;
mod join_link;
mod lanes;
mod machine;
mod offers;
mod same_host;
#[cfg(all(test, feature = "tcp", feature = "tokio"))]
mod tests;
mod trial;

use std::future::poll_fn;
use std::io as stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zc_core::memory::{BufPool, CopyLedger};
use zc_core::transport::{
    ControlLink, Lane, LaneLimits, LinkAddr, LinkError, LinkProvider, OfferContext, Reactor, Role, Transport,
    Unavailable, UriParams,
};
use zc_core::wire::{
    ControlMessage, HELLO_HEADER_BYTES, Hello, MAGIC, MAX_HELLO_BODY, SameHost, Stage, VersionRange,
    WireError,
};

pub(crate) use self::io::deadline;
pub use self::same_host::MAX_HALF_PROOFS;
pub(crate) use self::same_host::Prover;

use self::io::{IoFault, LinkIo};
use self::join_link::{Side as DescriptorSide, Ways};
use self::machine::Machine;
use self::same_host::Claim;
use crate::auth::Authenticator;
use crate::connection::{Connection, Parts};
use crate::error::Error;
use crate::event::{FellBack, HandshakeFailed, Observer};
use crate::fabric::{PLAIN, PlainStream};
use crate::identity::PeerIdentity;
use crate::options::{ConnectionOptions, Deadlines};
use crate::policy::{Fallback, Policy};
use crate::report::SelectionReport;
use crate::uri::{Uri, UriError};

/// What every wire-up of a fabric shares.
pub(crate) struct Shared {
    pub(crate) transports: Vec<Arc<dyn Transport>>,
    pub(crate) links: Vec<Arc<dyn LinkProvider>>,
    /// What runs on the control link when nothing else does.
    pub(crate) stream: Option<Arc<dyn Transport>>,
    pub(crate) authenticator: Option<Arc<dyn Authenticator>>,
    pub(crate) policy: Policy,
    pub(crate) options: ConnectionOptions,
    pub(crate) deadlines: Deadlines,
    pub(crate) limits: LaneLimits,
    pub(crate) pool: BufPool,
    pub(crate) reactor: Arc<dyn Reactor>,
    pub(crate) instance: [u8; 16],
    pub(crate) observer: Arc<dyn Observer>,
}

/// What a URI asks of its connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// The one transport that may be used.
    named: Option<String>,
    params: UriParams,
}

impl Request {
    fn allows(&self, name: &str) -> bool {
        self.named.as_ref().is_none_or(|named| named == name)
    }
}

impl Shared {
    /// Checks a URI's parameters against the transports that it allows.
    pub(crate) fn request(&self, uri: &Uri) -> Result<Request, Error> {
        // `unix` names a kind of address; what it carries is for the policy to choose.
        let named = uri.transport().filter(|name| *name != "unix").map(str::to_owned);
        let request = Request { named, params: uri.params().clone() };
        let mut allowed = self.transports.iter().filter(|t| request.allows(t.name())).peekable();
        // A transport that is not there is refused later, with its report.
        if request.named.is_none() || allowed.peek().is_some() {
            let known: Vec<&str> = allowed.flat_map(|transport| transport.params()).copied().collect();
            if let Some((name, _)) = request.params.iter().find(|(key, _)| !known.contains(key)) {
                return Err(UriError::UnknownParam { name: name.to_owned() }.into());
            }
        }
        Ok(request)
    }

    pub(crate) fn provider(&self, addr: &LinkAddr) -> Result<&Arc<dyn LinkProvider>, Error> {
        let found = self.links.iter().find(|links| links.accepts(addr));
        found.ok_or_else(|| Error::NoLinks(addr.to_string()))
    }

    /// Whether a proof of the same host is of any use on links of this kind.
    pub(crate) fn wants_proof(&self, addr: &LinkAddr, request: &Request) -> bool {
        let wanted = |t: &Arc<dyn Transport>| {
            t.wants_descriptors() && request.allows(t.name()) && self.policy.refuses(t.name()).is_none()
        };
        matches!(addr, LinkAddr::Tcp(_)) && self.transports.iter().any(wanted)
    }

    /// Whether policy leaves room for a link that carries no zc.
    pub(crate) fn allows_plain(&self) -> bool {
        self.policy.fallback_rule() != Fallback::Deny && self.policy.refuses(PLAIN).is_none()
    }

    /// Whether the control link may carry the data when no lane comes up.
    fn control_lane(&self, addr: &LinkAddr, request: &Request) -> bool {
        let name = stream_name(addr);
        self.stream.is_some()
            && self.policy.fallback_rule() != Fallback::Deny
            && self.policy.refuses(name).is_none()
            && request.allows(name)
    }
}

/// What the control link's own stream is called in policies and reports.
fn stream_name(addr: &LinkAddr) -> &'static str {
    if matches!(addr, LinkAddr::Memory(_)) { "mem" } else { "tcp" }
}

/// How far a handshake has come, for whoever has to choose one to give up.
#[derive(Debug, Default)]
pub(crate) struct Progress(AtomicU8);

impl Progress {
    /// The stage, as a number that grows.
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
    /// Where clients of this listener prove that they are on this host.
    pub(crate) prover: Option<&'a Prover>,
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
    if let (Err(Error::Wire { source: WireError::BadMagic { .. }, .. }), Some(plain)) = (&result, plain) {
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

/// Tells the observer.
pub(crate) fn failed(shared: &Shared, role: Role, peer: LinkAddr, error: &Error, failures: u64) {
    let stage = error.stage().unwrap_or(Stage::Connect);
    let event = HandshakeFailed { role, peer, stage, reason: error.to_string(), failures };
    shared.observer.handshake_failed(&event);
}

/// One wire-up under way.
struct Attempt<'a> {
    shared: &'a Shared,
    role: Role,
    request: &'a Request,
    prover: Option<&'a Prover>,
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
            LinkAddr::Tcp(_) => Some(same_host::hello(prover.map_or("", Prover::name))?),
            _ => None,
        };
        // Anyone may bind or connect to an abstract name: it has no file mode, so the policy's users count.
        let foreign = match &addr {
            LinkAddr::UnixAbstract(_) => same_host::accepted(shared, link.peer_cred()).err(),
            _ => None,
        };
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
        let (reactor, times) = (&*self.shared.reactor, &self.shared.deadlines);
        let limit = self.limit(times.hello);
        deadline(reactor, Stage::Hello, limit, self.hello()).await?;
        self.reached(Stage::Authenticate);
        let limit = self.limit(times.authenticate);
        deadline(reactor, Stage::Authenticate, limit, self.authenticate()).await?;
        self.reached(Stage::Offers);
        let limit = self.limit(times.offers);
        let (mine, theirs) = deadline(reactor, Stage::Offers, limit, self.offers()).await?;
        self.reached(Stage::Join);
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

    async fn hello(&mut self) -> Result<(), Error> {
        self.flush().await?;
        let result = self.read_hello().await;
        if result.is_ok() && self.shared.authenticator.is_none() {
            self.expect_proof();
        }
        // Even after an error: a peer of another version reads our range from it.
        let flushed = self.flush().await;
        if let Err(Error::Wire { source: WireError::VersionMismatch { .. }, .. }) = &result {
            self.skip_hello().await;
        }
        result?;
        flushed?;
        if let Some(hello) = self.machine.peer() {
            self.identity.agent.clone_from(&hello.agent);
            self.identity.instance = hello.instance;
            self.cx.limits.send_max_message = hello.max_message;
            self.cx.limits.send_window = hello.window;
        }
        Ok(())
    }

    /// Magic first, so that whoever speaks another protocol is told at once; then the header, then the body.
    async fn read_hello(&mut self) -> Result<(), Error> {
        let at = |fault: IoFault| fault.at(Stage::Hello);
        let gone = self.link_gone();
        let Some(Ways { io, .. }) = &mut self.ways else { return Err(gone) };
        let mut want = MAGIC.len();
        loop {
            let bytes = io.fill(want).await.map_err(at)?;
            let taken = self.machine.handle_hello(bytes);
            if taken.map_err(|source| Error::Wire { stage: Stage::Hello, source })?.is_some() {
                io.take();
                return Ok(());
            }
            want = match bytes.get(8..HELLO_HEADER_BYTES) {
                None => HELLO_HEADER_BYTES,
                // The machine has refused a length above its bound already.
                Some(len) => HELLO_HEADER_BYTES + io::length(len),
            };
        }
    }

    /// Reads the rest of a HELLO that is not understood: closing a TCP link with bytes unread resets it, and
    /// the peer might never see our own.
    async fn skip_hello(&mut self) {
        let Some(Ways { io, .. }) = &mut self.ways else { return };
        if let Ok(header) = io.fill(HELLO_HEADER_BYTES).await {
            let len = io::length(&header[8..HELLO_HEADER_BYTES]).min(MAX_HELLO_BODY);
            let _ = io.fill(HELLO_HEADER_BYTES + len).await;
        }
    }

    /// As the server: lets the client begin its proof, which it may once it is authenticated.
    fn expect_proof(&mut self) {
        if let (Some(prover), Some(ours)) = (self.prover, &self.same_host) {
            self.claim = Some(prover.expect(ours.nonce));
        }
    }

    /// Finds out who the peer is, and whether it is on this host. A proof that fails costs only the
    /// transports that need it.
    async fn find_peer(&mut self) {
        let shared = self.shared;
        let link = self.ways.as_ref().map(|ways| &ways.io.link);
        let passes = link.is_some_and(|link| link.passes_descriptors());
        let cred = link.and_then(|link| link.peer_cred());
        let found = match &self.identity.addr {
            LinkAddr::Memory(_) => {
                self.cx.trust = shared.policy.trust_in_process();
                self.cx.same_host = Ok(());
                self.cx.descriptors = passes;
                return;
            }
            LinkAddr::Tcp(_) => self.proof().await,
            _ => same_host::accepted(shared, cred).map(|cred| (cred, None)),
        };
        match found {
            Ok((cred, side)) => {
                self.cx.descriptors = passes || side.is_some();
                self.cx.same_host = Ok(());
                self.cx.peer = Some(cred);
                self.cx.trust = shared.policy.trust(Some(cred));
                self.identity.cred = Some(cred);
                if let Some(ways) = &mut self.ways {
                    ways.side = side.map_or(DescriptorSide::Link, DescriptorSide::Socket);
                }
            }
            Err(why) => self.cx.same_host = Err(why),
        }
    }

    async fn proof(
        &mut self,
    ) -> Result<(zc_core::transport::PeerCred, Option<Box<dyn ControlLink>>), Unavailable> {
        let shared = self.shared;
        let peer = same_host::judge(self.machine.peer().and_then(|peer| peer.same_host.as_ref()))?;
        if !shared.wants_proof(&self.identity.addr, self.request) {
            return Err(Unavailable::HostNotProved);
        }
        // The server waits for our offers meanwhile.
        let limit = self.limit(shared.deadlines.offers) / 2;
        let claim = self.claim.take();
        let proving = async {
            Ok(match (self.role, claim) {
                (Role::Client, _) => same_host::prove(shared, peer).await,
                (Role::Server, Some(claim)) => claim.close().await,
                (Role::Server, None) => Err(Unavailable::HostNotProved),
            })
        };
        let proved = deadline(&*shared.reactor, Stage::Offers, limit, proving).await;
        let proved = proved.unwrap_or(Err(Unavailable::Timeout { stage: Stage::Offers }))?;
        Ok((proved.cred, Some(proved.link)))
    }
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
