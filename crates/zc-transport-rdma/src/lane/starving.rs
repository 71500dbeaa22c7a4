//! Memory that could not be had, and who asks for it again. No I/O.
//!
//! ```text
//! half or drive: no memory --> the drive says when it is to be polled again --> asks again
//!                  '-- a half: has the drive woken, once
//! ```

use std::time::{Duration, Instant};

use crate::limits::REGISTER_MS;

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A record of the lane's own.
    Record,
    /// Payload that is copied.
    Copy,
    /// A message that is fetched.
    Fetch,
    /// What is read one-sidedly.
    OneSided,
}

/// What a lane waits for that nobody will wake it for.
#[derive(Debug, Default)]
pub(crate) struct Starving {
    /// Something could not be sent.
    sends: bool,
    /// What is to be fetched got memory that can't be registered.
    fetches: bool,
    /// Since when all memory was such, for each need.
    refused_since: [Option<Instant>; 4],
    /// The drive is polled now, was woken, or has said when to poll it.
    is_driven: bool,
}

impl Starving {
    /// All that waits is tried now.
    pub(crate) fn begin(&mut self) {
        self.sends = false;
    }

    /// There was no memory for something that is to be sent.
    pub(crate) fn send(&mut self) {
        self.sends = true;
    }

    /// Memory for something that is to be fetched is asked for now.
    pub(crate) fn begin_fetch(&mut self) {
        self.fetches = false;
    }

    pub(crate) fn fetches(&self) -> bool {
        self.fetches
    }

    /// There was memory that is registered; or none, which says nothing of what comes back.
    pub(crate) fn not_refused(&mut self, need: Need) {
        self.refused_since[need as usize] = None;
    }

    /// There was memory that can't be registered, which is as good as none: other memory may come back, or more may be locked.
    /// False: for too long.
    pub(crate) fn refused(&mut self, need: Need, now: Instant) -> bool {
        match need {
            Need::Fetch => self.fetches = true,
            Need::Record | Need::Copy | Need::OneSided => self.sends = true,
        }
        let since = *self.refused_since[need as usize].get_or_insert(now);
        now.saturating_duration_since(since) < Duration::from_millis(REGISTER_MS)
    }

    /// Whether the drive has to be woken, so that it asks again: nobody else will.
    pub(crate) fn calls_drive(&mut self) -> bool {
        (self.sends || self.fetches) && !std::mem::replace(&mut self.is_driven, true)
    }

    /// The drive is polled.
    pub(crate) fn drive_begins(&mut self) {
        self.is_driven = true;
    }

    /// It was. True if it has to be polled again in time.
    pub(crate) fn drive_ends(&mut self) -> bool {
        self.is_driven = self.sends || self.fetches;
        self.is_driven
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driven(starving: &mut Starving, finds_memory: bool) -> bool {
        starving.drive_begins();
        starving.begin();
        if !finds_memory {
            starving.send();
        }
        assert!(!starving.calls_drive(), "it is there");
        starving.drive_ends()
    }

    /// The driver polls the drive first, and only then the halves: a turn that ends with a half that starves must not be the last.
    #[test]
    fn the_drive_is_woken_once_by_whoever_starves_behind_it() {
        let mut starving = Starving::default();
        assert!(!driven(&mut starving, true));
        starving.begin();
        assert!(!starving.calls_drive());
        starving.send();
        assert!(starving.calls_drive());
        // Else the driver would turn without a pause: each time it polls the halves as well.
        assert!(!starving.calls_drive());
        for _ in 0..3 {
            assert!(driven(&mut starving, false));
            starving.begin();
            starving.send();
            assert!(!starving.calls_drive(), "the drive has a time");
        }
        assert!(!driven(&mut starving, true));
        starving.send();
        assert!(starving.calls_drive());
    }

    /// Locked memory that comes back in time costs a pause, and no connection.
    #[test]
    fn memory_that_is_not_registered_is_waited_for_as_long_as_said() {
        let (mut starving, start) = (Starving::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(starving.refused(Need::Copy, at(0)) && starving.calls_drive());
        assert!(starving.refused(Need::Copy, at(REGISTER_MS - 1)));
        starving.not_refused(Need::Record);
        assert!(!starving.refused(Need::Copy, at(REGISTER_MS)), "that was for something else");
        starving.not_refused(Need::Copy);
        assert!(starving.refused(Need::Copy, at(2 * REGISTER_MS)));
        starving.begin();
        assert!(!starving.drive_ends() && starving.refused(Need::Fetch, at(0)));
        starving.begin();
        assert!(starving.fetches() && starving.drive_ends(), "what is sent has nothing to do with it");
        starving.begin_fetch();
        assert!(!starving.fetches() && !starving.drive_ends());
    }
}
