//! Private memory for payloads that came in a slot: blocks cut from larger chunks, so that a message
//! costs one reference count.

use std::sync::Arc;

use zc_core::memory::{FrameTable, PinnedBuf, Region};

use crate::free_list::Stack;
use crate::limits::{SMALL_CHUNK_BYTES, SMALL_CHUNKS};
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
    #[inline]
    pub(crate) fn take(&mut self, len: usize, fill: impl FnOnce(&OwnWords, usize)) -> Option<PinnedBuf> {
        if let State::Some(chunks) = &mut self.0 {
            return chunks.take(len, fill);
        }
        if let State::New = self.0 {
            self.0 = Chunks::new().map_or(State::None, State::Some);
            return self.take(len, fill);
        }
        None
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
        let frames = unsafe { FrameTable::new(region, SMALL_CHUNK_BYTES, SMALL_CHUNKS, stack.home()) }.ok()?;
        let (start, used, whole) = (0, SMALL_CHUNK_BYTES, PinnedBuf::empty());
        Some(Self { frames, stack, words, start, whole, used })
    }

    #[inline]
    fn take(&mut self, len: usize, fill: impl FnOnce(&OwnWords, usize)) -> Option<PinnedBuf> {
        if self.used + len > SMALL_CHUNK_BYTES {
            self.next()?;
        }
        let at = self.used;
        // What overlaps the next block was not handed out yet.
        self.used = (at + len).next_multiple_of(ALIGN);
        fill(&self.words, (self.start + at) / 8);
        Some(self.whole.slice(at..at + len))
    }

    /// Another chunk, or the same if nobody keeps anything of it.
    #[cold]
    fn next(&mut self) -> Option<()> {
        self.whole = PinnedBuf::empty();
        self.used = SMALL_CHUNK_BYTES;
        let index = self.stack.pop()?;
        self.whole = self.frames.lend(index, 0, SMALL_CHUNK_BYTES, None).ok()?;
        (self.start, self.used) = (index as usize * SMALL_CHUNK_BYTES, 0);
        Some(())
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::words::WriteWords;

    #[test]
    fn blocks_keep_their_bytes_and_chunks_are_used_again() {
        let mut small = SmallChunks::default();
        let fill = |n: u64| move |words: &OwnWords, at: usize| words.store_all(at, &[n; 14]);
        let mut kept = Vec::new();
        let mut seed = 0;
        while let Some(buf) = small.take(1 + seed as usize % 112, fill(seed)) {
            kept.push((seed, buf));
            seed += 1;
        }
        assert!(kept.len() > 100 * SMALL_CHUNKS as usize);
        for (seed, buf) in &kept {
            assert!(buf.iter().zip(seed.to_ne_bytes().iter().cycle()).all(|(a, b)| a == b));
        }
        kept.clear();
        let addresses: std::collections::HashSet<_> =
            (0..10_000).map(|n| small.take(112, fill(n)).unwrap().as_ptr().addr()).collect();
        assert_eq!(addresses.len(), SMALL_CHUNK_BYTES / 112, "one chunk does");
    }
}
