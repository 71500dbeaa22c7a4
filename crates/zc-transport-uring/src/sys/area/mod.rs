//! The area into which a NIC puts what it receives, cut by the kernel as it comes, and lent piece by piece.
//!
//! ```text
//! the kernel's --completion (offset, length)--> lent: a window --last user gone--> refill ring --> the kernel's
//!                                                                   | full             ^
//!                                                                   +--> overdue ------+
//! ```
//!
//! What is lent is not written until it has gone back: the kernel counts what it has handed out, page by page. Each piece goes
//! back exactly once, since a window comes back once for each time that it is lent, from whichever thread. When the ring is
//! gone, pieces stay as they are and go nowhere: the memory is theirs until the last of them is gone, and the
//! kernel holds the pages themselves, so that unmapping takes nothing from it (M2, M4).

mod refill;
mod register;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use io_uring::types::IORING_ZCRX_AREA_SHIFT;
use parking_lot::Mutex;
use zc_core::memory::{PinnedBuf, Reclaim, Region, WindowTable};

use self::refill::Refill;
pub(crate) use self::register::{Source, locked_bytes};
use super::buffers::{Piece, Pieces};
use super::fixed::Locked;
use super::ring::Ring;
use crate::limits::ZCRX_LENT_DIVISOR;

// What a completion of such a receive says that found no room in the area.
const NO_ROOM: i32 = -libc::ENOMEM;

/// Who may use what, and what goes back. A lock of its own, taken last of all: pieces come back from anywhere.
struct State {
    refill: Refill,
    /// What the ring had no room for.
    overdue: VecDeque<(u64, u32)>,
    /// Windows that are not lent.
    free: Vec<u32>,
    /// By window, where what it shows begins and how long it is.
    shown: Box<[(u64, u32)]>,
    /// By page of the area, how many pieces of it are lent.
    pieces: Box<[u32]>,
    lent_pages: usize,
    /// The ring is gone: nothing goes back.
    is_closed: bool,
}

impl State {
    fn give_back(&mut self, offset: u64, len: u32) {
        if !self.is_closed && (!self.overdue.is_empty() || !self.refill.push(offset, len)) {
            self.overdue.push_back((offset, len));
        }
    }

    /// What there was no room for, as far as there is now.
    fn catch_up(&mut self) {
        while let Some((offset, len)) = self.overdue.front().copied()
            && self.refill.push(offset, len)
        {
            self.overdue.pop_front();
        }
    }

    fn count(&mut self, pages: Range<usize>) {
        for page in pages {
            self.lent_pages += usize::from(self.pieces[page] == 0);
            self.pieces[page] += 1;
        }
    }

    fn uncount(&mut self, pages: Range<usize>) {
        for page in pages {
            self.pieces[page] -= 1;
            self.lent_pages -= usize::from(self.pieces[page] == 0);
        }
    }
}

struct Home {
    page_bytes: usize,
    /// In the upper bits of each offset.
    token: u64,
    state: Mutex<State>,
}

impl Home {
    /// The pages that a part of the area lies in.
    fn pages(&self, offset: u64, len: u32) -> Range<usize> {
        let end = offset as usize + len as usize;
        offset as usize / self.page_bytes..end.div_ceil(self.page_bytes)
    }
}

impl Reclaim for Home {
    fn reclaim(&self, index: u32) {
        let mut state = self.state.lock();
        let Some((offset, len)) = state.shown.get(index as usize).copied() else { return };
        state.uncount(self.pages(offset, len));
        state.free.push(index);
        state.give_back(self.token | offset, len);
    }
}

/// How much of an area is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AreaCounts {
    /// Pieces that were received.
    pub(crate) received: u64,
    /// Pages of which pieces are lent.
    pub(crate) lent_pages: usize,
    /// How often a receive found no room.
    pub(crate) full: u64,
}

/// The area of one ring, as its engine sees it.
pub(crate) struct Area {
    /// Its number with the ring.
    id: u32,
    /// Whether the kernel copies what it puts there: there is no NIC behind it.
    is_copied: bool,
    bytes: usize,
    home: Arc<Home>,
    windows: WindowTable,
    received: u64,
    full: u64,
    /// A receive found no room, and none has come back since.
    is_dry: bool,
    /// How often the kernel was told to take what came back, and how often until the last receive began.
    flushes: u64,
    began_after: u64,
    locked: Option<Locked>,
}

