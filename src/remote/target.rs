//! The grants of this side of a connection, and the peer's requests on them.
//!
//! A request is done while its record is read, under the lock that revoking takes: when `revoke`
//! returns, none is at work and none will be. Answers go to the lane at once, at most
//! [`MAX_REMOTE_RECORDS`] at a time; a peer that does not read them has its further requests wait here,
//! as many again, and a peer that sends more than that has broken the protocol.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use smallvec::SmallVec;
use zc_core::memory::{BufPool, CopyLedger, ExportError, Message};
use zc_core::transport::{Access, RemoteKey, SendToken};
use zc_core::wire::{
    MAX_REMOTE_RECORDS, REMOTE_ANSWER_BYTES, REMOTE_WIRE_KEY_BYTES, RemoteAction, RemoteAnswer,
    RemoteRequest, RemoteStatus,
};

use super::error::GrantError;
use super::export::Shared;
use crate::connection::control_bytes;

/// Grants of one connection.
pub const MAX_GRANTS: usize = 1024;

type WireKey = [u8; REMOTE_WIRE_KEY_BYTES];

/// What a key stands for.
pub(super) struct Grant {
    pub(super) export: Arc<Shared>,
    pub(super) range: Range<u64>,
    pub(super) access: Access,
    pub(super) key: RemoteKey,
    /// Notifications of this connection that wait.
    pub(super) notified: Arc<AtomicUsize>,
}

#[derive(Default)]
pub(super) struct Target {
    grants: HashMap<WireKey, Grant>,
    /// The last request's number.
    last: u64,
    /// Requests that wait until answers have left.
    waiting: VecDeque<(RemoteRequest, Message)>,
    /// Answers for the lane.
    out: VecDeque<Message>,
    /// Answers that the lane has and owes a report on.
    in_lane: VecDeque<SendToken>,
    /// The connection has ended.
    over: bool,
}

/// What is dropped after this table's lock is released. The connection's own are held by then: nothing of it is the
/// application's, and memory that goes back wakes nobody before they are released.
pub(super) type Leftovers = (HashMap<WireKey, Grant>, VecDeque<(RemoteRequest, Message)>, VecDeque<Message>);

impl Target {
    /// Makes a key for it.
    pub(super) fn grant(&mut self, grant: impl FnOnce(RemoteKey) -> Grant) -> Result<RemoteKey, GrantError> {
        if self.over {
            return Err(GrantError::Ended);
        }
        if self.grants.len() >= MAX_GRANTS {
            return Err(GrantError::TooMany { max: MAX_GRANTS });
        }
        let mut wire = WireKey::default();
        getrandom::fill(&mut wire).map_err(|error| GrantError::Random(error.to_string()))?;
        let Some(key) = RemoteKey::from_bytes(&wire) else { return Err(GrantError::Unsupported) };
        self.grants.insert(wire, grant(key));
        Ok(key)
    }

    /// The grant that ends, if there was one.
    pub(super) fn revoke(&mut self, key: &RemoteKey) -> Option<Grant> {
        self.grants.remove(key.as_bytes())
    }

    pub(super) fn grants(&self) -> usize {
        self.grants.len()
    }

    /// The number of the last request, which is how many there were.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Ends everything.
    pub(super) fn end(&mut self) -> Leftovers {
        self.over = true;
        self.in_lane.clear();
        (std::mem::take(&mut self.grants), std::mem::take(&mut self.waiting), std::mem::take(&mut self.out))
    }

    /// A request came in.
    pub(super) fn take_in(
        &mut self,
        request: RemoteRequest,
        payload: Message,
        pool: &BufPool,
        ledger: &CopyLedger,
    ) -> Result<(), String> {
        if self.over {
            return Ok(());
        }
        if request.id != self.last + 1 {
            return Err(format!("remote request {} instead of {}", request.id, self.last + 1));
        }
        self.last = request.id;
        if self.waiting.is_empty() && self.has_room() {
            self.serve(&request, &payload, pool, ledger);
        } else if self.waiting.len() < MAX_REMOTE_RECORDS {
            self.waiting.push_back((request, payload));
        } else {
            return Err(format!("more than {MAX_REMOTE_RECORDS} remote requests without an answer"));
        }
        Ok(())
    }

    /// Serves those that waited, as far as there is room. True if it served any.
    pub(super) fn serve_waiting(&mut self, pool: &BufPool, ledger: &CopyLedger) -> bool {
        let mut any = false;
        while self.has_room()
            && let Some((request, payload)) = self.waiting.pop_front()
        {
            self.serve(&request, &payload, pool, ledger);
            any = true;
        }
        any
    }

