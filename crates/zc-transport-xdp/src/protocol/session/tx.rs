//! What goes out.

use std::time::Instant;

use super::end::Phase;
use super::types::Transmit;
use super::{Fin, Session};
use crate::protocol::limits::MAX_PACKET_RUNS;
use crate::protocol::packet::{self, Head};
use crate::protocol::sent::{Content, Packet};

/// How often the peer is asked to acknowledge at once, for each window.
const ASKS_PER_ROUND: u64 = 8;

impl Session {
    /// Fills `out` with the next datagram to send now; false if there is none.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Transmit) -> bool {
        out.clear();
        match self.phase {
            Phase::Ended => return false,
            Phase::Closing { code, due, .. } => return due && self.transmit_close(out, code),
            Phase::Open { .. } => self.check_done(now),
        }
        self.paced_until = None;
        if !self.phase.is_open() {
            return false;
        }
        while self.sent.is_full() {
            self.lose_oldest(now);
        }
        packet::begin(&mut out.head);
        let skip = self.sent.next() == self.skip_at;
        let number = self.sent.next() + u64::from(skip);
        if self.owed.now {
            self.put_ack(now, out);
        }
        let content = if self.may_transmit(now) { self.put_content(number, out) } else { None };
        if content.is_some() && self.owed.at.is_some() {
            self.put_ack(now, out);
        }
        if out.head.len() == packet::HEAD_BYTES {
            return false;
        }
        if skip {
            self.sent.skip();
            self.choose_skip();
        }
        self.commit(now, number, content, out);
        true
    }

    /// Whether [`Session::poll_transmit`] would find nothing to send, for it is not that it may not. What it would note then is noted.
    pub(crate) fn is_quiet(&mut self, now: Instant) -> bool {
        if !matches!(self.phase, Phase::Open { .. }) {
            return false;
        }
        self.check_done(now);
        let is_due = self.owed.now || self.recovery.probes > 0 || self.recovery.long.probe;
        if is_due || !self.phase.is_open() || self.wants_to_transmit() {
            return false;
        }
        (self.paced_until, self.short_of_data) = (None, true);
        true
    }

    /// Whether window and pacing allow a packet that the peer answers, if there is one to send.
    fn may_transmit(&mut self, now: Instant) -> bool {
        if self.recovery.probes > 0 || self.recovery.long.probe {
            return true;
        }
        if !self.wants_to_transmit() {
            self.short_of_data = true;
            return false;
        }
        let window = self.congestion.window();
        if self.sent.in_flight() + self.agreed.datagram_bytes as u64 > window {
            self.short_of_data = false;
            return false;
        }
        let slow_start = self.congestion.is_slow_start();
        self.paced_until = self.pacer.ready(now, window, self.rtt.smoothed(), slow_start);
        self.short_of_data &= self.paced_until.is_none();
        self.paced_until.is_none()
    }

    fn wants_to_transmit(&mut self) -> bool {
        self.ping_due || self.fin_due() || self.outbox.has_more() || self.credit_due()
    }

    /// Whether it is time for FIN: all has gone out, if not come through.
    fn fin_due(&mut self) -> bool {
        self.fin == Fin::Due && self.outbox.is_sent() && !self.outbox.has_more()
    }

    /// Puts in what the peer answers; `None` if nothing fits.
    fn put_content(&mut self, number: u64, out: &mut Transmit) -> Option<Content> {
        let datagram = self.agreed.datagram_bytes;
        let mut content = Content::default();
        let before = out.head.len();
        if std::mem::take(&mut self.recovery.long.probe) {
            while out.len() + packet::PING_BYTES <= datagram {
                packet::put_ping(&mut out.head);
            }
            self.ping_due = false;
            content.is_long_probe = true;
            return Some(content);
        }
        if self.credit_due() && out.len() + packet::CREDIT_BYTES <= datagram {
            let (messages, bytes) = (self.inbox.granted_messages, self.inbox.granted_bytes);
            packet::put_credit(&mut out.head, messages, bytes);
            self.told = super::Told { bytes, messages, again: false };
            content.credit = true;
        }
        loop {
            let room = datagram - out.len();
            let (slices, runs) = (&mut out.payload, &mut content.runs);
            let Some(entry) = self.outbox.fill(number, room, slices, runs, MAX_PACKET_RUNS) else { break };
            entry.write(&mut out.head);
            out.payload_bytes += usize::from(entry.len);
        }
        if self.fin_due() && out.len() + packet::FIN_BYTES <= datagram {
            packet::put_fin(&mut out.head, self.outbox.taken());
            self.fin = Fin::Sent;
            content.fin = true;
        }
        let nothing = out.head.len() == before;
        if (self.ping_due || (nothing && self.recovery.probes > 0))
            && out.len() + packet::PING_BYTES <= datagram
        {
            packet::put_ping(&mut out.head);
        }
        // Anything that it answers is as good.
        self.ping_due &= out.head.len() == before;
        (out.head.len() > before).then_some(content)
    }

    /// Puts in an acknowledgement, if there is anything to acknowledge and room for it.
    fn put_ack(&mut self, now: Instant, out: &mut Transmit) {
        let room = self.agreed.datagram_bytes - out.len();
        let Some(for_ranges) = room.checked_sub(packet::ACK_BYTES) else { return };
        let delay = now.saturating_duration_since(self.owed.highest_at);
        let delay_us = u32::try_from(delay.as_micros()).unwrap_or(u32::MAX);
        let max_ranges = 1 + for_ranges / packet::ACK_RANGE_BYTES;
        let ranges = self.received.ranges();
        packet::put_ack(&mut out.head, delay_us, self.inbox.taken(), max_ranges, ranges);
        (self.owed.now, self.owed.at, self.owed.packets) = (false, None, 0);
    }

    /// Completes the head and notes that the packet is on its way.
    fn commit(&mut self, now: Instant, number: u64, content: Option<Content>, out: &mut Transmit) {
        let bytes = out.len();
        let is_long_probe = content.as_ref().is_some_and(|content| content.is_long_probe);
        let ack_now = content.is_some() && (self.ask_for_ack(bytes as u64) || is_long_probe);
        let packet = content.map(|content| Packet { at: now, bytes, content });
        if packet.is_some() {
            self.recovery.last_eliciting = now;
            // It tells nothing of what the other probes are for.
            self.recovery.probes = self.recovery.probes.saturating_sub(u32::from(!is_long_probe));
            self.pacer.sent(bytes);
        }
        let settled_below = self.sent.settled_below().min(number);
        self.sent.push(packet);
        self.seal(number, settled_below, ack_now, out);
    }

    /// Whether the peer should acknowledge this packet at once: it is a probe, the window is full, or a part of it was
    /// sent since it was last asked, and as much is under way: where packets are answered one by one, the answers tell.
    fn ask_for_ack(&mut self, bytes: u64) -> bool {
        let window = self.congestion.window();
        let datagram = self.agreed.datagram_bytes as u64;
        let in_flight = self.sent.in_flight() + bytes;
        self.unasked_bytes += bytes;
        let ask = self.recovery.probes > 0
            || in_flight + datagram > window
            || self.unasked_bytes.min(in_flight) >= window / ASKS_PER_ROUND;
        if ask {
            self.unasked_bytes = 0;
        }
        ask
    }

    fn seal(&mut self, number: u64, settled_below: u64, ack_now: bool, out: &mut Transmit) {
        let head = Head { ack_now, len: out.head.len(), session: self.peer_session, number, settled_below };
        head.write(&mut out.head);
        let payload = out.payload.iter().map(|slice| &slice[..]);
        let payload = payload.take(if self.agreed.authenticate_payload { usize::MAX } else { 0 });
        packet::seal(&self.agreed.send_key, &mut out.head, payload);
        self.stats.sent_packets += 1;
        self.stats.sent_bytes += out.len() as u64;
    }

    fn transmit_close(&mut self, out: &mut Transmit, code: u32) -> bool {
        if let Phase::Closing { due, .. } = &mut self.phase {
            *due = false;
        }
        packet::begin(&mut out.head);
        packet::put_close(&mut out.head, code);
        let number = self.sent.next();
        let settled_below = self.sent.settled_below();
        self.sent.push(None);
        self.seal(number, settled_below, false, out);
        true
    }
}
