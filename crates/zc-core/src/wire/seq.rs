//! Sequence numbers, acknowledgements, and what is known about a message's delivery.

/// What is known about a message whose send ended or failed.
///
/// ```
/// use zc_core::wire::Delivery;
///
/// let may_repeat = |delivery, idempotent: bool| match delivery {
///     Delivery::NotSent => true,
///     Delivery::Unknown => idempotent,
///     Delivery::Delivered => false,
/// };
/// assert!(may_repeat(Delivery::NotSent, false) && !may_repeat(Delivery::Unknown, false));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// It never reached the peer's session layer; sending it again duplicates nothing.
    NotSent,
    /// It may or may not have reached it.
    Unknown,
    /// The peer's session layer queued it, in order.
    Delivered,
}

/// A fault in the numbering.
///
/// ```
/// use zc_core::wire::{RxSeq, SeqError};
///
/// let mut received = RxSeq::new(1024);
/// received.accept(1, false)?;
/// assert_eq!(received.accept(3, false), Err(SeqError::Gap { expected: 2, got: 3 }));
/// # Ok::<(), SeqError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SeqError {
    /// A message is missing.
    #[error("message {expected} is missing: got {got}")]
    Gap {
        /// The number that should have come.
        expected: u64,
        /// The number that came.
        got: u64,
    },
    /// A message came again.
    #[error("message {got} came again: expected {expected}")]
    Duplicate {
        /// The number that should have come.
        expected: u64,
        /// The number that came.
        got: u64,
    },
    /// The peer's number lies above what was sent, or below what it acknowledged before.
    #[error("the peer named message {got}, outside {acked} to {sent}")]
    BadAck {
        /// The number it named.
        got: u64,
        /// The highest number acknowledged so far.
        acked: u64,
        /// The highest number sent so far.
        sent: u64,
    },
    /// As many messages are unacknowledged as the window allows.
    #[error("{window} messages are unacknowledged, and the window allows no more")]
    WindowFull {
        /// The window, in messages.
        window: u32,
    },
    /// The peer said that it takes no more messages.
    #[error("the peer takes no message above {last_seq}")]
    GoneAway {
        /// The last it takes.
        last_seq: u64,
    },
}

/// The sender's side: numbers from 1, and what of them is acknowledged.
///
/// ```
/// use zc_core::wire::{Delivery, TxSeq};
///
/// let mut sent = TxSeq::new(1024);
/// let (first, second) = (sent.assign()?, sent.assign()?);
/// sent.on_ack(first)?;
/// assert_eq!(sent.delivery_of(first), Delivery::Delivered);
/// assert_eq!(sent.delivery_of(second), Delivery::Unknown);
/// # Ok::<(), zc_core::wire::SeqError>(())
/// ```
#[derive(Debug, Clone)]
pub struct TxSeq {
    sent: u64,
    acked: u64,
    window: u32,
    cut: Option<u64>,
}

impl TxSeq {
    /// Starts at 1, with at most `window` messages unacknowledged (at least 1).
    pub fn new(window: u32) -> Self {
        Self { sent: 0, acked: 0, window: window.max(1), cut: None }
    }

    /// The number for a message that is about to be handed to the lane.
    pub fn assign(&mut self) -> Result<u64, SeqError> {
        if let Some(last_seq) = self.cut {
            return Err(SeqError::GoneAway { last_seq });
        }
        if self.unacked() >= u64::from(self.window) {
            return Err(SeqError::WindowFull { window: self.window });
        }
        self.sent += 1;
        Ok(self.sent)
    }

    /// Takes an ACK; how many messages it newly covers. One that says nothing new is fine.
    pub fn on_ack(&mut self, seq: u64) -> Result<u64, SeqError> {
        if seq > self.cut.unwrap_or(self.sent).min(self.sent) {
            return Err(self.bad(seq));
        }
        let fresh = seq.saturating_sub(self.acked);
        self.acked += fresh;
        Ok(fresh)
    }

