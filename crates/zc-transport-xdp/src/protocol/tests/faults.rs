//! Every message intact, in order, once, whatever the network does; and how fast.

use std::time::{Duration, Instant};

use super::peer::{Peer, options};
use super::sim::{Net, Path};
use crate::protocol::*;

const MS: Duration = Duration::from_millis(1);

/// Small and large, empty, of one packet, of a rope, and gathered.
fn mixed(seq: u64) -> usize {
    match seq % 8 {
        0 => 0,
        1 => 1,
        2 => 64,
        3 => 1400,
        4 => 1409,
        5 => 9000,
        6 => 40_000,
        _ => 200 + (seq * 37 % 900) as usize,
    }
}

/// 100 Mbit/s, 1 ms each way.
fn lan() -> Path {
    Path::new(12.5e6, MS, 64e3)
}

/// Sends both ways over this path and says how long it took.
fn exchange(path: Path, messages: u64, seed: u64) -> (Duration, Net<Peer>) {
    let start = Instant::now();
    let mut net = Net::new(seed, start);
    let (there, back) = (net.link(path.clone()), net.link(path));
    let [a, b] = Peer::pair(&SessionOptions::default(), seed, start, [messages, messages], mixed);
    net.pair((a, there), (b, back));
    let all = |hosts: &mut [Peer]| hosts.iter().all(|h| h.received == messages && h.completed == messages);
    let done = net.run(Duration::from_secs(120), all);
    let seen: Vec<_> = net.hosts.iter().map(|h| (h.received, h.completed, h.session.stats())).collect();
    assert!(done, "{seen:?}");
    (net.elapsed(), net)
}

#[test]
fn nothing_is_lost_without_faults() {
    let (_, net) = exchange(Path { queue_bytes: 1e9, ..lan() }, 400, 1);
    for host in &net.hosts {
        let stats = host.session.stats();
        assert_eq!((stats.lost_packets, stats.timeouts, stats.refused_packets), (0, 0, 0), "{stats:?}");
        assert_eq!((stats.malformed_packets, stats.forged_packets, stats.replayed_packets), (0, 0, 0));
    }
}

#[test]
fn loss() {
    for (seed, loss) in [(1, 0.001), (2, 0.01), (3, 0.1), (4, 0.1), (5, 0.3)] {
        exchange(Path { loss, ..lan() }, 400, seed);
    }
}

#[test]
fn reordering() {
    for (seed, reordering) in [(1, 0.02), (2, 0.5)] {
        exchange(Path { reordering, held: 3 * MS, ..lan() }, 400, seed);
    }
}

#[test]
fn duplication() {
    let (_, net) = exchange(Path { duplication: 0.3, ..lan() }, 400, 1);
    assert!(net.hosts.iter().all(|host| host.session.stats().replayed_packets > 100));
}

#[test]
fn corruption() {
    let (_, net) = exchange(Path { corruption: 0.05, ..lan() }, 400, 1);
    assert!(net.hosts.iter().all(|host| host.session.stats().forged_packets > 20));
    assert!(net.hosts.iter().all(|host| host.session.stats().malformed_packets > 0));
}

#[test]
fn everything_at_once() {
    for seed in 0..5 {
        let path = Path { loss: 0.03, duplication: 0.1, corruption: 0.02, reordering: 0.2, ..lan() };
        exchange(path, 300, seed);
    }
}

/// A path that is dead for a while is found again soon after, and nothing is lost.
#[test]
fn an_outage() {
    let start = Instant::now();
    let mut net = Net::new(7, start);
    let (there, back) = (net.link(lan()), net.link(lan()));
    let [a, b] = Peer::pair(&SessionOptions::default(), 7, start, [4000, 0], |_| 20_000);
    net.pair((a, there), (b, back));
    assert!(!net.run(Duration::from_secs(1), |hosts| hosts[1].received == 4000));
    for link in [there, back] {
        net.path(link).loss = 1.0;
    }
    let before = net.hosts[1].received;
    assert!(before > 100);
    net.run(Duration::from_secs(4), |_| false);
    for link in [there, back] {
        net.path(link).loss = 0.0;
    }
    let in_a_moment = MAX_PROBE_INTERVAL + 100 * MS;
    assert!(
        net.run(in_a_moment, |hosts| hosts[1].received > before + 20),
        "{:?}",
        net.hosts[0].session.stats()
    );
    assert!(net.run(Duration::from_secs(20), |hosts| hosts[1].received == 4000));
}

/// After an outage the window starts anew, but what was known of the path is not forgotten: it doubles each round trip.
#[test]
fn a_long_path_is_full_again_soon_after_an_outage() {
    let start = Instant::now();
    let mut net = Net::new(7, start);
    let far = Path::new(12.5e6, 25 * MS, 4e6);
    let (there, back) = (net.link(far.clone()), net.link(far));
    let [a, b] = Peer::pair(&SessionOptions::default(), 7, start, [u64::MAX, 0], |_| 20_000);
    net.pair((a, there), (b, back));
    net.run(Duration::from_secs(1), |_| false);
    let before = net.hosts[0].session.stats().window_bytes;
    for (loss, time) in [(1.0, 4), (0.0, 2)] {
        net.path(there).loss = loss;
        net.path(back).loss = loss;
        net.run(Duration::from_secs(time), |_| false);
    }
    let stats = net.hosts[0].session.stats();
    assert!(stats.window_bytes > before / 2, "{before} before, {stats:?}");
}

