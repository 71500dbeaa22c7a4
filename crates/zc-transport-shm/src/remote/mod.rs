//! One-sided operations, done in the memory of the peer itself.
//!
//! An export is a memfd of its own. To grant it costs the peer nothing: the first operation with a key asks its owner what
//! it stands for, and the answer brings the descriptor, once for an export. From then on operations are
//! done in the peer's mapping, at once and without the owner; only notifications travel. All this is said on a small
//! ring of its own (`channel.rs`), so messages know nothing of it.
//!
//! Only peers that trust each other are connected like this: a mapping can't be taken back, and is of whole pages, so
//! that ranges are what an honest peer keeps to. What it says and sends is checked all the same (M6).

mod calls;
mod channel;
mod owner;
mod record;
#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests;
mod user;

pub(crate) use calls::Calls;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use zc_core::memory::CopyLedger;
use zc_core::transport::{
    Batch, LaneError, LaneRemote, RemoteCompletion, RemoteGrant, RemoteKey, RemoteOp, RemoteToken, Revoked,
};
use zc_core::wire::RemoteStatus;

use self::channel::Channel;
use self::owner::Owner;
use self::record::{Granted, Key, key_of};
use self::user::User;
use crate::lane::Shared;
use crate::lie::lie;
use crate::limits::{MAX_IDLE_RINGS, MAX_REMOTE_OPERATIONS};
use crate::words::{OwnWords, PeerWords};

/// An operation that was taken.
struct Waiting {
    token: RemoteToken,
    key: Option<Key>,
    offset: u64,
    op: RemoteOp,
}

/// What the peer granted.
struct Given {
    granted: Granted,
    /// And took back.
    revoked: bool,
}

/// The one-sided half of a lane.
pub(crate) struct Remote {
    owner: Owner,
    /// Its mappings go before the lane's hold on the link, which tells the peer that nothing is read any more.
    user: User,
    channel: Channel,
    waiting: VecDeque<Waiting>,
    /// What the first of them waits for: the peer was asked about its key.
    asked: bool,
    /// The answer, whose descriptor may still be on its way. Other records don't wait for that.
    given: Option<Given>,
    done: VecDeque<RemoteCompletion>,
    tokens: u64,
    ledger: Arc<CopyLedger>,
    /// For exports that have no room for a notification.
    room: Waker,
    shared: Arc<Shared>,
}

impl Remote {
    pub(crate) fn new(shared: Arc<Shared>, own: OwnWords, peer: PeerWords, ledger: Arc<CopyLedger>) -> Self {
        Self {
            owner: Owner::default(),
            user: User::default(),
            channel: Channel::new(own, peer),
            waiting: VecDeque::new(),
            asked: false,
            given: None,
            done: VecDeque::new(),
            tokens: 0,
            ledger,
            room: shared.room_waker(),
            shared,
        }
    }

    /// Everything that may have become possible.
    fn advance(&mut self) -> Result<(), LaneError> {
        if let Some(ended) = self.shared.ended().cloned() {
            // What the peer did and told before is as true as ever.
            let _ = self.listen();
            self.owner.hand_over(&mut self.channel, &self.room);
            return Err(ended);
        }
        let advanced = self.listen().and_then(|()| self.accept()).and_then(|()| self.act());
        advanced.inspect_err(|error| self.shared.end(error.clone()))
    }

    /// Only what is asked for brings a descriptor.
    fn set_asked(&mut self, asked: bool) {
        self.asked = asked;
        self.shared.expect_export(asked);
    }

    /// Reads what the peer said.
    fn listen(&mut self) -> Result<(), LaneError> {
        while let Some(record) = self.channel.next()? {
            self.take(record)?;
            self.channel.advance();
        }
        Ok(())
    }

    fn take(&mut self, record: record::Record) -> Result<(), LaneError> {
        use record::Record as R;
        match record {
            R::Ask(key) => self.owner.asked(key, &self.channel)?,
            R::Revoke(key) => {
                match &mut self.given {
                    Some(given) if self.waiting.front().is_some_and(|w| w.key == Some(key)) => {
                        if std::mem::replace(&mut given.revoked, true) {
                            return Err(lie("shm remote: revoked key").into());
                        }
                    }
                    _ => self.user.revoke(key)?,
                }
                self.channel.take_revoked();
            }
            R::Notify { key, value } => self.owner.notified(key, value)?,
            R::Grant(_) | R::Refuse { .. } if !self.asked || self.given.is_some() => {
                return Err(lie("shm remote: no question").into());
            }
            R::Refuse { later } => {
                self.set_asked(false);
                let status = if later { RemoteStatus::Busy } else { RemoteStatus::Revoked };
                let refused = self.waiting.pop_front();
                self.done.extend(refused.map(|w| completion(w.token, status, w.op)));
            }
            R::Grant(granted) => {
                self.given = Some(Given { granted, revoked: false });
                self.accept()?;
            }
        }
        Ok(())
    }

