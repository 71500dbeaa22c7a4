//! Frames with UDP in them, written and read without the crate.

use std::net::{IpAddr, SocketAddr};

/// Where a frame comes from, or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Party {
    pub(crate) mac: [u8; 6],
    pub(crate) address: SocketAddr,
}

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)));
    words.sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// The sum of the pseudo header, which the checksum of UDP begins with.
fn pseudo(from: IpAddr, to: IpAddr, udp_bytes: usize) -> u32 {
    sum(&octets(from)) + sum(&octets(to)) + 17 + udp_bytes as u32
}

/// Who computes the checksum of UDP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sum {
    Here,
    /// Somebody on the way: here is only that of the pseudo header.
    Later,
}

/// Ethernet, a VLAN tag if there is one, IP and UDP headers for so many bytes.
pub(crate) fn headers(from: Party, to: Party, vlan: Option<u16>, payload: &[u8], who: Sum) -> Vec<u8> {
    let mut frame = [to.mac, from.mac].concat();
    if let Some(id) = vlan {
        frame.extend(0x8100u16.to_be_bytes());
        frame.extend(id.to_be_bytes());
    }
    let udp_bytes = 8 + payload.len();
    let (source, destination) = (from.address.ip(), to.address.ip());
    match destination {
        IpAddr::V4(_) => {
            frame.extend(0x0800u16.to_be_bytes());
            let mut ip = vec![0x45, 0];
            ip.extend((20 + udp_bytes as u16).to_be_bytes());
            ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
            ip.extend(octets(source));
            ip.extend(octets(destination));
            let checksum = !fold(sum(&ip));
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            frame.extend(ip);
        }
        IpAddr::V6(_) => {
            frame.extend(0x86ddu16.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((udp_bytes as u16).to_be_bytes());
            frame.extend([17, 64]);
            frame.extend(octets(source));
            frame.extend(octets(destination));
        }
    }
    let mut udp = from.address.port().to_be_bytes().to_vec();
    udp.extend(to.address.port().to_be_bytes());
    udp.extend((udp_bytes as u16).to_be_bytes());
    let pseudo = pseudo(source, destination, udp_bytes);
    let checksum = match who {
        Sum::Here => match !fold(pseudo + sum(&udp) + sum(payload)) {
            0 => 0xffff,
            checksum => checksum,
        },
        Sum::Later => fold(pseudo),
    };
    udp.extend(checksum.to_be_bytes());
    frame.extend(udp);
    frame
}

/// What a frame says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) vlan: Option<u16>,
    pub(crate) payload: Vec<u8>,
    /// Whether the checksum of UDP is right.
    pub(crate) is_intact: bool,
}

/// Reads a frame of UDP; anything else is a failed test.
pub(crate) fn read(frame: &[u8]) -> Read {
    let half = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let (vlan, ip) = if half(12) == 0x8100 { (Some(half(14)), 18) } else { (None, 14) };
    let (source, destination, udp): (IpAddr, IpAddr, usize) = match half(ip - 2) {
        0x0800 => {
            let at = |at: usize| <[u8; 4]>::try_from(&frame[ip + at..ip + at + 4]).unwrap().into();
            (at(12), at(16), ip + 20)
        }
        0x86dd => {
            let at = |at: usize| <[u8; 16]>::try_from(&frame[ip + at..ip + at + 16]).unwrap().into();
            (at(8), at(24), ip + 40)
        }
        other => panic!("a frame of {other:#x}"),
    };
    let end = udp + usize::from(half(udp + 4));
    let whole = &frame[udp..end];
    let is_intact =
        half(udp + 6) == 0 || fold(pseudo(source, destination, whole.len()) + sum(whole)) == 0xffff;
    Read {
        from: (source, half(udp)).into(),
        to: (destination, half(udp + 2)).into(),
        vlan,
        payload: frame[udp + 8..end].to_vec(),
        is_intact,
    }
}

/// Back to where it came from: addresses and ports change places, and every checksum stays right.
pub(crate) fn turn_round(frame: &mut [u8]) {
    let mut swap =
        |one: usize, other: usize, len: usize| (0..len).for_each(|at| frame.swap(one + at, other + at));
    swap(0, 6, 6);
    let is_tagged = frame[12] == 0x81;
    let ip = if is_tagged { 18 } else { 14 };
    let is_v4 = frame[ip] >> 4 == 4;
    let mut swap =
        |one: usize, other: usize, len: usize| (0..len).for_each(|at| frame.swap(one + at, other + at));
    if is_v4 {
        swap(ip + 12, ip + 16, 4);
        swap(ip + 20, ip + 22, 2);
    } else {
        swap(ip + 8, ip + 24, 16);
        swap(ip + 40, ip + 42, 2);
    }
}
