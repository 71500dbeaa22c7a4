//! How often a peer may have us make a queue pair: each is a dozen calls of the device's, which others of the engine wait for.

use std::time::{Duration, Instant};

use crate::limits::MAX_ROUNDS_PER_SECOND;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Rounds {
    since: Option<Instant>,
    begun: u32,
}

impl Rounds {
    /// Whether another one begins now.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= SECOND) {
            (self.since, self.begun) = (Some(now), 0);
        }
        let may_begin = self.begun < MAX_ROUNDS_PER_SECOND;
        self.begun += u32::from(may_begin);
        may_begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_a_second_and_no_more() {
        let (mut rounds, start) = (Rounds::default(), Instant::now());
        for second in 0..3 {
            let now = start + second * SECOND;
            for _ in 0..MAX_ROUNDS_PER_SECOND {
                assert!(rounds.begin(now + SECOND / 4));
            }
            assert!(!rounds.begin(now + SECOND / 4) && !rounds.begin(now + SECOND));
        }
    }
}
