//! Interfaces that are open: one engine has one, whichever transport of the process asked for it.
//!
//! To open one takes a while: a program is loaded, memory pinned, rings mapped. A thread of its own does that, so that the
//! runtime's go on; one interface is opened at a time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use futures::channel::oneshot;
use futures::lock::{Mutex as Turns, OwnedMutexGuard};
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use zc_core::transport::{Reactor, Unavailable};

use super::XdpOptions;
use super::device_port::DevicePort;
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

/// Whose turn it is to open one.
static TURNS: LazyLock<Arc<Turns<()>>> = LazyLock::new(Arc::default);

/// To close the sockets takes the kernel some milliseconds.
const CLOSING_PATIENCE: Duration = Duration::from_secs(1);
/// Others may be opening theirs.
const TURN_PATIENCE: Duration = Duration::from_secs(5);
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

/// The right to open one.
pub(super) struct Turn(#[allow(dead_code, reason = "it ends when it is dropped")] OwnedMutexGuard<()>);

impl Turn {
    pub(super) async fn wait() -> Self {
        Self(TURNS.clone().lock_owned().await)
    }

    /// The same for a thread that may sleep.
    pub(super) fn wait_here() -> Result<Self, Unavailable> {
        let start = Instant::now();
        loop {
            match TURNS.try_lock_owned() {
                Some(guard) => return Ok(Self(guard)),
                None if start.elapsed() < TURN_PATIENCE => std::thread::sleep(LOOK),
                None => {
                    return Err(other(
                        "interface_opening",
                        "connect again: another interface is being opened",
                    ));
                }
            }
        }
    }
}

pub(super) fn other(code: &'static str, remedy: impl Into<String>) -> Unavailable {
    Unavailable::Other { code, remedy: remedy.into() }
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
    /// Takes the interface. The thread sleeps meanwhile.
    pub(super) fn take(self) -> Result<Taken, Unavailable> {
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
        if !addresses.contains(&self.local) {
            return Err(other("other_interface", format!("name the interface that has {}", self.local)));
        }
        let reserved = reserve_port().map_err(|e| Unavailable::os("reserve a UDP port", &e))?;
        let port = reserved.1;
        let rules = Rules { ports: vec![port], addresses: addresses.clone(), faults: faults.is_some() };
        let memory = UmemOptions { frames, frame_bytes, ..UmemOptions::default() };
        let mut options = DeviceOptions { rules, best, worst, busy_polling, ..DeviceOptions::default() };
        // Packets of several frames are only sent where payload stays in frames. Drivers that have no such packets without
        // copies would copy if they were asked for.
        let sends_parts = in_place.unwrap_or(interface.features.zero_copy_segments > 1);
        options.multi_buffer = sends_parts.then_some(true);
        let granted = |options: &DeviceOptions| (self.broker)(name, options);
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

    /// The same in a thread of its own. If nobody waits any more, the interface is given back, and only then the turn.
    pub(super) async fn take_elsewhere(self, turn: Turn) -> (Result<Taken, Unavailable>, Option<Turn>) {
        let (done, taken) = oneshot::channel();
        let take = move || {
            let taken = self.take();
            if let Err((taken, turn)) = done.send((taken, turn)) {
                drop(taken);
                drop(turn);
            }
        };
        // It is in the namespace of this thread, too.
        if let Err(error) = std::thread::Builder::new().name("zc-xdp-open".to_owned()).spawn(take) {
            return (Err(Unavailable::os("start a thread", &error)), None);
        }
        match taken.await {
            Ok((taken, turn)) => (taken, Some(turn)),
            Err(_) => (Err(other("interface_opening", "look at what the thread zc-xdp-open has said")), None),
        }
    }
}

impl Taken {
    /// Has the runtime drive it.
    pub(super) fn begin(self, home: Home, reactor: &Arc<dyn Reactor>) -> Result<Open, Unavailable> {
        let Self { request, device, umem, reserved, face } = self;
        let mut engines = ENGINES.lock();
        engines.check_room()?;
        let (port, device) = DevicePort::new(device, umem, &request.options, reserved, &**reactor)
            .map_err(|e| Unavailable::os("watch an AF_XDP socket", &e))?;
        let (engine, face) = (Engine::new(Box::new(port), reactor.clone()), Arc::new(face));
        Opened { key: request.key.clone(), engine: Arc::downgrade(&engine), device }.note();
        engines.add(home, request.key, &engine, face.clone());
        Ok((engine, face))
    }
}
