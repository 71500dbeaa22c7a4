//! Our operations on the peer's memory, in order.
//!
//! ```text
//! waiting --key known, in its range--> flying: work requests --all complete--> done
//!    ^                                    '-- refused by the peer's device: ended, as revoked
//!    '---------- flushed: the device has done nothing of them -- another round -'
//! ```

use std::collections::{HashMap, VecDeque};

use zc_core::memory::{Message, PinnedBufMut};
use zc_core::transport::{Access, RemoteCompletion, RemoteOp, RemoteToken};
use zc_core::wire::{RemoteStatus, WireError};

use super::record::{Granted, Key, QueueEnd, Record};
use super::{Outbox, connect, lie};
use crate::engine::{Endpoint, EndpointEnd, EndpointError, Finished, Unsent};
use crate::limits::{MAX_REMOTE_KEYS, MAX_REMOTE_OPERATIONS, NOTIFY_WINDOW, SPARE_WORDS};
use crate::verbs::{self, RemoteAccess, RemotePlace, Work, WorkFault};
use crate::wire::End;

/// What is to be done.
pub(in crate::lane) enum What {
    /// The buffer is the device's while it is read into.
    Read {
        into: Option<PinnedBufMut>,
        len: usize,
        /// What was in it before.
        before: usize,
    },
    Write {
        message: Message,
        notify: Option<u64>,
    },
    CompareSwap {
        expected: u64,
        new: u64,
    },
    FetchAdd {
        add: u64,
    },
}

/// An operation that was taken.
pub(in crate::lane) struct Operation {
    pub(in crate::lane) token: RemoteToken,
    /// `None`: a key that is none of ours.
    pub(in crate::lane) key: Option<Key>,
    pub(in crate::lane) offset: u64,
    pub(in crate::lane) what: What,
}

impl Operation {
    /// Reads and atomics, which those behind them may overtake.
    fn is_slow(&self) -> bool {
        !matches!(self.what, What::Write { .. })
    }
}

/// How an operation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lane) struct Ended {
    pub(in crate::lane) status: RemoteStatus,
    pub(in crate::lane) in_part: bool,
}

/// An operation that was begun.
pub(in crate::lane) struct Flying {
    pub(in crate::lane) operation: Operation,
    pub(in crate::lane) place: RemotePlace,
    /// By which its work requests are known.
    pub(in crate::lane) id: u64,
    /// Bytes that were handed over to the device.
    pub(in crate::lane) handed: usize,
    /// All of it was.
    pub(in crate::lane) is_handed: bool,
    /// Work requests without a completion.
    pub(in crate::lane) works: u32,
    value: u64,
    /// One of them was done.
    is_partly_done: bool,
    /// The device gave up one of them, and has done nothing of that.
    is_flushed: bool,
    /// It has a place among the notifications under way.
    has_place: bool,
    /// Its notification was handed over.
    is_told: bool,
    /// The device is to begin it only when the reads and atomics in front of it are complete.
    pub(in crate::lane) is_fenced: bool,
    ended: Option<Ended>,
}

impl Flying {
    pub(in crate::lane) fn len(&self) -> usize {
        match &self.operation.what {
            What::Read { len, .. } => *len,
            What::Write { message, .. } => message.len(),
            What::CompareSwap { .. } | What::FetchAdd { .. } => 8,
        }
    }

    /// It has ended, its notification included.
    fn is_over(&self) -> bool {
        self.has_left() && (self.ended.is_some() || self.works == 0)
    }

    /// The device won't do anything of it any more, and has done all of it or refused it.
    fn has_left(&self) -> bool {
        self.ended.is_some() || self.is_handed && !self.is_flushed && (self.works == 0 || self.is_told)
    }

    fn notification(&self) -> Option<u64> {
        match self.operation.what {
            What::Write { notify, .. } => notify,
            _ => None,
        }
    }

    /// The device has done something of it and won't go on.
    fn is_begun(&self) -> bool {
        self.is_partly_done || matches!(self.operation.what, What::Write { .. }) && self.handed > 0
    }
}

/// What a key stands for.
#[derive(Clone, Copy)]
struct Known {
    place: RemotePlace,
    len: u64,
    access: Access,
}

