//! The refill ring: where the kernel finds what it may use again (`struct io_uring_zcrx_rqe`).
//!
//! ```text
//! memory: | head u32 (the kernel's) .. | tail u32 (ours) .. | entries, 16 bytes each: offset u64, len u32, 0 u32 |
//! ```
//!
//! Where head, tail and entries lie, the kernel says when it registers the memory.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::*};

use io_uring::types::io_uring_zcrx_rqe;
use zc_core::memory::Region;

const ENTRY_BYTES: usize = size_of::<io_uring_zcrx_rqe>();
const LEN_AT: usize = 8;
const ZERO_AT: usize = 12;

/// Where the parts of the ring lie, bytes from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) entries: u32,
}

/// Our end of it. One at a time may use it.
pub(super) struct Refill {
    memory: Region,
    places: Places,
    mask: u32,
    tail: u32,
}

impl Refill {
    /// With `count` entries, a power of two.
    ///
    /// # Errors
    /// What the kernel says of the places does not fit into the memory (M6).
    pub(super) fn new(memory: Region, places: Places, count: u32) -> io::Result<Self> {
        let Places { head, tail, entries } = places;
        let len = memory.len();
        let fits = |at: u32, align: usize, bytes: usize| {
            let end = (at as usize).checked_add(bytes);
            (at as usize).is_multiple_of(align) && end.is_some_and(|end| end <= len)
        };
        let entries_bytes = (count as usize).checked_mul(ENTRY_BYTES);
        let is_fine = count.is_power_of_two()
            && fits(head, align_of::<u32>(), size_of::<u32>())
            && fits(tail, align_of::<u32>(), size_of::<u32>())
            && entries_bytes.is_some_and(|bytes| fits(entries, align_of::<u64>(), bytes));
        if !is_fine {
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        Ok(Self { memory, places, mask: count - 1, tail: 0 })
    }

    fn index_at(&self, at: u32) -> &AtomicU32 {
        // SAFETY: an aligned word inside of the memory, as `new` has checked, which only ever is accessed as an atomic; the
        // region lives as long as `self` (M2).
        unsafe { AtomicU32::from_ptr(self.memory.base_mut().add(at as usize).cast().as_ptr()) }
    }

    fn count(&self) -> u32 {
        self.mask + 1
    }

    /// Entries that the kernel has not taken. If it claims to have taken others than those, all count as not taken (M6).
    pub(super) fn queued(&self) -> u32 {
        let head = self.index_at(self.places.head).load(Acquire);
        self.tail.wrapping_sub(head).min(self.count())
    }

    /// How many there are, and how many of them are not taken.
    pub(super) fn is_half_full(&self) -> bool {
        self.queued() > self.count() / 2
    }

    /// Gives back what lies at this offset of the area; false: the ring is full.
    pub(super) fn push(&mut self, offset: u64, len: u32) -> bool {
        if self.queued() == self.count() {
            return false;
        }
        let index = (self.tail & self.mask) as usize;
        // SAFETY: `index` is below the count of entries, for which there is room, as `new` has checked. The kernel does not look at
        // this one, which is not between head and tail, until the tail says so (M1).
        unsafe {
            let entry = self.memory.base_mut().add(self.places.entries as usize + index * ENTRY_BYTES);
            entry.cast::<u64>().write_volatile(offset);
            entry.add(LEN_AT).cast::<u32>().write_volatile(len);
            entry.add(ZERO_AT).cast::<u32>().write_volatile(0);
        }
        self.tail = self.tail.wrapping_add(1);
        self.index_at(self.places.tail).store(self.tail, Release);
        true
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    pub(in super::super) const PLACES: Places = Places { head: 0, tail: 64, entries: 128 };

    pub(in super::super) fn memory(count: u32) -> Region {
        Region::builder(128 + count as usize * ENTRY_BYTES).build().unwrap()
    }

    /// The kernel's end.
    pub(in super::super) struct Kernel {
        ring: Refill,
        head: u32,
    }

    impl Kernel {
        pub(in super::super) fn of(memory: Region, count: u32) -> Self {
            Self { ring: Refill::new(memory, PLACES, count).unwrap(), head: 0 }
        }

        /// Begins where the numbers are about to turn over.
        fn begin_at(&mut self, at: u32) {
            self.head = at;
            self.ring.index_at(PLACES.head).store(at, Release);
            self.ring.index_at(PLACES.tail).store(at, Release);
        }

        pub(in super::super) fn take(&mut self) -> Option<(u64, u32)> {
            if self.ring.index_at(PLACES.tail).load(Acquire) == self.head {
                return None;
            }
            let index = (self.head & self.ring.mask) as usize;
            let at = PLACES.entries as usize + index * ENTRY_BYTES;
            // SAFETY: inside of the memory, which both ends of the test share in one thread (M5).
            let (offset, len, zero) = unsafe {
                let entry = self.ring.memory.base().add(at);
                (
                    entry.cast::<u64>().read(),
                    entry.add(LEN_AT).cast::<u32>().read(),
                    entry.add(ZERO_AT).cast::<u32>().read(),
                )
            };
            assert_eq!(zero, 0);
            self.head = self.head.wrapping_add(1);
            self.ring.index_at(PLACES.head).store(self.head, Release);
            Some((offset, len))
        }
    }

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_has_it() {
        use std::mem::offset_of;
        assert_eq!((ENTRY_BYTES, offset_of!(io_uring_zcrx_rqe, off)), (16, 0));
        assert_eq!(offset_of!(io_uring_zcrx_rqe, len), LEN_AT);
        assert_eq!(LEN_AT + size_of::<u32>(), ZERO_AT);
    }

    #[test]
    fn places_that_do_not_fit_are_refused() {
        let bad = [
            (Places { head: 2, ..PLACES }, 4),
            (Places { tail: 1 << 20, ..PLACES }, 4),
            (Places { entries: 132, ..PLACES }, 4),
            (Places { entries: u32::MAX - 7, ..PLACES }, 4),
            (PLACES, 3),
            (PLACES, 0),
            (PLACES, 1 << 31),
        ];
        for (places, count) in bad {
            assert!(Refill::new(memory(4), places, count).is_err(), "{places:?} {count}");
        }
        assert!(Refill::new(memory(4), PLACES, 4).is_ok());
    }

    #[test]
    fn a_head_that_lies_makes_the_ring_full_and_no_more() {
        let memory = memory(4);
        let mut ring = Refill::new(memory.clone(), PLACES, 4).unwrap();
        ring.index_at(PLACES.head).store(77, Release);
        assert_eq!((ring.queued(), ring.push(0, 1)), (4, false));
        ring.index_at(PLACES.head).store(0, Release);
        assert_eq!((ring.queued(), ring.push(0, 1)), (0, true));
    }

    proptest! {
        /// Whatever the order of giving and taking, and wherever the numbers turn over: what is given is taken, once, in order.
        #[test]
        fn what_is_given_back_is_taken_once_and_in_order(
            begin in prop_oneof![Just(0), Just(u32::MAX - 3), any::<u32>()],
            steps in prop::collection::vec((any::<bool>(), 1..9u32), 1..100),
        ) {
            let memory = memory(8);
            let mut kernel = Kernel::of(memory.clone(), 8);
            kernel.begin_at(begin);
            let mut ring = Refill::new(memory, PLACES, 8).unwrap();
            ring.tail = begin;
            let (mut given, mut model) = (0u64, VecDeque::new());
            for (gives, count) in steps {
                for _ in 0..count {
                    if gives {
                        let fits = model.len() < 8;
                        prop_assert_eq!(ring.push(given * 4096, given as u32), fits);
                        if fits {
                            model.push_back((given * 4096, given as u32));
                            given += 1;
                        }
                    } else {
                        prop_assert_eq!(kernel.take(), model.pop_front());
                    }
                    prop_assert_eq!(ring.queued() as usize, model.len());
                }
            }
        }
    }
}
