//! What comes in.

use std::ops::Range;
use std::time::{Duration, Instant};

use zc_core::memory::PinnedBuf;
use zc_core::wire::CloseCode;

use super::types::{Dropped, End, Event};
use super::{Fin, Long, Session};
use crate::protocol::codec::Reader;
use crate::protocol::inbox::{Payload, Stored};
use crate::protocol::limits::{ACK_EVERY_PACKETS, MAX_ACK_DELAY, MIN_DATAGRAM_BYTES};
use crate::protocol::packet::{AckRanges, Entry, HEAD_BYTES, Head, Malformed, is_genuine};

/// A datagram that came.
#[derive(Clone, Copy)]
enum Came<'a> {
    Lent(&'a PinnedBuf),
    Shown(&'a [u8]),
}

impl<'a> Came<'a> {
    fn bytes(self) -> &'a [u8] {
        match self {
            Self::Lent(bytes) => bytes,
            Self::Shown(bytes) => bytes,
        }
    }

    fn part(self, range: Range<usize>) -> Payload<'a> {
        match self {
            Self::Lent(bytes) => Payload::Lent(bytes.slice(range)),
            Self::Shown(bytes) => Payload::Shown(&bytes[range]),
        }
    }
}

/// What a packet was, once all its entries are applied.
#[derive(Default)]
struct Seen {
    eliciting: bool,
    no_room: bool,
    /// There will be no memory for the peer's messages.
    no_memory: bool,
    ack: bool,
}

/// Whether the payload is as long as the entries say. They are authentic, so where its MAC leaves payload out, somebody
/// else made it longer or shorter. Entries that cannot be read are the peer's own fault.
fn fits_entries(datagram: &[u8], head_len: usize) -> bool {
    let mut entries = Reader::new(&datagram[HEAD_BYTES..head_len]);
    let mut end = head_len;
    loop {
        match Entry::decode(&mut entries) {
            Ok(Some(Entry::Chunk(chunk))) => end += usize::from(chunk.len),
            Ok(Some(_)) => {}
            Ok(None) => return end == datagram.len(),
            Err(_) => return true,
        }
    }
}

impl Session {
    /// Takes a datagram that came. Its payload is kept by reference where it can be.
    ///
    /// # Errors
    /// Why it changed nothing; except for [`Dropped::Protocol`] and [`Dropped::NoMemory`], which end the session, and for
    /// [`Dropped::NoRoom`], of which a part may have been kept, this can be ignored: it is counted.
    pub fn handle(&mut self, now: Instant, datagram: PinnedBuf) -> Result<(), Dropped> {
        self.take(now, Came::Lent(&datagram))
    }

    /// The same for a datagram that does not stay where it is. What is kept of its payload is copied, once it is known to be
    /// genuine: no memory is taken before. Nobody may write it meanwhile (M5).
    ///
    /// # Errors
    /// As [`Session::handle`].
    pub fn handle_shown(&mut self, now: Instant, datagram: &[u8]) -> Result<(), Dropped> {
        self.take(now, Came::Shown(datagram))
    }

    fn take(&mut self, now: Instant, datagram: Came<'_>) -> Result<(), Dropped> {
        let head = self.admit(now, datagram.bytes())?;
        self.stats.received_packets += 1;
        match self.apply(now, &head, datagram) {
            Err(Malformed(what)) => {
                self.broke_protocol(now, what);
                Err(Dropped::Protocol(what))
            }
            Ok(Seen { no_memory: true, .. }) => {
                self.start_closing(now, CloseCode::INTERNAL.0, End::NoMemory);
                Err(Dropped::NoMemory)
            }
            Ok(Seen { no_room: true, .. }) => {
                self.stats.refused_packets += 1;
                Err(Dropped::NoRoom)
            }
            Ok(seen) => {
                // A refused packet proves nothing: it is not noted, so anybody may send it again.
                self.keepalive.on_rx(now);
                self.note_packet(now, &head, seen.eliciting);
                Ok(())
            }
        }
    }

    /// Whether it is of this session, genuine and new. Changes nothing but counters.
    fn admit(&mut self, now: Instant, datagram: &[u8]) -> Result<Head, Dropped> {
        let head = Head::decode(datagram).ok().filter(|_| datagram.len() <= self.agreed.datagram_bytes);
        let Some(head) = head else {
            self.stats.malformed_packets += 1;
            return Err(Dropped::Malformed);
        };
        if head.session != self.session {
            self.stats.malformed_packets += 1;
            return Err(Dropped::NotOurs);
        }
        let with_payload = self.agreed.authenticate_payload;
        let genuine = is_genuine(&self.agreed.recv_key, datagram, head.len, with_payload);
        if !genuine || !(with_payload || fits_entries(datagram, head.len)) {
            self.stats.forged_packets += 1;
            return Err(Dropped::Forged);
        }
        if !self.phase.is_open() {
            self.heard_while_closing(now);
            return Err(Dropped::Ended);
        }
        if !self.received.is_new(head.number) {
            self.stats.replayed_packets += 1;
            return Err(Dropped::Replayed);
        }
        Ok(head)
    }

