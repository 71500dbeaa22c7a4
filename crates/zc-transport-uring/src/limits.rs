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
/// Bytes received for one socket and not taken, after which receiving pauses; a short piece counts as the buffer that
/// it keeps, or as [`MIN_PIECE_BYTES`]. Until the kernel has paused, all receive buffers may follow.
pub const MAX_INBOX_BYTES: usize = 4 << 20;
/// What a received piece counts at least where many share a buffer: each may keep one that others have taken theirs of.
pub const MIN_PIECE_BYTES: usize = 4 << 10;
/// The longest single transfer; the kernel takes no more.
pub const MAX_TRANSFER_BYTES: usize = 0x7fff_f000;
/// How long an engine that ends waits for its operations before it gives them to the undertaker.
pub const DRAIN_MS: u64 = 1_000;
/// How long the kernel may take to let go of a closed ring; then its memory is leaked.
pub const GRAVE_MS: u64 = 10_000;
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
