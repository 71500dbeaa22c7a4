//! Frames on their way out, and how far each is written.
//!
//! Small frames are put together in stages, buffers of the pool; larger ones are kept by reference.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Deref;

use crate::memory::{BufPool, CopyLedger, MAX_SEGMENTS, Message, PinnedBuf, PinnedBufMut, copy_inline};
use crate::transport::{Piped, SendToken};
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
    /// A frame whose payload waits in a pipe.
    Piped {
        header: [u8; FRAME_HEADER_BYTES],
        payload: Piped,
    },
}

impl Item {
    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::Staged { start, end, .. } => end - start,
            Self::Whole(w) => FRAME_HEADER_BYTES + w.payload.len(),
            Self::Piped { payload, .. } => FRAME_HEADER_BYTES + payload.len(),
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
            Self::Piped { .. } => 0,
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
    /// Instead of pieces: so many bytes of this pipe are to be moved to the stream.
    pub pipe: Option<(&'a Piped, usize)>,
    /// More is queued.
    pub more: bool,
}

/// Where small frames are put together.
enum Stage {
    /// More may be appended.
    Open(PinnedBufMut),
    /// Given away as it is: parts of it are under way, and nothing is appended.
    Frozen(PinnedBuf),
}

impl Stage {
    #[inline]
    fn open(&mut self) -> Option<&mut PinnedBufMut> {
        match self {
            Self::Open(buf) => Some(buf),
            Self::Frozen(_) => None,
        }
    }

    #[inline]
    fn filled(&self) -> &[u8] {
        match self {
            Self::Open(buf) => buf,
            Self::Frozen(buf) => buf,
        }
    }

    /// A part of it, to be kept for as long as it takes.
    #[inline]
    fn share(&mut self, start: usize, end: usize) -> PinnedBuf {
        if let Self::Open(_) = self
            && let Self::Open(buf) = std::mem::replace(self, Self::Frozen(PinnedBuf::empty()))
        {
            *self = Self::Frozen(buf.freeze());
        }
        match self {
            Self::Frozen(buf) => buf.slice(start..end),
            Self::Open(_) => PinnedBuf::empty(),
        }
    }
}

#[derive(Default)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    stages: VecDeque<Stage>,
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
        let has_room = |stage: &mut PinnedBufMut| stage.capacity() - stage.len() >= len;
        if !self.stages.back_mut().and_then(Stage::open).is_some_and(has_room) {
            if self.stages.len() >= MAX_STAGES {
                return false;
            }
            let Ok(stage) = pool.try_alloc(STAGE_BYTES) else { return false };
            self.stages.push_back(Stage::Open(stage));
        }
        let last = self.first_stage + self.stages.len() as u64 - 1;
        let Some(stage) = self.stages.back_mut().and_then(Stage::open) else { return false };
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
    pub(super) fn push_piped(&mut self, header: [u8; FRAME_HEADER_BYTES], payload: Piped) {
        let item = Item::Piped { header, payload };
        self.bytes += item.len();
        self.items.push_back(item);
    }