impl Known {
    /// Where the operation begins, if it is allowed.
    fn check(&self, operation: &Operation) -> Result<RemotePlace, RemoteStatus> {
        let offset = operation.offset;
        let (needed, len, is_aligned) = match &operation.what {
            What::Read { len, .. } => (Access::READ, *len as u64, true),
            What::Write { message, .. } => (Access::WRITE, message.len() as u64, true),
            What::CompareSwap { .. } | What::FetchAdd { .. } => (Access::ATOMIC, 8, offset.is_multiple_of(8)),
        };
        if !self.access.contains(needed) {
            Err(RemoteStatus::Denied)
        } else if offset.checked_add(len).is_none_or(|end| end > self.len) {
            Err(RemoteStatus::OutOfBounds)
        } else if !is_aligned {
            Err(RemoteStatus::Misaligned)
        } else {
            Ok(self.place.at(offset))
        }
    }
}

/// What is used of a queue pair for beginning operations.
pub(in crate::lane) trait Queue: Sized {
    /// Another one of the same engine.
    fn another(&self) -> Result<Self, EndpointError>;
    fn describe(&self) -> End;
    fn connect(&self, theirs: &End, peer: QueueEnd) -> Result<(), EndpointError>;
    /// Takes what is over; says whether all is.
    fn collect(&self, finished: &mut Vec<Finished>) -> Option<EndpointEnd>;
    fn has_ended(&self) -> bool;
    /// Nothing is staged or under way, or over and not to be taken yet.
    fn is_idle(&self) -> bool;
    fn fail(&self, end: EndpointEnd);
}

impl Queue for Endpoint {
    fn another(&self) -> Result<Self, EndpointError> {
        self.one_sided(false)
    }

    fn describe(&self) -> End {
        Self::describe(self)
    }

    fn connect(&self, theirs: &End, peer: QueueEnd) -> Result<(), EndpointError> {
        connect(self, theirs, peer, RemoteAccess::default())
    }

    fn collect(&self, finished: &mut Vec<Finished>) -> Option<EndpointEnd> {
        Self::collect(self, finished)
    }

    fn has_ended(&self) -> bool {
        Self::has_ended(self)
    }

    fn is_idle(&self) -> bool {
        Self::is_idle(self)
    }

    fn fail(&self, end: EndpointEnd) {
        Self::fail(self, end);
    }
}

/// The queue pair that begins operations.
enum Way<Q> {
    None,
    /// The peer has been told, and has not answered.
    Opening(Q),
    Open(Q),
}

/// What the first operation that waits may do.
pub(in crate::lane) enum Next {
    /// It is over, and flies no more.
    Ended,
    /// Hand it to the device.
    Begun,
    /// The peer has to say something first.
    Wait,
}

pub(in crate::lane) struct User<Q = Endpoint> {
    way: Way<Q>,
    round: u32,
    /// The peer has ended the round.
    is_closed: bool,
    /// The peer's device has refused something in this round: whoever that was may have been told of it by now.
    was_refused: bool,
    known: HashMap<Key, Known>,
    asked: Option<Key>,
    waiting: VecDeque<Operation>,
    pub(in crate::lane) flying: VecDeque<Flying>,
    tokens: u64,
    /// Notifications of ours, how many of them the peer was told, and how many of those it has handed on: never more than the one in
    /// front.
    notified: u64,
    told: u64,
    taken: u64,
    finished: Vec<Finished>,
    /// For the words of atomics.
    words: Vec<PinnedBufMut>,
}

impl<Q> Default for User<Q> {
    fn default() -> Self {
        Self {
            way: Way::None,
            round: 0,
            is_closed: false,
            was_refused: false,
            known: HashMap::new(),
            asked: None,
            waiting: VecDeque::new(),
            flying: VecDeque::new(),
            tokens: 0,
            notified: 0,
            told: 0,
            taken: 0,
            finished: Vec::new(),
            words: Vec::new(),
        }
    }
}

impl<Q: Queue> User<Q> {
    pub(in crate::lane) fn has_room(&self) -> bool {
        self.waiting.len() + self.flying.len() < MAX_REMOTE_OPERATIONS
    }

    pub(in crate::lane) fn start(&mut self, key: Option<Key>, offset: u64, op: RemoteOp) -> RemoteToken {
        self.tokens += 1;
        let token = RemoteToken(self.tokens);
        let what = match op {
            RemoteOp::Read { into, len } => What::Read { before: into.len(), into: Some(into), len },
            RemoteOp::Write { message, notify } => What::Write { message, notify },
            RemoteOp::CompareSwap { expected, new } => What::CompareSwap { expected, new },
            RemoteOp::FetchAdd { add } => What::FetchAdd { add },
        };
        self.waiting.push_back(Operation { token, key, offset, what });
        token
    }

    pub(in crate::lane) fn is_idle(&self) -> bool {
        self.known.is_empty() && self.waiting.is_empty() && self.flying.is_empty()
    }

    pub(super) fn fail(&mut self) {
        if let Way::Opening(endpoint) | Way::Open(endpoint) = &self.way {
            endpoint.fail(EndpointEnd::QueuePairFailed);
        }
    }

