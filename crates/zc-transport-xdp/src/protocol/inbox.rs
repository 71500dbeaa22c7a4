//! Messages that come in: put together, in order, once.
//!
//! A message that lies within one packet is lent where it lies; one of few packets is a rope of them; a longer one is
//! gathered into one buffer of the pool as its packets come. What a peer may make us keep is bounded by the credit that it
//! was given, and each chunk has one place and one length, so there is nothing to overlap.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;
use zc_core::memory::{
    AllocError, BufPool, CopyLedger, CopyPlace, MAX_SEGMENTS, Message, PinnedBuf, PinnedBufMut, copy_payload,
};
use zc_core::transport::{Frame, FrameKind};
use zc_core::wire::frame_credit_bytes;

use super::SessionOptions;
use super::limits::{MAX_HEAP_CHUNK_BYTES, MAX_UNCREDITED_MESSAGES, MAX_WINDOW_MESSAGES};
use super::packet::{ChunkEntry, Malformed};

/// Where received payload goes.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::{BufPool, CopyLedger};
/// use zc_transport_xdp::protocol::Memory;
///
/// let memory = Memory { pool: BufPool::builder().build(), ledger: Arc::new(CopyLedger::new()) };
/// assert_eq!(memory.ledger.snapshot().copied_bytes(), 0);
/// ```
#[derive(Clone)]
pub struct Memory {
    /// Messages that are gathered take their buffer here.
    pub pool: BufPool,
    /// Counts those copies.
    pub ledger: Arc<CopyLedger>,
}

/// The payload of a chunk that came.
pub(super) enum Payload<'a> {
    /// It stays where it is for as long as anybody has it.
    Lent(PinnedBuf),
    /// It is gone once it was looked at.
    Shown(&'a [u8]),
}

impl std::ops::Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Lent(bytes) => bytes,
            Self::Shown(bytes) => bytes,
        }
    }
}

/// What a message keeps of packets: how many slices, and how many bytes of memory those that are lent hold, or more.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    slices: usize,
    lent_bytes: usize,
}

#[derive(Debug)]
enum Body {
    Rope(SmallVec<[Option<PinnedBuf>; 1]>),
    Gathered { buf: PinnedBufMut, came: Box<[u64]> },
}

#[derive(Debug)]
enum Slot {
    Unknown,
    Partial { first: ChunkEntry, left: usize, body: Body, pooled: bool, kept: Kept },
    Done { frame: Frame, kept: Kept, pooled: bool },
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// It is kept, or was before.
    Kept,
    /// There is no room or no memory for it now: its packet must not be acknowledged.
    NoRoom,
    /// The same, for the next message in order, while messages behind it hold memory which only its coming sets free.
    Stuck,
    /// There never will be memory for its message.
    Never,
}

impl From<AllocError> for Stored {
    fn from(error: AllocError) -> Self {
        match error {
            AllocError::Exhausted { .. } => Self::NoRoom,
            AllocError::TooLarge { .. } | AllocError::Os(_) => Self::Never,
        }
    }
}

pub(super) struct Inbox {
    memory: Memory,
    chunk_bytes: usize,
    max_message: u32,
    rope_segments: usize,
    lent_packets: usize,
    max_lent_bytes: usize,
    slots: VecDeque<Slot>,
    /// The message of the first slot.
    next: u64,
    max_slots: usize,
    /// One past the highest message that is known.
    end: u64,
    /// The highest data message that is known, and what it costs.
    last_data: (u64, u64),
    /// What the data messages that are known cost since the start, and how many they are.
    known_cost: u64,
    known_messages: u64,
    /// What the peer may spend in total.
    pub(super) granted_bytes: u64,
    pub(super) granted_messages: u64,
    /// What is kept of packets here.
    kept: Kept,
    /// Messages that are complete and not taken.
    complete: usize,
    /// Messages that cost no credit and are not taken.
    records: usize,
    /// Messages that hold memory of the pool and are not taken.
    pooled: usize,
    /// Parts of longer messages that came.
    pub(super) parts: u64,
}

impl Inbox {
    pub(super) fn new(options: &SessionOptions, memory: Memory, chunk_bytes: usize) -> Self {
        let window_messages = options.window_messages.clamp(1, MAX_WINDOW_MESSAGES);
        Self {
            memory,
            chunk_bytes,
            max_message: options.max_message,
            rope_segments: usize::from(options.rope_segments).clamp(1, MAX_SEGMENTS),
            lent_packets: options.lent_packets as usize,
            max_lent_bytes: options.lent_bytes,
            slots: VecDeque::new(),
            next: 0,
            max_slots: window_messages as usize + MAX_UNCREDITED_MESSAGES,
            end: 0,
            last_data: (0, 0),
            known_cost: 0,
            known_messages: 0,
            granted_bytes: options.window_bytes.max(1).into(),
            granted_messages: window_messages.into(),
            kept: Kept::default(),
            complete: 0,
            records: 0,
            pooled: 0,
            parts: 0,
        }
    }

    /// Messages that were taken.
    pub(super) fn taken(&self) -> u64 {
        self.next
    }

