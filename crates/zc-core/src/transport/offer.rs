//! What a transport brings to a lane, and what it may know about the connection by then.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{LaneLimits, PeerCred, Reactor, Unavailable};
use crate::memory::{BufPool, CopyLedger};

/// How far a peer is trusted with memory that we look at (M5).
///
/// ```
/// use zc_core::transport::Trust;
///
/// let lend = |trust| trust == Trust::Cooperative; // else copy it out first
/// assert!(!lend(Trust::default()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Trust {
    /// It is in our own trust domain, such as a process of the same user: memory that it may still
    /// write can be lent to the application.
    Cooperative,
    /// Payload is copied out of memory that it may still write before anything sees it.
    #[default]
    Untrusted,
}

/// The parameters of a URI (`?key=value`).
///
/// ```
/// use zc_core::transport::UriParams;
///
/// let params = UriParams::new([("if".to_owned(), "eth1".to_owned())]);
/// assert_eq!(params.value("if"), Some("eth1"));
/// assert_eq!(params.value("queue"), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct UriParams(Arc<[(String, String)]>);

impl UriParams {
    /// These pairs; the first of two with the same key counts.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().collect())
    }

    /// The value of a parameter.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// What a transport may look at when it prepares an offer or joins a lane.
///
/// ```
/// use zc_core::transport::{Offer, OfferContext, Unavailable};
///
/// /// Is made for TCP links: what a connection lacks for good is said here, and no peer is asked first.
/// fn suits(cx: &OfferContext) -> Result<(), Unavailable> {
///     cx.remote.map(drop).ok_or(Unavailable::NotApplicable { needs: "host:port" })
/// }
///
/// fn offer(cx: &OfferContext) -> Result<Offer, Unavailable> {
///     Ok(Offer { version: 1, bytes: cx.limits.recv_window.to_le_bytes().to_vec() })
/// }
/// # let _ = (suits, offer);
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct OfferContext {
    /// Readiness, timers and tasks.
    pub reactor: Arc<dyn Reactor>,
    /// Where received messages and [`LaneTx::poll_alloc`](super::LaneTx::poll_alloc) take memory from.
    pub pool: BufPool,
    /// The ledger of the connection that is coming up.
    pub ledger: Arc<CopyLedger>,
    /// Limits that both sides agreed on, or ours while the peer's are not known yet.
    pub limits: LaneLimits,
    /// The URI's parameters.
    pub params: UriParams,
    /// Who the peer is, as the kernel says; `None` where it does not.
    pub peer: Option<PeerCred>,
    /// What the policy makes of that.
    pub trust: Trust,
    /// `Ok` once it is proved that the peer is on this host, of a user that the policy accepts; else
    /// why not. Never inferred from an address.
    pub same_host: Result<(), Unavailable>,
    /// Descriptors can travel over the link while a lane joins.
    pub descriptors: bool,
    /// The control link is a bare socket ([`ControlLink::socket`](super::ControlLink::socket)).
    pub socket: bool,
    /// Our address on the control link, where that is a TCP socket.
    pub local: Option<SocketAddr>,
    /// The peer's.
    pub remote: Option<SocketAddr>,
    /// The URI names this transport, or one that it [stands in](super::Transport::stands_in_for) for.
    pub named: bool,
}

impl OfferContext {
    /// A context of these parts, with no parameter and nothing known about the peer.
    pub fn new(
        reactor: Arc<dyn Reactor>,
        pool: BufPool,
        ledger: Arc<CopyLedger>,
        limits: LaneLimits,
    ) -> Self {
        Self {
            reactor,
            pool,
            ledger,
            limits,
            params: UriParams::default(),
            peer: None,
            trust: Trust::Untrusted,
            same_host: Err(Unavailable::HostNotProved),
            descriptors: false,
            socket: false,
            local: None,
            remote: None,
            named: false,
        }
    }
}

/// What one side brings to a lane: bytes that the peer's transport of the same name understands.
///
/// ```
/// use zc_core::transport::Offer;
///
/// let mine = Offer { version: 1, bytes: 7_u16.to_le_bytes().to_vec() };
/// assert!(mine.bytes.len() <= zc_core::wire::MAX_OFFER);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// The offer's format version, chosen by the transport.
    pub version: u16,
    /// Opaque to everyone but the transport; at most [`crate::wire::MAX_OFFER`] bytes.
    pub bytes: Vec<u8>,
}
