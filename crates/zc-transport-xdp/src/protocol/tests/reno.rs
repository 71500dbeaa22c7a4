//! An independent oracle: a plain TCP NewReno (RFC 5681, RFC 6582) of fixed segments, without SACK, pacing or timestamps.

use std::time::{Duration, Instant};

use super::sim::Host;
use crate::protocol::codec::patch;

const SEGMENT: usize = 1472;
const MIN_RTO: Duration = Duration::from_millis(200);

/// Sends for ever; the window is in segments.
pub(super) struct Sender {
    window: f64,
    threshold: f64,
    next: u64,
    acked: u64,
    duplicates: u32,
    /// In fast recovery until this one is acknowledged.
    recover: Option<u64>,
    /// The highest segment that was sent when the last recovery or timeout began: what is acknowledged below it may be
    /// duplicates of our own making, and begins no recovery (RFC 6582, 3.2).
    high: u64,
    resend: Option<u64>,
    rtt: Option<(f64, f64)>,
    timed: Option<(u64, Instant)>,
    rto: Duration,
    last_progress: Instant,
}

impl Sender {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            window: 10.0,
            threshold: f64::MAX,
            next: 0,
            acked: 0,
            duplicates: 0,
            recover: None,
            high: 0,
            resend: None,
            rtt: None,
            timed: None,
            rto: Duration::from_secs(1),
            last_progress: now,
        }
    }

    fn measure(&mut self, now: Instant) {
        let Some((seq, at)) = self.timed.filter(|(seq, _)| self.acked > *seq) else { return };
        let sample = (now - at).as_secs_f64();
        let (smoothed, variation) = match self.rtt {
            None => (sample, sample / 2.0),
            Some((s, v)) => (0.875 * s + 0.125 * sample, 0.75 * v + 0.25 * (s - sample).abs()),
        };
        (self.rtt, self.timed) = (Some((smoothed, variation)), None);
        self.rto = Duration::from_secs_f64(smoothed + 4.0 * variation).max(MIN_RTO);
        debug_assert!(seq < self.acked);
    }

    fn on_ack(&mut self, now: Instant, ack: u64) {
        if ack > self.acked {
            let fresh = (ack - self.acked) as f64;
            (self.acked, self.last_progress, self.duplicates) = (ack, now, 0);
            self.next = self.next.max(ack);
            self.measure(now);
            match self.recover {
                Some(recover) if ack >= recover => (self.recover, self.window) = (None, self.threshold),
                Some(_) => {
                    self.window = (self.window - fresh + 1.0).max(1.0);
                    self.resend = Some(ack);
                }
                None if self.window < self.threshold => self.window += fresh.min(2.0),
                None => self.window += fresh / self.window,
            }
        } else if self.next > self.acked {
            self.duplicates += 1;
            if self.recover.is_some() {
                self.window += 1.0;
            } else if self.duplicates == 3 && self.acked >= self.high {
                self.threshold = ((self.next - self.acked) as f64 / 2.0).max(2.0);
                self.window = self.threshold + 3.0;
                (self.recover, self.resend, self.timed) = (Some(self.next), Some(self.acked), None);
                self.high = self.next;
            }
        }
    }

    fn timeout(&self) -> Option<Instant> {
        (self.next > self.acked).then(|| self.last_progress + self.rto)
    }

    fn on_timeout(&mut self, now: Instant) {
        self.threshold = ((self.next - self.acked) as f64 / 2.0).max(2.0);
        self.high = self.high.max(self.next);
        (self.window, self.next, self.duplicates) = (1.0, self.acked, 0);
        (self.recover, self.resend, self.timed) = (None, None, None);
        self.rto = (2 * self.rto).min(Duration::from_secs(60));
        self.last_progress = now;
    }

    fn segments(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        let segment = |seq: u64| {
            let mut bytes = vec![0; SEGMENT];
            patch(&mut bytes, 0, &seq.to_le_bytes());
            bytes
        };
        out.extend(self.resend.take().map(segment));
        while ((self.next - self.acked) as f64) < self.window.floor() {
            if self.next == self.acked {
                self.last_progress = now;
            }
            self.timed.get_or_insert((self.next, now));
            out.push(segment(self.next));
            self.next += 1;
        }
    }
}

/// Acknowledges every segment, cumulatively.
#[derive(Default)]
pub(super) struct Receiver {
    next: u64,
    ahead: std::collections::BTreeSet<u64>,
    acks: u64,
}

impl Receiver {
    pub(super) fn bytes(&self) -> u64 {
        self.next * SEGMENT as u64
    }
}

pub(super) enum Reno {
    Sender(Sender),
    Receiver(Receiver),
}

impl Host for Reno {
    fn arrive(&mut self, now: Instant, datagram: Vec<u8>) {
        let number = u64::from_le_bytes(datagram[..8].try_into().unwrap());
        match self {
            Self::Sender(sender) => sender.on_ack(now, number),
            Self::Receiver(receiver) => {
                if number >= receiver.next {
                    receiver.ahead.insert(number);
                }
                while receiver.ahead.remove(&receiver.next) {
                    receiver.next += 1;
                }
                receiver.acks += 1;
            }
        }
    }

    fn timeout(&self) -> Option<Instant> {
        match self {
            Self::Sender(sender) => sender.timeout(),
            Self::Receiver(_) => None,
        }
    }

    fn poll(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        match self {
            Self::Sender(sender) => {
                if sender.timeout().is_some_and(|at| at <= now) {
                    sender.on_timeout(now);
                }
                sender.segments(now, out);
            }
            Self::Receiver(receiver) => {
                let mut ack = vec![0; 64];
                patch(&mut ack, 0, &receiver.next.to_le_bytes());
                out.extend(std::iter::repeat_n(ack, std::mem::take(&mut receiver.acks) as usize));
            }
        }
    }
}
