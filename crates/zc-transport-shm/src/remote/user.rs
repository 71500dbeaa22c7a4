//! What the peer granted us, and operations on it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use zc_core::memory::{CopyLedger, ExportError, ExportMemory, Message};
use zc_core::transport::{Access, LaneError, RemoteOp};
use zc_core::wire::{RemoteStatus, WireError};

use super::channel::Channel;
use super::record::{Granted, Key};
use crate::lie::lie;
use crate::limits::{MAX_REMOTE_BYTES, MAX_REMOTE_KEYS, MAX_REMOTE_WINDOWS};
use crate::spare;
use crate::sys::{self, PeerMemory};

/// What a key stands for.
struct Known {
    window: u64,
    start: u64,
    len: u64,
    access: Access,
}

/// An export of the peer's, mapped.
struct Window {
    memory: ExportMemory,
    writable: bool,
    /// Keys to it.
    keys: usize,
}

#[derive(Default)]
pub(super) struct User {
    known: HashMap<Key, Known>,
    windows: HashMap<u64, Window>,
}

impl User {
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.known.contains_key(key)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.known.is_empty()
    }

    /// The peer told what a key stands for; `fd` came with it if it is the first one to its export.
    pub(super) fn grant(&mut self, key: Key, granted: Granted, fd: Option<OwnedFd>) -> Result<(), LaneError> {
        if self.known.len() >= MAX_REMOTE_KEYS || self.knows(&key) {
            return Err(lie("shm remote: keys").into());
        }
        if let Some(fd) = fd {
            self.map(&granted, fd)?;
        }
        let window = self.windows.get_mut(&granted.window).ok_or_else(|| lie("shm remote: export"))?;
        if window.memory.len() != granted.bytes || window.writable != granted.is_writable() {
            return Err(lie("shm remote: export").into());
        }
        window.keys += 1;
        let Granted { window, start, len, access, .. } = granted;
        self.known.insert(key, Known { window, start, len, access });
        Ok(())
    }

    fn map(&mut self, granted: &Granted, fd: OwnedFd) -> Result<(), LaneError> {
        let mapped: u64 = self.windows.values().map(|window| window.memory.len()).sum();
        let spare = MAX_REMOTE_BYTES.saturating_sub(mapped);
        let too_many = self.windows.len() >= MAX_REMOTE_WINDOWS || granted.bytes > spare;
        if too_many || self.windows.contains_key(&granted.window) {
            return Err(lie("shm remote: exports").into());
        }
        let bytes = usize::try_from(granted.bytes).map_err(|_| lie("shm remote: exports"))?;
        let writable = granted.is_writable();
        let memory = sys::map_export(fd, bytes, writable).map_err(|error| match error {
            PeerMemory::Bad(field) => lie(field).into(),
            PeerMemory::Os(error) => LaneError::os("map the peer's export", &error),
        })?;
        spare::restock();
        self.windows.insert(granted.window, Window { memory, writable, keys: 0 });
        Ok(())
    }

    /// A key is valid no more; with the last one to an export goes the mapping.
    pub(super) fn revoke(&mut self, key: Key) -> Result<(), WireError> {
        let gone = self.known.remove(&key).ok_or_else(|| lie("shm remote: revoked key"))?;
        if let Some(window) = self.windows.get_mut(&gone.window) {
            window.keys -= 1;
            if window.keys == 0 {
                self.windows.remove(&gone.window);
            }
        }
        Ok(())
    }

    /// Does an operation with a key that is known; the ring has room for its notification. Only a lie of the peer is an error.
    pub(super) fn run(
        &self,
        key: &Key,
        offset: u64,
        mut op: RemoteOp,
        channel: &mut Channel,
        ledger: &CopyLedger,
    ) -> Result<(RemoteStatus, u64, RemoteOp), WireError> {
        let found = self.known.get(key).and_then(|known| Some((known, self.windows.get(&known.window)?)));
        let Some((known, window)) = found else { return Ok((RemoteStatus::Revoked, 0, op)) };
        let at = match known.check(offset, &op) {
            Ok(at) => at,
            Err(status) => return Ok((status, 0, op)),
        };
        let memory = &window.memory;
        let done = match &mut op {
            RemoteOp::Read { into, len } => match into.unfilled_mut().get_mut(..*len) {
                Some(room) => {
                    let read = memory.read(at, room, ledger);
                    if read.is_ok() {
                        into.advance(*len);
                    }
                    read.map(|()| 0)
                }
                None => return Ok((RemoteStatus::OutOfBounds, 0, op)),
            },
            RemoteOp::Write { message, notify: None } => write(memory, at, message, ledger),
            RemoteOp::Write { message, notify: Some(value) } => {
                // The place first, so that a write without one changes nothing.
                if !channel.may_notify()? {
                    return Ok((RemoteStatus::Busy, 0, op));
                }
                let written = write(memory, at, message, ledger);
                // The ring's publication releases what was written.
                channel.notify(*key, *value);
                written
            }
            RemoteOp::CompareSwap { expected, new } => memory.compare_swap(at, *expected, *new),
            RemoteOp::FetchAdd { add } => memory.fetch_add(at, *add),
        };
        // The range lies inside of the mapping, which is writable if need be: this does not fail.
        Ok(match done {
            Ok(value) => (RemoteStatus::Done, value, op),
            Err(ExportError::Misaligned { .. }) => (RemoteStatus::Misaligned, 0, op),
            Err(ExportError::OutOfBounds { .. }) => (RemoteStatus::OutOfBounds, 0, op),
            Err(_) => (RemoteStatus::Denied, 0, op),
        })
    }
}

impl Known {
    /// Where in the export the operation begins, if it is allowed.
    fn check(&self, offset: u64, op: &RemoteOp) -> Result<u64, RemoteStatus> {
        let (needed, len, aligned) = match op {
            RemoteOp::Read { len, .. } => (Access::READ, *len as u64, true),
            RemoteOp::Write { message, .. } => (Access::WRITE, message.len() as u64, true),
            RemoteOp::CompareSwap { .. } | RemoteOp::FetchAdd { .. } => {
                (Access::ATOMIC, 8, offset.is_multiple_of(8))
            }
        };
        if !self.access.contains(needed) {
            Err(RemoteStatus::Denied)
        } else if offset.checked_add(len).is_none_or(|end| end > self.len) {
            Err(RemoteStatus::OutOfBounds)
        } else if !aligned {
            Err(RemoteStatus::Misaligned)
        } else {
            Ok(self.start + offset)
        }
    }
}

fn write(memory: &ExportMemory, at: u64, message: &Message, ledger: &CopyLedger) -> Result<u64, ExportError> {
    let mut at = at;
    for segment in message.segments() {
        memory.write(at, segment, ledger)?;
        at += segment.len() as u64;
    }
    Ok(0)
}
