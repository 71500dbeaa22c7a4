//! The XDP program, which leads UDP packets of our ports to the sockets of their queues.
//!
//! It is emitted as instructions and loaded with bpf(2): neither a compiler nor a library is needed, when building or
//! when running. `redirect` says what it does with which packet; a [`Rules`] what it is narrowed down to.

mod assembler;
mod redirect;

pub(crate) use assembler::Insn;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::limits::{ALL_PORTS, MAX_ADDRESSES, MAX_PORTS};
use crate::sys::{Array, Link, PortMap, Program, XskMap, load};
use redirect::Plan;

/// Which packets are taken from the kernel.
///
/// ```
/// use zc_transport_xdp::program::Rules;
///
/// let rules = Rules { ports: vec![7000], addresses: vec!["10.0.0.1".parse().unwrap()], ..Rules::default() };
/// assert!(rules.check().is_ok());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// UDP destination ports; more can be added while it runs.
    pub ports: Vec<u16>,
    /// Destination addresses; none means all, which on a router would take packets for others.
    pub addresses: Vec<IpAddr>,
    /// For tests: packets can be lost and damaged by chance, see [`Faults`].
    pub faults: bool,
}

/// Why rules can't be met.
///
/// ```
/// use zc_transport_xdp::program::{Rules, RulesError};
///
/// let rules = Rules { ports: (0..1000).collect(), ..Rules::default() };
/// assert_eq!(rules.check(), Err(RulesError::TooManyPorts(1000)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// More than [`MAX_PORTS`].
    #[error("{0} ports are more than {MAX_PORTS}")]
    TooManyPorts(usize),
    /// More than [`MAX_ADDRESSES`].
    #[error("{0} addresses are more than {MAX_ADDRESSES}")]
    TooManyAddresses(usize),
}

impl Rules {
    /// Whether a program can have them.
    pub fn check(&self) -> Result<(), RulesError> {
        if self.ports.len() > MAX_PORTS as usize {
            return Err(RulesError::TooManyPorts(self.ports.len()));
        }
        if self.addresses.len() > MAX_ADDRESSES {
            return Err(RulesError::TooManyAddresses(self.addresses.len()));
        }
        Ok(())
    }
}

/// What is done to packets of our ports, by chance, for tests.
///
/// ```
/// use zc_transport_xdp::program::Faults;
///
/// let one_in_a_hundred = Faults { lost: 0.01, ..Faults::default() };
/// assert_eq!(one_in_a_hundred.damaged, 0.0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// The part that is lost, 0 to 1.
    pub lost: f64,
    /// The part of which the first byte of the payload is changed, 0 to 1.
    pub damaged: f64,
}

impl Faults {
    fn words(self) -> [u32; 4] {
        // Saturating; for 1 that leaves one packet in 2^32.
        let word = |part: f64| (part * 4_294_967_296.0) as u32;
        [word(self.lost), word(self.damaged), 0, 0]
    }
}

pub(crate) const MAP_CREATE: &str = "bpf(BPF_MAP_CREATE)";

/// What stopped a program from being loaded.
#[derive(Debug)]
pub(crate) struct NotLoaded {
    pub(crate) operation: &'static str,
    pub(crate) error: io::Error,
}

impl NotLoaded {
    fn of(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self { operation, error }
    }
}

/// A loaded program and its maps.
pub(crate) struct Redirect {
    program: Option<Program>,
    pub(crate) sockets: XskMap,
    ports: PortMap,
    faults: Option<Array>,
}

impl Redirect {
    /// Loads a program for so many queues. Frags are packets that span buffers: whether it is to see such.
    pub(crate) fn load(rules: &Rules, queues: u32, frags: bool) -> Result<Self, NotLoaded> {
        let sockets = XskMap::new(queues).map_err(NotLoaded::of(MAP_CREATE))?;
        let ports = PortMap::new(ALL_PORTS).map_err(NotLoaded::of(MAP_CREATE))?;
        let faults = match rules.faults {
            true => Some(Array::new(1).map_err(NotLoaded::of(MAP_CREATE))?),
            false => None,
        };
        for port in &rules.ports {
            ports.set(u32::from(*port), 1).map_err(NotLoaded::of("bpf(BPF_MAP_UPDATE_ELEM)"))?;
        }
        let plan = Plan {
            sockets: sockets.as_fd().as_raw_fd(),
            ports: ports.as_fd().as_raw_fd(),
            addresses: &rules.addresses,
            faults: faults.as_ref().map(|map| map.as_fd().as_raw_fd()),
        };
        let operation = "bpf(BPF_PROG_LOAD)";
        let too_long = |_| NotLoaded { operation, error: io::ErrorKind::InvalidInput.into() };
        let instructions = redirect::assemble(&plan).map_err(too_long)?;
        // Kernels before 5.18 don't know of frags, and need not.
        let loaded = load(&instructions, frags).or_else(|(error, log)| match error.raw_os_error() {
            Some(libc::EINVAL) if frags => load(&instructions, false),
            _ => Err((error, log)),
        });
        let program = loaded.map_err(|(error, log)| {
            if !log.is_empty() {
                tracing::warn!(log, "the kernel refuses the XDP program");
            }
            NotLoaded { operation, error }
        })?;
        Ok(Self { program: Some(program), sockets, ports, faults })
    }

    /// Attaches it to an interface; `None` for one that came without the program.
    pub(crate) fn attach(&self, interface: u32, generic: bool) -> Option<io::Result<Link>> {
        Some(self.program.as_ref()?.attach(interface, generic))
    }

    pub(crate) fn add_port(&self, port: u16) -> io::Result<()> {
        self.ports.set(port.into(), 1)
    }

    pub(crate) fn remove_port(&self, port: u16) -> io::Result<()> {
        self.ports.set(port.into(), 0)
    }

    /// False if it was not loaded for that.
    pub(crate) fn set_faults(&self, faults: Faults) -> io::Result<bool> {
        let Some(map) = &self.faults else { return Ok(false) };
        map.set(0, faults.words()).map(|()| true)
    }

    /// The maps alone: all that is needed once it is attached.
    pub(crate) fn into_maps(self) -> Vec<OwnedFd> {
        let maps =
            [Some(self.sockets.into_fd()), Some(self.ports.into_fd()), self.faults.map(Array::into_fd)];
        maps.into_iter().flatten().collect()
    }

    /// See [`into_maps`](Self::into_maps). An error if they are other maps.
    pub(crate) fn from_maps(sockets: OwnedFd, ports: OwnedFd, faults: Option<OwnedFd>) -> io::Result<Self> {
        let faults = faults.map(Array::from_fd).transpose()?;
        let (sockets, ports) = (XskMap::from_fd(sockets)?, PortMap::from_fd(ports)?);
        Ok(Self { program: None, sockets, ports, faults })
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests")]
mod tests;
