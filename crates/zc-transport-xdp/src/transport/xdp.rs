//! The transport over AF_XDP sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use zc_core::transport::{
    BoxFuture, Caps, ControlLink, Lane, LinkError, Offer, OfferContext, OneSided, Role, Transport,
    Unavailable, WireupError,
};

use super::device_port::{DevicePort, datagram_bytes};
use super::join::{self, NO_ADDRESS};
use super::offered::{Pending, Way};
use super::registry::{Home, Registry};
use super::udp_port::path_bytes;
use crate::device::{Device, DeviceOptions, Mode, OpenError, Umem, UmemOptions};
use crate::engine::Engine;
use crate::limits::{DEVICE_STAYS_MS, MAX_ADDRESSES, XDP_FRAMES};
use crate::netlink::{Interface, Neighbour, NetlinkError, Route};
use crate::program::{Faults, Rules};
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
            stays_for: Duration::from_millis(DEVICE_STAYS_MS),
            faults: None,
        }
    }
}

/// Reliable messages over AF_XDP sockets, where the address names an interface: `zc+xdp://host:port?if=eth1`. With `queue=N` besides,
/// the connection's packets leave by that queue.
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
#[derive(Default)]
pub struct XdpTransport {
    options: XdpOptions,
    pending: Mutex<Pending>,
}

/// Of all transports of the process, since an interface has one owner: by network namespace and name. The options of the first
/// one count.
static ENGINES: Mutex<Registry<(u64, String), Arc<Face>>> = Mutex::new(Registry::new());

/// The interfaces that engines of this process have, until they are the kernel's again: that is a little after an engine is gone.
static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

struct Opened {
    key: (u64, String),
    engine: Weak<Engine>,
    device: Weak<()>,
}

impl Opened {
    /// Waits for an engine of ours that is giving the interface back.
    fn wait_for(key: &(u64, String)) {
        let start = Instant::now();
        let is_closing =
            |one: &Opened| one.key == *key && one.engine.strong_count() == 0 && one.device.strong_count() > 0;
        while OPENED.lock().iter().any(is_closing) && start.elapsed() < CLOSING_PATIENCE {
            std::thread::sleep(CLOSING_LOOK);
        }
    }

    fn note(self) {
        let mut all = OPENED.lock();
        all.retain(|one| one.device.strong_count() > 0);
        all.push(self);
    }
}

/// To close the sockets takes the kernel some milliseconds.
const CLOSING_PATIENCE: Duration = Duration::from_secs(1);
const CLOSING_LOOK: Duration = Duration::from_millis(1);

/// Which network namespace this thread is in.
fn namespace() -> u64 {
    rustix::fs::stat("/proc/thread-self/ns/net").map_or(0, |stat| stat.st_ino)
}

/// What packets of an engine look like from outside.
pub(super) struct Face {
    interface: Interface,
    pub(super) mac: [u8; 6],
    pub(super) port: u16,
    addresses: Vec<IpAddr>,
}

impl std::fmt::Debug for XdpTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XdpTransport").field("options", &self.options).finish_non_exhaustive()
    }
}

fn other(code: &'static str, remedy: impl Into<String>) -> Unavailable {
    Unavailable::Other { code, remedy: remedy.into() }
}

fn netlink(error: NetlinkError) -> Unavailable {
    OpenError::from(error).into()
}

/// A UDP port that nobody else gets; nothing is read from its socket.
fn reserve_port() -> std::io::Result<(OwnedFd, u16)> {
    let open = |family, all: IpAddr| {
        let socket =
            rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::UDP))?;
        if all.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, false)?;
        }
        sockopt::set_socket_recv_buffer_size(&socket, 0)?;
        rustix::net::bind(&socket, &SocketAddr::new(all, 0))?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    let socket = open(AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into());
    let socket = socket.or_else(|_| open(AddressFamily::INET, Ipv4Addr::UNSPECIFIED.into()))?;
    let at: SocketAddr = rustix::net::getsockname(&socket)?.try_into()?;
    Ok((socket, at.port()))
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
        Self { options, pending: Mutex::default() }
    }

    fn open(
        &self,
        key: &(u64, String),
        local: IpAddr,
        cx: &OfferContext,
    ) -> Result<(Arc<Engine>, Arc<Face>), Unavailable> {
        Opened::wait_for(key);
        let name = &*key.1;
        let XdpOptions { frames, frame_bytes, best, worst, in_place, faults, .. } = self.options;
        let interface = Interface::find(name).map_err(netlink)?;
        let mac = interface.address.ok_or(Unavailable::NotApplicable { needs: "an Ethernet interface" })?;
        let mut addresses = interface.addresses().map_err(netlink)?;
        // This one counts most.
        addresses.sort_by_key(|address| *address != local);
        addresses.truncate(MAX_ADDRESSES);
        if !addresses.contains(&local) {
            return Err(other("other_interface", format!("name the interface that has {local}")));
        }
        let (reserved, port) = reserve_port().map_err(|e| Unavailable::os("reserve a UDP port", &e))?;
        let rules = Rules { ports: vec![port], addresses: addresses.clone(), faults: faults.is_some() };
        let umem = UmemOptions { frames, frame_bytes, ..UmemOptions::default() };
        let umem = Umem::new(&umem)?;
        let mut options = DeviceOptions { rules, best, worst, ..DeviceOptions::default() };
        options.multi_buffer = (in_place != Some(false)).then_some(true);
        let device = match Device::open(name, &umem, &options) {
            // Old kernels have no packets of several frames, which we can do without.
            Err(OpenError::Refused { .. }) if options.multi_buffer.is_some() => {
                options.multi_buffer = None;
                Device::open(name, &umem, &options)?
            }
            device => device?,
        };
        if let Some(faults) = faults {
            let set = device.attachment().set_faults(faults);
            set.map_err(|e| Unavailable::os("set faults", &e))?;
        }
        tracing::debug!(report = %device.report(), port, "an interface is open");
        let (port_io, device) = DevicePort::new(device, umem, &self.options, (reserved, port), &*cx.reactor)
            .map_err(|e| Unavailable::os("watch an AF_XDP socket", &e))?;
        let face = Arc::new(Face { interface, mac, port, addresses });
        let engine = Engine::new(Box::new(port_io), cx.reactor.clone());
        Opened { key: key.clone(), engine: Arc::downgrade(&engine), device }.note();
        Ok((engine, face))
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
            Err(rustix::io::Errno::PERM) => Err(Unavailable::MissingCapability { capability: "CAP_NET_RAW" }),
            Err(error) => Err(Unavailable::os("socket(AF_XDP)", &error.into())),
        }
    }

    fn params(&self) -> &'static [&'static str] {
        &["if", "queue"]
    }

    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        let name = cx.params.value("if").ok_or(NO_INTERFACE)?;
        let (local, remote) = (join::local(cx, 0)?, cx.remote.ok_or(NO_ADDRESS)?);
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let key = (namespace(), name.to_owned());
        let open = || self.open(&key, local.ip(), cx);
        let (engine, face) = ENGINES.lock().engine(Home::of(cx), key.clone(), open)?;
        if !face.addresses.contains(&local.ip()) {
            return Err(other("other_interface", format!("name the interface that has {}", local.ip())));
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
        let options = join::session_options(cx, longest.max(MIN_DATAGRAM_BYTES) as u16);
        let port = face.port;
        let way = Way::Device { face, next_hop, queue: queue as usize };
        join::offer(engine, port, way, options, &mut self.pending.lock())
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
            let offered = |session| self.pending.lock().take(session);
            join::join(role, mine, peer, link, caps(), cx, offered).await
        })
    }
}
