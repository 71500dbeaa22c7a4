//! Operations between two lanes, and a peer that lies.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use zc_core::memory::{Backing, CopyPlace, ExportMemory, PeerMapping, Region, RegionError, Sealing};
use zc_core::transport::*;
use zc_core::wire::RemoteStatus::{self, *};

use super::record::{Granted, Record, key_of};
use crate::common::{End, Setup, body, pair, run};
use crate::hostile_tests::{Evil, join};
use crate::layout::{NOTIFIED, REMOTE_CONSUMED, REMOTE_RING};
use crate::limits::{
    MAX_REMOTE_BYTES, MAX_REMOTE_OPERATIONS, MAX_REMOTE_WINDOWS, NOTIFY_WINDOW, REMOTE_SLOTS,
};
use crate::words::{PeerWords, ReadWords, WriteWords};

fn memory(len: usize) -> ExportMemory {
    ExportMemory::new(builder(len).prefault(true), len).unwrap()
}

fn builder(len: usize) -> zc_core::memory::RegionBuilder {
    Region::builder(len).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites)
}

/// Takes as many notifications as there is room for.
#[derive(Default)]
struct Sink {
    room: AtomicUsize,
    taken: AtomicU64,
    waiting: Mutex<Option<Waker>>,
}

impl Sink {
    fn make_room(&self, count: usize) {
        self.room.store(count, SeqCst);
        let waiting = self.waiting.lock().take();
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl NotifySink for Sink {
    fn poll_notify(&self, cx: &mut Context<'_>, value: u64) -> Poll<()> {
        if self.room.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_err() {
            *self.waiting.lock() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        assert_eq!(self.taken.swap(value, SeqCst) + 1, value, "in order");
        Poll::Ready(())
    }
}

/// A write of nothing with a notification.
fn tell(value: u64) -> RemoteOp {
    RemoteOp::Write { message: vec![].into(), notify: Some(value) }
}

fn grant_to(end: &mut End, memory: &ExportMemory, access: Access, notify: &Arc<Sink>) -> RemoteKey {
    let range = 64..memory.len();
    let grant = RemoteGrant { memory: memory.clone(), range, access, notify: notify.clone() };
    end.lane.remote.as_mut().unwrap().grant(grant).unwrap()
}

/// Lets an end do what it can without anybody's request.
fn turn(end: &mut End, out: &mut Batch<RemoteCompletion>) -> Result<(), LaneError> {
    let mut cx = Context::from_waker(Waker::noop());
    let _ = end.lane.drive.as_mut().unwrap().poll_drive(&mut cx, std::time::Instant::now());
    match end.lane.remote.as_mut().unwrap().poll_completions(&mut cx, out) {
        Poll::Ready(done) => done,
        Poll::Pending => Ok(()),
    }
}

/// Does an operation of `a` in the memory of `b`.
async fn operate(a: &mut End, b: &mut End, key: &RemoteKey, at: u64, op: RemoteOp) -> RemoteCompletion {
    let token = a.lane.remote.as_mut().unwrap().start(key, at, op).unwrap();
    let mut out = Batch::new();
    loop {
        turn(a, &mut out).unwrap();
        if let Some(done) = out.drain().next() {
            assert_eq!(done.token, token);
            return done;
        }
        turn(b, &mut Batch::new()).unwrap();
        tokio::task::yield_now().await;
    }
}

fn read(end: &End, len: usize) -> RemoteOp {
    RemoteOp::Read { into: end.pool.try_alloc(len).unwrap(), len }
}

fn write(bytes: Vec<u8>) -> RemoteOp {
    RemoteOp::Write { message: bytes.into(), notify: None }
}

#[test]
fn operations_are_done_where_the_memory_is() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (memory, sink) = (memory(100_000), Arc::new(Sink::default()));
        let key = grant_to(&mut b, &memory, Access::ALL, &sink);
        let done = operate(&mut a, &mut b, &key, 3, write(body(70_000, 1))).await;
        assert_eq!(done.status, Done);
        let mut seen = vec![0; 70_000];
        memory.read(67, &mut seen, &b.ledger).unwrap();
        assert!(seen == body(70_000, 1));
        // From now on the owner takes no part.
        let (op, mut out) = (read(&a, 70_000), Batch::new());
        a.lane.remote.as_mut().unwrap().start(&key, 3, op).unwrap();
        a.lane.remote.as_mut().unwrap().start(&key, 8, RemoteOp::FetchAdd { add: 5 }).unwrap();
        turn(&mut a, &mut out).unwrap();
        let done: Vec<_> = out.drain().collect();
        assert!(done[0].read.as_ref().unwrap()[..] == body(70_000, 1)[..]);
        assert_eq!(memory.load_u64(72).unwrap(), done[1].value + 5);
        assert_eq!(a.ledger.snapshot().copied_at(CopyPlace::Remote), 140_000, "and nothing else");
        let swap = RemoteOp::CompareSwap { expected: done[1].value + 5, new: 9 };
        operate(&mut a, &mut b, &key, 8, swap).await;
        assert_eq!(memory.load_u64(72).unwrap(), 9);
        for (at, op, status) in [
            (99_936, write(vec![1]), OutOfBounds),
            (u64::MAX, write(vec![1]), OutOfBounds),
            (99_928, RemoteOp::FetchAdd { add: 1 }, Done),
            (99_930, RemoteOp::FetchAdd { add: 1 }, OutOfBounds),
            (4, RemoteOp::FetchAdd { add: 1 }, Misaligned),
        ] {
            assert_eq!(operate(&mut a, &mut b, &key, at, op).await.status, status, "at {at}");
        }
    });
}

