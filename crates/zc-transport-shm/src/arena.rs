//! The sender's memory: arenas cut into equal blocks, and which of them the peer holds.
//!
//! Everything about a block is on our heap; in shared memory are its bytes only.

use std::io;
use std::sync::Arc;

use futures::task::AtomicWaker;
use smallvec::SmallVec;
use zc_core::memory::{FrameTable, PinnedBuf, PinnedBufMut, Reclaim, Region};
use zc_core::wire::WireError;

use crate::free_list::{FreeList, Stack};
use crate::layout::{Descriptor, Geometry, Grow, Return};
use crate::lie::lie;
use crate::limits::{
    FIRST_BLOCK_BYTES, GROWTH_BYTES, MAX_ARENA_BLOCKS, MAX_GROWTH_BLOCKS, MAX_GROWTH_BYTES, MAX_SLABS,
};
use crate::out::{Out, Views};
use crate::sys;

/// A buffer that the peer may read; [`Out`] has it.
struct Held {
    /// The send whose report waits for it.
    token: Option<u64>,
    /// A copied part of a message in parts, which comes back at once.
    part: bool,
}

/// Takes the blocks of one arena back when nobody here has them any more.
struct Home {
    free: Arc<FreeList>,
    views: Arc<Views>,
}

impl Reclaim for Home {
    fn reclaim(&self, index: u32) {
        self.views.unmark(index);
        self.free.reclaim(index);
    }
}

struct Slab {
    base: usize,
    bytes: usize,
    block_len: usize,
    blocks: usize,
    frames: FrameTable,
    free: Stack,
    held: Box<[Option<Held>]>,
    generations: Box<[u16]>,
    views: Arc<Views>,
    /// A block was taken since the last look.
    used: bool,
}

impl Slab {
    fn new(
        region: Region,
        block_len: u32,
        first: u32,
        frames: u32,
        waker: &Arc<AtomicWaker>,
        views: Arc<Views>,
    ) -> Option<Self> {
        let free = Stack::new(first, frames, waker.clone());
        let home = Arc::new(Home { free: free.home(), views: views.clone() });
        let (base, bytes) = (region.base().addr(), region.len());
        // SAFETY: the region is ours, no peer can map it writable, and this is its only table; blocks
        // before `first`, which overlap control words, are never lent (M5).
        let table = unsafe { FrameTable::new(region, block_len as usize, frames, home) }.ok()?;
        Some(Self {
            base,
            bytes,
            block_len: block_len as usize,
            blocks: (frames - first) as usize,
            frames: table,
            free,
            held: (0..frames).map(|_| None).collect(),
            generations: vec![0; frames as usize].into(),
            views,
            used: true,
        })
    }

    fn take(&mut self) -> Option<PinnedBufMut> {
        let buf = self.frames.lend_mut(self.free.pop()?, 0).ok()?;
        self.used = true;
        Some(buf)
    }

    fn is_idle(&mut self) -> bool {
        self.free.len() == self.blocks
    }
}

/// A slab that is ready but not announced.
pub(crate) struct NewSlab {
    pub(crate) entry: Grow,
    /// With its descriptor.
    pub(crate) region: Region,
    slab: Slab,
}

/// All memory of one direction.
pub(crate) struct Arena {
    slabs: Vec<Option<Slab>>,
    waker: Arc<AtomicWaker>,
    out: Arc<Out>,
    bytes: u64,
    max_bytes: u64,
    held: usize,
    /// Of those, copied parts of a message in parts.
    parts: usize,
    /// The slab that a block was taken from last.
    last: usize,
}

/// The block length for messages of `len` bytes: at most a quarter is left over.
fn block_len(len: usize) -> usize {
    if len <= FIRST_BLOCK_BYTES as usize {
        return FIRST_BLOCK_BYTES as usize;
    }
    let step = (len.next_power_of_two() / 8).max(64);
    len.next_multiple_of(step)
}

impl Arena {
    /// The arena in `region`, which holds the control words as well; at most `max_bytes` in all.
    pub(crate) fn new(region: Region, geometry: Geometry, max_bytes: u64, waker: Arc<AtomicWaker>) -> Self {
        let (bytes, frames) = (region.len() as u64, geometry.frames());
        let out = Out::new(max_bytes.saturating_sub(bytes));
        let views = out.views(true, frames, region.len());
        out.add(0, frames, views.clone());
        let first = Slab::new(region, geometry.block_len, geometry.first_block(), frames, &waker, views);
        let (slabs, max_bytes) = (vec![first], max_bytes.max(bytes));
        Self { slabs, waker, out, bytes, max_bytes, held: 0, parts: 0, last: 0 }
    }