    /// Takes a GOAWAY: nothing above `last_seq` is taken by the peer, now or later.
    pub fn on_go_away(&mut self, last_seq: u64) -> Result<(), SeqError> {
        if last_seq < self.acked || last_seq > self.cut.unwrap_or(self.sent).min(self.sent) {
            return Err(self.bad(last_seq));
        }
        self.cut = Some(last_seq);
        Ok(())
    }

    /// Takes a CLOSE: all up to `last_seq` is delivered and nothing above it; how many it newly covers.
    pub fn on_close(&mut self, last_seq: u64) -> Result<u64, SeqError> {
        self.on_go_away(last_seq)?;
        self.on_ack(last_seq)
    }

    /// What is known about message `seq`.
    pub fn delivery_of(&self, seq: u64) -> Delivery {
        if seq == 0 || seq > self.cut.unwrap_or(self.sent).min(self.sent) {
            Delivery::NotSent
        } else if seq <= self.acked {
            Delivery::Delivered
        } else {
            Delivery::Unknown
        }
    }

    /// The highest number given out; 0 if none.
    pub fn last_sent(&self) -> u64 {
        self.sent
    }

    /// The highest number acknowledged; 0 if none.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// How many messages are unacknowledged.
    pub fn unacked(&self) -> u64 {
        self.sent - self.acked
    }

    fn bad(&self, got: u64) -> SeqError {
        SeqError::BadAck { got, acked: self.acked, sent: self.sent }
    }
}

/// The receiver's side: accepts in order and says when an ACK is due.
///
/// ```
/// use zc_core::wire::RxSeq;
///
/// let mut received = RxSeq::new(1024);
/// received.accept(1, false)?;
/// received.accept(2, false)?;
/// received.check_fin(2)?; // nothing is missing
/// # Ok::<(), zc_core::wire::SeqError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RxSeq {
    last: u64,
    acked: u64,
    ack_every: u32,
    requested: bool,
}

impl RxSeq {
    /// Expects 1; an ACK is due after `ack_every` messages (at least 1) or when one asks for it.
    pub fn new(ack_every: u32) -> Self {
        Self { last: 0, acked: 0, ack_every: ack_every.max(1), requested: false }
    }

    /// Accepts the message `seq`, which the caller then queues. `ack_requested` is its frame's flag.
    pub fn accept(&mut self, seq: u64, ack_requested: bool) -> Result<(), SeqError> {
        let expected = self.last.saturating_add(1);
        if seq <= self.last {
            return Err(SeqError::Duplicate { expected, got: seq });
        }
        if seq != expected {
            return Err(SeqError::Gap { expected, got: seq });
        }
        self.last = seq;
        self.requested |= ack_requested;
        Ok(())
    }

    /// Checks the peer's FIN against what came: a gap if something is missing.
    pub fn check_fin(&self, last_seq: u64) -> Result<(), SeqError> {
        let expected = self.last.saturating_add(1);
        match last_seq.cmp(&self.last) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(SeqError::Duplicate { expected, got: last_seq }),
            std::cmp::Ordering::Greater => Err(SeqError::Gap { expected, got: last_seq }),
        }
    }

    /// Whether an ACK should go out now.
    pub fn ack_due(&self) -> bool {
        self.last != self.acked && (self.requested || self.last - self.acked >= u64::from(self.ack_every))
    }

    /// The ACK to send now, if one is due.
    pub fn take_ack(&mut self) -> Option<u64> {
        if self.ack_due() { self.flush_ack() } else { None }
    }

    /// The ACK for all that is not acknowledged yet, due or not: before idling, draining or a FIN.
    pub fn flush_ack(&mut self) -> Option<u64> {
        self.requested = false;
        if self.last == self.acked {
            return None;
        }
        self.acked = self.last;
        Some(self.last)
    }

    /// The last message accepted; 0 if none.
    pub fn last(&self) -> u64 {
        self.last
    }
}
