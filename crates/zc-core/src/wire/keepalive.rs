//! Liveness: when to ping, and when to give a silent peer up. Time is the caller's.

use std::time::{Duration, Instant};

/// The shortest interval and timeout; shorter ones are raised to it.
pub const MIN_KEEPALIVE: Duration = Duration::from_millis(1);
/// The longest interval and timeout; longer ones are cut to it.
pub const MAX_KEEPALIVE: Duration = Duration::from_secs(24 * 3600);

/// What to do now.
///
/// ```
/// use zc_core::wire::KeepaliveAction;
///
/// match KeepaliveAction::SendPing(1) {
///     KeepaliveAction::Idle(until) => println!("ask again at {until:?}"),
///     KeepaliveAction::SendPing(nonce) => assert_eq!(nonce, 1),
///     KeepaliveAction::Dead => println!("end the connection"),
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepaliveAction {
    /// Nothing before this time.
    Idle(Instant),
    /// Send a PING with this nonce, then poll again.
    SendPing(u64),
    /// The peer did not answer in time.
    Dead,
}

/// Pings after `interval` of silence, and gives up `timeout` after the ping.
///
/// ```
/// use std::time::{Duration, Instant};
/// use zc_core::wire::{Keepalive, KeepaliveAction};
///
/// let (second, start) = (Duration::from_secs(1), Instant::now());
/// let mut keepalive = Keepalive::new(15 * second, 5 * second, start);
/// assert_eq!(keepalive.poll(start), KeepaliveAction::Idle(start + 15 * second));
/// assert_eq!(keepalive.poll(start + 15 * second), KeepaliveAction::SendPing(1));
/// assert_eq!(keepalive.poll(start + 20 * second), KeepaliveAction::Dead);
/// ```
#[derive(Debug, Clone)]
pub struct Keepalive {
    interval: Duration,
    timeout: Duration,
    last_rx: Instant,
    waiting_since: Option<Instant>,
    last_ping: Option<(u64, Instant)>,
    next_nonce: u64,
}

impl Keepalive {
    /// Starts at `now`, which counts as the last time something was heard.
    pub fn new(interval: Duration, timeout: Duration, now: Instant) -> Self {
        Self {
            interval: interval.clamp(MIN_KEEPALIVE, MAX_KEEPALIVE),
            timeout: timeout.clamp(MIN_KEEPALIVE, MAX_KEEPALIVE),
            last_rx: now,
            waiting_since: None,
            last_ping: None,
            next_nonce: 1,
        }
    }

    /// Something, anything, came from the peer.
    pub fn on_rx(&mut self, now: Instant) {
        self.last_rx = self.last_rx.max(now);
        self.waiting_since = None;
    }

    /// A PONG came; the round trip, if it answers the last ping.
    pub fn on_pong(&mut self, nonce: u64, now: Instant) -> Option<Duration> {
        self.on_rx(now);
        let (sent, at) = self.last_ping?;
        if sent != nonce {
            return None;
        }
        self.last_ping = None;
        Some(now.saturating_duration_since(at))
    }

    /// What to do at `now`.
    pub fn poll(&mut self, now: Instant) -> KeepaliveAction {
        if let Some(since) = self.waiting_since {
            let end = since + self.timeout;
            return if now >= end { KeepaliveAction::Dead } else { KeepaliveAction::Idle(end) };
        }
        let due = self.last_rx + self.interval;
        if now < due {
            return KeepaliveAction::Idle(due);
        }
        let nonce = self.next_nonce;
        self.next_nonce = self.next_nonce.wrapping_add(1);
        self.waiting_since = Some(now);
        self.last_ping = Some((nonce, now));
        KeepaliveAction::SendPing(nonce)
    }
}
