//! The data plane of one connection.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use smallvec::SmallVec;

use super::{AllocFailure, Caps, ControlLink, LaneError, SendRejected};
use crate::memory::{LeaseBudget, Message, PinnedBufMut};

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A message of the application.
    Data,
    /// A record of the session layer ([`crate::wire::SessionRecord`]). It needs no credit, so that
    /// a sender short of credit can still acknowledge and answer.
    Session,
}

/// The unit that a lane moves: whole, in order, once.
#[derive(Debug)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// The sender asks for a session acknowledgement ([`Completion::Delivered`]).
    pub ack: bool,
    /// Sequence number, from 1 for data, 0 for session records. The lane carries it unchanged.
    pub seq: u64,
    /// The bytes.
    pub payload: Message,
}

/// When a send counts as complete; compare libfabric's INJECT, TRANSMIT and DELIVERY_COMPLETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Completion {
    /// The lane owns it.
    #[default]
    Accepted,
    /// Its buffers can be used again.
    Sent,
    /// The peer's session layer has queued it, in order.
    Delivered,
}

/// Names a send whose completion was asked for: index and generation in one (M3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendToken(pub u64);

/// How a send ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendReport {
    /// Its buffers are ours again.
    Sent,
    /// The kernel copied although it was asked not to.
    SentCopied,
    /// The lane failed first.
    Failed,
}

/// Items handed out of a poll function; bounded by [`Batch::CAPACITY`].
#[derive(Debug)]
pub struct Batch<T>(SmallVec<[T; 4]>);

impl<T> Batch<T> {
    /// Most items of one poll.
    pub const CAPACITY: usize = 64;

    /// An empty batch. It keeps its memory when it is drained, so reuse it.
    #[inline]
    pub fn new() -> Self {
        Self(SmallVec::new())
    }
    /// Adds an item.
    ///
    /// # Panics
    /// When the batch is full: ask [`Batch::is_full`] first.
    #[inline]
    pub fn push(&mut self, item: T) {
        assert!(!self.is_full(), "a batch holds at most {} items", Self::CAPACITY);
        self.0.push(item);
    }
    /// No room left.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.0.len() >= Self::CAPACITY
    }
    /// Number of items.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Nothing in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Takes everything out, in order.
    #[inline]
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.0.drain(..)
    }
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// What [`LaneRx::poll_recv`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// At least one frame is in the batch.
    Some,
    /// The peer will send no more; the batch is empty.
    Closed,
}

/// Bounds of a lane; both sides agree on them in HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneLimits {
    /// Largest message that may be received, bytes.
    pub recv_max_message: u32,
    /// Largest message that the peer accepts, bytes.
    pub send_max_message: u32,
    /// Payload bytes that the peer may send before the application has taken any.
    pub recv_window: u32,
    /// The same for the other direction.
    pub send_window: u32,
    /// Lent receive memory after which messages are copied out, bytes.
    pub lease_soft: usize,
    /// Lent receive memory after which the connection is back-pressured, bytes.
    pub lease_hard: usize,
}

impl Default for LaneLimits {
    fn default() -> Self {
        Self {
            recv_max_message: 1 << 30,
            send_max_message: 1 << 30,
            recv_window: 4 << 20,
            send_window: 4 << 20,
            lease_soft: 16 << 20,
            lease_hard: 64 << 20,
        }
    }
}

/// The sending half, shaped like a `Sink`.
///
/// A poll function that returns `Pending` has kept the waker of the last call.
pub trait LaneTx: Send {
    /// Memory that this lane sends without a copy.
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>>;
    /// Ready means: one data frame of `len` payload bytes will be taken.
    fn poll_ready(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), LaneError>>;
    /// Takes a frame; a session frame is taken without `poll_ready`. The token is reported by
    /// [`LaneTx::poll_completions`] when `report` was set.
    ///
    /// # Errors
    /// The frame comes back; the lane has not looked at it.
    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected>;
    /// Pushes out everything that was taken: one doorbell or system call per batch.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>>;
    /// Completions of sends that asked for a report, oldest first.
    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>>;
    /// Flushes, then tells the peer's lane that nothing follows.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>>;
}

/// The receiving half.
pub trait LaneRx: Send {
    /// Frames that have arrived, in order, up to the batch's capacity. `out` is empty on entry.
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>>;
    /// The application took a data frame of this many payload bytes: credit may go back to the peer.
    /// Called once per message, since every message costs a least amount.
    fn release(&mut self, bytes: usize);
    /// The same as [`LaneRx::poll_recv`] without arming any wake-up: for spinning.
    ///
    /// # Errors
    /// As `poll_recv`.
    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError>;
}

/// What must go on while the application polls neither half.
pub trait LaneDrive: Send {
    /// Does what is due (acks, retransmissions, notifications, returned credit) and says when
    /// to call again at the latest. `Err` fails the connection.
    fn poll_drive(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, LaneError>;

    /// Offers the lane the link over which its descriptors travelled, once the lane is committed to and
    /// nothing else will use the link. A lane that wants it (to pass descriptors, to notice that the peer
    /// died) keeps it, watches it in [`LaneDrive::poll_drive`] and returns `None`; else it comes back.
    fn adopt_link(&mut self, link: Box<dyn ControlLink>) -> Option<Box<dyn ControlLink>> {
        Some(link)
    }
}

/// One connection's data path.
pub struct Lane {
    /// Sends.
    pub tx: Box<dyn LaneTx>,
    /// Receives.
    pub rx: Box<dyn LaneRx>,
    /// Background work, if the lane has any.
    pub drive: Option<Box<dyn LaneDrive>>,
    /// What was granted.
    pub caps: Caps,
    /// Memory lent to the application by this lane.
    pub leases: Arc<LeaseBudget>,
}