    /// Messages that were taken or can be: where the peer's end is known and this is it, all before it came.
    pub(super) fn complete_to(&self) -> u64 {
        self.next + self.complete as u64
    }

    /// One past the highest message that is known.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The next message in order.
    #[inline]
    pub(super) fn take(&mut self) -> Option<Frame> {
        if !matches!(self.slots.front(), Some(Slot::Done { .. })) {
            return None;
        }
        let Some(Slot::Done { frame, kept, pooled }) = self.slots.pop_front() else { return None };
        self.next += 1;
        self.kept.slices -= kept.slices;
        self.kept.lent_bytes -= kept.lent_bytes;
        self.complete -= 1;
        self.pooled -= usize::from(pooled);
        self.records -= usize::from(frame.kind != FrameKind::Data);
        Some(frame)
    }

    /// Whether the next message in order is whole.
    #[inline]
    pub(super) fn has_next(&self) -> bool {
        matches!(self.slots.front(), Some(Slot::Done { .. }))
    }

    /// The application took so many data messages, of so much cost: the peer may send as much again.
    pub(super) fn release(&mut self, cost_bytes: u64, messages: u64) {
        self.granted_bytes += cost_bytes;
        self.granted_messages += messages;
    }

    /// A chunk came, with a payload of the length that it says.
    pub(super) fn store(&mut self, chunk: ChunkEntry, payload: Payload<'_>) -> Result<Stored, Malformed> {
        let index = self.check(&chunk)?;
        let Some(ahead) = chunk.message.checked_sub(self.next) else { return Ok(Stored::Kept) };
        if ahead >= self.max_slots as u64 {
            return Ok(Stored::NoRoom);
        }
        let at = ahead as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || Slot::Unknown);
        }
        match &mut self.slots[at] {
            Slot::Done { .. } => return Ok(Stored::Kept),
            Slot::Partial { first, .. } => {
                let same = ChunkEntry { offset: first.offset, len: first.len, ..chunk };
                if same != *first {
                    return Err(Malformed("message"));
                }
            }
            Slot::Unknown => {
                self.check_credit(&chunk)?;
                // The next in order may always come: the others wait for it.
                let is_record = chunk.kind != FrameKind::Data;
                if is_record && ahead > 0 && self.records >= MAX_UNCREDITED_MESSAGES {
                    return Ok(Stored::NoRoom);
                }
                let slot = match self.begin(&chunk, ahead == 0) {
                    Ok(slot) => slot,
                    Err(error) => return Ok(self.refused(at, error)),
                };
                self.note(&chunk);
                self.records += usize::from(is_record);
                self.slots[at] = slot;
            }
        }
        Ok(self.put(at, index, payload).unwrap_or_else(|error| self.refused(at, error)))
    }

    /// The message at `at` got no memory, or not all: a rope may hold some in which chunks were copied.
    fn refused(&self, at: usize, error: AllocError) -> Stored {
        let own = matches!(self.slots.front(), Some(Slot::Partial { pooled: true, .. }));
        match error.into() {
            Stored::NoRoom if at == 0 && self.pooled > usize::from(own) => Stored::Stuck,
            other => other,
        }
    }

    /// The chunk's index within its message.
    #[inline]
    fn check(&self, chunk: &ChunkEntry) -> Result<usize, Malformed> {
        let (offset, total) = (chunk.offset as usize, chunk.total as usize);
        let whole = offset.is_multiple_of(self.chunk_bytes)
            && usize::from(chunk.len) == self.chunk_bytes.min(total - offset)
            && (offset < total || total == 0);
        let numbered = (chunk.kind == FrameKind::Data) == (chunk.seq != 0) && (chunk.seq != 0 || !chunk.ack);
        if !whole || chunk.message == u64::MAX {
            Err(Malformed("chunk"))
        } else if total > chunk.kind.max_bytes(self.max_message as usize) {
            Err(Malformed("message length"))
        } else if !numbered {
            Err(Malformed("sequence number"))
        } else {
            Ok(offset / self.chunk_bytes)
        }
    }

    fn cost(chunk: &ChunkEntry) -> u64 {
        if chunk.kind == FrameKind::Data { frame_credit_bytes(chunk.total as usize) } else { 0 }
    }

    /// A new data message may begin while the messages before it cost less than what was granted. Those between may
    /// be unknown as yet, so what is known bounds it from below.
    #[inline]
    fn check_credit(&self, chunk: &ChunkEntry) -> Result<(), Malformed> {
        let cost = Self::cost(chunk);
        if cost == 0 {
            return Ok(());
        }
        let (last, last_cost) = self.last_data;
        let before_last =
            if chunk.message >= last { self.known_cost } else { self.known_cost + cost - last_cost };
        let fits = before_last < self.granted_bytes && self.known_messages < self.granted_messages;
        if fits { Ok(()) } else { Err(Malformed("message beyond the credit")) }
    }

    #[inline]
    fn note(&mut self, chunk: &ChunkEntry) {
        let cost = Self::cost(chunk);
        self.known_cost += cost;
        self.known_messages += u64::from(cost > 0);
        self.end = self.end.max(chunk.message + 1);
        if cost > 0 && chunk.message >= self.last_data.0 {
            self.last_data = (chunk.message, cost);
        }
    }

    fn begin(&mut self, chunk: &ChunkEntry, is_next: bool) -> Result<Slot, AllocError> {
        let total = chunk.total as usize;
        let chunks = total.div_ceil(self.chunk_bytes).max(1);
        let pooled = chunks > self.rope_segments;
        let body = if !pooled {
            Body::Rope(SmallVec::from_elem(None, chunks))
        } else {
            let mut buf = alloc(&self.memory.pool, total, is_next)?;
            self.pooled += 1;
            buf.set_len(total);
            Body::Gathered { buf, came: vec![0; chunks.div_ceil(64)].into() }
        };
        Ok(Slot::Partial { first: *chunk, left: chunks, body, pooled, kept: Kept::default() })
    }

    #[inline]
    fn put(&mut self, at: usize, index: usize, payload: Payload<'_>) -> Result<Stored, AllocError> {
        let may_lend = self.kept.slices < self.lent_packets && self.kept.lent_bytes < self.max_lent_bytes;
        let Slot::Partial { left, body, pooled, kept, .. } = &mut self.slots[at] else {
            return Ok(Stored::Kept);
        };
        match body {
            Body::Rope(places) => {
                if places[index].is_some() {
                    return Ok(Stored::Kept);
                }
                places[index] = Some(match payload {
                    _ if payload.is_empty() => PinnedBuf::default(),
                    Payload::Lent(lent) if may_lend => {
                        let bytes = lent.kept_bytes();
                        kept.lent_bytes += bytes;
                        self.kept.lent_bytes += bytes;
                        lent
                    }
                    other => {
                        let (copy, is_of_pool) = copied_out(&self.memory, &other, at == 0)?;
                        self.pooled += usize::from(is_of_pool && !*pooled);
                        *pooled |= is_of_pool;
                        copy
                    }
                });
                kept.slices += 1;
                self.kept.slices += 1;
            }
            Body::Gathered { buf, came } => {
                let (word, bit) = (&mut came[index / 64], 1 << (index % 64));
                if *word & bit != 0 {
                    return Ok(Stored::Kept);
                }
                *word |= bit;
                let start = index * self.chunk_bytes;
                let place = &mut buf[start..start + payload.len()];
                copy_payload(place, &payload, &self.memory.ledger, CopyPlace::Gather);
            }
        }
        *left -= 1;
        if *left == 0 {
            self.complete(at);
        } else {
            self.parts += 1;
        }
        Ok(Stored::Kept)
    }

    #[inline]
    fn complete(&mut self, at: usize) {
        let taken = std::mem::replace(&mut self.slots[at], Slot::Unknown);
        let Slot::Partial { first, body, pooled, kept, .. } = taken else { return };
        let payload = match body {
            Body::Gathered { buf, .. } => Message::from(buf),
            Body::Rope(places) => rope(places),
        };
        let frame = Frame { kind: first.kind, ack: first.ack, seq: first.seq, payload };
        self.slots[at] = Slot::Done { frame, kept, pooled };
        self.complete += 1;
    }
}