#[test]
fn a_key_allows_what_was_granted_until_it_is_revoked() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (memory, sink) = (memory(8192), Arc::new(Sink::default()));
        let (reads, writes) =
            (grant_to(&mut b, &memory, Access::READ, &sink), grant_to(&mut b, &memory, Access::WRITE, &sink));
        let never = grant_to(&mut b, &memory, Access::READ, &sink);
        let add = || RemoteOp::FetchAdd { add: 1 };
        for (key, op, status) in [
            (&reads, read(&a, 8), Done),
            (&reads, write(vec![1]), Denied),
            (&reads, add(), Denied),
            (&writes, write(vec![1]), Done),
            (&writes, read(&a, 8), Denied),
            (&writes, add(), Denied),
            (&RemoteKey::from_bytes(&[7; 16]).unwrap(), add(), RemoteStatus::Revoked),
            (&RemoteKey::from_bytes(&[7; 9]).unwrap(), add(), RemoteStatus::Revoked),
        ] {
            assert_eq!(operate(&mut a, &mut b, key, 0, op).await.status, status);
        }
        let owner = b.lane.remote.as_mut().unwrap();
        assert_eq!(owner.revoke(&never), zc_core::transport::Revoked::Done, "the peer has nothing of it");
        assert_eq!(owner.revoke(&writes), zc_core::transport::Revoked::Retired);
        assert_eq!(owner.revoke(&writes), zc_core::transport::Revoked::Done, "twice");
        // The very next operation knows.
        for (key, op, status) in [
            (&writes, write(vec![2]), RemoteStatus::Revoked),
            (&never, read(&a, 8), RemoteStatus::Revoked),
            (&reads, read(&a, 8), Done),
        ] {
            assert_eq!(operate(&mut a, &mut b, key, 0, op).await.status, status);
        }
        let again = grant_to(&mut b, &memory, Access::WRITE, &sink);
        assert_eq!(operate(&mut a, &mut b, &again, 0, write(vec![3])).await.status, Done);
        let mut seen = [0];
        memory.read(64, &mut seen, &b.ledger).unwrap();
        assert_eq!(seen, [3]);
    });
}

