//! Round-trip times and the probe timeout, as RFC 9002 sections 5 and 6.2 say.

use std::time::Duration;

use super::limits::{GRANULARITY, INITIAL_RTT};

#[derive(Debug, Clone)]
pub(super) struct Rtt {
    latest: Duration,
    smoothed: Duration,
    variation: Duration,
    min: Option<Duration>,
}

impl Rtt {
    pub(super) fn new() -> Self {
        Self { latest: INITIAL_RTT, smoothed: INITIAL_RTT, variation: INITIAL_RTT / 2, min: None }
    }

    /// A packet was acknowledged `latest` after it had been sent; the peer says that it waited `ack_delay` of it.
    pub(super) fn sample(&mut self, latest: Duration, ack_delay: Duration) {
        self.latest = latest;
        let Some(min) = self.min else {
            (self.min, self.smoothed, self.variation) = (Some(latest), latest, latest / 2);
            return;
        };
        let min = min.min(latest);
        self.min = Some(min);
        let adjusted = if latest >= min + ack_delay { latest - ack_delay } else { latest };
        self.variation = (3 * self.variation + self.smoothed.abs_diff(adjusted)) / 4;
        self.smoothed = (7 * self.smoothed + adjusted) / 8;
    }

    pub(super) fn is_measured(&self) -> bool {
        self.min.is_some()
    }

    pub(super) fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// The shortest so far.
    pub(super) fn min(&self) -> Duration {
        self.min.unwrap_or(self.smoothed)
    }

    /// How long after a packet that was acknowledged an earlier one counts as lost.
    pub(super) fn loss_delay(&self) -> Duration {
        (self.smoothed.max(self.latest) * 9 / 8).max(GRANULARITY)
    }

    /// After this time without an acknowledgement the peer is probed.
    pub(super) fn probe_timeout(&self, max_ack_delay: Duration) -> Duration {
        self.smoothed + (4 * self.variation).max(GRANULARITY) + max_ack_delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_rfc() {
        let ms = Duration::from_millis;
        let mut rtt = Rtt::new();
        rtt.sample(ms(80), ms(30));
        assert_eq!((rtt.smoothed(), rtt.variation, rtt.min()), (ms(80), ms(40), ms(80)));
        rtt.sample(ms(120), ms(40)); // adjusted to 80
        assert_eq!((rtt.smoothed(), rtt.variation), (ms(80), ms(30)));
        rtt.sample(ms(100), ms(50)); // less than min + delay: as it is
        assert_eq!(
            (rtt.smoothed(), rtt.variation),
            (Duration::from_micros(82_500), Duration::from_micros(27_500))
        );
        assert_eq!(rtt.loss_delay(), ms(100) * 9 / 8);
        assert_eq!(rtt.probe_timeout(ms(5)), Duration::from_micros(82_500 + 110_000 + 5_000));
    }
}
