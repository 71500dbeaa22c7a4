//! Deadlines.

use std::time::{Duration, Instant};

/// A deadline that never comes.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// `now + time`, however long that is: options may say `Duration::MAX` for never.
pub(crate) fn later(now: Instant, time: Duration) -> Instant {
    now.checked_add(time.min(FAR)).unwrap_or(now)
}
