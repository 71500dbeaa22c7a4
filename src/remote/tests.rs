//! Records of any kind and order, against a model that knows what may change.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zc_core::memory::{BufPool, CopyLedger, CopyPlace, ExportMemory, Message, RegionError};
use zc_core::transport::{
    Access, Batch, LaneError, LaneRemote, OneSided, RemoteCompletion, RemoteGrant, RemoteKey, RemoteOp,
    RemoteToken, Revoked, SendToken,
};
use zc_core::wire::{
    MAX_REMOTE_RECORDS, REMOTE_ANSWER_BYTES, RemoteAction, RemoteAnswer, RemoteRequest, RemoteStatus,
};

use super::export::{Export, memory};
use super::state::{EXPIRE_RETRY_MS, Remote};
use super::window::{Expected, Operation};

/// xorshift64*: the same cases in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A number that is likely to be at a bound.
    fn edge(&mut self) -> u64 {
        match self.below(6) {
            0 => self.next(),
            1 => u64::MAX - self.below(10),
            _ => self.below(SIZE + 10),
        }
    }
}

const SIZE: u64 = 256;
/// The peer may write these.
const WRITABLE: std::ops::Range<u64> = 64..192;

fn cases() -> u64 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(256)
}

fn remote() -> Arc<Remote> {
    let pool = BufPool::builder().max_bytes(1 << 20).build();
    Remote::new(OneSided::Emulated, None, pool, Arc::new(CopyLedger::new()), Waker::noop().clone())
}

fn write_request(random: &mut Random, id: u64, keys: &[[u8; 16]]) -> Vec<u8> {
    let len = match random.below(4) {
        0 => 0,
        _ => random.below(80) as u32,
    };
    let extent = random.edge().max(len.into());
    let action = match random.below(5) {
        0 => RemoteAction::Read { len, extent },
        1 => RemoteAction::Write { len, extent, notify: None },
        2 => RemoteAction::Write { len, extent, notify: Some(random.next()) },
        3 => RemoteAction::CompareSwap { expected: 0, new: random.next() },
        _ => RemoteAction::FetchAdd { add: random.next() },
    };
    let key = keys[random.below(keys.len() as u64) as usize];
    let mut record = Vec::new();
    RemoteRequest { id, key, offset: random.edge(), action }.encode(&mut record);
    if matches!(action, RemoteAction::Write { .. }) {
        record.resize(record.len() + len as usize, random.next() as u8 | 1);
    }
    record
}

/// In one segment or in several.
fn message(random: &mut Random, mut record: Vec<u8>) -> Message {
    let mut message = Message::new();
    while !record.is_empty() && message.segments().len() < 8 {
        let rest = record.split_off(random.below(record.len() as u64 + 1) as usize);
        message.push(record).unwrap();
        record = rest;
    }
    message.push(record).unwrap();
    message
}

