//! The bounds of a stream lane (M9).

/// Payloads up to this many bytes are written together with their header.
pub const COALESCE_MAX: usize = 512;
/// The buffer in which small frames are put together, bytes.
pub const STAGE_BYTES: usize = 64 << 10;
/// Frames of at least this many bytes are read into a buffer of their own.
pub const DIRECT_MIN: usize = 16 << 10;
/// Where pieces are fed as they come: payloads from this length on that are not whole are kept as these pieces. Shorter ones are
/// put together by a copy.
pub const ROPE_MIN: usize = DIRECT_MIN;
/// A rope may keep so many times its length, in receive buffers; one that keeps more is put together by a copy, unless it is
/// at most [`ROPE_MIN_BLOCKS`].
pub const ROPE_KEEPS: usize = 2;
/// Receive buffers that any rope may keep: what comes in a row lies in two as often as not.
pub const ROPE_MIN_BLOCKS: usize = 2;
/// Small frames in a row after which reading ahead begins again.
pub(super) const EXACT_FRAMES: u32 = 16;
/// Frames that a lane queues before it is not ready.
pub const MAX_QUEUED_FRAMES: usize = 1024;
/// Bytes that a lane queues before it is not ready; one frame may exceed it.
pub const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Bytes of session records that a lane queues for a peer that does not read, besides data and remote records: a
/// further one fails the connection. About one for each of the messages that may be under way.
pub const MAX_QUEUED_RECORD_BYTES: usize = 256 << 10;
/// Pieces of one write; the kernel takes up to 1024 (`IOV_MAX`).
pub const MAX_IOV: usize = 128;
/// Stages of one lane; beyond, small frames are queued by reference.
pub(super) const MAX_STAGES: usize = 2 * MAX_QUEUED_BYTES / STAGE_BYTES;
