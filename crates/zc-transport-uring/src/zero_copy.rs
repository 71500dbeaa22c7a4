//! Whether large payloads to a peer are sent out of the memory itself. No I/O and no clock of its own.
//!
//! ```text
//! Probing --(each of ZERO_COPY_PROBES went without a copy)--> On
//!  |   ^                                                      |
//!  |   +--(the back-off is over)-- Resting <--(copied)--------+
//!  +-----------(copied)---------------^
//! ```
//!
//! Only the kernel knows whether it copies: loopback and veth always do, and a NIC may begin to (a route changes, somebody
//! captures packets). Then such a send costs more than an ordinary one, so a few tell, and the others go the ordinary way.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::net::{SocketAddrAny, getpeername, getsockname};

use crate::engine::Usage;
use crate::limits::{
    ZERO_COPY_MIN_BYTES, ZERO_COPY_PROBES, ZERO_COPY_REST_MAX_MS, ZERO_COPY_REST_MS, ZERO_COPY_SETTLED,
};

/// Whether payloads may be sent out of the memory itself.
///
/// ```
/// use zc_transport_uring::ZeroCopyMode;
///
/// assert_eq!(ZeroCopyMode::default(), ZeroCopyMode::Probe);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ZeroCopyMode {
    /// Where it is found to save a copy.
    #[default]
    Probe,
    /// All of them, even where the kernel then copies.
    Always,
    /// None.
    Never,
}

/// Where the other end of a socket is.
///
/// ```
/// use zc_transport_uring::PeerPlace;
///
/// let (here, _there) = std::os::unix::net::UnixStream::pair()?;
/// assert_eq!(PeerPlace::of(&here), PeerPlace::ThisHost);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerPlace {
    /// On this host, by its address: the kernel copies.
    ThisHost,
    /// Perhaps behind a device that reads memory itself.
    Elsewhere,
}

impl PeerPlace {
    /// By the addresses of a socket; what is not told counts as here.
    pub fn of(socket: &impl AsFd) -> Self {
        let peer = getpeername(socket).ok().and_then(|address| address.as_ref().and_then(ip));
        let own = getsockname(socket).ok().and_then(|address| ip(&address));
        match peer {
            Some(peer) if !peer.is_loopback() && Some(peer) != own => Self::Elsewhere,
            _ => Self::ThisHost,
        }
    }
}

fn ip(address: &SocketAddrAny) -> Option<IpAddr> {
    let address = SocketAddr::try_from(address.clone()).ok()?;
    Some(match address.ip() {
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
        ip => ip,
    })
}

/// Leave to send one payload out of the memory itself, whose outcome is then to be told.
///
/// ```
/// # use zc_transport_uring::{PeerPlace, Usage, ZeroCopyMode, ZeroCopyPolicy};
/// # let now = std::time::Instant::now();
/// let mut policy = ZeroCopyPolicy::new(ZeroCopyMode::Probe, PeerPlace::Elsewhere);
/// if let Some(attempt) = policy.attempt(1 << 20, now) {
///     policy.report(attempt, Usage::Copied, now);
/// }
/// assert!(policy.attempt(1 << 20, now).is_none());
/// ```
#[derive(Debug, PartialEq, Eq)]
#[must_use = "its outcome is to be reported"]
pub struct ZeroCopyAttempt {
    /// What was reported of an earlier time says nothing of now.
    round: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    Forced,
    /// So many may still be tried, and so many are still to go well. And when the last one was tried.
    Probing {
        left: u32,
        missing: u32,
        since: Option<Instant>,
    },
    On {
        clean: u32,
    },
    Resting {
        until: Instant,
    },
}

/// Decides for one peer. A lost report of an attempt keeps the policy from switching on until it has rested, never the other
/// way round.
///
/// ```
/// use std::time::Instant;
/// use zc_transport_uring::{PeerPlace, Usage, ZERO_COPY_PROBES, ZeroCopyMode, ZeroCopyPolicy};
///
/// let (mut policy, now) = (ZeroCopyPolicy::new(ZeroCopyMode::Probe, PeerPlace::Elsewhere), Instant::now());
/// for _ in 0..ZERO_COPY_PROBES {
///     let attempt = policy.attempt(1 << 20, now).unwrap();
///     policy.report(attempt, Usage::ZeroCopy, now);
/// }
/// assert!(policy.is_on());
/// assert!(policy.attempt(100, now).is_none(), "a copy of so little is cheaper");
/// ```
#[derive(Debug, Clone)]
pub struct ZeroCopyPolicy {
    state: State,
    round: u64,
    /// How long the next rest is.
    rest: Duration,
}

const FIRST_REST: Duration = Duration::from_millis(ZERO_COPY_REST_MS);
const LONGEST_REST: Duration = Duration::from_millis(ZERO_COPY_REST_MAX_MS);
const PROBING: State = State::Probing { left: ZERO_COPY_PROBES, missing: ZERO_COPY_PROBES, since: None };

