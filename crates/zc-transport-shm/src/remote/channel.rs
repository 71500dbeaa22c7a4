//! The ring of each side on which the one-sided halves talk, and their sleep.
//!
//! It lies in the page of the control words. What does not fit waits here, and is bounded by what there is to
//! say: a question, an answer, and a revocation of each key that the peer knows. Notifications wait for room instead: of a
//! write that is done, the ring has the notification.

use std::collections::VecDeque;

use zc_core::wire::WireError;

use super::Calls;
use super::record::{Key, RECORD_WORDS, Record};
use crate::bell::PeerBell;
use crate::layout::{NOTIFIED, REMOTE_CALLS, REMOTE_CONSUMED, REMOTE_REVOKED, REMOTE_RING, REMOTE_SLEEP};
use crate::lie::lie;
use crate::limits::{NOTIFY_WINDOW, REMOTE_SLOTS};
use crate::ring::{Consumer, Producer};
use crate::sleep::{Ringer, Sleeper};
use crate::words::{OwnWords, PeerWords, ReadWords, WriteWords};

pub(super) struct Channel {
    own: OwnWords,
    peer: PeerWords,
    out: Producer<OwnWords>,
    incoming: Consumer<PeerWords>,
    queue: VecDeque<Record>,
    sleeper: Sleeper<OwnWords>,
    /// The peer's one-sided half.
    ringer: Ringer<PeerWords>,
    /// How often the peer was called.
    calls: u64,
    /// It is to be called.
    must_call: bool,
    /// Records taken that the peer was not told of, and since it was last called for them.
    untold: u64,
    uncalled: u64,
    /// Notifications that were sent.
    notifications: u64,
    /// Revocations that were decided, and those of the peer's that were taken.
    revoked: u64,
    taken: u64,
}

impl Channel {
    pub(super) fn new(own: OwnWords, peer: PeerWords) -> Self {
        Self {
            out: Producer::new(own.clone(), REMOTE_RING, REMOTE_SLOTS),
            incoming: Consumer::new(peer.clone(), REMOTE_RING, REMOTE_SLOTS),
            sleeper: Sleeper::new(own.clone(), REMOTE_SLEEP),
            ringer: Ringer::new(peer.clone(), REMOTE_SLEEP),
            own,
            peer,
            queue: VecDeque::new(),
            calls: 0,
            must_call: false,
            untold: 0,
            uncalled: 0,
            notifications: 0,
            revoked: 0,
            taken: 0,
        }
    }

    /// The next record, of which the peer hears nothing until [`Channel::advance`].
    pub(super) fn next(&self) -> Result<Option<Record>, WireError> {
        let Some(head) = self.incoming.peek() else { return Ok(None) };
        let mut words = [0; RECORD_WORDS];
        self.incoming.read(&mut words);
        Record::decode(head, words).map(Some)
    }

    pub(super) fn advance(&mut self) {
        self.incoming.advance();
        self.untold += 1;
        self.uncalled += 1;
    }

    /// Says something, once it is flushed.
    pub(super) fn say(&mut self, record: Record) {
        self.queue.push_back(record);
    }

    /// What was answered about this key is true no more. The peer knows that there is such a key when this returns, and which
    /// one when the record gets there.
    pub(super) fn say_revoked(&mut self, key: Key) {
        self.queue.push_back(Record::Revoke(key));
        self.revoked += 1;
        self.own.publish(REMOTE_REVOKED, self.revoked);
    }

    /// One of the peer's revocations was taken.
    pub(super) fn take_revoked(&mut self) {
        self.taken += 1;
    }

    /// Whether all that the peer has revoked is known here.
    pub(super) fn knows_revoked(&self) -> Result<bool, WireError> {
        // An honest peer counts first and says it then. One whose records never come only has itself to wait for.
        let missing = self.peer.load(REMOTE_REVOKED).checked_sub(self.taken);
        missing.map(|missing| missing == 0).ok_or_else(|| lie("shm remote: revoked count"))
    }

    /// Whether the window has a place for one more notification.
    pub(super) fn may_notify(&self) -> Result<bool, WireError> {
        let waiting = self.notifications.checked_sub(self.peer.load(NOTIFIED));
        let waiting = waiting.ok_or_else(|| lie("shm remote: notified count"))?;
        Ok(waiting < NOTIFY_WINDOW)
    }

    /// Sends a notification, for which there is a place and room.
    pub(super) fn notify(&mut self, key: Key, value: u64) {
        self.notifications += 1;
        self.queue.push_back(Record::Notify { key, value });
    }

    /// Whether the ring will take one more record with the next flush. If not, the peer calls when it will.
    pub(super) fn has_room(&mut self) -> Result<bool, WireError> {
        let waiting = self.queue.len() as u64;
        if self.out.free() <= waiting {
            self.update()?;
        }
        Ok(self.out.free() > waiting)
    }

    /// An answer that the peer has not taken off the ring's end, so that it can't have asked again.
    pub(super) fn owes_answer(&self) -> bool {
        self.queue.iter().any(|record| matches!(record, Record::Grant(_) | Record::Refuse { .. }))
    }

    /// So many notifications of the peer no longer wait here.
    pub(super) fn notified(&mut self, count: u64) {
        self.own.publish(NOTIFIED, count);
    }

    /// Puts out what there is room for, and wakes the peer if it sleeps.
    pub(super) fn flush(&mut self, peer_bell: &PeerBell) -> Result<(), WireError> {
        if self.untold > 0 {
            self.untold = 0;
            self.own.publish(REMOTE_CONSUMED, self.incoming.count());
        }
        // A full ring is half emptied before it is empty, and only who found it full waits for that.
        if self.uncalled >= u64::from(REMOTE_SLOTS) / 2 {
            self.uncalled = 0;
            self.must_call = true;
        }
        while let Some(&record) = self.queue.front() {
            if self.out.free() == 0 {
                self.update()?;
                if self.out.free() == 0 {
                    break;
                }
            }
            let (head, words) = record.encode();
            self.out.push(head, 0, &words[..usize::from(head.count) / 8]);
            self.queue.pop_front();
            self.must_call = true;
        }
        self.out.publish();
        if std::mem::take(&mut self.must_call) {
            self.calls += 1;
            self.own.publish(REMOTE_CALLS, self.calls);
            if self.ringer.must_ring() {
                peer_bell.ring();
            }
        }
        Ok(())
    }

    fn update(&mut self) -> Result<(), WireError> {
        let plausible = self.out.update(self.peer.load(REMOTE_CONSUMED));
        if plausible { Ok(()) } else { Err(lie("shm remote: consumed count")) }
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.queue.is_empty()
    }

    /// From now on it will be rung for. Look again afterwards, and only then sleep.
    pub(super) fn rest(&mut self, calls: &Calls<PeerWords>) {
        calls.rest(&mut self.sleeper);
    }
}
