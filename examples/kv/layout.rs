//! How the table lies in memory, and how to tell whether bytes of it may be believed.
//!
//! ```text
//! table   slot 0 | slot 1 | ...              a key is in one of WAYS slots from the one that it hashes to
//! slot    state  | copy 0 | copy 1           up to a multiple of 64 bytes
//! state   version (48 bits) | owner (16)     one word; the owner holds the lock, 0 is nobody
//! copy    version | checksum | key's length (16 bits), value's (32) | key, value
//! ```
//!
//! Copy `version % 2` is the current one. Who changes a slot writes the other one and then counts the version up, so
//! a reader is not held up by a lock, and a writer that dies has damaged nothing. A read of the whole slot that two changes
//! overtake mixes copies. It shows: the copy must have the state's version, as in the cache lines of FaRM (Dragojević et al.,
//! "FaRM: Fast Remote Memory", NSDI 2014), and a checksum over version and content must fit, as in Pilaf (Mitchell et al.,
//! "Using One-Sided RDMA Reads to Build a Fast, CPU-Efficient Key-Value Store", USENIX ATC 2013): only words are never torn
//! here, lines may be. FaRM, too, reads the neighbourhood of a key at once.
//!
//! One mixture does not show: a lock that is broken between write and publish leaves a whole copy of a version that the next
//! writer uses again. Who loads that copy before, and the state after, all of break, lock, write and publish takes the first for the
//! second. Where a read loads in the order of addresses that can't be, and elsewhere it is one read against four steps of others.
//!
//! Whoever has a key to the memory can write anything: all of it is parsed as bytes, out of a copy of one's own.

use std::hash::Hasher;
use std::ops::Range;

use siphasher::sip::SipHasher13;

/// A key is in one of so many slots.
pub(crate) const WAYS: u64 = 8;
/// Most bytes of a table. Where a client that goes keeps its mapping, the server copies all of it, and whoever uses it
/// meanwhile waits for that.
pub(crate) const MAX_TABLE_BYTES: usize = 64 << 20;
/// Most slots of a table.
pub(crate) const MAX_SLOTS: u64 = 1 << 20;
/// Most bytes of a key and its value.
pub(crate) const MAX_ROOM: u32 = 4 << 10;
/// In front of a key and its value.
const COPY_HEAD: usize = 24;
const WORD: usize = 8;
/// Slots begin at a multiple of a cache line.
const LINE: usize = 64;

/// Who holds a slot's lock: the number of a lease.
pub(crate) type Owner = u16;
pub(crate) const NOBODY: Owner = 0;

/// The first word of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State(pub(crate) u64);

impl State {
    pub(crate) fn new(version: u64, owner: Owner) -> Self {
        Self(version << 16 | u64::from(owner))
    }
    pub(crate) fn version(self) -> u64 {
        self.0 >> 16
    }
    pub(crate) fn owner(self) -> Owner {
        self.0 as Owner
    }
    pub(crate) fn with(self, owner: Owner) -> Self {
        Self::new(self.version(), owner)
    }
    /// The state after a change. Version 0 is that of a slot that never had a key, so it does not come again.
    pub(crate) fn next(self) -> Self {
        let next = (self.version() + 1) & (u64::MAX >> 16);
        Self::new(if next == 0 { 2 } else { next }, self.owner())
    }
}

/// The size of a table, and the secret that its keys are hashed with: who does not know it can't fill one neighbourhood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    pub(crate) slots: u64,
    /// Bytes of a key and its value together.
    pub(crate) room: u32,
    pub(crate) seed: [u8; 16],
}

impl Shape {
    /// Within the bounds, which keep all sums below from running over.
    pub(crate) fn checked(self) -> Option<Self> {
        let fits = (1..=MAX_SLOTS).contains(&self.slots) && (1..=MAX_ROOM).contains(&self.room);
        (fits && self.bytes() <= MAX_TABLE_BYTES).then_some(self)
    }