impl ZeroCopyPolicy {
    /// For a peer of whom nothing is known but where it is.
    pub fn new(mode: ZeroCopyMode, peer: PeerPlace) -> Self {
        let state = match (mode, peer) {
            (ZeroCopyMode::Always, _) => State::Forced,
            (ZeroCopyMode::Never, _) | (_, PeerPlace::ThisHost) => State::Off,
            (ZeroCopyMode::Probe, PeerPlace::Elsewhere) => PROBING,
        };
        Self { state, round: 0, rest: FIRST_REST }
    }

    /// Whether nothing will ever be sent so.
    pub fn is_off(&self) -> bool {
        self.state == State::Off
    }

    /// Whether a large payload would be sent so now. Nothing is begun by asking.
    pub fn may_attempt(&self, now: Instant) -> bool {
        match self.state {
            State::Off => false,
            State::Forced | State::On { .. } => true,
            State::Probing { left, .. } => left > 0,
            State::Resting { until } => now >= until,
        }
    }

    /// Whether to send a payload of `len` bytes out of the memory itself.
    pub fn attempt(&mut self, len: usize, now: Instant) -> Option<ZeroCopyAttempt> {
        if self.state == State::Forced {
            return Some(ZeroCopyAttempt { round: self.round });
        }
        if len < ZERO_COPY_MIN_BYTES {
            return None;
        }
        match self.state {
            State::Resting { until } if now >= until => self.enter(PROBING),
            // Nobody tells of the others any more, or only after a long time.
            State::Probing { left: 0, since: Some(since), .. } if now >= since + self.rest => {
                self.rest = (self.rest * 2).min(LONGEST_REST);
                self.enter(PROBING);
            }
            _ => {}
        }
        let may = match &mut self.state {
            State::On { .. } => true,
            State::Probing { left: left @ 1.., since, .. } => {
                *left -= 1;
                *since = Some(now);
                true
            }
            _ => false,
        };
        may.then_some(ZeroCopyAttempt { round: self.round })
    }

    /// What became of one; [`Usage::Unused`] where that will never be known.
    pub fn report(&mut self, attempt: ZeroCopyAttempt, usage: Usage, now: Instant) {
        if attempt.round != self.round {
            return;
        }
        match (&mut self.state, usage) {
            (State::Probing { .. } | State::On { .. }, Usage::Copied) => {
                self.enter(State::Resting { until: now + self.rest });
                self.rest = (self.rest * 2).min(LONGEST_REST);
            }
            (State::Probing { missing, .. }, Usage::ZeroCopy) => {
                *missing -= 1;
                if *missing == 0 {
                    self.enter(State::On { clean: 0 });
                }
            }
            (State::Probing { left, .. }, Usage::Unused) => *left += 1,
            (State::On { clean }, Usage::ZeroCopy) => {
                *clean = clean.saturating_add(1);
                // One that goes on and off all the time rests longer and longer.
                if *clean == ZERO_COPY_SETTLED {
                    self.rest = FIRST_REST;
                }
            }
            _ => {}
        }
    }

    /// Whether all large payloads are sent so.
    pub fn is_on(&self) -> bool {
        matches!(self.state, State::On { .. } | State::Forced)
    }

