//! What is read and changed of a packet: Ethernet, IPv4, UDP.

const ETHERNET: usize = 14;

/// Who talks to whom: addresses and ports as they lie in the packet.
pub(crate) type Flow = [u8; 12];

/// The flow of a UDP packet over IPv4. The XDP program has seen that it is one, but bytes are read only if they are there.
pub(crate) fn flow(packet: &[u8]) -> Option<Flow> {
    let header = 4 * usize::from(packet.get(ETHERNET)? & 0x0f);
    let is_ipv4 = packet.get(12..14)? == [8, 0];
    let addresses: [u8; 8] = packet.get(ETHERNET + 12..ETHERNET + 20)?.try_into().ok()?;
    let ports: [u8; 4] = packet.get(ETHERNET + header..ETHERNET + header + 4)?.try_into().ok()?;
    let ([a, b, c, d, e, f, g, h], [i, j, k, l]) = (addresses, ports);
    (is_ipv4 && header >= 20).then_some([a, b, c, d, e, f, g, h, i, j, k, l])
}

/// Addresses it to the next one on its way. False: it has been on its way for too long, or is no such packet.
pub(crate) fn pass_on(packet: &mut [u8], from: [u8; 6], to: [u8; 6]) -> bool {
    let Some((ethernet, ip)) = packet.split_first_chunk_mut::<ETHERNET>() else { return false };
    let Some(ip) = ip.first_chunk_mut::<20>() else { return false };
    if ip[8] <= 1 {
        return false;
    }
    ip[8] -= 1;
    // One less in the high byte of a word is one more in the checksum's (RFC 1624).
    let sum = u32::from(u16::from_be_bytes([ip[10], ip[11]])) + 0x100;
    [ip[10], ip[11]] = ((sum + (sum >> 16)) as u16).to_be_bytes();
    let addresses = to.into_iter().chain(from);
    ethernet.iter_mut().zip(addresses).for_each(|(old, new)| *old = new);
    true
}

/// Leaves the checksum of UDP to whoever sends the packet on: puts the sum of the pseudo header there, and says where the
/// UDP header begins. Only for what [`flow`] has read.
pub(crate) fn leave_checksum(packet: &mut [u8]) -> Option<u16> {
    let udp = ETHERNET + 4 * usize::from(packet.get(ETHERNET)? & 0x0f);
    let addresses = packet.get(ETHERNET + 12..ETHERNET + 20)?;
    let words = addresses.as_chunks::<2>().0.iter().map(|two| u32::from(u16::from_be_bytes(*two)));
    let header = packet.get(udp..udp + 8)?;
    let mut sum = words.sum::<u32>() + 17 + u32::from(u16::from_be_bytes([header[4], header[5]]));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    [packet[udp + 6], packet[udp + 7]] = (sum as u16).to_be_bytes();
    u16::try_from(udp).ok()
}
