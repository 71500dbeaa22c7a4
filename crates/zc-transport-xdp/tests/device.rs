//! The device between two network namespaces, with the kernel's own sockets and with another device at the other end.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod bed;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};

use bed::frame::{Party, Sum, headers, read, turn_round};
use bed::{Bed, End, GUARD, NAME, has_cards, skipped, until};
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};
use zc_core::memory::{Backing, CopyPlace, KernelCopied};
use zc_core::transport::Unavailable;
use zc_transport_xdp::device::{
    BusyPolling, Device, DeviceOptions, Mode, OpenError, Outgoing, Packet, Queue, SendFault, Umem,
    UmemOptions,
};
use zc_transport_xdp::program::{Faults, Rules};

const PORT: u16 = 7000;
const COPIES: [Mode; 2] = [Mode::Copy, Mode::Generic];

fn options(mode: Mode) -> DeviceOptions {
    DeviceOptions {
        rules: Rules { ports: vec![PORT], ..Rules::default() },
        best: mode,
        worst: mode,
        rx_entries: 256,
        tx_entries: 256,
        fill_frames: Some(256),
        ..DeviceOptions::default()
    }
}

fn umem(frames: u32) -> Umem {
    Umem::new(&UmemOptions { frames, ..UmemOptions::default() }).unwrap()
}

/// A device at one end, or nothing where that is not allowed.
fn open(end: &End, umem: &Umem, options: &DeviceOptions) -> Option<Device> {
    match end.run(|| Device::open(NAME, umem, options)) {
        Ok(device) => Some(device),
        Err(OpenError::Refused { tried })
            if tried
                .iter()
                .all(|refusal| matches!(refusal.why.code(), "missing_capability" | "user_namespace")) =>
        {
            skipped("AF_XDP", &tried[0].why);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn party(end: &End, v4: bool, port: u16) -> Party {
    Party { mac: end.mac, address: (if v4 { end.v4 } else { end.v6 }, port).into() }
}

/// Waits for so many packets.
fn receive(queue: &mut Queue, count: usize) -> Vec<Packet> {
    let mut packets = Vec::new();
    until("packets", || {
        queue.receive(count - packets.len(), &mut packets).unwrap();
        (packets.len() == count).then_some(())
    });
    packets
}

/// Waits until everything that was sent is out.
fn drain(queue: &mut Queue) {
    until("completions", || {
        let flushed = queue.flush().unwrap();
        queue.reap().unwrap();
        (flushed && queue.stats().unwrap().in_flight == 0).then_some(())
    });
}

fn socket(end: &End, v4: bool) -> UdpSocket {
    let at: SocketAddr = (if v4 { end.v4 } else { end.v6 }, 0).into();
    let socket = end.run(|| UdpSocket::bind(at)).unwrap();
    socket.set_read_timeout(Some(GUARD)).unwrap();
    socket
}

fn filled(umem: &Umem, bytes: &[u8]) -> zc_core::memory::PinnedBufMut {
    let mut frame = umem.allocate(256).unwrap();
    frame.put_slice(bytes);
    frame
}

#[test]
fn a_kernel_socket_gets_its_packets_back() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    for &mode in bed.modes {
        let umem = umem(1024);
        let Some(mut device) = open(&bed.near, &umem, &options(mode)) else { return };
        assert_eq!(device.report().mode, mode);
        let queue = &mut device.queues_mut()[0];
        for v4 in [true, false] {
            let client = socket(&bed.far, v4);
            let to = party(&bed.near, v4, PORT).address;
            for len in [0usize, 1, 64, 1400] {
                let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
                client.send_to(&payload, to).unwrap();
                let mut packet = receive(queue, 1).pop().unwrap();
                let seen = read(packet.head());
                assert_eq!((seen.to, seen.payload), (to, payload.clone()), "{mode} {len}");
                // The kernel leaves the checksum to a device that is none; here it is computed anew.
                let (from, me) =
                    (party(&bed.far, v4, client.local_addr().unwrap().port()), party(&bed.near, v4, PORT));
                let at = packet.head().len() - 8 - payload.len();
                turn_round(packet.head_mut());
                let new = headers(me, from, None, &payload, Sum::Here);
                packet.head_mut()[at..at + 8].copy_from_slice(&new[at..]);
                queue.send(packet).unwrap();
                drain(queue);
                let mut buffer = [0; 2000];
                let (got, by) = client.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..got], by), (&payload[..], to), "{mode} {len}");
            }
        }
        let copied = queue.ledger().snapshot();
        assert_eq!(copied.copied_bytes(), 0);
        let by_kernel = copied.kernel_copied;
        match mode {
            Mode::ZeroCopy => assert_eq!(by_kernel, KernelCopied::Known(0)),
            _ => {
                assert!(matches!(by_kernel, KernelCopied::Known(bytes) if bytes > 2 * 2 * 1400), "{copied:?}")
            }
        }
        assert_eq!(umem.stats().out, 0);
    }
}

