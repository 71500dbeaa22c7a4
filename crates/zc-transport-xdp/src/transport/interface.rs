//! Interfaces that are open: one engine has one, whichever transport of the process asked for it.
//!
//! To open one takes a while: a program is loaded, memory pinned, rings mapped. A thread of its own does that, so that the
//! runtime's go on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use zc_core::transport::{Reactor, Unavailable};

use super::XdpOptions;
use super::device_port::DevicePort;
use super::opening::{Opening, Openings};
use super::registry::{Home, Registry};
use crate::device::{Device, DeviceOptions, Grant, Mode, OpenError, Umem, UmemOptions};
use crate::engine::Engine;
use crate::limits::MAX_ADDRESSES;
use crate::netlink::{Interface, NetlinkError};
use crate::program::Rules;

/// An interface: network namespace, and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    namespace: u64,
    pub(super) name: String,
}

impl Key {
    /// Of this name, where the thread is.
    pub(super) fn here(name: &str) -> Self {
        Self { namespace: namespace(), name: name.to_owned() }
    }
}

/// Which network namespace this thread is in.
pub(super) fn namespace() -> u64 {
    rustix::fs::stat("/proc/thread-self/ns/net").map_or(0, |stat| stat.st_ino)
}

/// What packets of an engine look like from outside.
pub(super) struct Face {
    pub(super) interface: Interface,
    pub(super) mac: [u8; 6],
    pub(super) port: u16,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) mode: Mode,
}

/// An engine, and its face.
pub(super) type Open = (Arc<Engine>, Arc<Face>);

/// Of all transports of the process, since an interface has one owner. The options of the first one count.
static ENGINES: Mutex<Registry<Key, Arc<Face>>> = Mutex::new(Registry::new());

/// The interfaces that engines of this process have, until they are the kernel's again: that is a little after an engine is gone.
static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

/// Those that are being opened, for an engine each.
static OPENINGS: Openings<Taken> = Openings::new();

/// To close the sockets takes the kernel some milliseconds.
const CLOSING_PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

struct Opened {
    key: Key,
    engine: Weak<Engine>,
    device: Weak<()>,
}

impl Opened {
    /// Waits for an engine of ours that is giving the interface back.
    fn wait_for(key: &Key) {
        let start = Instant::now();
        let is_closing =
            |one: &Opened| one.key == *key && one.engine.strong_count() == 0 && one.device.strong_count() > 0;
        while OPENED.lock().iter().any(is_closing) && start.elapsed() < CLOSING_PATIENCE {
            std::thread::sleep(LOOK);
        }
    }

    fn note(self) {
        let mut all = OPENED.lock();
        all.retain(|one| one.device.strong_count() > 0);
        all.push(self);
    }
}

/// The engine that there is.
pub(super) fn find(home: Home, key: &Key) -> Option<Open> {
    ENGINES.lock().find(home, key)
}

pub(super) fn other(code: &'static str, remedy: impl Into<String>) -> Unavailable {
    Unavailable::Other { code, remedy: remedy.into() }
}

pub(super) fn not_of(local: IpAddr) -> Unavailable {
    other("other_interface", format!("name the interface that has {local}"))
}

