//! The bounds of this crate (M9).

/// Frames that go back to the kernel together: fewer wait until so many are there.
pub(crate) const REFILL_BATCH: u32 = 16;
/// Frames that the kernel has for receiving while few packets come, for each queue. Of a frame some six cache lines are
/// touched, always in the same places of it, so of a second-level cache of 1 MiB these 512 take half of what they can have.
pub(crate) const MIN_STOCK_FRAMES: u32 = 512;
/// Refills in a row that find little used, until the kernel has half as many: 64 Ki packets at least.
pub(crate) const CALM_REFILLS: u32 = 4096;
/// Times that one flush wakes the kernel: in copy mode it takes 32 packets or so each time.
pub(crate) const KICKS_PER_FLUSH: u32 = 128;
/// Most queues of an interface.
pub const MAX_QUEUES: u32 = 256;
/// Most ports that a program is made with; others can be added.
pub const MAX_PORTS: u32 = 256;
/// Ports that a program looks up: all that there are.
pub(crate) const ALL_PORTS: u32 = 1 << 16;
/// What the kernel takes for that at most, with all of a program's maps, and those of one that could not be attached, bytes.
pub(crate) const MAPS_BYTES: u64 = 2 << 20;
/// Most addresses that a program is narrowed down to.
pub const MAX_ADDRESSES: usize = 16;
/// Fewest entries of a ring.
pub const MIN_RING_ENTRIES: u32 = 16;
/// Most entries of a ring.
pub const MAX_RING_ENTRIES: u32 = 1 << 15;
/// Most frames that the kernel has for receiving, for each queue, unless others are asked for.
pub const DEFAULT_FILL_FRAMES: u32 = 2048;
/// Most frames of one packet, received or sent: 64 KiB of payload in frames of 4 KiB.
pub const MAX_PACKET_FRAMES: usize = 17;
/// How long a queue that somebody else has just closed may be busy; then it counts as in use.
pub const BIND_PATIENCE_MS: u64 = 2_000;
/// Bytes of one answer from netlink.
pub const NETLINK_BYTES: usize = 64 << 10;
/// Answers of one netlink dump; what goes beyond is an error.
pub const MAX_NETLINK_ANSWERS: usize = 1 << 16;
/// Sessions of one local address.
pub const MAX_SESSIONS: usize = 1 << 16;
/// Offers of one transport that wait for their peer's; the oldest goes when there are more.
pub const MAX_OFFERED: usize = 1 << 12;
/// So long an offer waits for the peer's at most.
pub const OFFERED_MS: u64 = 30_000;
/// So long an interface that was refused is not tried again: to try takes as long as many connections.
pub const REFUSED_MS: u64 = 1_000;
/// So long after an interface began to be opened an offer waits for it; then the connection comes up over something else. Well below the
/// deadline for offers, which has to do for both sides.
pub(crate) const OPENING_MS: u64 = 1_500;
/// The same for a thread that may sleep.
pub(crate) const OPENING_HERE_MS: u64 = 5_000;
/// Milliseconds after which an interface that is not to stay open looks again whether who waited for it is still about to take it.
pub(crate) const TAKING_MS: u64 = 100;
/// Addresses that one transport has sockets for.
pub const MAX_ENGINES: usize = 64;
/// Packets that a session makes before it hands them to the system.
pub(crate) const BATCH_PACKETS: usize = 64;
/// Times that an engine's task receives before others have their turn.
pub(crate) const RECEIVES_PER_TURN: usize = 16;
/// So often in a row somebody must have looked for packets when an engine's task is woken for some, before it leaves them to him.
pub(crate) const TURNS_LOOKED_AT: u32 = 16;
/// So long an engine's task leaves what comes to whoever spins, before it asks whether he still does.
pub(crate) const LEAVES_IT_MS: u64 = 1;
/// Room of a UDP socket in the kernel that is asked for, in either direction, bytes.
pub const UDP_BUFFER_BYTES: usize = 4 << 20;
/// Longest datagram on paths that carry longer ones, bytes: of the loopback interface, about seven go in one call.
pub const UDP_DATAGRAM_BYTES: u16 = 8_948;
/// What one call receives at most, bytes.
pub(crate) const UDP_RECEIVE_BYTES: usize = 64 << 10;
/// Calls before what came is settled.
pub(crate) const UDP_RECEIVES_PER_CALL: usize = 8;
/// What one call sends at most, bytes: what UDP and the kernel take, rounded down.
pub(crate) const UDP_SEND_BYTES: usize = 65_000;
/// Datagrams of one call (UDP_MAX_SEGMENTS of old kernels).
pub(crate) const UDP_SEND_PACKETS: usize = 64;
/// Shorter datagrams are copied out of what came in one call, rather than keep all of it.
pub(crate) const UDP_LENT_MIN_BYTES: usize = UDP_RECEIVE_BYTES / 8;
/// Times that all which has come is looked for, when the peer has ended.
pub(crate) const MAX_LOOKS: usize = 64;
/// Packets that are taken from a queue before others have their turn.
pub(crate) const DEVICE_RECEIVES_PER_CALL: usize = 64;
/// As many frames on their way out are looked after before others follow; fewer are when somebody looks for what comes.
pub(crate) const REAPED_IN_FLIGHT: u32 = 32;
/// After so long what the kernel did not take is shown to it again, and those that found no frame try again.
pub(crate) const DEVICE_AGAIN_MS: u64 = 1;
/// So long a device stays open after its last connection: to open it costs as much as many connections.
pub const DEVICE_STAYS_MS: u64 = 500;
/// Shorter payload is copied behind its headers, wherever it lies: two descriptors cost more.
pub(crate) const IN_PLACE_MIN_BYTES: usize = 256;
/// Longest time that an address can have one look poll the device, microseconds.
pub const MAX_BUSY_POLL_US: u32 = 1_000;
/// Packets that one look polls for, unless options say otherwise.
pub(crate) const BUSY_POLL_PACKETS: u32 = 64;
/// Frames of an engine's memory, by default: 16 MiB of the shorter ones.
pub const XDP_FRAMES: u32 = 8192;