#[test]
fn two_devices_exchange_many_packets_on_every_queue() {
    const COUNT: u32 = 500;
    let Some(bed) = Bed::new(4, 1500) else { return };
    for &mode in bed.modes {
        let (ours, theirs) = (umem(4096), umem(4096));
        let Some(mut near) = open(&bed.near, &ours, &options(mode)) else { return };
        let Some(mut far) = open(&bed.far, &theirs, &options(mode)) else { return };
        assert_eq!(near.queues_mut().len() as u32, bed.queues);
        assert_eq!(near.report().interface.rx_queues, bed.queues);
        for number in 0..bed.queues as usize {
            let from = &mut near.queues_mut()[number];
            // Towards the generic path a veth passes the number of the sending queue on as another one.
            let receiving = match mode {
                Mode::Generic => &mut *far.queues_mut(),
                _ => std::slice::from_mut(&mut far.queues_mut()[number]),
            };
            let (mut sent, mut got) = (0u32, 0u32);
            let mut packets = Vec::new();
            until("all packets", || {
                // Never more under way than the other end has frames for.
                while sent < COUNT && sent - got < 100 {
                    let v4 = sent.is_multiple_of(2);
                    let vlan = sent.is_multiple_of(3).then_some(5);
                    let payload = sent.to_be_bytes();
                    let (me, you) = (party(&bed.near, v4, 9), party(&bed.far, v4, PORT));
                    let head = headers(me, you, vlan, &payload, Sum::Here);
                    from.send(filled(&ours, &[&head[..], &payload].concat())).unwrap();
                    sent += 1;
                }
                from.flush().unwrap();
                from.reap().unwrap();
                for to in &mut *receiving {
                    to.receive(64, &mut packets).unwrap();
                }
                for packet in packets.drain(..) {
                    let seen = read(packet.head());
                    assert_eq!(seen.payload, got.to_be_bytes(), "in order");
                    assert!(seen.is_intact && seen.vlan == got.is_multiple_of(3).then_some(5));
                    got += 1;
                }
                (got == COUNT).then_some(())
            });
            drain(from);
            for to in receiving {
                let stats = to.stats().unwrap();
                assert_eq!((stats.dropped, stats.damaged, stats.unknown), (0, 0, 0));
            }
            assert_eq!(from.stats().unwrap().sent, COUNT.into());
        }
        assert_eq!((ours.stats().out, theirs.stats().out), (0, 0), "{mode}");
    }
}

#[test]
fn jumbo_packets_span_frames() {
    let Some(bed) = Bed::new(1, 9000) else { return };
    let ways = [(Mode::Copy, Backing::Memfd, 2048), (Mode::Generic, Backing::MemfdHuge2M, 4096)];
    for (mode, backing, frame_bytes) in ways {
        let asked = UmemOptions { frames: 2048, frame_bytes, backing, ..UmemOptions::default() };
        let make = || Umem::new(&asked).unwrap();
        let (ours, theirs) = (make(), make());
        let Some(mut near) = open(&bed.near, &ours, &options(mode)) else { return };
        let Some(mut far) = open(&bed.far, &theirs, &options(mode)) else { return };
        assert!(near.report().multi_buffer);
        let (from, to) = (&mut near.queues_mut()[0], &mut far.queues_mut()[0]);
        for len in [1000usize, 4000, 8900] {
            let payload: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
            let head =
                headers(party(&bed.near, true, 9), party(&bed.far, true, PORT), None, &payload, Sum::Here);
            let mut packet = Outgoing::from(filled(&ours, &head));
            // The payload stays where it is, and with us.
            let kept: Vec<_> = payload.chunks(1500).map(|part| filled(&ours, part).freeze()).collect();
            kept.iter().for_each(|part| packet.push(part.clone()));
            from.send(packet).unwrap();
            drain(from);
            let packet = receive(to, 1).pop().unwrap();
            assert_eq!(packet.len(), 42 + len);
            assert_eq!(packet.frames().len() > 1, len > 1700, "{mode} {len}");
            let seen = read(&packet.frames().iter().flat_map(|frame| frame.to_vec()).collect::<Vec<_>>());
            assert!(seen.payload == payload && seen.is_intact, "{mode} {len}");
            assert_eq!(packet.into_message().unwrap().len(), 42 + len);
            drop(kept);
        }
        assert_eq!((ours.stats().out, theirs.stats().out), (0, 0));
        // And from the kernel.
        drop(near);
        let client = socket(&bed.near, true);
        let payload = vec![3; 8000];
        client.send_to(&payload, party(&bed.far, true, PORT).address).unwrap();
        assert_eq!(receive(to, 1)[0].len(), 8042, "{mode}");
    }
}

