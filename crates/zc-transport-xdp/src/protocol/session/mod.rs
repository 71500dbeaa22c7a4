//! The state machine of one session.

mod end;
mod rx;
mod timers;
mod tx;
mod types;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use zc_core::transport::{Frame, FrameKind, SendToken};
use zc_core::wire::{Keepalive, frame_credit_bytes};

use super::congestion::{Controller, Path};
use super::inbox::{Inbox, Memory};
use super::limits::{MAX_UNCREDITED_MESSAGES, MAX_WINDOW_MESSAGES};
use super::offer::{Agreed, Offer, OfferError, Side};
use super::outbox::Outbox;
use super::pacer::Pacer;
use super::packet::{CHUNK_ENTRY_BYTES, HEAD_BYTES};
use super::received::Received;
use super::rtt::Rtt;
use super::sent::Sent;
use super::{SessionOptions, limits};
pub use types::{Dropped, End, Event, SendError, SendRefused, SessionStats, Transmit};

use end::Phase;

/// What the peer allows us, and what we spent of it; all since the start.
#[derive(Debug)]
struct SendCredit {
    allowed_bytes: u64,
    allowed_messages: u64,
    spent_bytes: u64,
    spent_messages: u64,
    max_message: u32,
}

/// What the peer was told that it may send.
#[derive(Debug)]
struct Told {
    bytes: u64,
    messages: u64,
    /// It may not have heard it.
    again: bool,
}

/// Acknowledgements that we owe.
#[derive(Debug)]
struct Owed {
    now: bool,
    /// At this time at the latest.
    at: Option<Instant>,
    /// Packets since the last one.
    packets: u32,
    /// When the highest packet came.
    highest_at: Instant,
}

/// What loss detection knows (RFC 9002, 6).
#[derive(Debug)]
struct Recovery {
    largest_acknowledged: Option<u64>,
    /// When the next packet counts as lost.
    loss_at: Option<Instant>,
    last_eliciting: Instant,
    /// Probe timeouts in a row.
    timeouts: u32,
    /// Probes to be sent.
    probes: u32,
    long: Long,
}

/// What became of packets that are longer than every path carries.
#[derive(Debug, Default)]
struct Long {
    /// All numbers of those that came through are lower.
    acknowledged_below: u64,
    /// Since when such are lost, and none came through that was sent later.
    lost_since: Option<Instant>,
    /// Probes of full length since then that were due, and those that were lost.
    probes: u32,
    lost_probes: u32,
    /// One is to be sent.
    probe: bool,
}

/// Our FIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fin {
    No,
    Due,
    Sent,
    Acknowledged,
}

/// A session between two UDP endpoints: frames in both directions, whole, in order, once.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Instant;
/// use zc_core::memory::{BufPool, CopyLedger, Message, PinnedBuf};
/// use zc_core::transport::{Frame, FrameKind};
/// use zc_transport_xdp::protocol::{Memory, Offer, Session, SessionOptions, Side, Transmit};
///
/// let options = SessionOptions::default();
/// let offers = [Offer::new(&options, &[1; 36]), Offer::new(&options, &[2; 36])]; // random, in earnest
/// let memory = Memory { pool: BufPool::builder().build(), ledger: Arc::new(CopyLedger::new()) };
/// let now = Instant::now();
/// let mut client = Session::new(Side::Client, &offers[0], &offers[1], &options, memory.clone(), 1, now)?;
/// let mut server = Session::new(Side::Server, &offers[1], &offers[0], &options, memory, 2, now)?;
///
/// let payload = Message::from(&b"hello"[..]);
/// client.send(Frame { kind: FrameKind::Data, ack: false, seq: 1, payload }, None).unwrap();
/// let mut out = Transmit::default();
/// while client.poll_transmit(now, &mut out) {
///     server.handle(now, PinnedBuf::from(out.to_datagram())).unwrap();
/// }
/// assert_eq!(server.recv().unwrap().payload, b"hello"[..]);
/// # Ok::<(), zc_transport_xdp::protocol::OfferError>(())
/// ```
pub struct Session {
    options: SessionOptions,
    agreed: Agreed,
    /// What packets to us carry, and packets to the peer.
    session: u32,
    peer_session: u32,
    peer_ack_delay: Duration,

    outbox: Outbox,
    inbox: Inbox,
    sent: Sent,
    received: Received,
    rtt: Rtt,
    congestion: Controller,
    pacer: Pacer,
    keepalive: Keepalive,

