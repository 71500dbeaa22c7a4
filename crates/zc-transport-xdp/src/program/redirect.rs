//! What the program does.
//!
//! ```text
//! Ethernet 14 | VLAN 4, if any | IPv4 20 + options, or IPv6 40 | UDP 8 | payload
//!
//! UDP, whole (no fragment), to one of the ports (and addresses) -> the socket of its queue, if there is one
//! everything else                                               -> the kernel
//! ```
//!
//! R2 is where the packet begins, then its IP header; R3 where its first buffer ends; R4 and R5 are for the moment; R6
//! the context. The verifier proves that nothing is read past R3.

use std::net::IpAddr;

use super::assembler::{Assembler, Helper, Insn, Label, Reg, Unassembled, Width};
use Reg::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R10};

const DROP: i32 = 1; // XDP_DROP
const PASS: i32 = 2; // XDP_PASS

const ETHERNET_BYTES: i32 = 14;
const VLAN_BYTES: i32 = 4;
const IPV4_BYTES: i32 = 20;
const IPV6_BYTES: i32 = 40;
const UDP_BYTES: i32 = 8;
const UDP: u32 = 17;

/// What a program is made for. Maps are named by their descriptors, which must be open when it is loaded.
pub(crate) struct Plan<'a> {
    pub(crate) sockets: i32,
    pub(crate) ports: i32,
    /// Only what is addressed to one of these; all if empty.
    pub(crate) addresses: &'a [IpAddr],
    /// The array that says how much is lost and damaged, for tests.
    pub(crate) faults: Option<i32>,
}

/// A value as it reads when it is loaded out of a packet.
fn network16(value: u16) -> u32 {
    u16::from_ne_bytes(value.to_be_bytes()).into()
}

fn network32(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

// Offsets in the context (`xdp_md`).
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const RX_QUEUE: i16 = 16;

/// The program.
pub(crate) fn assemble(plan: &Plan<'_>) -> Result<Vec<Insn>, Unassembled> {
    let mut a = Assembler::default();
    let (ipv4, ipv6, udp, pass) = (a.label(), a.label(), a.label(), a.label());
    a.copy(R6, R1);
    a.load(Width::Word, R2, R6, DATA);
    a.load(Width::Word, R3, R6, DATA_END);
    // The verifier takes no code that is never reached, so a family without an address of ours has none.
    let has = |wanted: fn(&IpAddr) -> bool| plan.addresses.is_empty() || plan.addresses.iter().any(wanted);
    let (has_ipv4, has_ipv6) = (has(IpAddr::is_ipv4), has(IpAddr::is_ipv6));
    let or_pass = |has: bool, label| if has { label } else { pass };
    ethernet(&mut a, or_pass(has_ipv4, ipv4), or_pass(has_ipv6, ipv6), pass);
    if has_ipv6 {
        a.place(ipv6);
        to_udp_of_ipv6(&mut a, plan.addresses, pass);
        a.goto(udp);
    }
    if has_ipv4 {
        a.place(ipv4);
        to_udp_of_ipv4(&mut a, plan.addresses, pass);
    }
    a.place(udp);
    port_is_ours(&mut a, plan.ports, pass);
    if let Some(faults) = plan.faults {
        inject(&mut a, faults);
    }
    redirect(&mut a, plan.sockets);
    a.place(pass);
    a.set(R0, PASS);
    a.exit();
    a.finish()
}

/// Jumps to `pass` unless `len` bytes from R2 on lie in the buffer.
fn have(a: &mut Assembler, len: i32, pass: Label) {
    a.copy(R4, R2);
    a.add(R4, len);
    a.if_above_register(R4, R3, pass);
}

fn ethernet(a: &mut Assembler, ipv4: Label, ipv6: Label, pass: Label) {
    let (tagged, untagged) = (a.label(), a.label());
    have(a, ETHERNET_BYTES, pass);
    a.load(Width::Half, R5, R2, 12);
    a.add(R2, ETHERNET_BYTES);
    a.if_equal(R5, network16(0x8100), tagged);
    a.if_equal(R5, network16(0x88a8), tagged);
    a.goto(untagged);
    a.place(tagged);
    have(a, VLAN_BYTES, pass);
    a.load(Width::Half, R5, R2, 2);
    a.add(R2, VLAN_BYTES);
    a.place(untagged);
    a.if_equal(R5, network16(0x0800), ipv4);
    a.if_equal(R5, network16(0x86dd), ipv6);
    a.goto(pass);
}

fn to_udp_of_ipv4(a: &mut Assembler, addresses: &[IpAddr], pass: Label) {
    have(a, IPV4_BYTES, pass);
    a.load(Width::Byte, R5, R2, 0);
    a.copy(R4, R5);
    a.and(R4, 0xf0);
    a.if_not_equal(R4, 0x40, pass);
    a.load(Width::Byte, R4, R2, 9);
    a.if_not_equal(R4, UDP, pass);
    // Neither more fragments nor an offset.
    a.load(Width::Half, R4, R2, 6);
    a.and(R4, network16(0x3fff) as i32);
    a.if_not_equal(R4, 0, pass);
    let ours = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(address.octets()),
        IpAddr::V6(_) => None,
    });
    if !addresses.is_empty() {
        let found = a.label();
        a.load(Width::Word, R4, R2, 16);
        ours.for_each(|octets| a.if_equal(R4, network32(octets), found));
        a.goto(pass);
        a.place(found);
    }
    past_the_options(a, pass);
}

