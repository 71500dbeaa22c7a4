//! The data plane of one connection.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use smallvec::SmallVec;

use super::{
    AllocFailure, Caps, ControlLink, LaneError, LaneRemote, PipedFrame, PipedRejected, SendRejected,
};
use crate::memory::{LeaseBudget, MemoryGroup, Message, PinnedBufMut, RegisterError};
use crate::wire::FrameType;

/// What a frame carries.
///
/// ```
/// use zc_core::transport::FrameKind;
///
/// let needs_credit = |kind| kind == FrameKind::Data;
/// assert!(needs_credit(FrameKind::Data) && !needs_credit(FrameKind::Session));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A message of the application.
    Data,
    /// A record of the session layer ([`crate::wire::SessionRecord`]). It needs no credit, so that
    /// a sender short of credit can still acknowledge and answer.
    Session,
    /// A remote record ([`crate::wire::RemoteRecord`]), of at most
    /// [`MAX_REMOTE_RECORD_BYTES`](crate::wire::MAX_REMOTE_RECORD_BYTES). It needs no credit either. A lane that does not
    /// carry them refuses them, and says [`OneSided::None`](super::OneSided::None).
    Remote,
}

impl FrameKind {
    /// The longest payload of such a frame, where data is at most `max_message` bytes long.
    #[inline]
    pub const fn max_bytes(self, max_message: usize) -> usize {
        match self {
            Self::Data => FrameType::Data,
            Self::Session => FrameType::Session,
            Self::Remote => FrameType::Remote,
        }
        .max_bytes(max_message)
    }
}

/// The unit that a lane moves: whole, in order, once.
///
/// ```
/// use zc_core::memory::{Message, PinnedBuf};
/// use zc_core::transport::{Frame, FrameKind};
///
/// let payload = Message::from(PinnedBuf::from_static(b"hello"));
/// let frame = Frame { kind: FrameKind::Data, ack: false, seq: 1, payload };
/// assert_eq!(frame.payload.len(), 5);
/// ```
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
///
/// ```
/// use zc_core::transport::Completion;
///
/// let promise = |completion| match completion {
///     Completion::Accepted => "it will be tried",
///     Completion::Sent => "the buffer may be used again",
///     Completion::Delivered => "the peer's session layer has it",
/// };
/// assert_eq!(promise(Completion::default()), "it will be tried");
/// ```
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
///
/// ```
/// use zc_core::transport::SendToken;
///
/// let token = |index: u32, generation: u32| SendToken(u64::from(generation) << 32 | u64::from(index));
/// assert_ne!(token(7, 1), token(7, 2)); // the same place, another send
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendToken(pub u64);

/// How a send ended.
///
/// ```
/// use zc_core::transport::SendReport;
///
/// let wasted = |report| report == SendReport::SentCopied; // zero copy did not pay
/// assert!(!wasted(SendReport::Sent));
/// ```
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
///
/// ```
/// use zc_core::transport::Batch;
///
/// let mut batch = Batch::new();
/// while !batch.is_full() {
///     batch.push(batch.len());
/// }
/// assert_eq!(batch.drain().count(), Batch::<usize>::CAPACITY);
/// assert!(batch.is_empty());
/// ```
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
///
/// ```
/// use zc_core::transport::{LaneError, LaneRx, Received};
///
/// /// Looks once: whether more may come.
/// fn look(rx: &mut dyn LaneRx) -> Result<bool, LaneError> {
///     Ok(rx.try_recv(&mut Default::default())? != Some(Received::Closed))
/// }
/// # let _ = look;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// At least one frame is in the batch.
    Some,
    /// The peer will send no more; the batch is empty.
    Closed,
}