#[test]
fn operations_wait_in_order_and_are_bounded() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (memory, sink) = (memory(4096), Arc::new(Sink::default()));
        let keys: Vec<_> =
            (0..MAX_REMOTE_OPERATIONS).map(|_| grant_to(&mut b, &memory, Access::ALL, &sink)).collect();
        let mut cx = Context::from_waker(Waker::noop());
        let remote = a.lane.remote.as_mut().unwrap();
        for key in &keys {
            assert!(remote.poll_ready(&mut cx).is_ready());
            remote.start(key, 0, RemoteOp::FetchAdd { add: 1 }).unwrap();
        }
        assert!(remote.poll_ready(&mut cx).is_pending());
        let (mut out, mut values) = (Batch::new(), Vec::new());
        while values.len() < keys.len() {
            turn(&mut b, &mut Batch::new()).unwrap();
            turn(&mut a, &mut out).unwrap();
            values.extend(out.drain().map(|done| done.value));
            tokio::task::yield_now().await;
        }
        assert_eq!(values, (0..keys.len() as u64).collect::<Vec<_>>());
    });
}

#[test]
fn notifications_are_bounded_and_none_is_lost() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (memory, sink) = (memory(4096), Arc::new(Sink::default()));
        let key = grant_to(&mut b, &memory, Access::WRITE, &sink);
        let notify = |n: u64| RemoteOp::Write { message: n.to_ne_bytes().to_vec().into(), notify: Some(n) };
        for n in 1..=NOTIFY_WINDOW {
            assert_eq!(operate(&mut a, &mut b, &key, 0, notify(n)).await.status, Done);
        }
        assert_eq!(operate(&mut a, &mut b, &key, 0, notify(0)).await.status, Busy);
        assert_eq!(memory.load_u64(64).unwrap(), NOTIFY_WINDOW, "and nothing was written");
        sink.make_room(3);
        turn(&mut b, &mut Batch::new()).unwrap();
        assert_eq!(sink.taken.load(SeqCst), 3);
        for n in 1..=3 {
            assert_eq!(operate(&mut a, &mut b, &key, 0, notify(NOTIFY_WINDOW + n)).await.status, Done);
        }
        sink.make_room(1000);
        while sink.taken.load(SeqCst) < NOTIFY_WINDOW + 3 {
            turn(&mut a, &mut Batch::new()).unwrap();
            turn(&mut b, &mut Batch::new()).unwrap();
        }
    });
}

#[test]
fn more_than_the_peer_would_map_is_not_granted() {
    run(async {
        let (_a, mut b) = pair(&Setup::default()).await;
        let remote = b.lane.remote.as_mut().unwrap();
        let mut grant = |memory: ExportMemory| {
            let range = 0..memory.len();
            remote.grant(RemoteGrant {
                memory,
                range,
                access: Access::ALL,
                notify: Arc::new(Sink::default()),
            })
        };
        let refused = |granted: Result<RemoteKey, LaneError>| match granted {
            Err(LaneError::Other(why)) => why,
            other => panic!("{other:?}"),
        };
        let private = ExportMemory::new(Region::builder(4096), 4096).unwrap();
        assert!(refused(grant(private)).contains("memfd"));
        let sparse = |len| ExportMemory::new(builder(len), len).unwrap();
        assert!(refused(grant(sparse(4096))).contains("prefaulted"));
        assert!(refused(grant(sparse(MAX_REMOTE_BYTES as usize + 4096))).contains("bytes"));
        grant(memory(4096)).unwrap();
        assert!(refused(grant(sparse(MAX_REMOTE_BYTES as usize))).contains("bytes"), "together");
    });
    run(async {
        let (_a, mut b) = pair(&Setup::default()).await;
        let sink = Arc::new(Sink::default());
        for _ in 0..MAX_REMOTE_WINDOWS {
            grant_to(&mut b, &memory(4096), Access::ALL, &sink);
        }
        let notify = Arc::new(Sink::default());
        let grant = RemoteGrant { memory: memory(4096), range: 0..8, access: Access::ALL, notify };
        assert!(matches!(b.lane.remote.as_mut().unwrap().grant(grant), Err(LaneError::Other(_))), "exports");
    });
}

#[test]
fn strangers_do_it_by_records() {
    run(async {
        let untrusted = Setup { trust: Trust::Untrusted, ..Setup::default() };
        let (a, b) = crate::common::pair_of(&Setup::default(), &untrusted).await;
        for end in [a, b] {
            assert_eq!(end.lane.caps.one_sided, OneSided::Emulated);
            assert!(end.lane.remote.is_none());
        }
    });
}

