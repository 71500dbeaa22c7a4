//! One ring of a socket.
//!
//! ```text
//! producer index | consumer index | flags | entries ...      (each index counts up for ever, wrapping)
//! ```
//!
//! The memory is shared with the kernel, and with whoever else has the socket (who can do worse than write nonsense:
//! see [`sys`](super)). All of it is therefore read and written as atomic words, never through a plain
//! reference (M5), and what the other side writes is checked (M6).

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::net::xdp::XdpRingOffset;

/// The other side has written an index that it can't have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Torn;

const NEED_WAKEUP: u32 = 1; // XDP_RING_NEED_WAKEUP

/// Memory of the kernel's. A mapping keeps its socket alive, so it goes before the socket is closed.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// The process that it is in.
    process: u32,
}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, len: usize, offset: u64) -> io::Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice; it is reached through this object only (M5).
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags, fd, offset)
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { base, len, process: std::process::id() };
        // SAFETY: a whole mapping of ours; the advice keeps it out of children (M8), where it would keep the socket.
        unsafe { rustix::mm::madvise(base.as_ptr().cast(), len, Advice::LinuxDontFork) }?;
        Ok(mapping)
    }

    /// `count` objects of type `T` at an offset.
    ///
    /// # Panics
    /// If they don't lie inside, or not aligned: a bug of the caller, who checks.
    fn at<T>(&self, offset: usize, count: usize) -> NonNull<T> {
        let end = size_of::<T>().checked_mul(count).and_then(|len| len.checked_add(offset));
        assert!(end.is_some_and(|end| end <= self.len) && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: inside of the mapping, as was just checked.
        unsafe { self.base.add(offset) }.cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return; // A forked child: the mapping is not here, its address may be somebody else's (M8).
        }
        // SAFETY: a whole mapping of ours, to which no pointer is left: those are in the same object (M4).
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::error!(%error, "a ring stays mapped (M4)");
        }
    }
}

/// What both kinds of ring have. An entry is `WORDS` words.
struct Ring<const WORDS: usize> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    words: NonNull<AtomicU64>,
    entries: u32,
    _mapping: Mapping,
}

// SAFETY: the memory is touched by atomic accesses only (M5), and lives as long as this object.
unsafe impl<const WORDS: usize> Send for Ring<WORDS> {}

impl<const WORDS: usize> Ring<WORDS> {
    fn new(fd: BorrowedFd<'_>, at: &XdpRingOffset, entries: u32, page: u64) -> io::Result<Self> {
        assert!(entries.is_power_of_two());
        let odd = || io::Error::from(io::ErrorKind::InvalidData);
        let to = |offset: u64| usize::try_from(offset).map_err(|_| odd());
        let flags = to(at.flags.ok_or_else(odd)?)?;
        let (producer, consumer, words) = (to(at.producer)?, to(at.consumer)?, to(at.desc)?);
        let bytes = WORDS * size_of::<u64>() * entries as usize;
        let len = words.checked_add(bytes).ok_or_else(odd)?;
        if [producer, consumer, flags].iter().any(|at| *at > len - 4 || at % 4 != 0) || words % 8 != 0 {
            return Err(odd());
        }
        let mapping = Mapping::new(fd, len, page)?;
        Ok(Self {
            producer: mapping.at(producer, 1),
            consumer: mapping.at(consumer, 1),
            flags: mapping.at(flags, 1),
            words: mapping.at(words, WORDS * entries as usize),
            entries,
            _mapping: mapping,
        })
    }

    fn index(at: &NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: inside of the mapping, which lives as long as the object it is borrowed from; atomic (M5).
        unsafe { at.as_ref() }
    }

    #[inline]
    fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        let at = (index & (self.entries - 1)) as usize * WORDS + word;
        // SAFETY: below `entries * WORDS`, since `entries` is a power of two; atomic (M5).
        unsafe { self.words.add(at).as_ref() }
    }
}

/// The ring on which this side puts entries: fill, transmit.
pub(crate) struct Producer<const WORDS: usize> {
    ring: Ring<WORDS>,
    /// The next entry to write; the shared index follows when it is published.
    next: u32,
    /// The last one published.
    published: u32,
    /// How far the kernel was when that was last looked at.
    consumed: u32,
    /// It has shown an impossible index; from then on none is believed.
    is_torn: bool,
}