/// Bounds of a lane; both sides agree on them in HELLO.
///
/// ```
/// use zc_core::transport::LaneLimits;
///
/// let mut limits = LaneLimits::default();
/// limits.recv_max_message = 16 << 20; // bytes
/// limits.recv_window = 1 << 20;
/// (limits.lease_soft, limits.lease_hard) = (2 << 20, 8 << 20);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneLimits {
    /// Largest message that may be received, bytes.
    pub recv_max_message: u32,
    /// Largest message that the peer accepts, bytes.
    pub send_max_message: u32,
    /// Payload bytes that the peer may send before the application has taken any.
    pub recv_window: u32,
    /// The same for the other direction, bytes.
    pub send_window: u32,
    /// Lent receive memory after which messages are copied out, bytes.
    pub lease_soft: usize,
    /// Lent receive memory after which the peer gets no further credit, bytes.
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
///
/// A lane lets go of messages under its own locks. Whoever calls it with a lock held, or sends bytes whose owner
/// might call it, opens a [`Deferral`](crate::memory::Deferral) first; the facade does.
///
/// ```
/// use std::task::{Context, Poll, ready};
/// use zc_core::transport::{Frame, LaneError, LaneTx};
///
/// /// A permit, the hand-over, and one doorbell: the order in which everybody uses a lane.
/// fn poll_send(
///     tx: &mut dyn LaneTx,
///     cx: &mut Context<'_>,
///     frame: &mut Option<Frame>,
/// ) -> Poll<Result<(), LaneError>> {
///     if let Some(len) = frame.as_ref().map(|frame| frame.payload.len()) {
///         ready!(tx.poll_ready(cx, len))?;
///     }
///     if let Some(frame) = frame.take() {
///         tx.start_send(frame, false).map_err(|rejected| rejected.error)?;
///     }
///     tx.poll_flush(cx)
/// }
/// # let _ = poll_send;
/// ```
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

    /// Lets this lane send memory of a group without a copy, until it ends. A lane that must register memory, or
    /// show it to its peer, joins with its [`Registrar`](crate::memory::Registrar), keeps the
    /// [`Membership`](crate::memory::Membership) as long as anything of the group is under way (M2), and asks it
    /// for the place of each buffer. One that sends any memory as it is has nothing to do; one that
    /// never can copies, and counts it.
    ///
    /// # Errors
    /// Why this lane can't be a member; it goes on without.
    fn join_group(&mut self, _group: &MemoryGroup) -> Result<(), RegisterError> {
        Ok(())
    }

    /// Ends what [`LaneTx::join_group`] began: nothing more of the group is shown to the peer, and its memory is
    /// copied like that of strangers. What is under way stays valid until it is done with (M2).
    fn leave_group(&mut self, _group: &MemoryGroup) {}

    /// Once the lane has failed: hands out the frames of which the peer's lane is not known to have all, oldest first, for another
    /// lane. Those that have completions to be reported are not reported here any more. A frame that is not handed out
    /// may or may not have come; so may all of a lane that hands out none, which is the default.
    fn abandon(&mut self, _each: &mut dyn FnMut(Frame)) {}

    /// Whether this lane sends what waits in a pipe without taking it through memory: pages of a file. If not, whoever
    /// sends a file reads it into memory of the lane.
    fn takes_pipes(&self) -> bool {
        false
    }

    /// Takes a data frame whose payload waits in a pipe, after [`LaneTx::poll_ready`], as [`LaneTx::start_send`] takes others:
    /// its place in the order is that of this call. Only for lanes that [take pipes](LaneTx::takes_pipes).
    ///
    /// # Errors
    /// The frame comes back; the lane has not looked at it.
    fn start_send_piped(&mut self, frame: PipedFrame, _report: bool) -> Result<SendToken, PipedRejected> {
        Err(PipedRejected { frame, error: LaneError::Other("this lane takes no pipes".into()) })
    }
}