/// What the good side wrote in slot `n` of its records.
fn said(evil: &Evil, n: usize) -> Record {
    let region = PeerMapping::new(1 << 20).map(evil.theirs[0].try_clone().unwrap()).unwrap();
    let words = PeerWords::new(&region, 4096);
    let at = REMOTE_RING + n * crate::layout::SLOT_WORDS;
    let mut record = [0; 6];
    words.load_all(at + 2, &mut record);
    Record::decode(crate::layout::Head::unpack(words.load(at)).1, record).unwrap()
}

fn say(evil: &mut Evil, record: Record) {
    let (head, words) = record.encode();
    evil.say(head, &words);
}

fn send(evil: &mut Evil, fd: &OwnedFd) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(evil.link.poll_send_descriptors(&mut cx, &[fd.as_fd()]).is_ready());
}

/// A key to read is a descriptor to read.
#[test]
fn who_may_only_read_can_not_map_it_writable() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let sink = Arc::new(Sink::default());
        let memory = memory(4096);
        memory.store_u64(8, 7).unwrap();
        for (access, writable) in [(Access::READ, false), (Access::ALL, true)] {
            let key = grant_to(&mut good, &memory, access, &sink);
            say(&mut evil, Record::Ask(key_of(&key).unwrap()));
            turn(&mut good, &mut Batch::new()).unwrap();
            let Record::Grant(granted) = said(&evil, usize::from(writable)) else { panic!("no grant") };
            assert_eq!((granted.bytes, granted.start, granted.len), (4096, 64, 4032));
            assert!(granted.access == access && granted.fresh);
            let fd =
                std::future::poll_fn(|cx| evil.link.poll_recv_descriptors(cx, 1)).await.unwrap().remove(0);
            let map = |fd: &OwnedFd, writable| {
                let mapping =
                    PeerMapping { writable, sealing: Sealing::AnyoneWrites, ..PeerMapping::new(4096) };
                mapping.map(fd.try_clone().unwrap())
            };
            assert_eq!(ExportMemory::of_peer(map(&fd, false).unwrap()).unwrap().load_u64(8), Ok(7));
            match map(&fd, true) {
                Ok(_) => assert!(writable, "it can be written"),
                Err(error) => assert!(!writable && matches!(error, RegionError::Os { .. }), "{error}"),
            }
        }
    });
}

/// Asks about a key, says `lies`, and returns what the lane died of.
async fn caught(lies: impl FnOnce(&mut Evil)) -> String {
    let (mut good, mut evil) = join(Trust::Cooperative).await;
    let key = RemoteKey::from_bytes(&[9; 16]).unwrap();
    good.lane.remote.as_mut().unwrap().start(&key, 0, RemoteOp::FetchAdd { add: 1 }).unwrap();
    assert_eq!(said(&evil, 0), Record::Ask(key_of(&key).unwrap()));
    lies(&mut evil);
    for _ in 0..1000 {
        let mut out = Batch::new();
        if let Err(error) = turn(&mut good, &mut out) {
            return error.to_string();
        }
        assert!(out.is_empty(), "{out:?}");
        tokio::task::yield_now().await;
    }
    panic!("it was believed")
}

/// A sealed memfd of any length, with pages for the first bytes.
fn odd_export(bytes: u64, there: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, bytes).unwrap();
    rustix::fs::fallocate(&fd, FallocateFlags::KEEP_SIZE, 0, there).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    fd
}

fn export(bytes: u64) -> OwnedFd {
    memory(bytes as usize).region().fd().unwrap().try_clone_to_owned().unwrap()
}

type Lie = Box<dyn FnOnce(&mut Evil)>;