    /// Takes what was given, if its descriptor has come.
    fn accept(&mut self) -> Result<(), LaneError> {
        let Some(given) = self.given.take() else { return Ok(()) };
        let fd = if given.granted.fresh { self.shared.take_export() } else { None };
        if given.granted.fresh && fd.is_none() {
            self.given = Some(given);
            return Ok(());
        }
        let key = self.waiting.front().and_then(|w| w.key);
        let key = key.ok_or_else(|| lie("shm remote: no question"))?;
        self.user.grant(key, given.granted, fd)?;
        if given.revoked {
            self.user.revoke(key)?;
        }
        self.set_asked(false);
        Ok(())
    }

    fn act(&mut self) -> Result<(), LaneError> {
        self.owner.answer(&self.shared, &mut self.channel)?;
        if self.shared.wakers.take_room() || self.owner.has_news() {
            self.owner.hand_over(&mut self.channel, &self.room);
        }
        while self.may_begin()?
            && let Some(Waiting { token, key, offset, op }) = self.waiting.pop_front()
        {
            let Some(name) = key else {
                self.done.push_back(completion(token, RemoteStatus::Revoked, op));
                continue;
            };
            if !self.user.knows(&name) {
                self.channel.say(record::Record::Ask(name));
                self.set_asked(true);
                self.waiting.push_front(Waiting { token, key, offset, op });
                break;
            }
            let (status, value, op) = self.user.run(&name, offset, op, &mut self.channel, &self.ledger)?;
            self.done.push_back(RemoteCompletion { value, ..completion(token, status, op) });
        }
        self.channel.flush(&self.shared.peer_bell)?;
        let idle = self.owner.is_idle() && self.user.is_idle() && self.waiting.is_empty();
        self.shared.wakers.remote.set_busy(!idle || !self.channel.is_flushed());
        Ok(())
    }

    /// Whether the first operation that waits has nothing to wait for.
    fn may_begin(&mut self) -> Result<bool, LaneError> {
        let Some(first) = self.waiting.front() else { return Ok(false) };
        let tells = matches!(first.op, RemoteOp::Write { notify: Some(_), .. });
        // What was revoked before is not done after.
        Ok(!self.asked && self.channel.knows_revoked()? && (!tells || self.channel.has_room()?))
    }

    /// Hands on what has ended.
    fn deliver(&mut self, out: &mut Batch<RemoteCompletion>) -> bool {
        while !out.is_full()
            && let Some(done) = self.done.pop_front()
        {
            out.push(done);
        }
        !out.is_empty()
    }
}

fn completion(token: RemoteToken, status: RemoteStatus, op: RemoteOp) -> RemoteCompletion {
    let read = match op {
        RemoteOp::Read { into, .. } => Some(into),
        _ => None,
    };
    RemoteCompletion { token, status, in_part: false, value: 0, read }
}

impl LaneRemote for Remote {
    fn grant(&mut self, grant: RemoteGrant) -> Result<RemoteKey, LaneError> {
        self.advance()?;
        let key = self.owner.grant(grant)?;
        self.shared.wakers.remote.set_busy(true);
        Ok(key)
    }

    fn revoke(&mut self, key: &RemoteKey) -> Revoked {
        let Some(key) = key_of(key) else { return Revoked::Done };
        // What the peer told of it before comes first; if the lane has ended, that is all.
        let _ = self.advance();
        let revoked = self.owner.revoke(&key, &mut self.channel);
        let _ = self.advance();
        revoked
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        if let Some(ended) = self.shared.ended() {
            return Poll::Ready(Err(ended.clone()));
        }
        if self.waiting.len() + self.done.len() < MAX_REMOTE_OPERATIONS {
            return Poll::Ready(Ok(()));
        }
        // There is room when an answer comes.
        self.shared.wakers.remote.register(cx.waker());
        Poll::Pending
    }

    fn start(&mut self, key: &RemoteKey, offset: u64, op: RemoteOp) -> Result<RemoteToken, LaneError> {
        self.shared.ended().map_or(Ok(()), |ended| Err(ended.clone()))?;
        self.tokens += 1;
        let token = RemoteToken(self.tokens);
        self.waiting.push_back(Waiting { token, key: key_of(key), offset, op });
        // A failure comes with the completions: the operation was taken.
        let _ = self.advance();
        Ok(token)
    }

    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<RemoteCompletion>,
    ) -> Poll<Result<(), LaneError>> {
        for _ in 0..MAX_IDLE_RINGS {
            self.shared.wakers.remote.register(cx.waker());
            let advanced = self.advance();
            if self.deliver(out) {
                return Poll::Ready(Ok(()));
            }
            advanced?;
            if self.shared.wakers.remote.is_resting() {
                return Poll::Pending;
            }
            self.channel.rest(&self.shared.wakers.remote);
            let advanced = self.advance();
            // In any case: it rests, and that somebody hears the bell is what it relies on from now on. If another half
            // silences the bell, it wakes this one.
            let rung = self.shared.poll_rung().is_ready();
            if rung {
                self.shared.wakers.wake_all();
            }
            if self.deliver(out) {
                return Poll::Ready(Ok(()));
            }
            advanced?;
            if !rung {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
