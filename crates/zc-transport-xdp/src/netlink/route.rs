//! Interfaces, routes and neighbours: rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{Attributes, Malformed, Message};
use super::socket::Socket;
use super::{Neighbour, NetlinkError, Route};

const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;
const GET_NEIGHBOUR: u16 = 30;

/// The longest name of an interface.
pub(crate) const MAX_NAME_BYTES: usize = 15;

const LINK_BYTES: usize = 16;
const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_RX_QUEUES: u16 = 32;
const LINK_XDP: u16 = 43;
const XDP_PROGRAM: u16 = 4;

const ADDRESS_BYTES: usize = 8;
const ADDRESS_PEER: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;

const ROUTE_BYTES: usize = 12;
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const ROUTE_SOURCE: u16 = 7;
const ROUTE_VIA: u16 = 18;

const NEIGHBOUR_BYTES: usize = 12;
const NEIGHBOUR_DESTINATION: u16 = 1;
const NEIGHBOUR_ADDRESS: u16 = 2;
// Reachable, stale, delay, probe, no ARP, permanent: the address is known.
const USABLE: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;

/// What the kernel says of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) mtu: u32,
    pub(super) address: Option<[u8; 6]>,
    /// The most that it may have.
    pub(super) rx_queues: u32,
    /// The program that is attached.
    pub(super) program: Option<u32>,
}

pub(super) fn link(socket: &mut Socket, name: &str) -> Result<Link, NetlinkError> {
    // No interface is called so, and what was cut off could be the name of one.
    if name.len() > MAX_NAME_BYTES || name.contains('\0') {
        return Err(NetlinkError::Refused { errno: io::Error::from_raw_os_error(libc::ENODEV) });
    }
    let terminated: Vec<u8> = name.bytes().chain([0]).collect();
    socket.ask(GET_LINK, &[0; LINK_BYTES], &[(LINK_NAME, &terminated)], read_link)
}

fn read_link(message: Message<'_>) -> Result<Link, Malformed> {
    let (fixed, attributes) = message.parts(LINK_BYTES)?;
    let index = fixed[4..8].try_into().map(u32::from_ne_bytes).map_err(|_| Malformed)?;
    let number = |kind| attributes.number(kind).and_then(|n| u32::try_from(n).ok());
    let xdp = attributes.find(LINK_XDP).map(Attributes);
    Ok(Link {
        index,
        mtu: number(LINK_MTU).ok_or(Malformed)?,
        address: attributes.find(LINK_ADDRESS).and_then(|bytes| bytes.try_into().ok()),
        rx_queues: number(LINK_RX_QUEUES).unwrap_or(1),
        program: xdp
            .and_then(|xdp| xdp.number(XDP_PROGRAM))
            .and_then(|id| u32::try_from(id).ok())
            .filter(|id| *id > 0),
    })
}

/// Family and octets of an address, as messages have them.
fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET as u8, address.octets().into()),
        IpAddr::V6(address) => (libc::AF_INET6 as u8, address.octets().into()),
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(octets).ok().map(|octets| Ipv6Addr::from(octets).into())
}

pub(super) fn addresses(socket: &mut Socket, interface: u32) -> Result<Vec<IpAddr>, NetlinkError> {
    let mut found = Vec::new();
    socket.ask_all(GET_ADDRESS, &[0; ADDRESS_BYTES], &[], |message| {
        found.extend(read_address(message, interface)?);
        Ok(())
    })?;
    Ok(found)
}

/// The address in a message, if it is of that interface.
fn read_address(message: Message<'_>, interface: u32) -> Result<Option<IpAddr>, Malformed> {
    let (fixed, attributes) = message.parts(ADDRESS_BYTES)?;
    let index = fixed[4..8].try_into().map(u32::from_ne_bytes).map_err(|_| Malformed)?;
    // IPv6 has no local one, but for links between two.
    let own = attributes.find(ADDRESS_LOCAL).or_else(|| attributes.find(ADDRESS_PEER));
    Ok(own.and_then(address).filter(|_| index == interface))
}

pub(super) fn route(socket: &mut Socket, to: IpAddr) -> Result<Route, NetlinkError> {
    let (family, octets) = octets(to);
    let mut fixed = [0; ROUTE_BYTES];
    fixed[0] = family;
    fixed[1] = octets.len() as u8 * 8;
    socket.ask(GET_ROUTE, &fixed, &[(ROUTE_DESTINATION, &octets)], read_route)
}

