//! How long a receiver looks before it sleeps.

use std::time::{Duration, Instant};

use crate::options::{FIRST_SPIN, Polling};

/// So often in a row looking longer may be in vain.
const MISSES: u32 = 4;
/// Waits without looking after that, doubled each time it happens again at once.
const RESTS: (u32, u32) = (64, 1024);

/// A receiver's wait for one message, and what earlier ones have taught.
///
/// When both sides sleep, a round trip takes two wake-ups, and a side that looks for less never sees the answer come: it sleeps
/// again, and so does the other. So the time grows to what the last wait took, within the user's bound, and shrinks to the least
/// after a pause. Halt polling in KVM does the same (Documentation/virt/kvm/halt-polling.rst). Where longer looking
/// does not help, because the peer needs this very processor, it rests.
pub(super) struct Waiting {
    polling: Polling,
    /// So long it looks now.
    window: Duration,
    since: Option<Instant>,
    slept: bool,
    /// Waits in a row that ended soon after it had gone to sleep.
    misses: u32,
    /// Waits that it does not look.
    rest: u32,
    last_rest: u32,
}

impl Waiting {
    pub(super) fn new(polling: Polling) -> Self {
        let window = match polling {
            Polling::Adaptive { spin } => spin.min(FIRST_SPIN),
            Polling::Busy | Polling::Interrupt => Duration::ZERO,
        };
        Self { polling, window, since: None, slept: false, misses: 0, rest: 0, last_rest: 0 }
    }

    /// Whether it looks more than once before it sleeps.
    pub(super) fn spins(&self) -> bool {
        self.polling.spins()
    }

    /// Nothing has come: whether to look again soon instead of sleeping.
    pub(super) fn goes_on(&mut self, now: impl FnOnce() -> Instant) -> bool {
        match self.polling {
            Polling::Busy => return true,
            Polling::Interrupt => return false,
            Polling::Adaptive { .. } => {}
        }
        let now = now();
        let goes_on = now.saturating_duration_since(*self.since.get_or_insert(now)) < self.window;
        self.slept |= !goes_on;
        goes_on
    }

    /// A message has come, or the end.
    #[inline]
    pub(super) fn served(&mut self, now: impl FnOnce() -> Instant) {
        let Some(since) = self.since.take() else { return };
        let Polling::Adaptive { spin } = self.polling else { return };
        if std::mem::take(&mut self.slept) {
            self.learn(now().saturating_duration_since(since), spin);
        } else {
            (self.misses, self.last_rest) = (0, 0);
        }
    }

    /// It had gone to sleep.
    #[cold]
    fn learn(&mut self, waited: Duration, spin: Duration) {
        if waited.saturating_sub(self.window) > spin {
            // There was nothing to see for long.
            self.window = if self.rest > 0 { Duration::ZERO } else { FIRST_SPIN.min(spin) };
            return;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        self.misses += 1;
        if self.misses < MISSES {
            // Twice, since wake-ups are not all the same.
            self.window = self.window.max(2 * waited).min(spin);
        } else {
            self.last_rest = (2 * self.last_rest).clamp(RESTS.0, RESTS.1);
            (self.window, self.rest, self.misses) = (Duration::ZERO, self.last_rest, MISSES - 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// How long a receiver looks while it waits for so long, in steps of a microsecond.
    fn looks(waiting: &mut Waiting, start: Instant, wait: u32) -> u32 {
        let looked = (0..wait).take_while(|us| waiting.goes_on(|| start + *us * US)).count();
        waiting.served(|| start + wait * US);
        looked as u32
    }

    #[test]
    fn the_time_follows_the_traffic_within_its_bound() {
        let start = Instant::now();
        let mut waiting = Waiting::new(Polling::Adaptive { spin: 200 * US });
        assert_eq!(looks(&mut waiting, start, 10), 10);
        // An answer through two wake-ups: slept for once, seen coming the next time.
        assert_eq!(looks(&mut waiting, start, 80), 20);
        assert_eq!(looks(&mut waiting, start, 90), 90);
        assert_eq!(looks(&mut waiting, start, 10), 10);
        assert_eq!(looks(&mut waiting, start, 190), 160);
        assert_eq!(looks(&mut waiting, start, 199), 199, "never more than the bound");
        // A pause teaches that there is nothing to wait for.
        assert_eq!(looks(&mut waiting, start, 10_000), 200);
        assert_eq!(looks(&mut waiting, start, 10_000), 20);
    }

    #[test]
    fn looking_that_only_keeps_the_peer_from_running_stops() {
        let start = Instant::now();
        let mut waiting = Waiting::new(Polling::Adaptive { spin: 200 * US });
        // The answer comes five microseconds after this side has gone to sleep, whenever that is.
        let mut looked = Vec::new();
        for _ in 0..2_000 {
            let until = (0..).take_while(|us| waiting.goes_on(|| start + *us * US)).count() as u32;
            waiting.served(|| start + (until + 5) * US);
            looked.push(until);
        }
        assert_eq!(looked[..5], [20, 50, 110, 200, 0]);
        assert!(looked.iter().sum::<u32>() < 2_000, "less than a microsecond each in the end");
        // As soon as the peer has a processor of its own, that is found out.
        let found = (0..2_000).position(|_| looks(&mut waiting, start, 30) == 30);
        assert!(found.is_some());
        assert_eq!(looks(&mut waiting, start, 50), 50);
    }

    #[test]
    fn a_bound_below_the_first_time_holds() {
        let start = Instant::now();
        for (spin, looked) in [(0, 0), (5, 5)] {
            let mut waiting = Waiting::new(Polling::Adaptive { spin: spin * US });
            for _ in 0..3 {
                assert_eq!(looks(&mut waiting, start, 1_000), looked);
            }
        }
        assert_eq!(looks(&mut Waiting::new(Polling::Busy), start, 1_000), 1_000);
        assert_eq!(looks(&mut Waiting::new(Polling::Interrupt), start, 1_000), 0);
    }
}
