//! What no source says about options: what may be set, what it costs, and the variable that overrides it.

pub(super) struct Note {
    pub(super) option: &'static str,
    pub(super) range: &'static str,
    pub(super) memory: &'static str,
    pub(super) variable: &'static str,
}

const fn note(option: &'static str, range: &'static str, memory: &'static str) -> Note {
    Note { option, range, memory, variable: "" }
}

pub(super) const NOTES: &[Note] = &[
    note("ConnectionOptions::polling", "", "none; `Busy` takes a core"),
    note("ConnectionOptions::keepalive_interval", "0 turns it off", "a PING and a PONG per interval"),
    note("ConnectionOptions::keepalive_timeout", "", "how long a dead peer's memory is kept"),
    note("ConnectionOptions::idle", "none turns it off", "how long a connection that nobody uses is kept"),
    note("ConnectionOptions::drain", "", "how long a closed connection's queue is kept"),
    note("Deadlines::connect", "above 0", "how long a half-open connection is kept"),
    note("Deadlines::hello", "above 0", "as above"),
    note("Deadlines::authenticate", "above 0", "as above"),
    note("Deadlines::offers", "above 0", "as above"),
    note("Deadlines::join", "above 0", "as above"),
    note("Deadlines::total", "above 0", "as above, for all of it"),
    note(
        "LaneLimits::recv_max_message",
        "up to 4 GiB - 1; what is longer than 3/4 of the pool's bound ends the connection",
        "one buffer of that size while such a message is received, taken by its header alone: of the pool's bound, \
         not of real memory, which follows what comes unless the pool is prefaulted or locked",
    ),
    note("LaneLimits::send_max_message", "set by the peer's HELLO", "none"),
    note(
        "LaneLimits::recv_window",
        "up to 4 GiB - 1",
        "so much received and not taken; one message may exceed it",
    ),
    note("LaneLimits::send_window", "set by the peer's HELLO", "none here; the peer's `recv_window`"),
    note("LaneLimits::lease_soft", "up to `lease_hard`", "so much lent before small messages are copied out"),
    note(
        "LaneLimits::lease_hard",
        "",
        "so much lent, and what the peer was granted before: `recv_window` and one message",
    ),
    note("RdmaOptions::recv_buffers", "what the device can do", "so many buffers, as connections come"),
    note(
        "RdmaOptions::recv_buffer_bytes",
        "`MIN_EAGER_BYTES` to `MAX_RECV_BYTES`",
        "so much for each receive buffer",
    ),
    note(
        "RdmaOptions::send_depth",
        "`MIN_LANE_DEPTH` to `MAX_SEND_DEPTH`",
        "so many requests' descriptions for each connection",
    ),
    note("RdmaOptions::completions", "what the device can do", "about 64 B each"),
    note("RdmaOptions::spin", "none turns it off", "none; takes a core for so long after each completion"),
    note("BufPoolBuilder::max_bytes", "above 0", "the bound of everything that the pool maps"),
    note("BufPoolBuilder::large_cache_bytes", "up to `max_bytes`", "so much is kept for reuse"),
    note("BufPoolBuilder::headroom", "", "so much more in every buffer"),
    note("BufPoolBuilder::region_bytes", "up to `max_bytes`", "so much is mapped with the first buffer"),
    note("SessionOptions::datagram_bytes", "1200 to 65000", "none"),
    note(
        "SessionOptions::authenticate_payload",
        "either side may ask for it",
        "none; about 0.5 µs of processor for 1000 bytes",
    ),
    note("SessionOptions::congestion", "", "none"),
    note(
        "SessionOptions::max_message",
        "up to 4 GiB - 1",
        "one buffer of that size while such a message is received",
    ),
    note(
        "SessionOptions::window_bytes",
        "above 0",
        "so much received and not taken; one message may exceed it",
    ),
    note(
        "SessionOptions::window_messages",
        "1 to 65536",
        "a packet's memory for each message that was received and not taken",
    ),
    note(
        "SessionOptions::queue_messages",
        "1 to 65536",
        "so many messages are kept until they are acknowledged",
    ),
    note(
        "SessionOptions::queue_bytes",
        "",
        "so much is kept until it is acknowledged; one message may exceed it",
    ),
    note(
        "SessionOptions::rope_segments",
        "1 to 64",
        "a message of so many packets keeps them until it is dropped",
    ),
    note("SessionOptions::lent_packets", "", "so many packets are kept for messages that nobody took"),
    note(
        "SessionOptions::ack_delay",
        "up to 100 ms",
        "none; how long the sender keeps what has come, on top of the path's time",
    ),
    note("SessionOptions::keepalive_interval", "1 ms to a day", "a packet each way per interval"),
    note("SessionOptions::keepalive_timeout", "1 ms to a day", "how long a dead peer's memory is kept"),
    note("EngineOptions::max_spilled_bytes", "", "so much of the heap, about twice for a moment"),
    note("UringOptions::flavour", "", "none"),
    note("UringOptions::recv_buffers", "up to `MAX_RECV_BUFFERS`", "as `EngineOptions::recv_buffers`"),
    note("UringOptions::recv_buffer_bytes", "above 0", "so much for each receive buffer"),
    note("UringOptions::spin", "none turns it off", "none; takes its share of a core"),
    note("UringOptions::rings", "1 to `MAX_RINGS`", "its receive buffers, a task and four descriptors, each"),
    note(
        "UringOptions::max_spilled_bytes",
        "",
        "so much of the heap for each ring, about twice for a moment",
    ),
    note("UringOptions::idle", "", "the rings and their receive buffers meanwhile"),
    note("UringOptions::zero_copy", "", "what is sent so is kept until the peer has acknowledged it"),
    note(
        "UringOptions::registered_regions",
        "0 to `MAX_REGISTERED_REGIONS`",
        "as `EngineOptions::registered_regions`",
    ),
    note("UringOptions::zero_copy_receive", "none turns it off", "`ZcrxOptions::area_bytes`, for each ring"),
    note("EngineOptions::zero_copy_receive", "none turns it off", "`ZcrxOptions::area_bytes`"),
    note(
        "ZcrxOptions::area_bytes",
        "a page to `MAX_ZCRX_AREA_BYTES`",
        "so much, locked, and about 150 B for each page",
    ),
    note("ZcrxOptions::source", "", "none"),
    note("ZcrxOptions::steers", "", "a rule of the NIC for each connection"),
    note("ChannelBuilder::greeting_timeout", "above 0", "how long a silent connection is kept"),
    note("Limits::max_calls", "above 0", "so many times headers, and `send_buffer_bytes` of body"),
    note(
        "Limits::call_window_bytes",
        "up to 2 GiB - 1",
        "so much of one call's body, received and not taken",
    ),
    note(
        "Limits::connection_window_bytes",
        "up to 2 GiB - 1",
        "so much of all bodies, received and not taken; within the connection's lease",
    ),
    note(
        "Limits::call_reserve_bytes",
        "up to 2 GiB - 1; 0 turns it off",
        "so much for each call whose body is held, on top of `connection_window_bytes`",
    ),
    note("Limits::max_header_bytes", "up to 60 KiB", "so much for each call under way"),
    note("Limits::max_header_count", "above 0", "within `max_header_bytes`"),
    note("Limits::table_bytes", "up to 64 KiB; 0 turns it off", "so much in each direction"),
    note("Limits::max_body_frame_bytes", "1 KiB and more", "none: a body is sent from where it lies"),
    note("Limits::send_buffer_bytes", "", "so much, and one piece of the body, for each call under way"),
    note("Limits::resets_per_s", "", "none"),
    note("Limits::reset_burst", "", "none"),
    note("ShmOptions::ring_slots", "32 to 65,536", "128 B each, in each direction"),
    note(
        "ShmOptions::max_arena_bytes",
        "the smaller of both sides' counts",
        "grows to it on demand; what nobody used for 1 to 2 s is given back",
    ),
    note(
        "ShmOptions::longer_in_parts",
        "",
        "one buffer of the receiver's pool while such a message comes, taken by its length alone, as of a stream",
    ),
    note("ShmOptions::streaming_copies", "", "none"),
    note("EngineOptions::flavour", "", "none"),
    note(
        "EngineOptions::max_operations",
        "above 0",
        "about 250 B for each that was ever under way at a time",
    ),
    note("EngineOptions::max_sockets", "", "about 400 B for each that was ever there at a time"),
    note(
        "EngineOptions::recv_buffers",
        "up to `MAX_RECV_BUFFERS`",
        "so many buffers from the first receive on, and what the application keeps of them",
    ),
    note("EngineOptions::recv_buffer_bytes", "above 0", "so much for each receive buffer"),
    note(
        "EngineOptions::incremental",
        "",
        "without it each piece received, however short, keeps a whole buffer",
    ),
    note("EngineOptions::bundles", "", "none"),
    note("EngineOptions::spin", "none turns it off", "none; takes its share of a core"),
    note("UdpOptions::datagram_bytes", "1200 to 65000, and what the path carries", "none"),
    note("UdpOptions::together", "", "none"),
    note("XdpOptions::frames", "32 or more", "so many frames, pinned, for each interface in use"),
    note("XdpOptions::frame_bytes", "2048 or 4096", "so much for each frame"),
    note("XdpOptions::best", "up to `worst`", "none"),
    note("XdpOptions::worst", "", "none"),
    note("XdpOptions::in_place", "", "a frame more for each packet on its way"),
    note("XdpOptions::stays_for", "none at 0", "the frames, for so long"),
    note("XdpOptions::faults", "none turns it off", "none"),
    note("UmemOptions::frames", "32 or more", "so many frames, pinned, and 100 B for each in every queue"),
    note("UmemOptions::frame_bytes", "2048 or 4096", "so much for each frame"),
    note("UmemOptions::backing", "", "none"),
    note("UmemOptions::max_copied_out_bytes", "above 0", "so much, if the application keeps all frames"),
    note("DeviceOptions::rules", "up to `MAX_PORTS` and `MAX_ADDRESSES`", "none"),
    note("DeviceOptions::best", "up to `worst`", "none"),
    note("DeviceOptions::worst", "", "none"),
    note("DeviceOptions::rx_entries", "16 to 32,768", "16 B each, for each queue"),
    note("DeviceOptions::tx_entries", "16 to 32,768", "32 B each, for each queue"),
    note(
        "DeviceOptions::fill_frames",
        "16 to 32,768; by default up to `DEFAULT_FILL_FRAMES`",
        "so many frames of the UMEM, for each queue",
    ),
    note("DeviceOptions::checksums", "", "24 B in front of each frame that is sent"),
    note("DeviceOptions::multi_buffer", "", "none"),
    note("DeviceOptions::busy_polling", "none turns it off", "none"),
    note(
        "EngineOptions::zero_copy",
        "",
        "the memory of such a send is kept until the peer has acknowledged it",
    ),
    note(
        "SendFileOptions::chunk_bytes",
        "up to the peer's `recv_max_message`",
        "two such buffers besides what is queued for sending, where a file is read; none where it is spliced",
    ),
    note("SendFileOptions::way", "", "none"),
    note("SendFileOptions::unchanged", "", "none"),
    note("SendFileOptions::completion", "", "none"),
    Note { option: "FabricBuilder::policy", range: "", memory: "none", variable: "ZC_TRANSPORTS" },
];

