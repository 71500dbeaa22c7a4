//! Interfaces that were refused a moment ago.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zc_core::transport::Unavailable;

use super::interface::Key;
use crate::limits::{MAX_ENGINES, REFUSED_MS};

/// Why, until they are worth another try: to try takes as long as many connections.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Vec<(Key, Instant, Unavailable)>>);

impl Refusals {
    /// # Errors
    /// It was refused not long before `now`, and why.
    pub(super) fn check(&self, key: &Key, now: Instant) -> Result<(), Unavailable> {
        let mut all = self.0.lock();
        let age = Duration::from_millis(REFUSED_MS);
        all.retain(|(_, at, _)| now.saturating_duration_since(*at) < age);
        let found = all.iter().find(|(known, ..)| known == key);
        found.map_or(Ok(()), |(_, _, why)| Err(why.clone()))
    }

    pub(super) fn note(&self, key: Key, now: Instant, why: Unavailable) {
        let mut all = self.0.lock();
        all.retain(|(known, ..)| *known != key);
        if all.len() >= MAX_ENGINES {
            all.remove(0);
        }
        all.push((key, now, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_forgotten_after_a_while() {
        let (refusals, key, now) = (Refusals::default(), Key::here("eth9"), Instant::now());
        assert_eq!(refusals.check(&key, now), Ok(()));
        refusals.note(key.clone(), now, Unavailable::NoDevice);
        assert_eq!(refusals.check(&key, now), Err(Unavailable::NoDevice));
        assert_eq!(refusals.check(&Key::here("eth8"), now), Ok(()));
        assert_eq!(refusals.check(&key, now + Duration::from_millis(REFUSED_MS)), Ok(()));
        for _ in 0..2 * MAX_ENGINES {
            refusals.note(key.clone(), now, Unavailable::NoDevice);
        }
        assert_eq!(refusals.0.lock().len(), 1);
        for n in 0..2 * MAX_ENGINES {
            refusals.note(Key::here(&n.to_string()), now, Unavailable::NoDevice);
        }
        assert_eq!(refusals.0.lock().len(), MAX_ENGINES);
    }
}