    /// What the peer holds, for the receiving half.
    pub(crate) fn out(&self) -> Arc<Out> {
        self.out.clone()
    }

    /// The longest message that can ever be sent.
    pub(crate) fn max_len(&self) -> usize {
        let spare = (self.max_bytes - self.first_bytes()) / 4096 * 4096;
        usize::try_from(spare).unwrap_or(usize::MAX).max(self.first_block_len())
    }

    fn first_bytes(&self) -> u64 {
        self.slabs.first().and_then(Option::as_ref).map_or(0, |s| s.bytes as u64)
    }

    fn first_block_len(&self) -> usize {
        self.slabs.first().and_then(Option::as_ref).map_or(0, |s| s.block_len)
    }

    /// An empty block with room for `len` bytes: the one that came back last, of the smallest that fit.
    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Option<PinnedBufMut> {
        if let Some(slab) = self.slabs.get_mut(self.last).and_then(Option::as_mut)
            && slab.block_len == block_len(len)
            && let Some(buf) = slab.take()
        {
            return Some(buf);
        }
        self.take_any(len)
    }

    fn take_any(&mut self, len: usize) -> Option<PinnedBufMut> {
        let mut tried = 0;
        loop {
            let fits = |s: &&mut Slab| s.block_len >= len && s.block_len > tried;
            let slab = self.slabs.iter_mut().flatten().filter(fits).min_by_key(|s| s.block_len)?;
            // Several slabs of one size count as one.
            tried = slab.block_len;
            for (at, slab) in self.slabs.iter_mut().enumerate() {
                let same = slab.as_mut().filter(|s| s.block_len == tried);
                if let Some(buf) = same.and_then(Slab::take) {
                    self.last = at;
                    return Some(buf);
                }
            }
            // A much larger block is worth more than a new one of the right size.
            if tried / 4 > len.max(GROWTH_BYTES) {
                return None;
            }
        }
    }

    /// Where bytes lie, if it is in a block of ours that the peer does not hold. The generation is
    /// that of the next send.
    pub(crate) fn locate(&self, buf: &PinnedBuf) -> Option<Descriptor> {
        let (at, slab, place) = self.find(buf)?;
        let (block, offset) = (place / slab.block_len, place % slab.block_len);
        if offset + buf.len() > slab.block_len || slab.held.get(block)?.is_some() {
            return None;
        }
        Some(Descriptor {
            slab: at as u8,
            generation: slab.generations[block],
            block: block as u32,
            offset: offset as u32,
            len: buf.len() as u32,
        })
    }

    /// The arena in which bytes begin, and where in it.
    #[inline]
    fn find(&self, buf: &PinnedBuf) -> Option<(usize, &Slab, usize)> {
        let addr = buf.as_ptr().addr();
        let inside = |s: &Slab| addr >= s.base && addr - s.base < s.bytes;
        let (at, slab) = self.slabs.iter().enumerate().find(|(_, s)| s.as_ref().is_some_and(inside))?;
        slab.as_ref().map(|slab| (at, slab, addr - slab.base))
    }

    /// The arena and block in which bytes begin, whoever has it.
    pub(crate) fn block_of(&self, buf: &PinnedBuf) -> Option<(usize, usize)> {
        self.find(buf).map(|(at, slab, place)| (at, place / slab.block_len))
    }

    /// Keeps a located buffer until the peer gives it back (M1, M2). In front of the push that shows it.
    pub(crate) fn hold(&mut self, at: Descriptor, buf: PinnedBuf, token: Option<u64>) {
        self.keep(at, buf, Held { token, part: false });
    }

    /// The same for a copied part of a message in parts.
    pub(crate) fn hold_part(&mut self, at: Descriptor, buf: PinnedBuf) {
        self.parts += 1;
        self.keep(at, buf, Held { token: None, part: true });
    }

    #[inline]
    fn keep(&mut self, at: Descriptor, buf: PinnedBuf, what: Held) {
        let slab = self.slabs.get_mut(at.slab as usize).and_then(Option::as_mut);
        if let Some(held) = slab.and_then(|s| s.held.get_mut(at.block as usize)) {
            *held = Some(what);
            self.held += 1;
            self.out.hold(at, buf);
        }
    }