/// Past the header, whose length in words is in the low half of R5. One case for each: to add a number of the packet's
/// to an address would take CAP_PERFMON.
fn past_the_options(a: &mut Assembler, pass: Label) {
    let done = a.label();
    a.and(R5, 0x0f);
    for words in 5..=15 {
        let next = a.label();
        a.if_not_equal(R5, words as u32, next);
        a.add(R2, words * 4);
        have(a, UDP_BYTES, pass);
        a.goto(done);
        a.place(next);
    }
    a.goto(pass);
    a.place(done);
}

fn to_udp_of_ipv6(a: &mut Assembler, addresses: &[IpAddr], pass: Label) {
    have(a, IPV6_BYTES + UDP_BYTES, pass);
    a.load(Width::Byte, R4, R2, 0);
    a.and(R4, 0xf0);
    a.if_not_equal(R4, 0x60, pass);
    // Directly: no extension headers, so no fragments either.
    a.load(Width::Byte, R4, R2, 6);
    a.if_not_equal(R4, UDP, pass);
    if !addresses.is_empty() {
        let found = a.label();
        for address in addresses {
            let IpAddr::V6(address) = address else { continue };
            let next = a.label();
            for (at, four) in (24..).step_by(4).zip(address.octets().as_chunks::<4>().0) {
                a.load(Width::Word, R4, R2, at);
                a.if_not_equal(R4, network32(*four), next);
            }
            a.goto(found);
            a.place(next);
        }
        a.goto(pass);
        a.place(found);
    }
    a.add(R2, IPV6_BYTES);
}

/// R2 is the UDP header, checked to be there. Looks the destination up in an array; keeps the header in R7, the end in R8.
fn port_is_ours(a: &mut Assembler, ports: i32, pass: Label) {
    a.load(Width::Half, R5, R2, 2);
    a.network_to_host16(R5);
    a.copy(R7, R2);
    a.copy(R8, R3);
    a.store(Width::Word, R10, -4, R5);
    a.copy(R2, R10);
    a.add(R2, -4);
    a.map(R1, ports);
    a.call(Helper::MapLookup);
    a.if_null(R0, pass);
    a.load(Width::Word, R0, R0, 0);
    a.if_equal(R0, 0, pass);
}

/// Loses or damages packets by chance: the array holds, of 2^32 packets, how many are lost, and how many have the first
/// byte of their payload changed.
fn inject(a: &mut Assembler, faults: i32) {
    let (kept, intact) = (a.label(), a.label());
    a.call(Helper::Random);
    a.map_value(R1, faults);
    a.load(Width::Word, R1, R1, 0);
    a.if_not_below_register(R0, R1, kept);
    a.set(R0, DROP);
    a.exit();
    a.place(kept);
    a.call(Helper::Random);
    a.map_value(R1, faults);
    a.load(Width::Word, R1, R1, 4);
    a.if_not_below_register(R0, R1, intact);
    a.copy(R4, R7);
    a.add(R4, UDP_BYTES + 1);
    a.if_above_register(R4, R8, intact);
    a.load(Width::Byte, R5, R7, UDP_BYTES as i16);
    a.xor(R5, 0x55);
    a.store(Width::Byte, R7, UDP_BYTES as i16, R5);
    a.place(intact);
}

fn redirect(a: &mut Assembler, sockets: i32) {
    a.map(R1, sockets);
    a.load(Width::Word, R2, R6, RX_QUEUE);
    a.set(R3, PASS); // Where there is no socket.
    a.call(Helper::RedirectMap);
    a.exit();
}
