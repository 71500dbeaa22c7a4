//! Headers of Ethernet, IP and UDP: written in front of packets, and taken off them.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;
use zc_core::memory::CopyLedger;

use crate::device::checksum;

const ETHERNET_BYTES: usize = 14;
const VLAN_BYTES: usize = 4;
const V4_BYTES: usize = 20;
const V6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
const UDP: u8 = 17;
const HOPS: u8 = 64;
/// The place of UDP's checksum in its header.
const UDP_CHECKSUM: usize = 6;

/// All headers together, at their longest: Ethernet, IPv6, UDP.
pub(crate) const MAX_HEADER_BYTES: usize = ETHERNET_BYTES + V6_BYTES + UDP_BYTES;

/// What stands in front of each packet of a session.
pub(crate) struct Headers {
    /// As they are but for lengths and checksums.
    bytes: SmallVec<[u8; MAX_HEADER_BYTES]>,
    is_v4: bool,
    /// The queue that packets leave by.
    pub(crate) queue: usize,
    /// Where copies are counted.
    pub(crate) ledger: Arc<CopyLedger>,
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
}

impl Headers {
    /// Between two addresses of one family; `None` for others.
    pub(crate) fn new(
        from: (SocketAddr, [u8; 6]),
        to: (SocketAddr, [u8; 6]),
        queue: usize,
        ledger: Arc<CopyLedger>,
    ) -> Option<Self> {
        let mut bytes = SmallVec::new();
        bytes.extend(to.1.into_iter().chain(from.1));
        let is_v4 = match (from.0.ip(), to.0.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                bytes.extend(0x0800_u16.to_be_bytes());
                // No fragments.
                bytes.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, HOPS, UDP, 0, 0]);
                bytes.extend(from.octets().into_iter().chain(to.octets()));
                true
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                bytes.extend(0x86dd_u16.to_be_bytes());
                bytes.extend([0x60, 0, 0, 0, 0, 0, UDP, HOPS]);
                bytes.extend(from.octets().into_iter().chain(to.octets()));
                false
            }
            _ => return None,
        };
        bytes.extend(from.0.port().to_be_bytes());
        bytes.extend(to.0.port().to_be_bytes());
        bytes.extend([0; 4]);
        Some(Self { bytes, is_v4, queue, ledger })
    }

    /// For a datagram of so many bytes; and where the checksum of UDP begins to count and lies from there on, if it is still to be
    /// computed: what lies there is the sum of the pseudo header. IPv4 does without: the packets have a MAC.
    pub(crate) fn write(
        &self,
        datagram_bytes: usize,
    ) -> (SmallVec<[u8; MAX_HEADER_BYTES]>, Option<(u16, u16)>) {
        let mut out = SmallVec::from_slice(&self.bytes);
        let udp_bytes = (UDP_BYTES + datagram_bytes) as u16;
        let udp_at = out.len() - UDP_BYTES;
        put(&mut out, udp_at + 4, &udp_bytes.to_be_bytes());
        if self.is_v4 {
            put(&mut out, ETHERNET_BYTES + 2, &(V4_BYTES as u16 + udp_bytes).to_be_bytes());
            let sum = checksum(std::iter::once(&out[ETHERNET_BYTES..udp_at]));
            put(&mut out, ETHERNET_BYTES + 10, &sum.to_be_bytes());
            return (out, None);
        }
        put(&mut out, ETHERNET_BYTES + 4, &udp_bytes.to_be_bytes());
        let (length, next) = (u32::from(udp_bytes).to_be_bytes(), [0, 0, 0, UDP]);
        let pseudo = [&out[ETHERNET_BYTES + 8..udp_at], &length, &next];
        let sum = !checksum(pseudo.into_iter());
        put(&mut out, udp_at + UDP_CHECKSUM, &sum.to_be_bytes());
        (out, Some((udp_at as u16, UDP_CHECKSUM as u16)))
    }
}

/// Where the datagram lies in a frame that is one whole UDP packet for this port (M6).
pub(crate) fn udp_payload(frame: &[u8], port: u16) -> Option<Range<usize>> {
    let half = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let mut ip = ETHERNET_BYTES;
    let mut kind = half(ip - 2)?;
    if matches!(kind, 0x8100 | 0x88a8) {
        ip += VLAN_BYTES;
        kind = half(ip - 2)?;
    }
    let (protocol, udp) = match kind {
        0x0800 => (*frame.get(ip + 9)?, ip + usize::from(frame.get(ip)? & 15) * 4),
        0x86dd => (*frame.get(ip + 6)?, ip + V6_BYTES),
        _ => return None,
    };
    let end = udp + usize::from(half(udp + 4)?);
    let fits = protocol == UDP && half(udp + 2)? == port && end <= frame.len();
    (fits && end >= udp + UDP_BYTES).then_some(udp + UDP_BYTES..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(from: &str, to: &str) -> Headers {
        let [from, to] = [from, to].map(|addr| addr.parse().unwrap());
        Headers::new((from, [2; 6]), (to, [4; 6]), 0, Arc::default()).unwrap()
    }

    fn sum(parts: &[&[u8]]) -> u16 {
        !checksum(parts.iter().copied())
    }

    #[test]
    fn sums_come_out_and_the_datagram_is_found() {
        for (from, to) in [("10.0.0.1:7", "10.0.0.2:9"), ("[fd00::1]:7", "[fd00::2]:9")] {
            for payload in [&b""[..], b"x", b"hello"] {
                let (bytes, order) = headers(from, to).write(payload.len());
                let mut frame = [&bytes[..], payload].concat();
                assert_eq!(udp_payload(&frame, 9), Some(bytes.len()..frame.len()));
                assert_eq!(udp_payload(&frame, 8), None);
                match order {
                    // All ones: the sum of something and its complement.
                    None => assert_eq!(sum(&[&frame[14..34]]), 0),
                    Some((start, offset)) => {
                        let (start, at) = (usize::from(start), usize::from(start + offset));
                        let checksum = checksum(std::iter::once(&frame[start..]));
                        put(&mut frame, at, &checksum.to_be_bytes());
                        let length = (8 + payload.len() as u32).to_be_bytes();
                        assert_eq!(sum(&[&frame[22..54], &length, &[0, 0, 0, 17], &frame[start..]]), 0);
                    }
                }
            }
        }
        assert!(
            Headers::new(
                ("10.0.0.1:1".parse().unwrap(), [0; 6]),
                ("[::1]:1".parse().unwrap(), [0; 6]),
                0,
                Arc::default()
            )
            .is_none()
        );
    }

    proptest! {
        #[test]
        fn fuzz_frames(mut frame in prop::collection::vec(any::<u8>(), 0..100), kind in 0..4, port: u16) {
            let kinds = [0x0800_u16, 0x86dd, 0x8100, 0];
            put(&mut frame, 12, &kinds[kind as usize].to_be_bytes());
            if let Some(payload) = udp_payload(&frame, port) {
                prop_assert!(payload.start <= payload.end && payload.end <= frame.len());
            }
        }
    }
}
