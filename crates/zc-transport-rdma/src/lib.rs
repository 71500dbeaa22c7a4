//! RDMA in safe code, with libibverbs loaded at run time, and the transport `rdma` on it ([`RdmaTransport`]).
//!
//! ```text
//! transport lanes over queue pairs, brought up over the control link
//! lane/     messages: short ones at once, long ones fetched by who receives them
//! engine/   one per device: completions on the caller's runtime, receive buffers out of the pool, doorbells for batches
//! verbs/    devices, queue pairs and queues, such that nothing in a device's hands can be freed
//! wire      what the two ends of a connection tell each other, without I/O
//! loopback  an owner's atomics, through the device that its peers' go through
//! gid       which of a port's addresses a connection uses, without I/O
//! sys/      the unsafe part: the library, as its headers describe it
//! ```
//!
//! Nothing here needs RDMA to be built or started: without the library, the kernel's support or a device there is
//! a typed reason ([`Device::all`]). `docs/rdma.md` says what was tested on what.

mod engine;
mod gid;
mod lane;
mod limits;
mod loopback;
mod sys;
mod transport;
mod verbs;
mod wire;

pub use engine::{Endpoint, EndpointEnd, EndpointError, Engine, EngineStats, Finished, RdmaOptions, Unsent};
pub use gid::{DeviceChoice, Gid, GidChoice, GidEntry, GidKind};
pub use limits::{
    ACK_BATCH, BIND_DEPTH, CLOSING_MS, COMPLETION_ENTRIES, COPY_MAX_BYTES, DOZE_MS, GATHER_BYTES, GRANT_MIN,
    HOP_LIMIT, INLINE_BYTES, KEPT_FACTOR, MAX_ENGINES, MAX_GIDS, MAX_LANE_READS, MAX_PIECES,
    MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, MAX_QUEUED_RECORD_BYTES, MAX_READS, MAX_REFUSED, MAX_REGIONS,
    MAX_REMOTE_KEYS, MAX_REMOTE_OPERATIONS, MAX_ROUNDS_PER_SECOND, MAX_SEND_DEPTH, MAX_SHARE, MAX_SLOTS,
    MAX_SPARE, MAX_UNCREDITED, MAX_UNREAD, MIN_EAGER_BYTES, MIN_LANE_DEPTH, MIN_SHARE, NOTIFY_WINDOW,
    OWN_ATOMIC_MS, OWN_ATOMIC_PAUSE_MS, PIECE_MIN_BYTES, POLL_BATCH, POST_BATCH, READ_BYTES, RECEIVE_BYTES,
    RECORD_PIECES, REFILL_MS, REFUSED_MS, REGISTER_MS, RESERVED_SLOTS, RESERVED_WORK, RETRIES, RETRY_MS,
    RETRY_TIMEOUT_CODE, REVOKE_MS, RNR_RETRIES, RNR_TIMER_CODE, SEND_DEPTH, SEND_SEGMENTS, SHARE_DIVISOR,
    SHARED_RECEIVES, SIGNAL_DIVISOR, SPARE_WORDS, SPIN_US, TURNS,
};
pub use transport::RdmaTransport;
pub use verbs::{
    AsyncEvent, AtomicScope, Completion, CompletionQueue, Context, Device, DeviceCaps, ExportedMemory,
    Operation, Path, Port, PostError, ProtectionDomain, QueueId, QueuePair, QueuePairCaps, QueuePairState,
    Received, RemoteAccess, RemotePlace, SharedReceiveQueue, Showable, Unfit, VerbsError, WindowId, Work,
    WorkError, WorkFault,
};
pub use wire::{
    END_BYTES, End, MAX_RECV_BYTES, MAX_RECV_COUNT, PathMtu, Psn, QueuePairNumber, VERSION as END_VERSION,
};
