//! What the peer was granted, and what it told us of it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, Waker};

use zc_core::memory::{ExportMemory, RegionId};
use zc_core::transport::{LaneError, RemoteGrant, RemoteKey, Revoked};
use zc_core::wire::WireError;

use super::channel::Channel;
use super::record::{Granted, Key, Record, is_writable, key_of};
use crate::lane::Shared;
use crate::lie::lie;
use crate::limits::{MAX_REMOTE_BYTES, MAX_REMOTE_KEYS, MAX_REMOTE_WINDOWS, NOTIFY_WINDOW};
use crate::sys;

/// What a key stands for.
struct Grant {
    grant: RemoteGrant,
    window: u64,
    /// The peer has asked about it.
    told: bool,
}

/// An export, as the peer can map it: to read it, or to write it as well.
struct Window {
    number: u64,
    memory: ExportMemory,
    /// For who may only read.
    read_only: Option<OwnedFd>,
    grants: usize,
    /// Grants of which the peer knows: while there are any, it has the descriptor.
    told: usize,
}

#[derive(Default)]
pub(super) struct Owner {
    grants: HashMap<Key, Grant>,
    windows: Vec<Window>,
    /// Numbers given so far.
    numbers: u64,
    /// What the peer asked and was not told.
    question: Option<Key>,
    /// Notifications for which their exports had no room.
    notifications: VecDeque<(Key, u64)>,
    /// Something has changed since they were looked at.
    news: bool,
    /// Notifications that no longer wait.
    handed_over: u64,
}

impl Window {
    fn id(&self) -> (RegionId, bool) {
        (self.memory.region().id(), self.read_only.is_none())
    }

    fn bytes(&self) -> u64 {
        self.memory.region().len() as u64
    }
}

