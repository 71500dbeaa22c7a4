//! The transport over AF_XDP sockets.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use zc_core::transport::{
    BoxFuture, Caps, ControlLink, Lane, LinkError, Offer, OfferContext, OneSided, Role, Transport,
    Unavailable, WireupError,
};

use super::device_port::datagram_bytes;
use super::interface::{self, Broker, Key, Open, Request, Taken, netlink, not_of, other};
use super::join::{self, NO_ADDRESS, PAYLOAD_MAC};
use super::offered::{Pending, Way};
use super::refusals::Refusals;
use super::registry::Home;
use super::udp_port::path_bytes;
use crate::device::{BusyPolling, DeviceOptions, Grant, Mode, OpenError};
use crate::limits::{BUSY_POLL_PACKETS, DEVICE_STAYS_MS, MAX_BUSY_POLL_US, XDP_FRAMES};
use crate::netlink::{Interface, Neighbour, NetlinkError, Route};
use crate::program::Faults;
use crate::protocol::MIN_DATAGRAM_BYTES;

/// How an [`XdpTransport`] works.
///
/// ```
/// use zc_transport_xdp::device::Mode;
/// use zc_transport_xdp::{XdpOptions, XdpTransport};
///
/// let mut options = XdpOptions::default();
/// options.worst = Mode::ZeroCopy; // or not at all
/// let transport = XdpTransport::new(options);
/// # let _ = transport;
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct XdpOptions {
    /// Frames of the memory of one interface
    pub frames: u32,
    /// Bytes of a frame, 2048 or 4096: what packets may be long
    pub frame_bytes: u32,
    /// The first way that is tried
    pub best: Mode,
    /// The last way that is tried
    pub worst: Mode,
    /// Payload that lies in frames stays there, behind headers in a frame of their own; by default where the device itself reads
    /// them, since the kernel copies one piece faster than two
    pub in_place: Option<bool>,
    /// Have the kernel poll the device while somebody looks for packets, instead of by interrupts (`SO_PREFER_BUSY_POLL`). Each look is a
    /// system call then
    pub busy_polling: Option<BusyPolling>,
    /// The MAC of packets covers payload, too; it does if either side says so. `?payload_mac=off` in an address says
    /// otherwise for its connections
    pub authenticate_payload: bool,
    /// How long an interface stays open after its last connection
    pub stays_for: Duration,
    /// For tests: packets that come in are lost and damaged
    pub faults: Option<Faults>,
}

impl Default for XdpOptions {
    fn default() -> Self {
        Self {
            frames: XDP_FRAMES,
            frame_bytes: 2048,
            best: Mode::ZeroCopy,
            worst: Mode::Generic,
            in_place: None,
            busy_polling: None,
            authenticate_payload: true,
            stays_for: Duration::from_millis(DEVICE_STAYS_MS),
            faults: None,
        }
    }
}

/// Reliable messages over AF_XDP sockets, where the address names an interface: `zc+xdp://host:port?if=eth1`. With `queue=N` besides,
/// the connection's packets leave by that queue; `busy_poll_us=N` has the kernel poll the device for that long at each look, if this
/// connection is the one that the interface is opened for.
///
/// All connections over one interface share its sockets, one on each queue. The interface goes back to the kernel a little after the
/// last of them.
///
/// ```
/// use zc_core::transport::Transport;
/// use zc_transport_xdp::XdpTransport;
///
/// let transport = XdpTransport::default();
/// assert_eq!(transport.name(), "xdp");
/// match transport.probe() {
///     Ok(_) => println!("name an interface"),
///     Err(why) => println!("{why}"),
/// }
/// ```
pub struct XdpTransport {
    options: XdpOptions,
    broker: Arc<Broker>,
    /// Somebody else has the rights.
    is_brokered: bool,
    refusals: Refusals,
    pending: Pending,
}

impl Default for XdpTransport {
    fn default() -> Self {
        Self::new(XdpOptions::default())
    }
}

