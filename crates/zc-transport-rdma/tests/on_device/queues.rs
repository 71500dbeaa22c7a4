//! Queue pairs and queues, without an engine.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use zc_core::memory::{CopyLedger, ExportMemory, Message, Region};
use zc_transport_rdma::*;

use super::rig::*;

#[test]
fn messages_arrive_as_they_were_sent() {
    let Some(rig) = Rig::new() else { return };
    let (a, b) = rig.pair();
    rig.post_receives(8);
    for bytes in [&b"x"[..], &[7; 256], &[8; 257], &[9; 4096]] {
        rig.post(&a, Work::send(1, rig.message(bytes)).signalled());
        let done = rig.completions(2);
        assert_eq!(sent(&done), [(1, Ok(()))]);
        let [(got, info)] = &received(&done)[..] else { panic!("{done:?}") };
        assert_eq!((&got[..], info.immediate, info.was_write), (bytes, None, false));
    }
    let with_word = Operation::Send { payload: rig.message(b"word"), immediate: Some(0xdead_beef) };
    rig.post(&b, Work::new(2, with_word).signalled());
    let done = rig.completions(2);
    assert_eq!(received(&done)[0].1.immediate, Some(0xdead_beef));
    assert_eq!((rig.receives.posted(), rig.completions.under_way()), (3, 3));
}

#[test]
fn short_messages_need_no_registration_and_long_ones_do() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    rig.post_receives(2);
    let regions = rig.domain.regions();
    let foreign = |len: usize| Work::send(5, Message::from(vec![3; len])).signalled();
    assert!(a.caps().inline_bytes >= 64, "{:?}", a.caps());
    rig.post(&a, foreign(a.caps().inline_bytes as usize));
    assert_eq!(received(&rig.completions(2))[0].0, vec![3; a.caps().inline_bytes as usize]);
    let long = foreign(a.caps().inline_bytes as usize + 1);
    assert_eq!(a.prepare(&long), Err(Unfit::NotRegistered));
    assert!(matches!(a.post(&mut VecDeque::from([long])), Err(PostError::Unfit(Unfit::NotRegistered))));
    assert_eq!(rig.domain.regions(), regions);
}

#[test]
fn pieces_are_gathered_and_regions_registered_once() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    rig.post_receives(21);
    for round in 0..20u8 {
        let mut payload = rig.message(&[round; 300]);
        payload.push(rig.buffer(&[round + 1; 500]).freeze()).unwrap();
        rig.post(&a, Work::send(0, payload).signalled());
        assert_eq!(received(&rig.completions(2))[0].0, [vec![round; 300], vec![round + 1; 500]].concat());
    }
    assert_eq!(rig.domain.regions(), rig.pool.regions().len());
    let mut many = Message::new();
    (0..=a.caps().segments).for_each(|_| many.push(rig.buffer(&[1; 300]).freeze()).unwrap());
    let max = a.caps().segments as usize;
    assert_eq!(a.prepare(&Work::send(0, many)), Err(Unfit::Segments { count: max + 1, max }));
}

#[test]
fn one_doorbell_and_one_completion_for_a_batch() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    rig.post_receives(64);
    let every = a.caps().depth / SIGNAL_DIVISOR;
    let mut work: VecDeque<_> = (0..40).map(|tag| Work::send(tag, rig.message(&[tag as u8; 8]))).collect();
    assert_eq!(a.post(&mut work).unwrap(), POST_BATCH);
    assert_eq!(a.post(&mut work).unwrap(), POST_BATCH);
    assert_eq!((a.post(&mut work).unwrap(), work.len(), a.room()), (0, 8, 0), "full");
    let done = rig.completions(64);
    assert_eq!(sent(&done), (0..32).map(|tag| (tag, Ok(()))).collect::<Vec<_>>());
    assert_eq!(32 % every, 0, "so that all have come back");
    assert_eq!(a.post(&mut work).unwrap(), 8);
    let got = rig.completions(16);
    assert_eq!(received(&got).last().unwrap().0, [39; 8]);
}

/// Nothing need follow it, so its completion must not wait for anything.
#[test]
fn what_is_posted_in_front_of_something_unfit_completes() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    rig.post_receives(1);
    let unfit = Work::send(2, Message::from(vec![3; a.caps().inline_bytes as usize + 1])).signalled();
    let mut work = VecDeque::from([Work::send(1, rig.message(b"first")), unfit]);
    assert_eq!((a.post(&mut work).unwrap(), work.len()), (1, 1));
    assert_eq!(sent(&rig.completions(2)), [(1, Ok(()))]);
    assert!(matches!(a.post(&mut work), Err(PostError::Unfit(Unfit::NotRegistered))));
}