impl Owner {
    /// Makes a key. The peer hears of it when it asks.
    pub(super) fn grant(&mut self, grant: RemoteGrant) -> Result<RemoteKey, LaneError> {
        if self.grants.len() >= MAX_REMOTE_KEYS {
            return Err(LaneError::Other(format!("more than {MAX_REMOTE_KEYS} keys on one connection")));
        }
        let (start, end) = (grant.range.start, grant.range.end);
        if start >= end || end > grant.memory.len() || !start.is_multiple_of(8) {
            return Err(LaneError::Other(format!("no range to grant: {start}..{end}")));
        }
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| LaneError::Other(format!("no random key: {error}")))?;
        let key = RemoteKey::from_bytes(&bytes).and_then(|key| Some((key, key_of(&key)?)));
        let (key, name) = key.ok_or_else(|| LaneError::Other("no key".into()))?;
        let window = self.window(&grant)?;
        self.grants.insert(name, Grant { grant, window, told: false });
        Ok(key)
    }

    /// The export's window, with one more grant.
    fn window(&mut self, grant: &RemoteGrant) -> Result<u64, LaneError> {
        let id = (grant.memory.region().id(), is_writable(grant.access));
        if let Some(window) = self.windows.iter_mut().find(|window| window.id() == id) {
            window.grants += 1;
            return Ok(window.number);
        }
        let region = grant.memory.region();
        let fd = region.fd().ok_or_else(|| LaneError::Other("the export is not in a memfd".into()))?;
        let bytes: u64 = self.windows.iter().map(Window::bytes).sum();
        let (most, count) = (MAX_REMOTE_BYTES, MAX_REMOTE_WINDOWS);
        if self.windows.len() >= count || bytes.saturating_add(region.len() as u64) > most {
            return Err(LaneError::Other(format!("more than {count} exports or {most} bytes of them")));
        }
        let whole = sys::has_all_pages(fd, region.len());
        if !whole.map_err(|error| LaneError::os("look at an export", &error))? {
            return Err(LaneError::Other("the export was not prefaulted".into()));
        }
        let read_only = match id.1 {
            true => None,
            false => {
                Some(sys::reopen_read_only(fd).map_err(|e| LaneError::os("open an export for reading", &e))?)
            }
        };
        self.numbers += 1;
        let (number, memory) = (self.numbers, grant.memory.clone());
        self.windows.push(Window { number, memory, read_only, grants: 1, told: 0 });
        Ok(number)
    }

    /// Ends a grant. What the peer has mapped, it keeps as long as it likes.
    pub(super) fn revoke(&mut self, key: &Key, channel: &mut Channel) -> Revoked {
        let Some(gone) = self.grants.remove(key) else { return Revoked::Done };
        self.news = true;
        if let Some(at) = self.windows.iter().position(|window| window.number == gone.window) {
            let window = &mut self.windows[at];
            window.grants -= 1;
            window.told -= usize::from(gone.told);
            if window.grants == 0 {
                self.windows.swap_remove(at);
            }
        }
        if !gone.told {
            // It never learned what the key stands for, and never will.
            return Revoked::Done;
        }
        channel.say_revoked(*key);
        Revoked::Retired
    }

    /// The peer asks; it waits for the answer before it asks again.
    pub(super) fn asked(&mut self, key: Key, channel: &Channel) -> Result<(), WireError> {
        if self.question.is_some() || channel.owes_answer() {
            return Err(lie("shm remote: two questions"));
        }
        self.question = Some(key);
        Ok(())
    }

    /// Answers the question, if there is one and the link has room for a descriptor that goes with it.
    pub(super) fn answer(&mut self, shared: &Shared, channel: &mut Channel) -> Result<(), LaneError> {
        let Some(key) = self.question else { return Ok(()) };
        let answer = match self.grants.get_mut(&key) {
            None => Record::Refuse { later: false },
            Some(grant) if grant.told => return Err(lie("shm remote: asked twice").into()),
            Some(grant) => {
                let window = self.windows.iter_mut().find(|window| window.number == grant.window);
                let window = window.ok_or_else(|| LaneError::Other("a grant without memory".into()))?;
                let fresh = window.told == 0;
                match if fresh { window.send(shared) } else { Poll::Ready(Ok(())) } {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Ok(())) => {
                        (grant.told, window.told) = (true, window.told + 1);
                        Record::Grant(grant.described(window.bytes(), fresh))
                    }
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                        return Err(LaneError::PeerGone("its control link ended"));
                    }
                    // For want of descriptors, perhaps.
                    Poll::Ready(Err(error)) => {
                        tracing::warn!(%error, "an export's descriptor can't be sent");
                        Record::Refuse { later: true }
                    }
                }
            }
        };
        self.question = None;
        channel.say(answer);
        Ok(())
    }

    /// The peer wrote and said so.
    pub(super) fn notified(&mut self, key: Key, value: u64) -> Result<(), WireError> {
        // An honest peer counts with us.
        if self.notifications.len() as u64 >= NOTIFY_WINDOW {
            return Err(lie("shm remote: notifications"));
        }
        self.notifications.push_back((key, value));
        self.news = true;
        Ok(())
    }

    /// Whether handing over may do something, as far as we know.
    pub(super) fn has_news(&self) -> bool {
        self.news
    }

    /// Hands notifications over, those of one export in order. Those for which it has no room stay, and `waker` is woken when
    /// it may have some.
    pub(super) fn hand_over(&mut self, channel: &mut Channel, waker: &Waker) {
        self.news = false;
        let Self { notifications, grants, .. } = self;
        let before = notifications.len();
        let mut full = Vec::new();
        notifications.retain(|(key, value)| {
            // One whose key was revoked meanwhile is nobody's.
            let Some(grant) = grants.get(key).filter(|grant| grant.may_notify()) else { return false };
            if full.contains(&grant.window) {
                return true;
            }
            let stays = grant.grant.notify.poll_notify(&mut Context::from_waker(waker), *value).is_pending();
            if stays {
                full.push(grant.window);
            }
            stays
        });
        let gone = before - notifications.len();
        if gone > 0 {
            self.handed_over += gone as u64;
            channel.notified(self.handed_over);
        }
    }

    /// The peer has nothing to ask or to tell.
    pub(super) fn is_idle(&self) -> bool {
        self.grants.is_empty() && self.question.is_none()
    }
}

impl Grant {
    fn may_notify(&self) -> bool {
        self.told && self.grant.access.contains(zc_core::transport::Access::WRITE)
    }

    fn described(&self, bytes: u64, fresh: bool) -> Granted {
        let RemoteGrant { range, access, .. } = &self.grant;
        let (start, len) = (range.start, range.end - range.start);
        Granted { window: self.window, bytes, start, len, access: *access, fresh }
    }
}

impl Window {
    fn send(&self, shared: &Shared) -> Poll<io::Result<()>> {
        use std::os::fd::AsFd;
        let fd = self.read_only.as_ref().map(AsFd::as_fd).or_else(|| self.memory.region().fd());
        fd.map_or(Poll::Ready(Err(io::ErrorKind::InvalidData.into())), |fd| shared.poll_send_fd(fd))
    }
}
