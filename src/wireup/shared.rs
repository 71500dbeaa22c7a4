//! What every wire-up of a fabric shares, and what may be used for one.

use std::sync::Arc;

use zc_core::memory::BufPool;
use zc_core::transport::{LaneLimits, LinkAddr, LinkProvider, Reactor, Transport, Unavailable, UriParams};

use crate::auth::Authenticator;
use crate::error::Error;
use crate::event::Observer;
use crate::fabric::PLAIN;
use crate::options::{ConnectionOptions, Deadlines};
use crate::policy::{Fallback, Policy};
use crate::uri::{Uri, UriError};

/// What the control link's own stream is called in policies and reports: inside the process, and elsewhere.
pub(super) const STREAM_NAMES: [&str; 2] = ["mem", "tcp"];
/// Other engines of this project for the second of them.
const STREAM_ENGINES: [&str; 1] = ["uring"];

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
    pub(super) named: Option<String>,
    /// Others that may stand in for it.
    pub(super) instead: Vec<&'static str>,
    pub(super) params: UriParams,
}

impl Request {
    pub(super) fn allows(&self, name: &str) -> bool {
        self.named.as_ref().is_none_or(|named| named == name || self.instead.contains(&name))
    }
}

impl Shared {
    /// Checks a URI's parameters against the transports that it allows.
    pub(crate) fn request(&self, uri: &Uri) -> Result<Request, Error> {
        // `unix` names a kind of address; what it carries is for the policy to choose.
        let named = uri.transport().filter(|name| *name != "unix").map(str::to_owned);
        let stand_in = |t: &&Arc<dyn Transport>| named.is_some() && t.stands_in_for() == named.as_deref();
        let instead = self.transports.iter().filter(stand_in).map(|t| t.name()).collect();
        let request = Request { named, instead, params: uri.params().clone() };
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

    /// Whether policy and URI leave room for a link that carries no zc.
    pub(crate) fn allows_plain(&self, addr: &LinkAddr, request: &Request) -> bool {
        self.policy.fallback_rule() != Fallback::Deny
            && self.policy.refuses(PLAIN).is_none()
            && request.allows(stream_name(addr))
    }

    pub(crate) fn missing(&self, name: &str) -> Option<Unavailable> {
        let known = self.transports.iter().any(|transport| transport.name() == name);
        (!known).then(|| missing(name))
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

    /// Whether the control link may carry the data when no lane comes up.
    pub(super) fn control_lane(&self, addr: &LinkAddr, request: &Request) -> bool {
        let name = stream_name(addr);
        self.stream.is_some()
            && self.policy.fallback_rule() != Fallback::Deny
            && self.policy.refuses(name).is_none()
            && request.allows(name)
    }
}

/// The one of [`STREAM_NAMES`] on a link of this kind.
pub(super) fn stream_name(addr: &LinkAddr) -> &'static str {
    let [inside, elsewhere] = STREAM_NAMES;
    if matches!(addr, LinkAddr::Memory(_)) { inside } else { elsewhere }
}

/// Whether a transport that nobody registered would run on the control link, as far as its name tells.
pub(super) fn is_in_band(name: &str) -> bool {
    STREAM_NAMES.contains(&name) || STREAM_ENGINES.contains(&name)
}

/// Why a transport that nobody registered is not there.
pub(super) fn missing(name: &str) -> Unavailable {
    match name {
        "shm" if cfg!(not(feature = "shm")) => Unavailable::NotCompiled { feature: "shm" },
        "rdma" if cfg!(not(feature = "rdma")) => Unavailable::NotCompiled { feature: "rdma" },
        "uring" if cfg!(not(feature = "uring")) => Unavailable::NotCompiled { feature: "uring" },
        "xdp" | "udp" if cfg!(not(feature = "xdp")) => Unavailable::NotCompiled { feature: "xdp" },
        "tcp" | "mem" if cfg!(not(feature = "tcp")) => Unavailable::NotCompiled { feature: "tcp" },
        _ => {
            let remedy = format!("register or compile in the transport `{name}`");
            Unavailable::Other { code: "not_registered", remedy }
        }
    }
}
