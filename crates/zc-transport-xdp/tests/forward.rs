//! The example `xdp_forward` between network namespaces, with the kernel's own clients and servers.
//!
//! ```text
//! client --(in)-- balancer --(out)--+
//!    |                              |
//!    +------------- bridge ---------+---- backends, each with the virtual address on its loopback
//! ```

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod bed;
#[path = "../examples/xdp_forward/forward.rs"]
mod forward;
#[path = "../examples/xdp_forward/maglev.rs"]
mod maglev;
#[path = "../examples/xdp_forward/packet.rs"]
mod packet;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bed::frame::{Party, Sum, headers};
use bed::{GUARD, Namespace, skipped, until};
use forward::{Balancer, Counts, Error, Service};
use maglev::{Maglev, PLACES};
use zc_core::transport::Unavailable;

const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const PORT: u16 = 7000;
const BACKENDS: usize = 3;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 100);

struct Net {
    client: Namespace,
    balancer: Namespace,
    _bridge: Namespace,
    backends: Vec<Namespace>,
}

fn backend_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, 11 + number as u8)
}

fn make() -> std::io::Result<Net> {
    let [client, balancer, bridge] = [Namespace::new()?, Namespace::new()?, Namespace::new()?];
    let backends = (0..BACKENDS).map(|_| Namespace::new()).collect::<Result<Vec<_>, _>>()?;
    bridge.ip("link add bridge type bridge")?;
    bridge.ip("link set bridge up")?;
    let port = |name: &str, peer: &Namespace, address: String| {
        bridge.ip(&format!("link add {name} type veth peer name net netns {}", peer.path()))?;
        bridge.ip(&format!("link set {name} master bridge up"))?;
        peer.ip(&format!("addr add {address}/24 dev net"))?;
        peer.ip("link set lo up")?;
        peer.ip("link set net up")
    };
    port("client", &client, CLIENT.to_string())?;
    port("balancer", &balancer, "10.78.0.1".into())?;
    for (number, backend) in backends.iter().enumerate() {
        port(&format!("backend{number}"), backend, backend_address(number).to_string())?;
        backend.ip(&format!("addr add {VIRTUAL}/32 dev lo"))?;
    }
    balancer.ip(&format!(
        "link add in address 02:00:00:00:00:aa type veth peer name out netns {}",
        client.path()
    ))?;
    balancer.ip("link set in up")?;
    client.ip("link set out up")?;
    client.ip(&format!("route add {VIRTUAL}/32 dev out src {CLIENT}"))?;
    client.ip(&format!("neigh replace {VIRTUAL} lladdr 02:00:00:00:00:aa dev out nud permanent"))?;
    Ok(Net { client, balancer, _bridge: bridge, backends })
}