    fn apply(&mut self, now: Instant, head: &Head, datagram: Came<'_>) -> Result<Seen, Malformed> {
        let bytes = datagram.bytes();
        let mut entries = Reader::new(&bytes[HEAD_BYTES..head.len]);
        let mut seen = Seen::default();
        let mut at = head.len;
        while let Some(entry) = Entry::decode(&mut entries)? {
            seen.eliciting |= entry.is_eliciting();
            match entry {
                Entry::Chunk(chunk) => {
                    let end = at + usize::from(chunk.len);
                    if end > bytes.len() {
                        return Err(Malformed("payload length"));
                    }
                    let beyond_fin = self.peer_fin.is_some_and(|messages| chunk.message >= messages);
                    if beyond_fin {
                        return Err(Malformed("message after the last"));
                    }
                    let next = self.inbox.taken();
                    match self.inbox.store(chunk, datagram.part(at..end))? {
                        Stored::Kept if chunk.message == next => self.stuck = None,
                        Stored::Kept => {}
                        Stored::NoRoom => seen.no_room = true,
                        Stored::Stuck => {
                            seen.no_room = true;
                            seen.no_memory |= self.is_stuck_for_long(now, next);
                        }
                        Stored::Never => seen.no_memory = true,
                    }
                    at = end;
                }
                // No sender needs two, and each is a walk through the table of packets.
                Entry::Ack { .. } if seen.ack => return Err(Malformed("second acknowledgement")),
                Entry::Ack { delay_us, delivered, ranges } => {
                    seen.ack = true;
                    self.on_ack(now, delay_us, delivered, ranges)?;
                }
                Entry::Credit { messages, bytes } => self.on_credit(messages, bytes)?,
                Entry::Ping => {}
                Entry::Fin { messages } => self.on_fin(messages)?,
                Entry::Close { code } => {
                    self.end(End::PeerClosed { code });
                    return Ok(seen);
                }
            }
        }
        if at == bytes.len() { Ok(seen) } else { Err(Malformed("payload length")) }
    }

    /// The next message has no memory, and what came behind it holds some. Whether it was so for all of keepalive's time:
    /// then it may well stay so.
    fn is_stuck_for_long(&mut self, now: Instant, next: u64) -> bool {
        let patience = self.patience();
        let before = self.stuck.filter(|(message, _)| *message == next);
        let (_, since) = *self.stuck.insert(before.unwrap_or((next, now)));
        now.saturating_duration_since(since) >= patience
    }

    /// All of the packet is kept: it may be acknowledged.
    fn note_packet(&mut self, now: Instant, head: &Head, eliciting: bool) {
        let in_turn = self.received.insert(head.number);
        self.received.forget_below(head.settled_below);
        if self.received.ranges().next().is_some_and(|(_, high)| high == head.number) {
            self.owed.highest_at = now;
        }
        if eliciting {
            self.owed.packets += 1;
            self.owed.now |= head.ack_now || !in_turn || self.owed.packets >= ACK_EVERY_PACKETS;
            self.owed.at.get_or_insert(now + self.options.ack_delay.min(MAX_ACK_DELAY));
        }
    }

    fn on_credit(&mut self, messages: u64, bytes: u64) -> Result<(), Malformed> {
        // One that was overtaken by a later one says less; none that could make our own counters overflow.
        if bytes > u64::MAX / 2 || messages > u64::MAX / 2 {
            return Err(Malformed("credit"));
        }
        self.credit.allowed_bytes = self.credit.allowed_bytes.max(bytes);
        self.credit.allowed_messages = self.credit.allowed_messages.max(messages);
        Ok(())
    }

    fn on_fin(&mut self, messages: u64) -> Result<(), Malformed> {
        let other = self.peer_fin.is_some_and(|before| before != messages);
        if other || messages < self.inbox.end() {
            return Err(Malformed("last message"));
        }
        self.peer_fin = Some(messages);
        Ok(())
    }

    fn on_ack(
        &mut self,
        now: Instant,
        delay_us: u32,
        delivered: u64,
        ranges: AckRanges<'_>,
    ) -> Result<(), Malformed> {
        let skipped = self.sent.skipped();
        let names_skipped = |(low, high)| skipped.is_some_and(|skipped| (low..=high).contains(&skipped));
        if ranges.largest() >= self.sent.next() || ranges.iter().any(names_skipped) {
            return Err(Malformed("acknowledgement of a packet that was not sent"));
        }
        if delivered > self.outbox.taken() {
            return Err(Malformed("delivery of a message that was not sent"));
        }
        self.delivered = self.delivered.max(delivered);

        let path = self.path(now);
        let (mut newest, mut bytes, mut fin) = (None, 0, false);
        for (low, high) in ranges.iter() {
            self.sent.acknowledge(low, high, |number, packet| {
                bytes += packet.bytes as u64;
                if packet.bytes > MIN_DATAGRAM_BYTES {
                    let acknowledged_below = self.recovery.long.acknowledged_below.max(number + 1);
                    self.recovery.long = Long { acknowledged_below, ..Long::default() };
                }
                fin |= packet.content.fin;
                newest = newest.max(Some((number, packet.at)));
                self.outbox.acknowledged(&packet.content.runs);
                self.congestion.acknowledged(&path, packet.at, packet.bytes as u64);
            });
        }
        let Some((number, at)) = newest else { return Ok(()) };
        // The packet may yet be refused for its chunks, but no old one acknowledges anything for the first time.
        self.keepalive.on_rx(now);
        if number == ranges.largest() {
            let delay = Duration::from_micros(delay_us.into()).min(self.peer_ack_delay);
            self.rtt.sample(now.saturating_duration_since(at), delay);
        }
        self.congestion.bandwidth_sample(&path, bytes);
        let largest = &mut self.recovery.largest_acknowledged;
        *largest = (*largest).max(Some(number));
        (self.recovery.timeouts, self.recovery.probes) = (0, 0);
        self.detect_losses(now);
        if fin {
            self.fin = Fin::Acknowledged;
        }
        // FIN may have overtaken messages that were lost.
        if self.fin == Fin::Acknowledged && self.outbox.is_empty() && !self.told_finished {
            self.told_finished = true;
            self.events.push_back(Event::Finished);
        }
        Ok(())
    }
}
