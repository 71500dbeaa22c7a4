//! Congestion control: NewReno as RFC 9002 section 7 publishes it, and Westwood+, which differs in one step.
//!
//! NewReno halves its window at every loss. On a path that loses packets for other reasons than congestion, that keeps
//! it at about `1.2 / sqrt(loss)` packets a round trip, a dozen at 1 %. Westwood+ (Grieco and Mascolo, "Performance
//! evaluation and comparison of Westwood+, New Reno, and Vegas TCP congestion control", ACM CCR 34(2), 2004) sets the
//! window to what the path was measured to carry: the rate of acknowledged bytes times the shortest round trip. So a loss
//! empties the bottleneck's queue, and takes nothing where there was none. Two things differ
//! from the paper. The round trip counts for 9/8, since acknowledgements come in eighths of a window, and the window never
//! goes below NewReno's half: behind a deep queue, beside other traffic, both are the same.

use std::time::{Duration, Instant};

use super::limits::{INITIAL_WINDOW_PACKETS, MAX_WINDOW_PACKETS, MIN_WINDOW_PACKETS};

/// Which congestion control a session uses.
///
/// ```
/// use zc_transport_xdp::protocol::Congestion;
///
/// assert_eq!(Congestion::default(), Congestion::WestwoodPlus);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Congestion {
    /// RFC 9002, section 7.
    NewReno,
    /// The same, with the bandwidth estimate of Westwood+ after a loss: for paths that lose packets without congestion.
    #[default]
    WestwoodPlus,
}

/// Bytes of the most recent intervals, per second.
#[derive(Debug, Clone, Default)]
struct Bandwidth {
    since: Option<Instant>,
    bytes: u64,
    /// During this interval the application did not always have something to send.
    short_of_data: bool,
    per_second: f64,
}

impl Bandwidth {
    /// One sample for each round trip, smoothed.
    fn acknowledged(&mut self, now: Instant, bytes: u64, rtt: Duration, short_of_data: bool) {
        let since = *self.since.get_or_insert(now);
        self.bytes += bytes;
        self.short_of_data |= short_of_data;
        let elapsed = now.saturating_duration_since(since);
        if elapsed < rtt || elapsed.is_zero() {
            return;
        }
        let sample = self.bytes as f64 / elapsed.as_secs_f64();
        if sample > self.per_second || !self.short_of_data {
            let weight = if self.per_second == 0.0 { 1.0 } else { 0.125 };
            self.per_second += weight * (sample - self.per_second);
        }
        (self.since, self.bytes, self.short_of_data) = (Some(now), 0, false);
    }
}

/// What was acknowledged or lost, for the controller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) now: Instant,
    pub(super) smoothed_rtt: Duration,
    pub(super) min_rtt: Duration,
    /// The window was not the limit, so nothing is learnt of it.
    pub(super) short_of_data: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Controller {
    algorithm: Congestion,
    datagram: u64,
    window: u64,
    threshold: u64,
    /// Losses of packets sent before belong to a reduction that was made.
    recovery: Option<Instant>,
    /// Acknowledged since the window last grew by one packet.
    grown: u64,
    bandwidth: Bandwidth,
}

impl Controller {
    pub(super) fn new(algorithm: Congestion, datagram_bytes: usize) -> Self {
        let datagram = datagram_bytes as u64;
        Self {
            algorithm,
            datagram,
            window: INITIAL_WINDOW_PACKETS * datagram,
            threshold: u64::MAX,
            recovery: None,
            grown: 0,
            bandwidth: Bandwidth::default(),
        }
    }

    /// Bytes that may be in flight.
    #[inline]
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    pub(super) fn is_slow_start(&self) -> bool {
        self.window < self.threshold
    }

    /// All that one packet acknowledged.
    pub(super) fn bandwidth_sample(&mut self, path: &Path, bytes: u64) {
        self.bandwidth.acknowledged(path.now, bytes, path.smoothed_rtt, path.short_of_data);
    }

    /// A packet sent at `sent` was acknowledged.
    #[inline]
    pub(super) fn acknowledged(&mut self, path: &Path, sent: Instant, bytes: u64) {
        if path.short_of_data || self.recovery.is_some_and(|start| sent <= start) {
            return;
        }
        if self.is_slow_start() {
            self.window += bytes;
        } else {
            self.grown += bytes;
            if self.grown >= self.window {
                self.grown -= self.window;
                self.window += self.datagram;
            }
        }
        self.window = self.window.min(MAX_WINDOW_PACKETS * self.datagram);
    }

    /// A packet sent at `sent` was lost.
    pub(super) fn lost(&mut self, path: &Path, sent: Instant) {
        if self.recovery.is_some_and(|start| sent <= start) {
            return;
        }
        self.recovery = Some(path.now);
        self.grown = 0;
        let half = self.window / 2;
        let measured = match self.algorithm {
            Congestion::NewReno => 0,
            Congestion::WestwoodPlus => {
                (self.bandwidth.per_second * (path.min_rtt * 9 / 8).as_secs_f64()) as u64
            }
        };
        self.threshold = measured.clamp(half, self.window).max(self.floor());
        self.window = self.threshold;
    }

    /// Nothing came through for long (RFC 9002, 7.6).
    pub(super) fn persistent(&mut self) {
        self.window = self.floor();
        self.recovery = None;
    }

    fn floor(&self) -> u64 {
        MIN_WINDOW_PACKETS * self.datagram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn path(now: Instant) -> Path {
        Path { now, smoothed_rtt: 10 * MS, min_rtt: 10 * MS, short_of_data: false }
    }

    /// `rounds` full windows, each acknowledged 10 ms after it was sent.
    fn run(controller: &mut Controller, mut now: Instant, rounds: u32) -> Instant {
        for _ in 0..rounds {
            let sent = now;
            now += 10 * MS;
            for _ in 0..controller.window() / 1000 {
                controller.bandwidth_sample(&path(now), 1000);
                controller.acknowledged(&path(now), sent, 1000);
            }
        }
        now
    }

    #[test]
    fn doubles_then_adds_a_packet_a_round() {
        let mut controller = Controller::new(Congestion::NewReno, 1000);
        let now = run(&mut controller, Instant::now(), 3);
        assert_eq!(controller.window(), 80_000);
        controller.lost(&path(now), now);
        assert_eq!(controller.window(), 40_000);
        controller.lost(&path(now + MS), now - MS);
        assert_eq!(controller.window(), 40_000, "one reduction for one round");
        run(&mut controller, now + MS, 5);
        assert_eq!(controller.window(), 45_000);
        controller.persistent();
        assert_eq!(controller.window(), 2000);
    }

    #[test]
    fn westwood_keeps_what_the_path_carries() {
        let mut controller = Controller::new(Congestion::WestwoodPlus, 1000);
        let now = run(&mut controller, Instant::now(), 3);
        controller.lost(&path(now), now);
        let now = run(&mut controller, now + MS, 60);
        let before = controller.window();
        controller.lost(&path(now), now);
        assert!(controller.window() > before * 8 / 10, "{before} -> {}", controller.window());
        let queued = Path { min_rtt: 2 * MS, ..path(now) };
        let before = controller.window();
        controller.lost(&Path { now: now + MS, ..queued }, now + MS);
        assert_eq!(controller.window(), before / 2, "behind a queue, no less than NewReno");
    }

    #[test]
    fn what_is_not_used_does_not_grow() {
        let mut controller = Controller::new(Congestion::default(), 1000);
        let now = Instant::now();
        controller.acknowledged(&Path { short_of_data: true, ..path(now) }, now, 1000);
        assert_eq!(controller.window(), 10_000);
    }
}