fn net() -> Option<Net> {
    match make() {
        Ok(net) => Some(net),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::NotFound
            ) =>
        {
            skipped("network namespaces", error);
            None
        }
        Err(error) if error.to_string().contains("nknown device type") => {
            skipped("a bridge", error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Answers with its number in front.
fn serve(number: usize, socket: &UdpSocket, end: &AtomicBool) {
    let mut buffer = [0; 2000];
    while !end.load(Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut buffer[1..]) {
            buffer[0] = number as u8;
            socket.send_to(&buffer[..=len], from).unwrap();
        }
    }
}

#[test]
fn flows_are_spread_and_stay_with_their_backend() {
    const FLOWS: usize = 60;
    let Some(net) = net() else { return };
    let service = Service {
        from: "in".into(),
        to: "net".into(),
        address: (VIRTUAL, PORT).into(),
        backends: (0..BACKENDS).map(|number| backend_address(number).into()).collect(),
        checksums: true,
    };
    let mut balancer = match net.balancer.run(|| Balancer::open(&service)) {
        Err(Error::Open(error)) => {
            let why = Unavailable::from(error);
            assert!(matches!(why.code(), "missing_capability" | "user_namespace"), "{why}");
            return skipped("AF_XDP", why);
        }
        opened => opened.unwrap(),
    };
    let (counts, end) = (&Counts::of(BACKENDS), &AtomicBool::new(false));
    let servers: Vec<UdpSocket> = net
        .backends
        .iter()
        .map(|backend| {
            let socket = backend.run(|| UdpSocket::bind((VIRTUAL, PORT))).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            socket
        })
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| balancer.run(counts, end).unwrap());
        for (number, socket) in servers.iter().enumerate() {
            scope.spawn(move || serve(number, socket, end));
        }
        // Ends the others also if something fails here.
        let _end = End(end);
        let mut chosen: HashMap<usize, u8> = HashMap::new();
        let clients: Vec<UdpSocket> =
            net.client.run(|| (0..FLOWS).map(|_| UdpSocket::bind((CLIENT, 0)).unwrap()).collect());
        for round in 0..3u8 {
            for (flow, client) in clients.iter().enumerate() {
                client.set_read_timeout(Some(GUARD)).unwrap();
                let payload = [round; 1200];
                client.send_to(&payload, (VIRTUAL, PORT)).unwrap();
                let mut answer = [0; 2000];
                let (len, by) = client.recv_from(&mut answer).unwrap();
                assert_eq!((len, by), (1201, SocketAddr::from((VIRTUAL, PORT))));
                assert!(answer[1..len].iter().all(|byte| *byte == round));
                assert_eq!(*chosen.entry(flow).or_insert(answer[0]), answer[0], "the flow has moved");
            }
        }
        until("all to be counted", || {
            let each = counts.backends.iter().map(|count| count.load(Relaxed));
            (each.sum::<u64>() == 3 * FLOWS as u64).then_some(())
        });
        for (number, count) in counts.backends.iter().enumerate() {
            let flows = chosen.values().filter(|one| usize::from(**one) == number).count() as u64;
            assert_eq!(count.load(Relaxed), 3 * flows);
            assert!(flows > 0, "backend {number} has nothing: {chosen:?}");
        }
        assert_eq!(counts.dropped.load(Relaxed), 0);
    });
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn the_table_is_even_and_changes_little() {
    let names: Vec<String> = (0..10).map(|n| format!("backend {n}")).collect();
    let (all, fewer) = (Maglev::new(&names), Maglev::new(&names[..9]));
    let mut counts = [0usize; 10];
    let mut moved = 0;
    let flows = 10 * PLACES;
    for flow in 0..flows {
        let (before, after) = (all.backend(flow), fewer.backend(flow));
        counts[before] += 1;
        moved += usize::from(before != after && before != 9);
    }
    assert!(counts.iter().all(|count| (flows / 12..flows / 8).contains(count)), "{counts:?}");
    assert!(moved < flows / 10, "{moved} of {flows} flows moved though their backend is still there");
}

#[test]
fn packets_are_passed_on_whole_or_not_at_all() {
    let party =
        |number: u8| Party { mac: [number; 6], address: (IpAddr::from([10, 0, 0, number]), 1000).into() };
    let mut packet = headers(party(1), party(2), None, b"", Sum::Here);
    let flow = packet::flow(&packet).unwrap();
    assert_eq!(flow, [10, 0, 0, 1, 10, 0, 0, 2, 3, 232, 3, 232]);
    for hops in (1..64).rev() {
        assert!(packet::pass_on(&mut packet, [5; 6], [6; 6]));
        let sum: u32 =
            packet[14..34].chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
        assert_eq!((packet[22], (sum & 0xffff) + (sum >> 16)), (hops, 0xffff), "the checksum is right");
    }
    assert!(packet[..12] == [[6; 6], [5; 6]].concat());
    assert!(!packet::pass_on(&mut packet, [5; 6], [6; 6]), "it has come far enough");
    assert_eq!(packet::flow(&packet), Some(flow));
    (0..38).for_each(|len| assert_eq!(packet::flow(&packet[..len]), None));
    assert!(!packet::pass_on(&mut packet[..33], [5; 6], [6; 6]));
}