/// `{NAME}` stands for a constant's value.
pub(super) const SIZING: &str = "\
Memory of one connection, at most, in bytes:

```text
received, not taken    recv_window + one message (up to recv_max_message)
lent                   lease_hard + recv_window + one message, those not taken included
queued for sending     {MAX_QUEUED_BYTES} + one message, and a stage of {STAGE_BYTES}
                       records: {MAX_QUEUED_RECORD_BYTES}, and remote ones 2 x {MAX_REMOTE_RECORDS} x {MAX_REMOTE_RECORD_BYTES} where memory is exported
held by the kernel     up to {MAX_HELD_SENDS} zero-copy sends of what was queued
```

An idle connection holds none of it. All payload memory comes from the fabric's pool, so that for a process

```text
payload memory  <=  BufPoolBuilder::max_bytes
                    = a {DEFAULT_POOL_DIVISOR}th of the memory limit, between {DEFAULT_POOL_MIN_BYTES} and {DEFAULT_POOL_MAX_BYTES}, by default
connections that never wait for memory  =  max_bytes / (recv_window + lease_hard + {MAX_QUEUED_BYTES} + {MAX_QUEUED_RECORD_BYTES} + {STAGE_BYTES})
descriptors     =  1 per connection on a stream, 1 per listener, and up to {MAX_HANDSHAKES} per listener for handshakes under way;
                   a connection that sent without a copy keeps its descriptor, and what the kernel holds, for up to
                   {LINGER_MS} + {ABORT_MS} after its end, until the peer has acknowledged it
```

A `Group` has a pool of its own, with a bound as large as that of the fabric's pool unless it was given one. Shared
memory and HTTP come on top:

```text
shm, each direction    12 KiB + ring_slots x {SLOT_BYTES} + {FIRST_BLOCKS} x {FIRST_BLOCK_BYTES} at once, up to max_arena_bytes on demand
                       in up to {MAX_SLABS} pieces, each with a descriptor of its own;
                       of groups, max_arena_bytes more in up to {MAX_SHARED_REGIONS} mappings without descriptors, each with
                       tables of 17 KiB for {MAX_SHARED_LOANS} loans
HTTP, per connection   received: connection_window_bytes + max_calls x (2 x call_reserve_bytes + max_header_bytes)
                       to be sent: max_calls x (send_buffer_bytes + one piece of a body)
                       calls that wait for their turn: up to {MAX_WAITING}, with their headers
```

More connections than that are fine as long as not all are busy at once: whoever finds the pool exhausted waits.
";