/// The receiving half.
///
/// ```
/// use std::task::{Context, Poll, ready};
/// use zc_core::memory::Message;
/// use zc_core::transport::{Batch, FrameKind, LaneError, LaneRx, Received};
///
/// /// All messages of one batch, each of them taken by the application at once.
/// fn poll_messages(rx: &mut dyn LaneRx, cx: &mut Context<'_>) -> Poll<Result<Vec<Message>, LaneError>> {
///     let mut batch = Batch::new();
///     if ready!(rx.poll_recv(cx, &mut batch))? == Received::Closed {
///         return Poll::Ready(Ok(Vec::new()));
///     }
///     let data = batch.drain().filter(|frame| frame.kind == FrameKind::Data);
///     let messages: Vec<_> = data.map(|frame| frame.payload).collect();
///     messages.iter().for_each(|message| rx.release(message.len()));
///     Poll::Ready(Ok(messages))
/// }
/// # let _ = poll_messages;
/// ```
pub trait LaneRx: Send {
    /// Frames that have arrived, in order, up to the batch's capacity. `out` is empty on entry.
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>>;
    /// The application took a data frame of this many payload bytes: credit may go back to the peer.
    /// Called once per message, since every message costs a least amount.
    ///
    /// A lane never stops reading because of its lease budget, or session records would not get through. Past
    /// the hard lease it withholds credit instead, until the application holds less.
    fn release(&mut self, bytes: usize);
    /// The same as [`LaneRx::poll_recv`] without arming any wake-up: for spinning.
    ///
    /// If there is nothing, a waker that `poll_recv` has kept stays in force, and is called within a few milliseconds even if who looks never
    /// comes back.
    ///
    /// # Errors
    /// As `poll_recv`.
    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError>;
    /// Nothing more is read: gives up what waits for the rest of a frame, memory as well as places in a queue for
    /// it. The lane may be kept for long after that, as long as anybody holds a handle of its connection.
    /// Reading it is an error from then on.
    fn stop(&mut self) {}
}

/// What must go on while the application polls neither half.
///
/// ```
/// use std::task::{Context, Waker};
/// use std::time::{Duration, Instant};
/// use zc_core::transport::{LaneDrive, LaneError};
///
/// /// Retransmits every 10 ms.
/// struct Retransmit(Instant);
///
/// impl LaneDrive for Retransmit {
///     fn poll_drive(&mut self, _: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, LaneError> {
///         if now >= self.0 {
///             self.0 = now + Duration::from_millis(10); // and send again what is due
///         }
///         Ok(Some(self.0))
///     }
/// }
/// let now = Instant::now();
/// let next = Retransmit(now).poll_drive(&mut Context::from_waker(Waker::noop()), now);
/// assert_eq!(next.unwrap(), Some(now + Duration::from_millis(10)));
/// ```
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

    /// Whether the peer has shown since the last call that it lives, other than by frames: it went on with a long
    /// message, in either direction, behind which its answer to a PING or ours may wait. It counts as life.
    fn heard(&mut self) -> bool {
        false
    }
}

/// One connection's data path.
///
/// ```
/// use zc_core::transport::{Lane, LaneTx};
///
/// /// How a lane is wrapped: what is not replaced stays.
/// fn wrapped<F: FnOnce(Box<dyn LaneTx>) -> Box<dyn LaneTx>>(lane: Lane, with: F) -> Lane {
///     Lane { tx: with(lane.tx), ..lane }
/// }
/// # let _ = wrapped::<fn(Box<dyn LaneTx>) -> Box<dyn LaneTx>>;
/// ```
pub struct Lane {
    /// Sends.
    pub tx: Box<dyn LaneTx>,
    /// Receives.
    pub rx: Box<dyn LaneRx>,
    /// Background work, if the lane has any.
    pub drive: Option<Box<dyn LaneDrive>>,
    /// One-sided operations, if the lane does them itself.
    pub remote: Option<Box<dyn LaneRemote>>,
    /// What was granted.
    pub caps: Caps,
    /// Memory lent to the application by this lane.
    pub leases: Arc<LeaseBudget>,
}
