//! Private memory for payloads that travel in a slot.
//!
//! Of what came, blocks cut from larger chunks, so that a message costs one reference count. For what goes
//! out, any memory does, since it is copied into the slot: blocks of the pool, of which the last one is kept.

use std::sync::Arc;

use zc_core::memory::{BufPool, FrameTable, Message, PinnedBuf, PinnedBufMut, Region};

use crate::free_list::Stack;
use crate::limits::{INLINE_MAX, SMALL_CHUNK_BYTES, SMALL_CHUNKS};
use crate::words::OwnWords;

/// Blocks begin at multiples of so many bytes.
const ALIGN: usize = 16;

/// Chunks, made at the first use; what they can't hold comes from the pool.
#[derive(Default)]
pub(crate) struct SmallChunks(State);

#[derive(Default)]
enum State {
    #[default]
    New,
    Some(Chunks),
    /// They could not be made.
    None,
}

struct Chunks {
    frames: FrameTable,
    stack: Stack,
    /// The same memory, to be filled.
    words: OwnWords,
    /// The chunk in use: its first byte in `words`, all of it, and how much of it is cut off.
    start: usize,
    whole: PinnedBuf,
    used: usize,
}

impl SmallChunks {
    /// Cuts off a block of `len` bytes, more than none, which `fill` writes as words from a word on. `None`
    /// when all chunks are in use.
    #[inline(always)]
    pub(crate) fn take(&mut self, len: usize, fill: impl FnOnce(&OwnWords, usize)) -> Option<PinnedBuf> {
        if let State::New = self.0 {
            self.0 = Chunks::new().map_or(State::None, State::Some);
        }
        match &mut self.0 {
            State::Some(chunks) => chunks.take(len, fill),
            _ => None,
        }
    }
}

impl Chunks {
    #[cold]
    fn new() -> Option<Self> {
        let bytes = SMALL_CHUNK_BYTES * SMALL_CHUNKS as usize;
        let region = Region::builder(bytes).name("shm small").build().ok()?;
        let words = OwnWords::new(&region, bytes);
        let stack = Stack::new(0, SMALL_CHUNKS, Arc::default());
        // SAFETY: the region is new and private to this table. A chunk is lent whole to these `Chunks`, which
        // never look at it through that: its bytes are written before a part that covers them is handed out,
        // and never again while the chunk is lent (M5).
        let frames =
            unsafe { FrameTable::new(region, SMALL_CHUNK_BYTES, SMALL_CHUNKS, stack.home()) }.ok()?;
        let (start, used, whole) = (0, SMALL_CHUNK_BYTES, PinnedBuf::empty());
        Some(Self { frames, stack, words, start, whole, used })
    }

    #[inline(always)]
    fn take(&mut self, len: usize, fill: impl FnOnce(&OwnWords, usize)) -> Option<PinnedBuf> {
        if self.used + len > SMALL_CHUNK_BYTES {
            self.next_chunk()?;
        }
        let at = self.used;
        // What overlaps the next block was not handed out yet.
        self.used = (at + len).next_multiple_of(ALIGN);
        fill(&self.words, (self.start + at) / 8);
        Some(self.whole.slice(at..at + len))
    }

    /// Another chunk, or the same if nobody keeps anything of it.
    #[cold]
    fn next_chunk(&mut self) -> Option<()> {
        self.whole = PinnedBuf::empty();
        self.used = SMALL_CHUNK_BYTES;
        let index = self.stack.pop()?;
        self.whole = self.frames.lend(index, 0, SMALL_CHUNK_BYTES, None).ok()?;
        (self.start, self.used) = (index as usize * SMALL_CHUNK_BYTES, 0);
        Some(())
    }
}

/// Buffers for small messages to be sent. The usual one is filled, sent and at once used again.
pub(crate) struct SmallBuffers {
    pool: BufPool,
    spare: Option<PinnedBufMut>,
    /// Where the one that was made last lies.
    last: usize,
}

impl SmallBuffers {
    pub(crate) fn new(pool: BufPool) -> Self {
        Self { pool, spare: None, last: 0 }
    }

    /// An empty buffer with room for any payload of a slot, unless the pool is exhausted.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<PinnedBufMut> {
        if let Some(spare) = self.spare.take() {
            return Some(spare);
        }
        let buf = self.pool.try_alloc(INLINE_MAX).ok()?;
        self.last = buf.as_ptr().addr();
        Some(buf)
    }

    /// Keeps the buffer of a message that was sent, if it is the last one taken and nobody else has it.
    #[inline]
    pub(crate) fn keep(&mut self, sent: Message) {
        if let [only] = sent.segments()
            && only.as_ptr().addr() == self.last
            && self.spare.is_none()
            && let Some(Ok(mut buf)) = sent.into_segments().next().map(PinnedBuf::try_into_mut)
            && buf.headroom() == 0
            && buf.capacity() >= INLINE_MAX
        {
            buf.clear();
            self.spare = Some(buf);
        }
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::words::WriteWords;

    #[test]
    fn a_buffer_that_was_sent_is_used_again_unless_somebody_has_it() {
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let mut small = SmallBuffers::new(pool.clone());
        let fill = |mut buf: PinnedBufMut| {
            buf.put_slice(b"message");
            (buf.as_ptr().addr(), buf.freeze())
        };
        let (first, sent) = fill(small.take().unwrap());
        small.keep(sent.into());
        let (again, sent) = fill(small.take().unwrap());
        assert_eq!(first, again);
        let kept = sent.clone();
        small.keep(sent.into());
        let (other, part) = fill(small.take().unwrap());
        assert_ne!(other, again);
        small.keep(part.slice(1..).into());
        assert!(small.spare.is_none() && small.take().unwrap().is_empty());
        assert_eq!(&kept[..], b"message");
        drop((kept, part, small));
        assert_eq!(pool.stats().in_use_bytes, 0);
    }

    #[test]
    fn blocks_keep_their_bytes_and_chunks_are_used_again() {
        let mut small = SmallChunks::default();
        let fill = |n: u64, len: usize| {
            move |words: &OwnWords, at: usize| words.store_all(at, &[n; 14][..len.div_ceil(8)])
        };
        let len = |seed: u64| 1 + seed as usize % 112;
        let mut kept = Vec::new();
        let mut seed = 0;
        while let Some(buf) = small.take(len(seed), fill(seed, len(seed))) {
            kept.push((seed, buf));
            seed += 1;
        }
        assert!(kept.len() > 100 * SMALL_CHUNKS as usize);
        for (seed, buf) in &kept {
            assert!(buf.iter().zip(seed.to_ne_bytes().iter().cycle()).all(|(a, b)| a == b));
        }
        kept.clear();
        let addresses: std::collections::HashSet<_> =
            (0..10_000).map(|n| small.take(112, fill(n, 112)).unwrap().as_ptr().addr()).collect();
        assert_eq!(addresses.len(), SMALL_CHUNK_BYTES / 112, "one chunk does");
    }
}
