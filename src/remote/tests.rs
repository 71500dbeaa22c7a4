//! Records of any kind and order, against a model that knows what may change.

use std::sync::Arc;
use std::task::Waker;

use zc_core::memory::{BufPool, CopyLedger, Message};
use zc_core::transport::{Access, OneSided, SendToken};
use zc_core::wire::{MAX_REMOTE_RECORDS, REMOTE_ANSWER_BYTES, RemoteAction, RemoteRequest};

use super::export::Export;
use super::state::Remote;
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