/// The message of all these, none of which is missing.
#[inline]
fn rope(places: SmallVec<[Option<PinnedBuf>; 1]>) -> Message {
    let mut places = places.into_iter().flatten();
    let mut message = Message::from(places.next().unwrap_or_default());
    // No more than the segments of a message, by `rope_segments`.
    let fits = places.all(|segment| message.push(segment).is_ok());
    debug_assert!(fits);
    message
}

/// Memory for what the peer sends. All leave a part of the pool to everything else, and but for the next message in
/// order, which the others wait for, none takes of that part.
fn alloc(pool: &BufPool, len: usize, is_next: bool) -> Result<PinnedBufMut, AllocError> {
    match pool.try_alloc_sparing(len) {
        Err(AllocError::Exhausted { .. }) if is_next => pool.try_alloc(len),
        got => got,
    }
}

/// A copy of what is not lent. When the pool has no memory, what is short goes on the heap: the records of those who hold the
/// memory tell them to let it go. Whether it is the pool's.
fn copied_out(
    memory: &Memory,
    payload: &Payload<'_>,
    is_next: bool,
) -> Result<(PinnedBuf, bool), AllocError> {
    let copy_to = |to: &mut [u8]| copy_payload(to, payload, &memory.ledger, CopyPlace::CopyOut);
    match alloc(&memory.pool, payload.len(), is_next) {
        Ok(mut copy) => {
            copy.set_len(payload.len());
            copy_to(&mut copy);
            Ok((copy.freeze(), true))
        }
        Err(AllocError::Exhausted { .. }) if payload.len() <= MAX_HEAP_CHUNK_BYTES && is_shown(payload) => {
            let mut heap = vec![0; payload.len()];
            copy_to(&mut heap);
            Ok((PinnedBuf::from(heap), false))
        }
        Err(error) => Err(error),
    }
}

fn is_shown(payload: &Payload<'_>) -> bool {
    matches!(payload, Payload::Shown(_))
}