/// The kernel knows queues by small numbers, which are those of others elsewhere.
#[test]
fn what_is_of_two_contexts_is_refused() {
    let (Some(one), Some(other)) = (Rig::new(), Rig::new()) else { return };
    let caps = QueuePairCaps::default();
    assert!(QueuePair::new(&one.domain, &other.receives, caps).is_err_and(|error| error.errno == 22));
    let mixed = SharedReceiveQueue::new(&one.domain, &other.completions, 8);
    assert!(mixed.is_err_and(|error| error.errno == 22));
}

#[test]
fn nothing_can_be_sent_and_read() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    rig.post_receives(1);
    rig.post(&a, Work::send(1, Message::new()).signalled());
    let done = rig.completions(2);
    assert_eq!((sent(&done), received(&done)[0].0.len()), (vec![(1, Ok(()))], 0));
    let from = export(&rig, 4096).place();
    rig.post(&a, Work::new(2, Operation::Read { into: rig.pool.try_alloc(8).unwrap(), len: 0, from }));
    let done = rig.completions(1);
    assert_eq!(sent(&done).len(), 1);
}

fn export(rig: &Rig, len: usize) -> ExportedMemory {
    let memory = ExportMemory::new(Region::builder(len), len).unwrap();
    ExportedMemory::register(&rig.domain, &memory, ALL).unwrap()
}

#[test]
fn memory_is_read_and_written_by_the_peer() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    rig.post_receives(1);
    let (exported, ledger) = (export(&rig, 64 << 10), CopyLedger::new());
    let place = exported.place();
    for len in [1, 100, 4096, 60_000] {
        let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        let to = place.at(13);
        let write = Operation::Write { payload: rig.message(&bytes), to, immediate: None };
        rig.post(&a, Work::new(1, write).signalled());
        assert_eq!(sent(&rig.completions(1)), [(1, Ok(()))]);
        let mut seen = vec![0; len];
        exported.memory().read(13, &mut seen, &ledger).unwrap();
        assert_eq!(seen, bytes);
        let read = Operation::Read { into: rig.pool.try_alloc(len).unwrap(), len, from: to };
        rig.post(&a, Work::new(2, read));
        let done = rig.completions(1);
        let [Completion::Sent { work: Work { operation: Operation::Read { into, .. }, .. }, .. }] = &done[..]
        else {
            panic!("{done:?}")
        };
        assert_eq!(&into[..], &bytes);
    }
    let told = Operation::Write { payload: rig.message(b"told"), to: place, immediate: Some(42) };
    rig.post(&a, Work::new(3, told).signalled());
    let done = rig.completions(2);
    let (got, info) = &received(&done)[0];
    assert_eq!((got.len(), info.bytes, info.immediate, info.was_write), (0, 4, Some(42), true));
}

/// A device would keep them, and all behind them, for ever.
#[test]
fn a_peer_that_serves_no_reads_is_asked_for_none() {
    let Some(rig) = Rig::new() else { return };
    let (a, b) = (rig.queue_pair(), rig.queue_pair());
    rig.connect_for_reads(&a, Psn::new(1), b.number(), Psn::new(2), 0);
    rig.connect(&b, Psn::new(2), a.number(), Psn::new(1));
    rig.post_receives(1);
    let word = || rig.pool.try_alloc(8).unwrap();
    let at = export(&rig, 4096).place();
    let operations = [
        Operation::Read { into: word(), len: 8, from: at },
        Operation::FetchAdd { into: word(), at, add: 2 },
        Operation::CompareSwap { into: word(), at, compare: 0, swap: 1 },
    ];
    for operation in operations {
        let work = Work::new(1, operation);
        assert_eq!(a.prepare(&work), Err(Unfit::NoReads));
        assert!(matches!(a.post(&mut VecDeque::from([work])), Err(PostError::Unfit(Unfit::NoReads))));
    }
    rig.post(&a, Work::send(2, rig.message(b"all the same")));
    assert_eq!(sent(&rig.completions(2)), [(2, Ok(()))]);
}

