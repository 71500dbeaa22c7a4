//! Regions that could not be registered, so that not every message tries again. No I/O.

use std::io;
use std::time::{Duration, Instant};

use zc_core::memory::{MemlockExceeded, RegionId, RegisterError};

use crate::limits::{MAX_REFUSED, REFUSED_MS};

/// Why a region could not be registered, as it is told again.
#[derive(Debug, Clone, Copy)]
enum Why {
    Memlock(MemlockExceeded),
    Errno(i32),
}

impl From<Why> for RegisterError {
    fn from(why: Why) -> Self {
        match why {
            Why::Memlock(exceeded) => Self::Memlock(exceeded),
            Why::Errno(errno) => Self::Os(io::Error::from_raw_os_error(errno)),
        }
    }
}

struct Refusal {
    region: RegionId,
    since: Instant,
    why: Why,
}

/// The last of them.
#[derive(Default)]
pub(super) struct Refusals(Vec<Refusal>);

impl Refusals {
    /// Why not, if it was tried not long ago.
    pub(super) fn of(&mut self, region: RegionId, now: Instant) -> Option<RegisterError> {
        let is_old = |since| now.saturating_duration_since(since) >= Duration::from_millis(REFUSED_MS);
        self.0.retain(|refusal| !is_old(refusal.since));
        self.0.iter().find(|refusal| refusal.region == region).map(|refusal| refusal.why.into())
    }

    /// It was tried in vain. What takes no system call to find out is not kept.
    pub(super) fn note(&mut self, region: RegionId, error: &RegisterError, now: Instant) {
        let why = match error {
            RegisterError::Memlock(exceeded) => Why::Memlock(*exceeded),
            RegisterError::Os(error) => match error.raw_os_error() {
                Some(errno) => Why::Errno(errno),
                None => return,
            },
            _ => return,
        };
        self.0.retain(|refusal| refusal.region != region);
        if self.0.len() >= MAX_REFUSED {
            self.0.remove(0);
        }
        self.0.push(Refusal { region, since: now, why });
    }

    /// Something was deregistered: there may be room now.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_again_until_it_is_old_or_there_is_room() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let exceeded = MemlockExceeded { need: 9, soft: 7, hard: 8 };
        refusals.note(RegionId(1), &RegisterError::Memlock(exceeded), start);
        refusals.note(RegionId(2), &io::Error::from_raw_os_error(libc::ENOMEM).into(), at(1));
        refusals.note(RegionId(3), &RegisterError::NotInGroup, at(1));
        let told = refusals.of(RegionId(1), at(REFUSED_MS - 1));
        assert!(matches!(told, Some(RegisterError::Memlock(of)) if of == exceeded), "{told:?}");
        assert!(refusals.of(RegionId(3), at(1)).is_none());
        assert!(refusals.of(RegionId(1), at(REFUSED_MS)).is_none(), "tried again");
        let told = refusals.of(RegionId(2), at(REFUSED_MS));
        assert!(matches!(told, Some(RegisterError::Os(of)) if of.raw_os_error() == Some(libc::ENOMEM)));
        refusals.forget();
        assert!(refusals.of(RegionId(2), at(REFUSED_MS)).is_none());
    }

    #[test]
    fn no_more_are_kept_than_the_bound() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        for id in 0..2 * MAX_REFUSED as u64 {
            refusals.note(RegionId(id), &io::Error::from_raw_os_error(libc::ENOMEM).into(), now);
            assert!(refusals.of(RegionId(id), now).is_some());
        }
        assert_eq!(refusals.0.len(), MAX_REFUSED);
    }
}