    /// The last neighbourhood needs no turn to the front.
    pub(crate) fn all_slots(&self) -> u64 {
        self.slots + WAYS - 1
    }
    pub(crate) fn bytes(&self) -> usize {
        self.all_slots() as usize * self.slot_bytes()
    }
    pub(crate) fn slot_bytes(&self) -> usize {
        (WORD + 2 * self.copy_bytes()).next_multiple_of(LINE)
    }
    fn copy_bytes(&self) -> usize {
        (COPY_HEAD + self.room as usize).next_multiple_of(WORD)
    }

    /// The first slot that a key may be in.
    pub(crate) fn home(&self, key: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.seed);
        hasher.write(key);
        hasher.finish() % self.slots
    }
    /// Where the state of a slot is.
    pub(crate) fn state_at(&self, slot: u64) -> u64 {
        slot * self.slot_bytes() as u64
    }
    /// Where the copy of this version is.
    pub(crate) fn copy_at(&self, slot: u64, version: u64) -> u64 {
        self.state_at(slot) + self.copy_range(version).start as u64
    }
    fn copy_range(&self, version: u64) -> Range<usize> {
        let start = WORD + (version % 2) as usize * self.copy_bytes();
        start..start + self.copy_bytes()
    }

    /// Whether a pair may be in the table.
    pub(crate) fn admits(&self, key: &[u8], value: &[u8]) -> bool {
        !key.is_empty() && key.len() + value.len() <= self.room as usize
    }

    /// The copy of a pair that is admitted; without a key the slot is free for another one.
    pub(crate) fn copy(&self, slot: u64, version: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
        let lens = key.len() as u64 | (value.len() as u64) << 16;
        let sum = self.checksum(slot, version, lens, key, value);
        let mut copy = Vec::with_capacity(COPY_HEAD + key.len() + value.len());
        [version, sum, lens].iter().for_each(|word| copy.extend(word.to_le_bytes()));
        copy.extend(key);
        copy.extend(value);
        copy
    }

    fn checksum(&self, slot: u64, version: u64, lens: u64, key: &[u8], value: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.seed);
        [slot, version, lens].iter().for_each(|word| hasher.write(&word.to_le_bytes()));
        hasher.write(key);
        hasher.write(value);
        hasher.finish()
    }

    /// What the bytes of a slot say.
    pub(crate) fn look<'a>(&self, slot: u64, bytes: &'a [u8]) -> (State, Look<'a>) {
        let Some(state) = bytes.first_chunk() else { return (State(0), Look::Torn) };
        // The word is as the owner's processor has it, which is ours, too: see `wire`.
        let state = State(u64::from_ne_bytes(*state));
        if state.version() == 0 {
            return (state, Look::Free);
        }
        (state, self.parse(slot, state.version(), bytes).unwrap_or(Look::Torn))
    }

    fn parse<'a>(&self, slot: u64, version: u64, bytes: &'a [u8]) -> Option<Look<'a>> {
        let copy = bytes.get(self.copy_range(version))?;
        let word = |at: usize| Some(u64::from_le_bytes(*copy.get(at..)?.first_chunk()?));
        let lens = word(2 * WORD)?;
        let (key_len, value_len) = (lens as u16 as usize, usize::try_from(lens >> 16).ok()?);
        let (key, rest) = copy.get(COPY_HEAD..)?.split_at_checked(key_len)?;
        let value = rest.get(..value_len)?;
        let fits = word(0)? == version && word(WORD)? == self.checksum(slot, version, lens, key, value);
        fits.then_some(if key.is_empty() { Look::Free } else { Look::Pair { key, value } })
    }
}

/// What is in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Look<'a> {
    /// No key, or none any more.
    Free,
    Pair {
        key: &'a [u8],
        value: &'a [u8],
    },
    /// Changed while it was read, or damaged.
    Torn,
}