#[test]
fn more_segments_than_fit_or_elsewhere_are_refused() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let (ours, other) = (umem(1024), umem(64));
    let Some(mut device) = open(&bed.near, &ours, &options(bed.modes[0])) else { return };
    let queue = &mut device.queues_mut()[0];
    let fault = |queue: &mut Queue, packet: Outgoing| queue.send(packet).unwrap_err().fault;
    let mut two = Outgoing::from(filled(&ours, b"one"));
    two.push(filled(&ours, b"two").freeze());
    let refused = queue.send(two).unwrap_err();
    assert_eq!((refused.fault, refused.packet.len()), (SendFault::TooManySegments, 6));
    drop(refused);
    assert_eq!(fault(queue, Outgoing::from(filled(&other, b"elsewhere"))), SendFault::Foreign);
    assert_eq!(
        fault(queue, Outgoing::from(zc_core::memory::PinnedBuf::from_static(b"static"))),
        SendFault::Foreign
    );
    assert_eq!(fault(queue, Outgoing::default()), SendFault::Foreign, "nothing");
    // One frame may go out many times over.
    let head = headers(party(&bed.near, true, 9), party(&bed.far, true, 1), None, b"again", Sum::Here);
    let frame = filled(&ours, &[&head[..], b"again"].concat()).freeze();
    (0..256).for_each(|_| queue.send(frame.clone()).unwrap());
    assert_eq!(fault(queue, frame.clone().into()), SendFault::Full);
    drain(queue);
    assert_eq!(ours.stats().out, 1);
    queue.send(frame.clone()).unwrap();
    let frame = frame.try_into_mut().unwrap_err();
    drain(queue);
    assert!(frame.try_into_mut().is_ok(), "the kernel is done with it");
}

#[test]
fn checksums_are_computed_on_the_way() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    for &mode in bed.modes {
        let (ours, theirs) = (umem(1024), umem(1024));
        let with = DeviceOptions { checksums: true, ..options(mode) };
        let Some(mut near) = open(&bed.near, &ours, &with) else { return };
        let Some(mut far) = open(&bed.far, &theirs, &options(mode)) else { return };
        assert!(near.report().checksums);
        let (from, to) = (&mut near.queues_mut()[0], &mut far.queues_mut()[0]);
        for v4 in [true, false] {
            let payload = b"somebody else adds this up";
            let head = headers(party(&bed.near, v4, 9), party(&bed.far, v4, PORT), None, payload, Sum::Later);
            let frame = filled(&ours, &[&head[..], payload].concat());
            let udp = head.len() - 8;
            from.send(Outgoing::with_checksum(frame, udp as u16, 6).unwrap()).unwrap();
            drain(from);
            let seen = read(receive(to, 1)[0].head());
            assert!(seen.is_intact && seen.payload == payload, "{mode} {v4}");
        }
        // An order that the kernel would never get past is not taken.
        for (start, offset) in [(50, 9), (0, 59), (60_000, 0), (0, u16::MAX), (u16::MAX, u16::MAX)] {
            assert!(Outgoing::with_checksum(filled(&ours, &[0; 60]), start, offset).is_none());
        }
        from.send(Outgoing::with_checksum(filled(&ours, &[0; 60]), 50, 8).unwrap()).unwrap();
        drain(from);
        // A frame without room for the order is not taken.
        let mut tight = ours.allocate(16).unwrap();
        tight.put_slice(b"x");
        assert!(Outgoing::with_checksum(tight, 0, 0).is_none());
    }
}

