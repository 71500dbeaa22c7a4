//! Frames, and who has them.
//!
//! ```text
//!            fill                       receive                  drop
//! free --------------> with a port ----------------> out -----------------> free
//!   |                                                 ^
//!   +------------------- allocate --------------------+      (transmitted frames stay out until completed)
//! ```
//!
//! Every port (a bound socket) reserves as many frames as its fill ring is kept stocked with. Those can't go out by
//! allocation, nor be reserved while they are out, and what is received beyond is copied by the device. So `out` never
//! exceeds what is not reserved but by the packet in hand: a fill ring can always be stocked, however much the application
//! holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use zc_core::memory::{FrameTable, LendError, PinnedBuf, PinnedBufMut, Reclaim, Region};

// Who has a frame. Larger values are ports.
const FREE: u32 = 0;
const OUT: u32 = 1;
const FIRST_PORT: u32 = 2;

/// How many frames are out, and how many ports have reserved: one word, so that both are counted at the same moment.
#[derive(Default)]
struct Shares(AtomicU64);

#[derive(Clone, Copy)]
struct Share {
    out: u32,
    reserved: u32,
}

const ONE_RESERVED: u64 = 1 << 32;

impl Share {
    fn of(word: u64) -> Self {
        Self { out: word as u32, reserved: (word >> 32) as u32 }
    }

    /// How many may be out.
    fn max_out(self, count: u32) -> u32 {
        count.saturating_sub(self.reserved)
    }
}

impl Shares {
    fn load(&self) -> Share {
        Share::of(self.0.load(Ordering::Relaxed))
    }