    /// Where operations begin now.
    pub(in crate::lane) fn endpoint(&self) -> Option<&Q> {
        match &self.way {
            Way::Open(endpoint) => Some(endpoint),
            _ => None,
        }
    }

    // What the peer says.

    pub(in crate::lane) fn opened(&mut self, theirs: &End, end: QueueEnd) -> Result<(), EndpointError> {
        if end.round != self.round {
            return Ok(());
        }
        match std::mem::replace(&mut self.way, Way::None) {
            Way::Opening(endpoint) => {
                endpoint.connect(theirs, end)?;
                self.way = Way::Open(endpoint);
            }
            other => self.way = other,
        }
        Ok(())
    }

    /// The peer has none to serve us, or it has failed.
    pub(in crate::lane) fn closed(&mut self, round: u32) {
        if round != self.round {
            return;
        }
        if let Way::Opening(_) = self.way {
            // It can't be had at all, now.
            self.way = Way::None;
            self.asked = None;
            self.end_first(RemoteStatus::Busy);
        }
        self.is_closed = true;
    }

    pub(in crate::lane) fn granted(&mut self, granted: Granted) -> Result<(), WireError> {
        if granted.round != self.round || self.asked != Some(granted.key) {
            return Ok(());
        }
        if self.known.len() >= MAX_REMOTE_KEYS {
            return Err(lie("rdma one-sided keys"));
        }
        self.asked = None;
        let Granted { place, len, access, key, .. } = granted;
        self.known.insert(key, Known { place, len, access });
        Ok(())
    }

    /// That of another round is no answer to what was asked in this one.
    pub(in crate::lane) fn refused(&mut self, round: u32, key: Key, later: bool) {
        if round == self.round && self.asked == Some(key) {
            self.asked = None;
            self.end_first(if later { RemoteStatus::Busy } else { RemoteStatus::Revoked });
        }
    }

    pub(in crate::lane) fn revoked(&mut self, key: Key) {
        self.known.remove(&key);
    }

    pub(in crate::lane) fn taken(&mut self, count: u64) -> Result<(), WireError> {
        if count < self.taken || count > self.told {
            return Err(lie("rdma notifications taken"));
        }
        self.taken = count;
        Ok(())
    }

    // Beginning.

    /// The first of those that wait ends without a word to the device, behind those that fly.
    fn end_first(&mut self, status: RemoteStatus) {
        if let Some(operation) = self.waiting.pop_front() {
            self.fly(operation, RemotePlace { address: 0, key: 0 }, Some(Ended { status, in_part: false }));
        }
    }

    fn fly(&mut self, operation: Operation, place: RemotePlace, ended: Option<Ended>) {
        let id = operation.token.0;
        self.flying.push_back(Flying {
            operation,
            place,
            id,
            handed: 0,
            is_handed: false,
            works: 0,
            value: 0,
            is_partly_done: false,
            is_flushed: false,
            has_place: false,
            is_told: false,
            is_fenced: false,
            ended,
        });
    }

    /// All that was begun is in the device's hands, nothing waits, and nobody is to be told of anything.
    pub(in crate::lane) fn only_waits(&self) -> bool {
        let is_quiet =
            |flying: &Flying| flying.is_handed && flying.ended.is_none() && flying.notification().is_none();
        self.waiting.is_empty() && self.flying.iter().all(is_quiet)
    }

    /// Whether the last one that flies was not handed over in whole: nothing else is until it was.
    pub(in crate::lane) fn is_handing_over(&self) -> bool {
        self.flying.back().is_some_and(|last| !last.is_handed && last.ended.is_none())
    }

    /// Looks at the first of those that wait. `endpoint` is the messages'.
    pub(in crate::lane) fn next(&mut self, endpoint: &Q, out: &mut Outbox) -> Next {
        let Some(first) = self.waiting.front() else { return Next::Wait };
        let is_told = matches!(first.what, What::Write { notify: Some(_), .. });
        let is_slow = first.is_slow();
        let Some(key) = first.key else {
            self.end_first(RemoteStatus::Revoked);
            return Next::Ended;
        };
        if self.is_closed || self.endpoint().is_some_and(Queue::has_ended) {
            // Another round, when nothing flies any more.
            return Next::Wait;
        }
        if let Way::None = self.way
            && let Err(error) = self.open(endpoint, out)
        {
            tracing::warn!(%error, "no queue pair for one-sided operations");
            self.end_first(RemoteStatus::Busy);
            return Next::Ended;
        }
        let checked = self.known.get(&key).zip(self.waiting.front()).map(|(known, first)| known.check(first));
        let Some(checked) = checked else {
            if self.asked.is_none() {
                out.push(Record::Ask(key));
                self.asked = Some(key);
            }
            return Next::Wait;
        };
        match checked {
            Err(status) => {
                self.end_first(status);
                Next::Ended
            }
            Ok(_) if is_told && self.notified.saturating_sub(self.taken) >= NOTIFY_WINDOW => {
                self.end_first(RemoteStatus::Busy);
                Next::Ended
            }
            Ok(_) if is_slow && self.has_fenced() => Next::Wait,
            Ok(place) => {
                if let Some(operation) = self.waiting.pop_front() {
                    self.fly(operation, place, None);
                }
                if let Some(last) = self.flying.back_mut() {
                    last.has_place = is_told;
                    self.notified += u64::from(is_told);
                }
                Next::Begun
            }
        }
    }

