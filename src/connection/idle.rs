//! When a connection has carried no message for too long. Time is the caller's.

use std::time::{Duration, Instant};

use crate::time::later;

/// Looks are this part of the idle time apart, so the end comes at most that much late.
const LOOKS: u32 = 4;

/// Compares counters now and then, so that the message path knows nothing of it.
#[derive(Debug)]
pub(super) struct Idle {
    after: Duration,
    seen: (u64, u64),
    since: Instant,
    next: Instant,
}

impl Idle {
    pub(super) fn new(after: Duration, now: Instant) -> Self {
        Self { after, seen: (0, 0), since: now, next: later(now, after) }
    }

    pub(super) fn after(&self) -> Duration {
        self.after
    }

    /// When to look next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Looks; `counters` are messages received and sent, and `unseen`: it may be in use otherwise.
    pub(super) fn is_over(&mut self, counters: (u64, u64), unseen: bool, now: Instant) -> bool {
        if unseen || counters != self.seen {
            // When it was is not known, only that it was after the look before.
            self.seen = counters;
            self.since = now;
        }
        let over = now.saturating_duration_since(self.since) >= self.after;
        self.next = later(now, (self.after / LOOKS).max(Duration::from_millis(1)));
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_between_one_and_two_looks_after_the_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut idle = Idle::new(Duration::from_secs(8), start);
        assert!(!idle.is_due(at(7)) && idle.is_due(at(8)));
        assert!(!idle.is_over((1, 0), false, at(8)), "something came meanwhile");
        assert_eq!(idle.next(), at(10));
        assert!(!idle.is_over((1, 1), false, at(10)), "something went out");
        for seconds in [12, 14, 16] {
            assert!(!idle.is_over((1, 1), false, at(seconds)));
        }
        assert!(idle.is_over((1, 1), false, at(18)));
        assert!(!idle.is_over((1, 1), true, at(20)), "nobody knows");
        for seconds in [22, 24, 26] {
            assert!(!idle.is_over((1, 1), false, at(seconds)));
        }
        assert!(idle.is_over((1, 1), false, at(28)));
    }
}
