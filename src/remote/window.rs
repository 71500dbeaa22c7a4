//! Our own requests that have no answer yet.
//!
//! At most [`MAX_REMOTE_RECORDS`] are under way. Who finds no place waits in order of arrival, each
//! with a waker of its own. The peer answers in order, so an answer is for the oldest one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;
use zc_core::memory::{BufPool, CopyLedger, Deferral, Message};
use zc_core::wire::{MAX_REMOTE_RECORDS, RemoteAnswer, RemoteStatus};

use super::error::RemoteFault;
use crate::connection::{FairQueue, Place, quietly, renew};

/// What an answer must carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// So many bytes.
    Bytes(u32),
    /// Nothing.
    Nothing,
    /// What a word was.
    Word,
}

/// One operation, shared by its future and its requests. It outlives the future while a request is out.
#[derive(Default)]
pub(crate) struct Operation(Mutex<State>);

#[derive(Default)]
struct State {
    /// Requests without an answer.
    open: usize,
    /// Requests that were done.
    done: usize,
    fault: Option<RemoteFault>,
    /// A request that was not done may have been done in part.
    in_part: bool,
    value: u64,
    read: Message,
    /// Nobody waits for it any more.
    abandoned: bool,
    waker: Option<Waker>,
}

/// How an operation stands.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) open: usize,
    pub(crate) done: usize,
    pub(crate) fault: Option<RemoteFault>,
    pub(crate) in_part: bool,
}

impl Operation {
    pub(crate) fn stand(&self) -> Answered {
        let state = self.0.lock();
        Answered { open: state.open, done: state.done, fault: state.fault.clone(), in_part: state.in_part }
    }

    /// Waits on with this waker.
    pub(crate) fn register(&self, waker: &Waker) {
        quietly(|| match &mut self.0.lock().waker {
            Some(old) => renew(old, waker),
            none => *none = Some(waker.clone()),
        });
    }

    /// What was read, and what a word was.
    pub(crate) fn take(&self) -> (Message, u64) {
        let mut state = self.0.lock();
        (std::mem::take(&mut state.read), state.value)
    }

    /// Its future is gone: what still comes is dropped.
    pub(crate) fn abandon(&self) {
        let mut state = self.0.lock();
        state.abandoned = true;
        let dropped = (state.waker.take(), std::mem::take(&mut state.read));
        drop(state);
        drop(dropped);
    }

    pub(super) fn begun(&self) {
        self.0.lock().open += 1;
    }

    /// The request that is answered next was not done, or only in part.
    pub(super) fn ended_in_part(&self) {
        self.0.lock().in_part = true;
    }

    pub(super) fn answered(
        &self,
        answer: &RemoteAnswer,
        payload: Message,
        pool: &BufPool,
        ledger: &CopyLedger,
    ) {
        let mut state = self.0.lock();
        state.open -= 1;
        match RemoteFault::of(answer.status) {
            Some(fault) => {
                state.fault.get_or_insert(fault);
            }
            None => {
                state.done += 1;
                state.value = answer.value;
                if !state.abandoned
                    && let Err(error) = append(&mut state.read, payload, pool, ledger)
                {
                    state.fault.get_or_insert(error);
                }
            }
        }
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Deferral::wake);
    }

    pub(super) fn wake(&self) {
        let waker = self.0.lock().waker.take();
        waker.into_iter().for_each(Deferral::wake);
    }
}

/// Puts a part behind what was read. Where a lane delivers a record in several segments they may be too many.
fn append(read: &mut Message, part: Message, pool: &BufPool, ledger: &CopyLedger) -> Result<(), RemoteFault> {
    for segment in part.into_segments() {
        if let Err(back) = read.push(segment) {
            let mut whole = Message::from(std::mem::take(read).gather(pool, ledger)?);
            // One segment: there is room.
            let _ = whole.push(back.0);
            *read = whole;
        }
    }
    Ok(())
}

struct Pending {
    operation: Arc<Operation>,
    expected: Expected,
}

#[derive(Default)]
pub(super) struct Window {
    /// The number of the last request.
    last: u64,
    pending: VecDeque<Pending>,
    waiting: FairQueue,
    over: bool,
}

impl Window {
    /// Whether the one at `place`, or a newcomer, may send a request now.
    pub(super) fn may_begin(&self, place: Option<Place>) -> bool {
        self.pending.len() < MAX_REMOTE_RECORDS && self.waiting.may_go(place)
    }

    /// The number of the next request.
    pub(super) fn next_id(&self) -> u64 {
        self.last + 1
    }

    /// The lane has taken it.
    pub(super) fn begun(&mut self, operation: &Arc<Operation>, expected: Expected) {
        self.last += 1;
        operation.begun();
        self.pending.push_back(Pending { operation: operation.clone(), expected });
    }

    /// Waits for a place, or waits on with another waker.
    pub(super) fn wait(&mut self, place: &mut Option<Place>, waker: &Waker) {
        self.waiting.wait(place, waker);
    }

    /// Gives a place up; whoever is first now may go.
    pub(super) fn leave(&mut self, place: &mut Option<Place>) {
        let _nothing_is_parked_here = self.waiting.leave(place);
    }

    pub(super) fn wake_first(&self) {
        if self.pending.len() < MAX_REMOTE_RECORDS {
            self.waiting.wake_first();
        }
    }

    /// Nothing is under way, and nobody waits.
    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.waiting.is_empty()
    }

    /// The operation that an answer is for. `None` after the end.
    pub(super) fn on_answer(
        &mut self,
        answer: &RemoteAnswer,
    ) -> Result<Option<Arc<Operation>>, &'static str> {
        if self.over {
            return Ok(None);
        }
        let Some(pending) = self.pending.pop_front() else { return Err("an answer to no remote request") };
        if answer.id.checked_add(self.pending.len() as u64) != Some(self.last) {
            return Err("a remote answer out of order");
        }
        let fits = match (answer.status, pending.expected) {
            (RemoteStatus::Done, Expected::Bytes(len)) => answer.len == len && answer.value == 0,
            (RemoteStatus::Done, Expected::Nothing) => answer.len == 0 && answer.value == 0,
            (RemoteStatus::Done, Expected::Word) => answer.len == 0,
            _ => true,
        };
        if !fits {
            return Err("a remote answer to another question");
        }
        self.wake_first();
        Ok(Some(pending.operation))
    }

    /// The connection has ended: everybody is to look at why.
    pub(super) fn end(&mut self) {
        self.over = true;
        for pending in self.pending.drain(..) {
            pending.operation.wake();
        }
        self.waiting.wake_all();
    }
}
