//! What shall go wrong.

use std::time::Duration;

use crate::transport::LaneError;

/// When something happens: counted in data frames that crossed one end of a lane.
///
/// ```
/// use zc::testing::{After, FaultPlan};
///
/// let plan = FaultPlan::new(1).drop_after(After::Frames(3)); // the third frame is the last
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// After so many frames.
    Frames(u64),
    /// After so many payload bytes.
    Bytes(u64),
}

impl After {
    pub(super) fn has_come(self, frames: u64, bytes: u64) -> bool {
        match self {
            Self::Frames(n) => frames > n,
            Self::Bytes(n) => bytes > n,
        }
    }
}

/// What the lanes of a [`FaultTransport`](super::FaultTransport) do wrong; nothing until told.
///
/// Every chance is drawn from the seed, the number of the lane and its end: the same program with the same
/// plan sees the same faults.
///
/// ```
/// use std::time::Duration;
/// use zc::testing::{After, FaultPlan};
///
/// let plan = FaultPlan::new(42)
///     .delay(Duration::from_millis(1), Duration::from_millis(20)) // each frame, on its way in
///     .pending(4)                                                // every fourth poll or so is too early
///     .batch(1)                                                  // frames are handed out one by one
///     .drop_after(After::Bytes(1 << 20));                        // then the peer is gone
/// ```
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    pub(super) seed: u64,
    pub(super) delay: (Duration, Duration),
    pub(super) pending_one_in: u32,
    pub(super) batch: usize,
    pub(super) room: Option<(u64, Duration)>,
    pub(super) stall_sending: Option<(u64, Duration)>,
    pub(super) stall_receiving: Option<(u64, Duration)>,
    pub(super) late_reports: Duration,
    pub(super) refuse_alloc_one_in: u32,
    pub(super) fail: Option<(After, LaneError)>,
}

impl FaultPlan {
    /// No faults yet.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Every frame, records of the session included, arrives later by a time between these two; order stays.
    pub fn delay(mut self, least: Duration, most: Duration) -> Self {
        self.delay = (least, most.max(least));
        self
    }

    /// About one poll in `n` answers `Pending` and wakes its task at once; 0 turns it off.
    pub fn pending(mut self, one_in: u32) -> Self {
        self.pending_one_in = one_in;
        self
    }

    /// Hands out at most so many frames per poll; 0 means as many as there are.
    pub fn batch(mut self, frames: usize) -> Self {
        self.batch = frames;
        self
    }

    /// Has room for so many data frames in each stretch of time, and then says that there is none.
    pub fn room(mut self, frames: u64, per: Duration) -> Self {
        self.room = Some((frames, per));
        self
    }

    /// After so many data frames sent, nothing leaves for this time: not even a PONG.
    pub fn stall_sending(mut self, after_frames: u64, time: Duration) -> Self {
        self.stall_sending = Some((after_frames, time));
        self
    }

    /// After so many data frames received, nothing arrives for this time.
    pub fn stall_receiving(mut self, after_frames: u64, time: Duration) -> Self {
        self.stall_receiving = Some((after_frames, time));
        self
    }

    /// Tells of a finished send this much later.
    pub fn late_reports(mut self, by: Duration) -> Self {
        self.late_reports = by;
        self
    }

    /// About one `poll_alloc` in `n` finds the pool exhausted; 0 turns it off.
    pub fn refuse_alloc(mut self, one_in: u32) -> Self {
        self.refuse_alloc_one_in = one_in;
        self
    }

    /// The connection is cut, as if the peer's machine had gone.
    pub fn drop_after(self, after: After) -> Self {
        self.fail_after(after, LaneError::PeerGone("cut by a fault plan"))
    }

    /// The lane fails with this error. The peer's end sees its stream end.
    pub fn fail_after(mut self, after: After, error: LaneError) -> Self {
        self.fail = Some((after, error));
        self
    }
}
