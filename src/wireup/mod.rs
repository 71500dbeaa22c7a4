//! Brings a connection up on a control link: runs the sans-I/O handshake of [`zc_core::wire`], decides
//! by policy, and tries the lanes of the plan in order.

mod io;
mod lanes;

use std::sync::Arc;

use zc_core::memory::{BufPool, CopyLedger};
use zc_core::transport::{ControlLink, LaneLimits, LinkAddr, Offer, OfferContext, Reactor, Role, Transport};
use zc_core::wire::{
    ClientHandshake, CloseCode, ControlMessage, Hello, HelloRole, OfferEntry, PlanEntry, ServerHandshake,
    Stage, VersionRange, WireError,
};

use self::io::Wire;
use crate::connection::{Connection, Parts};
use crate::error::Error;
use crate::event::Observer;
use crate::identity::PeerIdentity;
use crate::options::{ConnectionOptions, Deadlines};
use crate::policy::{Fallback, Policy};
use crate::report::{Outcome, SelectionReport};

/// What every wire-up of a fabric shares.
pub(crate) struct Shared {
    pub(crate) transports: Vec<Arc<dyn Transport>>,
    pub(crate) policy: Policy,
    pub(crate) options: ConnectionOptions,
    pub(crate) deadlines: Deadlines,
    pub(crate) limits: LaneLimits,
    pub(crate) pool: BufPool,
    pub(crate) reactor: Arc<dyn Reactor>,
    pub(crate) instance: [u8; 16],
    pub(crate) observer: Arc<dyn Observer>,
}

/// A transport of ours that may carry this connection, with its offer.
struct Mine {
    transport: Arc<dyn Transport>,
    offer: Offer,
}

/// One wire-up under way.
struct Attempt<'a> {
    shared: &'a Shared,
    wire: Wire<'a>,
    report: SelectionReport,
    cx: OfferContext,
    named: Option<&'a str>,
}

impl Shared {
    fn hello(&self, role: HelloRole) -> Hello {
        Hello {
            versions: VersionRange::SUPPORTED,
            role,
            instance: self.instance,
            max_message: self.limits.recv_max_message,
            window: self.limits.recv_window,
            auth_method: String::new(),
            keepalive_ms: u32::try_from(self.options.keepalive_interval.as_millis()).unwrap_or(u32::MAX),
            agent: concat!("zc/", env!("CARGO_PKG_VERSION")).into(),
            same_host: None,
        }
    }

    fn attempt<'a>(&'a self, link: Box<dyn ControlLink>, named: Option<&'a str>) -> Attempt<'a> {
        let ledger = Arc::new(CopyLedger::new());
        let cx = OfferContext::new(self.reactor.clone(), self.pool.clone(), ledger, self.limits);
        Attempt {
            shared: self,
            wire: Wire::new(link, &self.reactor),
            report: SelectionReport::default(),
            cx,
            named,
        }
    }

    /// The client's side.
    pub(crate) async fn client(
        &self,
        link: Box<dyn ControlLink>,
        named: Option<&str>,
    ) -> Result<Connection, Error> {
        let mut attempt = self.attempt(link, named);
        let hs = ClientHandshake::new(self.hello(HelloRole::Client))
            .map_err(|source| Error::Wire { stage: Stage::Hello, source })?;
        attempt.client(hs).await
    }

    /// The server's side.
    pub(crate) async fn server(
        &self,
        link: Box<dyn ControlLink>,
        named: Option<&str>,
    ) -> Result<Connection, Error> {
        let mut attempt = self.attempt(link, named);
        let hs = ServerHandshake::new(self.hello(HelloRole::Server))
            .map_err(|source| Error::Wire { stage: Stage::Hello, source })?;
        attempt.server(hs).await
    }
}