/// Whatever there is, the packet is right.
#[test]
fn checksums_go_over_all_segments() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    for (mode, checksums) in COPIES.into_iter().flat_map(|mode| [(mode, true), (mode, false)]) {
        let (ours, theirs) = (umem(1024), umem(1024));
        let with = DeviceOptions { checksums, multi_buffer: Some(true), ..options(mode) };
        let Some(mut near) = open(&bed.near, &ours, &with) else { return };
        let Some(mut far) = open(&bed.far, &theirs, &options(mode)) else { return };
        let (from, to) = (&mut near.queues_mut()[0], &mut far.queues_mut()[0]);
        let payload: Vec<u8> = (0..999).map(|n| (n * 31) as u8).collect();
        for cuts in [vec![], vec![0], vec![1, 8, 501]] {
            let head =
                headers(party(&bed.near, true, 9), party(&bed.far, true, PORT), None, &payload, Sum::Later);
            let parts: Vec<_> = cuts.iter().copied().chain([payload.len()]).collect();
            let first = [&head[..], &payload[..parts[0]]].concat();
            let mut packet =
                Outgoing::with_checksum(filled(&ours, &first), head.len() as u16 - 8, 6).unwrap();
            parts.windows(2).for_each(|at| packet.push(filled(&ours, &payload[at[0]..at[1]]).freeze()));
            from.send(packet).unwrap();
            drain(from);
            let seen = read(receive(to, 1)[0].head());
            assert!(seen.is_intact && seen.payload == payload, "{mode} {checksums} {cuts:?}");
        }
        assert_eq!(ours.stats().out, 0);
    }
}

#[test]
fn a_packet_has_no_more_segments_than_the_ring_has_room_for() {
    let Some(bed) = Bed::new(1, 9000) else { return };
    let ours = umem(1024);
    let narrow = DeviceOptions { tx_entries: 16, multi_buffer: Some(true), ..options(Mode::Copy) };
    let Some(mut device) = open(&bed.near, &ours, &narrow) else { return };
    assert_eq!(device.report().max_segments, 16);
    let queue = &mut device.queues_mut()[0];
    let head = headers(party(&bed.near, true, 9), party(&bed.far, true, 1), None, &[1; 15], Sum::Here);
    let mut packet = Outgoing::from(filled(&ours, &head));
    (0..15).for_each(|_| packet.push(filled(&ours, &[1]).freeze()));
    queue.send(packet).unwrap();
    drain(queue);
    let mut packet = Outgoing::from(filled(&ours, &head));
    (0..16).for_each(|_| packet.push(filled(&ours, &[1]).freeze()));
    assert_eq!(queue.send(packet).unwrap_err().fault, SendFault::TooManySegments, "it never would");
}

/// The kernel there answers.
fn ping(from: &End, to: IpAddr) {
    const IDENTIFIER: [u8; 2] = *b"zc";
    let (family, protocol, request) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let socket = from.run(|| rustix::net::socket(family, SocketType::RAW, Some(protocol))).unwrap();
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(GUARD)).unwrap();
    let mut packet = [&[request, 0, 0, 0][..], &IDENTIFIER, b"\0\x01coexist!"].concat();
    if to.is_ipv4() {
        let sum: u32 = packet.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        packet[2..4].copy_from_slice(&checksum.to_be_bytes()); // Of ICMPv6 the kernel's.
    }
    rustix::net::sendto(&socket, &packet, SendFlags::empty(), &SocketAddr::new(to, 0)).unwrap();
    let mut buffer = [0; 1500];
    loop {
        let (len, _) = rustix::net::recv(&socket, &mut buffer, RecvFlags::empty()).unwrap();
        // Only IPv4 shows its header.
        let answer = if to.is_ipv4() { &buffer[20..len] } else { &buffer[..len] };
        let is_reply = answer[0] == if to.is_ipv4() { 0 } else { 129 };
        if is_reply && answer[4..6] == IDENTIFIER {
            return assert_eq!(answer[4..], packet[4..]);
        }
    }
}

