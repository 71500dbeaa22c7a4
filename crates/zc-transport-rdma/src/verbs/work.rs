//! What a queue pair is asked to do.

use zc_core::memory::{Message, PinnedBufMut};

use super::windows::WindowId;

/// Memory of the peer.
///
/// ```
/// use zc_transport_rdma::RemotePlace;
///
/// let place = RemotePlace { address: 0x7000_0000, key: 17 };
/// assert_eq!(place.at(64).address, 0x7000_0040);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemotePlace {
    /// As the peer says it.
    pub address: u64,
    /// The peer's key.
    pub key: u32,
}

impl RemotePlace {
    /// So many bytes further on. The peer's device checks what it is asked for.
    pub fn at(self, offset: u64) -> Self {
        Self { address: self.address.wrapping_add(offset), ..self }
    }
}

/// One operation, with the memory that it reads or fills.
///
/// ```
/// use zc_core::memory::Message;
/// use zc_transport_rdma::{Operation, RemotePlace, Work};
///
/// let to = RemotePlace { address: 0x7000_0000, key: 17 };
/// let write = Operation::Write { payload: Message::from(&b"hello"[..]), to, immediate: Some(1) };
/// assert_eq!(Work::new(7, write).payload_bytes(), 5);
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Operation {
    /// A message into a receive buffer of the peer.
    Send {
        /// The bytes.
        payload: Message,
        /// A word that goes with it.
        immediate: Option<u32>,
    },
    /// Into memory of the peer.
    Write {
        /// The bytes.
        payload: Message,
        /// Where to.
        to: RemotePlace,
        /// A word that takes a receive buffer of the peer, and tells it.
        immediate: Option<u32>,
    },
    /// Out of memory of the peer.
    Read {
        /// They go behind what is in it.
        into: PinnedBufMut,
        /// How many bytes.
        len: usize,
        /// Where from.
        from: RemotePlace,
    },
    /// Exchanges an aligned 64-bit word of the peer's if it is `compare`.
    CompareSwap {
        /// Gets the word as it was, in the order of bytes of this machine.
        into: PinnedBufMut,
        /// The word.
        at: RemotePlace,
        /// What it must be.
        compare: u64,
        /// What it becomes.
        swap: u64,
    },
    /// Adds to an aligned 64-bit word of the peer's.
    FetchAdd {
        /// Gets the word as it was, in the order of bytes of this machine.
        into: PinnedBufMut,
        /// The word.
        at: RemotePlace,
        /// What is added.
        add: u64,
    },
    /// Lets the peer read what the window was [aimed](super::QueuePair::aim) at. What is posted later may tell it so.
    Bind {
        /// The window.
        window: WindowId,
    },
    /// Ends that. Once it is over nothing is read any more.
    Invalidate {
        /// The window.
        window: WindowId,
    },
}

/// A work request.
///
/// ```
/// use zc_core::memory::Message;
/// use zc_transport_rdma::Work;
///
/// let work = Work::send(7, Message::from(&b"hello"[..]));
/// assert_eq!((work.tag, work.payload_bytes()), (7, 5));
/// ```
#[derive(Debug)]
pub struct Work {
    /// Comes back with the completion.
    pub tag: u64,
    /// What is to be done.
    pub operation: Operation,
    /// Have a completion for it at once, instead of with a later one.
    pub signalled: bool,
    /// Begin only when all earlier reads and atomics of this queue pair are over.
    pub fenced: bool,
    /// If it is done, nobody is told: what it sent is let go of at once.
    pub silent: bool,
}

/// Why a queue pair can't do what it is asked for.
///
/// ```
/// use zc_transport_rdma::Unfit;
///
/// assert!(Unfit::Segments { count: 9, max: 4 }.to_string().contains('9'));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// More pieces than a work request gathers.
    #[error("{count} pieces of memory, at most {max} are gathered")]
    Segments {
        /// Of the message.
        count: usize,
        /// What was granted.
        max: usize,
    },
    /// Longer than the port transfers at once, or than the buffer is.
    #[error("{len} bytes, at most {max} are transferred")]
    TooLong {
        /// The length.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// Memory that the protection domain does not know, and too much to send inline.
    #[error("memory that is not registered")]
    NotRegistered,
    /// A window that shows nothing, or more than one request at a time would use.
    #[error("a memory window that is not aimed, or shows something already")]
    Window,
    /// A read or an atomic, of which the peer serves none, or this device begins none.
    #[error("no reads and atomics over this queue pair")]
    NoReads,
}

/// The length of the words of atomics.
pub(super) const WORD_BYTES: usize = 8;

impl Work {
    /// One that is signalled when its turn comes, and not fenced.
    pub fn new(tag: u64, operation: Operation) -> Self {
        Self { tag, operation, signalled: false, fenced: false, silent: false }
    }

    /// Sends a message.
    pub fn send(tag: u64, payload: Message) -> Self {
        Self::new(tag, Operation::Send { payload, immediate: None })
    }

    /// With a completion at once.
    #[must_use]
    pub fn signalled(mut self) -> Self {
        self.signalled = true;
        self
    }

    /// Without a word to anybody when it is done.
    #[must_use]
    pub fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// The peer answers it with nothing but an acknowledgement, if it hears of it at all.
    pub(super) fn is_one_way(&self) -> bool {
        !matches!(
            self.operation,
            Operation::Read { .. } | Operation::CompareSwap { .. } | Operation::FetchAdd { .. }
        )
    }

    /// What it sends or writes.
    pub(super) fn payload(&self) -> Option<&Message> {
        match &self.operation {
            Operation::Send { payload, .. } | Operation::Write { payload, .. } => Some(payload),
            _ => None,
        }
    }

    /// How many bytes it sends or writes.
    pub fn payload_bytes(&self) -> usize {
        self.payload().map_or(0, Message::len)
    }

    /// How many bytes it moves.
    pub(crate) fn bytes(&self) -> usize {
        match &self.operation {
            Operation::Read { len, .. } => *len,
            Operation::CompareSwap { .. } | Operation::FetchAdd { .. } => WORD_BYTES,
            Operation::Send { payload, .. } | Operation::Write { payload, .. } => payload.len(),
            Operation::Bind { .. } | Operation::Invalidate { .. } => 0,
        }
    }

    /// What it fills, and how far it is filled then.
    pub(super) fn target_mut(&mut self) -> Option<(&mut PinnedBufMut, usize)> {
        match &mut self.operation {
            Operation::Read { into, len, .. } => {
                let filled = into.len() + *len;
                Some((into, filled))
            }
            Operation::CompareSwap { into, .. } | Operation::FetchAdd { into, .. } => {
                Some((into, WORD_BYTES))
            }
            _ => None,
        }
    }
}
