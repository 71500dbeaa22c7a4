//! Who may use the table. A lease is a key to the memory and a number, by which locks say whose they are.
//!
//! A lock lasts no longer than its lease: when that ends, its key is revoked first, so that nothing of its client is or will be
//! at work in the memory, and then its locks are opened. Where a peer keeps its mapping, revoking replaces the memory and ends the
//! keys of all such peers (`Export::revoke`); they ask for new ones when they notice. What one of them was doing at that moment
//! may be in the new memory or not, and the state of the slot that it had locked says which: nobody else could change
//! that. So the answer with the new lease says where the old one's lock was broken.
//!
//! The memory that was replaced is there for as long as some peer keeps it mapped, which nobody can prevent or count. So what
//! can cost a copy has its turn, and these come [`COPY_PAUSE`] apart, whoever asks: a first lease (it ends one day, and that
//! does not wait), another one in the place of one that is valid, and breaking a living client's lock. A client that lost its
//! key with others waits for nobody.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use zc::transport::{Access, OneSided};
use zc::{Connection, RemoteKey};

use super::error::KvError;
use super::layout::{NOBODY, Owner, State};
use super::server::MAX_CLIENTS;
use super::table::{SERVER, Table};
use super::wire::{Broken, Terms};

/// Between two turns of what can cost a copy of the table.
pub(crate) const COPY_PAUSE: Duration = Duration::from_millis(100);
/// Most leases: those of all clients, and as many that could not be ended yet. Far fewer than there are numbers.
const MAX_LEASES: usize = 2 * MAX_CLIENTS;

/// A lock that did not move for so long is broken when somebody waits for it: the lease of its owner ends.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

#[derive(Default)]
pub(crate) struct Leases {
    live: Mutex<Live>,
    /// When somebody had a turn.
    turn: tokio::sync::Mutex<Option<tokio::time::Instant>>,
}

#[derive(Default)]
struct Live {
    last: Owner,
    leases: HashMap<Owner, Lease>,
    /// Counts what may have replaced the memory.
    round: u64,
}

struct Lease {
    key: RemoteKey,
    /// The round in which it was given; in a later one a native key is void.
    round: u64,
    is_native: bool,
    /// The lock that it had when its key was taken.
    broken: Option<Broken>,
    /// Its client asks for no other one: it goes as soon as its key could be revoked.
    over: bool,
}

/// A lock that a client has complained about, until it complains about another one.
#[derive(Default)]
pub(crate) struct Complaint(Option<(u64, State, Instant)>);

impl Leases {
    /// Taking back a key may copy the table and looks at every slot: other tasks of this thread go on elsewhere.
    fn with_live<T>(&self, f: impl FnOnce(&mut Live) -> T) -> T {
        tokio::task::block_in_place(|| f(&mut self.live.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Waits until the next copy of the table may be made.
    async fn turn(&self) {
        let mut last = self.turn.lock().await;
        if let Some(last) = *last {
            tokio::time::sleep_until(last + COPY_PAUSE).await;
        }
        *last = Some(tokio::time::Instant::now());
    }

    /// Another lease in the place of this one.
    pub(crate) async fn renew(
        &self,
        table: &Table,
        conn: &Connection,
        owner: Option<Owner>,
    ) -> Result<Terms, KvError> {
        let costs_a_copy = match owner {
            Some(owner) => self.with_live(|live| live.costs_a_copy(owner)),
            None => conn.caps().one_sided == OneSided::Native,
        };
        if costs_a_copy {
            self.turn().await;
        }
        let broken = match owner {
            Some(owner) => self.end(table, owner)?,
            None => None,
        };
        self.begin(table, conn, broken)
    }

    fn begin(&self, table: &Table, conn: &Connection, broken: Option<Broken>) -> Result<Terms, KvError> {
        let is_native = conn.caps().one_sided == OneSided::Native;
        self.with_live(|live| {
            live.end_what_is_over(table);
            if live.leases.len() >= MAX_LEASES {
                return Err(KvError::Leases);
            }
            let owner = live.unused();
            let (key, round) = (table.export.grant(conn, Access::ALL, ..)?, live.round);
            live.leases.insert(owner, Lease { key, round, is_native, broken: None, over: false });
            Ok(Terms { key, owner, shape: table.shape, broken })
        })
    }

    /// Ends a lease: the lock that it had.
    pub(crate) fn end(&self, table: &Table, owner: Owner) -> Result<Option<Broken>, KvError> {
        self.with_live(|live| {
            if let Some(lease) = live.leases.get_mut(&owner) {
                lease.over = true;
            }
            live.take_back(table, owner)
        })
    }

    /// Whether the lock is open now.
    pub(crate) async fn complain(
        &self,
        table: &Table,
        about: &mut Complaint,
        slot: u64,
        state: State,
    ) -> Result<bool, KvError> {
        let is_bogus = slot >= table.shape.all_slots() || state.owner() == NOBODY;
        if is_bogus || table.state(slot)? != state {
            return Ok(true);
        }
        match about.0 {
            Some((known, was, since)) if (known, was) == (slot, state) => {
                if since.elapsed() < LOCK_TIMEOUT {
                    return Ok(false);
                }
            }
            _ => {
                about.0 = Some((slot, state, Instant::now()));
                return Ok(false);
            }
        }
        let owner = state.owner();
        if self.with_live(|live| live.costs_a_copy(owner)) {
            self.turn().await;
            if table.state(slot)? != state {
                return Ok(true);
            }
        }
        self.with_live(|live| match owner {
            SERVER => table.break_forged(slot, state).map(drop).map_err(KvError::from),
            owner if live.leases.contains_key(&owner) => live.take_back(table, owner).map(drop),
            // Nobody's that ever was, or is any more.
            _ => Ok(table.break_lock(slot, state).map(drop)?),
        })?;
        Ok(true)
    }
}

impl Live {
    /// Tries again what failed for want of memory.
    fn end_what_is_over(&mut self, table: &Table) {
        let over = self.leases.iter().filter(|(_, lease)| lease.over).map(|(owner, _)| *owner);
        for owner in over.collect::<Vec<_>>() {
            if self.take_back(table, owner).is_err() {
                break; // nor is there memory for another one
            }
        }
    }

    /// There are fewer leases than numbers.
    fn unused(&mut self) -> Owner {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(0).max(SERVER + 1);
            if !self.leases.contains_key(&self.last) {
                return self.last;
            }
        }
    }

    /// Whether taking back its key may replace the memory.
    fn costs_a_copy(&self, owner: Owner) -> bool {
        self.leases.get(&owner).is_some_and(|lease| lease.is_native && lease.round == self.round)
    }

    /// Takes the key, and then opens the locks. Its client hears of it by the next operation.
    fn take_back(&mut self, table: &Table, owner: Owner) -> Result<Option<Broken>, KvError> {
        let Some(lease) = self.leases.get_mut(&owner) else { return Ok(None) };
        // Without memory to go on in, the peer may still write: its locks stay. The next one who complains, or comes, tries again.
        table.export.revoke(&lease.key)?;
        if lease.is_native && lease.round == self.round {
            self.round += 1;
        }
        if let Some(broken) = table.break_locks(owner)? {
            lease.broken = Some(broken);
        }
        let broken = lease.broken;
        if lease.over {
            self.leases.remove(&owner);
        }
        Ok(broken)
    }
}