    /// Begins a round.
    fn open(&mut self, endpoint: &Q, out: &mut Outbox) -> Result<(), EndpointError> {
        let ours = endpoint.another()?;
        self.round = self.round.wrapping_add(1);
        let End { number, psn, .. } = ours.describe();
        out.push(Record::Open(QueueEnd { round: self.round, number, psn }));
        self.way = Way::Opening(ours);
        Ok(())
    }

    /// Whether one is to wait for reads and atomics in front of it, which devices may do after it: only among themselves those keep
    /// their order.
    pub(in crate::lane) fn must_fence(&self) -> bool {
        self.flying.iter().any(|flying| flying.operation.is_slow() && flying.works > 0)
    }

    /// Whether reads and atomics have to wait: one that waits for those in front of it is under way. If such a write has to be sent
    /// again, Soft-RoCE counts those behind it, too, which it has begun: it waits for them, they for it, and no timer runs.
    fn has_fenced(&self) -> bool {
        self.flying.iter().any(|flying| flying.is_fenced && !flying.has_left())
    }

    pub(in crate::lane) fn word(&mut self) -> Option<PinnedBufMut> {
        self.words.pop()
    }

    fn keep_word(&mut self, word: PinnedBufMut) {
        if self.words.len() < SPARE_WORDS {
            self.words.push(word);
        }
    }

    /// What was begun last is not taken by its queue pair: `len` bytes of it.
    pub(in crate::lane) fn not_taken(
        &mut self,
        work: Work,
        why: Unsent,
        len: usize,
    ) -> Result<(), EndpointEnd> {
        if why != Unsent::Full {
            return self.finish(Finished { work, result: Err(why) });
        }
        // It goes on: as if that had not been handed over.
        let Some(last) = self.flying.back_mut() else { return Ok(()) };
        last.handed = last.handed.saturating_sub(len);
        last.is_handed = false;
        last.works = last.works.saturating_sub(u32::from(!work.silent));
        self.take_back(work);
        Ok(())
    }

    /// The memory that a request had, for the operation or the next one.
    fn take_back(&mut self, work: Work) {
        match work.operation {
            verbs::Operation::Read { into: buf, .. } => {
                let of = self.flying.iter_mut().find(|flying| flying.id == work.tag);
                if let Some(What::Read { into, .. }) = of.map(|flying| &mut flying.operation.what) {
                    *into = Some(buf);
                }
            }
            verbs::Operation::CompareSwap { into, .. } | verbs::Operation::FetchAdd { into, .. } => {
                self.keep_word(into);
            }
            _ => {}
        }
    }

    // Ending.

