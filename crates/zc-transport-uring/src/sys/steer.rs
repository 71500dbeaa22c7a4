//! Rules of a NIC that send what comes for one connection to one receive queue (`ETHTOOL_SRXCLSRLINS`).
//!
//! A rule must not come before its connection is read by the ring alone: what lies in an area no other way of reading gets at
//! (EFAULT). So nobody can make it ahead, but for ports that nobody else reads.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const DELETE_RULE: u32 = 0x31; // ETHTOOL_SRXCLSRLDEL
const INSERT_RULE: u32 = 0x32; // ETHTOOL_SRXCLSRLINS
const TCP_V4_FLOW: u32 = 1;
const TCP_V6_FLOW: u32 = 5;
// The driver finds a place, and says which.
const ANYWHERE: u32 = u32::MAX; // RX_CLS_LOC_ANY

const FIELDS_BYTES: usize = 52;
const EXTRA_BYTES: usize = 20;

/// `struct ethtool_rxnfc`, of which `struct ethtool_rx_flow_spec` is the middle.
#[repr(C)]
struct RuleData {
    command: u32,
    flow_type: u32,
    data: u64,
    spec_flow_type: u32,
    fields: [u8; FIELDS_BYTES],
    extra: [u8; EXTRA_BYTES],
    mask: [u8; FIELDS_BYTES],
    extra_mask: [u8; EXTRA_BYTES],
    queue: u64,
    location: u32,
    end_of_spec: u32,
    count: u32,
}

/// `struct ifreq`.
#[repr(C)]
struct Request {
    interface: [u8; libc::IFNAMSIZ],
    rule: *mut RuleData,
    rest: [u8; 16],
}

/// What comes for one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Whose packets.
    pub(crate) peer: SocketAddr,
    /// Where they go to.
    pub(crate) here: SocketAddr,
}

impl Flow {
    /// That of a connected socket.
    pub(crate) fn of(socket: &OwnedFd) -> Option<Self> {
        let peer = rustix::net::getpeername(socket).ok()??.try_into().ok()?;
        let here = rustix::net::getsockname(socket).ok()?.try_into().ok()?;
        Some(Self { peer, here })
    }
}

/// A rule that is in force until this is dropped.
pub(crate) struct Rule {
    control: OwnedFd,
    interface: [u8; libc::IFNAMSIZ],
    location: u32,
}

impl RuleData {
    fn new(command: u32) -> Self {
        Self {
            command,
            flow_type: 0,
            data: 0,
            spec_flow_type: 0,
            fields: [0; FIELDS_BYTES],
            extra: [0; EXTRA_BYTES],
            mask: [0; FIELDS_BYTES],
            extra_mask: [0; EXTRA_BYTES],
            queue: 0,
            location: ANYWHERE,
            end_of_spec: 0,
            count: 0,
        }
    }

    /// All of both addresses and ports must match. `None`: of two kinds of addresses.
    fn of(flow: Flow, queue: u32) -> Option<Self> {
        let mut rule = Self { queue: queue.into(), ..Self::new(INSERT_RULE) };
        let (kind, addresses): (_, [Vec<u8>; 2]) =
            match (flow.peer.ip().to_canonical(), flow.here.ip().to_canonical()) {
                (IpAddr::V4(peer), IpAddr::V4(here)) => {
                    (TCP_V4_FLOW, [peer.octets().into(), here.octets().into()])
                }
                (IpAddr::V6(peer), IpAddr::V6(here)) => {
                    (TCP_V6_FLOW, [peer.octets().into(), here.octets().into()])
                }
                _ => return None,
            };
        rule.spec_flow_type = kind;
        let ports = [flow.peer.port(), flow.here.port()].map(|port| port.to_be_bytes());
        // `struct ethtool_tcpip4_spec` and `ethtool_tcpip6_spec`: both addresses, both ports, and a byte that may be anything.
        let wanted = addresses.iter().flatten().chain(ports.as_flattened());
        for ((field, mask), byte) in rule.fields.iter_mut().zip(&mut rule.mask).zip(wanted) {
            (*field, *mask) = (*byte, u8::MAX);
        }
        Some(rule)
    }
}

