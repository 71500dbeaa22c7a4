//! Who receives: the engine's task, or somebody who spins. No I/O.
//!
//! Whoever spins receives for all, so the task need not be woken for what comes. But one look is no spinning: one who is served, and
//! then works for a while, would have all others wait for him. So the task believes it when each time that it is woken, so often in
//! a row, somebody has looked since the last time; then it leaves what comes to him for a while. After that it looks twice, with one
//! turn of the runtime in between, and goes on to leave it only if somebody has looked in there, or is at it.
//!
//! ```text
//! Receives --TURNS_LOOKED_AT in a row--> Leaves --LEAVES_IT_MS--> Asks --nobody has looked--> Receives
//!                                          ^                       |
//!                                          +--- somebody has ------+
//! ```
//!
//! Who goes to sleep says so, which ends it at once. Either the task sees that, or he sees that it is left to him, and wakes it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::limits::{LEAVES_IT_MS, TURNS_LOOKED_AT};

/// What those who spin tell.
#[derive(Default)]
pub(super) struct Looks {
    /// Looks were made; 0: who made the last one sleeps. Several who look at once count as one or more.
    made: AtomicU32,
    /// Somebody is at it.
    is_at_it: AtomicBool,
    /// What comes is left to them.
    is_left: AtomicBool,
}

impl Looks {
    #[inline]
    pub(super) fn begin(&self) {
        self.made.store(self.made.load(Relaxed).wrapping_add(1).max(1), Relaxed);
        self.is_at_it.store(true, Relaxed);
    }

    #[inline]
    pub(super) fn end(&self) {
        self.is_at_it.store(false, Relaxed);
    }

    /// Whoever looked waits to be woken. True: the task has left it to him, and is to be woken.
    pub(super) fn rest(&self) -> bool {
        self.made.store(0, SeqCst);
        self.is_left.load(SeqCst) && self.is_left.swap(false, SeqCst)
    }
}

/// What the task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Receive,
    /// Nothing, of what comes, until then.
    Leave(Instant),
    /// The same, and it comes again when the others on the runtime have had their turn.
    LeaveOnce,
}

#[derive(Debug, Clone, Copy)]
enum Stand {
    /// So often in a row somebody has looked since.
    Receives(u32),
    Leaves(Instant),
    Asks,
}

/// What the task remembers.
pub(super) struct Leaving {
    stand: Stand,
    /// Looks that were made when it last asked.
    seen: u32,
}

impl Leaving {
    pub(super) fn new() -> Self {
        Self { stand: Stand::Receives(0), seen: 0 }
    }

    /// Whether it has left what comes for a while, and looks whether it may go on so.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.stand, Stand::Asks)
    }

    pub(super) fn turn(&mut self, looks: &Looks, now: Instant) -> Turn {
        let made = looks.made.load(SeqCst);
        let is_looked_at = made != 0 && (made != self.seen || looks.is_at_it.load(Relaxed));
        let is_left = looks.is_left.load(SeqCst);
        self.stand = match self.stand {
            Stand::Receives(turns) if is_looked_at && turns + 1 >= TURNS_LOOKED_AT => self.leave(looks, now),
            Stand::Receives(turns) if is_looked_at => Stand::Receives(turns + 1),
            Stand::Leaves(until) if is_left && now < until => Stand::Leaves(until),
            Stand::Leaves(_) if is_left => Stand::Asks,
            Stand::Asks if is_left && is_looked_at => self.leave(looks, now),
            Stand::Receives(_) | Stand::Leaves(_) | Stand::Asks => Stand::Receives(0),
        };
        self.seen = made;
        match self.stand {
            Stand::Receives(_) => {
                if is_left {
                    looks.is_left.store(false, SeqCst);
                }
                Turn::Receive
            }
            Stand::Leaves(until) => Turn::Leave(until),
            Stand::Asks => Turn::LeaveOnce,
        }
    }

    /// Leaves it to those who look, unless the last of them has just gone to sleep.
    fn leave(&self, looks: &Looks, now: Instant) -> Stand {
        looks.is_left.store(true, SeqCst);
        if looks.made.load(SeqCst) == 0 {
            looks.is_left.store(false, SeqCst);
            return Stand::Receives(0);
        }
        Stand::Leaves(now + Duration::from_millis(LEAVES_IT_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Both {
        looks: Looks,
        task: Leaving,
        now: Instant,
    }

    impl Both {
        fn new() -> Self {
            Self { looks: Looks::default(), task: Leaving::new(), now: Instant::now() }
        }

        fn look(&self) {
            self.looks.begin();
            self.looks.end();
        }

        fn turn(&mut self) -> Turn {
            self.task.turn(&self.looks, self.now)
        }

        fn pass(&mut self) {
            self.now += Duration::from_millis(LEAVES_IT_MS);
        }

        /// With somebody who spins.
        fn left() -> Self {
            let mut both = Self::new();
            for _ in 1..TURNS_LOOKED_AT {
                both.look();
                assert_eq!(both.turn(), Turn::Receive);
            }
            both.look();
            assert!(matches!(both.turn(), Turn::Leave(_)));
            both
        }
    }

    #[test]
    fn it_is_left_to_one_who_spins_until_he_does_no_more() {
        let mut both = Both::left();
        for _ in 0..3 {
            assert!(matches!(both.turn(), Turn::Leave(until) if until > both.now));
            both.pass();
            both.look();
            assert_eq!(both.turn(), Turn::LeaveOnce);
            both.look();
            assert!(matches!(both.turn(), Turn::Leave(_)));
        }
        // He is at a look that takes long.
        both.pass();
        both.looks.begin();
        assert_eq!(both.turn(), Turn::LeaveOnce);
        assert!(matches!(both.turn(), Turn::Leave(_)));
        both.looks.end();
        // He has gone, and said nothing.
        both.pass();
        assert_eq!(both.turn(), Turn::LeaveOnce);
        assert_eq!(both.turn(), Turn::Receive);
        assert!(!both.looks.rest(), "nothing is left to anybody");
    }

    /// A hundred looks, then work: once in a while is not always.
    #[test]
    fn it_is_not_left_to_one_who_looks_now_and_then() {
        let mut both = Both::new();
        for _ in 0..3 * TURNS_LOOKED_AT {
            (0..100).for_each(|_| both.look());
            assert_eq!(both.turn(), Turn::Receive);
            assert_eq!(both.turn(), Turn::Receive);
        }
        let mut both = Both::left();
        both.pass();
        (0..100).for_each(|_| both.look());
        assert_eq!(both.turn(), Turn::LeaveOnce);
        assert_eq!(both.turn(), Turn::Receive);
    }

    #[test]
    fn one_who_goes_to_sleep_ends_it() {
        let mut both = Both::left();
        assert!(both.looks.rest(), "the task is to be woken");
        assert!(!both.looks.rest(), "once");
        assert_eq!(both.turn(), Turn::Receive);
        // In front of the task's decision.
        let mut both = Both::new();
        for _ in 0..3 * TURNS_LOOKED_AT {
            both.look();
            assert!(!both.looks.rest());
            assert_eq!(both.turn(), Turn::Receive);
        }
        // While it asks.
        let mut both = Both::left();
        both.pass();
        assert_eq!(both.turn(), Turn::LeaveOnce);
        assert!(both.looks.rest());
        assert_eq!(both.turn(), Turn::Receive);
    }
}
