#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use rustix::fs::{FallocateFlags, SealFlags};
use std::os::unix::fs::FileExt;

fn memfd(len: usize) -> Region {
    Region::builder(len).backing(Backing::Memfd).build().unwrap()
}

fn sent(region: &Region) -> OwnedFd {
    region.fd().unwrap().try_clone_to_owned().unwrap()
}

#[test]
fn falls_back_and_says_why() {
    for (backing, pages) in [
        (Backing::Huge1G, &[PageKind::Huge1G, PageKind::Huge2M][..]),
        (Backing::Huge2M, &[PageKind::Huge2M]),
        (Backing::MemfdHuge2M, &[PageKind::Huge2M]),
    ] {
        let r = Region::builder(1).backing(backing).build().unwrap();
        let info = r.info();
        assert_eq!(info.requested, Some(backing));
        let got = info.page == pages[0];
        assert!(got || !info.fallbacks.is_empty(), "{info:?}");
        for fall in &info.fallbacks {
            assert!(
                fall.errno != 0 && fall.reason.contains("nr_hugepages")
                    || fall.wanted.contains("transparent")
            );
        }
        // Usable, whatever it got.
        // SAFETY: our own mapping, and nobody else uses it (M5).
        unsafe { r.base_mut().write(1) };
    }
    assert!(Region::builder(0).build().is_err());
    assert!(Region::builder(usize::MAX).build().is_err());
}

#[test]
fn prefault_and_lock() {
    for backing in [Backing::Anonymous, Backing::Memfd, Backing::MemfdHuge2M] {
        let r = Region::builder(5000).backing(backing).prefault(true).build().unwrap();
        assert!(r.len() >= 8192);
        assert_eq!(resident(&r), r.len() / page_size(), "{backing:?}");
    }
    match Region::builder(4096).lock(true).build() {
        Ok(r) => assert!(r.info().locked),
        Err(RegionError::Memlock(_) | RegionError::Os { .. }) => {}
        Err(e) => panic!("{e}"),
    }
}

/// How many pages are there.
fn resident(region: &Region) -> usize {
    let mut pages = vec![0u8; region.len() / page_size()];
    // SAFETY: the vector has an entry for each page of the mapping (M9).
    let r = unsafe { libc::mincore(region.base_mut().as_ptr().cast(), region.len(), pages.as_mut_ptr()) };
    assert_eq!(r, 0);
    pages.iter().filter(|p| **p & 1 == 1).count()
}

#[test]
fn an_absent_numa_node_is_recorded() {
    let r = Region::builder(4096).numa_node(Some(63)).build().unwrap();
    assert_eq!(r.info().fallbacks[0].wanted, "NUMA node");
    let r = Region::builder(4096).numa_node(Some(64)).build().unwrap();
    assert_eq!(r.info().fallbacks.len(), 1);
}

#[test]
fn places_are_checked() {
    let r = Region::builder(4096).build().unwrap();
    assert_eq!(r.offset_of(r.base().wrapping_add(10), 4086), Some(10));
    assert_eq!(r.offset_of(r.base().wrapping_add(10), 4087), None);
    assert_eq!(r.offset_of(r.base().wrapping_sub(1), 1), None);
    assert_eq!(r.offset_of(r.base(), usize::MAX), None);
}

#[test]
fn only_the_owner_writes_a_sealed_memfd() {
    let ours = memfd(8192);
    let theirs = sent(&ours);
    assert!(sys::map_fd(&theirs, 8192, true).is_err(), "mapped writable");
    let file = File::from(theirs);
    assert!(file.write_at(b"x", 0).is_err(), "written");
    assert!(file.set_len(4096).is_err() && file.set_len(16_384).is_err(), "resized");
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert!(rustix::fs::fallocate(&file, hole, 0, 4096).is_err(), "a hole punched");
    assert!(rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).is_err(), "sealed further");
    let view = PeerMapping::new(8192).map(file.into()).unwrap();
    // SAFETY: the owner's mapping stays writable, and no reference exists (M5).
    unsafe { ours.base_mut().add(4100).write_volatile(42) };
    // SAFETY: within the mapping (M5).
    assert_eq!(unsafe { view.base().add(4100).read_volatile() }, 42);
    assert_eq!((view.len(), view.is_read_only(), view.info().kind), (8192, true, RegionKind::Peer));
}

#[test]
fn memory_that_both_write() {
    let ours = Region::builder(4096).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites).build().unwrap();
    assert!(matches!(PeerMapping::new(4096).map(sent(&ours)), Err(RegionError::NotSealed { .. })));
    let both = PeerMapping { sealing: Sealing::AnyoneWrites, writable: true, ..PeerMapping::new(4096) };
    let theirs = both.map(sent(&ours)).unwrap();
    // SAFETY: both mappings are writable, and no reference exists (M5).
    unsafe { theirs.base_mut().write_volatile(9) };
    // SAFETY: within the mapping (M5).
    assert_eq!(unsafe { ours.base().read_volatile() }, 9);
    // Not writable if its maker did not want that.
    assert!(both.map(sent(&memfd(4096))).is_err());
}

