//! What the peer holds of our arenas, as both halves know it: the sending half lends and takes back, the receiving half
//! delivers what the peer sends back as it lies.
//!
//! A loan may be sent back and be given back, and the two are read by different halves. So who gives it back says how often
//! it was sent back, and it is over when all of those have been read.

use std::sync::Arc;

use parking_lot::Mutex;
use zc_core::memory::PinnedBuf;
use zc_core::wire::WireError;

use crate::kept::{Kept, KeptOf, Part, Size};
use crate::layout::{BACK, Descriptor, Grow, Return};
use crate::lie::lie;
use crate::limits::FIRST_BLOCK_BYTES;
use crate::sync::{AtomicBool, Ordering};

/// A buffer that the peer may read.
struct Held {
    buf: PinnedBuf,
    generation: u16,
    /// Where in the block the buffer begins.
    offset: u32,
    /// How often it came back as a message.
    seen: u8,
    /// The peer gave it back, and had sent it back so often.
    expected: Option<u8>,
}

/// The blocks of one arena.
struct Slab {
    held: Box<[Option<Held>]>,
    views: Arc<Views>,
}

/// Which blocks of an arena the application may hold although they were sent: they came back as messages.
pub(crate) struct Views {
    viewed: Box<[AtomicBool]>,
    /// Of all but the first arena.
    kept: Option<KeptOf>,
}

impl Views {
    /// None yet, of so many blocks.
    pub(crate) fn new(blocks: u32, kept: Option<KeptOf>) -> Arc<Self> {
        Arc::new(Self { viewed: (0..blocks).map(|_| AtomicBool::new(false)).collect(), kept })
    }

    /// Called by the receiving half alone, while the block is held for the peer.
    pub(crate) fn mark(&self, block: usize) {
        if let Some(kept) = &self.kept
            && let Some(viewed) = self.viewed.get(block)
            && !viewed.swap(true, Ordering::Relaxed)
        {
            kept.add();
        }
    }

    /// Nobody has the block any more, and nobody can have it again before this returns.
    #[inline]
    pub(crate) fn unmark(&self, block: u32) {
        if let Some(viewed) = self.viewed.get(block as usize)
            && viewed.load(Ordering::Relaxed)
        {
            viewed.store(false, Ordering::Relaxed);
            self.kept.iter().for_each(KeptOf::sub);
        }
    }

    /// What one more block adds.
    fn cost(&self) -> Option<Size> {
        self.kept.as_ref().and_then(KeptOf::cost)
    }
}

#[derive(Default)]
struct State {
    slabs: Vec<Option<Slab>>,
    /// What was given back first, and of which all has been read since.
    caught_up: Vec<(u8, u32)>,
    /// The receiving half reads nothing any more.
    reader_done: bool,
    /// Nothing is held for the peer, only for the receiving half.
    released: bool,
    /// One half is gone.
    left: bool,
}

/// What both halves share.
pub(crate) struct Out {
    state: Mutex<State>,
    /// There is something in the list, or was; changed under the lock.
    any_caught_up: AtomicBool,
    kept: Arc<Kept>,
}

impl Out {
    /// Nothing yet, of a side that makes arenas of so many bytes beside its first.
    pub(crate) fn new(spare_bytes: u64) -> Arc<Self> {
        let any_caught_up = AtomicBool::new(false);
        Arc::new(Self { state: Mutex::default(), any_caught_up, kept: Kept::new(spare_bytes, Part::Quarter) })
    }

    /// For a further arena.
    pub(crate) fn views(&self, is_first: bool, blocks: u32, bytes: usize) -> Arc<Views> {
        let size = || Size::of_arena(blocks, bytes as u64);
        let kept = (!is_first).then(|| KeptOf::new(self.kept.clone(), size()));
        Views::new(if is_first { 0 } else { blocks }, kept)
    }

    /// The peer is told of a further arena.
    pub(crate) fn add(&self, at: u8, blocks: u32, views: Arc<Views>) {
        let held = (0..blocks).map(|_| None).collect();
        let mut state = self.state.lock();
        let at = usize::from(at);
        let len = state.slabs.len().max(at + 1);
        state.slabs.resize_with(len, || None);
        state.slabs[at] = Some(Slab { held, views });
    }

    /// An arena of which nothing is held is taken away.
    pub(crate) fn remove(&self, at: u8) {
        let gone = self.state.lock().slabs.get_mut(usize::from(at)).and_then(Option::take);
        drop(gone);
    }

    /// Keeps a buffer until the peer gives it back (M1, M2).
    #[inline]
    pub(crate) fn hold(&self, at: Descriptor, buf: PinnedBuf) {
        let held = Held { buf, generation: at.generation, offset: at.offset, seen: 0, expected: None };
        if let Some(free) = self.state.lock().held(at.slab, at.block) {
            *free = Some(held);
        }
    }

    /// The peer gave a block back: the buffer, unless messages that it was sent back by have not been read. The caller
    /// knows that the block is lent.
    pub(crate) fn take_back(&self, back: Return) -> Result<Option<PinnedBuf>, WireError> {
        let mut state = self.state.lock();
        let reader_done = state.reader_done;
        let slot = state.held(back.slab, back.block.into());
        let slot = slot.ok_or_else(|| lie("shm return: block"))?;
        let held = slot.as_mut().filter(|held| held.generation == back.generation && held.expected.is_none());
        let held = held.ok_or_else(|| lie("shm return: not lent"))?;
        if back.sent_back < held.seen {
            return Err(lie("shm return: count"));
        }
        if back.sent_back == held.seen || reader_done {
            return Ok(slot.take().map(|held| held.buf));
        }
        held.expected = Some(back.sent_back);
        Ok(None)
    }

