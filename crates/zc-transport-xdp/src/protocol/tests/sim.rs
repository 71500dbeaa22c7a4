//! A network in simulated time: links with a rate, a queue, delay and faults, the same for the same seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// One direction of a path.
#[derive(Clone)]
pub(super) struct Path {
    pub(super) bytes_per_second: f64,
    pub(super) delay: Duration,
    pub(super) queue_bytes: f64,
    pub(super) loss: f64,
    pub(super) duplication: f64,
    pub(super) corruption: f64,
    /// Longer datagrams are lost.
    pub(super) longest: usize,
    /// Held back for up to so long.
    pub(super) reordering: f64,
    pub(super) held: Duration,
}

impl Path {
    pub(super) fn new(bytes_per_second: f64, delay: Duration, queue_bytes: f64) -> Self {
        let (loss, duplication, corruption, reordering) = (0.0, 0.0, 0.0, 0.0);
        let held = delay;
        Self {
            bytes_per_second,
            delay,
            queue_bytes,
            loss,
            duplication,
            corruption,
            longest: usize::MAX,
            reordering,
            held,
        }
    }
}

struct Link {
    path: Path,
    free_at: Instant,
}

/// Somebody at one end.
pub(super) trait Host {
    fn arrive(&mut self, now: Instant, datagram: Vec<u8>);
    fn timeout(&self) -> Option<Instant>;
    /// Does what is due, and says what to send.
    fn poll(&mut self, now: Instant, out: &mut Vec<Vec<u8>>);
}

struct Node {
    link: usize,
    peer: usize,
}

/// When, a number for the order among equals, to whom, what.
type Arrival = (Instant, u64, usize, Vec<u8>);

pub(super) struct Net<H> {
    pub(super) hosts: Vec<H>,
    nodes: Vec<Node>,
    links: Vec<Link>,
    on_the_way: BinaryHeap<Reverse<Arrival>>,
    count: u64,
    rng: Rng,
    pub(super) start: Instant,
    pub(super) now: Instant,
}

impl<H: Host> Net<H> {
    pub(super) fn new(seed: u64, start: Instant) -> Self {
        Self {
            hosts: Vec::new(),
            nodes: Vec::new(),
            links: Vec::new(),
            on_the_way: BinaryHeap::new(),
            count: 0,
            rng: Rng(seed),
            start,
            now: start,
        }
    }

    pub(super) fn link(&mut self, path: Path) -> usize {
        self.links.push(Link { path, free_at: self.start });
        self.links.len() - 1
    }

    pub(super) fn path(&mut self, link: usize) -> &mut Path {
        &mut self.links[link].path
    }

    /// Two hosts, and the links that they send over.
    pub(super) fn pair(&mut self, a: (H, usize), b: (H, usize)) -> usize {
        let first = self.hosts.len();
        for ((host, link), peer) in [(a, first + 1), (b, first)] {
            self.hosts.push(host);
            self.nodes.push(Node { link, peer });
        }
        first
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Runs until `done` says so, or until the time is over; whether it was `done`.
    pub(super) fn run(&mut self, time: Duration, mut done: impl FnMut(&mut [H]) -> bool) -> bool {
        let end = self.now + time;
        (0..self.hosts.len()).for_each(|host| self.poll(host));
        loop {
            if done(&mut self.hosts) {
                return true;
            }
            let timers = self.hosts.iter().enumerate();
            let timer = timers.filter_map(|(host, h)| Some((h.timeout()?, host))).min();
            let arrival = self.on_the_way.peek().map(|Reverse(next)| next.0);
            let at = [timer.map(|(at, _)| at), arrival].into_iter().flatten().min();
            let Some(at) = at.filter(|at| *at <= end) else {
                self.now = end;
                return false;
            };
            self.now = self.now.max(at);
            let host = if arrival == Some(at) {
                let Some(Reverse((_, _, host, datagram))) = self.on_the_way.pop() else { continue };
                self.hosts[host].arrive(self.now, datagram);
                host
            } else {
                timer.unwrap().1
            };
            self.poll(host);
        }
    }

    fn poll(&mut self, host: usize) {
        let mut out = Vec::new();
        self.hosts[host].poll(self.now, &mut out);
        out.into_iter().for_each(|datagram| self.transmit(host, datagram));
    }

    fn transmit(&mut self, host: usize, mut datagram: Vec<u8>) {
        let Node { link, peer } = self.nodes[host];
        let Link { path, free_at } = &mut self.links[link];
        if datagram.len() > path.longest {
            return;
        }
        let begin = self.now.max(*free_at);
        let queued = (begin - self.now).as_secs_f64() * path.bytes_per_second;
        if queued + datagram.len() as f64 > path.queue_bytes || self.rng.chance(path.loss) {
            return;
        }
        *free_at = begin + Duration::from_secs_f64(datagram.len() as f64 / path.bytes_per_second);
        let mut at = *free_at + path.delay;
        let path = path.clone();
        if self.rng.chance(path.reordering) {
            at += Duration::from_nanos(self.rng.below(path.held.as_nanos() as u64));
        }
        if self.rng.chance(path.duplication) {
            let again = at + Duration::from_nanos(self.rng.below(path.delay.as_nanos() as u64));
            self.deliver(again, peer, datagram.clone());
        }
        if self.rng.chance(path.corruption) {
            let bit = self.rng.below(datagram.len() as u64 * 8);
            datagram[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
        self.deliver(at, peer, datagram);
    }

    pub(super) fn deliver(&mut self, at: Instant, host: usize, datagram: Vec<u8>) {
        self.count += 1;
        self.on_the_way.push(Reverse((at, self.count, host, datagram)));
    }
}