impl Attempt<'_> {
    async fn client(&mut self, mut hs: ClientHandshake) -> Result<Connection, Error> {
        let deadlines = self.shared.deadlines.clone();
        self.wire.stage(Stage::Hello, deadlines.hello)?;
        self.wire.send(hs.take_output()).await?;
        let hello = self.wire.hello(&mut hs).await?;
        self.agree(&hello);
        self.wire.stage(Stage::Offers, deadlines.offers)?;
        let mine = self.mine();
        self.wire.check(hs.send_offers(entries(&mine)))?;
        self.wire.send(hs.take_output()).await?;
        let answer = self.wire.control(&mut hs).await;
        if let Err(Error::Wire { source: WireError::Rejected { code: CloseCode::REJECTED, .. }, .. }) =
            &answer
        {
            self.report_lacking(&mine, &[]);
            return Err(Error::NoTransport(Box::new(std::mem::take(&mut self.report))));
        }
        let theirs = match answer? {
            ControlMessage::Offers(offers) => offers,
            other => return Err(self.wire.unexpected(&other)),
        };
        self.wire.control(&mut hs).await?; // PLAN
        let plan: Vec<String> = hs.plan().iter().map(|entry| entry.transport.clone()).collect();
        self.report_lacking(&mine, &plan);
        let chosen = self.client_lanes(&mut hs, &mine, &theirs, &plan).await?;
        self.finish(Role::Client, chosen, &hello)
    }

    async fn server(&mut self, mut hs: ServerHandshake) -> Result<Connection, Error> {
        let deadlines = self.shared.deadlines.clone();
        self.wire.stage(Stage::Hello, deadlines.hello)?;
        let read = self.wire.hello(&mut hs).await;
        // Even when the versions do not meet, our HELLO goes out: the peer can name the reason too.
        let sent = self.wire.send(hs.take_output()).await;
        let hello = read?;
        sent?;
        self.agree(&hello);
        self.wire.stage(Stage::Offers, deadlines.offers)?;
        let theirs = match self.wire.control(&mut hs).await? {
            ControlMessage::Offers(offers) => offers,
            other => return Err(self.wire.unexpected(&other)),
        };
        let mine = self.mine();
        let mut mutual: Vec<&str> = mine
            .iter()
            .map(|mine| mine.transport.name())
            .filter(|name| theirs.iter().any(|offer| offer.transport == *name))
            .collect();
        mutual.sort_by_key(|name| self.shared.policy.rank(name));
        let plan: Vec<String> = mutual.into_iter().map(str::to_owned).collect();
        self.report_lacking(&mine, &plan);
        if plan.is_empty() {
            self.wire
                .check(hs.reject(CloseCode::REJECTED, "no transport in common that the policy allows"))?;
            self.wire.send(hs.take_output()).await?;
            return Err(Error::NoTransport(Box::new(std::mem::take(&mut self.report))));
        }
        let planned = plan.iter().map(|name| PlanEntry { transport: name.clone() }).collect();
        self.wire.check(hs.send_plan(entries(&mine), planned))?;
        self.wire.send(hs.take_output()).await?;
        let chosen = self.server_lanes(&mut hs, &mine, &theirs, &plan).await?;
        self.finish(Role::Server, chosen, &hello)
    }

    /// Limits that both sides keep.
    fn agree(&mut self, peer: &Hello) {
        self.cx.limits.send_max_message = peer.max_message;
        self.cx.limits.send_window = peer.window;
    }

    /// Our transports for this link, with their offers; the others go into the report.
    fn mine(&mut self) -> Vec<Mine> {
        let in_process = matches!(self.wire.peer(), LinkAddr::Memory(_));
        // `unix` names a kind of address; what it carries is the stream transports.
        let named = self.named.filter(|name| *name != "unix");
        let mut mine = Vec::new();
        for transport in &self.shared.transports {
            let name = transport.name();
            if (name == "mem") != in_process {
                continue;
            }
            let refused = named
                .filter(|named| *named != name)
                .map(|_| zc_core::transport::Unavailable::ForbiddenByPolicy)
                .or_else(|| self.shared.policy.refuses(name));
            let offer = match refused {
                Some(why) => Err(why),
                None => transport.probe().and_then(|_| transport.offer(&self.cx)),
            };
            match offer {
                Ok(offer) => mine.push(Mine { transport: transport.clone(), offer }),
                Err(why) => self.report.add(name, Stage::Offers, Outcome::Unavailable(why)),
            }
        }
        if let Some(named) = named
            && !self.shared.transports.iter().any(|transport| transport.name() == named)
        {
            let why = zc_core::transport::Unavailable::Other {
                code: "not_registered",
                remedy: format!("register or compile in the transport `{named}`"),
            };
            self.report.add(named, Stage::Offers, Outcome::Unavailable(why));
        }
        mine.sort_by_key(|mine| self.shared.policy.rank(mine.transport.name()));
        mine
    }

    fn report_lacking(&mut self, mine: &[Mine], plan: &[String]) {
        for name in mine.iter().map(|mine| mine.transport.name()) {
            if !plan.iter().any(|planned| planned == name) {
                let why = zc_core::transport::Unavailable::PeerLacks;
                self.report.add(name, Stage::Offers, Outcome::Unavailable(why));
            }
        }
    }

    fn finish(
        &mut self,
        role: Role,
        lane: zc_core::transport::Lane,
        hello: &Hello,
    ) -> Result<Connection, Error> {
        let fell_back =
            self.report.candidates().first().is_some_and(|first| first.outcome != Outcome::Chosen);
        if fell_back && role == Role::Client {
            match self.shared.policy.fallback_rule() {
                Fallback::Allow => {}
                Fallback::Warn => {
                    tracing::warn!(report = %self.report, "a fallback transport carries the connection")
                }
                Fallback::Deny => return Err(Error::NoTransport(Box::new(std::mem::take(&mut self.report)))),
            }
        }
        let peer = self.wire.identity().clone();
        let report = Arc::new(std::mem::take(&mut self.report));
        let parts = Parts {
            lane,
            link: self.wire.take_link(),
            role,
            reactor: self.shared.reactor.clone(),
            pool: self.shared.pool.clone(),
            ledger: self.cx.ledger.clone(),
            limits: self.cx.limits,
            options: self.shared.options.clone(),
            report,
            observer: self.shared.observer.clone(),
            peer: PeerIdentity { agent: hello.agent.clone(), instance: hello.instance, ..peer },
        };
        Ok(Connection::start(parts)?)
    }
}

fn entries(mine: &[Mine]) -> Vec<OfferEntry> {
    mine.iter()
        .map(|mine| OfferEntry {
            transport: mine.transport.name().to_owned(),
            version: mine.offer.version,
            bytes: mine.offer.bytes.clone(),
        })
        .collect()
}
