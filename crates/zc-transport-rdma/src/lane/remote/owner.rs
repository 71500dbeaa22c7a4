//! What the peer was granted: one memory window for each key that it has asked about, and what it told us of them.
//!
//! ```text
//! grant --ASK--> a window, bound on the queue pair that serves the peer --GRANT--> the peer's device is let in
//!   '--revoke: the window is gone, at once --REVOKE-->
//! ```
//!
//! A wrong key or place makes the peer's request fail, and with it both queue pairs. Then the peer begins another round, in which
//! it asks again about every key.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use zc_core::transport::{Access, LaneError, RemoteGrant, RemoteKey, Revoked};
use zc_core::wire::WireError;

use super::record::{Granted, Key, QueueEnd, Record, key_of};
use super::rounds::Rounds;
use super::{Outbox, connect, lie};
use crate::engine::{Endpoint, EndpointEnd, Finished};
use crate::limits::{MAX_REMOTE_KEYS, NOTIFY_WINDOW, REVOKE_MS};
use crate::verbs::{Operation, RemoteAccess, RemotePlace, Showable, WindowId, Work};
use crate::wire::{End, QueuePairNumber};

/// What a key stands for.
struct Grant {
    grant: RemoteGrant,
    memory: Arc<Showable>,
    shown: Option<Shown>,
}

#[derive(Clone, Copy)]
struct Shown {
    window: WindowId,
    place: RemotePlace,
    /// Of the request that binds it: windows have the name of one that is gone.
    bind: u64,
    /// The device has said so.
    is_bound: bool,
}

#[derive(Default)]
pub(in crate::lane) struct Owner {
    grants: HashMap<Key, Grant>,
    /// Over which the peer's operations come.
    serving: Option<Endpoint>,
    /// The last one that the peer began.
    round: u32,
    rounds: Rounds,
    /// Requests that bind so far, in all rounds.
    binds: u64,
    /// What the peer asked and was not told, for its window is being bound.
    question: Option<Key>,
    /// Notifications for which their exports had no room.
    notifications: VecDeque<(Key, u64)>,
    /// Notifications that no longer wait, and of how many the peer knows that.
    taken: u64,
    told: u64,
    finished: Vec<Finished>,
}

/// As windows have it.
fn remote_access(access: Access) -> RemoteAccess {
    RemoteAccess {
        read: access.contains(Access::READ),
        write: access.contains(Access::WRITE),
        atomic: access.contains(Access::ATOMIC),
    }
}

const EVERYTHING: RemoteAccess = RemoteAccess { read: true, write: true, atomic: true };

impl Owner {
    /// Makes a key. The peer hears of it when it asks.
    pub(in crate::lane) fn grant(
        &mut self,
        endpoint: &Endpoint,
        grant: RemoteGrant,
    ) -> Result<RemoteKey, LaneError> {
        if self.grants.len() >= MAX_REMOTE_KEYS {
            return Err(LaneError::Other(format!("more than {MAX_REMOTE_KEYS} keys on one connection")));
        }
        let (start, end) = (grant.range.start, grant.range.end);
        if start >= end || end > grant.memory.len() || !start.is_multiple_of(8) {
            return Err(LaneError::Other(format!("no range to grant: {start}..{end}")));
        }
        let mut name = Key::default();
        getrandom::fill(&mut name).map_err(|error| LaneError::Other(format!("no random key: {error}")))?;
        let key = RemoteKey::from_bytes(&name).ok_or_else(|| LaneError::Other("no key".into()))?;
        let memory = endpoint
            .showable(&grant.memory, &grant.range)
            .map_err(|error| LaneError::Other(format!("the export can't be registered: {error}")))?;
        self.grants.insert(name, Grant { grant, memory, shown: None });
        Ok(key)
    }

