//! One-sided operations that a lane does itself: by a device, or directly in shared memory.
//!
//! A lane without them leaves [`Lane::remote`](super::Lane::remote) empty; if it carries
//! [`FrameKind::Remote`](super::FrameKind::Remote), the session layer does them over frames.

use std::fmt;
use std::ops::{BitOr, BitOrAssign, Range};
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{Batch, LaneError};
use crate::memory::{ExportMemory, Message, PinnedBufMut, WordAtomics};
use crate::wire::RemoteStatus;

/// The longest [`RemoteKey`], bytes.
pub const MAX_REMOTE_KEY_BYTES: usize = 32;

/// Names memory that a peer granted, and proves that it did. It travels in an ordinary message.
///
/// It is valid on the connection that it was granted for and on no other. Whoever knows it can use it
/// there, so `Debug` does not show it.
///
/// ```
/// use zc_core::transport::RemoteKey;
///
/// let key = RemoteKey::from_bytes(&[7; 16]).unwrap();
/// assert_eq!(RemoteKey::from_bytes(key.as_bytes()), Some(key));
/// assert_eq!(RemoteKey::from_bytes(&[0; 33]), None);
/// assert_eq!(format!("{key:?}"), "RemoteKey(16 bytes)");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RemoteKey {
    bytes: [u8; MAX_REMOTE_KEY_BYTES],
    len: u8,
}

impl RemoteKey {
    /// A key out of a message; `None` if it is empty or longer than [`MAX_REMOTE_KEY_BYTES`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut key = Self { bytes: [0; MAX_REMOTE_KEY_BYTES], len: u8::try_from(bytes.len()).ok()? };
        let slot = key.bytes.get_mut(..bytes.len()).filter(|slot| !slot.is_empty())?;
        slot.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Some(key)
    }

    /// The key, to be sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The same as an owned message.
    pub fn to_bytes(&self) -> Vec<u8> {
        Vec::from(self.as_bytes())
    }
}

impl fmt::Debug for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteKey({} bytes)", self.len)
    }
}

/// What a key allows.
///
/// ```
/// use zc_core::transport::Access;
///
/// let access = Access::READ | Access::ATOMIC;
/// assert!(access.contains(Access::READ) && !access.contains(Access::WRITE));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access(u8);

impl Access {
    /// To read.
    pub const READ: Self = Self(1);
    /// To write, with or without a notification.
    pub const WRITE: Self = Self(2);
    /// To compare-and-swap and to add.
    pub const ATOMIC: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// Whether all of `other` is allowed.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Access {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Access {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What a peer is granted.
///
/// ```
/// use std::sync::Arc;
/// use std::task::{Context, Poll};
/// use zc_core::memory::{ExportMemory, Region};
/// use zc_core::transport::{Access, NotifySink, RemoteGrant};
///
/// struct Deaf;
/// impl NotifySink for Deaf {
///     fn poll_notify(&self, _: &mut Context<'_>, _: u64) -> Poll<()> {
///         Poll::Pending
///     }
/// }
/// let memory = ExportMemory::new(Region::builder(4096), 4096)?;
/// let half = RemoteGrant { memory, range: 2048..4096, access: Access::READ, notify: Arc::new(Deaf) };
/// assert!(!half.access.contains(Access::WRITE));
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Clone)]
pub struct RemoteGrant {
    /// The memory.
    pub memory: ExportMemory,
    /// Which part of it. The peer counts offsets from its start, which is a multiple of 8.
    pub range: Range<u64>,
    /// To do what.
    pub access: Access,
    /// Where notifications go.
    pub notify: Arc<dyn NotifySink>,
}

/// Takes the value of a write with a notification.
///
/// ```
/// use std::sync::Mutex;
/// use std::task::{Context, Poll, Waker};
/// use zc_core::transport::NotifySink;
///
/// /// Bounded: a peer can't fill our memory.
/// #[derive(Default)]
/// struct Last(Mutex<(Option<u64>, Option<Waker>)>);
///
/// impl NotifySink for Last {
///     fn poll_notify(&self, cx: &mut Context<'_>, value: u64) -> Poll<()> {
///         let (last, waiting) = &mut *self.0.lock().unwrap();
///         if last.is_some() {
///             *waiting = Some(cx.waker().clone());
///             return Poll::Pending;
///         }
///         *last = Some(value);
///         Poll::Ready(())
///     }
/// }
///
/// impl Last {
///     fn take(&self) -> Option<u64> {
///         let (last, waiting) = std::mem::take(&mut *self.0.lock().unwrap());
///         waiting.into_iter().for_each(Waker::wake); // There is room again.
///         last
///     }
/// }
/// let (sink, mut cx) = (Last::default(), Context::from_waker(Waker::noop()));
/// assert!(sink.poll_notify(&mut cx, 7).is_ready() && sink.poll_notify(&mut cx, 8).is_pending());
/// assert_eq!(sink.take(), Some(7));
/// ```
pub trait NotifySink: Send + Sync {
    /// Pending: too many wait already, and this one was not taken; one waker is woken when there may be room. A lane may
    /// keep the notification until then, or have the peer's operation fail with [`RemoteStatus::Busy`].
    fn poll_notify(&self, cx: &mut Context<'_>, value: u64) -> Poll<()>;
}

/// What revoking came to.
///
/// ```
/// use zc_core::transport::Revoked;
///
/// let go_on_with_a_copy = |revoked| revoked == Revoked::Retired;
/// assert!(!go_on_with_a_copy(Revoked::Done));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// The peer can't touch the memory any more.
    Done,
    /// The peer can't be kept from touching the memory, as when it keeps a mapping of it. Nobody may rely
    /// on its content from now on: the owner goes on with a copy.
    Retired,
}

