//! Private blocks for payloads that travel in a slot, on either side.

use std::sync::Arc;

use zc_core::memory::{FrameTable, PinnedBufMut, Region};

use crate::free_list::Stack;
use crate::limits::{SLOT_BYTES, SMALL_BLOCKS};

/// Blocks of [`SLOT_BYTES`], made at the first use; what they can't hold comes from the pool.
#[derive(Default)]
pub(crate) struct SmallBlocks(State);

#[derive(Default)]
enum State {
    #[default]
    New,
    Some(FrameTable, Stack),
    /// They could not be made.
    None,
}

impl SmallBlocks {
    /// An empty block, or `None` when all are in use.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<PinnedBufMut> {
        if let State::New = self.0 {
            self.0 = make().unwrap_or(State::None);
        }
        match &mut self.0 {
            State::Some(frames, stack) => frames.lend_mut(stack.pop()?, 0).ok(),
            _ => None,
        }
    }
}

fn make() -> Option<State> {
    let region = Region::builder(SLOT_BYTES * SMALL_BLOCKS as usize).name("shm small").build().ok()?;
    let stack = Stack::new(0, SMALL_BLOCKS, Arc::default());
    // SAFETY: the region is new and private to this table (M5).
    let frames = unsafe { FrameTable::new(region, SLOT_BYTES, SMALL_BLOCKS, stack.home()) }.ok()?;
    Some(State::Some(frames, stack))
}
