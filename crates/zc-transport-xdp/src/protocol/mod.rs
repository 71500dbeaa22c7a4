//! Reliable messages over unreliable datagrams, without I/O and without clocks.
//!
//! A [`Session`] joins two UDP endpoints that have exchanged an [`Offer`] each over a control link. Whoever drives it
//! hands in what arrives with the time ([`Session::handle`]), sends what comes out ([`Session::poll_transmit`]), and calls
//! [`Session::handle_timeout`] when [`Session::poll_timeout`] says. `docs/xdp.md` has the format and the rules.
//!
//! ```text
//! send -> Outbox -> poll_transmit -> Transmit { head, payload slices } --driver--> datagram
//!            ^         | congestion, pacing, credit                                   |
//!            |         v                                                              v
//!        acknowledged <- Sent, recovery <------ entries ------ handle <- MAC, replay window
//! recv <- Inbox <---------------------------------- chunks --------+
//! ```
//!
//! ```text
//! offer       what the sides tell each other, and the keys that come of it
//! packet      the format; codec, mac
//! session/    the state machine: what comes in, what goes out, timers
//! outbox      messages on their way out, by reference until acknowledged
//! inbox       messages put together, in order, once
//! sent, rtt   packets that are not settled, round-trip times (RFC 9002)
//! received    what to acknowledge, and what is a replay
//! congestion, pacer
//! ```

#![forbid(unsafe_code)]

mod codec;
mod congestion;
mod inbox;
mod limits;
mod mac;
mod offer;
mod options;
mod outbox;
mod pacer;
mod packet;
mod received;
mod rtt;
mod sent;
mod session;

#[cfg(test)]
mod tests;

pub use congestion::Congestion;
pub use inbox::Memory;
pub use limits::{
    ACK_EVERY_PACKETS, GRANULARITY, INITIAL_RTT, INITIAL_WINDOW_PACKETS, MAX_ACK_DELAY, MAX_ACK_RANGES,
    MAX_BURST_PACKETS, MAX_CHUNK_SPAN, MAX_DATAGRAM_BYTES, MAX_PACKET_RUNS, MAX_PACKET_SLICES,
    MAX_PROBE_INTERVAL, MAX_SENT_PACKETS, MAX_UNCREDITED_MESSAGES, MAX_WINDOW_MESSAGES, MAX_WINDOW_PACKETS,
    MIN_DATAGRAM_BYTES, MIN_WINDOW_PACKETS, PACKET_THRESHOLD, PROBES, REPLAY_WINDOW_PACKETS,
    SKIP_EVERY_PACKETS,
};
pub use mac::{MAC_BYTES, PARTS_MIN_BYTES};
pub use offer::{OFFER_BYTES, OFFER_RANDOM_BYTES, Offer, OfferError, Side, VERSION};
pub use options::SessionOptions;
pub use packet::{CHUNK_ENTRY_BYTES, HEAD_BYTES, session_of};
pub use session::{Dropped, End, Event, SendError, SendRefused, Session, SessionStats, Transmit};
