//! Frames on their way out, and how far each is written.
//!
//! Small frames are put together in stages, buffers of the pool; larger ones are kept by reference.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Deref;

use crate::memory::{BufPool, CopyLedger, Message, PinnedBufMut, copy_inline};
use crate::transport::SendToken;
use crate::wire::FRAME_HEADER_BYTES;
use smallvec::SmallVec;

use super::limits::{MAX_IOV, MAX_STAGES, STAGE_BYTES};

/// A frame by reference.
pub(super) struct Whole {
    pub(super) header: [u8; FRAME_HEADER_BYTES],
    pub(super) payload: Message,
    pub(super) token: SendToken,
    pub(super) zero_copy: bool,
    pub(super) counted: bool,
    pub(super) is_record: bool,
}

enum Item {
    /// Frames put together in a stage.
    Staged {
        /// Stages are numbered from 0.
        stage: u64,
        start: usize,
        end: usize,
        record_bytes: usize,
    },
    Whole(Whole),
}

impl Item {
    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::Staged { start, end, .. } => end - start,
            Self::Whole(w) => FRAME_HEADER_BYTES + w.payload.len(),
        }
    }

    /// How many of them are session records.
    #[inline]
    fn record_bytes(&self) -> usize {
        match self {
            Self::Staged { record_bytes, .. } => *record_bytes,
            Self::Whole(w) => {
                if w.is_record {
                    self.len()
                } else {
                    0
                }
            }
        }
    }
}

/// The pieces of one write, at most [`MAX_IOV`]. They lie in the caller's frame and are not cleared first.
///
/// ```
/// let pieces = zc_core::stream::Pieces::new(); // for `Sending::plan` to fill
/// assert!(pieces.is_empty());
/// ```
#[derive(Default)]
pub struct Pieces<'a>(SmallVec<[IoSlice<'a>; MAX_IOV]>);

impl<'a> Pieces<'a> {
    /// None yet.
    #[inline]
    pub fn new() -> Self {
        Self(SmallVec::new())
    }

    /// Adds what is left of `bytes` after `skip`.
    #[inline]
    fn push(&mut self, bytes: &'a [u8], skip: &mut usize) {
        let gone = (*skip).min(bytes.len());
        *skip -= gone;
        if gone < bytes.len() && self.len() < MAX_IOV {
            self.0.push(IoSlice::new(&bytes[gone..]));
        }
    }
}

impl<'a> Deref for Pieces<'a> {
    type Target = [IoSlice<'a>];

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// How to write the pieces.
///
/// ```
/// let plan = zc_core::stream::Plan::default();
/// assert!(plan.zero_copy.is_none() && !plan.more); // an ordinary write
/// ```
#[derive(Default)]
pub struct Plan<'a> {
    /// The pieces are payload of this frame, to be sent without a copy.
    pub zero_copy: Option<(SendToken, &'a Message)>,
    /// More is queued.
    pub more: bool,
}

#[derive(Default)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    stages: VecDeque<PinnedBufMut>,
    /// The number of the first of them.
    first_stage: u64,
    /// Bytes of the first item that are written.
    offset: usize,
    bytes: usize,
    record_bytes: usize,
}

impl Queue {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of session records; those count until all that shares their stage is written.
    #[inline]
    pub(super) fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Copies a small frame into a stage; false when there is no room and no memory for more.
    #[inline]
    pub(super) fn stage(
        &mut self,
        header: &[u8; FRAME_HEADER_BYTES],
        payload: &Message,
        is_record: bool,
        pool: &BufPool,
        ledger: Option<&CopyLedger>,
    ) -> bool {
        let len = FRAME_HEADER_BYTES + payload.len();
        if self.stages.back().is_none_or(|stage| stage.capacity() - stage.len() < len) {
            if self.stages.len() >= MAX_STAGES {
                return false;
            }
            let Ok(stage) = pool.try_alloc(STAGE_BYTES) else { return false };
            self.stages.push_back(stage);
        }
        let last = self.first_stage + self.stages.len() as u64 - 1;
        let Some(stage) = self.stages.back_mut() else { return false };
        let start = stage.len();
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
        let of_record = if is_record { len } else { 0 };
        self.bytes += len;
        self.record_bytes += of_record;
        match self.items.back_mut() {
            Some(Item::Staged { stage, end, record_bytes, .. }) if *stage == last && *end == start => {
                *end += len;
                *record_bytes += of_record;
            }
            _ => self.items.push_back(Item::Staged {
                stage: last,
                start,
                end: start + len,
                record_bytes: of_record,
            }),
        }
        true
    }

    #[inline]
    pub(super) fn push(&mut self, whole: Whole) {
        let item = Item::Whole(whole);
        self.bytes += item.len();
        self.record_bytes += item.record_bytes();
        self.items.push_back(item);
    }

