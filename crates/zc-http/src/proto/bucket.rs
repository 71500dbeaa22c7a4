//! A bound on how often, with injected time.

use std::time::{Duration, Instant};

/// A token bucket.
pub(super) struct Bucket {
    burst: u32,
    per_s: u32,
    used: u32,
    since: Option<Instant>,
}

impl Bucket {
    pub(super) fn new(burst: u32, per_s: u32) -> Self {
        Self { burst, per_s, used: 0, since: None }
    }

    /// False when it happened too often.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let refill = now.saturating_duration_since(since).as_secs_f64() * f64::from(self.per_s);
        if refill >= 1.0 {
            let whole = refill as u32;
            self.used = self.used.saturating_sub(whole);
            // What is less than a token stays on the clock.
            let spent = Duration::from_secs_f64(f64::from(whole) / f64::from(self.per_s.max(1)));
            self.since = Some(if self.used == 0 { now } else { since + spent });
        }
        if self.used >= self.burst {
            return false;
        }
        self.used += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, 10);
        assert!((0..3).all(|_| bucket.take(start)));
        assert!(!bucket.take(start));
        assert!(!bucket.take(start + Duration::from_millis(50)));
        assert!(bucket.take(start + Duration::from_millis(110)));
        assert!(!bucket.take(start + Duration::from_millis(110)));
        let later = start + Duration::from_secs(60);
        assert!((0..3).all(|_| bucket.take(later)));
        assert!(!bucket.take(later));
    }
}
