//! The bounds of this crate (M9).

/// Connections that the kernel queues in front of `accept`.
pub const BACKLOG: i32 = 4096;
/// Most descriptors of one message on a Unix link.
pub const MAX_DESCRIPTORS: usize = 64;
/// Payloads up to this many bytes are written together with their header.
pub const COALESCE_MAX: usize = 512;
/// The buffer in which small frames are put together, bytes.
pub const STAGE_BYTES: usize = 64 << 10;
/// One read of small frames, bytes.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Frames of at least this many bytes are read into a buffer of their own.
pub const DIRECT_MIN: usize = 16 << 10;
/// Small frames in a row after which reading goes back to chunks.
pub(crate) const EXACT_FRAMES: u32 = 16;
/// Reads of one poll; then others get their turn.
pub(crate) const READS_PER_POLL: usize = 32;
/// Payloads of at least this many bytes are sent with `MSG_ZEROCOPY` on TCP.
pub const ZERO_COPY_MIN: usize = 64 << 10;
/// Frames that a lane queues before it is not ready.
pub const MAX_QUEUED_FRAMES: usize = 1024;
/// Bytes that a lane queues before it is not ready; one frame may exceed it.
pub const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Bytes of session records that a lane queues for a peer that does not read, besides data and remote records: a
/// further one fails the connection. About one for each of the messages that may be under way.
pub const MAX_QUEUED_RECORD_BYTES: usize = 256 << 10;
/// Zero-copy sends whose buffers the kernel may hold at a time.
pub const MAX_HELD_SENDS: usize = 256;
/// Pieces of one write; the kernel takes up to 1024 (`IOV_MAX`).
pub(crate) const MAX_IOV: usize = 128;
/// Stages of one lane; beyond, small frames are queued by reference.
pub(crate) const MAX_STAGES: usize = 2 * MAX_QUEUED_BYTES / STAGE_BYTES;
/// Names that are looked up at a time; more wait.
pub(crate) const MAX_RESOLVER_THREADS: usize = 8;
/// Names that wait to be looked up, all of them for somebody; further ones are refused.
pub(crate) const MAX_NAMES: usize = 4096;
/// How often a Unix connect is retried while the server's backlog is full.
pub(crate) const UNIX_CONNECT_TRIES: u32 = 200;
/// The pause between two of them.
pub(crate) const UNIX_CONNECT_PAUSE_MS: u64 = 5;
/// How long to wait before the error queue is looked at again.
pub(crate) const REAP_INTERVAL_MS: u64 = 1;
/// The longest such wait: it doubles while nothing comes back.
pub(crate) const REAP_PAUSE_MS: u64 = 16;
/// The longest such wait once the lane is gone.
pub(crate) const LINGER_PAUSE_MS: u64 = 100;
/// How long the peer may take to acknowledge what a lane that is gone sent without a copy.
pub const LINGER_MS: u64 = 10_000;
/// How long the kernel may take to give memory back after the connection was reset.
pub(crate) const ABORT_MS: u64 = 1_000;