impl std::fmt::Debug for XdpTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XdpTransport").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Who packets to an address are handed to.
fn next_hop(interface: &Interface, to: IpAddr) -> Result<[u8; 6], Unavailable> {
    let route = Route::to(to).map_err(netlink)?;
    if route.interface != interface.index {
        return Err(other("other_interface", format!("name the interface that leads to {to}")));
    }
    let hop = route.gateway.unwrap_or(to);
    match Neighbour::of(interface.index, hop) {
        Ok(Neighbour::Known(mac)) => Ok(mac),
        // The control link has just been there.
        Ok(Neighbour::Unresolved) | Err(NetlinkError::Refused { .. }) => {
            Err(other("no_neighbour", format!("see that {hop} answers on {}", interface.name)))
        }
        Err(error) => Err(netlink(error)),
    }
}

impl XdpTransport {
    /// With these options.
    pub fn new(options: XdpOptions) -> Self {
        Self::of(options, Arc::new(Grant::open), false)
    }

    /// One whose interfaces are granted by somebody with rights: this process needs none. `broker` is asked for the interface by its name
    /// whenever that is to be opened, in a thread that may wait; [`device::Grant`](crate::device::Grant) tells how one travels.
    ///
    /// ```
    /// use zc_transport_xdp::device::{DeviceOptions, Grant, OpenError};
    /// use zc_transport_xdp::{XdpOptions, XdpTransport};
    ///
    /// /// Asks a supervisor over a socket, in earnest.
    /// fn ask(interface: &str, options: &DeviceOptions) -> Result<Grant, OpenError> {
    ///     Grant::open(interface, options)
    /// }
    /// let transport = XdpTransport::by_broker(XdpOptions::default(), ask);
    /// # let _ = transport;
    /// ```
    pub fn by_broker(
        options: XdpOptions,
        broker: impl Fn(&str, &DeviceOptions) -> Result<Grant, OpenError> + Send + Sync + 'static,
    ) -> Self {
        Self::of(options, Arc::new(broker), true)
    }

    fn of(options: XdpOptions, broker: Arc<Broker>, is_brokered: bool) -> Self {
        let (refusals, pending) = (Refusals::default(), Pending::default());
        Self { options, broker, is_brokered, refusals, pending }
    }

    fn key(cx: &OfferContext) -> Result<Key, Unavailable> {
        Ok(Key::here(cx.params.value("if").ok_or(NO_INTERFACE)?))
    }

    fn request(&self, key: &Key, cx: &OfferContext) -> Result<Request, Unavailable> {
        let local = join::local(cx, 0)?.ip();
        let mut options = self.options.clone();
        if let Some(micros) = cx.params.value("busy_poll_us") {
            let micros = micros.parse().ok().filter(|micros| (1..=MAX_BUSY_POLL_US).contains(micros));
            let bad = || other("bad_parameter", format!("say busy_poll_us=N, from 1 to {MAX_BUSY_POLL_US}"));
            let packets = options.busy_polling.map_or(BUSY_POLL_PACKETS, |polling| polling.packets);
            options.busy_polling = Some(BusyPolling { micros: micros.ok_or_else(bad)?, packets });
        }
        let request = Request { key: key.clone(), local, options, broker: self.broker.clone() };
        request.check().map(|()| request)
    }

    /// The engine that there is; an error if there is none, and one was refused a moment ago.
    fn known(&self, key: &Key, cx: &OfferContext) -> Result<Option<Open>, Unavailable> {
        match interface::find(Home::of(cx), key) {
            None => self.refusals.check(key, cx.reactor.now()).map(|()| None),
            found => Ok(found),
        }
    }

    fn begin(
        &self,
        key: &Key,
        taken: Result<Taken, Unavailable>,
        cx: &OfferContext,
    ) -> Result<Open, Unavailable> {
        let refused = |why: &Unavailable| self.refusals.note(key.clone(), cx.reactor.now(), why.clone());
        taken.inspect_err(refused)?.begin(Home::of(cx), &cx.reactor)
    }

