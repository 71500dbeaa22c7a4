//! What a session may use.

use std::time::Duration;

use super::Congestion;

/// Options of one session.
///
/// ```
/// use zc_transport_xdp::protocol::SessionOptions;
///
/// let mut options = SessionOptions::default();
/// options.datagram_bytes = 8900; // jumbo frames on all of the path
/// options.authenticate_payload = false; // then the UDP checksum alone covers it, unless the peer asks for more
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Longest UDP payload that the path carries, bytes; the smaller one of both sides counts.
    pub datagram_bytes: u16,
    /// The MAC covers payload, too, if either side asks for it.
    pub authenticate_payload: bool,
    /// Congestion control.
    pub congestion: Congestion,
    /// Largest message that may be received, bytes. What is longer than 3/4 of the pool's bound ends the session.
    pub max_message: u32,
    /// Credit bytes that the peer may send before any is released; one message may exceed it.
    pub window_bytes: u32,
    /// Data messages that the peer may send before any is released.
    pub window_messages: u32,
    /// Messages that may be queued here: not sent, not acknowledged, or with a completion that nobody took.
    pub queue_messages: u32,
    /// Bytes that may be queued here; one message may exceed it.
    pub queue_bytes: usize,
    /// A message of at most so many packets is lent as a rope of them; a longer one is gathered, counted, into one buffer.
    pub rope_segments: u8,
    /// Received packets that may be kept for messages which nobody took; past that payload is copied out, and counted.
    pub lent_packets: u32,
    /// Bytes of memory that such packets may keep, each counted with all of the block that it lies in; past that payload is copied
    /// out, too.
    pub lent_bytes: usize,
    /// Longest time that an acknowledgement waits for company.
    pub ack_delay: Duration,
    /// Silence after which the peer is pinged.
    pub keepalive_interval: Duration,
    /// Silence after that ping which means that the peer is dead.
    pub keepalive_timeout: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            datagram_bytes: 1472,
            authenticate_payload: true,
            congestion: Congestion::default(),
            max_message: 1 << 30,
            window_bytes: 4 << 20,
            window_messages: 4096,
            queue_messages: 4096,
            queue_bytes: 8 << 20,
            rope_segments: 8,
            lent_packets: 1024,
            lent_bytes: 8 << 20,
            ack_delay: Duration::from_millis(1),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}
