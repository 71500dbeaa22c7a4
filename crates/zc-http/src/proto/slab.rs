//! Calls by position, and positions by number on the wire.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::call::{Call, Key};

/// Numbers are ours or rise one by one: spreading them is enough, and calls at a time are bounded.
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }
    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The calls of a connection. A place is used again with what it had allocated.
#[derive(Default)]
pub(super) struct Calls {
    places: Vec<Call>,
    free: Vec<u32>,
    open: HashMap<u32, u32, BuildHasherDefault<NumberHasher>>,
}

impl Calls {
    /// Calls that the protocol has under way.
    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Places in use, open or not.
    pub(super) fn used(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, id: u32) -> (Key, &mut Call) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.places.push(Call::default());
            (self.places.len() - 1) as u32
        });
        self.open.insert(id, slot);
        let call = &mut self.places[slot as usize];
        call.begin(id);
        (Key { slot, id }, call)
    }

    /// By number, while the protocol has it under way.
    pub(super) fn by_id(&mut self, id: u32) -> Option<(Key, &mut Call)> {
        let slot = *self.open.get(&id)?;
        Some((Key { slot, id }, &mut self.places[slot as usize]))
    }

    /// By key, until its handles are gone.
    pub(super) fn get(&mut self, key: Key) -> Option<&mut Call> {
        self.places.get_mut(key.slot as usize).filter(|call| call.id == key.id)
    }

    /// The protocol is done with it: frames for it are late ones from now on.
    pub(super) fn close(&mut self, id: u32) {
        self.open.remove(&id);
    }

    pub(super) fn is_open(&self, id: u32) -> bool {
        self.open.contains_key(&id)
    }

    /// The handles are gone as well.
    pub(super) fn free(&mut self, key: Key) {
        if let Some(call) = self.get(key) {
            call.clear();
            self.free.push(key.slot);
        }
    }

    /// Those that somebody looks at.
    pub(super) fn in_use(&mut self) -> impl Iterator<Item = &mut Call> {
        self.places.iter_mut().filter(|call| call.id != 0)
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        let used = (0_u32..).zip(&self.places).filter(|(_, call)| call.id != 0);
        used.map(|(slot, call)| Key { slot, id: call.id }).collect()
    }
}