fn call(control: &OwnedFd, interface: [u8; libc::IFNAMSIZ], rule: &mut RuleData) -> io::Result<()> {
    let mut request = Request { interface, rule, rest: [0; 16] };
    // SAFETY: SIOCETHTOOL reads and writes the request and the rule that it leads to, both of which are alive; the rule has no
    // list behind it, which neither of the two commands looks for.
    let done = unsafe { libc::ioctl(control.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Rule {
    /// Sends the flow to a queue of an interface.
    ///
    /// # Errors
    /// The driver's: it has no such rules (EOPNOTSUPP), they are switched off, or the table is full.
    pub(crate) fn new(interface: &str, queue: u32, flow: Flow) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let mut name = [0; libc::IFNAMSIZ];
        let room = name.len() - 1;
        let place = name[..room].get_mut(..interface.len()).ok_or_else(invalid)?;
        #[allow(clippy::disallowed_methods, reason = "a name, not payload")]
        place.copy_from_slice(interface.as_bytes());
        let mut rule = RuleData::of(flow, queue).ok_or_else(invalid)?;
        // Bound to nothing: it takes no port.
        let control = rustix::net::socket_with(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::DGRAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )?;
        call(&control, name, &mut rule)?;
        Ok(Self { control, interface: name, location: rule.location })
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        let mut rule = RuleData { location: self.location, ..RuleData::new(DELETE_RULE) };
        if let Err(error) = call(&self.control, self.interface, &mut rule) {
            tracing::debug!(%error, location = self.location, "a rule stays with its NIC");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// As `linux/ethtool.h` has them: `struct ethtool_rxnfc`, and in it `ethtool_rx_flow_spec` at 16.
    #[test]
    fn a_rule_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(offset_of!(RuleData, spec_flow_type), 16);
        assert_eq!(offset_of!(RuleData, fields), 16 + 4);
        assert_eq!(offset_of!(RuleData, extra), 16 + 56);
        assert_eq!(offset_of!(RuleData, mask), 16 + 76);
        assert_eq!(offset_of!(RuleData, extra_mask), 16 + 128);
        assert_eq!(offset_of!(RuleData, queue), 16 + 152);
        assert_eq!(offset_of!(RuleData, location), 16 + 160);
        assert_eq!((offset_of!(RuleData, count), size_of::<RuleData>()), (16 + 168, 192));
        assert_eq!((offset_of!(Request, rule), size_of::<Request>()), (16, 40));
    }

    fn flow(peer: &str, here: &str) -> Flow {
        Flow { peer: peer.parse().unwrap(), here: here.parse().unwrap() }
    }

    #[test]
    fn a_rule_names_one_connection() {
        let rule = RuleData::of(flow("10.1.2.3:258", "10.9.8.7:772"), 5).unwrap();
        assert_eq!((rule.spec_flow_type, rule.queue, rule.location), (TCP_V4_FLOW, 5, ANYWHERE));
        assert_eq!(rule.fields[..13], [10, 1, 2, 3, 10, 9, 8, 7, 1, 2, 3, 4, 0]);
        assert_eq!(rule.mask[..13], [255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0]);
        // As a listener for both kinds sees addresses of the older one.
        let mapped = RuleData::of(flow("[::ffff:10.1.2.3]:258", "[::ffff:10.9.8.7]:772"), 5).unwrap();
        assert_eq!((mapped.spec_flow_type, mapped.fields), (TCP_V4_FLOW, rule.fields));
        let rule = RuleData::of(flow("[2001:db8::1]:1", "[2001:db8::2]:2"), 0).unwrap();
        assert_eq!((rule.spec_flow_type, rule.fields[15], rule.fields[31]), (TCP_V6_FLOW, 1, 2));
        assert_eq!(rule.fields[32..37], [0, 1, 0, 2, 0]);
        assert!(
            rule.mask[..36].iter().all(|byte| *byte == 255) && rule.mask[36..].iter().all(|byte| *byte == 0)
        );
        assert!(RuleData::of(flow("10.1.2.3:1", "[2001:db8::2]:2"), 0).is_none());
    }

    #[test]
    fn an_interface_without_rules_refuses() {
        let flow = flow("10.1.2.3:1", "10.1.2.4:2");
        let errno = |interface| Rule::new(interface, 0, flow).err().and_then(|error| error.raw_os_error());
        // Without the right to it the kernel does not come to the driver.
        assert!([Some(libc::EOPNOTSUPP), Some(libc::EPERM)].contains(&errno("lo")), "{:?}", errno("lo"));
        assert!(Rule::new("a-name-that-is-too-long", 0, flow).is_err());
        assert!([Some(libc::ENODEV), Some(libc::EPERM)].contains(&errno("no-such-if0")));
    }
}