    /// One more is out, if that may be.
    fn one_out(&self, may: impl Fn(Share) -> bool) -> bool {
        let more = |word| may(Share::of(word)).then_some(word + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn one_back(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Others are reserved, if that may be.
    fn reserve(&self, frames: u32, may: impl Fn(Share) -> bool) -> bool {
        let more = |word| may(Share::of(word)).then(|| word + u64::from(frames) * ONE_RESERVED);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn unreserve(&self, frames: u32) {
        self.0.fetch_sub(u64::from(frames) * ONE_RESERVED, Ordering::Relaxed);
    }
}

/// Frames that nobody has. What was received in lies in the caches of whoever put it there, so others are written to, if there are any:
/// they are still where they were written before. Neither list is ever longer than there are frames, so none grows.
struct Free {
    received_in: Vec<u32>,
    written_to: Vec<u32>,
}

impl Free {
    fn one_to_write(&mut self) -> Option<u32> {
        self.written_to.pop().or_else(|| self.received_in.pop())
    }

    fn one_to_receive(&mut self) -> Option<u32> {
        self.received_in.pop().or_else(|| self.written_to.pop())
    }
}

struct Frames {
    holders: Box<[AtomicU32]>,
    /// What each was used for last.
    was_written_to: Box<[AtomicBool]>,
    free: Mutex<Free>,
    shares: Shares,
}

impl Frames {
    /// A frame passes from one to the other; false if it was not there.
    fn pass(&self, index: u32, from: u32, to: u32) -> bool {
        let Some(holder) = self.holders.get(index as usize) else { return false };
        holder.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn count(&self) -> u32 {
        self.holders.len() as u32
    }
}

impl Reclaim for Frames {
    fn reclaim(&self, index: u32) {
        if self.pass(index, OUT, FREE) {
            let was_written_to =
                self.was_written_to.get(index as usize).is_some_and(|was| was.load(Ordering::Relaxed));
            let mut free = self.free.lock();
            if was_written_to { &mut free.written_to } else { &mut free.received_in }.push(index);
            drop(free);
            self.shares.one_back();
        }
    }
}

struct Shared {
    table: FrameTable,
    frames: Arc<Frames>,
    region: Region,
    chunk_bytes: u32,
    next_port: AtomicU32,
    /// Frames that a kernel may still read although their port is gone; kept for as long as the rest (M4).
    kept: Mutex<Vec<PinnedBuf>>,
}

/// Memory for packets: equal frames of one region, which several sockets may use.
#[derive(Clone)]
pub(crate) struct Umem(Arc<Shared>);

impl Umem {
    /// Makes the memory. The region is made here, so that nobody else has it.
    pub(crate) fn new(
        make: impl FnOnce() -> Result<Region, zc_core::memory::RegionError>,
        chunk_bytes: u32,
        count: u32,
    ) -> Result<Self, zc_core::memory::RegionError> {
        let region = make()?;
        let frames = Arc::new(Frames {
            holders: (0..count).map(|_| AtomicU32::new(FREE)).collect(),
            // The first ones are at the end, and so the first to be taken.
            free: Mutex::new(Free {
                received_in: (0..count).rev().collect(),
                written_to: Vec::with_capacity(count as usize),
            }),
            was_written_to: (0..count).map(|_| AtomicBool::new(false)).collect(),
            shares: Shares::default(),
        });
        let bad =
            |_: LendError| zc_core::memory::RegionError::BadLength(chunk_bytes as usize * count as usize);
        // SAFETY: whoever made the region hands it over here, and bytes of it are reached through this table only. The
        // kernel writes a frame while a port has it, and reads one that is in flight; it is not lent then, or only
        // for reading (M1, M2, M5).
        let table = unsafe { FrameTable::new(region.clone(), chunk_bytes as usize, count, frames.clone()) }
            .map_err(bad)?;
        let next_port = AtomicU32::new(FIRST_PORT);
        let kept = Mutex::default();
        Ok(Self(Arc::new(Shared { table, frames, region, chunk_bytes, next_port, kept })))
    }

    pub(crate) fn region(&self) -> &Region {
        &self.0.region
    }

    pub(crate) fn chunk_bytes(&self) -> u32 {
        self.0.chunk_bytes
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.frames.count()
    }

    /// How many frames are with the application, or on their way out.
    pub(crate) fn out(&self) -> u32 {
        self.0.frames.shares.load().out
    }

    pub(crate) fn max_out(&self) -> u32 {
        self.0.frames.shares.load().max_out(self.count())
    }

    /// How many are neither out nor reserved.
    pub(crate) fn unclaimed(&self) -> u32 {
        let share = self.0.frames.shares.load();
        share.max_out(self.count()).saturating_sub(share.out)
    }

    /// A number for a port, and frames set aside for it. `None`: as many are not there, or nothing would be left for the
    /// application.
    pub(crate) fn reserve(&self, frames: u32) -> Option<u32> {
        let count = u64::from(self.count());
        let fits = |share: Share| {
            let reserved = u64::from(share.reserved) + u64::from(frames);
            reserved < count && reserved + u64::from(share.out) <= count
        };
        let is_reserved = self.0.frames.shares.reserve(frames, fits);
        is_reserved.then(|| self.0.next_port.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn unreserve(&self, frames: u32) {
        self.0.frames.shares.unreserve(frames);
    }

    /// A frame to be written, if there is one that is not reserved.
    pub(crate) fn allocate(&self, headroom: usize) -> Option<PinnedBufMut> {
        let frames = &self.0.frames;
        if !frames.shares.one_out(|share| share.out < share.max_out(frames.count())) {
            return None;
        }
        let index = frames.free.lock().one_to_write();
        let lent = index.and_then(|index| {
            frames.pass(index, FREE, OUT);
            frames.was_written_to[index as usize].store(true, Ordering::Relaxed);
            self.0.table.lend_mut(index, headroom).ok()
        });
        if lent.is_none() {
            frames.shares.one_back();
        }
        lent
    }

    /// Passes up to `wanted` free frames to a port; `put` gets the place of each. How many.
    pub(super) fn pass_to_port(&self, port: u32, wanted: u32, mut put: impl FnMut(u64)) -> u32 {
        let mut free = self.0.frames.free.lock();
        let mut count = 0;
        while count < wanted
            && let Some(index) = free.one_to_receive()
        {
            self.0.frames.pass(index, FREE, port);
            self.0.frames.was_written_to[index as usize].store(false, Ordering::Relaxed);
            put(u64::from(index) * u64::from(self.0.chunk_bytes));
            count += 1;
        }
        count
    }

    /// Takes what a port's socket has received: `None` if that port did not have the frame, or the bytes do not lie in
    /// it (M6). The flag says that more frames are out now than may be.
    pub(super) fn take_from_port(&self, port: u32, place: u64, len: u32) -> Option<(PinnedBufMut, bool)> {
        let chunk = u64::from(self.0.chunk_bytes);
        let index = u32::try_from(place / chunk).ok()?;
        let offset = place % chunk;
        let frames = &self.0.frames;
        if offset + u64::from(len) > chunk || !frames.pass(index, port, OUT) {
            return None;
        }
        let before = Share::of(frames.shares.0.fetch_add(1, Ordering::Relaxed));
        let is_over = before.out >= before.max_out(frames.count());
        // It was with the port, so nobody has it: this does not fail.
        let mut frame = self.0.table.lend_mut(index, offset as usize).ok()?;
        frame.set_len(len as usize);
        Some((frame, is_over))
    }

    /// Which frame a segment lies in, and where in this memory: `None` if it lies elsewhere.
    pub(super) fn place_of(&self, segment: &PinnedBuf) -> Option<(u32, u64)> {
        let (region, place) = segment.place()?;
        if region.id() != self.0.region.id() {
            return None;
        }
        let index = u32::try_from(place / self.0.chunk_bytes as usize).ok()?;
        (index < self.count()).then_some((index, place as u64))
    }

    /// See [`Shared::kept`].
    pub(super) fn keep(&self, frames: impl Iterator<Item = PinnedBuf>) {
        self.0.kept.lock().extend(frames);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn umem(count: u32) -> Umem {
        Umem::new(|| Region::builder(2048 * count as usize).build(), 2048, count).unwrap()
    }

    #[test]
    fn what_is_reserved_is_not_allocated() {
        let umem = umem(8);
        let port = umem.reserve(5).unwrap();
        assert_eq!(umem.reserve(3), None, "one at least is left");
        let held: Vec<_> = std::iter::from_fn(|| umem.allocate(0)).collect();
        assert_eq!((held.len(), umem.out()), (3, 3));
        let mut places = Vec::new();
        assert_eq!(umem.pass_to_port(port, 100, |place| places.push(place)), 5);
        assert!(places.iter().all(|place| place % 2048 == 0));
        drop(held);
        umem.unreserve(5);
        assert_eq!((umem.out(), umem.max_out()), (0, 8));
    }

    /// A fill ring that can't be stocked would never wake anybody up.
    #[test]
    fn what_is_out_is_not_reserved() {
        let umem = umem(8);
        let mut held: Vec<_> = (0..5).map(|_| umem.allocate(0).unwrap()).collect();
        assert_eq!((umem.reserve(4), umem.unclaimed()), (None, 3));
        held.pop();
        let port = umem.reserve(4).unwrap();
        assert_eq!((umem.pass_to_port(port, 9, |_| ()), umem.unclaimed()), (4, 0));
        assert!(umem.allocate(0).is_none());
        assert_eq!((umem.reserve(u32::MAX), umem.out(), umem.max_out()), (None, 4, 4));
    }

    #[test]
    fn a_port_hands_in_only_what_it_has_and_once() {
        let umem = umem(4);
        let (port, other) = (umem.reserve(1).unwrap(), umem.reserve(1).unwrap());
        let mut place = 0;
        assert_eq!(umem.pass_to_port(port, 1, |at| place = at), 1);
        assert!(umem.take_from_port(other, place, 64).is_none(), "another port's");
        assert!(umem.take_from_port(port, place + 2000, 49).is_none(), "past the end");
        assert!(umem.take_from_port(port, u64::MAX, 1).is_none());
        assert!(umem.take_from_port(port, 4 * 2048, 1).is_none(), "no such frame");
        let (frame, is_over) = umem.take_from_port(port, place + 256, 64).unwrap();
        assert_eq!((frame.len(), frame.headroom(), is_over), (64, 256, false));
        assert!(umem.take_from_port(port, place, 64).is_none(), "it has been taken");
        let frame = frame.freeze();
        assert_eq!(umem.place_of(&frame.slice(10..)), Some(((place / 2048) as u32, place + 266)));
        std::thread::spawn(move || drop(frame)).join().unwrap();
        assert_eq!(umem.out(), 0);
        assert!(umem.take_from_port(port, place, 64).is_none(), "it is free");
    }

    #[test]
    fn more_than_may_be_out_is_noticed() {
        let umem = umem(4);
        let port = umem.reserve(2).unwrap();
        let mut places = Vec::new();
        umem.pass_to_port(port, 2, |place| places.push(place));
        let _held = [umem.allocate(0).unwrap(), umem.allocate(0).unwrap()];
        let (frame, is_over) = umem.take_from_port(port, places[0], 1).unwrap();
        assert!(is_over);
        drop(frame);
        assert_eq!(umem.pass_to_port(port, 9, |_| ()), 1, "it can be filled again");
    }
}