fn read_route(message: Message<'_>) -> Result<Route, Malformed> {
    let (_, attributes) = message.parts(ROUTE_BYTES)?;
    let interface = attributes.number(ROUTE_INTERFACE).and_then(|n| u32::try_from(n).ok());
    // Of the other family, its own behind two bytes.
    let via = attributes.find(ROUTE_VIA).and_then(|value| address(value.get(2..)?));
    Ok(Route {
        interface: interface.ok_or(Malformed)?,
        gateway: attributes.find(ROUTE_GATEWAY).and_then(address).or(via),
        source: attributes.find(ROUTE_SOURCE).and_then(address),
    })
}

pub(super) fn neighbour(socket: &mut Socket, interface: u32, of: IpAddr) -> Result<Neighbour, NetlinkError> {
    let (family, octets) = octets(of);
    let mut fixed = [0; NEIGHBOUR_BYTES];
    fixed[0] = family;
    fixed[4..8].iter_mut().zip(interface.to_ne_bytes()).for_each(|(to, from)| *to = from);
    socket.ask(GET_NEIGHBOUR, &fixed, &[(NEIGHBOUR_DESTINATION, &octets)], read_neighbour)
}

fn read_neighbour(message: Message<'_>) -> Result<Neighbour, Malformed> {
    let (fixed, attributes) = message.parts(NEIGHBOUR_BYTES)?;
    let state = u16::from_ne_bytes([fixed[8], fixed[9]]);
    let known = attributes.find(NEIGHBOUR_ADDRESS).and_then(|bytes| bytes.try_into().ok());
    Ok(match known {
        Some(address) if state & USABLE != 0 => Neighbour::Known(address),
        _ => Neighbour::Unresolved,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::{Messages, Request};
    use proptest::prelude::*;

    fn one<T>(bytes: &[u8], read: fn(Message<'_>) -> Result<T, Malformed>) -> Result<T, Malformed> {
        read(Messages(bytes).next().unwrap().unwrap())
    }

    #[test]
    fn routes_are_read() {
        let to = |number: u32| number.to_ne_bytes();
        let bytes = Request::new(24, 0, 1, &[0; 12])
            .attribute(ROUTE_INTERFACE, &to(3))
            .attribute(ROUTE_GATEWAY, &[10, 0, 0, 1])
            .attribute(ROUTE_SOURCE, &[10, 0, 0, 2])
            .finish();
        let route = one(&bytes, read_route).unwrap();
        assert_eq!((route.interface, route.gateway), (3, Some("10.0.0.1".parse().unwrap())));
        assert_eq!(route.source, Some("10.0.0.2".parse().unwrap()));
        let via: Vec<u8> = [10, 0].into_iter().chain(Ipv6Addr::LOCALHOST.octets()).collect();
        let bytes =
            Request::new(24, 0, 1, &[0; 12]).attribute(ROUTE_INTERFACE, &to(3)).attribute(ROUTE_VIA, &via);
        let route = one(&bytes.finish(), read_route).unwrap();
        assert_eq!((route.gateway, route.source), (Some("::1".parse().unwrap()), None));
    }

    #[test]
    fn a_neighbour_without_an_address_is_unresolved() {
        let of = |state: u16, address: Option<&[u8]>| {
            let mut fixed = [0; NEIGHBOUR_BYTES];
            [fixed[8], fixed[9]] = state.to_ne_bytes();
            let request = Request::new(28, 0, 1, &fixed);
            let request = address.into_iter().fold(request, |r, a| r.attribute(NEIGHBOUR_ADDRESS, a));
            one(&request.finish(), read_neighbour).unwrap()
        };
        let mac = [2, 0, 0, 0, 0, 1];
        assert_eq!(of(0x02, Some(&mac)), Neighbour::Known(mac));
        assert_eq!(of(0x80, Some(&mac)), Neighbour::Known(mac));
        assert_eq!(of(0x20, Some(&mac)), Neighbour::Unresolved, "it has failed");
        assert_eq!(of(0x02, Some(&mac[..4])), Neighbour::Unresolved, "not of Ethernet");
        assert_eq!(of(0x01, None), Neighbour::Unresolved);
    }

    proptest! {
        #[test]
        fn fuzz_any_answer_is_read(payload in proptest::collection::vec(any::<u8>(), 0..120)) {
            let message = Message { kind: 16, sequence: 1, payload: &payload };
            let _ = (read_link(message), read_route(message), read_neighbour(message), read_address(message, 1));
        }
    }
}