#[test]
fn what_a_peer_sends_is_checked() {
    let map = |fd: OwnedFd| PeerMapping::new(8192).map(fd);
    let long = map(sent(&memfd(12_288))).unwrap_err();
    assert!(matches!(long, RegionError::PeerTooLong { len: 12_288, max: 8192 }));
    // Not sealed at all: it could be cut while it is read (SIGBUS).
    let open = sys::memfd("open", 4096, sys::Huge::No).unwrap();
    let e = map(open).unwrap_err();
    assert!(matches!(&e, RegionError::NotSealed { missing } if missing.contains("SHRINK")), "{e}");
    // Sealed against writing altogether is as good.
    let fixed = sys::memfd("fixed", 4096, sys::Huge::No).unwrap();
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&fixed, seals).unwrap();
    map(fixed).unwrap();
    let empty = sys::memfd("empty", 0, sys::Huge::No).unwrap();
    sys::seal(&empty, Sealing::OwnerWrites).unwrap();
    assert!(matches!(map(empty), Err(RegionError::BadLength(0))));
    // Neither a memfd, nor even a file.
    assert!(map(tempfile::tempfile().unwrap().into()).is_err());
    assert!(map(rustix::pipe::pipe().unwrap().0).is_err());
}

#[test]
fn a_file_is_mapped_read_only() {
    let file = tempfile::tempfile().unwrap();
    // SAFETY: nobody changes the file of this test (M5).
    assert!(unsafe { Region::map_file(file.try_clone().unwrap()) }.is_err(), "empty");
    file.write_at(b"content", 0).unwrap();
    // SAFETY: nobody changes the file of this test (M5).
    let region = unsafe { Region::map_file(file) }.unwrap();
    assert_eq!((region.len(), region.is_read_only(), region.info().kind), (7, true, RegionKind::File));
    // SAFETY: nobody changes the file of this test (M5).
    assert_eq!(unsafe { region.base().add(6).read_volatile() }, b't');
}

/// A forked child has none of the memory, and gives nothing back that is the parent's (M8).
#[test]
fn regions_are_not_inherited() {
    let all = [
        Region::builder(4096).build().unwrap(),
        memfd(4096),
        PeerMapping::new(4096).map(sent(&memfd(4096))).unwrap(),
    ];
    // Read what the kernel keeps out of children, instead of forking a process with many threads.
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    for region in &all {
        let at = region.base().addr();
        let covers = |line: &str| {
            let range = line.split_whitespace().next().and_then(|r| r.split_once('-'));
            let ends = range.map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16)));
            matches!(ends, Some((Ok(start), Ok(end))) if (start..end).contains(&at))
        };
        let flags = smaps.lines().skip_while(|l| !covers(l)).find(|l| l.starts_with("VmFlags:")).unwrap();
        assert!(flags.split_whitespace().any(|f| f == "dc"), "{flags}");
    }
}

/// What a child inherits of the directory leads nowhere, and does not hide what it maps itself (M8).
#[test]
fn a_forked_child_finds_its_own_regions_only() {
    use crate::memory::alone::alone;
    alone("memory::region::tests::a_forked_child_finds_its_own_regions_only", || {
        let region = Region::builder(8192).build().unwrap();
        let id = region.id();
        // SAFETY: no other thread of this process is at work, so the child may do what it likes.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let inherited = region_of(region.base(), 1).is_some();
            let own = Region::builder(1 << 20).build().unwrap();
            let found = region_of(own.base().wrapping_add(5000), 1).map(|r| r.id());
            let right = !inherited && found == Some(own.id());
            // SAFETY: nothing of the child needs to be cleaned up.
            unsafe { libc::_exit(if right { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: `status` is there to be written.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child found what is not there");
        assert_eq!(region_of(region.base(), 1).map(|r| r.id()), Some(id));
    });
}

/// Huge pages that are free now, or could be made.
fn huge_pages_free(kib: usize) -> usize {
    let read = |what| -> usize {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/{what}");
        std::fs::read_to_string(path).ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    };
    (read("free_hugepages") + read("nr_overcommit_hugepages")).saturating_sub(read("resv_hugepages"))
}

/// Real huge pages where the machine has some; else the way down and what it says.
#[test]
fn huge_pages_are_used_where_there_are_any() {
    const ENOUGH: usize = 16; // Other tests take some, too.
    for (backing, kib, page, name) in [
        (Backing::Huge2M, 2048, PageKind::Huge2M, "2 MiB pages"),
        (Backing::MemfdHuge2M, 2048, PageKind::Huge2M, "2 MiB pages"),
        (Backing::Huge1G, 1 << 20, PageKind::Huge1G, "1 GiB pages"),
    ] {
        let free = huge_pages_free(kib);
        for node in [None, Some(0)] {
            let region = Region::builder(3 << 20).backing(backing).numa_node(node).build().unwrap();
            let info = region.info();
            if info.page == page {
                assert!(free > 0, "{info:?}");
                assert!(region.len().is_multiple_of(kib << 10));
                assert_eq!(resident(&region), region.len() / page_size(), "no touch can fail later");
                // SAFETY: inside of our own mapping, which nobody else uses (M5).
                unsafe { region.base_mut().add(region.len() - 1).write_volatile(1) };
                continue;
            }
            assert!(free < ENOUGH, "{free} pages are free: {info:?}");
            println!("skipped: {free} free {name}, see vm.nr_hugepages; what is tested is doing without");
            let fall = &info.fallbacks[0];
            assert_eq!((fall.wanted, fall.errno), (name, rustix::io::Errno::NOMEM.raw_os_error()));
            assert!(fall.reason.contains("vm.nr_hugepages"), "{}", fall.reason);
            // SAFETY: inside of our own mapping, which nobody else uses (M5).
            unsafe { region.base_mut().add(region.len() - 1).write_volatile(1) };
        }
    }
}
