//! One-sided operations, done by the device.
//!
//! ```text
//! user                                                     owner
//! a queue pair that begins operations -- OPEN, OPENED --> one that serves them and has the windows
//! key -- ASK --> its window is bound -- GRANT -->
//! read, write, atomics -------- the device ------------->  memory
//! the write of a notification is complete -- NOTIFY ---->  its export
//! ```
//!
//! Each side has a pair of them as user and one as owner, if it is either. What is wrong with an operation ends these two queue
//! pairs and no other: messages go on, and so do operations the other way. The user then begins another round, in which all goes on
//! that the device had not done. Records (`record`) travel among the messages of the lane; `owner` and `user` are the halves.

mod half;
mod owner;
mod record;
mod rounds;
mod user;

use std::collections::VecDeque;

use zc_core::wire::WireError;

pub(super) use self::half::Half;
pub(super) use self::owner::Owner;
pub(super) use self::record::{QueueEnd, RECORD_BYTES, Record, key_of};
pub(super) use self::user::{Next, User, What};
use crate::engine::{Endpoint, EndpointError};
use crate::verbs::RemoteAccess;
use crate::wire::End;

fn lie(field: &'static str) -> WireError {
    WireError::BadValue { field }
}

/// Connects one for one-sided operations to the peer's, which is where that one's messages come from.
pub(super) fn connect(
    endpoint: &Endpoint,
    theirs: &End,
    peer: QueueEnd,
    access: RemoteAccess,
) -> Result<(), EndpointError> {
    endpoint.connect(&End { number: peer.number, psn: peer.psn, ..*theirs }, access)
}

/// What is to be said. Bounded by what there is to say: an answer, an end of each key that the peer knows, a notification of each
/// operation.
#[derive(Default)]
pub(super) struct Outbox(VecDeque<Record>);

impl Outbox {
    fn push(&mut self, record: Record) {
        if let Record::Taken(_) = record {
            // The last one says it all.
            self.0.retain(|other| !matches!(other, Record::Taken(_)));
        }
        self.0.push_back(record);
    }

    pub(super) fn first(&self) -> Option<Record> {
        self.0.front().copied()
    }

    pub(super) fn sent(&mut self) {
        self.0.pop_front();
    }

    /// An answer that the peer has not, so that it can't have asked again.
    fn owes_answer(&self) -> bool {
        self.0.iter().any(|record| matches!(record, Record::Grant(_) | Record::Refuse { .. }))
    }

    fn forget_answers(&mut self) {
        let is_answer = |record: &Record| {
            matches!(
                record,
                Record::Opened(_) | Record::Closed { .. } | Record::Grant(_) | Record::Refuse { .. }
            )
        };
        self.0.retain(|record| !is_answer(record));
    }
}

/// Both halves of one connection.
#[derive(Default)]
pub(super) struct Remote {
    pub(super) owner: Owner,
    pub(super) user: User,
    pub(super) out: Outbox,
}

impl Remote {
    /// Nothing is granted, used or waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.owner.is_idle() && self.user.is_idle() && self.out.0.is_empty()
    }

    /// The messages' queue pair has failed: nobody gets in any more.
    pub(super) fn fail(&mut self) {
        self.owner.fail();
        self.user.fail();
    }

    /// Nobody uses them any more.
    pub(super) fn shut(&mut self) {
        self.owner.shut();
        *self = Self { owner: std::mem::take(&mut self.owner), ..Self::default() };
    }
}
