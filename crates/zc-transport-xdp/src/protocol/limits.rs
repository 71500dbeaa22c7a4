//! The bounds of the protocol (M9).

use std::time::Duration;

use zc_core::memory::MAX_SEGMENTS;

/// Shortest datagram (UDP payload) that two sides may agree on, bytes. Every path of the Internet carries it (RFC 9000, 14).
pub const MIN_DATAGRAM_BYTES: usize = 1200;
/// Longest datagram, bytes: what UDP over IPv4 carries, rounded down.
pub const MAX_DATAGRAM_BYTES: usize = 65_000;
/// Ranges of packet numbers that a receiver remembers for its acknowledgements, the newest.
pub const MAX_ACK_RANGES: usize = 64;
/// Packet numbers below the highest that may still come. Older ones count as replays.
pub const REPLAY_WINDOW_PACKETS: u64 = 2048;
/// Packets that a session keeps track of: those not settled, and others sent since the oldest of them.
pub const MAX_SENT_PACKETS: usize = 1 << 16;
/// Chunks from the oldest that is not acknowledged to the newest that was sent.
pub const MAX_CHUNK_SPAN: usize = 1 << 16;
/// Pieces of consecutive chunks that one packet carries.
pub const MAX_PACKET_RUNS: usize = 8;
/// Payload slices of one packet.
pub const MAX_PACKET_SLICES: usize = MAX_SEGMENTS;
/// Messages that need no credit (session and remote records) which a receiver keeps, besides the next in order.
pub const MAX_UNCREDITED_MESSAGES: usize = 256;
/// Largest window of messages.
pub const MAX_WINDOW_MESSAGES: u32 = 1 << 16;
/// A receiver acknowledges after this many packets that ask for it, if the sender does not ask earlier.
pub const ACK_EVERY_PACKETS: u32 = 32;
/// Packets after a missing one that let it count as lost (kPacketThreshold of RFC 9002).
pub const PACKET_THRESHOLD: u64 = 3;
/// The shortest time that timers tell apart (kGranularity of RFC 9002).
pub const GRANULARITY: Duration = Duration::from_millis(1);
/// Round-trip time before the first was measured. RFC 9002 recommends 333 ms; here wire-up has just used the path.
pub const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Longest time between two probes, however long the peer has been silent.
pub const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest delay of acknowledgements that a peer may announce.
pub const MAX_ACK_DELAY: Duration = Duration::from_millis(100);
/// The congestion window at the start, packets (kInitialWindow of RFC 9002).
pub const INITIAL_WINDOW_PACKETS: u64 = 10;
/// The smallest congestion window, packets (kMinimumWindow of RFC 9002).
pub const MIN_WINDOW_PACKETS: u64 = 2;
/// The largest congestion window, packets.
pub const MAX_WINDOW_PACKETS: u64 = 1 << 14;
/// Packets that may leave at once whatever the pacing.
pub const MAX_BURST_PACKETS: u64 = 10;
/// Packet numbers between two that a sender leaves out, so that a peer which acknowledges what it never saw is found
/// out: at least this many, at most twice as many.
pub const SKIP_EVERY_PACKETS: u64 = 512;
/// Probes after which a round of silence ends, packets.
pub const PROBES: u32 = 2;
/// Packets of full length that are sent in keepalive's time once long ones are lost, to see whether the path carries such.
pub(crate) const LONG_PROBES: u32 = 8;
/// So many of them are lost, at least, where a path carries none.
pub(crate) const LOST_LONG_PROBES: u32 = 3;
/// Longest chunk that is put on the heap when the pool has no memory and its packet does not stay, bytes.
pub(crate) const MAX_HEAP_CHUNK_BYTES: usize = 2048;