    #[inline]
    fn staged(&self, stage: u64, start: usize, end: usize) -> &[u8] {
        let stage = self.stages.get((stage - self.first_stage) as usize);
        stage.and_then(|stage| stage.get(start..end)).unwrap_or_default()
    }

    /// All there is, if it lies in one piece: the common case of small messages.
    #[inline]
    pub(super) fn in_one_piece(&self) -> Option<&[u8]> {
        match self.items.front()? {
            Item::Staged { stage, start, end, .. } if self.items.len() == 1 => {
                Some(self.staged(*stage, start + self.offset, *end))
            }
            _ => None,
        }
    }

    /// The next write; the queue is not empty. `zero_copy`: whether it is allowed now.
    #[inline]
    pub(super) fn plan<'a>(&'a self, zero_copy: bool, pieces: &mut Pieces<'a>) -> Plan<'a> {
        pieces.0.clear();
        let mut skip = self.offset;
        for item in &self.items {
            if pieces.len() == MAX_IOV {
                break;
            }
            match item {
                Item::Staged { stage, start, end, .. } => {
                    pieces.push(self.staged(*stage, *start, *end), &mut skip);
                }
                Item::Whole(w) => {
                    pieces.push(&w.header, &mut skip);
                    let alone = w.zero_copy && zero_copy;
                    if alone && !pieces.is_empty() {
                        // The header may not be read after the write: it goes in front, copied.
                        return Plan { zero_copy: None, more: true };
                    }
                    w.payload.segments().iter().for_each(|s| pieces.push(s, &mut skip));
                    if alone {
                        return Plan { zero_copy: Some((w.token, &w.payload)), more: false };
                    }
                }
            }
        }
        Plan::default()
    }

    /// `n` bytes are written; calls `done` for each frame by reference that is out.
    #[inline]
    pub(super) fn written(&mut self, n: usize, mut done: impl FnMut(Whole)) {
        self.bytes -= n;
        self.offset += n;
        while let Some(item) = pop_if(&mut self.items, |item| item.len() <= self.offset) {
            self.offset -= item.len();
            self.record_bytes -= item.record_bytes();
            match item {
                Item::Whole(whole) => done(whole),
                // Those in front of it are written whole.
                Item::Staged { stage, .. } => self.drop_stages(stage),
            }
        }
        if self.items.is_empty() {
            self.drop_stages(self.first_stage + self.stages.len() as u64);
        }
    }

    #[inline]
    fn drop_stages(&mut self, before: u64) {
        while self.first_stage < before {
            self.stages.pop_front();
            self.first_stage += 1;
        }
    }
}

/// Takes the first item if `wanted` says so.
#[inline]
pub(super) fn pop_if<T>(items: &mut VecDeque<T>, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
    if wanted(items.front()?) { items.pop_front() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written_by(queue: &mut Queue, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !queue.is_empty() {
            let mut pieces = Pieces::new();
            queue.plan(false, &mut pieces);
            let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).take(step).collect();
            if let Some(one) = queue.in_one_piece() {
                assert!(one.starts_with(&bytes));
            }
            drop(pieces);
            queue.written(bytes.len(), |_| {});
            all.extend(bytes);
        }
        all
    }

    #[test]
    fn what_goes_in_comes_out_in_any_steps() {
        let pool = BufPool::builder().max_bytes(16 << 20).build();
        for step in [1, 7, 16, 4096, usize::MAX] {
            let (mut queue, mut expect) = (Queue::default(), Vec::new());
            // Several stages, with frames by reference in between.
            for i in 0..400usize {
                let (header, payload) = ([i as u8; FRAME_HEADER_BYTES], vec![!i as u8; i * 2 % 512]);
                expect.extend(header);
                expect.extend(&payload);
                let payload = Message::from(payload);
                if i % 97 == 3 {
                    let token = SendToken(0);
                    queue.push(Whole {
                        header,
                        payload,
                        token,
                        zero_copy: false,
                        counted: true,
                        is_record: false,
                    });
                } else {
                    assert!(queue.stage(&header, &payload, i % 3 == 0, &pool, None));
                }
            }
            assert_eq!(queue.bytes(), expect.len());
            assert!(queue.stages.len() > 1);
            assert!(written_by(&mut queue, step) == expect, "step {step}");
            assert_eq!((queue.bytes(), queue.record_bytes(), pool.stats().in_use_bytes), (0, 0, 0));
        }
    }

    #[test]
    fn stages_are_bounded() {
        let pool = BufPool::builder().max_bytes(64 << 20).build();
        let (mut queue, payload) = (Queue::default(), Message::from(vec![0u8; 496]));
        let most = MAX_STAGES * STAGE_BYTES / 512;
        let taken = (0..2 * most).take_while(|_| queue.stage(&[0; 16], &payload, false, &pool, None)).count();
        assert_eq!(taken, most);
    }
}
