//! Sends and drains whose end somebody awaits. Every step costs the same for one as for thousands.
//!
//! Bounds: a slot and an entry in `delivered` per future that waits; an entry in `reports` per report that
//! the lane owes, which the lane's queue bounds, however many futures are dropped.

use std::collections::VecDeque;
use std::task::Waker;

use zc_core::memory::Deferral;
use zc_core::transport::{SendReport, SendToken};

use super::wake::renew;

/// Names a waiting future: its slot, and an id that no other ever has in that slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    slot: u32,
    id: u64,
    pub(super) seq: u64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    waker: Waker,
    report: Option<SendReport>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Who waits for an acknowledgement, by message number.
    delivered: VecDeque<Ticket>,
    /// Who waits for a report of the lane, in the order of sending.
    reports: VecDeque<(SendToken, Ticket)>,
    next_id: u64,
}

impl Tracked {
    fn insert(&mut self, seq: u64, waker: &Waker) -> Ticket {
        let id = self.next_id;
        self.next_id += 1;
        let entry = Some(Entry { id, waker: waker.clone(), report: None });
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = entry;
                slot
            }
            None => {
                self.slots.push(entry);
                (self.slots.len() - 1) as u32
            }
        };
        Ticket { slot, id, seq }
    }

    /// Waits until message `seq` is acknowledged. Numbers come in order.
    pub(super) fn await_ack(&mut self, seq: u64, waker: &Waker) -> Ticket {
        let ticket = self.insert(seq, waker);
        debug_assert!(self.delivered.back().is_none_or(|last| last.seq <= seq));
        self.delivered.push_back(ticket);
        ticket
    }

    /// Waits for the lane's report on message `seq`.
    pub(super) fn await_report(&mut self, seq: u64, token: SendToken, waker: &Waker) -> Ticket {
        let ticket = self.insert(seq, waker);
        self.reports.push_back((token, ticket));
        ticket
    }

    /// Gives up waiting.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        // Several drains may wait for the same number.
        let first = self.delivered.partition_point(|other| other.seq < ticket.seq);
        let same = self.delivered.iter().skip(first).take_while(|other| other.seq == ticket.seq);
        if let Some(at) = same.zip(first..).find_map(|(other, at)| (*other == ticket).then_some(at)) {
            self.delivered.remove(at);
        }
        if let Some(slot) = self.slots.get_mut(ticket.slot as usize)
            && let Some(entry) = slot.take()
        {
            Deferral::discard(entry.waker);
            self.free.push(ticket.slot);
        }
    }

    /// Waits on with this waker.
    pub(super) fn refresh(&mut self, ticket: Ticket, waker: &Waker) {
        if let Some(Some(entry)) = self.slots.get_mut(ticket.slot as usize) {
            renew(&mut entry.waker, waker);
        }
    }

    /// What the lane said.
    pub(super) fn report(&self, ticket: Ticket) -> Option<SendReport> {
        self.slots.get(ticket.slot as usize)?.as_ref()?.report
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether the lane owes reports.
    pub(super) fn awaits_reports(&self) -> bool {
        !self.reports.is_empty()
    }

    /// All messages up to `acked` are acknowledged.
    pub(super) fn acknowledged(&mut self, acked: u64) {
        while let Some(ticket) = self.delivered.front().copied()
            && ticket.seq <= acked
        {
            self.delivered.pop_front();
            if let Some(entry) = self.entry(ticket) {
                Deferral::wake(entry.waker.clone());
            }
        }
    }

    /// The lane reports on a send. Reports come in the order of sending; one that nobody asked for is ignored (M3).
    pub(super) fn reported(&mut self, token: SendToken, report: SendReport) {
        let at = self.reports.iter().position(|(owed, _)| *owed == token);
        let Some((_, ticket)) = at.and_then(|at| self.reports.remove(at)) else { return };
        if let Some(entry) = self.entry(ticket) {
            entry.report = Some(report);
            Deferral::wake(entry.waker.clone());
        }
    }

    /// Everyone is to look again.
    pub(super) fn wake_all(&self) {
        self.slots.iter().flatten().for_each(|entry| Deferral::wake(entry.waker.clone()));
    }

    fn entry(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        let entry = self.slots.get_mut(ticket.slot as usize)?.as_mut()?;
        (entry.id == ticket.id).then_some(entry)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_acknowledgement_wakes_those_it_covers_once() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut tracked = Tracked::default();
        let tickets: Vec<_> = (1..=1000).map(|seq| tracked.await_ack(seq, &waker)).collect();
        tracked.acknowledged(10);
        tracked.acknowledged(10);
        assert_eq!(count.0.load(Ordering::Relaxed), 10);
        // A slot that was taken over is not taken for the one before.
        tracked.remove(tickets[10]);
        let other = tracked.await_ack(2000, &waker);
        assert_eq!(other.slot, tickets[10].slot);
        tracked.acknowledged(1999);
        assert_eq!(count.0.load(Ordering::Relaxed), 999);
        for ticket in tickets.into_iter().filter(|ticket| ticket.seq != 11) {
            tracked.remove(ticket);
        }
        assert_eq!((tracked.len(), tracked.delivered.len()), (1, 1));
        // Drains that are given up again and again.
        for _ in 0..10 {
            let same = tracked.await_ack(2000, &waker);
            tracked.remove(same);
        }
        assert_eq!(tracked.delivered.len(), 1);
        tracked.remove(other);
        assert!(tracked.is_empty() && tracked.delivered.is_empty());
    }

    #[test]
    fn reports_find_their_send_and_strangers_are_ignored() {
        let mut tracked = Tracked::default();
        let a = tracked.await_report(1, SendToken(7), Waker::noop());
        let b = tracked.await_report(2, SendToken(9), Waker::noop());
        tracked.reported(SendToken(8), SendReport::Failed);
        tracked.reported(SendToken(9), SendReport::Sent);
        assert_eq!((tracked.report(a), tracked.report(b)), (None, Some(SendReport::Sent)));
        tracked.remove(a);
        tracked.reported(SendToken(7), SendReport::Sent);
        assert!(!tracked.awaits_reports(), "a report for nobody is taken off the list");
    }
}
