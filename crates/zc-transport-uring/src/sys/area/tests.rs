use super::refill::tests::{Kernel, PLACES, memory};
use super::*;
use proptest::prelude::*;

const PAGES: usize = 8;

/// An area without a ring, and the other end of its refill ring.
fn area(windows: u32, entries: u32) -> (Area, Kernel) {
    let page = rustix::param::page_size();
    let region = Region::builder(PAGES * page).build().unwrap();
    for n in 0..PAGES {
        // SAFETY: no buffer covers the region yet (M5).
        unsafe { region.base_mut().add(n * page).write_bytes(n as u8, page) };
    }
    let refill_memory = memory(entries);
    let kernel = Kernel::of(refill_memory.clone(), entries);
    let refill = Refill::new(refill_memory, PLACES, entries).unwrap();
    (Area::on(region, refill, (0, 0, true), windows), kernel)
}

fn one(pieces: Pieces) -> PinnedBuf {
    assert_eq!(pieces.len(), 1);
    pieces.into_iter().next().unwrap().bytes
}

#[test]
fn what_the_kernel_names_is_checked() {
    let (mut area, mut kernel) = area(4, 4);
    let all = area.bytes as u64;
    let bad =
        [(0, 0), (all, 1), (all - 1, 2), (0, usize::MAX), (u64::MAX >> 16, 1), (1 << 48, 1), (u64::MAX, 1)];
    for (offset, len) in bad {
        assert_eq!(area.take(offset, len).err(), Some(libc::EIO), "{offset} {len}");
    }
    assert_eq!((area.counts(), kernel.take()), (AreaCounts::default(), None));
    assert_eq!(one(area.take(all - 1, 1).unwrap())[..], [7]);
    assert_eq!(kernel.take(), Some((all - 1, 1)));
}

#[test]
fn a_piece_keeps_its_page_and_goes_back_once_from_any_thread() {
    let (mut area, mut kernel) = area(4, 4);
    let page = rustix::param::page_size();
    let piece = one(area.take(page as u64 + 10, 20).unwrap());
    assert_eq!((&piece[..], piece.kept_bytes(), area.counts().lent_pages), (&[1; 20][..], page, 1));
    let part = piece.slice(3..5);
    drop(piece);
    assert_eq!(kernel.take(), None);
    std::thread::spawn(move || drop(part)).join().unwrap();
    assert_eq!((kernel.take(), kernel.take()), (Some((page as u64 + 10, 20)), None));
    assert_eq!(area.counts(), AreaCounts { received: 1, lent_pages: 0, full: 0 });
}

/// Packets may share a page, each of which has a piece of its own to give back.
#[test]
fn pieces_of_one_page_are_apart() {
    let (mut area, mut kernel) = area(4, 4);
    let (first, second) = (one(area.take(0, 100).unwrap()), one(area.take(100, 100).unwrap()));
    assert_eq!(area.counts().lent_pages, 1);
    drop(first);
    assert_eq!((kernel.take(), area.counts().lent_pages), (Some((0, 100)), 1));
    drop(second);
    assert_eq!((kernel.take(), area.counts().lent_pages), (Some((100, 100)), 0));
}

#[test]
fn without_a_window_a_piece_goes_straight_back() {
    let (mut area, mut kernel) = area(1, 4);
    let held = one(area.take(0, 1).unwrap());
    assert!(area.is_short());
    assert_eq!(area.take(9, 1).err(), Some(libc::EOVERFLOW));
    assert_eq!((kernel.take(), kernel.take()), (Some((9, 1)), None));
    drop(held);
    assert!(!area.is_short());
}

/// A receive may have found no room before the kernel was given what came back, which is told later.
#[test]
fn no_room_is_believed_unless_some_has_come_since() {
    let (mut area, _kernel) = area(4, 4);
    area.begin();
    area.ended(-libc::ECANCELED);
    assert!(!area.is_dry());
    area.ended(NO_ROOM);
    assert!(area.is_dry());
    area.try_again();
    area.begin();
    area.flushes += 1;
    area.ended(NO_ROOM);
    assert_eq!((area.is_dry(), area.counts().full), (false, 2));
}

#[test]
fn pieces_outlive_the_area_and_go_nowhere_then() {
    let (mut area, mut kernel) = area(4, 4);
    let piece = one(area.take(5, 7).unwrap());
    assert!(area.close().is_none());
    drop(area);
    assert_eq!(piece[..], [0; 7]);
    drop(piece);
    assert_eq!(kernel.take(), None);
}

proptest! {
    /// Whatever is held for however long, and however slowly the kernel takes: each piece goes back once, in the end, and the
    /// counts agree.
    #[test]
    fn each_piece_goes_back_once(
        steps in prop::collection::vec((0..3u8, 0..PAGES, 1..2000usize), 1..200),
    ) {
        let page = rustix::param::page_size();
        let (mut area, mut kernel) = area(5, 2);
        let (mut held, mut given) = (Vec::new(), Vec::new());
        let (mut taken, mut lent) = (Vec::new(), Vec::new());
        for (what, at, len) in steps {
            match what {
                0 => {
                    let offset = (at * page + len % 100) as u64;
                    match area.take(offset, len) {
                        Ok(pieces) => {
                            let piece = one(pieces);
                            prop_assert!(piece.iter().all(|byte| usize::from(*byte) == at) && piece.len() == len);
                            held.push((at, piece));
                            lent.push((offset, len as u32));
                        }
                        Err(errno) => {
                            prop_assert_eq!((errno, held.len()), (libc::EOVERFLOW, 5));
                            lent.push((offset, len as u32));
                        }
                    }
                }
                1 if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                _ => {
                    given.extend(kernel.take());
                    // As `settle` does when the kernel has taken something.
                    area.home.state.lock().catch_up();
                }
            }
            let mut pages: Vec<_> = held.iter().map(|(at, _)| *at).collect();
            pages.sort_unstable();
            pages.dedup();
            prop_assert_eq!(area.counts().lent_pages, pages.len());
        }
        held.clear();
        loop {
            given.extend(std::iter::from_fn(|| kernel.take()));
            let mut state = area.home.state.lock();
            if state.overdue.is_empty() {
                break;
            }
            state.catch_up();
        }
        taken.append(&mut given);
        taken.sort_unstable();
        lent.sort_unstable();
        prop_assert_eq!(taken, lent);
    }
}
