//! The fair queue of those who send: each has its place, first come, first served.
//!
//! Nothing at the head of the queue waits for somebody who may never come back. A place with a task belongs
//! to a future, which gives it up when it is dropped. Whoever is polled without one (a `Sink`, a byte stream)
//! may be left alone at any time; what it has in the queue is completed without it.

use std::collections::VecDeque;
use std::task::Waker;

use zc_core::memory::{Deferral, Message};

use super::wake::renew;

/// Messages that wait in the queue after which sinks are not ready; see [`FairQueue::park`].
pub(super) const MAX_PARKED: usize = 1024;
/// The same in payload bytes.
pub(super) const MAX_PARKED_BYTES: usize = 16 << 20;

/// A place in the queue. Places are handed out in increasing order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(u64);

#[derive(Debug)]
enum Waiting {
    /// Is woken when it is first and there may be room.
    Task(Waker),
    /// Keeps newcomers from filling the lane's own queue until that is empty.
    Flush(Waker),
    /// A message that was taken: the driver hands it over when it is first. Its sender may wait for that.
    Parked(Message, Option<Waker>),
}

impl Waiting {
    fn waker(&self) -> Option<&Waker> {
        match self {
            Self::Task(waker) | Self::Flush(waker) => Some(waker),
            Self::Parked(_, waker) => waker.as_ref(),
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    waiting: VecDeque<(Place, Waiting)>,
    next: u64,
    flushes: usize,
    parked: usize,
    parked_bytes: usize,
    /// Whoever waits until fewer messages are parked.
    crowded_out: Vec<(Place, Waker)>,
}

impl FairQueue {
    /// True when `place` (or a newcomer, if `None`) may go now.
    pub(crate) fn may_go(&self, place: Option<Place>) -> bool {
        match (self.waiting.front(), place) {
            (None, _) => true,
            (Some((first, _)), Some(place)) => *first == place,
            (Some(_), None) => false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn find(&self, place: Place) -> Option<usize> {
        self.waiting.binary_search_by_key(&place, |(place, _)| *place).ok()
    }

    /// Whether something waits at this place.
    pub(super) fn holds(&self, place: Place) -> bool {
        self.find(place).is_some()
    }

    fn draw(&mut self) -> Place {
        let place = Place(self.next);
        self.next += 1;
        place
    }

    fn push(&mut self, waiting: Waiting) -> Place {
        let place = self.draw();
        self.waiting.push_back((place, waiting));
        place
    }

    /// Waits for its turn, or waits on with another waker. True for a newcomer.
    pub(crate) fn wait(&mut self, place: &mut Option<Place>, waker: &Waker) -> bool {
        let stays = place.is_some_and(|place| self.wait_on(place, waker));
        if !stays {
            *place = Some(self.push(Waiting::Task(waker.clone())));
        }
        !stays
    }

    /// Waits for a flush of all that is in front.
    pub(super) fn wait_flush(&mut self, waker: &Waker) -> Place {
        self.flushes += 1;
        self.push(Waiting::Flush(waker.clone()))
    }

    /// Waits on with another waker. False if there is nothing to wait for any more.
    pub(super) fn wait_on(&mut self, place: Place, waker: &Waker) -> bool {
        let Some(at) = self.find(place) else { return false };
        match &mut self.waiting[at].1 {
            Waiting::Task(old) | Waiting::Flush(old) | Waiting::Parked(_, Some(old)) => renew(old, waker),
            Waiting::Parked(_, none) => *none = Some(waker.clone()),
        }
        true
    }

    /// The lane's own queue is empty: so is done whoever waits for that and for no parked message in front.
    /// True if a parked message is first now: it is the driver's.
    #[must_use]
    pub(super) fn flushed(&mut self) -> bool {
        if self.flushes == 0 {
            return false;
        }
        let mut at = 0;
        while let Some((_, waiting)) = self.waiting.get(at)
            && !matches!(waiting, Waiting::Parked(..))
        {
            if matches!(waiting, Waiting::Flush(_)) {
                let first = at == 0;
                if let Some((_, Waiting::Flush(waker))) = self.waiting.remove(at) {
                    self.flushes -= 1;
                    Deferral::wake(waker);
                }
                if first && self.wake_first() {
                    return true;
                }
            } else {
                at += 1;
            }
        }
        false
    }

    /// Queues a message without a future, to be handed over in its turn. It comes back when too many are queued.
    pub(super) fn park(&mut self, message: Message) -> Result<Place, Message> {
        if self.parked >= 2 * MAX_PARKED {
            return Err(message);
        }
        self.parked += 1;
        self.parked_bytes += message.len();
        Ok(self.push(Waiting::Parked(message, None)))
    }

    /// Whether a message may be parked: if not, waits at `place`, which it is given, until some are gone.
    pub(super) fn may_park(&mut self, place: &mut Option<Place>, waker: &Waker) -> bool {
        if !self.is_crowded() {
            self.stay_out(place);
            return true;
        }
        let id = *place.get_or_insert_with(|| self.draw());
        match self.crowded_out.iter_mut().find(|(other, _)| *other == id) {
            Some((_, old)) => renew(old, waker),
            None => self.crowded_out.push((id, waker.clone())),
        }
        false
    }

    /// Waits no more until it may park.
    pub(super) fn stay_out(&mut self, place: &mut Option<Place>) {
        let Some(id) = place.take() else { return };
        if let Some(at) = self.crowded_out.iter().position(|(other, _)| *other == id) {
            Deferral::discard(self.crowded_out.swap_remove(at).1);
        }
    }

    fn admit_all(&mut self) {
        self.crowded_out.drain(..).for_each(|(_, waker)| Deferral::wake(waker));
    }

    fn is_crowded(&self) -> bool {
        self.parked >= MAX_PARKED || self.parked_bytes >= MAX_PARKED_BYTES
    }

    /// Messages parked.
    pub(super) fn parked(&self) -> usize {
        self.parked
    }

    /// The length of the parked message that is first, if it is one.
    pub(super) fn first_parked(&self) -> Option<usize> {
        match self.waiting.front() {
            Some((_, Waiting::Parked(message, _))) => Some(message.len()),
            _ => None,
        }
    }

    /// Takes the parked message that is first.
    pub(super) fn unpark(&mut self) -> Option<Message> {
        self.first_parked()?;
        let Some((_, Waiting::Parked(message, waker))) = self.waiting.pop_front() else { return None };
        waker.into_iter().for_each(Deferral::wake);
        self.parked -= 1;
        self.parked_bytes -= message.len();
        if !self.is_crowded() {
            self.admit_all();
        }
        Some(message)
    }

    /// Gives up a place; whoever is first now, if that changed, is woken. True if it is a parked
    /// message, which is the driver's.
    #[must_use]
    pub(crate) fn leave(&mut self, place: &mut Option<Place>) -> bool {
        let Some(at) = place.take().and_then(|place| self.find(place)) else { return false };
        match self.waiting.remove(at) {
            Some((_, Waiting::Task(waker))) => Deferral::discard(waker),
            Some((_, Waiting::Flush(waker))) => {
                self.flushes -= 1;
                Deferral::discard(waker);
            }
            _ => {}
        }
        at == 0 && self.wake_first()
    }

    /// Wakes the first one. True if it is a parked message, which is the driver's.
    pub(crate) fn wake_first(&self) -> bool {
        match self.waiting.front() {
            Some((_, Waiting::Task(waker) | Waiting::Flush(waker))) => Deferral::wake(waker.clone()),
            Some((_, Waiting::Parked(..))) => return true,
            None => {}
        }
        false
    }

    /// Wakes everyone; the places stay valid.
    pub(crate) fn wake_all(&mut self) {
        self.waiting
            .iter()
            .filter_map(|(_, waiting)| waiting.waker())
            .for_each(|waker| Deferral::wake(waker.clone()));
        self.admit_all();
    }

    /// Takes out all parked messages: they can't be sent any more.
    pub(super) fn drop_parked(&mut self) {
        self.waiting.retain_mut(|(_, waiting)| match waiting {
            Waiting::Parked(_, waker) => {
                waker.take().into_iter().for_each(Deferral::wake);
                false
            }
            _ => true,
        });
        (self.parked, self.parked_bytes) = (0, 0);
        self.admit_all();
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
        assert!(!queue.leave(&mut c));
        assert!(queue.may_go(None));
    }

    #[test]
    fn parked_messages_keep_their_turn() {
        let count = Arc::new(Count::default());
        let waker = &Waker::from(count.clone());
        let mut queue = FairQueue::default();
        let (mut a, mut b) = (None, None);
        queue.wait(&mut a, Waker::noop());
        let parked = queue.park(Message::from(&b"one"[..])).unwrap();
        queue.wait(&mut b, Waker::noop());
        assert!(queue.wait_on(parked, waker), "it is not handed over yet");
        assert_eq!(queue.first_parked(), None);
        assert!(queue.unpark().is_none());
        assert!(queue.leave(&mut a), "the driver is to come");
        assert_eq!(queue.first_parked(), Some(3));
        assert!(!queue.may_go(b));
        assert_eq!(queue.unpark().unwrap(), b"one"[..]);
        assert_eq!(count.take(), 1, "its sender is told");
        assert!(!queue.wait_on(parked, waker));
        assert!(queue.may_go(b));
    }

    #[test]
    fn parked_messages_are_bounded_in_number_and_bytes() {
        let count = Arc::new(Count::default());
        let waker = &Waker::from(count.clone());
        let mut queue = FairQueue::default();
        let (mut here, mut gone) = (None, None);
        while queue.may_park(&mut here, waker) {
            queue.park(Message::new()).unwrap();
        }
        assert_eq!(queue.parked(), MAX_PARKED);
        assert!(!queue.may_park(&mut gone, waker) && !queue.may_park(&mut here, waker));
        queue.stay_out(&mut gone);
        assert_eq!(queue.crowded_out.len(), 1, "one for each that waits, however often it asks");
        queue.unpark().unwrap();
        assert_eq!(count.take(), 1, "there is room again");
        assert!(queue.may_park(&mut here, waker));
        // Those who had been told that they may.
        while queue.park(Message::new()).is_ok() {}
        assert_eq!(queue.parked(), 2 * MAX_PARKED);
        queue.drop_parked();
        assert_eq!((queue.parked(), queue.len()), (0, 0));
        queue.park(vec![0; MAX_PARKED_BYTES].into()).unwrap();
        assert!(!queue.may_park(&mut here, waker));
        queue.drop_parked();
        assert_eq!(count.take(), 1);
    }

    #[test]
    fn a_flush_waits_for_parked_messages_in_front_and_for_nobody_to_come_back() {
        let count = Arc::new(Count::default());
        let waker = &Waker::from(count.clone());
        let mut queue = FairQueue::default();
        let early = queue.wait_flush(waker);
        queue.park(Message::new()).unwrap();
        let late = queue.wait_flush(waker);
        assert!(!queue.may_go(None), "nobody fills the lane meanwhile");
        assert!(queue.flushed(), "the driver is to come for the message");
        assert_eq!(count.take(), 1);
        assert!(!queue.wait_on(early, waker) && queue.wait_on(late, waker));
        queue.unpark().unwrap();
        assert!(!queue.flushed());
        assert!(queue.is_empty() && queue.may_go(None), "although nobody has left");
    }
}