#[test]
fn words_are_exchanged_and_added_to() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    let exported = export(&rig, 4096);
    assert_ne!(rig.context.limits().unwrap().atomics, AtomicScope::None);
    exported.memory().store_u64(8, 40).unwrap();
    let at = exported.place().at(8);
    let word = || rig.pool.try_alloc(8).unwrap();
    let operations = [
        (Operation::FetchAdd { into: word(), at, add: 2 }, 40, 42),
        (Operation::CompareSwap { into: word(), at, compare: 41, swap: 1 }, 42, 42),
        (Operation::CompareSwap { into: word(), at, compare: 42, swap: u64::MAX }, 42, u64::MAX),
        (Operation::FetchAdd { into: word(), at, add: 3 }, u64::MAX, 2),
    ];
    for (operation, before, after) in operations {
        rig.post(&a, Work::new(1, operation));
        let done = rig.completions(1);
        let [Completion::Sent { work, result: Ok(()), .. }] = &done[..] else { panic!("{done:?}") };
        let (Operation::FetchAdd { into, .. } | Operation::CompareSwap { into, .. }) = &work.operation else {
            panic!("{work:?}")
        };
        assert_eq!(u64::from_ne_bytes(into[..].try_into().unwrap()), before);
        assert_eq!(exported.memory().load_u64(8), Ok(after));
    }
}

#[test]
fn a_wrong_key_harms_its_own_queue_pair_alone() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    let (c, _d) = rig.pair();
    let exported = export(&rig, 4096);
    let read = |from| Work::new(1, Operation::Read { into: rig.pool.try_alloc(64).unwrap(), len: 64, from });
    let place = exported.place();
    rig.post(&a, read(RemotePlace { key: place.key ^ 0x5500, ..place }));
    assert_eq!(sent(&rig.completions(1)), [(1, Err(WorkFault::RemoteAccess))]);
    rig.post(&c, read(place));
    assert_eq!(sent(&rig.completions(1)), [(1, Ok(()))]);
    rig.post(&c, read(place.at(4096 - 63)));
    assert_eq!(sent(&rig.completions(1)), [(1, Err(WorkFault::RemoteAccess))], "one byte too far");
}

#[test]
fn memory_that_is_no_more_exported_is_not_reached() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    let exported = export(&rig, 4096);
    let place = exported.place();
    drop(exported);
    let write = Operation::Write { payload: rig.message(&[1; 500]), to: place, immediate: None };
    rig.post(&a, Work::new(1, write).signalled());
    assert_eq!(sent(&rig.completions(1)), [(1, Err(WorkFault::RemoteAccess))]);
}

/// All memory is ours again when a queue pair has failed, whatever had been signalled.
#[test]
fn failing_gives_everything_back() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    // No receive buffer, so that nothing is acknowledged.
    let mut work: VecDeque<_> = (0..10).map(|tag| Work::send(tag, rig.message(&[1; 400]))).collect();
    work.iter().for_each(|work| a.prepare(work).unwrap());
    assert_eq!(a.post(&mut work).unwrap(), 10);
    assert_eq!((a.under_way(), rig.completions.under_way()), (10, 10));
    a.fail().unwrap();
    let done = rig.completions(10);
    let tags: Vec<_> = sent(&done).iter().map(|(tag, result)| (*tag, result.is_err())).collect();
    assert_eq!(tags, (0..10).map(|tag| (tag, true)).collect::<Vec<_>>());
    assert_eq!(rig.completions.under_way(), 0);
    let mut late = VecDeque::from([Work::send(11, rig.message(b"late"))]);
    assert!(matches!(a.post(&mut late), Err(PostError::NotReady)));
    assert_eq!(late.len(), 1, "it comes back");
    drop(done);
    drop(late);
    assert_eq!(rig.pool.stats().in_use_bytes, 0);
}

#[test]
fn states_have_an_order() {
    let Some(rig) = Rig::new() else { return };
    let a = rig.queue_pair();
    let mut work = VecDeque::from([Work::send(1, rig.message(b"early"))]);
    assert!(matches!(a.post(&mut work), Err(PostError::NotReady)));
    assert!(a.send(Psn::new(1), 1).is_err_and(|error| error.errno == 22));
    a.init(1, RemoteAccess::default()).unwrap();
    assert!(a.init(1, RemoteAccess::default()).is_err());
    a.fail().unwrap();
    a.fail().unwrap();
    assert_eq!(a.state(), QueuePairState::Failed);
}

/// Dropped in the worst order, and with everything under way: memory comes back when the device is done with it, not before.
#[test]
fn things_are_destroyed_in_the_order_that_the_device_needs() {
    let Some(rig) = Rig::new() else { return };
    let (a, b) = rig.pair();
    rig.post_receives(8);
    let mut work: VecDeque<_> = (0..10).map(|tag| Work::send(tag, rig.message(&[1; 2000]))).collect();
    work.iter().for_each(|work| a.prepare(work).unwrap());
    assert_eq!(a.post(&mut work).unwrap(), 10);
    let Rig { context, domain, completions, receives, pool } = rig;
    drop((context, domain));
    let queue = completions.clone();
    drop((completions, receives));
    drop(a);
    assert!(pool.stats().in_use_bytes > 0, "receive buffers, and what is complete and was not looked at");
    drop(b);
    assert_eq!(queue.under_way(), 0, "the last queue pair held the receive queue");
    drop(queue);
    assert_eq!(pool.stats().in_use_bytes, 0);
    let regions = pool.regions();
    drop(pool);
    assert!(!regions.is_empty());
}