#[test]
fn lies_end_the_lane() {
    let honest = Granted { window: 1, bytes: 8192, start: 0, len: 64, access: Access::ALL, fresh: true };
    let told = |granted: Granted, fd: Option<OwnedFd>| {
        move |evil: &mut Evil| {
            fd.iter().for_each(|fd| send(evil, fd));
            say(evil, Record::Grant(granted));
        }
    };
    let read_only = crate::sys::reopen_read_only(export(8192).as_fd()).unwrap();
    let cases: Vec<(&str, Lie)> = vec![
        ("size", Box::new(told(honest, Some(export(4096))))),
        ("size", Box::new(told(honest, Some(export(16384))))),
        (
            "size",
            Box::new(told(
                Granted { bytes: 4097, start: 4096, len: 1, ..honest },
                Some(odd_export(4097, 8192)),
            )),
        ),
        ("holes", Box::new(told(honest, Some(odd_export(8192, 4096))))),
        (
            "revoked count",
            Box::new(move |evil| {
                told(honest, Some(export(8192)))(evil);
                say(evil, Record::Revoke(key_of(&RemoteKey::from_bytes(&[9; 16]).unwrap()).unwrap()));
            }),
        ),
        ("access", Box::new(told(honest, Some(read_only)))),
        ("exports", Box::new(told(Granted { bytes: MAX_REMOTE_BYTES + 1, ..honest }, Some(export(8192))))),
        ("remote: export", Box::new(told(Granted { fresh: false, ..honest }, None))),
        ("range", Box::new(told(Granted { len: 8193, ..honest }, None))),
        ("range", Box::new(told(Granted { len: 0, ..honest }, None))),
        ("range", Box::new(told(Granted { start: u64::MAX - 7, len: 64, ..honest }, None))),
        ("range", Box::new(told(Granted { start: 4, ..honest }, None))),
        ("link: exports", Box::new(|evil| (0..2).for_each(|_| send(evil, &export(4096))))),
        ("revoked key", Box::new(|evil| say(evil, Record::Revoke([1, 1])))),
        ("two questions", Box::new(|evil| (0..2).for_each(|_| say(evil, Record::Ask([1, 1]))))),
        ("record", Box::new(|evil| evil.say(crate::layout::Head { kind: 9, flags: 0, count: 0 }, &[]))),
    ];
    for (n, (field, lies)) in cases.into_iter().enumerate() {
        let error = run(caught(lies));
        assert!(error.contains(field), "case {n}: {error} instead of {field}");
    }
}

#[test]
fn answers_to_no_question_and_counts_that_lie_end_the_lane() {
    run(async {
        for record in [Record::Refuse { later: false }, Record::Refuse { later: true }] {
            let (mut good, mut evil) = join(Trust::Cooperative).await;
            say(&mut evil, record);
            let error = turn(&mut good, &mut Batch::new()).unwrap_err().to_string();
            assert!(error.contains("no question"), "{error}");
        }
        // An export that was not asked for would be kept for nobody.
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        send(&mut evil, &export(4096));
        let error = loop {
            if let Err(error) = turn(&mut good, &mut Batch::new()) {
                break error.to_string();
            }
            tokio::task::yield_now().await;
        };
        assert!(error.contains("link: exports"), "{error}");
        // More notifications than there is a window for, while the export takes none.
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let sink = Arc::new(Sink::default());
        let key = key_of(&grant_to(&mut good, &memory(4096), Access::ALL, &sink)).unwrap();
        say(&mut evil, Record::Ask(key));
        turn(&mut good, &mut Batch::new()).unwrap();
        let error = (0..=NOTIFY_WINDOW).find_map(|value| {
            say(&mut evil, Record::Notify { key, value });
            turn(&mut good, &mut Batch::new()).err()
        });
        assert!(error.unwrap().to_string().contains("notifications"));
        // More of them taken than were sent.
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let key = RemoteKey::from_bytes(&[9; 16]).unwrap();
        let op = RemoteOp::Write { message: vec![1].into(), notify: Some(1) };
        good.lane.remote.as_mut().unwrap().start(&key, 0, op).unwrap();
        evil.words.store(NOTIFIED, 5);
        send(&mut evil, &export(4096));
        let (window, bytes, start, len) = (1, 4096, 0, 64);
        say(
            &mut evil,
            Record::Grant(Granted { window, bytes, start, len, access: Access::ALL, fresh: true }),
        );
        let error = loop {
            if let Err(error) = turn(&mut good, &mut Batch::new()) {
                break error.to_string();
            }
            tokio::task::yield_now().await;
        };
        assert!(error.contains("notified count"), "{error}");
    });
}

