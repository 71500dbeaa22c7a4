//! The server's side of the table: which slot a key gets is decided here alone, so no key is ever in two. What is in a slot
//! changes under the slot's lock, by the server as by clients.

use std::sync::atomic::{Ordering::Acquire, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zc::Export;
use zc::memory::ExportError;

use super::error::KvError;
use super::layout::{Look, NOBODY, Owner, Shape, State, WAYS};
use super::wire::Broken;

/// Whoever the server lends the table to has another number.
pub(crate) const SERVER: Owner = 1;
/// So often a slot that changes while it is read is read again.
const LOOKS: usize = 32;

pub(crate) struct Table {
    pub(crate) export: Export,
    pub(crate) shape: Shape,
    /// Held where keys get their slots; never while something is waited for.
    placing: Mutex<()>,
}

/// How far it got.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<T> {
    Done(T),
    /// The slot is locked, or changed meanwhile: again, later.
    Locked {
        slot: u64,
        state: State,
    },
}

/// A slot as it is, in bytes that nobody changes any more.
struct Seen {
    slot: u64,
    state: State,
    what: What,
}

enum What {
    Free,
    Pair {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// It does not change, and is no copy that anybody wrote.
    Damaged,
    Changing,
}

impl Table {
    pub(crate) fn new(export: Export, shape: Shape) -> Self {
        Self { export, shape, placing: Mutex::new(()) }
    }

    fn placing(&self) -> MutexGuard<'_, ()> {
        self.placing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self, slot: u64) -> Result<State, ExportError> {
        self.export.load_u64(self.shape.state_at(slot)).map(State)
    }

    /// Looks until it sees a copy that is whole, or one that is not although nothing changes.
    fn see(&self, slot: u64) -> Result<Seen, ExportError> {
        let mut bytes = vec![0; self.shape.slot_bytes()];
        let mut before = self.state(slot)?;
        for _ in 0..LOOKS {
            self.export.read(self.shape.state_at(slot), &mut bytes)?;
            // The copy was read before the state is.
            fence(Acquire);
            let after = self.state(slot)?;
            let (state, what) = match self.shape.look(slot, &bytes) {
                (state, Look::Free) => (state, What::Free),
                (state, Look::Pair { key, value }) => {
                    (state, What::Pair { key: Vec::from(key), value: Vec::from(value) })
                }
                // Writers leave the current copy alone.
                (_, Look::Torn) if before.version() == after.version() => (after, What::Damaged),
                (_, Look::Torn) => {
                    before = after;
                    continue;
                }
            };
            return Ok(Seen { slot, state, what });
        }
        Ok(Seen { slot, state: before, what: What::Changing })
    }

    fn see_all(&self, key: &[u8]) -> Result<Vec<Seen>, ExportError> {
        let home = self.shape.home(key);
        (home..home + WAYS).map(|slot| self.see(slot)).collect()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Step<Option<Vec<u8>>>, KvError> {
        // What is placed meanwhile could be missed twice.
        let _placing = self.placing();
        let mut seen = self.see_all(key)?;
        if let Some(at) = seen.iter().position(|seen| seen.has(key)) {
            let What::Pair { value, .. } = seen.swap_remove(at).what else { return Err(KvError::Damaged) };
            return Ok(Step::Done(Some(value)));
        }
        match seen.iter().find(|seen| !matches!(seen.what, What::Free | What::Pair { .. })) {
            None => Ok(Step::Done(None)),
            Some(Seen { slot, state, what: What::Changing }) => {
                Ok(Step::Locked { slot: *slot, state: *state })
            }
            Some(_) => Err(KvError::Damaged),
        }
    }

    /// Into the slot that the key has, else a free one, else one that is damaged.
    pub(crate) fn put(&self, key: &[u8], value: &[u8]) -> Result<Step<()>, KvError> {
        if !self.shape.admits(key, value) {
            return Err(KvError::Size { key: key.len(), value: value.len(), room: self.shape.room });
        }
        let _placing = self.placing();
        let seen = self.see_all(key)?;
        if let Some(Seen { slot, state, .. }) = seen.iter().find(|seen| matches!(seen.what, What::Changing)) {
            // It may have the key.
            return Ok(Step::Locked { slot: *slot, state: *state });
        }
        let place = seen
            .iter()
            .find(|seen| seen.has(key))
            .or_else(|| seen.iter().find(|seen| matches!(seen.what, What::Free)))
            .or_else(|| seen.iter().find(|seen| matches!(seen.what, What::Damaged)))
            .ok_or(KvError::Full)?;
        Ok(self.change(place, key, value)?)
    }

    /// Whether it was there.
    pub(crate) fn delete(&self, key: &[u8]) -> Result<Step<bool>, KvError> {
        let _placing = self.placing();
        let seen = self.see_all(key)?;
        if let Some(place) = seen.iter().find(|seen| seen.has(key)) {
            return Ok(match self.change(place, &[], &[])? {
                Step::Done(()) => Step::Done(true),
                Step::Locked { slot, state } => Step::Locked { slot, state },
            });
        }
        match seen.iter().find(|seen| matches!(seen.what, What::Changing)) {
            Some(Seen { slot, state, .. }) => Ok(Step::Locked { slot: *slot, state: *state }),
            None => Ok(Step::Done(false)),
        }
    }

    /// If the slot is still as it was seen, and nobody has it locked.
    fn change(&self, seen: &Seen, key: &[u8], value: &[u8]) -> Result<Step<()>, ExportError> {
        let (slot, free) = (seen.slot, seen.state.with(NOBODY));
        let (ours, at) = (free.with(SERVER), self.shape.state_at(slot));
        let found = State(self.export.compare_swap(at, free.0, ours.0)?);
        if found != free {
            return Ok(Step::Locked { slot, state: found });
        }
        let next = free.next();
        let copy = self.shape.copy(slot, next.version(), key, value);
        self.export.write(self.shape.copy_at(slot, next.version()), &copy)?;
        // Only who does not keep to the rules changes it under our lock, and what it then says is theirs.
        let found = State(self.export.compare_swap(at, ours.0, next.0)?);
        Ok(if found == ours { Step::Done(()) } else { Step::Locked { slot, state: found } })
    }

    /// Opens all locks of one that can't write any more. A client that keeps to the rules has one at most; the last one.
    pub(crate) fn break_locks(&self, owner: Owner) -> Result<Option<Broken>, ExportError> {
        let mut broken = None;
        for slot in 0..self.shape.all_slots() {
            let state = self.state(slot)?;
            if state.owner() == owner && self.break_lock(slot, state)? {
                broken = Some(Broken { slot, version: state.version() });
            }
        }
        Ok(broken)
    }

    /// Opens one lock if it is still as it was seen. Its slot keeps the copy that is current, and the other one is nobody's.
    pub(crate) fn break_lock(&self, slot: u64, seen: State) -> Result<bool, ExportError> {
        let found = self.export.compare_swap(self.shape.state_at(slot), seen.0, seen.with(NOBODY).0)?;
        Ok(found == seen.0)
    }

    /// Opens a lock that claims to be the server's: nobody holds that one while keys are not being placed.
    pub(crate) fn break_forged(&self, slot: u64, seen: State) -> Result<bool, ExportError> {
        let _placing = self.placing();
        self.break_lock(slot, seen)
    }
}

impl Seen {
    fn has(&self, wanted: &[u8]) -> bool {
        matches!(&self.what, What::Pair { key, .. } if key == wanted)
    }
}
