//! Which copies into the arena are streamed: by what both ways took lately.

use std::time::Duration;

use crate::limits::{
    STREAM_CLASSES, STREAM_MIN_BYTES, STREAM_TRIAL_BYTES, STREAM_TRIAL_COPIES_AT_FIRST,
    STREAM_TRIAL_COPIES_MAX, STREAM_TRIAL_COPIES_MIN,
};

/// How a copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `memcpy`.
    Plain,
    /// Past the caches.
    Streamed,
}

/// How the next copy is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) way: Way,
    /// Whether it is to be told how long it took.
    pub(super) timed: bool,
}

/// Chooses by the length of the copy: each power of two for itself, from [`STREAM_MIN_BYTES`] on.
///
/// ```text
/// copies of a class   p p p p ... p P S p p ... p P S s s ... s S P s
///                                   timed         timed: S took at most half of P twice of three times
/// ```
///
/// What streaming costs the reader the sender can't see: so it must gain far more than that, and its last three times
/// must say so by their median. One that was interrupted changes nothing.
#[derive(Debug, Default)]
pub(super) struct Chooser {
    classes: [Class; STREAM_CLASSES],
}

#[derive(Debug, Default)]
struct Class {
    streams: bool,
    /// Since the last trial of the other way.
    copies: u32,
    plain: Pace,
    streamed: Pace,
}

/// What the last three copies of a kind took, picoseconds per byte.
#[derive(Debug, Default)]
struct Pace {
    last: [u32; 3],
    /// How many were ever timed, up to where it no longer matters.
    times: u8,
}

impl Chooser {
    /// How the next copy of `len` bytes, at least [`STREAM_MIN_BYTES`], is to be made.
    pub(super) fn choose(&mut self, len: usize) -> Choice {
        let class = class_of(len);
        self.classes[class].choose(trial_copies(class))
    }

    /// How long a copy took that was to be timed.
    pub(super) fn took(&mut self, len: usize, way: Way, time: Duration) {
        let per_byte_ps = time.as_nanos().saturating_mul(1000) / len.max(1) as u128;
        self.classes[class_of(len)].took(way, u32::try_from(per_byte_ps).unwrap_or(u32::MAX));
    }
}

fn class_of(len: usize) -> usize {
    let class = (len / STREAM_MIN_BYTES).max(1).ilog2() as usize;
    class.min(STREAM_CLASSES - 1)
}

/// After how many copies of a class one is made the other way: what is seldom tried costs little, what is often tried is known
/// soon. Near and far change within seconds.
fn trial_copies(class: usize) -> u32 {
    let copies = STREAM_TRIAL_BYTES / (STREAM_MIN_BYTES << class);
    (copies as u32).clamp(STREAM_TRIAL_COPIES_MIN, STREAM_TRIAL_COPIES_MAX)
}

impl Class {
    /// Before each trial of the other way one copy of the usual one is timed, so that both are of the same moment.
    fn choose(&mut self, trial_copies: u32) -> Choice {
        let known = self.plain.is_known() && self.streamed.is_known();
        let every = if known { trial_copies } else { STREAM_TRIAL_COPIES_AT_FIRST };
        self.copies += 1;
        if self.copies < every {
            return Choice { way: self.way(), timed: self.copies == every - 1 };
        }
        self.copies = 0;
        let other = if self.streams { Way::Plain } else { Way::Streamed };
        Choice { way: other, timed: true }
    }

    fn took(&mut self, way: Way, per_byte_ps: u32) {
        match way {
            Way::Plain => self.plain.add(per_byte_ps),
            Way::Streamed => self.streamed.add(per_byte_ps),
        }
        if let (Some(plain), Some(streamed)) = (self.plain.median(), self.streamed.median()) {
            self.streams = streamed <= plain / 2;
        }
    }

    fn way(&self) -> Way {
        if self.streams { Way::Streamed } else { Way::Plain }
    }
}

impl Pace {
    fn add(&mut self, per_byte_ps: u32) {
        self.last.rotate_left(1);
        self.last[2] = per_byte_ps;
        self.times = self.times.saturating_add(1);
    }

    fn is_known(&self) -> bool {
        usize::from(self.times) >= self.last.len()
    }

