//! The bounds of this crate (M9).

/// Connections that the kernel queues in front of `accept`.
pub const BACKLOG: i32 = 4096;
/// Most descriptors of one message on a Unix link.
pub const MAX_DESCRIPTORS: usize = 64;
/// One read of small frames, bytes.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Reads of one poll; then others get their turn.
pub(crate) const READS_PER_POLL: usize = 32;
/// Payloads of at least this many bytes are sent with `MSG_ZEROCOPY` on TCP.
pub const ZERO_COPY_MIN: usize = 64 << 10;
/// Zero-copy sends whose buffers the kernel may hold at a time.
pub const MAX_HELD_SENDS: usize = 256;
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