    /// Whether bytes lie in memory of ours, wherever that is now.
    pub(crate) fn has(&self, buf: &PinnedBuf) -> bool {
        self.find(buf).is_some()
    }

    /// Whether the peer holds anything.
    pub(crate) fn holds_any(&self) -> bool {
        self.held > 0
    }

    /// Copied parts of a message in parts that the peer has.
    pub(crate) fn parts_out(&self) -> usize {
        self.parts
    }

    /// Blocks that somebody has, on this side or the other.
    pub(crate) fn blocks_out(&mut self) -> usize {
        self.slabs.iter_mut().flatten().map(|s| s.blocks - s.free.len()).sum()
    }

    /// Whether there would be `len` bytes if all came back but these blocks, each named once.
    pub(crate) fn could_hold(&self, len: usize, kept: &[(usize, usize)]) -> bool {
        let here = |at: usize| kept.iter().filter(|(slab, _)| *slab == at).count();
        let mut slabs = self.slabs.iter().enumerate();
        slabs.any(|(at, slab)| slab.as_ref().is_some_and(|s| s.block_len >= len && s.blocks > here(at)))
            || self.could_grow(len, |at| here(at) > 0)
    }

    /// Whether there would be room for a further arena for `len` bytes if all idle ones were gone.
    pub(crate) fn could_make(&mut self, len: usize) -> bool {
        let busy: SmallVec<[bool; MAX_SLABS]> =
            self.slabs.iter_mut().map(|s| s.as_mut().is_some_and(|s| !s.is_idle())).collect();
        self.could_grow(len, |at| busy[at])
    }

    /// The same with none but those that stay, and the first.
    fn could_grow(&self, len: usize, stays: impl Fn(usize) -> bool) -> bool {
        let (mut slabs, mut blocks, mut bytes) = (0, 0, 0);
        for (at, slab) in self.slabs.iter().enumerate() {
            if let Some(slab) = slab.as_ref().filter(|_| at == 0 || stays(at)) {
                (slabs, blocks, bytes) = (slabs + 1, blocks + slab.blocks, bytes + slab.bytes as u64);
            }
        }
        let need = len.next_multiple_of(64).next_multiple_of(4096) as u64;
        slabs < MAX_SLABS
            && blocks < MAX_ARENA_BLOCKS as usize
            && need <= self.max_bytes.saturating_sub(bytes)
    }

    /// The peer gave a block back: checks that it had it (M6) and lets it go, now or when all is read that it was sent back
    /// by. The send that waits for it.
    pub(crate) fn take_back(&mut self, back: Return) -> Result<Option<u64>, WireError> {
        let slab = self.slabs.get_mut(back.slab as usize).and_then(Option::as_mut);
        let slab = slab.ok_or_else(|| lie("shm return: arena"))?;
        let held = slab.held.get_mut(back.block as usize).ok_or_else(|| lie("shm return: block"))?;
        if held.is_none() || slab.generations[back.block as usize] != back.generation {
            return Err(lie("shm return: not lent"));
        }
        let Some(buf) = self.out.take_back(back)? else { return Ok(None) };
        Ok(self.let_go(back.slab, back.block.into(), buf))
    }

    /// Lets go of a block that came back before, when all has been read that it was sent back by. The send that waited.
    #[inline]
    pub(crate) fn take_caught_up(&mut self) -> Option<Option<u64>> {
        let (slab, block, buf) = self.out.next_caught_up()?;
        Some(self.let_go(slab, block, buf))
    }

    fn let_go(&mut self, slab: u8, block: u32, buf: PinnedBuf) -> Option<u64> {
        let slab = self.slabs.get_mut(usize::from(slab)).and_then(Option::as_mut)?;
        let (at, held) = (block as usize, slab.held.get_mut(block as usize)?.take()?);
        slab.generations[at] = slab.generations[at].wrapping_add(1);
        self.held -= 1;
        self.parts -= usize::from(held.part);
        // It can be lent again from here on.
        drop(buf);
        held.token
    }

    /// The peer reads nothing any more: nothing is held.
    pub(crate) fn release_all(&mut self) {
        self.slabs.iter_mut().flatten().flat_map(|s| s.held.iter_mut()).for_each(|h| *h = None);
        (self.held, self.parts) = (0, 0);
        self.out.release();
    }