pub(super) fn netlink(error: NetlinkError) -> Unavailable {
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

/// What is asked for.
pub(super) struct Request {
    pub(super) key: Key,
    /// An address that it must have.
    pub(super) local: IpAddr,
    pub(super) options: XdpOptions,
    pub(super) broker: Arc<Broker>,
}

/// Who grants interfaces.
pub(super) type Broker = dyn Fn(&str, &DeviceOptions) -> Result<Grant, OpenError> + Send + Sync;

/// An interface that is ours, and that no runtime knows yet.
pub(super) struct Taken {
    request: Request,
    device: Device,
    umem: Umem,
    reserved: (OwnedFd, u16),
    face: Face,
}

impl Request {
    /// Whether it is worth trying: what is wrong with this connection, or with this process, is no reason for others not to have the
    /// interface.
    pub(super) fn check(&self) -> Result<(), Unavailable> {
        let interface = Interface::find(&self.key.name).map_err(netlink)?;
        if !interface.addresses().map_err(netlink)?.contains(&self.local) {
            return Err(not_of(self.local));
        }
        ENGINES.lock().check_room()
    }

    /// Takes the interface. The thread sleeps meanwhile.
    fn take(self) -> Result<Taken, Unavailable> {
        Opened::wait_for(&self.key);
        let XdpOptions { frames, frame_bytes, best, worst, in_place, busy_polling, faults, .. } =
            self.options;
        let name = &*self.key.name;
        let interface = Interface::find(name).map_err(netlink)?;
        let mac = interface.address.ok_or(Unavailable::NotApplicable { needs: "an Ethernet interface" })?;
        let mut addresses = interface.addresses().map_err(netlink)?;
        // This one counts most.
        addresses.sort_by_key(|address| *address != self.local);
        addresses.truncate(MAX_ADDRESSES);
        let reserved = reserve_port().map_err(|e| Unavailable::os("reserve a UDP port", &e))?;
        let port = reserved.1;
        let rules = Rules { ports: vec![port], addresses: addresses.clone(), faults: faults.is_some() };
        let memory = UmemOptions { frames, frame_bytes, ..UmemOptions::default() };
        let mut options = DeviceOptions { rules, best, worst, busy_polling, ..DeviceOptions::default() };
        // Packets of several frames are only sent where payload stays in frames. Drivers that have no such packets without
        // copies would copy if they were asked for.
        let sends_parts = in_place.unwrap_or(interface.features.zero_copy_segments > 1);
        options.multi_buffer = sends_parts.then_some(true);
        let granted = |options: &DeviceOptions| {
            let grant = (self.broker)(name, options)?;
            let of = grant.interface();
            // Routes, addresses and queues are those of the one that was asked for.
            let is_it =
                (of.index, &of.name, of.address) == (interface.index, &interface.name, interface.address);
            match (is_it, of.rx_queues == interface.rx_queues) {
                (true, true) => Ok(grant),
                (true, false) => Err(OpenError::NotAGrant("the interface had another number of queues")),
                (false, _) => Err(OpenError::NotAGrant("it is one of another interface")),
            }
        };
        let open = |options: &DeviceOptions| Device::open_by(options, granted, || Umem::new(&memory));
        let (device, umem) = match open(&options) {
            // Old kernels have no packets of several frames, which we can do without.
            Err(OpenError::Refused { .. }) if options.multi_buffer.is_some() => {
                options.multi_buffer = None;
                open(&options)?
            }
            opened => opened?,
        };
        // A broker may not have known it.
        device.attachment().add_port(port).map_err(|e| Unavailable::os("lead a port's packets here", &e))?;
        if let Some(faults) = faults {
            let set = device.attachment().set_faults(faults);
            set.map_err(|e| Unavailable::os("set faults", &e))?;
        }
        tracing::debug!(report = %device.report(), port, "an interface is open");
        let face = Face { interface, mac, port, addresses, mode: device.report().mode };
        Ok(Taken { request: self, device, umem, reserved, face })
    }

    /// Has a thread take it, unless one is about to, for whoever it may be.
    pub(super) fn open(self) -> Result<Arc<Opening<Taken>>, Unavailable> {
        let (key, owner, stays_for) = (self.key.clone(), owner_of(&self.broker), self.options.stays_for);
        OPENINGS.of(&key, owner, stays_for, move || self.take(), Taken::give_back)
    }
}

/// Tells those who ask on their own from each other.
fn owner_of(broker: &Arc<Broker>) -> usize {
    Arc::as_ptr(broker).cast::<()>().addr()
}

/// What `opening` came to, if it is for us: see [`Openings::finish`].
pub(super) fn finish<R>(
    opening: &Arc<Opening<Taken>>,
    broker: &Arc<Broker>,
    begin: impl FnOnce(Result<Taken, Unavailable>) -> R,
) -> Option<R> {
    OPENINGS.finish(opening, owner_of(broker), begin)
}

impl Taken {
    /// Nobody wants it. Who opens it again waits until it is the kernel's.
    fn give_back(key: &Key, taken: Self, remove: &mut dyn FnMut()) {
        let open = Arc::new(());
        Opened { key: key.clone(), engine: Weak::new(), device: Arc::downgrade(&open) }.note();
        remove();
        drop(taken);
        drop(open);
    }

    /// Has the runtime drive it.
    pub(super) fn begin(self, home: Home, reactor: &Arc<dyn Reactor>) -> Result<Open, Unavailable> {
        let Self { request, device, umem, reserved, face } = self;
        let (port, device) = DevicePort::new(device, umem, &request.options, reserved, reactor.clone())
            .map_err(|e| Unavailable::os("watch an AF_XDP socket", &e))?;
        let (engine, face) = (Engine::new(Box::new(port), reactor.clone()), Arc::new(face));
        Opened { key: request.key.clone(), engine: Arc::downgrade(&engine), device }.note();
        engine.stay()?;
        // What is given back for want of room goes without the lock.
        let mut engines = ENGINES.lock();
        engines.check_room()?;
        engines.add(home, request.key, &engine, face.clone());
        drop(engines);
        Ok((engine, face))
    }
}