impl<const WORDS: usize> Producer<WORDS> {
    pub(crate) fn new(fd: BorrowedFd<'_>, at: &XdpRingOffset, entries: u32, page: u64) -> io::Result<Self> {
        let ring = Ring::new(fd, at, entries, page)?;
        let next = Ring::<WORDS>::index(&ring.producer).load(Ordering::Relaxed);
        Ok(Self { consumed: next, published: next, next, is_torn: false, ring })
    }

    /// How many entries fit; looks at the shared index only if fewer than `wanted` are known to.
    pub(crate) fn room(&mut self, wanted: u32) -> Result<u32, Torn> {
        if self.is_torn {
            return Err(Torn);
        }
        let known = self.ring.entries - self.next.wrapping_sub(self.consumed);
        if known >= wanted {
            return Ok(known);
        }
        let consumed = Ring::<WORDS>::index(&self.ring.consumer).load(Ordering::Acquire);
        // It may only go forward, and not past what was published (M6).
        if consumed.wrapping_sub(self.consumed) > self.published.wrapping_sub(self.consumed) {
            self.is_torn = true;
            return Err(Torn);
        }
        self.consumed = consumed;
        Ok(self.ring.entries - self.next.wrapping_sub(consumed))
    }

    /// Published, and not taken by the kernel as far as is known.
    pub(crate) fn waiting(&mut self) -> Result<u32, Torn> {
        self.room(u32::MAX)?;
        Ok(self.published.wrapping_sub(self.consumed))
    }

    /// Puts an entry on the ring, unpublished. The caller has asked for room.
    #[inline]
    pub(crate) fn push(&mut self, entry: [u64; WORDS]) {
        assert!(self.next.wrapping_sub(self.consumed) < self.ring.entries, "no room was asked for");
        for (word, value) in entry.into_iter().enumerate() {
            self.ring.word(self.next, word).store(value, Ordering::Relaxed);
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the kernel what was pushed; whether there was anything.
    pub(crate) fn publish(&mut self) -> bool {
        if self.published == self.next {
            return false;
        }
        Ring::<WORDS>::index(&self.ring.producer).store(self.next, Ordering::Release);
        self.published = self.next;
        true
    }

    /// Whether the kernel sleeps until it is called.
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        Ring::<WORDS>::index(&self.ring.flags).load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }
}

/// The ring from which this side takes entries: receive, completion.
pub(crate) struct Consumer<const WORDS: usize> {
    ring: Ring<WORDS>,
    next: u32,
    released: u32,
    produced: u32,
    /// As a [`Producer`]'s.
    is_torn: bool,
}

impl<const WORDS: usize> Consumer<WORDS> {
    pub(crate) fn new(fd: BorrowedFd<'_>, at: &XdpRingOffset, entries: u32, page: u64) -> io::Result<Self> {
        let ring = Ring::new(fd, at, entries, page)?;
        let next = Ring::<WORDS>::index(&ring.consumer).load(Ordering::Relaxed);
        Ok(Self { produced: next, released: next, next, is_torn: false, ring })
    }

    /// How many entries can be taken; looks at the shared index only if none is known. Between two releases these are no more
    /// than the ring has.
    pub(crate) fn available(&mut self) -> Result<u32, Torn> {
        if self.is_torn {
            return Err(Torn);
        }
        let known = self.produced.wrapping_sub(self.next);
        if known > 0 {
            return Ok(known);
        }
        let produced = Ring::<WORDS>::index(&self.ring.producer).load(Ordering::Acquire);
        // It may only go forward, and not onto what was not released (M6).
        let from_released = |index: u32| index.wrapping_sub(self.released);
        if from_released(produced) > self.ring.entries || from_released(produced) < from_released(self.next) {
            self.is_torn = true;
            return Err(Torn);
        }
        self.produced = produced;
        Ok(produced.wrapping_sub(self.next))
    }

    /// Takes an entry. The kernel gets its place back with [`release`](Self::release).
    #[inline]
    pub(crate) fn pop(&mut self) -> Result<Option<[u64; WORDS]>, Torn> {
        if self.available()? == 0 {
            return Ok(None);
        }
        let entry = std::array::from_fn(|word| self.ring.word(self.next, word).load(Ordering::Relaxed));
        self.next = self.next.wrapping_add(1);
        Ok(Some(entry))
    }

    /// Gives the places of what was taken back.
    pub(crate) fn release(&mut self) {
        if self.released != self.next {
            Ring::<WORDS>::index(&self.ring.consumer).store(self.next, Ordering::Release);
            self.released = self.next;
        }
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
