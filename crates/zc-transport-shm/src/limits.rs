//! The bounds of this crate (M9).

/// Slots of a ring by default.
pub const RING_SLOTS: u32 = 256;
/// Fewest slots of a ring: one message may need [`MAX_FRAME_SLOTS`] and the control entries their own.
pub const MIN_RING_SLOTS: u32 = 32;
/// Most slots of a ring.
pub const MAX_RING_SLOTS: u32 = 1 << 16;
/// Bytes of a slot: two cache lines, which the prefetcher fetches as a pair.
pub const SLOT_BYTES: usize = 128;
/// Payloads up to this many bytes travel in their slot.
pub const INLINE_MAX: usize = 112;
/// Descriptors of one slot.
pub const SLOT_DESCRIPTORS: usize = 7;
/// Slots that one frame can need.
pub const MAX_FRAME_SLOTS: u64 = zc_core::memory::MAX_SEGMENTS.div_ceil(SLOT_DESCRIPTORS) as u64;
/// Bytes of a part of a message that is longer than all arenas, at most: a block that both sides have in their caches.
pub const PART_BYTES: usize = 256 << 10;
/// Copied parts of it that the peer has at a time.
pub const MAX_PARTS: usize = 8;
/// Bytes of it that are sent, or taken, before other tasks get their turn ...
pub const PARTS_TURN_BYTES: usize = 16 * PART_BYTES;
/// ... of which a shorter part counts as this many.
pub const MIN_PART_COST_BYTES: usize = 4096;
/// Copies into the arena of at least this many bytes may go past the caches. Each power of two from here on is a class ...
pub const STREAM_MIN_BYTES: usize = 32 << 10;
/// ... of which there are so many; the last takes all that is longer ...
pub const STREAM_CLASSES: usize = 9;
/// ... and when about so many bytes of a class were copied, one copy is made the other way, to see what it takes ...
pub const STREAM_TRIAL_BYTES: usize = 64 << 20;
/// ... but not after fewer copies than this, of which the one that is slower is a part ...
pub const STREAM_TRIAL_COPIES_MIN: u32 = 32;
/// ... nor after more than this, since who sends seldom is to learn of a change, too ...
pub const STREAM_TRIAL_COPIES_MAX: u32 = 256;
/// ... and after so many as long as less than three of each way were timed.
pub const STREAM_TRIAL_COPIES_AT_FIRST: u32 = 8;
/// Slots kept free of data and records, for the entries that manage the arena and the end.
pub const CONTROL_SLOTS: u64 = 4;
/// So many slots are published at the latest, also without a flush.
pub const BATCH_SLOTS: u64 = 16;
/// Entries of the ring on which buffers come back, and so the most blocks of one direction.
pub const MAX_BLOCKS: u32 = 1024;
/// Blocks of small messages are looked for on the return ring when so many were taken, or none is left ...
pub const REAP_BATCH: u32 = 8;
/// ... and those of longer ones each time, so that few of them lie in the cache.
pub const REAP_BATCH_MAX_BYTES: usize = 8 << 10;
/// Most arenas of one direction, the first included.
pub const MAX_SLABS: usize = 64;
/// Buffers of groups that the peer may hold at a time, each with a reference of its own; what goes beyond is copied. Each
/// comes back on the return ring as a block does ...
pub const MAX_SHARED_LOANS: u32 = 256;
/// ... which leaves room for so many blocks.
pub const MAX_ARENA_BLOCKS: u32 = MAX_BLOCKS - MAX_SHARED_LOANS;
/// Of blocks that are lent where they lie, a receiver keeps such as lie in arenas with at most half of all blocks ...
pub const MAX_KEPT_BLOCKS: u32 = MAX_ARENA_BLOCKS / 2;
/// ... and in at most half of the arenas. Beyond, and beyond half of what its arenas may have, messages are copied out, so that
/// the sender always has something left to send from.
pub const MAX_KEPT_SLABS: usize = MAX_SLABS / 2;
/// A block that was lent to us is sent back to its owner as it lies so often, or once more by one message of many parts; then it
/// is copied. When it is given back, one byte says how often.
pub const MAX_SENT_BACK: u32 = u8::MAX as u32 - zc_core::memory::MAX_SEGMENTS as u32;
/// Regions of groups that one side of a connection shows the other at a time; together no more than an arena may have.
pub const MAX_SHARED_REGIONS: usize = 128;
/// Groups that one connection is in.
pub const MAX_GROUPS: usize = 16;
/// Bytes of a block of the first arena: a page and a line, so that blocks don't share cache sets.
pub const FIRST_BLOCK_BYTES: u32 = 4096 + 64;
/// Blocks of the first arena by default.
pub const FIRST_BLOCKS: u32 = 13;
/// Most bytes of the memory that one side makes with a connection.
pub const MAX_HALF_BYTES: usize = 16 << 20;
/// Arenas made later hold about this many bytes, or one block.
pub const GROWTH_BYTES: usize = 256 << 10;
/// And at most this many, unless one block is larger.
pub const MAX_GROWTH_BYTES: usize = 8 << 20;
/// Blocks of an arena made later, at most.
pub const MAX_GROWTH_BLOCKS: usize = 64;
/// The most bytes of all arenas of one direction, by default.
pub const MAX_ARENA_BYTES: u64 = (1 << 30) + (64 << 20);
/// How often unused arenas are looked for, milliseconds. One unused that long is given back.
pub const TRIM_INTERVAL_MS: u64 = 1000;
/// Frames that wait for room in the ring or the arena; records can add to them without asking.
pub const MAX_QUEUED_FRAMES: usize = 1024;
/// Sends whose report has not been collected.
pub const MAX_REPORTS: usize = 1024;
/// Descriptors that a peer may send ahead of their entries in the ring; one more is an error.
pub const MAX_PENDING_DESCRIPTORS: usize = 8;
/// How long a lane waits for a descriptor when it needs memory of the peer that came and the process has none left, milliseconds;
/// then it ends. What was sent before that memory is received meanwhile. So long it is also waited for after the end, from a peer that
/// neither sends it nor ends its link ...
pub const DESCRIPTOR_WAIT_MS: u64 = 10_000;
/// ... and how often it looks for one.
pub const DESCRIPTOR_LOOK_MS: u64 = 50;
/// What is read of the link in one turn, at most.
pub const MAX_LINK_READS: usize = 64;
/// Lanes that are gone, but of whose buffers the application keeps clones while the peer reads them, or of groups: the links of so
/// many are watched for the end of the peer, two descriptors each. What goes beyond stays until the application drops its clones,
/// and memory of groups for good.
pub const MAX_ABANDONED_LINKS: usize = 256;
/// Most blocks of the memory that one side makes with a connection, counting those that overlap its control words; our own of
/// the longest ring has 2035.
pub const MAX_FRAMES: u32 = 4096;
/// Bytes of a private chunk, of which payloads that came in a slot are blocks ...
pub const SMALL_CHUNK_BYTES: usize = 8 << 10;
/// ... and how many there are; what is kept of them does not count against the lease.
pub const SMALL_CHUNKS: u32 = 16;
/// How often in a row the bell may ring for nothing before other tasks get their turn.
pub const MAX_IDLE_RINGS: usize = 8;
/// Slots of the ring on which the one-sided halves of a lane talk, a power of two.
pub const REMOTE_SLOTS: u32 = 16;
/// One-sided operations that wait, for the peer to say what a key stands for or for their completion to be collected.
pub const MAX_REMOTE_OPERATIONS: usize = 64;
/// Keys of one connection that are valid at a time, each way.
pub const MAX_REMOTE_KEYS: usize = 1024;
/// Exports of one connection that the peer can have mapped at a time; one that is granted both for reading only and for
/// writing counts twice.
pub const MAX_REMOTE_WINDOWS: usize = 256;
/// Bytes of all of them, all of whose pages are there.
pub const MAX_REMOTE_BYTES: u64 = 64 << 30;
/// Notifications of one connection on their way to the exports of their keys, all exports together; one more is `Busy`.
pub const NOTIFY_WINDOW: u64 = 256;