    /// Asks to be woken when a block comes back on this side. Look again afterwards. True: one of a further arena has
    /// since it was asked last.
    pub(crate) fn wait(&self) -> bool {
        self.slabs.iter().take(1).flatten().for_each(|s| _ = s.free.wait());
        self.wait_for_grown()
    }

    /// The same for further arenas alone.
    pub(crate) fn wait_for_grown(&self) -> bool {
        let mut any = false;
        for slab in self.slabs.iter().skip(1).flatten() {
            any |= slab.free.wait();
        }
        any
    }

    /// Whether a block of a further arena has come back since that was asked for.
    pub(crate) fn came_back(&self) -> bool {
        self.slabs.iter().skip(1).flatten().any(|s| s.free.came_back())
    }

    /// Whether an arena may have to be taken away at the next look: a further one of which nobody has a block.
    pub(crate) fn any_idle(&mut self) -> bool {
        self.slabs.iter_mut().skip(1).flatten().any(Slab::is_idle)
    }

    /// Arenas beyond the first.
    pub(crate) fn grown(&self) -> usize {
        self.slabs.iter().skip(1).flatten().count()
    }

    /// Blocks of the size that `len` bytes take.
    fn blocks_for(&self, len: usize) -> usize {
        let same = self.slabs.iter().flatten().filter(|s| s.block_len == block_len(len));
        same.map(|s| s.blocks).sum()
    }

    /// What a further arena for `len` bytes would be; `None` beyond the bounds.
    fn plan(&self, len: usize) -> Option<Grow> {
        let slab = (1..MAX_SLABS).find(|at| self.slabs.get(*at).is_none_or(Option::is_none))?;
        let same = self.blocks_for(len);
        let blocks: usize = self.slabs.iter().flatten().map(|s| s.blocks).sum();
        let spare_blocks = (MAX_ARENA_BLOCKS as usize).saturating_sub(blocks);
        let spare_bytes = self.max_bytes.saturating_sub(self.bytes);
        let mut size = block_len(len);
        if size as u64 > spare_bytes {
            size = len.next_multiple_of(64);
        }
        let count = (GROWTH_BYTES / size).max(same).min(MAX_GROWTH_BYTES / size).clamp(1, MAX_GROWTH_BLOCKS);
        let block_len = u32::try_from(size).ok()?;
        let count = count.min(spare_blocks);
        let fits = |blocks: usize| {
            let grow = Grow { slab: slab as u8, block_len, blocks: blocks as u32 };
            (blocks > 0 && grow.bytes() <= spare_bytes).then_some(grow)
        };
        fits(count).or_else(|| fits(count.min(1)))
    }

    /// Makes a further arena for messages of `len` bytes; `None` when the bounds are reached.
    pub(crate) fn prepare(&self, len: usize) -> io::Result<Option<NewSlab>> {
        let Some(entry) = self.plan(len) else { return Ok(None) };
        let bytes = usize::try_from(entry.bytes()).map_err(io::Error::other)?;
        let region = sys::create(bytes)?;
        let views = self.out.views(false, entry.blocks, bytes);
        let slab = Slab::new(region.clone(), entry.block_len, 0, entry.blocks, &self.waker, views);
        Ok(slab.map(|slab| NewSlab { entry, region, slab }))
    }

    /// Uses a further arena, once it is announced.
    pub(crate) fn install(&mut self, new: NewSlab) {
        let at = new.entry.slab as usize;
        self.bytes += new.slab.bytes as u64;
        self.out.add(new.entry.slab, new.entry.blocks, new.slab.views.clone());
        self.slabs.resize_with(self.slabs.len().max(at + 1), || None);
        self.slabs[at] = Some(new.slab);
    }

    /// Takes an arena away of which no block is in use; with `unused_only`, one that was not used since
    /// the last look. Its index, for the peer.
    pub(crate) fn retire(&mut self, unused_only: bool) -> Option<u8> {
        let idle = |s: &mut Slab| s.is_idle() && !(unused_only && s.used);
        let at = 1 + self.slabs.iter_mut().skip(1).position(|s| s.as_mut().is_some_and(idle))?;
        let gone = self.slabs[at].take()?;
        self.bytes -= gone.bytes as u64;
        self.out.remove(at as u8);
        Some(at as u8)
    }

