//! Reliable messages over UDP packets, for AF_XDP sockets and for ordinary ones.
//!
//! * [`protocol`]: sessions without I/O or clocks.
//! * [`device`]: packets in and out of frames that the kernel's driver, or the kernel, fills and reads.
//! * [`program`]: the XDP program that leads packets of our ports there, and nothing else.
//! * [`netlink`]: what the kernel knows of interfaces, routes and neighbours.
//! * [`XdpTransport`]: connections by the first over the second.
//! * [`UdpTransport`]: the same over ordinary UDP sockets, for whoever has no rights to the second.
//!
//! ```text
//! transport   offers, and what is open
//! lane        two halves and a drive on one session
//! engine      all sessions of one local address: receives, timers, sends
//! protocol    each session
//! ```
//!
//! `sys` is the only part with unsafe code.

pub mod device;
mod engine;
mod lane;
mod limits;
pub mod netlink;
pub mod program;
pub mod protocol;
mod sys;
mod transport;

pub use limits::{
    BIND_PATIENCE_MS, DEFAULT_FILL_FRAMES, DEVICE_STAYS_MS, MAX_ADDRESSES, MAX_BUSY_POLL_US, MAX_ENGINES,
    MAX_NETLINK_ANSWERS, MAX_OFFERED, MAX_PACKET_FRAMES, MAX_PORTS, MAX_QUEUES, MAX_RING_ENTRIES,
    MAX_SESSIONS, MIN_RING_ENTRIES, NETLINK_BYTES, OFFERED_MS, REFUSED_MS, UDP_BUFFER_BYTES,
    UDP_DATAGRAM_BYTES, XDP_FRAMES,
};
pub use transport::{UdpOptions, UdpTransport, XdpOptions, XdpTransport};
