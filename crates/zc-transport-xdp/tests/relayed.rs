//! Connections whose packets pass a relay that loses, damages, repeats and delays them, and adds some of its own.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use zc::testing::fabric_over;
use zc::transport::{
    BoxFuture, Caps, ControlLink, Lane, Offer, OfferContext, Role, Transport, Unavailable, WireupError,
};
use zc::{Connection, Fabric};
use zc_transport_xdp::{UdpOptions, UdpTransport};

/// A guard against hanging, no bound on speed.
const GUARD: Duration = Duration::from_secs(300);
/// Where the port lies in an offer of this transport.
const PORT_AT: usize = 64;

/// What befalls packets, each by so many of a thousand.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    lost: u64,
    damaged: u64,
    repeated: u64,
    late: u64,
    /// Noise and old packets besides.
    hostile: bool,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn of_a_thousand(&mut self, count: u64) -> bool {
        self.next() % 1000 < count
    }
}

/// What the relays of one test have done.
#[derive(Default)]
struct Done {
    end: AtomicBool,
    passed: AtomicU64,
    hurt: AtomicU64,
}

/// One direction: from its own port to that one. Ends with the test.
fn relay(to: SocketAddr, faults: Faults, seed: u64, done: Arc<Done>) -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut random, mut held, mut old) = (Random(seed), Vec::<Vec<u8>>::new(), Vec::new());
        let mut bytes = vec![0; 65_536];
        let send = |packet: &[u8]| drop(socket.send_to(packet, to));
        while !done.end.load(Relaxed) {
            let len = match socket.recv(&mut bytes) {
                Ok(len) => len,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    held.drain(..).for_each(|packet| send(&packet));
                    continue;
                }
                Err(_) => return,
            };
            let packet = &mut bytes[..len];
            done.passed.fetch_add(1, Relaxed);
            if faults.hostile {
                // Noise behind a genuine head, and a packet of long ago.
                let mut forged: Vec<u8> = packet.to_vec();
                let at = random.next() as usize % forged.len();
                forged[at] ^= 1 + random.next() as u8 % 255;
                send(&forged);
                old.push(packet.to_vec());
                send(&old[random.next() as usize % old.len()]);
                old.truncate(500);
                done.hurt.fetch_add(1, Relaxed);
            }
            if random.of_a_thousand(faults.lost) {
                done.hurt.fetch_add(1, Relaxed);
                continue;
            }
            if random.of_a_thousand(faults.damaged) {
                let at = random.next() as usize % packet.len();
                packet[at] ^= 0x55;
                done.hurt.fetch_add(1, Relaxed);
            }
            if random.of_a_thousand(faults.repeated) {
                send(packet);
                done.hurt.fetch_add(1, Relaxed);
            }
            if random.of_a_thousand(faults.late) {
                held.push(packet.to_vec());
                done.hurt.fetch_add(1, Relaxed);
                continue;
            }
            send(packet);
            // Those that are late come behind some others, the last first.
            if held.len() > 4 {
                held.drain(..).rev().for_each(|packet| send(&packet));
            }
        }
    });
    port
}

/// Has the peer's packets sent to a relay.
struct Relayed {
    inner: UdpTransport,
    faults: Faults,
    done: Arc<Done>,
}

impl Transport for Relayed {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn wire_name(&self) -> &'static str {
        self.inner.wire_name()
    }
    fn probe(&self) -> Result<Caps, Unavailable> {
        self.inner.probe()
    }
    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        self.inner.offer(cx)
    }
    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        mut peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        let port = u16::from_le_bytes([peer.bytes[PORT_AT], peer.bytes[PORT_AT + 1]]);
        let seed = if role == Role::Client { 7 } else { 8 };
        let port = relay(([127, 0, 0, 1], port).into(), self.faults, seed, self.done.clone());
        peer.bytes[PORT_AT..PORT_AT + 2].iter_mut().zip(port.to_le_bytes()).for_each(|(to, b)| *to = b);
        self.inner.join(role, mine, peer, link, cx)
    }
}

fn fabric(faults: Faults, done: &Arc<Done>) -> Fabric {
    let mut options = UdpOptions::default();
    options.datagram_bytes = 1452;
    let inner = UdpTransport::new(options);
    fabric_over(Arc::new(Relayed { inner, faults, done: done.clone() })).build().unwrap()
}

fn content(n: usize, len: usize) -> Vec<u8> {
    let mut random = Random(n as u64);
    (0..len).map(|_| random.next() as u8).collect()
}

const SIZES: [usize; 6] = [0, 10, 100, 1388, 5000, 60_000];

async fn send_all(connection: &Connection, count: usize) {
    for n in 0..count {
        connection.send(content(n, SIZES[n % SIZES.len()])).await.unwrap();
    }
    connection.sender().finish().await.unwrap();
}

async fn take_all(connection: &mut Connection, count: usize) {
    for n in 0..count {
        let message = connection.recv().await.unwrap().unwrap();
        assert!(message == content(n, SIZES[n % SIZES.len()])[..], "message {n}");
    }
    assert!(connection.recv().await.unwrap().is_none(), "and no more");
}

/// Every message comes, whole, in order and once, in both directions at the same time.
fn all_comes(faults: Faults, count: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = Arc::new(Done::default());
    runtime.unwrap().block_on(async {
        let mut listener = fabric(faults, &done).listen("zc+udp://127.0.0.1:0").await.unwrap();
        let (uri, client) = (listener.local_uri().to_string(), fabric(faults, &done));
        let both = async {
            let (mut client, mut server) = tokio::try_join!(client.connect(&uri), listener.accept()).unwrap();
            assert_eq!(client.report().chosen(), "udp");
            let (to_server, to_client) = (client.sender(), server.sender());
            drop((to_server, to_client));
            let client = async {
                send_all(&client, count).await;
                take_all(&mut client, count).await;
                client
            };
            let server = async {
                take_all(&mut server, count).await;
                send_all(&server, count).await;
                server
            };
            drop(tokio::join!(client, server));
        };
        tokio::time::timeout(GUARD, both).await.expect("it hangs");
    });
    done.end.store(true, Relaxed);
    let [passed, hurt] = [&done.passed, &done.hurt].map(|count| count.load(Relaxed));
    assert!(passed > 1000 && hurt > 0, "{hurt} of {passed} packets were hurt: {faults:?}");
}

#[test]
fn one_in_a_thousand_is_lost() {
    all_comes(Faults { lost: 1, ..Faults::default() }, 400);
}

#[test]
fn one_in_a_hundred_is_lost() {
    all_comes(Faults { lost: 10, ..Faults::default() }, 300);
}

#[test]
fn one_in_ten_is_lost() {
    all_comes(Faults { lost: 100, ..Faults::default() }, 100);
}

#[test]
fn some_overtake_others() {
    all_comes(Faults { late: 50, ..Faults::default() }, 200);
}

#[test]
fn some_come_twice() {
    all_comes(Faults { repeated: 100, ..Faults::default() }, 200);
}

#[test]
fn some_are_damaged() {
    all_comes(Faults { damaged: 20, ..Faults::default() }, 200);
}

#[test]
fn somebody_forges_and_replays_packets() {
    all_comes(Faults { hostile: true, lost: 10, damaged: 10, repeated: 10, late: 10 }, 100);
}