#[test]
fn the_kernels_own_traffic_is_left_alone() {
    let Some(bed) = Bed::new(2, 1500) else { return };
    for &mode in bed.modes {
        let umem = umem(2048);
        let Some(mut device) = open(&bed.near, &umem, &options(mode)) else { return };
        for v4 in [true, false] {
            let at = party(&bed.near, v4, 0).address;
            // TCP.
            let listener = bed.near.run(|| TcpListener::bind(at)).unwrap();
            let to = listener.local_addr().unwrap();
            let mut client = bed.far.run(|| TcpStream::connect(to)).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let sent = vec![7; 1 << 20];
            let writing = std::thread::spawn({
                let sent = sent.clone();
                move || client.write_all(&sent).unwrap()
            });
            let mut got = Vec::new();
            server.set_read_timeout(Some(GUARD)).unwrap();
            server.read_to_end(&mut got).unwrap();
            writing.join().unwrap();
            assert!(got == sent, "{mode}");
            // UDP to another port; longer than a packet too, so in fragments.
            let (client, server) = (socket(&bed.far, v4), socket(&bed.near, v4));
            for len in [10, 5000] {
                client.send_to(&vec![1; len], server.local_addr().unwrap()).unwrap();
                assert_eq!(server.recv(&mut [0; 8000]).unwrap(), len);
            }
            ping(&bed.far, at.ip());
            // Fragments for our port go to the kernel, whose socket has them.
            let ours = party(&bed.near, v4, PORT).address;
            let kernel = bed.near.run(|| UdpSocket::bind(ours)).unwrap();
            kernel.set_read_timeout(Some(GUARD)).unwrap();
            client.send_to(&[2; 5000], ours).unwrap();
            assert_eq!(kernel.recv(&mut [0; 8000]).unwrap(), 5000);
        }
        let mut packets = Vec::new();
        for queue in device.queues_mut() {
            assert_eq!(queue.receive(64, &mut packets).unwrap(), 0);
        }
    }
}

/// A program of somebody else's measures against an echo of the device, and misses nothing.
#[test]
fn sockperf_gets_its_echoes() {
    // In its header, the bit of a client.
    const FLAGS: usize = 42 + 9;
    const OF_CLIENT: u8 = 1;
    if Command::new("sockperf").arg("--version").output().is_err() {
        return skipped("sockperf", "Debian has it; the test machine, too");
    }
    let Some(bed) = Bed::new(1, 1500) else { return };
    for &mode in bed.modes {
        let umem = umem(1024);
        let Some(mut device) = open(&bed.near, &umem, &options(mode)) else { return };
        let queue = &mut device.queues_mut()[0];
        let (to, port) = (bed.near.v4.to_string(), PORT.to_string());
        let arguments = [
            "ping-pong",
            "-i",
            &to,
            "-p",
            &port,
            "-m",
            "200",
            "-t",
            "1",
            "--data-integrity",
            "--timeout",
            "1000",
        ];
        let start = || Command::new("sockperf").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut client = bed.far.run(start);
        let mut packets = Vec::new();
        let ended = until("sockperf to end", || {
            queue.receive(64, &mut packets).unwrap();
            for mut packet in packets.drain(..) {
                turn_round(packet.head_mut());
                packet.head_mut()[FLAGS] &= !OF_CLIENT;
                packet.head_mut()[40..42].fill(0); // No checksum is a right one.
                queue.send(packet).unwrap();
            }
            queue.flush().unwrap();
            queue.reap().unwrap();
            client.try_wait().unwrap()
        });
        let mut said = String::new();
        client.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        let missed = "# dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0";
        assert!(ended.success() && said.contains(missed), "{mode}: {said}");
        assert!(queue.stats().unwrap().received > 0, "{mode}: {said}");
    }
}