/// Bytes per second that arrive in two seconds of sending all the time, after one second.
fn goodput(path: Path, congestion: Congestion, seed: u64) -> f64 {
    let start = Instant::now();
    let mut net = Net::new(seed, start);
    let (there, back) = (net.link(path.clone()), net.link(Path { loss: 0.0, ..path }));
    let options = options(congestion);
    let [a, b] = Peer::pair(&options, seed, start, [u64::MAX, 0], |_| 60_000);
    net.pair((a, there), (b, back));
    net.run(Duration::from_secs(1), |_| false);
    let before = net.hosts[1].received_bytes;
    net.run(Duration::from_secs(2), |_| false);
    (net.hosts[1].received_bytes - before) as f64 / 2.0
}

#[test]
fn goodput_at_one_percent_of_loss() {
    // 40 Mbit/s and 10 ms round trip: 35 packets fill it; and a quick one, 100 Mbit/s and 0.4 ms.
    let far = Path::new(5e6, 5 * MS, 50e3);
    let near = Path::new(12.5e6, MS / 5, 64e3);
    for (name, path) in [("far", far), ("near", near)] {
        let rate = |loss| goodput(Path { loss, ..path.clone() }, Congestion::default(), 1);
        let whole = rate(0.0);
        assert!(whole > 0.8 * path.bytes_per_second, "{name}: {whole}");
        for (loss, least) in [(0.001, 0.7), (0.01, 0.7), (0.1, 0.05)] {
            let share = rate(loss) / whole;
            println!("{name}, loss {loss}: {share:.2} of lossless");
            assert!(share >= least, "{name}, loss {loss}: {share:.2} of lossless");
        }
    }
}

/// Short packets still come through, so nobody is silent; what is long never comes.
#[test]
fn a_path_that_got_narrower_ends_the_session() {
    let start = Instant::now();
    for (longest, ends) in [(usize::MAX, false), (1300, true)] {
        let mut net = Net::new(1, start);
        let (there, back) = (net.link(lan()), net.link(lan()));
        let [a, b] = Peer::pair(&SessionOptions::default(), 1, start, [u64::MAX, 0], |_| 5000);
        net.pair((a, there), (b, back));
        assert!(net.run(Duration::from_secs(5), |hosts| hosts[1].received > 100));
        net.path(there).longest = longest;
        let ended = |hosts: &mut [Peer]| !hosts[0].events.is_empty() && !hosts[1].events.is_empty();
        assert_eq!(net.run(Duration::from_secs(20), ended), ends);
        if ends {
            assert_eq!(net.hosts[0].events, [Event::Ended(End::PathMtu)]);
            assert!(matches!(net.hosts[1].events[..], [Event::Ended(End::PeerClosed { .. })]));
            let undone: Vec<_> = net.hosts[0].session.abandon().collect();
            assert!(!undone.is_empty(), "for another lane");
        }
    }
}

/// A long packet is lost, and nothing as long follows that could come through: the path is as wide as before.
#[test]
fn a_long_packet_that_was_lost_is_no_narrow_path() {
    // One that is sent again as long as it was, and one that held an acknowledgement besides: its copy is not long.
    for (len, bytes_back) in [(1400, 0), (1130, 1)] {
        for short_ones_follow in [false, true] {
            let start = Instant::now();
            let mut net = Net::new(1, start);
            let (there, back) = (net.link(lan()), net.link(lan()));
            let lengths: fn(u64) -> usize = if len == 1400 {
                |seq| if seq == 1 { 1400 } else { 10 }
            } else {
                |seq| if seq == 1 { 1130 } else { 10 }
            };
            let [a, b] = Peer::pair(&SessionOptions::default(), 1, start, [0, bytes_back], lengths);
            net.pair((a, there), (b, back));
            net.run(Duration::from_secs(1), |hosts| hosts[0].received == bytes_back);
            net.path(there).loss = 1.0;
            net.hosts[0].to_send = 1;
            net.run(10 * MS, |_| false);
            net.path(there).loss = 0.0;
            for _ in 0..30 {
                net.hosts[0].to_send += u64::from(short_ones_follow);
                net.run(Duration::from_secs(1), |_| false);
            }
            let [a, b] = &net.hosts[..] else { unreachable!() };
            assert!(a.events.is_empty() && b.events.is_empty(), "{len}: {:?} {:?}", a.events, b.events);
            assert_eq!((b.received, a.session.stats().lost_packets), (a.to_send, 1), "{len}");
        }
    }
}
