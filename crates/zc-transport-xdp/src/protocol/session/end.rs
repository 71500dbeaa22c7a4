//! How a session ends.

use std::time::{Duration, Instant};

use zc_core::transport::{Frame, SendToken};
use zc_core::wire::CloseCode;

use super::types::{End, Event};
use super::{Fin, Session};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// `linger_until`: all is done; until then what the peer repeats is still acknowledged.
    Open { linger_until: Option<Instant> },
    /// We closed: what still comes is answered with CLOSE, each time after twice the time.
    Closing { code: u32, until: Instant, due: bool, again_at: Instant, pause: Duration },
    /// Silent.
    Ended,
}

impl Phase {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }
}

impl Session {
    /// This side sends no more. What it sent goes out first; [`Event::Finished`] says when the peer has all of it. The
    /// other direction goes on, and the session ends when both sides have finished.
    pub fn finish(&mut self) {
        if self.fin == Fin::No {
            self.fin = Fin::Due;
        }
    }

    /// Ends the session at once: a CLOSE goes out, nothing else. See [`Session::abandon`].
    pub fn close(&mut self, now: Instant, code: u32) {
        self.start_closing(now, code, End::Closed { code });
    }

    /// Once the session has ended: the frames that the peer has not acknowledged whole, oldest first, with their tokens,
    /// for another way to it. Those that it has are not among them: their tokens come out of
    /// [`Session::poll_completion`]; whether the peer has handed on one of them, only its own counting can
    /// tell (`SessionStats::delivered_messages` is a lower bound).
    pub fn abandon(&mut self) -> impl Iterator<Item = (Frame, Option<SendToken>)> + '_ {
        if self.phase.is_open() {
            self.end(End::Closed { code: 0 });
        }
        self.outbox.abandon()
    }

    /// No packet will come out of this session any more. It can be dropped once its events, completions and frames are
    /// taken.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Ended
    }

    pub(super) fn broke_protocol(&mut self, now: Instant, what: &'static str) {
        self.start_closing(now, CloseCode::PROTOCOL_ERROR.0, End::Protocol(what));
    }

    pub(super) fn start_closing(&mut self, now: Instant, code: u32, end: End) {
        if !self.phase.is_open() {
            return;
        }
        self.end(end);
        let pause = self.probe_timeout();
        self.phase = Phase::Closing { code, until: now + 3 * pause, due: true, again_at: now, pause };
    }

    pub(super) fn end(&mut self, end: End) {
        if self.phase.is_open() {
            self.events.push_back(Event::Ended(end));
        }
        self.phase = Phase::Ended;
    }

    /// Something came while we are closing.
    pub(super) fn heard_while_closing(&mut self, now: Instant) {
        if let Phase::Closing { due, again_at, pause, .. } = &mut self.phase
            && now >= *again_at
        {
            *due = true;
            *again_at = now + *pause;
            *pause *= 2;
        }
    }

    /// Starts lingering once both directions are done, and ends after it.
    pub(super) fn check_done(&mut self, now: Instant) {
        match self.phase {
            Phase::Open { linger_until: Some(until) } if now >= until => self.end(End::Finished),
            Phase::Open { linger_until: None }
                if self.told_finished && self.peer_fin == Some(self.inbox.complete_to()) =>
            {
                let until = now + 3 * self.probe_timeout();
                self.phase = Phase::Open { linger_until: Some(until) };
            }
            _ => {}
        }
    }
}