    #[inline]
    fn staged(&self, stage: u64, start: usize, end: usize) -> &[u8] {
        let stage = self.stages.get((stage - self.first_stage) as usize);
        stage.and_then(|stage| stage.filled().get(start..end)).unwrap_or_default()
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
                        return Plan { more: true, ..Plan::default() };
                    }
                    w.payload.segments().iter().for_each(|s| pieces.push(s, &mut skip));
                    if alone {
                        return Plan { zero_copy: Some((w.token, &w.payload)), ..Plan::default() };
                    }
                }
                Item::Piped { header, payload } => {
                    pieces.push(header, &mut skip);
                    if !pieces.is_empty() {
                        return Plan { more: true, ..Plan::default() };
                    }
                    // It is the first, and its header is out.
                    let left = FRAME_HEADER_BYTES + payload.len() - self.offset;
                    return Plan {
                        pipe: Some((payload, left)),
                        more: self.items.len() > 1,
                        ..Plan::default()
                    };
                }
            }
        }
        Plan::default()
    }

    /// What goes out next, into `batch`, which is empty: at most [`MAX_SEGMENTS`] pieces and about `max_bytes`. All of it
    /// stays queued until it is [`written`](Self::written). `zero_copy` as for [`plan`](Self::plan): such a payload is
    /// alone in its batches. Of a frame in a pipe there is the header, at the end of a batch. Whether it ends with a header whose
    /// payload follows at once, by other means.
    pub(super) fn batch(
        &mut self,
        max_bytes: usize,
        zero_copy: bool,
        pool: &BufPool,
        batch: &mut Message,
    ) -> bool {
        let mut headers = self.headers(max_bytes, pool);
        let Self { items, stages, first_stage, offset, .. } = self;
        let mut cut = Cut { skip: *offset, room_bytes: max_bytes, batch };
        for item in items {
            let goes_on = match item {
                Item::Staged { stage, start, end, .. } => {
                    let stage = stages.get_mut((*stage - *first_stage) as usize);
                    stage.is_none_or(|stage| cut.push(&stage.share(*start, *end)))
                }
                Item::Whole(_) | Item::Piped { .. } if headers.is_empty() => false,
                Item::Piped { .. } => {
                    cut.push(&headers.split_to(FRAME_HEADER_BYTES));
                    return true;
                }
                Item::Whole(w) => {
                    let header = headers.split_to(FRAME_HEADER_BYTES);
                    let alone = w.zero_copy && zero_copy;
                    let goes_on = cut.push(&header);
                    if alone && !cut.batch.is_empty() {
                        return true;
                    }
                    goes_on && w.payload.segments().iter().all(|s| cut.push(s)) && !alone
                }
            };
            if !goes_on {
                break;
            }
        }
        false
    }

    /// The headers of the frames by reference, or in a pipe, that a batch may take, in memory that can be given away.
    fn headers(&self, max_bytes: usize, pool: &BufPool) -> PinnedBuf {
        let mut bytes = SmallVec::<[u8; 8 * FRAME_HEADER_BYTES]>::new();
        let (mut segments, mut ahead) = (0, 0);
        for item in &self.items {
            let is_full = segments >= MAX_SEGMENTS || ahead >= max_bytes.saturating_add(self.offset);
            if is_full {
                break;
            }
            segments += 1;
            ahead += item.len();
            match item {
                Item::Staged { .. } => {}
                Item::Whole(w) => {
                    segments += w.payload.segments().len();
                    bytes.extend_from_slice(&w.header);
                }
                Item::Piped { header, .. } => {
                    bytes.extend_from_slice(header);
                    break;
                }
            }
        }
        if bytes.is_empty() {
            return PinnedBuf::empty();
        }
        match pool.try_alloc(bytes.len()) {
            Ok(mut buf) => {
                buf.put_slice(&bytes);
                buf.freeze()
            }
            Err(_) => bytes.into_vec().into(),
        }
    }

    /// `n` bytes are written; calls `done` for each frame by reference that is out, and `emptied` for each pipe.
    #[inline]
    pub(super) fn written(&mut self, n: usize, mut done: impl FnMut(Whole), mut emptied: impl FnMut(Piped)) {
        self.bytes -= n;
        self.offset += n;
        while let Some(item) = pop_if(&mut self.items, |item| item.len() <= self.offset) {
            self.offset -= item.len();
            self.record_bytes -= item.record_bytes();
            match item {
                Item::Whole(whole) => done(whole),
                Item::Piped { payload, .. } => emptied(payload),
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

/// A batch in the making.
struct Cut<'a> {
    /// Bytes that are written already.
    skip: usize,
    room_bytes: usize,
    batch: &'a mut Message,
}

impl Cut<'_> {
    /// Adds what is left of a piece; false when the batch is full.
    #[inline]
    fn push(&mut self, piece: &PinnedBuf) -> bool {
        let gone = self.skip.min(piece.len());
        self.skip -= gone;
        let end = piece.len().min(gone.saturating_add(self.room_bytes));
        self.room_bytes -= end - gone;
        self.batch.push(piece.slice(gone..end)).is_ok() && self.room_bytes > 0
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
            queue.written(bytes.len(), |_| {}, |_| {});
            all.extend(bytes);
        }
        all
    }

    /// The same by batches of `step` bytes, of which all or a part is written.
    fn batched_by(queue: &mut Queue, step: usize, pool: &BufPool) -> Vec<u8> {
        let mut all = Vec::new();
        let mut batch = Message::new();
        while !queue.is_empty() {
            queue.batch(step, false, pool, &mut batch);
            assert!(!batch.is_empty() && batch.len() <= step);
            let n = batch.len().min(step.div_ceil(2).max(1));
            all.extend(batch.segments().iter().flat_map(|piece| piece.iter().copied()).take(n));
            batch.clear();
            queue.written(n, |_| {}, |_| {});
        }
        all
    }

    #[test]
    fn what_goes_in_comes_out_in_any_steps() {
        let pool = BufPool::builder().max_bytes(16 << 20).build();
        for (step, batched) in
            [1, 7, 16, 4096, usize::MAX].into_iter().flat_map(|step| [(step, false), (step, true)])
        {
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
            let out =
                if batched { batched_by(&mut queue, step, &pool) } else { written_by(&mut queue, step) };
            assert!(out == expect, "step {step}, batched {batched}");
            assert_eq!((queue.bytes(), queue.record_bytes(), pool.stats().in_use_bytes), (0, 0, 0));
        }
    }

    fn piped(content: &[u8]) -> Piped {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let pool = std::sync::Arc::new(crate::transport::PipePool::new(64 << 10, 1));
        let share = crate::transport::PipeShare::new(&pool, 1);
        let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(Some(pipe)) = share.poll_take(cx) else { panic!("no pipe") };
        pipe.fill(&file, 0, content.len()).unwrap()
    }

    #[test]
    fn pipes_go_out_between_others_each_behind_its_header() {
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        for step in [1, 7, 16, 300, usize::MAX] {
            let (mut queue, mut expect, mut emptied) = (Queue::default(), Vec::new(), 0);
            for i in 0..12u8 {
                let (header, payload) = ([i; FRAME_HEADER_BYTES], vec![!i; 100 * (1 + i as usize)]);
                expect.extend(header);
                expect.extend(&payload);
                match i % 3 {
                    0 => assert!(queue.stage(&header, &payload.into(), false, &pool, None)),
                    _ => queue.push_piped(header, piped(&payload)),
                }
            }
            assert_eq!(queue.bytes(), expect.len());
            let mut all = Vec::new();
            while !queue.is_empty() {
                let (mut pieces, before) = (Pieces::new(), all.len());
                let plan = queue.plan(true, &mut pieces);
                match plan.pipe {
                    Some((piped, left)) => {
                        assert!(pieces.is_empty());
                        let mut bytes = vec![0; left.min(step)];
                        let n = rustix::io::read(piped.source(), &mut bytes).unwrap();
                        assert_eq!(n, bytes.len(), "all that is left is there");
                        all.extend(bytes);
                    }
                    None => all.extend(pieces.iter().flat_map(|piece| piece.iter().copied()).take(step)),
                }
                // The next header, for instance: only then does the kernel send what it has.
                assert!(plan.more || all.len() == expect.len() || all.len() - before == step);
                drop(pieces);
                queue.written(
                    all.len() - before,
                    |_| {},
                    |payload| {
                        payload.emptied();
                        emptied += 1;
                    },
                );
            }
            assert!(all == expect, "step {step}");
            assert_eq!(emptied, 8);
        }
    }

    /// A payload that goes out of its own memory is alone, behind its header; of one in a pipe a batch has the header.
    #[test]
    fn a_batch_ends_where_another_way_begins() {
        let pool = BufPool::builder().max_bytes(16 << 20).build();
        let mut queue = Queue::default();
        assert!(queue.stage(&[1; 16], &Message::from(vec![1; 100]), false, &pool, None));
        let (payload, token) = (Message::from(vec![2; 5000]), SendToken(1));
        let zero_copy = true;
        queue.push(Whole { header: [2; 16], payload, token, zero_copy, counted: true, is_record: false });
        queue.push_piped([3; 16], piped(&[3; 700]));
        queue.push_piped([4; 16], piped(&[4; 10]));
        // Bytes of batches, of which the last is in the pipe.
        for (len, first) in [(132, 1), (3000, 2), (2000, 2), (16, 3)] {
            let mut batch = Message::new();
            let more = queue.batch(if first == 2 { 3000 } else { usize::MAX }, true, &pool, &mut batch);
            assert_eq!((batch.len(), batch.segments()[0][0]), (len, first));
            // Headers do not travel alone, before their payload.
            assert_eq!(more, first != 2, "{len}");
            queue.written(len, |_| {}, |_| {});
        }
        queue.written(700, |_| {}, Piped::emptied);
        // Without leave it goes with the others, a header that is cut in the middle, too.
        let mut batch = Message::new();
        assert!(queue.batch(5, true, &pool, &mut batch));
        assert_eq!(batch.len(), 5);
        queue.written(5, |_| {}, |_| {});
        batch.clear();
        queue.batch(usize::MAX, false, &pool, &mut batch);
        assert_eq!(batch.len(), 11);
    }

    /// What flies stays as it is while more is queued, and more goes into a stage of its own.
    #[test]
    fn a_batch_is_not_touched_by_what_comes_later() {
        let pool = BufPool::builder().max_bytes(16 << 20).build();
        let (mut queue, mut batch) = (Queue::default(), Message::new());
        assert!(queue.stage(&[1; 16], &Message::from(vec![1; 100]), false, &pool, None));
        assert!(!queue.batch(usize::MAX, false, &pool, &mut batch));
        assert!(queue.stage(&[2; 16], &Message::from(vec![2; 100]), false, &pool, None));
        assert_eq!((batch.len(), queue.bytes(), queue.stages.len()), (116, 232, 2));
        assert!(batch.segments()[0].iter().all(|byte| *byte == 1));
        queue.written(116, |_| {}, |_| {});
        batch.clear();
        queue.batch(usize::MAX, false, &pool, &mut batch);
        assert!(batch.len() == 116 && batch.segments()[0].iter().all(|byte| *byte == 2));
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
