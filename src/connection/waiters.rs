//! The fair queue of senders that wait for room: each has its own waker and its place.

use std::collections::VecDeque;
use std::task::Waker;

/// A place in the queue. Places are handed out in increasing order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

/// First come, first served; a waiter that goes away leaves its place.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    waiting: VecDeque<(Place, Waker)>,
    next: u64,
}

impl FairQueue {
    /// True when `place` (or a newcomer, if `None`) may go now.
    pub(super) fn may_go(&self, place: Option<Place>) -> bool {
        match (self.waiting.front(), place) {
            (None, _) => true,
            (Some((first, _)), Some(place)) => *first == place,
            (Some(_), None) => false,
        }
    }

    /// Waits, or waits on with another waker.
    pub(super) fn wait(&mut self, place: &mut Option<Place>, waker: &Waker) {
        if let Some(place) = *place
            && let Ok(at) = self.waiting.binary_search_by_key(&place, |(place, _)| *place)
        {
            self.waiting[at].1.clone_from(waker);
            return;
        }
        let new = Place(self.next);
        self.next += 1;
        self.waiting.push_back((new, waker.clone()));
        *place = Some(new);
    }

    /// Gives up a place; the waker of the one that is first now, if that changed.
    pub(super) fn leave(&mut self, place: &mut Option<Place>) -> Option<Waker> {
        let place = place.take()?;
        let at = self.waiting.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        self.waiting.remove(at);
        if at == 0 { self.first() } else { None }
    }

    /// The first one's waker.
    pub(super) fn first(&self) -> Option<Waker> {
        self.waiting.front().map(|(_, waker)| waker.clone())
    }

    /// Everyone's waker; the places stay valid.
    pub(super) fn all(&self) -> impl Iterator<Item = Waker> + '_ {
        self.waiting.iter().map(|(_, waker)| waker.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_come_first_served_and_leaving_hands_on() {
        let waker = Waker::noop();
        let mut queue = FairQueue::default();
        let (mut a, mut b, mut c) = (None, None, None);
        assert!(queue.may_go(None));
        queue.wait(&mut a, waker);
        queue.wait(&mut b, waker);
        queue.wait(&mut c, waker);
        queue.wait(&mut b, waker);
        assert!(queue.may_go(a) && !queue.may_go(b) && !queue.may_go(None));
        assert!(queue.leave(&mut b).is_none(), "the one in the middle wakes nobody");
        assert!(queue.leave(&mut a).is_some(), "the first one wakes the next");
        assert!(queue.may_go(c));
        assert!(queue.leave(&mut c).is_none());
        assert!(queue.may_go(None));
    }
}