    credit: SendCredit,
    told: Told,
    owed: Owed,
    recovery: Recovery,
    /// Bytes sent since the peer was last asked to acknowledge at once.
    unasked_bytes: u64,
    /// The last packet left because there was nothing more to send, not because the window was full.
    short_of_data: bool,
    paced_until: Option<Instant>,
    ping_due: bool,
    fin: Fin,
    /// The peer has acknowledged FIN and all before it, and [`Event::Finished`] said so.
    told_finished: bool,
    peer_fin: Option<u64>,
    /// The next message in order, if it found no memory, and since when.
    stuck: Option<(u64, Instant)>,
    /// Messages that the peer has handed on, in order.
    delivered: u64,
    /// The next packet number to be left out, and the state of the generator that chooses them.
    skip_at: u64,
    random: u64,

    phase: Phase,
    events: VecDeque<Event>,
    stats: SessionStats,
}

impl Session {
    /// A session of what both sides offered. `seed` is random, and nobody else's: the peer must not be able to guess
    /// which packet numbers are left out.
    ///
    /// # Errors
    /// The offers do not go together.
    pub fn new(
        side: Side,
        mine: &Offer,
        theirs: &Offer,
        options: &SessionOptions,
        memory: Memory,
        seed: u64,
        now: Instant,
    ) -> Result<Self, OfferError> {
        let agreed = Agreed::new(side, mine, theirs)?;
        let datagram_bytes = agreed.datagram_bytes;
        let chunk_bytes = datagram_bytes - HEAD_BYTES - CHUNK_ENTRY_BYTES;
        let inbox = Inbox::new(options, memory, chunk_bytes);
        let mut session = Self {
            agreed,
            session: mine.session,
            peer_session: theirs.session,
            peer_ack_delay: theirs.ack_delay,
            outbox: Outbox::new(chunk_bytes),
            told: Told { bytes: inbox.granted_bytes, messages: inbox.granted_messages, again: false },
            inbox,
            sent: Sent::new(),
            received: Received::new(),
            rtt: Rtt::new(),
            congestion: Controller::new(options.congestion, datagram_bytes),
            pacer: Pacer::new(datagram_bytes, now),
            keepalive: Keepalive::new(options.keepalive_interval, options.keepalive_timeout, now),
            credit: SendCredit {
                allowed_bytes: theirs.window_bytes,
                allowed_messages: theirs.window_messages.into(),
                spent_bytes: 0,
                spent_messages: 0,
                max_message: theirs.max_message,
            },
            owed: Owed { now: false, at: None, packets: 0, highest_at: now },
            recovery: Recovery {
                largest_acknowledged: None,
                loss_at: None,
                last_eliciting: now,
                timeouts: 0,
                probes: 0,
                long: Long::default(),
            },
            unasked_bytes: 0,
            short_of_data: true,
            paced_until: None,
            ping_due: false,
            fin: Fin::No,
            told_finished: false,
            peer_fin: None,
            stuck: None,
            delivered: 0,
            skip_at: 0,
            random: seed,
            phase: Phase::Open { linger_until: None },
            events: VecDeque::new(),
            stats: SessionStats::default(),
            options: options.clone(),
        };
        session.choose_skip();
        Ok(session)
    }

    /// Whether [`Session::send`] takes such a frame now. Data frames need credit of the peer's; all need room in the
    /// queue.
    ///
    /// # Errors
    /// It never will.
    pub fn may_send(&self, kind: FrameKind, bytes: usize) -> Result<bool, SendError> {
        if !self.phase.is_open() {
            return Err(SendError::Ended);
        }
        if self.fin != Fin::No {
            return Err(SendError::Finished);
        }
        let max_bytes = kind.max_bytes(self.credit.max_message as usize);
        if bytes > max_bytes {
            return Err(SendError::TooLong { bytes, max_bytes });
        }
        let queue_messages = self.options.queue_messages.clamp(1, MAX_WINDOW_MESSAGES) as usize;
        if kind != FrameKind::Data {
            return Ok(self.outbox.len() < queue_messages + MAX_UNCREDITED_MESSAGES);
        }
        let queued = self.outbox.bytes();
        let has_room = self.outbox.len() < queue_messages
            && (queued == 0 || queued.saturating_add(bytes) <= self.options.queue_bytes);
        let credit = &self.credit;
        let may_begin =
            credit.spent_bytes < credit.allowed_bytes && credit.spent_messages < credit.allowed_messages;
        Ok(has_room && may_begin)
    }

