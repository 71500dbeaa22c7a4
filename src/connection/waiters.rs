//! The fair queue of senders that wait for room: each has its own waker and its place.

use std::collections::VecDeque;
use std::task::Waker;

use zc_core::memory::Message;

use super::wake::wake;

/// Messages that sinks took although there was no room; see [`FairQueue::park`].
pub(super) const MAX_PARKED: usize = 1024;

/// A place in the queue. Places are handed out in increasing order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

#[derive(Debug)]
enum Waiting {
    /// Is woken when it is first and there may be room.
    Task(Waker),
    /// Waits until the lane's own queue is empty; keeps newcomers from filling it meanwhile.
    Flush(Waker),
    /// A permit: it is first, has room, and waits for nothing.
    Permit,
    /// A message without a task: the driver hands it over when it is first.
    Parked(Message),
}

/// First come, first served; a waiter that goes away leaves its place.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    waiting: VecDeque<(Place, Waiting)>,
    next: u64,
    parked: usize,
    flushes: usize,
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

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn find(&mut self, place: Option<Place>) -> Option<&mut Waiting> {
        let at = self.waiting.binary_search_by_key(&place?, |(place, _)| *place).ok()?;
        Some(&mut self.waiting[at].1)
    }

    fn put(&mut self, place: &mut Option<Place>, waiting: Waiting) {
        self.flushes += usize::from(matches!(waiting, Waiting::Flush(_)));
        if let Some(old) = self.find(*place) {
            let old = std::mem::replace(old, waiting);
            self.flushes -= usize::from(matches!(old, Waiting::Flush(_)));
            return;
        }
        let new = Place(self.next);
        self.next += 1;
        self.waiting.push_back((new, waiting));
        *place = Some(new);
    }

    /// Waits, or waits on with another waker. True for a newcomer.
    pub(super) fn wait(&mut self, place: &mut Option<Place>, waker: &Waker) -> bool {
        if let Some(Waiting::Task(old)) = self.find(*place) {
            old.clone_from(waker);
            return false;
        }
        self.put(place, Waiting::Task(waker.clone()));
        true
    }

    /// Waits for a flush.
    pub(super) fn wait_flush(&mut self, place: &mut Option<Place>, waker: &Waker) {
        self.put(place, Waiting::Flush(waker.clone()));
    }

    /// Wakes those who wait for a flush: the lane's queue is empty.
    pub(super) fn wake_flushes(&self) {
        if self.flushes == 0 {
            return;
        }
        for (_, waiting) in &self.waiting {
            if let Waiting::Flush(waker) = waiting {
                wake(waker.clone());
            }
        }
    }

    /// The one that may go keeps its turn until it leaves.
    pub(super) fn hold(&mut self, place: &mut Option<Place>) {
        debug_assert!(self.may_go(*place));
        self.put(place, Waiting::Permit);
    }

    /// Queues a message whose sender does not wait for its turn. It comes back when too many are parked.
    pub(super) fn park(&mut self, message: Message) -> Result<(), Message> {
        if self.parked >= MAX_PARKED {
            return Err(message);
        }
        self.parked += 1;
        self.put(&mut None, Waiting::Parked(message));
        Ok(())
    }

    /// Messages parked.
    pub(super) fn parked(&self) -> usize {
        self.parked
    }

    /// Whether a message is parked in front of this place, or at all if there is none.
    pub(super) fn parked_before(&self, place: Option<Place>) -> bool {
        let is_before = |at: Place| place.is_none_or(|place| at < place);
        let mut before = self.waiting.iter().take_while(|(at, _)| is_before(*at));
        self.parked > 0 && before.any(|(_, waiting)| matches!(waiting, Waiting::Parked(_)))
    }

    /// The length of the parked message that is first, if it is one.
    pub(super) fn first_parked(&self) -> Option<usize> {
        match self.waiting.front() {
            Some((_, Waiting::Parked(message))) => Some(message.len()),
            _ => None,
        }
    }

    /// Takes the parked message that is first.
    pub(super) fn unpark(&mut self) -> Option<Message> {
        self.first_parked()?;
        let Some((_, Waiting::Parked(message))) = self.waiting.pop_front() else { return None };
        self.parked -= 1;
        Some(message)
    }

    /// Gives up a place; whoever is first now, if that changed, is woken. True if it is a parked
    /// message, which is the driver's.
    #[must_use]
    pub(super) fn leave(&mut self, place: &mut Option<Place>) -> bool {
        let Some(place) = place.take() else { return false };
        let Ok(at) = self.waiting.binary_search_by_key(&place, |(place, _)| *place) else { return false };
        if let Some((_, Waiting::Flush(_))) = self.waiting.remove(at) {
            self.flushes -= 1;
        }
        at == 0 && self.wake_first()
    }

    /// Wakes the first one. True if it is a parked message, which is the driver's.
    pub(super) fn wake_first(&self) -> bool {
        match self.waiting.front() {
            Some((_, Waiting::Task(waker) | Waiting::Flush(waker))) => wake(waker.clone()),
            Some((_, Waiting::Parked(_))) => return true,
            Some((_, Waiting::Permit)) | None => {}
        }
        false
    }

    /// Wakes everyone; the places stay valid.
    pub(super) fn wake_all(&self) {
        for (_, waiting) in &self.waiting {
            if let Waiting::Task(waker) | Waiting::Flush(waker) = waiting {
                wake(waker.clone());
            }
        }
    }

    /// Drops all parked messages: they can't be sent any more.
    pub(super) fn drop_parked(&mut self) {
        self.waiting.retain(|(_, waiting)| !matches!(waiting, Waiting::Parked(_)));
        self.parked = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Count {
        fn take(&self) -> usize {
            self.0.swap(0, Ordering::Relaxed)
        }
    }

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn first_come_first_served_and_leaving_hands_on() {
        let count = Arc::new(Count::default());
        let waker = &Waker::from(count.clone());
        let mut queue = FairQueue::default();
        let (mut a, mut b, mut c) = (None, None, None);
        assert!(queue.may_go(None));
        queue.wait(&mut a, waker);
        queue.wait(&mut b, waker);
        queue.wait(&mut c, waker);
        queue.wait(&mut b, waker);
        assert!(queue.may_go(a) && !queue.may_go(b) && !queue.may_go(None));
        assert!(!queue.leave(&mut b));
        assert_eq!(count.take(), 0, "the one in the middle wakes nobody");
        assert!(!queue.leave(&mut a));
        assert_eq!(count.take(), 1, "the first one wakes the next");
        assert!(queue.may_go(c));
        queue.hold(&mut c);
        assert!(queue.may_go(c) && !queue.may_go(None), "a permit keeps its turn");
        assert!(!queue.wake_first() && count.take() == 0, "and is not woken");
        assert!(!queue.leave(&mut c));
        assert!(queue.may_go(None));
    }

    #[test]
    fn parked_messages_keep_their_turn() {
        let mut queue = FairQueue::default();
        let (mut a, mut b) = (None, None);
        queue.wait(&mut a, Waker::noop());
        queue.park(Message::from(&b"one"[..])).unwrap();
        queue.wait(&mut b, Waker::noop());
        assert!(!queue.parked_before(a) && queue.parked_before(b) && queue.parked_before(None));
        assert_eq!(queue.first_parked(), None);
        assert!(queue.unpark().is_none());
        assert!(queue.leave(&mut a), "the driver is to come");
        assert_eq!(queue.first_parked(), Some(3));
        assert!(!queue.may_go(b));
        assert_eq!(queue.unpark().unwrap(), b"one"[..]);
        assert!(queue.may_go(b));
        for _ in queue.parked()..MAX_PARKED {
            queue.park(Message::new()).unwrap();
        }
        assert!(queue.park(Message::new()).is_err(), "bounded");
        queue.drop_parked();
        assert_eq!((queue.parked(), queue.len()), (0, 1));
    }
}