    /// A block that was given back before, and of which all has been read since.
    #[inline]
    pub(crate) fn next_caught_up(&self) -> Option<(u8, u32, PinnedBuf)> {
        if self.any_caught_up.load(Ordering::Relaxed) { self.pop_caught_up() } else { None }
    }

    #[cold]
    fn pop_caught_up(&self) -> Option<(u8, u32, PinnedBuf)> {
        let mut state = self.state.lock();
        while let Some((slab, block)) = state.caught_up.pop() {
            if let Some(held) = state.held(slab, block).and_then(Option::take) {
                return Some((slab, block, held.buf));
            }
        }
        self.any_caught_up.store(false, Ordering::Relaxed);
        None
    }

    /// Whether enough is left to send from while the application keeps what these parts name.
    pub(crate) fn leaves_enough(&self, parts: &[Descriptor]) -> bool {
        let another = Grow { slab: 1, block_len: FIRST_BLOCK_BYTES, blocks: 1 }.bytes();
        let state = self.state.lock();
        let mut more = Size::default();
        for (n, at) in parts.iter().enumerate() {
            // What names no arena is refused when it is delivered.
            let Some(Some(slab)) = state.slabs.get(usize::from(at.slab & !BACK)) else { continue };
            if slab.views.kept.is_none() && !self.kept.ever_takes(another) {
                return false;
            }
            if let Some(size) = slab.views.cost()
                && parts[..n].iter().all(|other| other.slab != at.slab)
            {
                more = more.and(size);
            }
        }
        more == Size::default() || self.kept.takes(more)
    }

    /// What the peer sent back, once all that it says is checked (M6): the block is lent to it, under this generation, and
    /// it was sent these bytes. Beside it, whether the sending half now has something to take back.
    ///
    /// They are bytes of a buffer that is held for the peer, so nobody writes them (M1), and the peer can't (its mapping is
    /// read-only): so it is no matter whether it is trusted.
    pub(crate) fn deliver(&self, at: &Descriptor, keep: bool) -> Result<(PinnedBuf, bool), WireError> {
        let mut state = self.state.lock();
        let slab = state.slabs.get_mut(usize::from(at.slab & !BACK)).and_then(Option::as_mut);
        let slab = slab.ok_or_else(|| lie("shm sent back: arena"))?;
        let held = slab.held.get_mut(at.block as usize).ok_or_else(|| lie("shm sent back: block"))?;
        let held = held.as_mut().filter(|held| held.generation == at.generation);
        let held = held.ok_or_else(|| lie("shm sent back: not lent"))?;
        let start = at.offset.checked_sub(held.offset).ok_or_else(|| lie("shm sent back: range"))? as usize;
        // Both are 32 bits.
        let end = start + at.len as usize;
        if at.len == 0 || end > held.buf.len() {
            return Err(lie("shm sent back: range"));
        }
        held.seen = match held.expected {
            Some(expected) if held.seen >= expected => return Err(lie("shm sent back: count")),
            _ => held.seen.checked_add(1).ok_or_else(|| lie("shm sent back: count"))?,
        };
        let (buf, caught_up) = (held.buf.slice(start..end), held.expected == Some(held.seen));
        if keep {
            slab.views.mark(at.block as usize);
        }
        if caught_up {
            state.caught_up.push((at.slab & !BACK, at.block));
            self.any_caught_up.store(true, Ordering::Relaxed);
        }
        Ok((buf, caught_up))
    }

    /// The receiving half reads nothing more: what was given back is, however often it was sent back. Whether there is such.
    pub(crate) fn end_of_reader(&self) -> bool {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.reader_done, true) {
            return false;
        }
        let State { slabs, caught_up, released, .. } = &mut *state;
        if *released {
            gone = take_all(slabs);
        }
        for (at, slab) in slabs.iter().enumerate() {
            let blocks = slab.iter().flat_map(|slab| slab.held.iter().enumerate());
            let over = blocks.filter(|(_, held)| {
                held.as_ref().is_some_and(|h| h.expected.is_some_and(|expected| expected > h.seen))
            });
            caught_up.extend(over.map(|(block, _)| (at as u8, block as u32)));
        }
        let any = !caught_up.is_empty();
        self.any_caught_up.store(any, Ordering::Relaxed);
        drop(state);
        drop(gone);
        any
    }

    /// The peer reads nothing any more: nothing is held for it. What it sent back before may still be delivered.
    pub(crate) fn release(&self) {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.released, true) && state.reader_done {
            gone = take_all(&mut state.slabs);
        }
        drop(state);
        drop(gone);
    }

    /// A half is gone. Of the second: what is held and known elsewhere here, and must not be written (M4).
    pub(crate) fn leave(&self) -> Vec<PinnedBuf> {
        let mut state = self.state.lock();
        let all = match std::mem::replace(&mut state.left, true) {
            true => take_all(&mut state.slabs),
            false => Vec::new(),
        };
        drop(state);
        all.into_iter().filter_map(|buf| buf.try_into_mut().err()).collect()
    }
}

impl State {
    #[inline]
    fn held(&mut self, slab: u8, block: u32) -> Option<&mut Option<Held>> {
        self.slabs.get_mut(usize::from(slab))?.as_mut()?.held.get_mut(block as usize)
    }
}

fn take_all(slabs: &mut [Option<Slab>]) -> Vec<PinnedBuf> {
    let held = slabs.iter_mut().flatten().flat_map(|slab| slab.held.iter_mut());
    held.filter_map(Option::take).map(|held| held.buf).collect()
}