    /// Takes a frame. It stays here, by reference, until the peer has acknowledged all of it; then its token, if it has
    /// one, comes out of [`Session::poll_completion`].
    ///
    /// # Errors
    /// The frame comes back.
    #[allow(clippy::result_large_err, reason = "the frame comes back")]
    pub fn send(&mut self, frame: Frame, token: Option<SendToken>) -> Result<(), SendRefused> {
        match self.may_send(frame.kind, frame.payload.len()) {
            Ok(true) => {}
            Ok(false) => return Err(SendRefused { frame, error: SendError::Full }),
            Err(error) => return Err(SendRefused { frame, error }),
        }
        if frame.kind == FrameKind::Data {
            self.credit.spent_bytes += frame_credit_bytes(frame.payload.len());
            self.credit.spent_messages += 1;
        }
        self.outbox.push(frame, token);
        Ok(())
    }

    /// The next send that is wholly acknowledged and has a token, in the order of sending.
    pub fn poll_completion(&mut self) -> Option<SendToken> {
        self.outbox.completed()
    }

    /// The next frame of the peer's, in order.
    #[inline]
    pub fn recv(&mut self) -> Option<Frame> {
        self.inbox.take()
    }

    /// The peer has sent its last frame, and all were taken.
    pub fn is_peer_finished(&self) -> bool {
        self.peer_fin == Some(self.inbox.taken())
    }

    /// The peer has said which frame is its last.
    pub(crate) fn is_peer_ending(&self) -> bool {
        self.peer_fin.is_some()
    }

    /// The application took a data frame of so many bytes: the peer may send as much again.
    pub fn release(&mut self, bytes: usize) {
        self.inbox.release(frame_credit_bytes(bytes), 1);
    }

    /// The same for several, which cost so much together.
    pub(crate) fn release_all(&mut self, cost_bytes: u64, messages: u64) {
        self.inbox.release(cost_bytes, messages);
    }

    /// Whether [`Session::recv`] has a frame.
    #[inline]
    pub(crate) fn has_frame(&self) -> bool {
        self.inbox.has_next()
    }

    /// Whether [`Session::poll_completion`] has a token.
    pub(crate) fn has_completion(&self) -> bool {
        self.outbox.has_completed()
    }

    /// Grows whenever a part of a longer message, but its last, has come or come through.
    pub(crate) fn parts(&self) -> u64 {
        self.inbox.parts + self.outbox.parts
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The counters now.
    pub fn stats(&self) -> SessionStats {
        SessionStats {
            smoothed_rtt: self.rtt.smoothed(),
            window_bytes: self.congestion.window(),
            in_flight_bytes: self.sent.in_flight(),
            delivered_messages: self.delivered,
            ..self.stats
        }
    }

    /// Everything that was taken has been sent at least once.
    pub fn is_flushed(&self) -> bool {
        self.outbox.is_sent()
    }

    /// Everything that was taken has been acknowledged.
    pub fn is_acknowledged(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Bytes of the longest datagram of this session.
    pub fn datagram_bytes(&self) -> usize {
        self.agreed.datagram_bytes
    }

    fn path(&self, now: Instant) -> Path {
        Path {
            now,
            smoothed_rtt: self.rtt.smoothed(),
            min_rtt: self.rtt.min(),
            short_of_data: self.short_of_data,
        }
    }

    /// How long what does not get on may take.
    fn patience(&self) -> Duration {
        self.options.keepalive_interval.saturating_add(self.options.keepalive_timeout)
    }

    fn probe_timeout(&self) -> Duration {
        self.rtt.probe_timeout(self.peer_ack_delay)
    }

    /// Whether the peer should hear what it may send.
    pub(crate) fn credit_due(&self) -> bool {
        let bytes = self.inbox.granted_bytes - self.told.bytes;
        let messages = self.inbox.granted_messages - self.told.messages;
        let quarter = |window: u32| u64::from(window.max(4) / 4);
        self.told.again
            || bytes >= quarter(self.options.window_bytes)
            || messages >= quarter(self.options.window_messages.min(MAX_WINDOW_MESSAGES))
    }

    /// SplitMix64: chosen numbers need only be unknown to the peer, who sees few of its results.
    fn choose_skip(&mut self) {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let every = limits::SKIP_EVERY_PACKETS;
        self.skip_at = self.sent.next() + every + (z ^ (z >> 31)) % every;
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("session", &self.session)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