#[test]
fn whoever_keeps_frames_does_not_starve_the_kernel() {
    const KEPT: usize = 64;
    let Some(bed) = Bed::new(1, 1500) else { return };
    // As many frames as are reserved, and some for the application.
    let frames = 256 + KEPT as u32;
    let umem =
        Umem::new(&UmemOptions { frames, max_copied_out_bytes: 1 << 20, ..UmemOptions::default() }).unwrap();
    let Some(mut device) = open(&bed.near, &umem, &options(bed.modes[0])) else { return };
    let queue = &mut device.queues_mut()[0];
    let (client, to) = (socket(&bed.far, true), party(&bed.near, true, PORT).address);
    let mut kept = Vec::new();
    for number in 0..400u32 {
        client.send_to(&number.to_be_bytes(), to).unwrap();
        let packet = receive(queue, 1).pop().unwrap();
        assert_eq!(read(packet.head()).payload, number.to_be_bytes());
        kept.push(packet);
    }
    let stats = queue.stats().unwrap();
    assert_eq!((stats.copied_out, stats.dropped), (400 - KEPT as u64, 0));
    // A device takes frames ahead, and always all.
    assert!(stats.kernel.fill_ring_empty == 0 || bed.modes[0] == Mode::ZeroCopy);
    assert!(stats.filled > 200);
    assert_eq!(umem.stats().out, KEPT as u32);
    assert!(umem.allocate(0).is_none(), "the rest is reserved");
    let copied = queue.ledger().snapshot().copied_at(CopyPlace::CopyOut);
    assert_eq!(copied, stats.copied_out * 46);
    for (number, packet) in (0u32..).zip(&kept) {
        assert_eq!(read(packet.head()).payload, number.to_be_bytes(), "it was not overwritten");
    }
    // A copy lies elsewhere; it is not sent by mistake.
    let copy = kept.pop().unwrap();
    assert_eq!(queue.send(copy).unwrap_err().fault, SendFault::Foreign);
    std::thread::spawn(move || drop(kept)).join().unwrap();
    assert_eq!(umem.stats().out, 0);
    client.send_to(b"and on", to).unwrap();
    receive(queue, 1);
    assert_eq!(queue.stats().unwrap().copied_out, stats.copied_out);
}

#[test]
fn a_packet_that_can_not_be_kept_counts_once() {
    let Some(bed) = Bed::new(1, 5000) else { return };
    let few = UmemOptions { frames: 257, max_copied_out_bytes: 1, ..UmemOptions::default() };
    let umem = Umem::new(&few).unwrap();
    let Some(mut device) = open(&bed.near, &umem, &options(Mode::Copy)) else { return };
    let queue = &mut device.queues_mut()[0];
    let (client, to) = (socket(&bed.far, true), party(&bed.near, true, PORT).address);
    let kept = umem.allocate(0).unwrap();
    client.send_to(&[1; 4800], to).unwrap();
    until("the packet to be dropped", || {
        assert_eq!(queue.receive(1, &mut Vec::new()).unwrap(), 0);
        (queue.stats().unwrap().dropped > 0).then_some(())
    });
    let stats = queue.stats().unwrap();
    assert_eq!((stats.dropped, stats.damaged, stats.copied_out, stats.received), (1, 0, 0, 0));
    assert_eq!(umem.stats().out, 1);
    drop(kept);
    client.send_to(&[1; 9], to).unwrap();
    receive(queue, 1);
}

#[test]
fn a_burst_that_nobody_takes_is_counted() {
    let Some(bed) = Bed::veth(1, 1500) else { return };
    let umem = umem(1024);
    let Some(mut device) = open(&bed.near, &umem, &options(Mode::Copy)) else { return };
    let queue = &mut device.queues_mut()[0];
    let (client, to) = (socket(&bed.far, true), party(&bed.near, true, PORT).address);
    (0..1000u32).for_each(|number| drop(client.send_to(&number.to_be_bytes(), to)));
    until("the kernel to count", || {
        let kernel = queue.stats().unwrap().kernel;
        (kernel.rx_ring_full + kernel.fill_ring_empty + kernel.rx_dropped >= 744).then_some(())
    });
    let mut packets = Vec::new();
    until("what is there", || (queue.receive(1000, &mut packets).unwrap() == 0).then_some(()));
    assert!((1..=256).contains(&packets.len()), "{}", packets.len());
    drop(packets);
    client.send_to(b"still there", to).unwrap();
    assert_eq!(read(receive(queue, 1)[0].head()).payload, b"still there");
}

#[test]
fn one_owner_at_a_time() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let umem = umem(2048);
    for &mode in bed.modes {
        let Some(device) = open(&bed.near, &umem, &options(mode)) else { return };
        for &second in bed.modes {
            let refused = bed.near.run(|| Device::open(NAME, &umem, &options(second))).unwrap_err();
            let OpenError::InUse { interface, program: Some(_) } = &refused else { panic!("{refused}") };
            assert_eq!(interface, NAME);
            assert_eq!(Unavailable::from(refused).code(), "interface_in_use");
        }
        // The attachment alone holds it, too.
        let attachment = device.attachment().clone();
        drop(device);
        assert!(bed.near.run(|| Device::open(NAME, &umem, &options(mode))).is_err());
        drop(attachment);
    }
    // Each left the kernel's frames behind, and nothing else.
    assert_eq!((umem.stats().out, umem.stats().max_out), (0, 2048 - bed.modes.len() as u32 * 256));
}

