//! Losses and time.

use std::time::Instant;

use zc_core::wire::{CloseCode, KeepaliveAction};

use super::end::Phase;
use super::types::End;
use super::{Fin, Long, Session};
use crate::protocol::congestion::Path;
use crate::protocol::limits::{
    GRANULARITY, LONG_PROBES, LOST_LONG_PROBES, MAX_PROBE_INTERVAL, MIN_DATAGRAM_BYTES, PACKET_THRESHOLD,
    PROBES,
};
use crate::protocol::sent::{Content, Oldest, Packet};

/// Probe timeouts that lost packets must span for congestion to count as persistent (RFC 9002, 7.6.1).
const PERSISTENT_TIMEOUTS: u32 = 3;

impl Session {
    /// When to call [`Session::handle_timeout`] at the latest, or [`Session::poll_transmit`] again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Ended => None,
            Phase::Closing { until, .. } => Some(until),
            Phase::Open { linger_until } => {
                let recovery = self.recovery.loss_at.or_else(|| self.probe_at());
                let mut keepalive = self.keepalive.clone();
                let keepalive = match keepalive.poll(self.recovery.last_eliciting) {
                    KeepaliveAction::Idle(until) => Some(until),
                    _ => Some(self.recovery.last_eliciting),
                };
                [linger_until, recovery, keepalive, self.owed.at, self.paced_until, self.long_probe_at()]
                    .into_iter()
                    .flatten()
                    .min()
            }
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Ended => return,
            Phase::Closing { until, .. } => {
                if now >= until {
                    self.phase = Phase::Ended;
                }
                return;
            }
            Phase::Open { .. } => self.check_done(now),
        }
        if self.recovery.loss_at.is_some_and(|at| now >= at) {
            self.detect_losses(now);
        } else if self.recovery.loss_at.is_none() && self.probe_at().is_some_and(|at| now >= at) {
            self.probe();
        }
        if self.owed.at.is_some_and(|at| now >= at) {
            (self.owed.now, self.owed.at) = (true, None);
        }
        match self.keepalive.poll(now) {
            KeepaliveAction::Idle(_) => {}
            KeepaliveAction::SendPing(_) => self.ping_due = true,
            KeepaliveAction::Dead => self.end(End::TimedOut),
        }
        if self.long_probe_at().is_some_and(|at| now >= at) {
            self.recovery.long.probes += 1;
            self.recovery.long.probe = true;
        }
        if self.is_path_too_narrow(now) {
            self.start_closing(now, CloseCode::INTERNAL.0, End::PathMtu);
        }
    }

    fn probe_at(&self) -> Option<Instant> {
        if !self.sent.is_waiting() {
            return None;
        }
        let timeout = self.probe_timeout();
        let backed_off = timeout.saturating_mul(1 << self.recovery.timeouts.min(16));
        Some(self.recovery.last_eliciting + backed_off.min(MAX_PROBE_INTERVAL.max(timeout)))
    }

    /// Nothing was acknowledged for too long: what the oldest packet carried is sent again in case that it was lost, past
    /// window and pacing.
    fn probe(&mut self) {
        self.stats.timeouts += 1;
        self.recovery.timeouts += 1;
        self.recovery.probes = PROBES;
        let Some((number, packet)) = self.sent.first_waiting() else { return };
        self.outbox.send_again(number, &packet.content.runs);
        let again = Content { runs: Default::default(), ..packet.content };
        self.repeat_control(&again);
    }

    /// A packet was lost. One that was sent before a long one which came through tells nothing of the path.
    fn note_lost(&mut self, now: Instant, number: u64, packet: &Packet) {
        let long = &mut self.recovery.long;
        if packet.bytes > MIN_DATAGRAM_BYTES && number >= long.acknowledged_below {
            long.lost_since.get_or_insert(now);
            long.lost_probes += u32::from(packet.content.is_long_probe);
        }
    }

    /// When the next packet of full length that needs no memory is due: a peer who has none for messages is told by it from a path that
    /// carries no long packets, and such a path from one that lost a long packet where no other followed.
    fn long_probe_at(&self) -> Option<Instant> {
        let long = &self.recovery.long;
        let pause = self.patience() / LONG_PROBES;
        long.lost_since.map(|since| since + pause.max(GRANULARITY).saturating_mul(long.probes + 1))
    }

    /// Whether long packets have been lost for all of keepalive's time, and such as were sent to find out among them.
    fn is_path_too_narrow(&self, now: Instant) -> bool {
        let Long { lost_since, lost_probes, .. } = self.recovery.long;
        let is_long_ago = |since| now.saturating_duration_since(since) >= self.patience();
        lost_probes >= LOST_LONG_PROBES && lost_since.is_some_and(is_long_ago)
    }

    fn repeat_control(&mut self, content: &Content) {
        self.told.again |= content.credit;
        if content.fin && self.fin == Fin::Sent {
            self.fin = Fin::Due;
        }
    }

    /// The oldest packet counts as lost: the table is full of those behind it. That is how it goes with a peer who has no
    /// room for what we send, and to whom we send acknowledgements all the time.
    pub(super) fn lose_oldest(&mut self, now: Instant) {
        let path = self.path(now);
        if let Some((number, packet)) = self.sent.take_oldest() {
            self.lose(&path, number, &packet);
        }
    }

    fn lose(&mut self, path: &Path, number: u64, packet: &Packet) {
        self.stats.lost_packets += 1;
        self.note_lost(path.now, number, packet);
        self.outbox.send_again(number, &packet.content.runs);
        self.repeat_control(&packet.content);
        // The loss of one that may be too long says nothing of congestion (RFC 9000, 14.4).
        if !packet.content.is_long_probe {
            self.congestion.lost(path, packet.at);
        }
    }

    /// Finds the packets that count as lost since others were acknowledged (RFC 9002, 6.1).
    pub(super) fn detect_losses(&mut self, now: Instant) {
        self.recovery.loss_at = None;
        let Some(largest) = self.recovery.largest_acknowledged else { return };
        let (delay, path) = (self.rtt.loss_delay(), self.path(now));
        let persistent = PERSISTENT_TIMEOUTS * self.probe_timeout();
        let (mut at, mut since, mut is_persistent) = (0, None, false);
        loop {
            let found = self.sent.oldest(largest, &mut at, |number, packet| {
                number + PACKET_THRESHOLD <= largest || packet.at + delay <= now
            });
            match found {
                Oldest::Lost(number, packet) => {
                    self.lose(&path, number, &packet);
                    if packet.content.is_long_probe {
                        continue;
                    }
                    let since = *since.get_or_insert(packet.at);
                    is_persistent |=
                        self.rtt.is_measured() && packet.at.saturating_duration_since(since) > persistent;
                }
                Oldest::Acknowledged => since = None,
                Oldest::Waiting(sent) => {
                    self.recovery.loss_at = Some(sent + delay);
                    break;
                }
                Oldest::Nothing => break,
            }
        }
        // Once, after all of them: it forgets that the window was reduced, so the next loss would reduce it again, and
        // the threshold of slow start to nothing.
        if is_persistent {
            self.congestion.persistent();
        }
        self.sent.trim();
    }
}