    /// Ends a grant: the device lets the peer in by it no more when this returns.
    pub(in crate::lane) fn revoke(&mut self, key: &RemoteKey, out: &mut Outbox) -> Revoked {
        let Some(key) = key_of(key) else { return Revoked::Done };
        if self.question == Some(key) {
            self.finish_binding();
            self.question = None;
            out.push(Record::Refuse { round: self.round, key, later: false });
        }
        let Some(grant) = self.grants.remove(&key) else { return Revoked::Done };
        let Some(shown) = grant.shown else { return Revoked::Done };
        if shown.is_bound {
            out.push(Record::Revoke(key));
        }
        match self.serving.as_ref().map(|serving| serving.close_window(shown.window)) {
            None | Some(Ok(())) => Revoked::Done,
            Some(Err(_)) => {
                self.close(out);
                Revoked::Retired
            }
        }
    }

    /// Waits for the one request that the device may have: it depends on nobody else. In vain, the queue pair is failed, which ends it.
    fn finish_binding(&mut self) {
        let Some(serving) = &self.serving else { return };
        let until = Instant::now() + Duration::from_millis(REVOKE_MS);
        while !serving.is_idle() {
            if Instant::now() >= until {
                serving.fail(EndpointEnd::QueuePairFailed);
                return;
            }
            serving.turn();
            std::thread::yield_now();
        }
    }

    /// Nothing of the peer's comes in any more.
    pub(super) fn fail(&mut self) {
        if let Some(serving) = &self.serving {
            serving.fail(EndpointEnd::QueuePairFailed);
        }
    }

    /// Ends the round, and all its windows.
    fn end_round(&mut self) {
        let Some(serving) = self.serving.take() else { return };
        serving.fail(EndpointEnd::QueuePairFailed);
        for grant in self.grants.values_mut() {
            if let Some(shown) = grant.shown.take() {
                // What can't be closed is leaked, and belongs to a queue pair that lets nobody in.
                let _ = serving.close_window(shown.window);
            }
        }
        self.question = None;
    }

    fn close(&mut self, out: &mut Outbox) {
        self.end_round();
        out.push(Record::Closed { round: self.round });
    }

    /// The peer begins a round.
    pub(in crate::lane) fn open(
        &mut self,
        endpoint: &Endpoint,
        theirs: &End,
        begun: QueueEnd,
        out: &mut Outbox,
    ) -> Result<(), WireError> {
        if begun.round != self.round.wrapping_add(1) {
            return Err(lie("rdma one-sided round"));
        }
        // What was not said yet was about the last round.
        out.forget_answers();
        self.end_round();
        self.round = begun.round;
        if !self.rounds.begin(endpoint.now()) {
            // To the user that is `Busy`, and others of the engine do not wait for queue pairs that come and go.
            tracing::debug!("a peer begins too many rounds of one-sided operations");
            out.push(Record::Closed { round: self.round });
            return Ok(());
        }
        let serving = endpoint.one_sided(true).and_then(|serving| {
            connect(&serving, theirs, begun, EVERYTHING)?;
            Ok(serving)
        });
        match serving {
            Ok(serving) => {
                let mine = serving.describe();
                out.push(Record::Opened(QueueEnd { round: self.round, number: mine.number, psn: mine.psn }));
                self.serving = Some(serving);
            }
            Err(error) => {
                tracing::warn!(%error, "no queue pair for a peer's one-sided operations");
                out.push(Record::Closed { round: self.round });
            }
        }
        Ok(())
    }