#[test]
fn by_default_the_queues_share_half_of_the_memory() {
    let Some(bed) = Bed::veth(8, 1500) else { return };
    let default = DeviceOptions { fill_frames: None, ..options(Mode::Copy) };
    let umem = Umem::new(&UmemOptions::default()).unwrap();
    let Some(mut near) = open(&bed.near, &umem, &default) else { return };
    assert!(near.queues_mut().iter().all(|queue| queue.stats().unwrap().filled == 512));
    let mut far = open(&bed.far, &umem, &default).unwrap();
    assert!(far.queues_mut().iter().all(|queue| queue.stats().unwrap().filled == 256));
    assert_eq!(umem.stats().max_out, 8192 - 8 * (512 + 256));
}

/// A kernel that copies takes a few frames in turn; once a burst has needed most of them it has more.
#[test]
fn a_burst_leaves_more_frames_to_receive_into() {
    let Some(bed) = Bed::veth(1, 1500) else { return };
    for mode in COPIES {
        let default = DeviceOptions { fill_frames: None, rx_entries: 2048, ..options(mode) };
        let umem = Umem::new(&UmemOptions::default()).unwrap();
        let Some(mut near) = open(&bed.near, &umem, &default) else { return };
        let queue = &mut near.queues_mut()[0];
        assert_eq!((queue.stats().unwrap().filled, umem.stats().max_out), (512, 8192 - 2048), "{mode}");
        let (client, to) = (socket(&bed.far, true), party(&bed.near, true, PORT).address);
        // Over a veth a packet has arrived when it was sent.
        (0..400).for_each(|_| assert_eq!(client.send_to(&[7; 64], to).unwrap(), 64));
        drop(receive(queue, 400));
        assert_eq!(queue.stats().unwrap().filled, 1024, "{mode}");
        (0..900).for_each(|_| assert_eq!(client.send_to(&[7; 64], to).unwrap(), 64));
        drop(receive(queue, 900));
        assert_eq!(queue.stats().unwrap().filled, 2048, "{mode}");
        assert_eq!(umem.stats().max_out, 8192 - 2048, "all of them were set aside before");
        let mut calmly = || {
            (0..16).for_each(|_| assert_eq!(client.send_to(&[7; 64], to).unwrap(), 64));
            drop(receive(queue, 16));
            queue.stats().unwrap().filled
        };
        // A refill each, and no more for as long as more are there than are to be.
        assert!((0..6_000).any(|_| calmly() == 1024), "{mode}");
        assert!((0..200).all(|_| calmly() == 1024), "{mode}: it stays");
    }
}

/// Nothing would wake up a queue without frames to receive into.
#[test]
fn what_the_application_has_is_not_reserved() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let umem = umem(257);
    let held = [umem.allocate(0).unwrap(), umem.allocate(0).unwrap()];
    if open(&bed.far, &self::umem(512), &options(bed.modes[0])).is_none() {
        return;
    }
    let few = bed.near.run(|| Device::open(NAME, &umem, &options(bed.modes[0])));
    assert!(matches!(few, Err(OpenError::TooFewFrames { needed: 256, free: 255 })), "{few:?}");
    drop(held);
    assert!(bed.near.run(|| Device::open(NAME, &umem, &options(bed.modes[0]))).is_ok());
}

#[test]
fn the_ladder_says_why_not() {
    let Some(bed) = Bed::veth(1, 1500) else { return };
    let umem = umem(1024);
    let all = DeviceOptions { best: Mode::ZeroCopy, worst: Mode::Generic, ..options(Mode::Copy) };
    let Some(device) = open(&bed.near, &umem, &all) else { return };
    let report = device.report();
    let [no] = &report.tried[..] else { panic!("{report}") };
    assert_eq!((no.mode, &no.why, report.mode), (Mode::ZeroCopy, &Unavailable::DriverNoZeroCopy, Mode::Copy));
    let text = report.to_string();
    assert!(
        text.contains("copy (driver), 1 queues") && text.contains("no zero copy: driver_no_zero_copy"),
        "{text}"
    );
    drop(device);
    let strict = bed.near.run(|| Device::open(NAME, &umem, &options(Mode::ZeroCopy))).unwrap_err();
    assert_eq!(Unavailable::from(strict), Unavailable::DriverNoZeroCopy);
    // The loopback has no driver to speak of.
    let on_lo =
        bed.near.run(|| Device::open("lo", &umem, &DeviceOptions { multi_buffer: Some(true), ..all }));
    let on_lo = on_lo.unwrap();
    assert_eq!(on_lo.report().mode, Mode::Generic, "{}", on_lo.report());
    assert!(
        on_lo.report().tried.iter().any(|refusal| refusal.why.code() == "driver_no_xdp"),
        "{}",
        on_lo.report()
    );
    let few = bed.near.run(|| Device::open(NAME, &self::umem(64), &options(Mode::Copy)));
    assert!(matches!(few, Err(OpenError::TooFewFrames { needed: 256, free: 64 })), "{few:?}");
}

