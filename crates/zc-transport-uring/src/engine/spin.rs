//! Looking for completions instead of sleeping, within a budget of processor time. No clock of its own.

use std::time::{Duration, Instant};

/// How much an engine may look before it sleeps.
///
/// ```
/// use std::time::Duration;
/// use zc_transport_uring::Spin;
///
/// let spin = Spin { longest: Duration::from_micros(50), share_percent: 20 };
/// assert!(spin.share_percent <= 100);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spin {
    /// The longest that it looks without finding anything.
    pub longest: Duration,
    /// How much of the processor's time all this may take in the long run; up to 100.
    pub share_percent: u8,
}

/// What is left of it.
#[derive(Debug)]
pub(crate) struct SpinBudget {
    spin: Spin,
    /// Time that may be spent, nanoseconds; below 0 it was overdrawn.
    credit_ns: i64,
    last: Option<Instant>,
    /// Since when it has looked in vain.
    since: Option<Instant>,
}

impl SpinBudget {
    pub(crate) fn new(spin: Spin) -> Self {
        let share_percent = spin.share_percent.min(100);
        let spin = Spin { share_percent, ..spin };
        Self { spin, credit_ns: nanos(spin.longest), last: None, since: None }
    }

    /// Something was found, or it sleeps.
    pub(crate) fn stop(&mut self, now: Instant) {
        self.pass(now);
        self.since = None;
    }

    /// Nothing was found: whether to look on.
    pub(crate) fn may_look(&mut self, now: Instant) -> bool {
        self.pass(now);
        let since = *self.since.get_or_insert(now);
        let goes_on = now.saturating_duration_since(since) < self.spin.longest && self.credit_ns > 0;
        if !goes_on {
            self.since = None;
        }
        goes_on
    }

    fn pass(&mut self, now: Instant) {
        let passed = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        let passed = nanos(passed);
        let earned = passed.saturating_mul(self.spin.share_percent.into()) / 100;
        let spent = if self.since.is_some() { passed } else { 0 };
        self.credit_ns = (self.credit_ns.saturating_add(earned) - spent).min(nanos(self.spin.longest));
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// Always in vain: how many of `total` microseconds it looked.
    fn looked_us(spin: Spin, total: u32) -> u32 {
        let (mut budget, start, mut looked) = (SpinBudget::new(spin), Instant::now(), 0);
        for n in 0..total {
            let now = start + n * US;
            if budget.may_look(now) {
                looked += 1;
            } else {
                budget.stop(now);
            }
        }
        looked
    }

    #[test]
    fn stays_within_its_share_in_the_long_run() {
        for share_percent in [0, 10, 50] {
            let spin = Spin { longest: 100 * US, share_percent };
            let looked = looked_us(spin, 100_000);
            let allowed = 1_000 * u32::from(share_percent);
            assert!(looked <= allowed + 2 * 100, "{looked} of {allowed}");
            assert!(looked + 200 >= allowed / 2, "{looked} of {allowed}");
        }
    }

    #[test]
    fn one_look_is_bounded_and_finding_begins_anew() {
        let (mut budget, start) =
            (SpinBudget::new(Spin { longest: 50 * US, share_percent: 100 }), Instant::now());
        assert!(budget.may_look(start) && budget.may_look(start + 49 * US));
        assert!(!budget.may_look(start + 50 * US));
        assert!(budget.may_look(start + 51 * US));
        budget.stop(start + 60 * US);
        assert!(budget.may_look(start + 61 * US) && budget.may_look(start + 110 * US));
    }
}
