//! The loaded program, run by the kernel on packets made here.

use super::*;
use crate::sys::{Socket, Verdict};
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

const PORT: u16 = 7000;
const V4: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xffff, 0x8001);

/// A program with a socket on queue 0, or nothing where that is not allowed.
struct Loaded {
    redirect: Redirect,
    _socket: OwnedFd,
}

fn loaded(rules: Rules) -> Option<Loaded> {
    let skip = |what: &str, error: &io::Error| {
        let _ = std::io::stderr().write_all(format!("skipped: an XDP program: {what}: {error}\n").as_bytes());
    };
    let redirect = match Redirect::load(&rules, 4, true) {
        Ok(redirect) => redirect,
        Err(not) if matches!(not.error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            skip(not.operation, &not.error);
            return None;
        }
        Err(not) => panic!("{not:?}"),
    };
    let socket = match Socket::open() {
        Ok(socket) => socket,
        Err(error) => {
            skip("socket", &error);
            return None;
        }
    };
    rustix::net::sockopt::set_xdp_rx_ring_size(&socket, 16).unwrap();
    redirect.sockets.attach(0, socket.as_fd()).unwrap();
    Some(Loaded { redirect, _socket: socket })
}

impl Loaded {
    fn verdict(&self, packet: &[u8]) -> Verdict {
        self.run(packet).0
    }
    fn run(&self, packet: &[u8]) -> (Verdict, Vec<u8>) {
        self.redirect.program.as_ref().unwrap().run(packet).unwrap()
    }
}

fn ethernet(kind: u16, vlan: Option<u16>) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if let Some(tag) = vlan {
        packet.extend(tag.to_be_bytes());
        packet.extend(5u16.to_be_bytes());
    }
    packet.extend(kind.to_be_bytes());
    packet
}

/// IPv4 with so many bytes of options.
fn ipv4(options: usize, protocol: u8, fragment: u16, to: Ipv4Addr) -> Vec<u8> {
    let mut header = vec![0x40 | ((20 + options) / 4) as u8, 0, 0, 60, 0, 1];
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0, 10, 9, 9, 9]);
    header.extend(to.octets());
    header.resize(20 + options, 1);
    header
}

fn ipv6(next: u8, to: Ipv6Addr) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, 0, 20, next, 64];
    header.extend(Ipv6Addr::LOCALHOST.octets());
    header.extend(to.octets());
    header
}

fn udp(port: u16) -> Vec<u8> {
    let mut header = 9u16.to_be_bytes().to_vec();
    header.extend(port.to_be_bytes());
    header.extend([0, 16, 0, 0]);
    header.extend(b"payload!");
    header
}

fn packet(vlan: Option<u16>, v4: bool, port: u16) -> Vec<u8> {
    let ip = if v4 { ipv4(0, 17, 0x4000, V4) } else { ipv6(17, V6) };
    [ethernet(if v4 { 0x0800 } else { 0x86dd }, vlan), ip, udp(port)].concat()
}

fn rules() -> Rules {
    Rules { ports: vec![PORT], ..Rules::default() }
}

#[test]
fn udp_to_our_port_is_redirected() {
    let Some(program) = loaded(rules()) else { return };
    for vlan in [None, Some(0x8100), Some(0x88a8)] {
        for v4 in [true, false] {
            let ours = packet(vlan, v4, PORT);
            assert_eq!(program.run(&ours), (Verdict::Redirect, ours), "{vlan:?} {v4}");
            assert_eq!(program.verdict(&packet(vlan, v4, PORT + 1)), Verdict::Pass, "another port");
            assert_eq!(program.verdict(&packet(vlan, v4, PORT.swap_bytes())), Verdict::Pass);
        }
        for options in [4, 20, 40] {
            let ours = [ethernet(0x0800, vlan), ipv4(options, 17, 0, V4), udp(PORT)].concat();
            assert_eq!(program.verdict(&ours), Verdict::Redirect, "{options} bytes of options");
        }
    }
}

#[test]
fn everything_else_passes() {
    let Some(program) = loaded(rules()) else { return };
    let v4 = |header: Vec<u8>| [ethernet(0x0800, None), header, udp(PORT)].concat();
    let v6 = |next| [ethernet(0x86dd, None), ipv6(next, V6), udp(PORT)].concat();
    let mut cases = vec![
        ("TCP", v4(ipv4(0, 6, 0, V4))),
        ("ICMP", v4(ipv4(0, 1, 0, V4))),
        ("the first fragment", v4(ipv4(0, 17, 0x2000, V4))),
        ("a later fragment", v4(ipv4(0, 17, 0x0001, V4))),
        ("the last fragment", v4(ipv4(0, 17, 0x1fff, V4))),
        ("TCP over IPv6", v6(6)),
        ("ICMPv6", v6(58)),
        ("hop-by-hop options", v6(0)),
        ("a fragment of IPv6", v6(44)),
        ("ARP", [ethernet(0x0806, None), vec![0; 40]].concat()),
        (
            "two tags",
            [ethernet(0x8100, Some(0x8100)), vec![0; 2], packet(None, true, PORT)[12..].to_vec()].concat(),
        ),
        ("nothing", ethernet(0x0800, None)),
    ];
    let mut version = ipv4(0, 17, 0, V4);
    version[0] = 0x55;
    cases.push(("IPv4 that says it is version 5", v4(version)));
    for words in 0..5 {
        let mut short = ipv4(0, 17, 0, V4);
        short[0] = 0x40 | words;
        cases.push(("a header too short", v4(short)));
    }
    let mut version = packet(None, false, PORT);
    version[14] = 0x40;
    cases.push(("IPv6 that says it is version 4", version));
    for (what, packet) in cases {
        assert_eq!(program.verdict(&packet), Verdict::Pass, "{what}");
    }
}