    /// An offer of a session over an interface that is open.
    fn offer_over(&self, (engine, face): Open, cx: &OfferContext) -> Result<Offer, Unavailable> {
        let (local, remote) = (join::local(cx, 0)?, cx.remote.ok_or(NO_ADDRESS)?);
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        if !face.addresses.contains(&local.ip()) {
            return Err(not_of(local.ip()));
        }
        let queues = face.interface.rx_queues;
        let queue = match cx.params.value("queue") {
            // Connections take turns by their addresses.
            None => u32::from(remote.port()) % queues,
            Some(queue) => {
                let queue = queue.parse().ok().filter(|queue| *queue < queues);
                queue.ok_or_else(|| other("no_such_queue", format!("name one of {queues}, from 0 on")))?
            }
        };
        let next_hop = next_hop(&face.interface, remote.ip())?;
        let path = path_bytes(local, remote).map_err(|e| Unavailable::os("ask for the path's MTU", &e))?;
        let longest = path.min(datagram_bytes(self.options.frame_bytes as usize));
        let datagram_bytes = longest.max(MIN_DATAGRAM_BYTES) as u16;
        let options = join::session_options(cx, datagram_bytes, self.options.authenticate_payload)?;
        let port = face.port;
        let way = Way::Device { face, next_hop, queue: queue as usize };
        join::offer(engine, port, way, options, &self.pending, &cx.reactor)
    }
}

const NO_INTERFACE: Unavailable = Unavailable::NotApplicable { needs: "an interface (`?if=`)" };

fn caps() -> Caps {
    let mut caps = Caps::stream();
    caps.max_segments = zc_core::memory::MAX_SEGMENTS;
    caps.one_sided = OneSided::Emulated;
    caps.user_polled = true;
    caps
}

impl Transport for XdpTransport {
    fn name(&self) -> &'static str {
        "xdp"
    }

    fn suits(&self, cx: &OfferContext) -> Result<(), Unavailable> {
        cx.params.value("if").map(drop).ok_or(NO_INTERFACE)?;
        cx.remote.map(drop).ok_or(NO_ADDRESS)
    }

    /// Whether the system has such sockets; what an interface can do is found out when one is named.
    fn probe(&self) -> Result<Caps, Unavailable> {
        match rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None) {
            Ok(_) => Ok(caps()),
            Err(rustix::io::Errno::AFNOSUPPORT) => {
                Err(Unavailable::NoKernelSupport { needs: "AF_XDP sockets (CONFIG_XDP_SOCKETS)" })
            }
            Err(rustix::io::Errno::PERM) if self.is_brokered => Ok(caps()),
            Err(rustix::io::Errno::PERM) => Err(Unavailable::MissingCapability { capability: "CAP_NET_RAW" }),
            Err(error) => Err(Unavailable::os("socket(AF_XDP)", &error.into())),
        }
    }

    fn params(&self) -> &'static [&'static str] {
        &["if", "queue", "busy_poll_us", PAYLOAD_MAC]
    }

    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        let key = Self::key(cx)?;
        loop {
            if let Some(open) = self.known(&key, cx)? {
                return self.offer_over(open, cx);
            }
            let opening = self.request(&key, cx)?.open()?;
            opening.wait_here()?;
            if let Some(open) = interface::finish(&opening, &self.broker, |taken| self.begin(&key, taken, cx))
            {
                return self.offer_over(open?, cx);
            }
        }
    }

    fn offer_soon<'a>(&'a self, cx: &'a OfferContext) -> BoxFuture<'a, Result<Offer, Unavailable>> {
        Box::pin(async move {
            let key = Self::key(cx)?;
            // Once more where somebody else had what was opened.
            loop {
                if let Some(open) = self.known(&key, cx)? {
                    return self.offer_over(open, cx);
                }
                let opening = self.request(&key, cx)?.open()?;
                opening.wait(&cx.reactor).await?;
                let begin = |taken| self.begin(&key, taken, cx);
                if let Some(open) = interface::finish(&opening, &self.broker, begin) {
                    return self.offer_over(open?, cx);
                }
            }
        })
    }

    fn withdraw(&self, offer: &Offer) {
        self.pending.withdraw(offer);
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