/// Who takes no answers can't make us keep ever more of them.
#[test]
fn questions_without_end_are_caught() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let error = (0..1000).find_map(|_| {
            say(&mut evil, Record::Ask([1, 1]));
            turn(&mut good, &mut Batch::new()).err()
        });
        assert!(error.unwrap().to_string().contains("two questions"));
        // An honest peer may ask as often as it likes.
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        for n in 1..=1000 {
            say(&mut evil, Record::Ask([1, 1]));
            turn(&mut good, &mut Batch::new()).unwrap();
            evil.words.publish(REMOTE_CONSUMED, n);
        }
    });
}

/// A write that is done has told, whatever the owner does next.
#[test]
fn what_was_told_before_a_key_is_revoked_is_handed_over() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (memory, sink) = (memory(4096), Arc::new(Sink::default()));
        sink.make_room(1000);
        let key = grant_to(&mut b, &memory, Access::WRITE, &sink);
        assert_eq!(operate(&mut a, &mut b, &key, 0, tell(1)).await.status, Done);
        // More than the ring holds, while the owner does nothing.
        let mut out = Batch::new();
        let mut statuses = Vec::new();
        let all = 2 * u64::from(REMOTE_SLOTS);
        for n in 2..=all {
            a.lane.remote.as_mut().unwrap().start(&key, 0, tell(n)).unwrap();
            turn(&mut a, &mut out).unwrap();
            statuses.extend(out.drain().map(|done| done.status));
        }
        let done = statuses.len() as u64;
        assert!(0 < done && done < all - 1 && statuses.iter().all(|status| *status == Done), "{statuses:?}");
        assert_eq!(b.lane.remote.as_mut().unwrap().revoke(&key), zc_core::transport::Revoked::Retired);
        assert_eq!(sink.taken.load(SeqCst), 1 + done, "all that is done");
        while statuses.len() as u64 + 1 < all {
            turn(&mut b, &mut Batch::new()).unwrap();
            turn(&mut a, &mut out).unwrap();
            statuses.extend(out.drain().map(|done| done.status));
        }
        let late = &statuses[done as usize..];
        assert!(late.iter().all(|status| *status == RemoteStatus::Revoked), "{late:?}");
        assert_eq!(sink.taken.load(SeqCst), 1 + done);
    });
}

/// Also behind an answer whose descriptor nobody has read from the link.
#[test]
fn what_was_told_behind_an_export_is_handed_over_too() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (ours, theirs, sink) = (memory(4096), memory(4096), Arc::new(Sink::default()));
        sink.make_room(1000);
        let key = grant_to(&mut b, &ours, Access::WRITE, &sink);
        assert_eq!(operate(&mut a, &mut b, &key, 0, tell(1)).await.status, Done);
        let other = grant_to(&mut a, &theirs, Access::READ, &Arc::default());
        let op = read(&b, 8);
        b.lane.remote.as_mut().unwrap().start(&other, 0, op).unwrap();
        let mut out = Batch::new();
        turn(&mut a, &mut out).unwrap();
        a.lane.remote.as_mut().unwrap().start(&key, 0, tell(2)).unwrap();
        turn(&mut a, &mut out).unwrap();
        assert_eq!(out.drain().next().map(|done| done.status), Some(Done));
        assert_eq!(b.lane.remote.as_mut().unwrap().revoke(&key), zc_core::transport::Revoked::Retired);
        assert_eq!(sink.taken.load(SeqCst), 2);
        // What was granted is taken back before its descriptor is read.
        a.lane.remote.as_mut().unwrap().revoke(&other);
        b.lane.remote.as_mut().unwrap().revoke(&key);
        while out.is_empty() {
            turn(&mut b, &mut out).unwrap();
            turn(&mut a, &mut Batch::new()).unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(out.drain().next().map(|done| done.status), Some(RemoteStatus::Revoked));
        let again = grant_to(&mut a, &theirs, Access::READ, &Arc::default());
        let op = read(&b, 8);
        assert_eq!(operate(&mut b, &mut a, &again, 0, op).await.status, Done);
    });
}

