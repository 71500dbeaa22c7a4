//! When to try a server again that could not be reached, or refused, with injected time.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The pause between the first two attempts to connect in the background; it doubles with every further one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// The longest pause between attempts to connect in the background, and how much longer than the last one a quiet time or a
/// connection must have been for the pauses to begin anew.
const MAX_BACK_OFF: Duration = Duration::from_secs(10);

/// Pauses from the beginning of one attempt to that of the next.
///
/// An attempt that succeeded counts as well: a server that takes connections only to end them is not asked any faster.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    attempts: u32,
    not_before: Option<Instant>,
}

impl BackOff {
    /// An attempt begins.
    pub(super) fn attempt(&mut self, now: Instant) {
        if self.not_before.is_some_and(|at| now >= at + MAX_BACK_OFF) {
            self.attempts = 0;
        }
        let pause = FIRST_BACK_OFF.saturating_mul(1 << self.attempts.min(16)).min(MAX_BACK_OFF);
        self.attempts = self.attempts.saturating_add(1);
        self.not_before = Some(now + shortened(pause));
    }

    /// When the next one may begin; `None`: now.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

/// How long a server that refuses calls is left alone.
///
/// A pause begins with the first refusal after the one before. What was answered after a pause was not refused, so that the next one is
/// short again; what is answered or refused during a pause was sent before it, and says nothing.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Saves those that are never refused the lock.
    any: AtomicBool,
    pauses: Mutex<BackOff>,
}

impl Refusals {
    /// Whether a pause begins.
    pub(super) fn refused(&self, now: Instant) -> bool {
        let mut pauses = self.pauses.lock();
        if pauses.not_before().is_some_and(|at| now < at) {
            return false;
        }
        pauses.attempt(now);
        self.any.store(true, Ordering::Release);
        true
    }

    pub(super) fn answered(&self, now: Instant) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        // One lock for both: a refusal in between would begin a pause that nobody keeps.
        let mut pauses = self.pauses.lock();
        if pauses.not_before().is_none_or(|at| now >= at) {
            *pauses = BackOff::default();
            self.any.store(false, Ordering::Release);
        }
    }

    /// Until when there is a pause, if there is one.
    pub(super) fn rest(&self, now: Instant) -> Option<Instant> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.pauses.lock().not_before().filter(|at| now < *at)
    }
}

/// By up to a fifth, at random: those whom a server has left don't all come back at the same moment.
fn shortened(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1000;
    pause - pause * random as u32 / 5000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew_after_a_quiet_time() {
        let (mut now, mut back_off) = (Instant::now(), BackOff::default());
        assert_eq!(back_off.not_before(), None);
        let expected = [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000];
        for expected in expected.map(Duration::from_millis) {
            back_off.attempt(now);
            let pause = back_off.not_before().unwrap() - now;
            assert!(pause <= expected && pause > expected * 4 / 5 - Duration::from_millis(1), "{pause:?}");
            now += pause;
        }
        // A little late is not quiet.
        for (late, expected) in [(5, 10_000), (10, 100)] {
            now += Duration::from_secs(late);
            back_off.attempt(now);
            let pause = back_off.not_before().unwrap() - now;
            assert!(pause <= Duration::from_millis(expected));
            assert!(pause > Duration::from_millis(expected / 2));
            now += pause;
        }
    }
}
