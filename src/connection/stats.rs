//! What a connection has done, in numbers.

use std::time::Duration;

use super::core::Core;

/// Figures of one connection at one moment; see [`Connection::stats`](super::Connection::stats).
/// They are read off state that the connection keeps anyway.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://stats").await?;
/// # let (client, _server) = tokio::try_join!(fabric.connect("zc+mem://stats"), listener.accept())?;
/// client.send(&b"hello"[..]).await?;
/// let stats = client.stats();
/// assert_eq!((stats.sent_messages, stats.sent_bytes), (1, 5));
/// println!("a sender had to wait {} times", stats.stalls);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Messages handed to the lane.
    pub sent_messages: u64,
    /// Their payload, bytes.
    pub sent_bytes: u64,
    /// Messages that arrived and were queued for the application.
    pub received_messages: u64,
    /// Their payload, bytes.
    pub received_bytes: u64,
    /// Messages sent that the peer has not acknowledged. It acknowledges in batches, so this is an upper bound.
    pub unacknowledged_messages: u64,
    /// Senders that wait for their turn or for room, now.
    pub waiting_senders: usize,
    /// Sends and drains whose completion is awaited, now.
    pub awaited_sends: usize,
    /// Messages that came although none was taken any more, or were in the inbox when the receiver was dropped.
    pub discarded_messages: u64,
    /// Messages that arrived and were not received, now.
    pub inbox_messages: usize,
    /// How often a sender had to wait, for its turn, for room or for the peer's credit.
    pub stalls: u64,
    /// Times that the connection's own task ran.
    pub driver_turns: u64,
    /// Requests for one-sided operations that this side has read for its peer, an operation of
    /// [`MAX_REMOTE_CHUNK`](crate::wire::MAX_REMOTE_CHUNK) bytes at most being one: 0 where the lane does them itself, without our
    /// processor.
    pub remote_operations: u64,
    /// Payload bytes copied in user space, both directions.
    pub copied_bytes: u64,
    /// Received memory that the application still holds, bytes.
    pub leased_bytes: usize,
    /// Since it came up.
    pub age: Duration,
    /// Since something was heard from the peer, keepalive included. Exact to some milliseconds.
    pub silence: Duration,
}

impl Core {
    pub(super) fn stats(&self) -> ConnectionStats {
        let now = self.reactor.now();
        let rx = self.lock_rx();
        let tx = self.lock_tx();
        let heard = if rx.arrived.heard { now } else { rx.arrived.last_heard };
        ConnectionStats {
            sent_messages: tx.seq.last_sent(),
            sent_bytes: tx.sent_bytes,
            received_messages: rx.arrived.seq.last(),
            received_bytes: rx.arrived.bytes,
            unacknowledged_messages: tx.seq.unacked(),
            waiting_senders: tx.queue.len(),
            awaited_sends: tx.tracked.len(),
            discarded_messages: rx.arrived.unread + rx.arrived.refused.unwrap_or(0),
            inbox_messages: rx.arrived.inbox.len(),
            stalls: tx.stalls,
            driver_turns: tx.driver_turns,
            remote_operations: self.remote.served(),
            copied_bytes: self.ledger.snapshot().copied_bytes(),
            leased_bytes: self.leases.outstanding_bytes(),
            age: now.saturating_duration_since(self.started),
            silence: now.saturating_duration_since(heard),
        }
    }
}
