//! The bounds of this crate (M9).

/// Work requests that one ring of the doorbell hands over.
pub const POST_BATCH: usize = 16;
/// Completions that one call takes out of a completion queue.
pub const POLL_BATCH: usize = 16;
/// Work requests that a queue pair may have under way, by default; the device may grant more.
pub const SEND_DEPTH: u32 = 64;
/// The most that may be asked for.
pub const MAX_SEND_DEPTH: u32 = 4096;
/// Pieces of memory that one work request gathers, by default; the device may grant more, and fewer are used then.
pub const SEND_SEGMENTS: u32 = 4;
/// Bytes that are asked to be sent out of the work request itself; the device grants what it can.
pub const INLINE_BYTES: u32 = 256;
/// Every so many work requests one is signalled, so that memory comes back even if nobody asks: this part of the depth.
pub const SIGNAL_DIVISOR: u32 = 4;
/// Entries of an engine's completion queue, by default. Queue pairs beyond what they hold are refused.
pub const COMPLETION_ENTRIES: u32 = 24 << 10;
/// The most receive buffers of an engine, by default; as many are posted as its connections were given, and a few.
pub const SHARED_RECEIVES: u32 = 4 << 10;
/// The most that one connection is given: that many messages may be on their way to us.
pub const MAX_SHARE: u32 = 32;
/// The fewest; a connection for which no more is left is refused.
pub const MIN_SHARE: u32 = 8;
/// One connection gets this part of those that are left.
pub const SHARE_DIVISOR: u32 = 64;
/// The length of each.
pub const RECEIVE_BYTES: usize = 4 << 10;
/// Messages that one queue pair has received and that nobody took, after which the peer has broken its word.
pub const MAX_UNREAD: usize = 4096;
/// Regions of memory that a protection domain knows.
pub const MAX_REGIONS: usize = 16 << 10;
/// How long a region that could not be registered is not tried again, unless another one was deregistered: sending out of it is a copy
/// meanwhile.
pub const REFUSED_MS: u64 = 50;
/// Such regions that a protection domain remembers: the last ones.
pub const MAX_REFUSED: usize = 64;
/// Reads and atomics under way at a time, of either side of a queue pair.
pub const MAX_READS: u8 = 16;
/// How often a queue pair sends again what nobody acknowledged. Soft-RoCE takes 7, the most there is, for ever.
pub const RETRIES: u8 = 6;
/// The code of the time between: 4.096 µs << 14, or 67 ms; devices wait up to four times as long.
pub const RETRY_TIMEOUT_CODE: u8 = 14;
/// How often a queue pair tries again while the peer has no receive buffer; 7 would be for ever.
pub const RNR_RETRIES: u8 = 6;
/// The code of the pause that we ask for when we have none: 81.92 ms, so that half a second passes before an engine whose task has no
/// processor loses connections.
pub const RNR_TIMER_CODE: u8 = 26;
/// Routers that a packet may pass.
pub const HOP_LIMIT: u8 = 64;
/// Turns of the engine that find something before other tasks get theirs.
pub const TURNS: u32 = 8;
/// How long a closed queue pair waits for its last completions before it is destroyed without them.
pub const CLOSING_MS: u64 = 1_000;
/// How long the engine waits before it looks for receive buffers again when the pool had none.
pub const REFILL_MS: u64 = 5;
/// How long the engine's task leaves completions to others that look for them, before it sees whether they still do.
pub const DOZE_MS: u64 = 1;
/// How long the engine looks for completions before it sleeps, by default.
pub const SPIN_US: u64 = 20;
/// Entries of a device's table of GIDs that are read.
pub const MAX_GIDS: usize = 1024;
/// Signals of a completion channel that are acknowledged at once: that takes a lock.
pub const ACK_BATCH: u32 = 64;
/// Work of an endpoint that is staged, or over and was not taken, in depths of its queue.
pub const KEPT_FACTOR: usize = 2;
/// Receive buffers that were emptied and wait to be posted again.
pub const MAX_SPARE: usize = 256;
/// Pieces of long messages that one record announces.
pub const RECORD_PIECES: usize = 8;
/// Pieces that a connection shows its peer at a time: as many memory windows it has at most.
pub const MAX_PIECES: usize = 32;
/// Shorter parts of long messages are copied together; a window for each would cost more.
pub const PIECE_MIN_BYTES: usize = 4 << 10;
/// The longest piece that is put together by a copy.
pub const GATHER_BYTES: usize = 256 << 10;
/// The most that one read fetches: between two of them the peer shows that it lives.
pub const READ_BYTES: usize = 16 << 20;
/// Reads of one connection under way; less if the peer serves fewer, for one too many would hold up what is sent behind it.
pub const MAX_LANE_READS: usize = 4;
/// Receive buffers of the peer that are kept for what is not payload.
pub const RESERVED_SLOTS: u32 = 3;
/// The most receive buffers that a peer may give us; the count of them in a message is of 16 bits.
pub const MAX_SLOTS: u32 = 4 << 10;
/// Messages without credit (records of the session, remote ones) that a lane keeps behind a long message that is still read. For those
/// beyond, the peer gets no receive buffer back, so that they are at most so many and its share.
pub const MAX_UNCREDITED: u32 = 64;
/// With the last of them at least so many must be given back.
pub const GRANT_MIN: u32 = 2;
/// Frames that a lane queues before it is not ready.
pub const MAX_QUEUED_FRAMES: usize = 256;
/// Bytes that a lane queues before it is not ready; one frame may exceed it.
pub const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Bytes of session records that a lane queues for a peer that gives no receive buffers back; a further one fails it.
pub const MAX_QUEUED_RECORD_BYTES: usize = 256 << 10;
/// Messages up to this length are copied out of their receive buffer, which goes back at once.
pub const COPY_MAX_BYTES: usize = 256;
/// Work requests of a queue pair that are kept for what is not payload.
pub const RESERVED_WORK: usize = 12;
/// Work requests that a queue pair of a lane may have under way at least: `RESERVED_WORK`, and one for each piece that a peer says at once that it
/// has read.
pub const MIN_LANE_DEPTH: u32 = RESERVED_WORK as u32 + MAX_PIECES as u32;
/// One-sided operations of a connection that were taken and have not ended.
pub const MAX_REMOTE_OPERATIONS: usize = 64;
/// Keys of one connection that are valid at a time, each way: as many memory windows its peer may ask for.
pub const MAX_REMOTE_KEYS: usize = 1024;
/// Notifications of one connection on their way to the exports of their keys, all exports together; one more is `Busy`.
pub const NOTIFY_WINDOW: u64 = 256;
/// Windows that are being bound on a queue pair which serves a peer's one-sided operations: it asks about one at a time.
pub const BIND_DEPTH: u32 = 4;
/// How often in a second a peer's one-sided operations begin anew after a refusal, with queue pairs that are made for it; beyond that they are
/// `Busy`.
pub const MAX_ROUNDS_PER_SECOND: u32 = 64;
/// How long revoking a key waits for its window to be bound, which no peer has a part in, before the queue pair is given up.
pub const REVOKE_MS: u64 = 100;
/// Empty buffers for the words of atomics that a connection keeps.
pub const SPARE_WORDS: usize = 16;
/// How long an owner's atomic waits for its own device before it is given up, and with it the way to the device.
pub const OWN_ATOMIC_MS: u64 = 2_000;
/// How long further ones are answered with its error before the device is tried again.
pub const OWN_ATOMIC_PAUSE_MS: u64 = 1_000;
/// Engines of one transport: one for each device, or address of it, that its connections use.
pub const MAX_ENGINES: usize = 64;
/// How long a lane waits before it asks again for memory that the pool did not have.
pub const RETRY_MS: u64 = 5;
/// How long a lane asks again for memory that can be registered, after the pool had some that can't, before it ends.
pub const REGISTER_MS: u64 = 1_000;
/// The shortest receive buffers that a peer may have: every record of the session fits.
pub const MIN_EAGER_BYTES: usize = 4 << 10;
