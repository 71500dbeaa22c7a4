//! Both kinds of ring over one memfd: one side is ours, the test plays the kernel at the other.

use super::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsFd, OwnedFd};

const ENTRIES: u32 = 8;
const AT: XdpRingOffset = XdpRingOffset { producer: 0, consumer: 64, desc: 192, flags: Some(128) };

fn memory() -> OwnedFd {
    let fd = memfd_create("zc-ring", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 4096).unwrap();
    fd
}

fn both() -> (Producer<2>, Consumer<2>) {
    let fd = memory();
    let producer = Producer::new(fd.as_fd(), &AT, ENTRIES, 0).unwrap();
    (producer, Consumer::new(fd.as_fd(), &AT, ENTRIES, 0).unwrap())
}

#[test]
fn entries_arrive_in_order_over_many_rounds() {
    let (mut producer, mut consumer) = both();
    let (mut sent, mut got) = (0u64, 0u64);
    while got < 1000 {
        let room = producer.room(3).unwrap();
        for _ in 0..room.min(3) {
            producer.push([sent, !sent]);
            sent += 1;
        }
        assert_eq!(consumer.available().unwrap(), 0, "nothing is there before it is published");
        producer.publish();
        while let Some(entry) = consumer.pop().unwrap() {
            assert_eq!(entry, [got, !got]);
            got += 1;
        }
        consumer.release();
    }
}

#[test]
fn a_full_ring_has_no_room_until_places_are_released() {
    let (mut producer, mut consumer) = both();
    (0..ENTRIES).for_each(|n| producer.push([n.into(), 0]));
    assert_eq!(producer.room(1).unwrap(), 0);
    assert!(producer.publish() && !producer.publish());
    assert_eq!(producer.waiting().unwrap(), ENTRIES);
    assert!(consumer.pop().unwrap().is_some());
    assert_eq!(producer.room(1).unwrap(), 0);
    consumer.release();
    assert_eq!(producer.room(1).unwrap(), 1);
}

#[test]
fn impossible_indices_are_noticed() {
    for ahead in [1u32, ENTRIES, 1 << 31, u32::MAX] {
        let (mut producer, consumer) = both();
        producer.push([0; 2]);
        // The other side claims to have taken what was never published.
        Ring::<2>::index(&consumer.ring.consumer).store(ahead, Ordering::Release);
        assert_eq!(producer.waiting(), Err(Torn), "{ahead}");
        Ring::<2>::index(&consumer.ring.consumer).store(0, Ordering::Release);
        assert_eq!(producer.room(1), Err(Torn), "it is not used again");
    }
    for ahead in [ENTRIES + 1, 1 << 31, u32::MAX] {
        let (producer, mut consumer) = both();
        Ring::<2>::index(&producer.ring.producer).store(ahead, Ordering::Release);
        assert_eq!(consumer.pop(), Err(Torn), "{ahead}");
        Ring::<2>::index(&producer.ring.producer).store(0, Ordering::Release);
        assert_eq!(consumer.pop(), Err(Torn), "it is not used again");
    }
}

/// Whoever writes an index that runs before the reader does not keep him for ever.
#[test]
fn between_releases_there_is_one_round() {
    let (producer, mut consumer) = both();
    let index = Ring::<2>::index(&producer.ring.producer);
    index.store(ENTRIES, Ordering::Release);
    (0..ENTRIES).for_each(|_| assert!(consumer.pop().unwrap().is_some()));
    assert_eq!(consumer.pop(), Ok(None));
    index.store(ENTRIES + 1, Ordering::Release);
    assert_eq!(consumer.pop(), Err(Torn), "nothing was released");
    let (producer, mut consumer) = both();
    let index = Ring::<2>::index(&producer.ring.producer);
    index.store(3, Ordering::Release);
    (0..3).for_each(|_| assert!(consumer.pop().unwrap().is_some()));
    index.store(2, Ordering::Release);
    assert_eq!(consumer.pop(), Err(Torn), "it went back");
}

/// A forked child has no rings; what lies at their addresses in there is somebody else's (M8).
#[test]
fn a_forked_child_unmaps_nothing() {
    let (producer, consumer) = both();
    let at = producer.ring._mapping.base.as_ptr();
    // SAFETY: the child makes system calls and drops what allocates and locks nothing, and ends without a destructor.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        let both = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: memory where nothing is mapped, which only this child uses.
        let mapped = unsafe { rustix::mm::mmap_anonymous(at.cast(), 4096, both, flags) };
        drop(producer);
        // SAFETY: it was just mapped; if it is not any more, the child ends here, and the test fails.
        let is_there = mapped.is_ok() && unsafe { at.read_volatile() } == 0;
        // SAFETY: ends the child.
        unsafe { libc::_exit(if is_there { 0 } else { 1 }) };
    }
    drop(consumer);
    let mut status = -1;
    // SAFETY: waits for our child; the number is alive.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
}

#[test]
fn offsets_outside_of_the_mapping_are_refused() {
    let fd = memory();
    for at in [
        XdpRingOffset { producer: 4096, ..AT },
        XdpRingOffset { consumer: 2, ..AT },
        XdpRingOffset { flags: None, ..AT },
        XdpRingOffset { desc: u64::MAX - 8, ..AT },
    ] {
        assert!(Producer::<1>::new(fd.as_fd(), &at, ENTRIES, 0).is_err(), "{at:?}");
    }
}