    fn has_room(&self) -> bool {
        self.out.len() + self.in_lane.len() < MAX_REMOTE_RECORDS
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Nothing to hand over, nothing to hear of.
    pub(super) fn is_done(&self) -> bool {
        self.out.is_empty() && self.in_lane.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn next_answer(&mut self) -> Option<Message> {
        self.out.pop_front()
    }

    /// The lane has taken an answer.
    pub(super) fn handed_over(&mut self, token: SendToken) {
        self.in_lane.push_back(token);
    }

    pub(super) fn awaits_reports(&self) -> bool {
        !self.in_lane.is_empty()
    }

    /// Whether it is time to ask the lane for its reports.
    pub(super) fn is_half_full(&self) -> bool {
        self.in_lane.len() >= MAX_REMOTE_RECORDS / 2
    }

    /// The lane's report on one of them, or on something else.
    pub(super) fn reported(&mut self, token: SendToken) {
        if let Some(at) = self.in_lane.iter().position(|t| *t == token) {
            self.in_lane.remove(at);
        }
    }

    fn serve(&mut self, request: &RemoteRequest, payload: &Message, pool: &BufPool, ledger: &CopyLedger) {
        let found = self.grants.get(&request.key);
        let checked = match found {
            None => Err(RemoteStatus::Revoked),
            Some(grant) => grant.check(request).map(|at| (grant, at)),
        };
        let (mut status, mut value, mut read) = (RemoteStatus::Done, 0, None);
        match (checked, request.action) {
            (Err(why), _) => status = why,
            (Ok((grant, at)), RemoteAction::Read { len, .. }) => read = Some((grant, at, len)),
            (Ok((grant, at)), RemoteAction::Write { notify, .. }) => {
                status = grant.write(at, payload, notify, ledger);
            }
            (Ok((grant, at)), RemoteAction::CompareSwap { expected, new }) => {
                let old = grant.export.memory().compare_swap(at, expected, new);
                old.map_or_else(|error| status = refusal(&error), |old| value = old);
            }
            (Ok((grant, at)), RemoteAction::FetchAdd { add }) => {
                let old = grant.export.memory().fetch_add(at, add);
                old.map_or_else(|error| status = refusal(&error), |old| value = old);
            }
        }
        let len = read.as_ref().map_or(0, |(_, _, len)| *len);
        let front = front_of(&RemoteAnswer { id: request.id, status, len, value });
        let fill = |out: &mut [u8]| {
            if let Some((grant, at, _)) = read {
                // Within bounds: checked above, and the memory keeps its length.
                let _ = grant.export.memory().read(at, out, ledger);
            }
        };
        let answer = control_bytes(pool, &front, len as usize, fill);
        self.out.push_back(answer);
    }
}

impl Grant {
    /// Where in the export the request begins, if it is allowed.
    fn check(&self, request: &RemoteRequest) -> Result<u64, RemoteStatus> {
        let (needed, extent, aligned) = match request.action {
            RemoteAction::Read { extent, .. } => (Access::READ, extent, true),
            RemoteAction::Write { extent, .. } => (Access::WRITE, extent, true),
            RemoteAction::CompareSwap { .. } | RemoteAction::FetchAdd { .. } => {
                (Access::ATOMIC, 8, request.offset.is_multiple_of(8))
            }
        };
        let size = self.range.end - self.range.start;
        if !self.access.contains(needed) {
            Err(RemoteStatus::Denied)
        } else if request.offset.checked_add(extent).is_none_or(|end| end > size) {
            Err(RemoteStatus::OutOfBounds)
        } else if !aligned {
            Err(RemoteStatus::Misaligned)
        } else {
            Ok(self.range.start + request.offset)
        }
    }

    fn write(&self, at: u64, payload: &Message, notify: Option<u64>, ledger: &CopyLedger) -> RemoteStatus {
        // The place first, so that a write without one changes nothing.
        let place = match notify {
            None => None,
            Some(value) => match self.export.notifications.reserve(&self.notified) {
                None => return RemoteStatus::Busy,
                Some(place) => Some((place, value)),
            },
        };
        let memory = self.export.memory();
        let mut at = at;
        for segment in payload.segments() {
            if memory.write(at, segment, ledger).is_err() {
                return RemoteStatus::OutOfBounds;
            }
            at += segment.len() as u64;
        }
        if let Some((place, value)) = place {
            place.notify(self.key, value);
        }
        RemoteStatus::Done
    }
}

/// What the peer hears of an atomic that was not done. Its place was checked.
fn refusal(error: &ExportError) -> RemoteStatus {
    match error {
        ExportError::Misaligned { .. } => RemoteStatus::Misaligned,
        // The device that other peers' atomics go through works no more.
        _ => RemoteStatus::Denied,
    }
}

fn front_of(answer: &RemoteAnswer) -> SmallVec<[u8; REMOTE_ANSWER_BYTES]> {
    let mut front = SmallVec::new();
    answer.encode(&mut front);
    front
}
