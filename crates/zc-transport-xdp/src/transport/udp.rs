//! The transport over ordinary UDP sockets.

use std::net::{IpAddr, SocketAddr};

use parking_lot::Mutex;
use zc_core::transport::{
    BoxFuture, Caps, ControlLink, Lane, LinkError, Offer, OfferContext, OneSided, Role, Transport,
    Unavailable, WireupError,
};

use super::interface::namespace;
use super::join::{self, NO_ADDRESS, PAYLOAD_MAC};
use super::offer::Endpoint;
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
    /// The MAC of packets covers payload, too; it does if either side says so. `?payload_mac=off` in an address says
    /// otherwise for its connections
    pub authenticate_payload: bool,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self { datagram_bytes: UDP_DATAGRAM_BYTES, together: true, authenticate_payload: true }
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
pub struct UdpTransport {
    options: UdpOptions,
    /// With their ports.
    engines: Mutex<Registry<Place, u16>>,
    pending: Pending,
}

/// Where a socket is: network namespace, address, and, where that is only one on an interface, its scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    namespace: u64,
    address: IpAddr,
    scope: u32,
}

impl Place {
    /// Of this address, where the thread is.
    fn here(at: SocketAddr) -> Self {
        let scope = if let SocketAddr::V6(at) = at { at.scope_id() } else { 0 };
        Self { namespace: namespace(), address: at.ip(), scope }
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
        Self { options, engines: Mutex::new(Registry::new()), pending: Pending::default() }
    }
}

impl Default for UdpTransport {
    fn default() -> Self {
        Self::new(UdpOptions::default())
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

    fn second_name(&self) -> Option<&'static str> {
        Some("udp")
    }

    /// The offers of a side that has AF_XDP under the first name come from two engines.
    fn is_same_way(&self, first: &Offer, second: &Offer) -> bool {
        let port = |offer: &Offer| Endpoint::decode(offer.version, &offer.bytes).ok().map(|at| at.port);
        port(first).is_some_and(|first| port(second) == Some(first))
    }

    fn withdraw(&self, offer: &Offer) {
        self.pending.withdraw(offer);
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

    fn params(&self) -> &'static [&'static str] {
        &[PAYLOAD_MAC]
    }

    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        let (local, remote) = (join::local(cx, 0)?, cx.remote.ok_or(NO_ADDRESS)?);
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let path = path_bytes(local, remote).map_err(|e| Unavailable::os("ask for the path's MTU", &e))?;
        let longest = usize::from(self.options.datagram_bytes);
        let datagram_bytes = path.min(longest).max(MIN_DATAGRAM_BYTES) as u16;
        let options = join::session_options(cx, datagram_bytes, self.options.authenticate_payload)?;
        let mut engines = self.engines.lock();
        let (engine, port) = engines.engine(Home::of(cx), Place::here(local), || {
            let pool = cx.pool.with_origin("udp");
            let port = UdpPort::open(local, self.options.together, &*cx.reactor, pool);
            let port = port.map_err(|e| Unavailable::os("open a UDP socket", &e))?;
            let at = port.local().port();
            Ok((Engine::new(Box::new(port), cx.reactor.clone()), at))
        })?;
        drop(engines);
        join::offer(engine, port, Way::Kernel, options, &self.pending, &cx.reactor)
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
            let offered = |session| self.pending.take(session);
            join::join(role, mine, peer, link, caps(), cx, offered).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use zc::TokioReactor;
    use zc_core::memory::{BufPool, CopyLedger};
    use zc_core::transport::{LaneLimits, UriParams};

    use super::*;
    use crate::limits::OFFERED_MS;

    fn context(params: &[(&str, &str)]) -> OfferContext {
        let (pool, ledger) = (BufPool::builder().build(), Arc::new(CopyLedger::new()));
        let mut cx = OfferContext::new(Arc::new(TokioReactor::new()), pool, ledger, LaneLimits::default());
        let loopback: SocketAddr = "127.0.0.1:1".parse().unwrap();
        (cx.local, cx.remote) = (Some(loopback), Some(loopback));
        cx.params =
            UriParams::new(params.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        cx
    }

    /// Nobody joined, and nobody makes another offer.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_joins_is_let_go() {
        let (transport, cx) = (UdpTransport::default(), context(&[]));
        let place = Place::here(cx.local.unwrap());
        let place = Place { address: place.address.to_canonical(), ..place };
        let is_open = || transport.engines.lock().find(Home::of(&cx), &place).is_some();
        for _ in 0..2 {
            transport.offer(&cx).unwrap();
            tokio::time::sleep(Duration::from_millis(OFFERED_MS / 2)).await;
            assert!(is_open());
            tokio::time::sleep(Duration::from_millis(OFFERED_MS)).await;
            assert!(!is_open(), "its socket is closed");
        }
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert_eq!(tasks(), 0);
        transport.offer(&cx).unwrap();
        assert_eq!(tasks(), 1);
        drop(transport);
        while tasks() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// A runtime that nobody drives, and one that has ended.
    #[test]
    fn offers_are_forgotten_whatever_another_runtime_does() {
        let runtime = || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().start_paused(true).build().unwrap()
        };
        let (transport, still) = (UdpTransport::default(), runtime());
        let offer = || async { transport.offer(&context(&[])).unwrap() };
        let is_kept = |offer: &Offer| {
            transport.pending.has(Endpoint::decode(offer.version, &offer.bytes).unwrap().offer.session())
        };
        let first = still.block_on(offer());
        runtime().block_on(async {
            let second = offer().await;
            tokio::time::sleep(Duration::from_millis(OFFERED_MS / 2)).await;
            assert!(is_kept(&first) && is_kept(&second));
            tokio::time::sleep(Duration::from_millis(OFFERED_MS)).await;
            assert!(is_kept(&first) && !is_kept(&second));
        });
        drop(still);
        assert!(!is_kept(&first));
    }

    #[tokio::test]
    async fn addresses_say_what_the_mac_covers() {
        let transport = UdpTransport::default();
        // Bit 0 of the flags.
        let covers_payload =
            |params| Ok::<_, Unavailable>(transport.offer(&context(params))?.bytes[1] & 1 == 1);
        assert_eq!(covers_payload(&[]), Ok(true));
        assert_eq!(covers_payload(&[("payload_mac", "off")]), Ok(false));
        assert_eq!(covers_payload(&[("payload_mac", "on")]), Ok(true));
        assert_eq!(covers_payload(&[("payload_mac", "perhaps")]).unwrap_err().code(), "bad_parameter");
    }

    #[tokio::test]
    async fn offers_of_one_socket_lead_the_same_way() {
        let (transport, other, cx) = (UdpTransport::default(), UdpTransport::default(), context(&[]));
        let [one, again] = [(); 2].map(|()| transport.offer(&cx).unwrap());
        let elsewhere = other.offer(&cx).unwrap();
        assert!(one != again && transport.is_same_way(&one, &again));
        assert!(!transport.is_same_way(&one, &elsewhere));
        let broken = Offer { version: 1, bytes: vec![0; 68] };
        assert!(!transport.is_same_way(&broken, &broken));
    }

    #[test]
    fn one_address_on_two_interfaces_is_two_places() {
        let [one, same, other] =
            ["[fe80::1%1]:7", "[fe80::1%1]:8", "[fe80::1%2]:7"].map(|at| Place::here(at.parse().unwrap()));
        assert!(one == same && one != other);
        assert_ne!(one, Place { namespace: one.namespace + 1, ..one });
    }
}