    fn median(&self) -> Option<u32> {
        let [a, b, c] = self.last;
        self.is_known().then(|| a.max(b).min(c).max(a.min(b)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: usize = 1 << 20;

    /// A machine on which a byte takes so many picoseconds, plain and streamed.
    #[derive(Clone, Copy)]
    struct Machine(u64, u64);

    /// As when the lines are far: streaming takes a tenth.
    const FAR: Machine = Machine(500, 50);
    /// Streaming gains something, but not enough.
    const NEAR: Machine = Machine(60, 40);

    fn copy(chooser: &mut Chooser, len: usize, machine: Machine) -> Choice {
        let choice = chooser.choose(len);
        let per_byte_ps = if choice.way == Way::Plain { machine.0 } else { machine.1 };
        if choice.timed {
            chooser.took(len, choice.way, Duration::from_nanos(per_byte_ps * len as u64 / 1000));
        }
        choice
    }

    /// How many of so many copies were streamed, and how many timed.
    fn copies(chooser: &mut Chooser, n: u32, len: usize, machine: Machine) -> (u32, u32) {
        (0..n).fold((0, 0), |(streamed, timed), _| {
            let choice = copy(chooser, len, machine);
            (streamed + u32::from(choice.way == Way::Streamed), timed + u32::from(choice.timed))
        })
    }

    impl Chooser {
        fn class(&mut self, len: usize) -> &mut Class {
            &mut self.classes[class_of(len)]
        }
    }

    const FIRST: u32 = 3 * STREAM_TRIAL_COPIES_AT_FIRST;
    /// Of this length.
    const TRIAL_COPIES: u32 = (STREAM_TRIAL_BYTES / LEN) as u32;
    /// Copies after which two trials were made, wherever it begins.
    const TWO_TRIALS: u32 = 2 * TRIAL_COPIES;
    /// A hundred trials.
    const MANY: u32 = 100 * TRIAL_COPIES;

    #[test]
    fn it_streams_where_that_gains_much() {
        let mut chooser = Chooser::default();
        assert_eq!(copies(&mut chooser, FIRST, LEN, FAR), (3, 6));
        assert_eq!(copies(&mut chooser, MANY, LEN, FAR), (MANY - 100, 200));
    }

    #[test]
    fn it_does_not_where_that_gains_little() {
        let mut chooser = Chooser::default();
        assert_eq!(copies(&mut chooser, FIRST, LEN, NEAR), (3, 6));
        assert_eq!(copies(&mut chooser, MANY, LEN, NEAR), (100, 200));
    }

    #[test]
    fn trials_are_bounded_by_bytes_and_copies() {
        let of = |len: usize| trial_copies(class_of(len));
        assert_eq!(
            (of(STREAM_MIN_BYTES), of(LEN), of(10 * LEN)),
            (STREAM_TRIAL_COPIES_MAX, TRIAL_COPIES, STREAM_TRIAL_COPIES_MIN)
        );
    }

    #[test]
    fn half_the_time_is_enough_and_more_is_not() {
        for (machine, streams) in [(Machine(100, 50), true), (Machine(100, 51), false)] {
            let mut chooser = Chooser::default();
            copies(&mut chooser, FIRST, LEN, machine);
            assert_eq!(chooser.class(LEN).streams, streams);
        }
    }

    #[test]
    fn it_follows_the_machine_there_and_back() {
        let mut chooser = Chooser::default();
        copies(&mut chooser, FIRST, LEN, NEAR);
        for (machine, streamed) in [(FAR, MANY - 100), (NEAR, 100), (FAR, MANY - 100), (NEAR, 100)] {
            copies(&mut chooser, TWO_TRIALS, LEN, machine);
            assert_eq!(copies(&mut chooser, MANY, LEN, machine).0, streamed);
        }
    }

    #[test]
    fn one_that_was_interrupted_changes_nothing() {
        for (machine, streams) in [(FAR, true), (NEAR, false)] {
            for slow in [Way::Plain, Way::Streamed] {
                let mut chooser = Chooser::default();
                copies(&mut chooser, FIRST, LEN, machine);
                chooser.took(LEN, slow, Duration::from_secs(1));
                for _ in 0..MANY {
                    assert_eq!(chooser.class(LEN).streams, streams);
                    copy(&mut chooser, LEN, machine);
                }
            }
        }
    }

    #[test]
    fn classes_are_apart() {
        let mut chooser = Chooser::default();
        let lens: Vec<usize> = (0..STREAM_CLASSES).map(|class| STREAM_MIN_BYTES << class).collect();
        for (class, len) in lens.iter().enumerate() {
            let machine = if class % 2 == 0 { FAR } else { NEAR };
            copies(&mut chooser, FIRST, *len, machine);
            copies(&mut chooser, 2 * trial_copies(class), 2 * len - 1, machine);
        }
        for (class, len) in lens.iter().enumerate() {
            assert_eq!(chooser.class(*len).streams, class % 2 == 0, "{len}");
            assert_eq!(chooser.class(2 * len - 1).streams, class % 2 == 0, "{len}");
        }
        // What is longer still is of the last one.
        assert!(std::ptr::eq(chooser.class(usize::MAX), chooser.class(lens[STREAM_CLASSES - 1])));
    }

    proptest! {
        /// Whatever the clock says, one of so many copies is made the other way, and two are timed.
        #[test]
        fn it_never_stops_trying(times in prop::collection::vec(any::<u64>(), 1..200)) {
            let (mut chooser, mut since, mut times) = (Chooser::default(), 0, times.iter().cycle());
            for _ in 0..10 * TRIAL_COPIES {
                let usual = chooser.class(LEN).way();
                let choice = chooser.choose(LEN);
                since = if choice.way == usual { since + 1 } else { 0 };
                prop_assert!(since < TRIAL_COPIES);
                prop_assert!(choice.timed || choice.way == usual);
                if choice.timed {
                    chooser.took(LEN, choice.way, Duration::from_nanos(*times.next().unwrap()));
                }
            }
        }
    }
}