    /// The peer asks what a key stands for.
    pub(in crate::lane) fn asked(&mut self, key: Key, out: &mut Outbox) -> Result<(), WireError> {
        if self.question.is_some() || out.owes_answer() {
            return Err(lie("rdma one-sided question"));
        }
        let Some(serving) = &self.serving else {
            // It was told that the round is over, or is.
            return Ok(());
        };
        let Some(grant) = self.grants.get_mut(&key) else {
            out.push(Record::Refuse { round: self.round, key, later: false });
            return Ok(());
        };
        if grant.shown.is_some() {
            out.push(grant.answer(self.round, key));
            return Ok(());
        }
        match serving.open_window(grant.memory.clone(), remote_access(grant.grant.access)) {
            Ok((window, place)) => {
                self.binds += 1;
                grant.shown = Some(Shown { window, place, bind: self.binds, is_bound: false });
                self.question = Some(key);
                let bind = Work::new(self.binds, Operation::Bind { window }).signalled();
                match serving.stage(bind) {
                    Ok(()) => serving.flush(),
                    // The queue pair has failed: seen when it is looked at.
                    Err((_, why)) => tracing::debug!(%why, "a window can't be bound"),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "no window for a peer's one-sided operations");
                out.push(Record::Refuse { round: self.round, key, later: true });
            }
        }
        Ok(())
    }

    /// The peer wrote and says so.
    pub(in crate::lane) fn notified(&mut self, key: Key, value: u64) -> Result<(), WireError> {
        if self.notifications.len() as u64 >= NOTIFY_WINDOW {
            return Err(lie("rdma notifications"));
        }
        // That of a key which has ended is dropped later. With one that does not let it write, the peer can't have written.
        if self.grants.get(&key).is_some_and(|grant| !grant.grant.access.contains(Access::WRITE)) {
            return Err(lie("rdma notification of a key that lets nobody write"));
        }
        self.notifications.push_back((key, value));
        Ok(())
    }

    /// Everything that may have become possible. `room` is woken when an export has room for a notification.
    pub(in crate::lane) fn advance(&mut self, room: &Waker, out: &mut Outbox) {
        self.look(out);
        self.hand_over(room);
        if self.taken - self.told >= NOTIFY_WINDOW / 4 {
            self.told = self.taken;
            out.push(Record::Taken(self.taken));
        }
    }

    /// What has become of windows that were bound, and of the queue pair.
    fn look(&mut self, out: &mut Outbox) {
        let Some(serving) = &self.serving else { return };
        let end = serving.collect(&mut self.finished);
        for Finished { work, result } in self.finished.drain(..) {
            let (Operation::Bind { .. }, Ok(()), Some(key)) = (&work.operation, &result, self.question)
            else {
                continue;
            };
            let Some(grant) = self.grants.get_mut(&key) else { continue };
            let Some(shown) = &mut grant.shown else { continue };
            if shown.bind == work.tag {
                shown.is_bound = true;
                self.question = None;
                out.push(grant.answer(self.round, key));
            }
        }
        if let Some(end) = end {
            tracing::debug!(%end, "a peer's one-sided operations have ended a queue pair");
            self.close(out);
        }
    }

    fn hand_over(&mut self, room: &Waker) {
        while let Some((key, value)) = self.notifications.front() {
            // One whose key has ended is nobody's.
            if let Some(grant) = self.grants.get(key)
                && let Poll::Pending = grant.grant.notify.poll_notify(&mut Context::from_waker(room), *value)
            {
                return;
            }
            self.notifications.pop_front();
            self.taken += 1;
        }
    }

    /// Has `cx` woken when a window is bound, or the queue pair fails. Says which that is.
    pub(in crate::lane) fn await_work(&self, cx: &Context<'_>) -> Option<QueuePairNumber> {
        let serving = self.serving.as_ref()?;
        serving.await_work(cx, false);
        Some(serving.number())
    }

    /// Nothing is granted, so that the peer has nothing to ask.
    pub(super) fn is_idle(&self) -> bool {
        self.grants.is_empty() && self.notifications.is_empty()
    }

    /// The lane is gone.
    pub(super) fn shut(&mut self) {
        self.end_round();
        self.grants.clear();
        self.notifications.clear();
    }
}

impl Grant {
    fn answer(&self, round: u32, key: Key) -> Record {
        match self.shown {
            Some(Shown { place, .. }) => Record::Grant(Granted {
                round,
                key,
                place,
                len: self.memory.bytes(),
                access: self.grant.access,
            }),
            None => Record::Refuse { round, key, later: true },
        }
    }
}
