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
mod offer;
mod pipe;
mod reactor;
mod remote;
mod unavailable;

pub use caps::{Caps, Isolation, OneSided, Scope, SourceMatrix, ZeroCopy};
pub use error::{AllocFailure, LaneError, LinkError, SendRejected, WireupError};
pub use futures::future::BoxFuture;
pub use lane::{
    Batch, Completion, Frame, FrameKind, Lane, LaneDrive, LaneLimits, LaneRx, LaneTx, Received, SendReport,
    SendToken,
};
pub use link::{ControlLink, LinkAddr, LinkListener, LinkProvider, PeerCred};
pub use offer::{Offer, OfferContext, Trust, UriParams};
pub use pipe::{MAX_IDLE_PIPES, MIN_PIPE_BYTES, Pipe, PipePool, PipeShare, Piped, PipedFrame, PipedRejected};
pub use reactor::{Interest, Reactor, Readiness, TaskHandle, Timer};
pub use remote::{
    Access, LaneRemote, MAX_REMOTE_KEY_BYTES, NotifySink, RemoteAtomics, RemoteCompletion, RemoteGrant,
    RemoteKey, RemoteOp, RemoteToken, Revoked,
};
pub use unavailable::Unavailable;

/// Which end of the control link we are.
///
/// ```
/// use zc_core::transport::Role;
///
/// // The side that creates what both use.
/// let creates = |role| role == Role::Server;
/// assert!(!creates(Role::Client));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// We connected.
    Client,
    /// We accepted.
    Server,
}

/// A way to move messages.
///
/// Implementations are registered with the facade's builder; they hold what their connections
/// share (rings, protection domains, registrations).
///
/// ```
/// use zc_core::transport::*;
///
/// /// For a device that this machine lacks. A whole one is in `examples/custom_transport.rs`.
/// struct Missing;
///
/// impl Transport for Missing {
///     fn name(&self) -> &'static str {
///         "missing"
///     }
///     fn probe(&self) -> Result<Caps, Unavailable> {
///         Err(Unavailable::NoDevice)
///     }
///     fn offer(&self, _: &OfferContext) -> Result<Offer, Unavailable> {
///         Err(Unavailable::NoDevice)
///     }
///     fn join<'a>(
///         &'a self,
///         _: Role,
///         _mine: Offer,
///         _peer: Offer,
///         _: &'a mut Option<Box<dyn ControlLink>>,
///         _: OfferContext,
///     ) -> BoxFuture<'a, Result<Lane, WireupError>> {
///         Box::pin(async { Err(Unavailable::NoDevice.into()) })
///     }
/// }
/// assert!(Missing.probe().is_err_and(|why| !why.remedy().is_empty()));
/// ```
pub trait Transport: Send + Sync + 'static {
    /// The name in URIs (`zc+NAME://`), policies and reports: 1 to 32 letters, digits, `-`, `_` and `.`.
    fn name(&self) -> &'static str;

    /// The name that peers know it by, in offers and plans. Transports that speak the same to a peer have the same one: which of
    /// them it is, is a choice of each side alone, and the best of them that can serve a connection makes the offer.
    fn wire_name(&self) -> &'static str {
        self.name()
    }

    /// The transport for which a URI that names that one may have this one, too: a less demanding way to the same. The report says
    /// why.
    fn stands_in_for(&self) -> Option<&'static str> {
        None
    }

    /// Another name, under which it makes a second offer: both sides try it when the lane under the
    /// [first](Transport::wire_name) name does not carry, whichever transport of theirs that was.
    fn second_name(&self) -> Option<&'static str> {
        None
    }

    /// Whether two offers, one under each of its names, lead the same way: where both sides' do, the lane under the second name is the first
    /// one again, and is not tried. They may be the peer's, of any transport.
    fn is_same_way(&self, _first: &Offer, _second: &Offer) -> bool {
        false
    }

    /// Whether it is meant for such a connection at all. Asked before what the machine can do is: what nobody asked for is not
    /// missed.
    ///
    /// # Errors
    /// Why not; as a rule [`Unavailable::NotApplicable`].
    fn suits(&self, _cx: &OfferContext) -> Result<(), Unavailable> {
        Ok(())
    }

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

    /// True when [`Transport::join`] passes descriptors. Such a transport is asked for an offer only
    /// once they can travel ([`OfferContext::descriptors`]), for which the facade proves, over a Unix
    /// socket, that both ends are on one host.
    fn wants_descriptors(&self) -> bool {
        false
    }

    /// The parameters (`?key=value`) of a URI that this transport understands. One that no transport
    /// understands is refused before anything is opened.
    fn params(&self) -> &'static [&'static str] {
        &[]
    }

    /// Our half of a lane. The side that accepts asks for it only if the peer has offered this transport; so what it is not made for,
    /// [`suits`](Transport::suits) says: from here a reason that is no defect ([`Unavailable::is_expected`]) would be told by one side
    /// alone, and be [`Unavailable::PeerLacks`] at the other, which counts as a loss.
    ///
    /// # Errors
    /// The typed reason why this transport can't serve this connection.
    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable>;

    /// The same for a transport whose half takes a while to make (a device to be opened): it is made elsewhere, and no thread of the
    /// runtime waits. Whoever brings connections up calls this; the default calls [`offer`](Transport::offer).
    ///
    /// Dropping the future abandons the attempt.
    ///
    /// # Errors
    /// As [`offer`](Transport::offer).
    fn offer_soon<'a>(&'a self, cx: &'a OfferContext) -> BoxFuture<'a, Result<Offer, Unavailable>> {
        Box::pin(std::future::ready(self.offer(cx)))
    }

    /// An offer of ours is not needed any more: it was joined, or never will be. What was opened for it alone may go.
    fn withdraw(&self, _offer: &Offer) {}

    /// Brings the lane up. Both sides call it with the two offers; messages that the transport
    /// itself must exchange travel over `link`, at most [`crate::wire::MAX_JOIN_MESSAGES`] writes.
    ///
    /// An out-of-band transport leaves the link in its slot, whatever happens. A read that returns 0
    /// means that the other end has given up or is done. When `join` succeeds, the lane must pass a
    /// PING in either direction before anything else travels on it. An in-band transport takes the link, unless it fails and
    /// nothing was read or written: then another one with the same [`wire_name`](Transport::wire_name) may have it.
    ///
    /// Dropping the future abandons the attempt.
    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>>;
}
