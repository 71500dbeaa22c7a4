//! What goes in and out of a session.

use std::time::Duration;

use zc_core::memory::PinnedBuf;
use zc_core::transport::Frame;

use crate::protocol::codec::put;

/// One datagram on its way out: its head, and behind it the payload, which stays where it is.
///
/// Whoever sends it puts the head into the headroom of the first slice, into a frame of its own, or both into one
/// write. The slices must live until the hardware is done with them (M2); the session keeps references of its own until
/// the peer has acknowledged them. Reuse one value: it keeps its memory.
///
/// ```
/// let out = zc_transport_xdp::protocol::Transmit::default();
/// assert_eq!(out.len(), 0); // for `Session::poll_transmit` to fill
/// ```
#[derive(Debug, Default)]
pub struct Transmit {
    pub(super) head: Vec<u8>,
    pub(super) payload: Vec<PinnedBuf>,
    pub(super) payload_bytes: usize,
}

impl Transmit {
    /// What goes in front.
    pub fn head(&self) -> &[u8] {
        &self.head
    }
    /// The payload's slices.
    pub fn payload(&self) -> &[PinnedBuf] {
        &self.payload
    }
    /// Bytes of the datagram.
    pub fn len(&self) -> usize {
        self.head.len() + self.payload_bytes
    }
    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The datagram in one piece. A copy that no ledger counts: for tests and tools.
    pub fn to_datagram(&self) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(self.len());
        put(&mut datagram, &self.head);
        self.payload.iter().for_each(|slice| put(&mut datagram, slice));
        datagram
    }
    /// Lets go of the payload.
    pub(crate) fn clear(&mut self) {
        self.head.clear();
        self.payload.clear();
        self.payload_bytes = 0;
    }
}

/// Why a datagram changed nothing.
///
/// ```
/// use zc_transport_xdp::protocol::Dropped;
///
/// let is_attack = |why| why == Dropped::Forged; // or the noise of a bad link
/// assert!(!is_attack(Dropped::Replayed));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Dropped {
    /// No packet of this protocol.
    #[error("no packet of this protocol")]
    Malformed,
    /// Of another session.
    #[error("a packet of another session")]
    NotOurs,
    /// The MAC is wrong: forged, or damaged on the way.
    #[error("the packet's MAC is wrong")]
    Forged,
    /// It came before, or is older than the replay window.
    #[error("the packet came before")]
    Replayed,
    /// No room or memory for it now. The peer sends its content again.
    #[error("no room for the packet")]
    NoRoom,
    /// There never will be memory for it. The session ends.
    #[error("no memory for the message, ever")]
    NoMemory,
    /// The peer broke the protocol. The session ends.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// The session has ended.
    #[error("the session has ended")]
    Ended,
}

/// Why a frame was not taken.
///
/// ```
/// use zc_transport_xdp::protocol::SendError;
///
/// let later = |error| error == SendError::Full; // else never
/// assert!(!later(SendError::Finished));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// No credit, or no room in the queue.
    #[error("no credit or no room")]
    Full,
    /// The peer takes no message of this length.
    #[error("a message of {bytes} bytes where the peer takes {max_bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// What the peer takes.
        max_bytes: usize,
    },
    /// [`Session::finish`](super::Session::finish) was called.
    #[error("this side has finished")]
    Finished,
    /// The session has ended.
    #[error("the session has ended")]
    Ended,
}

/// A frame that was not taken.
///
/// ```
/// use zc_transport_xdp::protocol::SendRefused;
///
/// let take_back = |SendRefused { frame, .. }| frame;
/// # let _ = take_back;
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SendRefused {
    /// What was to be sent.
    pub frame: Frame,
    /// Why it was not.
    pub error: SendError,
}

/// How a session ended.
///
/// ```
/// use zc_transport_xdp::protocol::End;
///
/// let regular = |end| matches!(end, End::Finished | End::Closed { .. } | End::PeerClosed { .. });
/// assert!(!regular(End::TimedOut));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Both sides finished, and everything came and was acknowledged. What was not taken yet still can be.
    Finished,
    /// [`Session::close`](super::Session::close) was called.
    Closed {
        /// Its code.
        code: u32,
    },
    /// The peer closed.
    PeerClosed {
        /// Its code.
        code: u32,
    },
    /// Nothing came from the peer for the interval and the timeout of keepalive.
    TimedOut,
    /// The peer sent a message longer than the pool may ever hold for it, which is 3/4 of its bound. Or the next
    /// message found no memory for the interval and the timeout of keepalive, while others behind it held some.
    NoMemory,
    /// Packets longer than 1200 bytes do not come through any more, for the interval and the timeout of keepalive: the path's MTU has
    /// shrunk below what the sides agreed on.
    PathMtu,
    /// The peer broke the protocol.
    Protocol(&'static str),
}

/// What happened.
///
/// ```
/// use zc_transport_xdp::protocol::{End, Event};
///
/// let over = |event| matches!(event, Event::Ended(_));
/// assert!(over(Event::Ended(End::TimedOut)) && !over(Event::Finished));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The peer has acknowledged all that was sent, and that it was the last.
    Finished,
    /// The session ended; comes once. Frames that had come can still be taken.
    Ended(End),
}

/// The counters of a session.
///
/// ```
/// let stats = zc_transport_xdp::protocol::SessionStats::default();
/// assert_eq!(stats.lost_packets, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStats {
    /// Packets that were sent.
    pub sent_packets: u64,
    /// Their bytes, without the headers of UDP and below.
    pub sent_bytes: u64,
    /// Packets that were received and are genuine and new.
    pub received_packets: u64,
    /// Packets of ours that count as lost.
    pub lost_packets: u64,
    /// Probe timeouts.
    pub timeouts: u64,
    /// Datagrams that were no packets of this session.
    pub malformed_packets: u64,
    /// Packets with a wrong MAC.
    pub forged_packets: u64,
    /// Packets that came again, or too late.
    pub replayed_packets: u64,
    /// Packets for which there was no room.
    pub refused_packets: u64,
    /// Messages that the peer has handed on in order.
    pub delivered_messages: u64,
    /// The smoothed round-trip time.
    pub smoothed_rtt: Duration,
    /// The congestion window, bytes.
    pub window_bytes: u64,
    /// Bytes in flight.
    pub in_flight_bytes: u64,
}
