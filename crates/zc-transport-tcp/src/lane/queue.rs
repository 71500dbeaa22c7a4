//! Frames on their way out, and how far each is written.

use std::collections::VecDeque;
use std::io::IoSlice;

use zc_core::memory::{BufPool, CopyLedger, Message, PinnedBufMut, copy_inline};
use zc_core::transport::SendToken;
use zc_core::wire::FRAME_HEADER_BYTES;

use super::pop_if;
use crate::limits::{MAX_IOV, STAGE_BYTES};

/// A frame by reference.
pub(super) struct Whole {
    pub(super) header: [u8; FRAME_HEADER_BYTES],
    pub(super) payload: Message,
    pub(super) token: SendToken,
    pub(super) zero_copy: bool,
    pub(super) counted: bool,
}

enum Item {
    /// Frames put together in the stage buffer.
    Staged {
        start: usize,
        end: usize,
    },
    Whole(Whole),
}

impl Item {
    fn len(&self) -> usize {
        match self {
            Self::Staged { start, end } => end - start,
            Self::Whole(w) => FRAME_HEADER_BYTES + w.payload.len(),
        }
    }
}

/// One write.
pub(super) struct Plan<'a> {
    pub(super) pieces: [IoSlice<'a>; MAX_IOV],
    pub(super) count: usize,
    /// The pieces are payload of this frame, to be sent without a copy.
    pub(super) zero_copy: Option<&'a Whole>,
    /// More is queued.
    pub(super) more: bool,
}

impl<'a> Plan<'a> {
    fn push(&mut self, mut bytes: &'a [u8], skip: &mut usize) {
        let gone = (*skip).min(bytes.len());
        *skip -= gone;
        bytes = &bytes[gone..];
        if !bytes.is_empty() && self.count < MAX_IOV {
            self.pieces[self.count] = IoSlice::new(bytes);
            self.count += 1;
        }
    }
}

#[derive(Default)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    stage: Option<PinnedBufMut>,
    /// Bytes of the first item that are written.
    offset: usize,
    bytes: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Copies a small frame into the stage; false when there is no room.
    pub(super) fn stage(
        &mut self,
        header: &[u8; FRAME_HEADER_BYTES],
        payload: &Message,
        pool: &BufPool,
        ledger: Option<&CopyLedger>,
    ) -> bool {
        if self.stage.is_none() {
            self.stage = pool.try_alloc(STAGE_BYTES).ok();
        }
        let Some(stage) = &mut self.stage else { return false };
        let (start, len) = (stage.len(), FRAME_HEADER_BYTES + payload.len());
        if stage.capacity() - start < len {
            return false;
        }
        stage.put_slice(header);
        for segment in payload.segments() {
            match ledger {
                Some(ledger) => {
                    copy_inline(&mut stage.unfilled_mut()[..segment.len()], segment, ledger);
                    stage.advance(segment.len());
                }
                None => stage.put_slice(segment),
            }
        }
        self.bytes += len;
        match self.items.back_mut() {
            Some(Item::Staged { end, .. }) if *end == start => *end += len,
            _ => self.items.push_back(Item::Staged { start, end: start + len }),
        }
        true
    }

    pub(super) fn push(&mut self, whole: Whole) {
        let item = Item::Whole(whole);
        self.bytes += item.len();
        self.items.push_back(item);
    }

    /// The next write; the queue is not empty. `zero_copy`: whether it is allowed now.
    pub(super) fn plan(&self, zero_copy: bool) -> Plan<'_> {
        let empty: &[u8] = &[];
        let mut plan =
            Plan { pieces: [IoSlice::new(empty); MAX_IOV], count: 0, zero_copy: None, more: false };
        let mut skip = self.offset;
        for item in &self.items {
            if plan.count == MAX_IOV {
                break;
            }
            match item {
                Item::Staged { start, end } => {
                    let staged = self.stage.as_ref().and_then(|s| s.get(*start..*end)).unwrap_or_default();
                    plan.push(staged, &mut skip);
                }
                Item::Whole(w) => {
                    plan.push(&w.header, &mut skip);
                    if w.zero_copy && zero_copy {
                        if plan.count > 0 {
                            // The header may not be read after the write: it goes in front, copied.
                            plan.more = true;
                            return plan;
                        }
                        plan.zero_copy = Some(w);
                    }
                    w.payload.segments().iter().for_each(|s| plan.push(s, &mut skip));
                    if plan.zero_copy.is_some() {
                        return plan;
                    }
                }
            }
        }
        plan
    }

    /// `n` bytes are written; calls `done` for each frame by reference that is out.
    pub(super) fn written(&mut self, n: usize, mut done: impl FnMut(Whole)) {
        self.bytes -= n;
        self.offset += n;
        while let Some(item) = pop_if(&mut self.items, |item| item.len() <= self.offset) {
            self.offset -= item.len();
            if let Item::Whole(whole) = item {
                done(whole);
            }
        }
        if self.items.is_empty() {
            self.stage = None;
        }
    }
}
