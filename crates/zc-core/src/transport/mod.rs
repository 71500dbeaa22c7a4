//! The contract between the facade and a transport: a [`Transport`] is asked what it can do
//! ([`Transport::probe`]), makes an [`Offer`], and joins with the peer's offer to a [`Lane`].
//!
//! The data plane ([`LaneTx`], [`LaneRx`], [`LaneDrive`]) is poll-based, object-safe and owns
//! its buffers (M1): a frame handed to [`LaneTx::start_send`] belongs to the lane until every
//! completion for it has arrived (M2). Nothing here names a runtime; readiness, timers and
//! tasks come from a [`Reactor`].

mod caps;
mod error;
mod lane;
mod link;
mod reactor;
mod unavailable;

use std::sync::Arc;

pub use caps::{Caps, Isolation, OneSided, Scope, SourceMatrix, ZeroCopy};
pub use error::{AllocFailure, LaneError, LinkError, SendRejected, WireupError};
pub use futures::future::BoxFuture;
pub use lane::{
    Batch, Completion, Frame, FrameKind, Lane, LaneDrive, LaneLimits, LaneRx, LaneTx, Received, SendReport,
    SendToken,
};
pub use link::{ControlLink, LinkAddr, LinkListener, LinkProvider, PeerCred};
pub use reactor::{Interest, Reactor, Readiness, TaskHandle, Timer};
pub use unavailable::Unavailable;

use crate::memory::{BufPool, CopyLedger};

/// Which end of the control link we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// We connected.
    Client,
    /// We accepted.
    Server,
}

/// What a transport may look at when it prepares an offer or joins a lane.
#[derive(Clone)]
#[non_exhaustive]
pub struct OfferContext {
    /// Readiness, timers and tasks.
    pub reactor: Arc<dyn Reactor>,
    /// Where received messages and [`LaneTx::poll_alloc`] take memory from.
    pub pool: BufPool,
    /// The ledger of the connection that is coming up.
    pub ledger: Arc<CopyLedger>,
    /// Limits that both sides agreed on, or ours while the peer's are not known yet.
    pub limits: LaneLimits,
}

impl OfferContext {
    /// A context of these parts.
    pub fn new(
        reactor: Arc<dyn Reactor>,
        pool: BufPool,
        ledger: Arc<CopyLedger>,
        limits: LaneLimits,
    ) -> Self {
        Self { reactor, pool, ledger, limits }
    }
}

/// What one side brings to a lane: bytes that the peer's transport of the same name understands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// The offer's format version, chosen by the transport.
    pub version: u16,
    /// Opaque to everyone but the transport; at most [`crate::wire::MAX_OFFER`] bytes.
    pub bytes: Vec<u8>,
}

/// A way to move messages.
///
/// Implementations are registered with the facade's builder; they hold what their connections
/// share (rings, protection domains, registrations).
pub trait Transport: Send + Sync + 'static {
    /// The name in URIs (`zc+NAME://`), policies and reports: lower case, at most 16 bytes.
    fn name(&self) -> &'static str;

    /// What this machine can do, now.
    ///
    /// # Errors
    /// The typed reason why not, with a remedy.
    fn probe(&self) -> Result<Caps, Unavailable>;

    /// True when the lane runs on the control link's own bytes: [`Transport::join`] is then the
    /// last user of the link and takes it over.
    fn in_band(&self) -> bool {
        false
    }

    /// Our half of a lane.
    ///
    /// # Errors
    /// The typed reason why this transport can't serve this connection.
    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable>;

    /// Brings the lane up. Both sides call it with the two offers; messages that the transport
    /// itself must exchange travel over `link`.
    ///
    /// An out-of-band transport leaves the link in its slot, whatever happens; an in-band one takes it.
    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>>;
}
