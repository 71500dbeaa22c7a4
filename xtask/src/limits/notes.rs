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
    note("ConnectionOptions::drain", "", "how long a closed connection's queue is kept"),
    note("Deadlines::connect", "above 0", "how long a half-open connection is kept"),
    note("Deadlines::hello", "above 0", "as above"),
    note("Deadlines::offers", "above 0", "as above"),
    note("Deadlines::join", "above 0", "as above"),
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
    note("BufPoolBuilder::max_bytes", "above 0", "the bound of everything that the pool maps"),
    note("BufPoolBuilder::large_cache_bytes", "up to `max_bytes`", "so much is kept for reuse"),
    note("BufPoolBuilder::headroom", "", "so much more in every buffer"),
    Note { option: "FabricBuilder::policy", range: "", memory: "none", variable: "ZC_TRANSPORTS" },
];

/// `{NAME}` stands for a constant's value.
pub(super) const SIZING: &str = "\
Memory of one connection, at most, in bytes:

```text
received, not taken    recv_window + one message (up to recv_max_message)
lent                   lease_hard + recv_window + one message, those not taken included
queued for sending     {MAX_QUEUED_BYTES} + one message, and a stage of {STAGE_BYTES}
held by the kernel     up to {MAX_HELD_SENDS} zero-copy sends of what was queued
```

An idle connection holds none of it. All payload memory comes from the fabric's pool, so that for a process

```text
payload memory  <=  BufPoolBuilder::max_bytes
                    = a {DEFAULT_POOL_DIVISOR}th of the memory limit, between {DEFAULT_POOL_MIN_BYTES} and {DEFAULT_POOL_MAX_BYTES}, by default
connections that never wait for memory  =  max_bytes / (recv_window + lease_hard + {MAX_QUEUED_BYTES} + {STAGE_BYTES})
descriptors     =  1 per connection on a stream, 1 per listener, and up to {MAX_HANDSHAKES} per listener for handshakes under way
```

More connections than that are fine as long as not all are busy at once: whoever finds the pool exhausted waits.
";
