//! The ring of receive buffers: pool memory from which the kernel chooses (`io_uring_register_buf_ring(3)`).
//!
//! ```text
//! page: | addr u64 | len u32 | buffer u16 | tail u16 |  16 bytes for each entry; the tail is the first entry's
//! order:  the entries as they were put in, which is how the kernel takes them
//! ```
//!
//! Without *incremental consumption* a receive takes a whole buffer. With it the kernel fills one buffer bit by bit,
//! for whichever socket has something, and what it has filled is lent as slices while it goes on behind them. A
//! *bundle* is one completion over several buffers, in order.
//!
//! A buffer is let go of when the kernel certainly is done with it: all of it was received into, or
//! the kernel named a later one after a completion that left this one in doubt (the end of a stream may take a
//! buffer and put nothing into it, depending on the kernel).

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering::Release};
use std::task::{Context, Poll, ready};

use smallvec::SmallVec;
use zc_core::memory::{AllocError, AllocWaiter, BufPool, PinnedBuf, PinnedBufMut, Region};

use super::ring::Ring;
use crate::limits::{MAX_RECV_BUFFERS, MAX_TRANSFER_BYTES};

const ENTRY_BYTES: usize = 16;
const LEN_AT: usize = 8;
const BUFFER_AT: usize = 12;
const TAIL_AT: usize = 14;

/// A part of a buffer.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: PinnedBuf,
    /// The same for all pieces of one buffer, and no other's.
    pub(crate) buffer: u64,
}

/// What was received with one completion, in order.
pub(crate) type Pieces = SmallVec<[Piece; 2]>;

/// A buffer that the kernel has.
struct Provided {
    /// Never looked at as a whole: the kernel may be writing to what is not lent (M5).
    whole: PinnedBuf,
    /// Its place in the order.
    place: u64,
    filled_bytes: usize,
    /// The kernel named it and put nothing into it: it may be done with it, or not.
    in_doubt: bool,
}

/// How many buffers the kernel can choose from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BufferCounts {
    pub(crate) provided: usize,
    pub(crate) missing: usize,
}

/// A ring of buffers, and what is in it.
pub(crate) struct Buffers {
    page: Region,
    group: u16,
    buffer_bytes: usize,
    incremental: bool,
    tail: u16,
    /// By the number under which the kernel knows them.
    provided: Vec<Option<Provided>>,
    missing: Vec<u16>,
    /// The numbers in the order they were put in; `None` for those that are over.
    order: VecDeque<Option<u16>>,
    /// The place of the first of them.
    first_place: u64,
    pool: BufPool,
    waiter: AllocWaiter,
}

impl Buffers {
    /// Registers an empty ring for `count` buffers, rounded up to a power of two.
    pub(crate) fn new(
        ring: &Ring,
        pool: &BufPool,
        group: u16,
        count: u16,
        buffer_bytes: usize,
        incremental: bool,
    ) -> io::Result<Self> {
        let count = count.clamp(1, MAX_RECV_BUFFERS).next_power_of_two();
        let page = Region::builder(usize::from(count) * ENTRY_BYTES).name("zc receive buffers").build();
        let page = page.map_err(io::Error::other)?;
        // SAFETY: the region is ours alone, page aligned and long enough. `self` keeps it, and `Flights` keeps `self` until
        // nothing is in flight or the ring is gone (M2); the kernel pins the pages besides.
        unsafe { ring.register_buffers(page.base_mut().as_ptr(), count, group, incremental) }?;
        Ok(Self::on(page, pool, group, count, buffer_bytes, incremental))
    }

    fn on(
        page: Region,
        pool: &BufPool,
        group: u16,
        count: u16,
        buffer_bytes: usize,
        incremental: bool,
    ) -> Self {
        Self {
            page,
            group,
            buffer_bytes: buffer_bytes.clamp(1, MAX_TRANSFER_BYTES),
            incremental,
            tail: 0,
            provided: (0..count).map(|_| None).collect(),
            missing: (0..count).rev().collect(),
            order: VecDeque::with_capacity(count.into()),
            first_place: 0,
            pool: pool.clone(),
            waiter: AllocWaiter::new(),
        }
    }

    pub(crate) fn group(&self) -> u16 {
        self.group
    }

    pub(crate) fn counts(&self) -> BufferCounts {
        let missing = self.missing.len();
        BufferCounts { provided: self.provided.len() - missing, missing }
    }

