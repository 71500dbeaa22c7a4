//! The transport over ordinary UDP sockets.

use std::net::{IpAddr, SocketAddr};

use parking_lot::Mutex;
use zc_core::transport::{
    BoxFuture, Caps, ControlLink, Lane, LinkError, Offer, OfferContext, OneSided, Role, Transport,
    Unavailable, WireupError,
};

use super::join::{self, NO_ADDRESS};
use super::offered::{Pending, Way};
use super::registry::{Home, Registry};
use super::udp_port::{UdpPort, path_bytes};
use crate::engine::Engine;
use crate::limits::UDP_DATAGRAM_BYTES;
use crate::protocol::MIN_DATAGRAM_BYTES;

/// How a [`UdpTransport`] works.
///
/// ```
/// use zc_transport_xdp::{UdpOptions, UdpTransport};
///
/// let mut options = UdpOptions::default();
/// options.datagram_bytes = 1472; // whatever the interface says
/// let transport = UdpTransport::new(options);
/// # let _ = transport;
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UdpOptions {
    /// Longest datagram, bytes, where the path carries longer ones
    pub datagram_bytes: u16,
    /// Several datagrams with one system call, where the kernel can
    pub together: bool,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self { datagram_bytes: UDP_DATAGRAM_BYTES, together: true }
    }
}

/// Reliable messages over an ordinary UDP socket: what AF_XDP carries, where that is refused, and peers can't tell the difference.
/// It takes no rights. It is only used where the address names it, or AF_XDP.
///
/// All connections of one local address share a socket, as long as there are any.
///
/// ```
/// use zc_core::transport::Transport;
/// use zc_transport_xdp::UdpTransport;
///
/// let transport = UdpTransport::default();
/// assert_eq!((transport.name(), transport.wire_name()), ("udp", "xdp"));
/// assert!(transport.probe().is_ok());
/// ```
#[derive(Default)]
pub struct UdpTransport {
    options: UdpOptions,
    state: Mutex<State>,
}

struct State {
    /// By local address, with the port.
    engines: Registry<IpAddr, u16>,
    pending: Pending,
}

impl Default for State {
    fn default() -> Self {
        Self { engines: Registry::new(), pending: Pending::default() }
    }
}

impl std::fmt::Debug for UdpTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpTransport").field("options", &self.options).finish_non_exhaustive()
    }
}

impl UdpTransport {
    /// With these options.
    pub fn new(options: UdpOptions) -> Self {
        Self { options, state: Mutex::default() }
    }
}

fn caps() -> Caps {
    let mut caps = Caps::stream();
    caps.max_segments = zc_core::memory::MAX_SEGMENTS;
    caps.one_sided = OneSided::Emulated;
    caps
}

impl Transport for UdpTransport {
    fn name(&self) -> &'static str {
        "udp"
    }

    fn wire_name(&self) -> &'static str {
        "xdp"
    }

    fn stands_in_for(&self) -> Option<&'static str> {
        Some("xdp")
    }

    fn suits(&self, cx: &OfferContext) -> Result<(), Unavailable> {
        if !cx.named && cx.params.value("if").is_none() {
            return Err(Unavailable::NotApplicable { needs: "zc+udp:// or an interface (`?if=`)" });
        }
        cx.remote.map(drop).ok_or(NO_ADDRESS)
    }

    fn probe(&self) -> Result<Caps, Unavailable> {
        Ok(caps())
    }

    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        let (local, remote) = (join::local(cx, 0)?, cx.remote.ok_or(NO_ADDRESS)?);
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let path = path_bytes(local, remote).map_err(|e| Unavailable::os("ask for the path's MTU", &e))?;
        let longest = usize::from(self.options.datagram_bytes);
        let datagram_bytes = path.min(longest).max(MIN_DATAGRAM_BYTES) as u16;
        let options = join::session_options(cx, datagram_bytes);
        let mut state = self.state.lock();
        let (engine, port) = state.engines.engine(Home::of(cx), local.ip(), || {
            let pool = cx.pool.with_origin("udp");
            let port = UdpPort::open(local, self.options.together, &*cx.reactor, pool);
            let port = port.map_err(|e| Unavailable::os("open a UDP socket", &e))?;
            let at = port.local().port();
            Ok((Engine::new(Box::new(port), cx.reactor.clone()), at))
        })?;
        join::offer(engine, port, Way::Kernel, options, &mut state.pending)
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
            let Some(link) = link.as_deref_mut() else {
                return Err(LinkError::Address("the control link is gone".into()).into());
            };
            let offered = |session| self.state.lock().pending.take(session);
            join::join(role, mine, peer, link, caps(), cx, offered).await
        })
    }
}