#[test]
fn a_polled_device_receives_without_interrupts() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let umem = umem(1024);
    let busy_polling = Some(BusyPolling { micros: 20, packets: 64 });
    let polled = DeviceOptions { busy_polling, ..options(bed.modes[0]) };
    let Some(mut device) = open(&bed.near, &umem, &polled) else { return };
    let queue = &mut device.queues_mut()[0];
    let client = socket(&bed.far, true);
    for number in 0..100u8 {
        client.send_to(&[number; 9], party(&bed.near, true, PORT).address).unwrap();
        assert_eq!(read(receive(queue, 1)[0].head()).payload, [number; 9]);
    }
}

/// On a veth, where a packet has arrived when it was sent.
#[test]
fn ports_and_faults_change_while_it_runs() {
    let Some(bed) = Bed::veth(1, 1500) else { return };
    let umem = umem(1024);
    let mut options = options(Mode::Copy);
    options.rules.faults = true;
    let Some(mut device) = open(&bed.near, &umem, &options) else { return };
    let attachment = device.attachment().clone();
    let queue = &mut device.queues_mut()[0];
    let client = socket(&bed.far, true);
    let to = |port| party(&bed.near, true, port).address;
    attachment.add_port(PORT + 1).unwrap();
    client.send_to(b"a", to(PORT + 1)).unwrap();
    assert_eq!(read(receive(queue, 1)[0].head()).payload, b"a");
    attachment.remove_port(PORT + 1).unwrap();
    client.send_to(b"b", to(PORT + 1)).unwrap();
    assert!(attachment.set_faults(Faults { lost: 1.0, damaged: 0.0 }).unwrap());
    client.send_to(b"c", to(PORT)).unwrap();
    assert!(attachment.set_faults(Faults { lost: 0.0, damaged: 1.0 }).unwrap());
    client.send_to(b"d", to(PORT)).unwrap();
    assert!(attachment.set_faults(Faults::default()).unwrap());
    client.send_to(b"e", to(PORT)).unwrap();
    let seen = receive(queue, 2).iter().map(|packet| read(packet.head()).payload).collect::<Vec<_>>();
    assert_eq!(seen, [vec![b'd' ^ 0x55], b"e".to_vec()]);
}

/// What the driver of a card does without copies, and what not.
#[test]
fn a_card_is_used_without_copies() {
    if !has_cards() {
        return skipped("zero copy", "this is not the test machine (`cargo xtask vm --kernel backports`)");
    }
    let bed = Bed::new(1, 1500).unwrap();
    let umem = umem(1024);
    let all = DeviceOptions { best: Mode::ZeroCopy, worst: Mode::Generic, ..options(Mode::Copy) };
    let device = open(&bed.near, &umem, &all).unwrap();
    let report = device.report();
    assert_eq!((report.mode, report.tried.len()), (Mode::ZeroCopy, 0), "{report}");
    let features = report.interface.features;
    assert!(features.known && features.redirect && features.zero_copy, "{features:?}");
    assert_eq!((features.zero_copy_segments, report.max_segments), (1, 1));
    assert!(report.to_string().starts_with(&format!("{NAME}: zero copy, {} queues", bed.queues)), "{report}");
    drop(device);
    // Its driver takes packets of several frames, but not without copies.
    let long = DeviceOptions { multi_buffer: Some(true), ..all };
    let device = open(&bed.near, &umem, &long).unwrap();
    let report = device.report();
    let [no] = &report.tried[..] else { panic!("{report}") };
    assert_eq!((no.mode, &no.why, report.mode), (Mode::ZeroCopy, &Unavailable::DriverNoZeroCopy, Mode::Copy));
}