#[test]
fn packets_cut_off_anywhere_pass() {
    let Some(program) = loaded(rules()) else { return };
    for (vlan, v4) in [(None, true), (None, false), (Some(0x8100), true), (Some(0x8100), false)] {
        let whole = packet(vlan, v4, PORT);
        let udp_end = whole.len() - 8;
        for len in 14..udp_end {
            assert_eq!(program.verdict(&whole[..len]), Verdict::Pass, "{vlan:?} {v4} {len}");
        }
        assert_eq!(program.verdict(&whole[..udp_end]), Verdict::Redirect, "no payload");
    }
    let whole = [ethernet(0x0800, None), ipv4(40, 17, 0, V4), udp(PORT)].concat();
    for len in 14..whole.len() - 8 {
        assert_eq!(program.verdict(&whole[..len]), Verdict::Pass, "with options, {len}");
    }
}

#[test]
fn only_our_addresses_if_there_are_any() {
    let addresses = vec![Ipv4Addr::new(10, 1, 2, 2).into(), V4.into(), V6.into()];
    let Some(program) = loaded(Rules { addresses, ..rules() }) else { return };
    let v4 = |to| [ethernet(0x0800, None), ipv4(0, 17, 0, to), udp(PORT)].concat();
    let v6 = |to| [ethernet(0x86dd, None), ipv6(17, to), udp(PORT)].concat();
    assert_eq!(program.verdict(&v4(V4)), Verdict::Redirect);
    assert_eq!(program.verdict(&v4(Ipv4Addr::new(10, 1, 2, 4))), Verdict::Pass);
    assert_eq!(program.verdict(&v6(V6)), Verdict::Redirect);
    for word in 0..8 {
        let mut other = V6.segments();
        other[word] ^= 1;
        assert_eq!(program.verdict(&v6(other.into())), Verdict::Pass, "{word}");
    }
    let Some(only_v4) = loaded(Rules { addresses: vec![V4.into()], ..rules() }) else { return };
    assert_eq!((only_v4.verdict(&v6(V6)), only_v4.verdict(&v4(V4))), (Verdict::Pass, Verdict::Redirect));
    let Some(only_v6) = loaded(Rules { addresses: vec![V6.into()], ..rules() }) else { return };
    assert_eq!((only_v6.verdict(&v6(V6)), only_v6.verdict(&v4(V4))), (Verdict::Redirect, Verdict::Pass));
}

#[test]
fn a_queue_without_a_socket_passes() {
    let Some(program) = loaded(rules()) else { return };
    program.redirect.sockets.remove(0).unwrap();
    assert_eq!(program.verdict(&packet(None, true, PORT)), Verdict::Pass);
}

#[test]
fn ports_come_and_go() {
    let Some(program) = loaded(rules()) else { return };
    program.redirect.add_port(9).unwrap();
    assert_eq!(program.verdict(&packet(None, true, 9)), Verdict::Redirect);
    assert_eq!(program.verdict(&packet(None, true, PORT)), Verdict::Redirect);
    for _ in 0..2 {
        program.redirect.remove_port(9).unwrap();
    }
    assert_eq!(program.verdict(&packet(None, true, 9)), Verdict::Pass);
    assert!(!program.redirect.set_faults(Faults::default()).unwrap(), "it was not asked for");
}

#[test]
fn faults_come_at_their_rate() {
    let Some(program) = loaded(Rules { faults: true, ..rules() }) else { return };
    let ours = packet(None, true, PORT);
    let count = |faults| {
        assert!(program.redirect.set_faults(faults).unwrap());
        let (mut lost, mut damaged) = (0, 0);
        for _ in 0..4000 {
            match program.run(&ours) {
                (Verdict::Drop, _) => lost += 1,
                (Verdict::Redirect, out) if out != ours => damaged += 1,
                (verdict, _) => assert_eq!(verdict, Verdict::Redirect),
            }
        }
        (lost, damaged)
    };
    assert_eq!(count(Faults::default()), (0, 0));
    assert_eq!(count(Faults { lost: 1.0, damaged: 0.0 }), (4000, 0));
    assert_eq!(count(Faults { lost: 0.0, damaged: 1.0 }), (0, 4000));
    // Ten standard deviations to either side.
    let (lost, damaged) = count(Faults { lost: 0.1, damaged: 0.5 });
    assert!((210..590).contains(&lost), "{lost}");
    assert!((1500..2100).contains(&damaged), "{damaged}");
    assert_eq!(program.verdict(&packet(None, true, PORT + 1)), Verdict::Pass, "others are left alone");
}

#[test]
fn maps_of_another_kind_are_refused() {
    let Some(program) = loaded(Rules { faults: true, ..rules() }) else { return };
    let [sockets, ports, faults] = program.redirect.into_maps().try_into().unwrap();
    assert!(Redirect::from_maps(ports.try_clone().unwrap(), sockets.try_clone().unwrap(), None).is_err());
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(XskMap::from_fd(null.into()).is_err());
    let again = Redirect::from_maps(sockets, ports, Some(faults)).unwrap();
    assert!(again.set_faults(Faults::default()).unwrap());
    assert!(again.attach(1, true).is_none());
}