#[test]
fn a_region_that_goes_is_deregistered_first() {
    let Some(rig) = Rig::new() else { return };
    let region = Region::builder(1 << 20).build().unwrap();
    let key = rig.domain.lkey(&region).unwrap();
    assert_eq!(rig.domain.lkey(&region.clone()).unwrap(), key);
    assert_eq!(rig.domain.regions(), 1);
    drop(region);
    assert_eq!(rig.domain.regions(), 0);
    let (outlives, domain) = (Region::builder(4096).build().unwrap(), rig.domain.clone());
    domain.lkey(&outlives).unwrap();
    drop((domain, rig));
    drop(outlives);
}

#[test]
fn a_completion_wakes_one_who_sleeps() {
    let Some(rig) = Rig::new() else { return };
    let (a, _b) = rig.pair();
    rig.post_receives(1);
    assert!(!rig.completions.take_signal().unwrap());
    rig.completions.arm().unwrap();
    rig.post(&a, Work::send(1, rig.message(b"ring")).signalled());
    let (until, mut signalled) = (Instant::now() + LIMIT, false);
    while !signalled {
        signalled = rig.completions.take_signal().unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(Instant::now() < until);
    }
    assert_eq!(rig.completions(2).len(), 2);
    assert!(!rig.completions.take_signal().unwrap(), "armed once, it rings once");
}

#[test]
fn a_completion_queue_takes_no_more_than_it_has_entries_for() {
    let Some(rig) = Rig::new() else { return };
    let short = CompletionQueue::new(&rig.context, 64).unwrap();
    let receives = SharedReceiveQueue::new(&rig.domain, &short, 16).unwrap();
    let caps = QueuePairCaps { depth: 4096, ..QueuePairCaps::default() };
    assert!(QueuePair::new(&rig.domain, &receives, caps).is_err_and(|error| error.errno == 28));
    let caps = QueuePairCaps { depth: 48, ..caps };
    drop(QueuePair::new(&rig.domain, &receives, caps).unwrap());
    drop(QueuePair::new(&rig.domain, &receives, caps).unwrap());
}

/// What a peer is shown, it alone can read, and only as long as it is shown.
#[test]
fn a_window_shows_memory_to_one_queue_pair_until_it_is_invalid() {
    let Some(rig) = Rig::new() else { return };
    let ((a, b), (_c, d)) = (rig.pair(), rig.pair());
    let window = a.add_window().unwrap();
    let shown = rig.buffer(&[7; 4000]).freeze();
    let read =
        |from| Work::new(1, Operation::Read { into: rig.pool.try_alloc(4000).unwrap(), len: 4000, from });
    let mut keys = Vec::new();
    for _ in 0..2 {
        let place = a.aim(window, shown.clone()).unwrap();
        assert_eq!(a.aim(window, shown.clone()), Err(Unfit::Window));
        rig.post(&a, Work::new(2, Operation::Bind { window }));
        assert_eq!(sent(&rig.completions(1)), [(2, Ok(()))]);
        rig.post(&b, read(place));
        let done = rig.completions(1);
        let [Completion::Sent { work: Work { operation: Operation::Read { into, .. }, .. }, .. }] = &done[..]
        else {
            panic!("{done:?}")
        };
        assert_eq!(&into[..], [7; 4000]);
        rig.post(&a, Work::new(3, Operation::Invalidate { window }));
        assert_eq!(sent(&rig.completions(1)), [(3, Ok(()))]);
        assert!(a.let_go(window).is_some() && a.let_go(window).is_none());
        keys.push(place.key);
    }
    assert_ne!(keys[0], keys[1]);
    let place = a.aim(window, shown).unwrap();
    rig.post(&a, Work::new(2, Operation::Bind { window }));
    rig.completions(1);
    rig.post(&d, read(place));
    assert_eq!(
        sent(&rig.completions(1)),
        [(1, Err(WorkFault::RemoteAccess))],
        "another queue pair of the domain"
    );
    rig.post(&b, read(RemotePlace { key: keys[1], ..place }));
    assert_eq!(sent(&rig.completions(1)), [(1, Err(WorkFault::RemoteAccess))], "the key of last time");
}

