//! What the kernel knows of interfaces, routes and neighbours.
//!
//! Asked with netlink, in the network namespace of the thread that asks. Each question opens a socket of its own and
//! waits for the answer, so it belongs to where a connection is set up, not to where packets move.
//!
//! ```text
//! message   messages and attributes, without I/O
//! socket    asking
//! netdev    what drivers can do with XDP
//! route     interfaces, routes, neighbours
//! ```

mod message;
mod netdev;
mod route;
mod socket;

use std::io;
use std::net::IpAddr;

use netdev::Netdev;
pub(crate) use route::MAX_NAME_BYTES;
use socket::{Protocol, Socket};

/// Why there is no answer.
///
/// ```
/// use zc_transport_xdp::netlink::{Interface, NetlinkError};
///
/// let missing = Interface::find("no-such-device");
/// assert!(matches!(missing, Err(NetlinkError::Refused { .. })));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The kernel says no: there is no such thing, or it may not be asked.
    #[error("the kernel refuses: {errno}")]
    Refused {
        /// Its word.
        errno: io::Error,
    },
    /// It could not be asked.
    #[error("{operation}: {errno}")]
    Os {
        /// What was tried.
        operation: &'static str,
        /// The error.
        errno: io::Error,
    },
    /// The answer makes no sense.
    #[error("the kernel's answer can't be read")]
    Malformed,
}

impl NetlinkError {
    /// The system's error number, if it has one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno } | Self::Os { errno, .. } => errno.raw_os_error(),
            Self::Malformed => None,
        }
    }
}

/// What a driver can do with XDP, by its own word.
///
/// ```
/// use zc_transport_xdp::netlink::Interface;
///
/// let features = Interface::find("lo").unwrap().features;
/// assert!(!features.zero_copy);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Whether the kernel was able to tell (Linux 6.6).
    pub known: bool,
    /// Programs in the driver that redirect.
    pub redirect: bool,
    /// Sockets without a copy.
    pub zero_copy: bool,
    /// Received packets that span buffers.
    pub rx_segments: bool,
    /// Checksums of transmitted frames.
    pub tx_checksum: bool,
    /// Frames of one packet without a copy.
    pub zero_copy_segments: u32,
}

/// An interface.
///
/// ```
/// use zc_transport_xdp::netlink::Interface;
///
/// let lo = Interface::find("lo").unwrap();
/// assert!(lo.index > 0 && lo.rx_queues > 0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// The most bytes of a packet, without the Ethernet header.
    pub mtu: u32,
    /// Its Ethernet address, if it has one.
    pub address: Option<[u8; 6]>,
    /// How many queues receive.
    pub rx_queues: u32,
    /// The number of the XDP program that is attached, if there is one.
    pub program: Option<u32>,
    /// What its driver can do.
    pub features: Features,
}

impl Interface {
    /// The addresses that it has.
    ///
    /// # Errors
    /// The kernel was not able to tell.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, NetlinkError> {
        route::addresses(&mut Socket::open(Protocol::Route)?, self.index)
    }

    /// Asks for an interface by its name.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] with `ENODEV`: there is none.
    pub fn find(name: &str) -> Result<Self, NetlinkError> {
        let link = route::link(&mut Socket::open(Protocol::Route)?, name)?;
        // Older kernels have neither, and some part of it. Where the queues can't be counted, it is the most there may be.
        let mut netdev = Netdev::open().ok();
        let features = netdev.as_mut().and_then(|netdev| netdev.features(link.index).ok());
        let queues = netdev.as_mut().and_then(|netdev| netdev.rx_queues(link.index).ok());
        Ok(Self {
            name: name.to_owned(),
            index: link.index,
            mtu: link.mtu,
            address: link.address,
            rx_queues: queues.filter(|count| *count > 0).unwrap_or(link.rx_queues),
            program: link.program,
            features: features.unwrap_or_default(),
        })
    }
}

/// The way to an address.
///
/// ```
/// use zc_transport_xdp::netlink::{Interface, Route};
///
/// if let Ok(route) = Route::to("127.0.0.1".parse().unwrap()) {
///     assert_eq!(route.interface, Interface::find("lo").unwrap().index);
///     assert_eq!(route.gateway, None);
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The interface that packets leave by.
    pub interface: u32,
    /// Whom they go to first, if not to their destination itself.
    pub gateway: Option<IpAddr>,
    /// The address that they come from.
    pub source: Option<IpAddr>,
}

impl Route {
    /// Asks how packets to an address would go.
    pub fn to(address: IpAddr) -> Result<Self, NetlinkError> {
        route::route(&mut Socket::open(Protocol::Route)?, address)
    }
}

/// What is known of somebody on an interface's link.
///
/// ```
/// use zc_transport_xdp::netlink::{Interface, Neighbour};
///
/// let lo = Interface::find("lo").unwrap();
/// let nobody = Neighbour::of(lo.index, "192.0.2.1".parse().unwrap());
/// assert!(!matches!(nobody, Ok(Neighbour::Known(_))));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    /// His Ethernet address.
    Known([u8; 6]),
    /// The kernel has not found out, or has found nobody. It does so when it sends something there itself.
    Unresolved,
}

impl Neighbour {
    /// Asks for a neighbour by his address. The kernel has heard of him, or this is an error (`ENOENT`).
    pub fn of(interface: u32, address: IpAddr) -> Result<Self, NetlinkError> {
        route::neighbour(&mut Socket::open(Protocol::Route)?, interface, address)
    }
}
