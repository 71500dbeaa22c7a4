//! The packets that were sent, until each is settled: acknowledged or lost.

use std::collections::VecDeque;
use std::time::Instant;

use smallvec::SmallVec;

use super::limits::MAX_SENT_PACKETS;

/// Consecutive chunks: from the first to before the end.
pub(super) type Run = (u64, u64);
/// The chunks of a packet.
pub(super) type Runs = SmallVec<[Run; 2]>;

/// What a packet carried, and must be sent again if it is lost.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) runs: Runs,
    pub(super) credit: bool,
    pub(super) fin: bool,
    /// It is of full length only to see whether the path carries such: nothing of it is sent again.
    pub(super) is_long_probe: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) at: Instant,
    pub(super) bytes: usize,
    pub(super) content: Content,
}

#[derive(Debug)]
enum Place {
    Waiting(Packet),
    Acknowledged,
    /// Lost, or one that nobody acknowledges.
    Settled,
}

/// The table, by packet number.
#[derive(Debug)]
pub(super) struct Sent {
    base: u64,
    places: VecDeque<Place>,
    skipped: Option<u64>,
    in_flight: u64,
    waiting: usize,
}

/// What a look at the oldest packets found.
#[derive(Debug)]
pub(super) enum Oldest {
    /// Lost: it is out of the table.
    Lost(u64, Packet),
    /// One that was acknowledged lies between the lost ones.
    Acknowledged,
    /// The oldest that is not lost was sent then.
    Waiting(Instant),
    Nothing,
}

impl Sent {
    pub(super) fn new() -> Self {
        Self { base: 0, places: VecDeque::new(), skipped: None, in_flight: 0, waiting: 0 }
    }

    /// The number of the next packet.
    #[inline]
    pub(super) fn next(&self) -> u64 {
        self.base + self.places.len() as u64
    }

    /// All below is settled.
    #[inline]
    pub(super) fn settled_below(&self) -> u64 {
        self.base
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.places.len() + 2 > MAX_SENT_PACKETS
    }

    /// Bytes in flight.
    #[inline]
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Notes the next packet, if the peer answers it.
    #[inline]
    pub(super) fn push(&mut self, packet: Option<Packet>) {
        match packet {
            Some(packet) => {
                self.in_flight += packet.bytes as u64;
                self.waiting += 1;
                self.places.push_back(Place::Waiting(packet));
            }
            None => self.places.push_back(Place::Settled),
        }
        self.trim();
    }

    /// Leaves a number out.
    pub(super) fn skip(&mut self) {
        self.skipped = Some(self.next());
        self.push(None);
    }

    /// The number that was left out last.
    pub(super) fn skipped(&self) -> Option<u64> {
        self.skipped
    }

    /// Takes the packets of a range that are acknowledged for the first time. The largest number that was sent
    /// bounds the range.
    pub(super) fn acknowledge(&mut self, low: u64, high: u64, mut done: impl FnMut(u64, Packet)) {
        let low = low.max(self.base);
        for number in low..high.saturating_add(1).min(self.next()) {
            let place = &mut self.places[(number - self.base) as usize];
            if matches!(place, Place::Waiting(_))
                && let Place::Waiting(packet) = std::mem::replace(place, Place::Acknowledged)
            {
                self.in_flight -= packet.bytes as u64;
                self.waiting -= 1;
                done(number, packet);
            }
        }
    }

    /// Looks at the oldest packet below `end`: takes it if it is `lost`, drops it if it is settled. To be called until
    /// it finds one that waits, or nothing.
    pub(super) fn oldest(&mut self, end: u64, at: &mut u64, lost: impl Fn(u64, &Packet) -> bool) -> Oldest {
        *at = (*at).max(self.base);
        while *at < end.min(self.next()) {
            let number = *at;
            *at += 1;
            let place = &mut self.places[(number - self.base) as usize];
            match place {
                Place::Settled => {}
                Place::Acknowledged => return Oldest::Acknowledged,
                Place::Waiting(packet) if !lost(number, packet) => return Oldest::Waiting(packet.at),
                Place::Waiting(_) => {
                    if let Place::Waiting(packet) = std::mem::replace(place, Place::Settled) {
                        self.in_flight -= packet.bytes as u64;
                        self.waiting -= 1;
                        return Oldest::Lost(number, packet);
                    }
                }
            }
        }
        Oldest::Nothing
    }

    /// Takes the oldest packet that waits.
    pub(super) fn take_oldest(&mut self) -> Option<(u64, Packet)> {
        self.trim();
        let number = self.base;
        let Some(Place::Waiting(packet)) = self.places.pop_front() else { return None };
        self.base += 1;
        self.in_flight -= packet.bytes as u64;
        self.waiting -= 1;
        self.trim();
        Some((number, packet))
    }

    /// Forgets the oldest packets that are settled.
    pub(super) fn trim(&mut self) {
        while self.places.front().is_some_and(|place| !matches!(place, Place::Waiting(_))) {
            self.places.pop_front();
            self.base += 1;
        }
    }

    /// The oldest packet that waits.
    pub(super) fn first_waiting(&self) -> Option<(u64, &Packet)> {
        match self.places.front()? {
            Place::Waiting(packet) => Some((self.base, packet)),
            _ => None,
        }
    }
}
