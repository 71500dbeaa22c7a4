//! Whether the device goes on with what it has. No I/O.
//!
//! Devices end what nobody acknowledges. One that does not would keep operations for ever: messages, and so keepalive, go on beside
//! them. The clock is not read for an operation, only when it is time to see whether any has ended since.

use std::time::{Duration, Instant};

use crate::limits::{STANDSTILL_BYTES_PER_MS, STANDSTILL_MS};

#[derive(Default)]
pub(super) struct Standstill {
    /// Requests that have ended.
    ended: u64,
    watch: Option<Watch>,
}

struct Watch {
    until: Instant,
    /// Those that had when it began, while the device had something.
    ended: u64,
}

impl Standstill {
    pub(super) fn ended(&mut self) {
        self.ended = self.ended.wrapping_add(1);
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    /// When to look again, if ever; none if nothing has ended for too long. `in_device` is how many bytes the device has to move, if it has
    /// anything.
    pub(super) fn look(&mut self, in_device: Option<usize>, now: Instant) -> Option<Option<Instant>> {
        if let Some(watch) = self.watch.as_ref().filter(|watch| now < watch.until) {
            return Some(Some(watch.until));
        }
        let before = self.watch.take();
        let Some(bytes) = in_device else { return Some(None) };
        if before.is_some_and(|watch| watch.ended == self.ended) {
            return None;
        }
        let more_ms = (bytes / STANDSTILL_BYTES_PER_MS) as u64;
        let until = now + Duration::from_millis(STANDSTILL_MS.saturating_add(more_ms));
        self.watch = Some(Watch { until, ended: self.ended });
        Some(Some(until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_device_that_ends_nothing_is_found_out() {
        let (mut standstill, start) = (Standstill::default(), Instant::now());
        let until = start + ms(STANDSTILL_MS);
        assert_eq!(standstill.look(Some(8), start), Some(Some(until)));
        assert_eq!(standstill.look(Some(8), until - ms(1)), Some(Some(until)), "it is not over yet");
        assert_eq!(standstill.look(Some(8), until), None);
    }

    #[test]
    fn one_that_ends_something_goes_on() {
        let (mut standstill, start) = (Standstill::default(), Instant::now());
        let until = start + ms(STANDSTILL_MS);
        standstill.look(Some(8), start);
        standstill.ended();
        assert_eq!(standstill.look(Some(8), until), Some(Some(until + ms(STANDSTILL_MS))));
        // Nothing is left, and nobody has to look.
        standstill.ended();
        let later = until + ms(STANDSTILL_MS);
        assert_eq!((standstill.look(None, later), standstill.is_watched()), (Some(None), false));
        // What comes long after that has all the time.
        let much_later = later + ms(100 * STANDSTILL_MS);
        assert_eq!(standstill.look(Some(8), much_later), Some(Some(much_later + ms(STANDSTILL_MS))));
    }

    #[test]
    fn long_ones_have_longer() {
        let (mut standstill, start) = (Standstill::default(), Instant::now());
        let until = standstill.look(Some(100 * STANDSTILL_BYTES_PER_MS), start);
        assert_eq!(until, Some(Some(start + ms(STANDSTILL_MS + 100))));
        assert_eq!(Standstill::default().look(None, start), Some(None));
    }
}