    /// Gives the kernel a buffer for each that is missing. Pending: the pool has no more for now; `cx` is woken
    /// when it has.
    pub(crate) fn poll_provide(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AllocError>> {
        let before = self.tail;
        let done = self.poll_fill(cx);
        if self.tail != before {
            self.publish();
        }
        done
    }

    /// Nobody wants to receive: others who wait for memory come first.
    pub(crate) fn stop_waiting(&mut self) {
        if self.waiter.is_queued() {
            self.waiter = AllocWaiter::new();
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AllocError>> {
        while let Some(number) = self.missing.last().copied() {
            // Where there are some already, others that wait for memory come first.
            let buf = match self.counts().provided {
                0 => ready!(self.pool.poll_alloc(self.buffer_bytes, &mut self.waiter, cx))?,
                _ => match self.pool.try_alloc_spare(self.buffer_bytes) {
                    Ok(buf) => buf,
                    Err(AllocError::Exhausted { .. }) => return Poll::Ready(Ok(())),
                    Err(error) => return Poll::Ready(Err(error)),
                },
            };
            self.missing.pop();
            self.provide(number, buf);
        }
        Poll::Ready(Ok(()))
    }

    fn provide(&mut self, number: u16, mut buf: PinnedBufMut) {
        let addr = buf.unfilled_mut().as_mut_ptr();
        buf.set_len(self.buffer_bytes);
        let index = usize::from(self.tail) & (self.provided.len() - 1);
        // SAFETY: `index` is below the count of entries, for which the region has room. The entry is not
        // between head and tail, since each number is in the ring at most once, so the kernel does not look at it. The
        // last two bytes of the first entry, the tail, are not touched (M1).
        unsafe {
            let entry = self.page.base_mut().add(index * ENTRY_BYTES);
            entry.cast::<u64>().write_volatile(addr as u64);
            entry.add(LEN_AT).cast::<u32>().write_volatile(self.buffer_bytes as u32);
            entry.add(BUFFER_AT).cast::<u16>().write_volatile(number);
        }
        self.tail = self.tail.wrapping_add(1);
        // Frozen as a whole: the kernel writes only where nothing was lent, and nobody looks there (M5).
        let place = self.first_place + self.order.len() as u64;
        self.order.push_back(Some(number));
        let whole = buf.freeze();
        self.provided[usize::from(number)] =
            Some(Provided { whole, place, filled_bytes: 0, in_doubt: false });
    }

    /// Shows the kernel what was put in.
    fn publish(&mut self) {
        // SAFETY: the tail lies at this place of the region, aligned, and is only ever accessed as an atomic.
        let tail = unsafe { AtomicU16::from_ptr(self.page.base_mut().add(TAIL_AT).cast().as_ptr()) };
        tail.store(self.tail, Release);
    }

    /// What a completion of `len` bytes that begins in buffer `number` brought; `more`: the kernel goes on with the
    /// last of them. `None`: it names what it does not have.
    pub(crate) fn take(&mut self, number: u16, len: usize, more: bool) -> Option<Pieces> {
        let first = self.provided.get(usize::from(number))?.as_ref()?.place;
        self.settle_doubts(first);
        let mut pieces = Pieces::new();
        let mut left = len;
        let mut place = first;
        while left > 0 {
            let index = usize::try_from(place - self.first_place).ok()?;
            let number = (*self.order.get(index)?)?;
            let provided = self.provided[usize::from(number)].as_mut()?;
            let begin = provided.filled_bytes;
            let n = left.min(self.buffer_bytes - begin);
            pieces.push(Piece { bytes: provided.whole.slice(begin..begin + n), buffer: place });
            provided.filled_bytes += n;
            provided.in_doubt = false;
            left -= n;
            place += 1;
            if !self.incremental || provided.filled_bytes == self.buffer_bytes {
                // `first_place` moves only when what is first goes, so take it anew in each round.
                self.retire(number);
            } else if left == 0 {
                provided.in_doubt = !more;
            }
        }
        if len == 0
            && let Some(Some(provided)) = self.provided.get_mut(usize::from(number))
        {
            provided.in_doubt = !more;
        }
        Some(pieces)
    }

    /// The kernel has come to `place`: those in doubt in front of it are over.
    fn settle_doubts(&mut self, place: u64) {
        let in_front = usize::try_from(place - self.first_place).unwrap_or(0);
        for index in 0..in_front {
            let Some(Some(number)) = self.order.get(index).copied() else { continue };
            if self.provided[usize::from(number)].as_ref().is_some_and(|provided| provided.in_doubt) {
                self.retire_in_place(number, index);
            }
        }
        self.shorten();
    }

    fn retire(&mut self, number: u16) {
        if let Some(provided) = &self.provided[usize::from(number)] {
            let index = (provided.place - self.first_place) as usize;
            self.retire_in_place(number, index);
        }
        self.shorten();
    }

    fn retire_in_place(&mut self, number: u16, index: usize) {
        self.provided[usize::from(number)] = None;
        self.order[index] = None;
        self.missing.push(number);
    }

    fn shorten(&mut self) {
        while let Some(None) = self.order.front() {
            self.order.pop_front();
            self.first_place += 1;
        }
    }
}