#[test]
fn fuzz_remote_requests_touch_only_what_is_granted() {
    for case in 1..=cases() {
        let random = &mut Random(case.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let remote = remote();
        let export = Export::new(SIZE as usize, false).unwrap();
        let writable = export.granted_to(&remote, Access::ALL, WRITABLE);
        let readable = export.granted_to(&remote, Access::READ, 0..SIZE);
        let revoked = export.granted_to(&remote, Access::ALL, 0..SIZE);
        export.revoke(&revoked).unwrap();
        let keys = [writable, writable, readable, revoked].map(|key| *key.as_bytes().first_chunk().unwrap());
        let (mut answers, mut tokens) = (0, 0);
        for id in 1..=100 {
            let mut record = write_request(random, id, &keys);
            let spoiled = random.below(60) == 0;
            if spoiled {
                let at = random.below(record.len() as u64) as usize;
                record[at] ^= 1 << random.below(8);
                record.truncate(record.len() - random.below(2) as usize);
            }
            let arrived = remote.arrived(message(random, record));
            assert!(spoiled || arrived.is_ok() || id > 2 * MAX_REMOTE_RECORDS as u64, "{arrived:?}");
            if arrived.is_err() {
                break;
            }
            // A lane that takes answers, and reports some of them.
            while random.below(3) > 0
                && let Some(answer) = remote.next_answer()
            {
                assert!((REMOTE_ANSWER_BYTES..REMOTE_ANSWER_BYTES + 80).contains(&answer.len()));
                answers += 1;
                remote.handed_over(SendToken(answers));
            }
            while tokens < answers && random.below(3) > 0 {
                tokens += 1;
                remote.reported(SendToken(tokens));
                remote.serve_waiting();
            }
        }
        let mut all = [0; SIZE as usize];
        export.read(0, &mut all).unwrap();
        let outside = (0..SIZE).filter(|at| !WRITABLE.contains(at));
        assert!(outside.into_iter().all(|at| all[at as usize] == 0), "case {case}");
    }
}

#[test]
fn fuzz_remote_answers_never_harm() {
    for case in 1..=cases() {
        let random = &mut Random(case.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let remote = remote();
        let asked: Vec<_> = (0..1 + random.below(5)).map(|_| Arc::new(Operation::default())).collect();
        let wanted = [Expected::Bytes(4), Expected::Nothing, Expected::Word];
        for operation in &asked {
            assert!(remote.may_begin(None));
            remote.begun(operation, wanted[random.below(3) as usize]);
        }
        for id in 1..=asked.len() as u64 + 1 {
            let mut record = vec![0x80, random.below(7) as u8, 0, 0];
            let len = random.below(2) as usize * 4;
            record.extend((len as u32).to_le_bytes());
            record.extend((id + random.below(30) / 29).to_le_bytes());
            record.extend((random.below(2) * 9).to_le_bytes());
            record.resize(record.len() + len, 1);
            if remote.arrived(message(random, record)).is_err() {
                break;
            }
            assert!(id <= asked.len() as u64, "an answer to nothing is an error");
        }
        remote.end();
        assert!(remote.arrived(message(random, vec![9; 80])).is_err());
        for operation in asked {
            let stand = operation.stand();
            assert!(stand.open <= 1 && stand.done <= 1);
        }
    }
}

#[test]
fn an_answer_with_the_highest_number_is_an_error() {
    let remote = remote();
    let asked: [Arc<Operation>; 2] = Default::default();
    asked.iter().for_each(|operation| remote.begun(operation, Expected::Nothing));
    let mut record = Vec::new();
    RemoteAnswer { id: u64::MAX, status: RemoteStatus::Done, len: 0, value: 0 }.encode(&mut record);
    let error = remote.arrived(record.into()).unwrap_err();
    assert!(error.contains("out of order"), "{error}");
}

/// A lane that can't take memory back. While it is asked to for the first time, something else happens.
struct Keeps {
    granted: Arc<Mutex<Vec<ExportMemory>>>,
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
}

impl LaneRemote for Keeps {
    fn grant(&mut self, grant: RemoteGrant) -> Result<RemoteKey, LaneError> {
        let mut granted = self.granted.lock();
        granted.push(grant.memory);
        Ok(RemoteKey::from_bytes(&granted.len().to_le_bytes()).unwrap())
    }
    fn revoke(&mut self, _: &RemoteKey) -> Revoked {
        self.meanwhile.take().into_iter().for_each(|meanwhile| meanwhile());
        Revoked::Retired
    }
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        Poll::Ready(Err(LaneError::Closed))
    }
    fn start(&mut self, _: &RemoteKey, _: u64, _: RemoteOp) -> Result<RemoteToken, LaneError> {
        Err(LaneError::Closed)
    }
    fn poll_completions(
        &mut self,
        _: &mut Context<'_>,
        _: &mut Batch<RemoteCompletion>,
    ) -> Poll<Result<(), LaneError>> {
        Poll::Pending
    }
}

/// Whether what the peer has kept is still the export's.
fn is_shared(kept: &ExportMemory, export: &Export) -> bool {
    kept.store_u64(0, export.load_u64(0).unwrap() + 1).unwrap();
    kept.load_u64(0).unwrap() == export.load_u64(0).unwrap()
}

#[test]
fn revoking_while_the_connection_ends_waits_until_the_memory_is_replaced() {
    let export = Arc::new(Export::new(SIZE as usize, false).unwrap());
    let granted = Arc::new(Mutex::new(Vec::<ExportMemory>::new()));
    let keys = Arc::new(Mutex::new(Vec::new()));
    let (told, revoked) = mpsc::channel();
    let meanwhile = {
        let (export, granted, keys) = (export.clone(), granted.clone(), keys.clone());
        move || {
            let (started, begun) = mpsc::channel();
            for key in std::mem::take(&mut *keys.lock()) {
                let (export, kept, told) = (export.clone(), granted.lock()[0].clone(), told.clone());
                let started = started.clone();
                std::thread::spawn(move || {
                    started.send(()).unwrap();
                    export.revoke(&key).unwrap();
                    told.send(is_shared(&kept, &export)).unwrap();
                });
                begun.recv().unwrap();
            }
            // Time for it to be wrong.
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let lane = Keeps { granted: granted.clone(), meanwhile: Some(Box::new(meanwhile)) };
    let pool = BufPool::builder().max_bytes(1 << 20).build();
    let ledger = Arc::new(CopyLedger::new());
    let remote = Remote::new(OneSided::Native, Some(Box::new(lane)), pool, ledger, Waker::noop().clone());
    *keys.lock() = (0..3).map(|_| export.granted_to(&remote, Access::ALL, 0..SIZE)).collect();
    remote.settle();
    for _ in 0..3 {
        assert!(!revoked.recv_timeout(Duration::from_secs(60)).unwrap(), "the peer still has it");
    }
    assert_eq!(export.ledger().copied_at(CopyPlace::Remote), 2 * SIZE, "one copy for all keys");
}

/// A lane whose peer begins an operation whenever one of its keys is about to go.
struct Hasty(Arc<Mutex<Vec<ExportMemory>>>);

impl LaneRemote for Hasty {
    fn grant(&mut self, grant: RemoteGrant) -> Result<RemoteKey, LaneError> {
        let mut granted = self.0.lock();
        granted.push(grant.memory);
        Ok(RemoteKey::from_bytes(&granted.len().to_le_bytes()).unwrap())
    }
    fn revoke(&mut self, _: &RemoteKey) -> Revoked {
        self.0.lock()[0].fetch_add(0, 1).unwrap();
        Revoked::Retired
    }
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        Poll::Ready(Err(LaneError::Closed))
    }
    fn start(&mut self, _: &RemoteKey, _: u64, _: RemoteOp) -> Result<RemoteToken, LaneError> {
        Err(LaneError::Closed)
    }
    fn poll_completions(
        &mut self,
        _: &mut Context<'_>,
        _: &mut Batch<RemoteCompletion>,
    ) -> Poll<Result<(), LaneError>> {
        Poll::Pending
    }
}

#[test]
fn what_is_done_before_a_key_is_revoked_is_in_the_copy() {
    let export = Export::new(SIZE as usize, false).unwrap();
    let pool = BufPool::builder().max_bytes(1 << 20).build();
    let ledger = Arc::new(CopyLedger::new());
    let lane = Box::new(Hasty(Arc::default()));
    let remote = Remote::new(OneSided::Native, Some(lane), pool, ledger, Waker::noop().clone());
    let keys: Vec<_> = (0..3).map(|_| export.granted_to(&remote, Access::ALL, 0..SIZE)).collect();
    export.revoke(&keys[1]).unwrap();
    assert_eq!(export.load_u64(0).unwrap(), 3, "of all keys that ended with this one");
}

/// As long as it lacks memory, the peer keeps what its grant showed it; and other grants end in their time.
#[test]
fn a_grant_that_could_not_be_ended_in_time_is_ended_when_there_is_memory() {
    static LACKS: AtomicBool = AtomicBool::new(false);
    let make = |len, in_memfd| {
        let errno = std::io::Error::from_raw_os_error(libc::ENOMEM);
        if LACKS.load(Relaxed) { Err(RegionError::Os { what: "mmap", errno }) } else { memory(len, in_memfd) }
    };
    let export = Export::made_by(make, SIZE as usize, false).unwrap();
    let granted = Arc::new(Mutex::new(Vec::<ExportMemory>::new()));
    let lane = Keeps { granted: granted.clone(), meanwhile: None };
    let pool = BufPool::builder().max_bytes(1 << 20).build();
    let ledger = Arc::new(CopyLedger::new());
    let remote = Remote::new(OneSided::Native, Some(Box::new(lane)), pool, ledger, Waker::noop().clone());
    let (now, retry) = (Instant::now(), Duration::from_millis(EXPIRE_RETRY_MS));
    let (soon, early) = (now + retry / 10, now + retry / 2);
    let grant = |at| remote.expires(at, export.granted_to(&remote, Access::ALL, 0..SIZE), export.weak());
    grant(now);
    grant(early);
    let kept = granted.lock()[0].clone();

    LACKS.store(true, Relaxed);
    assert_eq!(remote.expire(now), Some(early), "the other one is not late for it");
    assert_eq!(remote.expire(soon), Some(early), "not yet");
    assert!(is_shared(&kept, &export), "it could not be replaced");
    assert_eq!(remote.expire(early), Some(now + retry));
    assert_eq!(remote.expire(now + retry), Some(early + retry));
    assert!(is_shared(&kept, &export));

    LACKS.store(false, Relaxed);
    assert_eq!(remote.expire(early + retry), Some(now + 2 * retry));
    assert!(!is_shared(&kept, &export), "replaced, though nobody asked for it");
    assert_eq!(remote.expire(now + 2 * retry), None);
}

/// A lane whose first operation has ended, and who it is to tell of the next one's end.
#[derive(Default)]
struct Listening {
    begun: u64,
    done: Option<RemoteCompletion>,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl LaneRemote for Listening {
    fn grant(&mut self, _: RemoteGrant) -> Result<RemoteKey, LaneError> {
        Err(LaneError::Closed)
    }
    fn revoke(&mut self, _: &RemoteKey) -> Revoked {
        Revoked::Done
    }
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        Poll::Ready(Ok(()))
    }
    fn start(&mut self, _: &RemoteKey, _: u64, _: RemoteOp) -> Result<RemoteToken, LaneError> {
        self.begun += 1;
        let (token, status) = (RemoteToken(self.begun), RemoteStatus::Done);
        if self.begun == 1 {
            self.done = Some(RemoteCompletion { token, status, in_part: false, value: 7, read: None });
        }
        Ok(token)
    }
    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<RemoteCompletion>,
    ) -> Poll<Result<(), LaneError>> {
        let Some(done) = self.done.take() else {
            *self.waker.lock() = Some(cx.waker().clone());
            return Poll::Pending;
        };
        out.push(done);
        Poll::Ready(Ok(()))
    }
}

/// An executor that polls inside `wake`: the operation it polls goes on with the same lane.
struct Inline {
    remote: Arc<Remote>,
    told: Mutex<mpsc::Sender<bool>>,
}

impl std::task::Wake for Inline {
    fn wake(self: Arc<Self>) {
        self.told.lock().send(self.remote.is_lent()).unwrap();
    }
}

#[test]
fn whose_operation_has_ended_may_use_the_lane_at_once() {
    for looks_on in [true, false] {
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let ledger = Arc::new(CopyLedger::new());
        let lane = Some(Box::new(Listening::default()) as Box<dyn LaneRemote>);
        let remote = Remote::new(OneSided::Native, lane, pool, ledger, Waker::noop().clone());
        let operation = Arc::new(Operation::default());
        let (told, heard) = mpsc::channel();
        let inline = Inline { remote: remote.clone(), told: Mutex::new(told) };
        operation.register(&Waker::from(Arc::new(inline)));
        let key = RemoteKey::from_bytes(&[1; 16]).unwrap();
        let op = || Some(RemoteOp::FetchAdd { add: 1 });
        assert!(remote.begin_native(&key, 0, op, &operation).is_ready());
        std::thread::spawn(move || {
            let looked = if looks_on { remote.look_native(&operation) } else { remote.collect_native() };
            looked.unwrap();
        });
        assert!(!heard.recv_timeout(Duration::from_secs(60)).expect("it waits for its own lock"));
    }
}

struct Driver;

impl std::task::Wake for Driver {
    fn wake(self: Arc<Self>) {}
}

/// Whoever looks for one of two comes no more once that has ended; who waits for the other is asleep.
#[test]
fn what_is_left_when_a_look_has_found_its_own_is_the_drivers() {
    let pool = BufPool::builder().max_bytes(1 << 20).build();
    let (lane, driver) = (Listening::default(), Waker::from(Arc::new(Driver)));
    let asked = lane.waker.clone();
    let ledger = Arc::new(CopyLedger::new());
    let remote = Remote::new(OneSided::Native, Some(Box::new(lane)), pool, ledger, driver.clone());
    let key = RemoteKey::from_bytes(&[1; 16]).unwrap();
    let [ours, other] = [(); 2].map(|()| Arc::new(Operation::default()));
    for operation in [&ours, &other] {
        let op = || Some(RemoteOp::FetchAdd { add: 1 });
        assert!(remote.begin_native(&key, 0, op, operation).is_ready());
    }
    remote.look_native(&ours).unwrap();
    assert!(asked.lock().as_ref().unwrap().will_wake(&driver));
    // Alone, one who looks on for the other one need not have the driver woken.
    remote.look_native(&other).unwrap();
    assert!(!asked.lock().as_ref().unwrap().will_wake(&driver));
}