    /// It can't be done here.
    pub(crate) fn give_up(&mut self) {
        self.enter(State::Off);
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.round += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const BIG: usize = 1 << 20;

    fn policy() -> ZeroCopyPolicy {
        ZeroCopyPolicy::new(ZeroCopyMode::Probe, PeerPlace::Elsewhere)
    }

    /// Sends `count` payloads, each reported at once; how many went out of the memory.
    fn send(policy: &mut ZeroCopyPolicy, count: u32, usage: Usage, now: Instant) -> u32 {
        let one = |_| policy.attempt(BIG, now).map(|attempt| policy.report(attempt, usage, now));
        (0..count).filter_map(one).count() as u32
    }

    #[test]
    fn goes_on_only_after_every_probe_went_well() {
        let (mut policy, now) = (policy(), Instant::now());
        assert_eq!(policy.attempt(ZERO_COPY_MIN_BYTES - 1, now), None);
        let attempts: Vec<_> = (0..ZERO_COPY_PROBES).map(|_| policy.attempt(BIG, now).unwrap()).collect();
        assert_eq!(
            (policy.attempt(BIG, now), policy.may_attempt(now)),
            (None, false),
            "as long as nothing is known"
        );
        for attempt in attempts {
            assert!(!policy.is_on());
            policy.report(attempt, Usage::ZeroCopy, now);
        }
        assert!(policy.is_on());
        assert_eq!(send(&mut policy, 1000, Usage::ZeroCopy, now), 1000);
    }

    #[test]
    fn one_copy_ends_it_and_later_it_is_tried_again_ever_more_rarely() {
        let (mut policy, mut now) = (policy(), Instant::now());
        let mut rest = FIRST_REST;
        for _ in 0..20 {
            assert!(policy.may_attempt(now));
            assert_eq!(send(&mut policy, 100, Usage::Copied, now), 1);
            assert!(!policy.may_attempt(now) && policy.may_attempt(now + rest));
            assert_eq!(send(&mut policy, 100, Usage::Copied, now + rest - Duration::from_nanos(1)), 0);
            now += rest;
            rest = (rest * 2).min(LONGEST_REST);
        }
        assert_eq!(rest, LONGEST_REST);
        // A device comes, and stays: the next rest is short again.
        assert_eq!(send(&mut policy, 1, Usage::Copied, now), 1);
        now += LONGEST_REST;
        let all = ZERO_COPY_PROBES + ZERO_COPY_SETTLED;
        assert_eq!(send(&mut policy, all, Usage::ZeroCopy, now), all);
        assert!(policy.is_on());
        assert_eq!(send(&mut policy, 10, Usage::Copied, now), 1);
        assert!(!policy.is_on());
        assert_eq!(send(&mut policy, 1, Usage::Copied, now + FIRST_REST), 1);
    }

    #[test]
    fn what_was_begun_earlier_says_nothing_of_now() {
        let (mut policy, now) = (policy(), Instant::now());
        let [late, first] = [(); 2].map(|()| policy.attempt(BIG, now).unwrap());
        policy.report(first, Usage::Copied, now);
        let now = now + FIRST_REST;
        let probe = policy.attempt(BIG, now).unwrap();
        policy.report(late, Usage::Copied, now);
        policy.report(probe, Usage::ZeroCopy, now);
        let left = ZERO_COPY_PROBES - 1;
        assert_eq!(send(&mut policy, 100, Usage::ZeroCopy, now), 100, "{left} probes, then on");
    }

    /// Whoever drops a send after its result will never know.
    #[test]
    fn lost_reports_do_not_end_it_for_ever() {
        let (mut policy, mut now) = (policy(), Instant::now());
        for rest in [FIRST_REST, FIRST_REST * 2] {
            let lost: Vec<_> = (0..100).filter_map(|_| policy.attempt(BIG, now)).collect();
            assert_eq!(lost.len() as u32, ZERO_COPY_PROBES);
            assert_eq!(policy.attempt(BIG, now + rest - Duration::from_nanos(1)), None);
            now += rest;
        }
        assert_eq!(send(&mut policy, 100, Usage::ZeroCopy, now), 100);
        assert!(policy.is_on());
    }

    #[test]
    fn what_failed_is_tried_again() {
        let (mut policy, now) = (policy(), Instant::now());
        assert_eq!(send(&mut policy, 50, Usage::Unused, now), 50);
        assert!(!policy.is_on());
        assert_eq!(send(&mut policy, ZERO_COPY_PROBES, Usage::ZeroCopy, now), ZERO_COPY_PROBES);
        assert!(policy.is_on());
    }

    #[test]
    fn is_off_here_and_as_told() {
        let now = Instant::now();
        for (mode, place, on) in [
            (ZeroCopyMode::Probe, PeerPlace::ThisHost, false),
            (ZeroCopyMode::Never, PeerPlace::Elsewhere, false),
            (ZeroCopyMode::Always, PeerPlace::ThisHost, true),
        ] {
            let mut policy = ZeroCopyPolicy::new(mode, place);
            assert_eq!(send(&mut policy, 10, Usage::Copied, now), if on { 10 } else { 0 });
            assert_eq!((policy.is_on(), policy.attempt(1, now).is_some()), (on, on));
            assert_eq!((policy.may_attempt(now), policy.is_off()), (on, !on));
        }
    }

    #[test]
    fn addresses_of_this_host_are_known() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(PeerPlace::of(&tcp), PeerPlace::ThisHost);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(PeerPlace::of(&file), PeerPlace::ThisHost);
        // Nothing is sent: such a socket only notes the address.
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect(udp.local_addr().unwrap()).unwrap();
        assert_eq!(PeerPlace::of(&udp), PeerPlace::ThisHost);
    }

    proptest! {
        /// Whatever the kernel does and however late it tells: of the sends that it copies only few go out of the memory.
        #[test]
        fn copies_are_few(steps in prop::collection::vec((0..400u64, any::<bool>(), 0..20usize), 0..400)) {
            let (mut policy, start) = (policy(), Instant::now());
            let (mut now, mut copied, mut turns_on) = (start, 0u64, 1u64);
            let mut awaited: VecDeque<(ZeroCopyAttempt, bool)> = VecDeque::new();
            for (ms, copies, late) in steps {
                now += Duration::from_millis(ms);
                let was_on = policy.is_on();
                if let Some(attempt) = policy.attempt(BIG, now) {
                    copied += u64::from(copies);
                    awaited.push_back((attempt, copies));
                }
                while awaited.len() > late {
                    let Some((attempt, copies)) = awaited.pop_front() else { break };
                    policy.report(attempt, if copies { Usage::Copied } else { Usage::ZeroCopy }, now);
                }
                turns_on += u64::from(policy.is_on() && !was_on);
            }
            let rests = 1 + (now - start).as_millis() as u64 / ZERO_COPY_REST_MS;
            let most = (rests + turns_on) * (u64::from(ZERO_COPY_PROBES) + 20);
            prop_assert!(copied <= most, "{copied} of {most}");
        }
    }
}