impl Area {
    /// On memory that is registered: with `count` windows.
    fn on(memory: Region, refill: Refill, (id, token, is_copied): (u32, u64, bool), count: u32) -> Self {
        let (bytes, page_bytes) = (memory.len(), rustix::param::page_size());
        let state = State {
            refill,
            overdue: VecDeque::new(),
            free: (0..count).rev().collect(),
            shown: vec![(0, 0); count as usize].into(),
            pieces: vec![0; bytes.div_ceil(page_bytes)].into(),
            lent_pages: 0,
            is_closed: false,
        };
        let home = Arc::new(Home { page_bytes, token, state: Mutex::new(state) });
        // SAFETY: the kernel writes a page of the area only after all that it handed out of it came back, except for what
        // lies beside the pieces of a page that several packets share. A window shows whole pages, so that what is kept
        // counts as such, but only the piece in it is ever sliced and looked at (M5).
        let windows = unsafe { WindowTable::new(memory, count, home.clone()) };
        Self {
            id,
            is_copied,
            bytes,
            home,
            windows,
            received: 0,
            full: 0,
            is_dry: false,
            flushes: 0,
            began_after: 0,
            locked: None,
        }
    }

    /// A receive begins; the number by which it names the area.
    pub(crate) fn begin(&mut self) -> u32 {
        self.began_after = self.flushes;
        self.id
    }

    pub(crate) fn is_copied(&self) -> bool {
        self.is_copied
    }

    pub(crate) fn counts(&self) -> AreaCounts {
        let lent_pages = self.home.state.lock().lent_pages;
        AreaCounts { received: self.received, lent_pages, full: self.full }
    }

    /// So much is lent that what comes should not stay here.
    pub(crate) fn is_short(&self) -> bool {
        let state = self.home.state.lock();
        state.lent_pages >= state.pieces.len() / ZCRX_LENT_DIVISOR
            || state.free.len() <= state.shown.len() / ZCRX_LENT_DIVISOR
    }

    /// Lends what a completion names.
    ///
    /// # Errors
    /// The errno: it names what is not there (M6), or so many pieces are lent that there is no window left, and it went back.
    pub(crate) fn take(&mut self, offset: u64, len: usize) -> Result<Pieces, i32> {
        const OF_TOKEN: u64 = u64::MAX << IORING_ZCRX_AREA_SHIFT;
        let (token, offset) = (offset & OF_TOKEN, offset & !OF_TOKEN);
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let inside = at.checked_add(len).is_some_and(|end| end <= self.bytes);
        let (true, Ok(short_len)) = (inside && len > 0 && token == self.home.token, u32::try_from(len))
        else {
            return Err(libc::EIO);
        };
        let pages = self.home.pages(offset, short_len);
        let begin = pages.start * self.home.page_bytes;
        let shown = (pages.len() * self.home.page_bytes).min(self.bytes - begin);
        let mut state = self.home.state.lock();
        let Some(window) = state.free.pop() else {
            state.give_back(token | offset, short_len);
            return Err(libc::EOVERFLOW);
        };
        state.shown[window as usize] = (offset, short_len);
        state.count(pages);
        drop(state);
        let lent = self.windows.lend(window, begin, shown, None).map_err(|_| libc::EIO)?;
        let bytes: PinnedBuf = lent.slice(at - begin..at - begin + len);
        self.received += 1;
        let mut pieces = Pieces::new();
        pieces.push(Piece { bytes, buffer: self.received });
        Ok(pieces)
    }

    /// A receive has ended with this result.
    pub(crate) fn ended(&mut self, result: i32) {
        if result == NO_ROOM {
            // There may be room again: this was found out before it was told.
            self.is_dry = self.began_after == self.flushes;
            self.full += 1;
        }
    }

    /// No receive should begin: there is no room, and what has come back the kernel has already.
    pub(crate) fn is_dry(&self) -> bool {
        self.is_dry
    }

    /// Receives are to be tried again: a NIC may have returned what nobody told of.
    pub(crate) fn try_again(&mut self) {
        self.is_dry = false;
    }

    /// Has the kernel take what came back, if somebody waits for it or the ring runs full. Only for the thread that enters the
    /// ring.
    pub(crate) fn settle(&mut self, ring: &Ring) {
        let mut state = self.home.state.lock();
        state.catch_up();
        while self.is_dry && state.refill.queued() > 0 || state.refill.is_half_full() {
            // With a NIC the kernel takes what it needs by itself as well, so this is not all there is.
            if ring.flush_refill(self.id).is_err() {
                break;
            }
            self.flushes += 1;
            self.is_dry = false;
            let before = state.refill.queued();
            state.catch_up();
            if state.refill.queued() >= before {
                // The kernel says that it took them, and has taken none: the next turn asks again.
                break;
            }
        }
    }

    /// The ring closes, and may still count the memory as locked.
    pub(super) fn close(&mut self) -> Option<Locked> {
        let mut state = self.home.state.lock();
        state.is_closed = true;
        state.overdue.clear();
        self.locked.take()
    }
}

#[cfg(test)]
mod tests;