    /// A look at what is used has been made.
    pub(crate) fn age(&mut self) {
        self.slabs.iter_mut().flatten().for_each(|s| s.used = false);
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layout::BACK;

    fn arena(max: u64) -> Arena {
        let geometry = Geometry::new(32);
        let region = sys::create(geometry.bytes()).unwrap();
        Arena::new(region, geometry, max, Arc::default())
    }

    #[test]
    fn holds_what_is_sent_and_checks_what_comes_back() {
        let mut arena = arena(0);
        let mut buf = arena.take(100).unwrap();
        buf.put_slice(b"hello");
        let buf = buf.freeze();
        let at = arena.locate(&buf.slice(1..)).unwrap();
        assert_eq!((at.offset, at.len), (1, 4));
        assert!(arena.locate(&PinnedBuf::from(vec![1])).is_none());
        let addr = buf.as_ptr();
        arena.hold(at, buf.clone(), Some(7));
        assert!(arena.locate(&buf).is_none() && arena.holds_any());
        drop(buf);
        let back = Return { slab: 0, sent_back: 0, generation: at.generation, block: at.block as u16 };
        for wrong in [
            Return { slab: 9, ..back },
            Return { generation: 5, ..back },
            Return { sent_back: 1, generation: 5, ..back },
            Return { block: 2, ..back },
            Return { block: 9999, ..back },
        ] {
            assert!(arena.take_back(wrong).is_err());
        }
        assert_eq!(arena.take_back(back).unwrap(), Some(7));
        assert!(arena.take_back(back).is_err());
        assert_eq!(arena.take(100).unwrap().as_ptr(), addr, "last in, first out");
        assert_eq!(arena.take(100).unwrap().as_ptr(), addr);
    }

    /// A copied part of a message in parts is out until all has been read that it was sent back by, though only a liar does so.
    #[test]
    fn a_part_that_is_sent_back_is_still_out() {
        let mut arena = arena(0);
        let mut buf = arena.take(100).unwrap();
        buf.put_slice(b"hello");
        let buf = buf.freeze();
        let at = arena.locate(&buf).unwrap();
        arena.hold_part(at, buf);
        let back = Return { slab: 0, sent_back: 1, generation: at.generation, block: at.block as u16 };
        assert_eq!(arena.take_back(back).unwrap(), None);
        assert_eq!((arena.parts_out(), arena.blocks_out()), (1, 1));
        assert!(arena.take_caught_up().is_none() && arena.take_back(back).is_err());
        let (view, caught_up) = arena.out().deliver(&Descriptor { slab: BACK, ..at }, true).unwrap();
        assert!(caught_up && view[..] == *b"hello");
        assert_eq!(arena.take_caught_up(), Some(None));
        assert_eq!((arena.parts_out(), arena.holds_any(), arena.blocks_out()), (0, false, 1));
        drop(view);
        assert_eq!(arena.blocks_out(), 0);
    }

    #[test]
    fn grows_within_its_bound_and_shrinks() {
        let mut arena = arena(2 << 20);
        assert!(arena.take(1 << 20).is_none());
        let new = arena.prepare(1 << 20).unwrap().unwrap();
        assert_eq!((new.entry.block_len, new.entry.blocks), (1 << 20, 1));
        arena.install(new);
        let buf = arena.take(1 << 20).unwrap();
        assert!(arena.prepare(1 << 20).unwrap().is_none(), "beyond the bound");
        assert_eq!(arena.retire(false), None);
        drop(buf);
        assert_eq!(arena.retire(true), None, "just used");
        arena.age();
        assert_eq!(arena.retire(true), Some(1));
        let len = arena.max_len();
        let new = arena.prepare(len).unwrap().unwrap();
        arena.install(new);
        assert!(arena.take(len).is_some());
        assert!(arena.prepare(len + 1).unwrap().is_none());
    }

    #[test]
    fn blocks_waste_at_most_a_quarter() {
        for len in (1..200_000).step_by(97).chain([1 << 20, 10 << 20, (1 << 30) - 1]) {
            let block = block_len(len);
            assert!(block >= len && block.is_multiple_of(64));
            assert!(len <= 4160 || block - len <= len / 4, "{len} {block}");
        }
        assert_eq!(block_len(10 << 20), 10 << 20);
    }
}