#[test]
fn what_was_told_before_the_peer_went_is_handed_over() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (memory, sink) = (memory(4096), Arc::new(Sink::default()));
        let key = grant_to(&mut b, &memory, Access::WRITE, &sink);
        assert_eq!(
            operate(&mut a, &mut b, &key, 0, RemoteOp::Write { message: vec![1].into(), notify: None })
                .await
                .status,
            Done
        );
        sink.make_room(1000);
        let mut out = Batch::new();
        a.lane.remote.as_mut().unwrap().start(&key, 0, tell(1)).unwrap();
        turn(&mut a, &mut out).unwrap();
        assert_eq!(out.drain().next().unwrap().status, Done);
        drop(a);
        // The end is known before its one-sided half looks again.
        b.recv().await.unwrap_err();
        assert_eq!(sink.taken.load(SeqCst), 0);
        turn(&mut b, &mut Batch::new()).unwrap_err();
        assert_eq!(sink.taken.load(SeqCst), 1);
    });
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn an_export_without_room_holds_up_no_other_and_says_when_it_has_some() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (full, open) = (Arc::new(Sink::default()), Arc::new(Sink::default()));
        open.room.store(1000, SeqCst);
        let deaf = grant_to(&mut b, &memory(4096), Access::WRITE, &full);
        let keen = grant_to(&mut b, &memory(4096), Access::WRITE, &open);
        for n in 1..=3 {
            assert_eq!(operate(&mut a, &mut b, &deaf, 0, tell(n)).await.status, Done);
            assert_eq!(operate(&mut a, &mut b, &keen, 0, tell(n)).await.status, Done);
        }
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(flag.clone());
        let mut cx = Context::from_waker(&waker);
        // Once more, since its first look may have silenced the bell.
        for _ in 0..2 {
            let deadline = b.lane.drive.as_mut().unwrap().poll_drive(&mut cx, std::time::Instant::now());
            assert_eq!(deadline.unwrap(), None, "nothing is tried again and again");
            assert!(
                b.lane.remote.as_mut().unwrap().poll_completions(&mut cx, &mut Batch::new()).is_pending()
            );
        }
        assert_eq!((full.taken.load(SeqCst), open.taken.load(SeqCst)), (0, 3));
        flag.0.store(false, SeqCst);
        full.room.store(2, SeqCst);
        let waiting = full.waiting.lock().take();
        waiting.unwrap().wake();
        assert!(flag.0.load(SeqCst), "whoever polls the lane is woken");
        turn(&mut b, &mut Batch::new()).unwrap();
        assert_eq!(full.taken.load(SeqCst), 2);
        // The last one waits with a waker that outlives the lane and keeps nothing of it.
        let waiting = full.waiting.lock().take().unwrap();
        drop(b);
        waiting.wake();
    });
}

/// More keys than the ring has room to revoke.
#[test]
fn what_is_revoked_is_known_at_once_however_much_it_is() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (memory, sink) = (memory(4096), Arc::new(Sink::default()));
        let keys: Vec<_> =
            (0..2 * REMOTE_SLOTS + 3).map(|_| grant_to(&mut b, &memory, Access::ALL, &sink)).collect();
        let add = || RemoteOp::FetchAdd { add: 1 };
        for key in &keys {
            assert_eq!(operate(&mut a, &mut b, key, 0, add()).await.status, Done);
        }
        for key in &keys {
            assert_eq!(b.lane.remote.as_mut().unwrap().revoke(key), zc_core::transport::Revoked::Retired);
        }
        // The last one first: its record is not in the ring.
        for key in keys.iter().rev() {
            assert_eq!(operate(&mut a, &mut b, key, 0, add()).await.status, RemoteStatus::Revoked);
        }
        assert_eq!(memory.load_u64(64).unwrap(), keys.len() as u64);
    });
}
