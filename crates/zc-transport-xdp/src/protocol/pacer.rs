//! Pacing: a bucket of bytes that fills somewhat faster than the window per round trip (RFC 9002, 7.7).

use std::time::{Duration, Instant};

use super::limits::{GRANULARITY, MAX_BURST_PACKETS};

#[derive(Debug, Clone)]
pub(super) struct Pacer {
    datagram: f64,
    bytes: f64,
    at: Instant,
}

impl Pacer {
    pub(super) fn new(datagram_bytes: usize, now: Instant) -> Self {
        let datagram = datagram_bytes as f64;
        Self { datagram, bytes: datagram * MAX_BURST_PACKETS as f64, at: now }
    }

    /// When the next datagram may leave: `None` for now.
    #[inline]
    pub(super) fn ready(
        &mut self,
        now: Instant,
        window: u64,
        rtt: Duration,
        slow_start: bool,
    ) -> Option<Instant> {
        let gain = if slow_start { 2.0 } else { 1.25 };
        let per_second = gain * window as f64 / rtt.max(Duration::from_micros(1)).as_secs_f64();
        // Timers are no finer than that, so as much must fit.
        let most = (per_second * GRANULARITY.as_secs_f64()).max(self.datagram * MAX_BURST_PACKETS as f64);
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.bytes = (self.bytes + elapsed * per_second).min(most);
        self.at = self.at.max(now);
        if self.bytes >= self.datagram {
            return None;
        }
        let missing = Duration::from_secs_f64(((self.datagram - self.bytes) / per_second).min(1.0));
        Some(now + missing.max(Duration::from_nanos(1000)))
    }

    #[inline]
    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let (mut pacer, rtt) = (Pacer::new(1000, start), Duration::from_millis(100));
        let mut left = |now| {
            let mut packets = 0;
            while pacer.ready(now, 100_000, rtt, false).is_none() {
                pacer.sent(1000);
                packets += 1;
            }
            packets
        };
        assert_eq!(left(start), 10);
        assert_eq!(left(start), 0);
        let total: u32 = (1..=100).map(|ms| left(start + Duration::from_millis(ms))).sum();
        assert!((124..=126).contains(&total), "{total} packets in a round trip");
        assert_eq!(left(start + Duration::from_secs(10)), 10, "no credit for a pause");
    }
}
