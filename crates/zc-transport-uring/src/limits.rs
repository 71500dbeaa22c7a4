//! The bounds of this crate (M9).

/// Entries of a submission queue; more operations of one turn take another system call each time.
pub const SQ_ENTRIES: u32 = 256;
/// Entries of a completion queue. What does not fit is kept by the kernel, and costs more.
pub const CQ_ENTRIES: u32 = 4096;
/// Operations of one engine at a time; further ones wait for a place.
pub const MAX_OPERATIONS: usize = 64 << 10;
/// Sockets of one engine at a time; further ones are refused. Each may receive for as long as it lives, so this takes
/// no place of an operation.
pub const MAX_SOCKETS: usize = 64 << 10;
/// Receive buffers that the kernel chooses from, by default.
pub const RECV_BUFFERS: u16 = 32;
/// The most that may be asked for, as the kernel has it.
pub const MAX_RECV_BUFFERS: u16 = 1 << 15;
/// The length of each where the kernel fills one bit by bit.
pub const RECV_BUFFER_BYTES: usize = 64 << 10;
/// The length of each where one receive takes a whole one.
pub const WHOLE_RECV_BUFFER_BYTES: usize = 8 << 10;
/// Bytes received for one socket and not taken, after which receiving pauses; the first piece of a buffer counts
/// as all of it, since it keeps it, and each further one as [`MIN_PIECE_BYTES`]. Until the kernel has paused, all receive buffers may follow.
pub const MAX_INBOX_BYTES: usize = 4 << 20;
/// What a further piece of the same buffer counts: what it takes to keep it in mind.
pub const MIN_PIECE_BYTES: usize = 256;
/// Lanes of one engine that read their sockets themselves while they look; further ones look at the ring.
pub const MAX_HOT_LANES: usize = 2;
/// So often in a row a lane must find something by a look before it reads its socket itself.
pub const HOT_LOOKS: u32 = 32;
/// Of what it then reads at a time.
pub const HOT_READ_BYTES: usize = 64 << 10;
/// The longest single transfer; the kernel takes no more.
pub const MAX_TRANSFER_BYTES: usize = 0x7fff_f000;
/// Rings of one runtime; more are not set up.
pub const MAX_RINGS: usize = 16;
/// Worker threads of a runtime that share a ring, by default.
pub const THREADS_PER_RING: usize = 2;
/// How long the rings of a runtime are kept after its last connection, by default.
pub const IDLE_MS: u64 = 5_000;
/// Runtimes without a ring of which it is remembered that they go on in other threads; the oldest are forgotten.
pub const MAX_MOVED_RUNTIMES: usize = 64;
/// How long a machine that refuses io_uring is not asked again: a filter, a setting or a kernel does not change in between.
pub const REFUSED_MS: u64 = 60_000;
/// Regions of memory that a ring knows ahead; further ones are used in the ordinary way.
pub const MAX_REGISTERED_REGIONS: u16 = 1_024;
/// The longest region that can be made known, as the kernel has it.
pub const MAX_REGION_BYTES: usize = 1 << 30;
/// The longest region that is made known without being asked to: the engine does nothing else meanwhile, and it takes tens of
/// milliseconds if nobody has touched the memory. Pools grow by no more by themselves.
pub const MAX_UNASKED_REGION_BYTES: usize = 32 << 20;
/// Of the memory that the process may lock, the part up to which regions are made known without being asked to: one of so many.
pub const UNASKED_MEMLOCK_DIVISOR: u64 = 2;
/// Payloads of at least so many bytes may be sent out of the memory itself.
pub const ZERO_COPY_MIN_BYTES: usize = 64 << 10;
/// Sends that must go without a copy before all large ones to this peer go so.
pub const ZERO_COPY_PROBES: u32 = 4;
/// How long a peer is sent to in the ordinary way after the kernel has copied; twice as long each time.
pub const ZERO_COPY_REST_MS: u64 = 1_000;
/// The longest such rest.
pub const ZERO_COPY_REST_MAX_MS: u64 = 300_000;
/// Sends without a copy after which the next rest is the shortest again.
pub const ZERO_COPY_SETTLED: u32 = 64;
/// Memory that a NIC is offered when it is asked whether it can put what it receives there.
pub const ZCRX_PROBE_BYTES: usize = 1 << 20;
/// Memory into which a NIC puts what it receives, by default; a NIC keeps a part of it ready for its receive ring.
pub const ZCRX_AREA_BYTES: usize = 64 << 20;
/// The most that may be asked for, as the kernel has it.
pub const MAX_ZCRX_AREA_BYTES: usize = 1 << 30;
/// The most entries of the ring on which pieces of it go back, as the kernel has it; beyond, they wait.
pub const MAX_ZCRX_REFILL_ENTRIES: u32 = 1 << 15;
/// Once this part of the area's pages is lent, one of so many, what comes is copied out of it.
pub const ZCRX_LENT_DIVISOR: usize = 2;
/// Connections of one engine that wait for a rule of the NIC; further ones come as they do.
pub const MAX_STEERING: usize = 1_024;
/// After so long receives are tried again that found no room in the area, if nothing has come back before.
pub const ZCRX_RETRY_MS: u64 = 10;
/// How long an engine that ends waits for its operations before it gives them to the undertaker.
pub const DRAIN_MS: u64 = 1_000;
/// How long the kernel may take to let go of a closed ring; then connections are cut that keep it, see `ABORT_MS`.
pub const GRAVE_MS: u64 = 10_000;
/// How long it may then take; what is left is leaked.
pub const ABORT_MS: u64 = 1_000;
/// Closed rings that the undertaker waits for at a time; the memory of further ones is leaked at once.
pub const MAX_GRAVES: usize = 1_024;
/// How often the kernel is asked to end an operation that it cannot find for the moment.
pub(crate) const MAX_CANCELS: u8 = 4;
/// Looks in a row at the completion queue in one turn of an engine that spins.
pub(crate) const LOOKS_PER_TURN: u32 = 32;
/// Descriptions of vectored sends that are kept for reuse.
pub(crate) const MAX_SPARE_PARTS: usize = 64;
/// Rounds of the last attempt to drain when an engine's task is dropped.
pub(crate) const FAREWELL_ROUNDS: usize = 8;
/// Messages of a stream of at least this many bytes are received straight into memory of their own.
pub const LARGE_MIN: usize = 256 << 10;
/// The most that one operation receives so: between two of them the peer shows that it goes on.
pub const DIRECT_BYTES: usize = 256 << 10;
/// One that takes longer, and is looked at, is ended, and what has come shows that the peer goes on; then one
/// receives what there is instead of all, until as much comes in that time.
pub const SLOW_RECEIVE_MS: u64 = 1_000;
/// The most that one operation of a stream sends.
pub const BATCH_BYTES: usize = 512 << 10;
/// Operations of one stream out of the memory itself whose notification is missing; past it, ordinary ones.
pub const MAX_UNRELEASED_SENDS: usize = 64;
/// How long the peer may take to acknowledge what a stream that is gone sent out of the memory itself.
pub const RELEASE_MS: u64 = 10_000;
/// How long the kernel may take to let go of it after the connection was reset.
pub(crate) const RESET_MS: u64 = 1_000;
/// Streams of one engine that wait so at a time, each for `RELEASE_MS` and `RESET_MS` at most; further ones are reset at once.
pub const MAX_LINGERS: usize = 256;
/// Bytes of messages that lie on the heap for all streams of an engine, while its pool is exhausted; connections that need more fail.
pub const MAX_SPILLED_BYTES: usize = 64 << 20;
/// Memory that each stream keeps, for the heads of long messages.
pub const SCRATCH_BYTES: usize = 256;
/// Pieces that a stream takes in one poll; then others get their turn.
pub(crate) const READS_PER_POLL: usize = 32;
/// By default an engine's receive buffers take at most this part of the pool: one of so many.
pub const RECV_POOL_DIVISOR: usize = 8;
/// The shortest receive buffer that is made when the pool is small.
pub const MIN_RECV_BUFFER_BYTES: usize = 4 << 10;