/// An operation on a peer's memory. Its buffers are the lane's until the completion (M1, M2).
///
/// ```
/// use zc_core::memory::{Message, PinnedBuf};
/// use zc_core::transport::RemoteOp;
///
/// let message = Message::from(PinnedBuf::from_static(b"hello"));
/// let op = RemoteOp::Write { message, notify: Some(1) };
/// assert!(matches!(op, RemoteOp::Write { notify: Some(1), .. }));
/// ```
#[derive(Debug)]
pub enum RemoteOp {
    /// Reads so many bytes into the unfilled part of the buffer, which has room for them.
    Read {
        /// From [`LaneTx::poll_alloc`](super::LaneTx::poll_alloc).
        into: PinnedBufMut,
        /// How many bytes.
        len: usize,
    },
    /// Writes a message.
    Write {
        /// What to write.
        message: Message,
        /// Tells the owner this value once it is written.
        notify: Option<u64>,
    },
    /// Sets a word if it is what was expected.
    CompareSwap {
        /// What it must be.
        expected: u64,
        /// What it becomes.
        new: u64,
    },
    /// Adds to a word.
    FetchAdd {
        /// How much.
        add: u64,
    },
}

/// Names an operation under way: index and generation in one (M3).
///
/// ```
/// use zc_core::transport::RemoteToken;
///
/// let token = |index: u32, generation: u32| RemoteToken(u64::from(generation) << 32 | u64::from(index));
/// assert_ne!(token(7, 1), token(7, 2)); // the same place, another operation
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemoteToken(pub u64);

/// How an operation ended.
///
/// ```
/// use zc_core::transport::{RemoteCompletion, RemoteToken};
/// use zc_core::wire::RemoteStatus;
///
/// let old = |ended: RemoteCompletion| (ended.status == RemoteStatus::Done).then_some(ended.value);
/// let (token, status) = (RemoteToken(1), RemoteStatus::Done);
/// assert_eq!(old(RemoteCompletion { token, status, in_part: false, value: 41, read: None }), Some(41));
/// ```
#[derive(Debug)]
pub struct RemoteCompletion {
    /// Which.
    pub token: RemoteToken,
    /// What became of it. Anything but `Done` means that the memory was not touched, unless `in_part`.
    pub status: RemoteStatus,
    /// It was not done, and part of it may have been, as when a key ends while a device is at a long write.
    pub in_part: bool,
    /// What an atomic's word was before; else 0.
    pub value: u64,
    /// The buffer of a read, filled if it is done.
    pub read: Option<PinnedBufMut>,
}

/// With what atomics of a lane's peer are atomic together.
///
/// ```
/// use zc_core::transport::RemoteAtomics;
///
/// let owner_may_use_the_processor = |atomics: &RemoteAtomics| matches!(atomics, RemoteAtomics::Processor);
/// assert!(!owner_may_use_the_processor(&RemoteAtomics::None));
/// ```
#[derive(Debug, Clone)]
pub enum RemoteAtomics {
    /// There are none.
    None,
    /// The atomics of this machine's processors.
    Processor,
    /// What goes through their device: so the owner has to.
    Device(Arc<dyn WordAtomics>),
}

/// One-sided operations of a lane.
///
/// Operations take effect, and complete, in the order in which they were started. All functions are
/// called under one lock; a poll function that returns `Pending` has kept the waker of the last call.
///
/// ```
/// use std::task::{Context, Poll, ready};
/// use zc_core::transport::{LaneError, LaneRemote, RemoteKey, RemoteOp, RemoteToken};
///
/// /// Adds one to the first word, once there is room for an operation.
/// fn poll_count(
///     lane: &mut dyn LaneRemote,
///     cx: &mut Context<'_>,
///     key: &RemoteKey,
/// ) -> Poll<Result<RemoteToken, LaneError>> {
///     ready!(lane.poll_ready(cx))?;
///     Poll::Ready(lane.start(key, 0, RemoteOp::FetchAdd { add: 1 }))
/// }
/// # let _ = poll_count;
/// ```
pub trait LaneRemote: Send {
    /// Lets the peer use memory. The key can't be guessed, and is valid on this lane only.
    ///
    /// # Errors
    /// It can't be registered, or the lane has failed.
    fn grant(&mut self, grant: RemoteGrant) -> Result<RemoteKey, LaneError>;
    /// With what the peer's atomics on that memory will be atomic together. Asked in front of a grant that allows them, which is not
    /// made where they would be mixed with others.
    ///
    /// # Errors
    /// The lane has failed, or there is no way to the device for the owner.
    fn atomics(&mut self, memory: &ExportMemory) -> Result<RemoteAtomics, LaneError> {
        let _ = memory;
        Ok(RemoteAtomics::Processor)
    }
    /// Ends a grant. When it returns `Done`, no operation of the peer is or will be at work in the memory.
    /// (Some devices finish a packet that they are copying just then, as Soft-RoCE does while another key shows the same range.)
    /// A key that is not valid is `Done`. Dropping the lane revokes what is left, in the same sense.
    fn revoke(&mut self, key: &RemoteKey) -> Revoked;
    /// Ready means: one operation will be taken.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>>;
    /// Takes an operation and begins it.
    ///
    /// # Errors
    /// The lane has failed; nothing was done.
    fn start(&mut self, key: &RemoteKey, offset: u64, op: RemoteOp) -> Result<RemoteToken, LaneError>;
    /// Operations that have ended, in order. One who comes with [`Waker::noop`](std::task::Waker::noop) looks again at once, and is
    /// followed by one with another waker before anybody sleeps: a lane may look at less for it, and keep the waker that it has.
    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<RemoteCompletion>,
    ) -> Poll<Result<(), LaneError>>;
}