    /// Takes what is complete. An error is none of one operation's.
    pub(in crate::lane) fn look(&mut self) -> Result<(), EndpointEnd> {
        let Way::Open(endpoint) = &self.way else {
            if self.is_closed && self.flying.iter().all(Flying::has_left) {
                self.again();
            }
            return Ok(());
        };
        let mut finished = std::mem::take(&mut self.finished);
        let end = endpoint.collect(&mut finished);
        let is_idle = end.is_some() && endpoint.is_idle();
        for one in finished.drain(..) {
            self.finish(one)?;
        }
        self.finished = finished;
        match end {
            Some(end) if is_idle => self.recover(end),
            None if self.is_closed && self.flying.iter().all(Flying::has_left) => {
                self.again();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self, finished: Finished) -> Result<(), EndpointEnd> {
        let Finished { work, result } = finished;
        self.was_refused |= result.as_ref().is_err_and(is_refused);
        let Some(at) = self.flying.iter().position(|flying| flying.id == work.tag) else { return Ok(()) };
        let flying = &mut self.flying[at];
        flying.works = flying.works.saturating_sub(1);
        let is_done = result.is_ok();
        match result {
            Ok(()) => flying.is_partly_done = true,
            Err(why) if is_flushed(&why) => flying.is_flushed = true,
            Err(why) if is_refused(&why) => {
                let in_part = flying.is_begun();
                flying.ended.get_or_insert(Ended { status: RemoteStatus::Revoked, in_part });
            }
            Err(Unsent::Ended(end)) => return Err(end),
            Err(why) => {
                tracing::debug!(%why, "a one-sided operation can't be done");
                return Err(EndpointEnd::QueuePairFailed);
            }
        }
        if let verbs::Operation::CompareSwap { into, .. } | verbs::Operation::FetchAdd { into, .. } =
            &work.operation
            && let (true, Some(word)) = (is_done, into.first_chunk())
        {
            flying.value = u64::from_ne_bytes(*word);
        }
        self.take_back(work);
        Ok(())
    }

    /// The queue pair has failed, and the device has nothing any more.
    fn recover(&mut self, end: EndpointEnd) -> Result<(), EndpointEnd> {
        if !self.was_refused && !self.flying.iter().all(Flying::has_left) {
            // What was flushed may have been done.
            return Err(end);
        }
        // The peer's device did nothing that comes after what it refused.
        self.again();
        Ok(())
    }

    /// Another round begins with the next operation. What was given up by the device waits once more.
    fn again(&mut self) {
        (self.way, self.asked) = (Way::None, None);
        (self.is_closed, self.was_refused) = (false, false);
        self.known.clear();
        let first = self.flying.iter().position(|flying| !flying.has_left());
        let behind = first.map(|first| self.flying.split_off(first)).unwrap_or_default();
        // One that ended without a word to the device is looked at again in its turn: they complete in order.
        let (left, back): (Vec<_>, Vec<_>) =
            behind.into_iter().partition(|flying| flying.has_left() && flying.handed > 0);
        self.flying.extend(left);
        for Flying { mut operation, has_place, .. } in back.into_iter().rev() {
            self.notified = self.notified.saturating_sub(u64::from(has_place));
            if let What::Read { into: Some(into), before, .. } = &mut operation.what {
                // All of it is read again.
                into.truncate(*before);
            }
            self.waiting.push_front(operation);
        }
    }

    /// Notifications whose writes are complete, in their order.
    pub(in crate::lane) fn tell(&mut self, out: &mut Outbox) {
        for flying in &mut self.flying {
            if !flying.has_left() {
                return;
            }
            let Some(value) = flying.notification().filter(|_| !flying.is_told) else { continue };
            flying.is_told = true;
            if let (None, Some(key)) = (flying.ended, flying.operation.key) {
                out.push(Record::Notify { key, value });
                self.told += 1;
                // Over when the peer has it.
                flying.works = 1;
            } else {
                let had_place = std::mem::take(&mut flying.has_place);
                self.notified = self.notified.saturating_sub(u64::from(had_place));
            }
        }
    }

    /// The peer has the first notification that was handed over.
    pub(in crate::lane) fn told(&mut self) {
        let told = |flying: &&mut Flying| flying.is_told && flying.works > 0;
        if let Some(flying) = self.flying.iter_mut().find(told) {
            flying.works -= 1;
        }
    }

    /// What has ended, in order.
    pub(in crate::lane) fn next_done(&mut self) -> Option<RemoteCompletion> {
        let first = self.flying.front()?;
        let is_untold = first.ended.is_none() && first.notification().is_some() && !first.is_told;
        if !first.is_over() || is_untold {
            return None;
        }
        let Flying { operation, ended, value, .. } = self.flying.pop_front()?;
        let Ended { status, in_part } = ended.unwrap_or(Ended { status: RemoteStatus::Done, in_part: false });
        let read = match operation.what {
            What::Read { into, .. } => into,
            _ => None,
        };
        Some(RemoteCompletion { token: operation.token, status, in_part, value, read })
    }

    pub(in crate::lane) fn has_done(&self) -> bool {
        self.flying.front().is_some_and(Flying::is_over)
    }
}

/// The device has done nothing of it.
fn is_flushed(why: &Unsent) -> bool {
    match why {
        Unsent::Ended(EndpointEnd::Work(error)) => error.fault() == WorkFault::Flushed,
        Unsent::NotTaken(_) => true,
        Unsent::Ended(_) | Unsent::Full | Unsent::Unfit(_) => false,
    }
}

/// The peer's device has refused it.
fn is_refused(why: &Unsent) -> bool {
    match why {
        Unsent::Ended(EndpointEnd::Work(error)) => {
            matches!(error.fault(), WorkFault::RemoteAccess | WorkFault::RemoteRequest)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
