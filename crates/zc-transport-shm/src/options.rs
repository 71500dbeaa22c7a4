//! What the user of the transport chooses. Whom to talk to and whom to trust is the fabric's policy.

use crate::limits::{MAX_ARENA_BYTES, RING_SLOTS};

/// How connections over shared memory are made.
///
/// ```
/// use zc_transport_shm::{ShmOptions, ShmTransport};
///
/// let mut options = ShmOptions::default();
/// options.ring_slots = 1024;
/// options.max_arena_bytes = 64 << 20; // of each direction of each connection
/// options.longer_in_parts = true; // else a message of 65 MiB is refused
/// let transport = ShmTransport::new(options);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ShmOptions {
    /// Slots of the ring, rounded up to a power of two.
    pub ring_slots: u32,
    /// Most bytes of memory that one direction of a connection may use, and so the longest message that goes in one piece.
    pub max_arena_bytes: u64,
    /// Whether this side sends longer ones in parts, up to the length that the peer takes: each byte is copied once by either
    /// side, and lies in the peer's pool then. Off by default: they are refused.
    pub longer_in_parts: bool,
    /// Whether long payload that must be copied into the connection's memory is copied past the caches where that takes at most
    /// half of the time, which is tried now and then. On by default; always off where the processor is no x86-64.
    pub streaming_copies: bool,
}

impl Default for ShmOptions {
    fn default() -> Self {
        Self {
            ring_slots: RING_SLOTS,
            max_arena_bytes: MAX_ARENA_BYTES,
            longer_in_parts: false,
            streaming_copies: true,
        }
    }
}
