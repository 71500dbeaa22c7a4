//! Flows that share a bottleneck, in simulated time.

use std::time::{Duration, Instant};

use super::peer::{Peer, options};
use super::reno::{Receiver, Reno, Sender};
use super::sim::{Host, Net, Path};
use crate::protocol::*;

const MS: Duration = Duration::from_millis(1);
/// 20 Mbit/s; with 20 ms for a round trip that is 34 packets.
const BYTES_PER_SECOND: f64 = 2.5e6;
const BDP_BYTES: f64 = BYTES_PER_SECOND * 0.02;

enum Either {
    Ours(Box<Peer>),
    Reno(Reno),
}

impl Host for Either {
    fn arrive(&mut self, now: Instant, datagram: Vec<u8>) {
        match self {
            Self::Ours(peer) => peer.arrive(now, datagram),
            Self::Reno(reno) => reno.arrive(now, datagram),
        }
    }
    fn timeout(&self) -> Option<Instant> {
        match self {
            Self::Ours(peer) => peer.timeout(),
            Self::Reno(reno) => reno.timeout(),
        }
    }
    fn poll(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        match self {
            Self::Ours(peer) => peer.poll(now, out),
            Self::Reno(reno) => reno.poll(now, out),
        }
    }
}

impl Either {
    fn received_bytes(&self) -> u64 {
        match self {
            Self::Ours(peer) => peer.received_bytes,
            Self::Reno(Reno::Receiver(receiver)) => receiver.bytes(),
            Self::Reno(_) => 0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Ours(Congestion),
    Reno,
}

/// Bytes per second of each flow over one bottleneck with a queue of so many times its bandwidth-delay product. The
/// second begins two seconds later; 30 s are measured from 10 s on.
fn share(kinds: [Kind; 2], queue: f64, seed: u64) -> [f64; 2] {
    let start = Instant::now();
    let mut net = Net::new(seed, start);
    let bottleneck = net.link(Path::new(BYTES_PER_SECOND, 10 * MS, queue * BDP_BYTES));
    let mut receivers = Vec::new();
    for (i, kind) in kinds.into_iter().enumerate() {
        let back = net.link(Path::new(1e9, 10 * MS, 1e9));
        let now = net.now;
        let [a, b] = match kind {
            Kind::Reno => {
                [Reno::Sender(Sender::new(now)), Reno::Receiver(Receiver::default())].map(Either::Reno)
            }
            Kind::Ours(congestion) => {
                let options = options(congestion);
                let seed = 2 * seed + i as u64;
                Peer::pair(&options, seed, now, [u64::MAX, 0], |_| 30_000).map(|p| Either::Ours(Box::new(p)))
            }
        };
        receivers.push(net.pair((a, bottleneck), (b, back)) + 1);
        net.run(Duration::from_secs(2), |_| false);
    }
    net.run(Duration::from_secs(6), |_| false);
    let before: Vec<_> = receivers.iter().map(|r| net.hosts[*r].received_bytes()).collect();
    net.run(Duration::from_secs(30), |_| false);
    std::array::from_fn(|i| (net.hosts[receivers[i]].received_bytes() - before[i]) as f64 / 30.0)
}

fn print(what: &str, queue: f64, [a, b]: [f64; 2]) {
    let used = (a + b) / BYTES_PER_SECOND;
    println!("{what}, queue {queue} BDP: {:.2} : {:.2} MB/s, {used:.2} of the link", a / 1e6, b / 1e6);
}

#[test]
fn two_of_ours_share_within_a_fifth() {
    use Congestion::{NewReno, WestwoodPlus};
    for (congestion, queue) in [(WestwoodPlus, 1.0), (WestwoodPlus, 2.0), (NewReno, 1.0)] {
        let rates = share([Kind::Ours(congestion); 2], queue, 2);
        print(&format!("two {congestion:?}"), queue, rates);
        assert!(rates[0].max(rates[1]) <= 1.2 * rates[0].min(rates[1]), "queue {queue}: {rates:?}");
        assert!(rates[0] + rates[1] > 0.75 * BYTES_PER_SECOND);
    }
}

/// Half of its fair share is the least that either may get.
#[test]
fn neither_starves_beside_tcp() {
    let ours = Kind::Ours(Congestion::WestwoodPlus);
    let cases = [(ours, 0.5), (ours, 1.0), (ours, 2.0), (Kind::Ours(Congestion::NewReno), 1.0)];
    for (kind, queue) in cases {
        let rates = share([Kind::Reno, kind], queue, 1);
        print(&format!("TCP beside {kind:?}"), queue, rates);
        assert!(rates.iter().all(|rate| *rate > 0.5 * BYTES_PER_SECOND / 2.0), "queue {queue}: {rates:?}");
    }
}

/// The oracle alone does what such a TCP does, or it would prove nothing.
#[test]
fn the_oracle_fills_a_link_and_shares_with_its_like() {
    let rates = share([Kind::Reno; 2], 1.0, 1);
    print("two TCP", 1.0, rates);
    assert!(rates[0] + rates[1] > 0.75 * BYTES_PER_SECOND);
    assert!(rates[0].max(rates[1]) <= 2.0 * rates[0].min(rates[1]), "{rates:?}");
}