/// A window of exported memory lets its peer do what it says, in its range, and nobody else; and nobody when it is closed. The
/// device refuses, whatever a peer knows or asks for.
#[test]
fn a_window_of_exported_memory_lets_one_peer_do_so_much_until_it_is_closed() {
    let Some(rig) = Rig::new() else { return };
    let memory = ExportMemory::new(Region::builder(8192), 8192).unwrap();
    let part = std::sync::Arc::new(Showable::register(&rig.domain, &memory, 4096..6144).unwrap());
    let all = RemoteAccess { read: true, write: true, atomic: true };
    let only = |read, write, atomic| RemoteAccess { read, write, atomic };
    let read = |from, len| Operation::Read { into: rig.pool.try_alloc(len).unwrap(), len, from };
    let write = |to, len| Operation::Write { payload: rig.message(&vec![9; len]), to, immediate: None };
    let add = |at| Operation::FetchAdd { into: rig.pool.try_alloc(8).unwrap(), at, add: 1 };
    // What is done through a window that allows so much; and whether it is closed before.
    let outcome = |access: RemoteAccess, closed: bool, operation: &dyn Fn(RemotePlace) -> Operation| {
        let (begins, serves) = (rig.one_sided(), rig.one_sided());
        rig.connect_both(&begins, &serves);
        let (window, place) = serves.open_window(part.clone(), access).unwrap();
        rig.post(&serves, Work::new(1, Operation::Bind { window }).signalled());
        assert_eq!(sent(&rig.completions(1)), [(1, Ok(()))]);
        if closed {
            serves.close_window(window).unwrap();
        }
        rig.post(&begins, Work::new(2, operation(place)).signalled());
        let (_, result) = sent(&rig.completions(1))[0];
        result
    };
    let refused = |result: Result<(), WorkFault>| {
        matches!(result, Err(WorkFault::RemoteAccess | WorkFault::RemoteRequest))
    };
    assert_eq!(outcome(all, false, &|at| read(at, 2048)), Ok(()));
    assert_eq!(outcome(only(false, true, false), false, &|at| write(at, 2048)), Ok(()));
    assert_eq!(outcome(only(false, false, true), false, &|at| add(at.at(8))), Ok(()));
    let before = memory.load_u64(4096 + 8).unwrap();
    assert!(refused(outcome(only(true, true, false), false, &|at| add(at.at(8)))), "no atomics");
    assert!(refused(outcome(only(true, false, true), false, &|at| write(at, 8))), "no writing");
    assert!(refused(outcome(only(false, true, true), false, &|at| read(at, 8))), "no reading");
    for wrong in [0_u64.wrapping_sub(8), 2044, 4096] {
        assert!(refused(outcome(all, false, &|at| read(at.at(wrong), 8))), "outside: {wrong:#x}");
        assert!(refused(outcome(all, false, &|at| write(at.at(wrong), 8))), "outside: {wrong:#x}");
    }
    let other_key = |at: RemotePlace| RemotePlace { key: at.key ^ 0x10, ..at };
    assert!(refused(outcome(all, false, &|at| write(other_key(at), 8))), "another key");
    for operation in [&read as &dyn Fn(RemotePlace, usize) -> Operation, &write] {
        assert!(refused(outcome(all, true, &|at| operation(at, 8))), "closed");
    }
    assert_eq!(memory.load_u64(4096 + 8).unwrap(), before, "what was refused did nothing");
    for untouched in [4096 - 8, 6144, 8184] {
        assert_eq!(memory.load_u64(untouched).unwrap(), 0);
    }
    // Of another pair, with everything right but that.
    let ((begins, serves), (stranger, other)) =
        ((rig.one_sided(), rig.one_sided()), (rig.one_sided(), rig.one_sided()));
    rig.connect_both(&begins, &serves);
    rig.connect_both(&stranger, &other);
    let (window, place) = serves.open_window(part.clone(), all).unwrap();
    rig.post(&serves, Work::new(1, Operation::Bind { window }).signalled());
    rig.completions(1);
    rig.post(&stranger, Work::new(2, read(place, 8)));
    assert_eq!(sent(&rig.completions(1)), [(2, Err(WorkFault::RemoteAccess))]);
    // And what is sent to those that receive nothing takes no buffer from anybody.
    rig.post_receives(2);
    rig.post(&begins, Work::send(3, rig.message(b"for nobody")).signalled());
    assert!(matches!(sent(&rig.completions(1))[..], [(3, Err(_))]));
    assert_eq!(rig.receives.posted(), 2);
}
