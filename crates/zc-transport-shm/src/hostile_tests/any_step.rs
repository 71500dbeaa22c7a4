//! Any step after any other.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use zc_core::memory::{Backing, ExportMemory, MemoryGroup, Region, Sealing};
use zc_core::transport::*;

use super::{group, join};
use crate::common::{End, body, data, try_cases};
use crate::layout::{
    BACK, BY_REFERENCE, CONSUMED, Descriptor, Grow, Head, Kind, NOTIFIED, REMOTE_CONSUMED, REMOTE_REVOKED,
    RX_SLEEP, Return, SHARED, Share, TAKEN, TX_SLEEP,
};
use crate::words::WriteWords;

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Any word of the memory.
    Word(usize, u64),
    /// The next slot, with the right turn.
    Slot(Head, u64, Vec<u64>),
    /// The next entry of the return ring, with the right turn.
    Return(Return),
    Counts(u64, u64),
    Sleep(u64),
    Byte(u8),
    Arena(u64, bool),
    Close,
    Send(usize, bool),
    /// Memory of a group.
    SendShared(usize),
    Leave,
    Alloc(usize),
    Receive,
    Release(usize),
    DropAll,
    /// The next record of the one-sided half, with the right turn.
    Say(Head, [u64; 6]),
    Export(usize, bool),
    /// A one-sided operation of ours, with one of a few keys.
    Operate(u64, u64, u8),
    Grant,
}

/// A message in parts begins, or goes on.
fn large() -> impl Strategy<Value = (Head, Vec<u64>)> {
    let begin = prop_oneof![8 => 0u64..20_000, 1 => any::<u64>()];
    let begin = begin.prop_map(|total| (Head::new(Kind::Large, 0, 8), vec![total]));
    let lens = prop_oneof![Just(4160u32), 0u32..4161];
    let slab = prop_oneof![8 => Just(0), 1 => Just(BACK)];
    let part = (slab, 0u16..3, 26u32..42, lens).prop_map(|(slab, generation, block, len)| {
        let at = Descriptor { slab, generation, block, offset: 0, len };
        (Head::new(Kind::Part, BY_REFERENCE, 1), at.pack().to_vec())
    });
    let inline = (0usize..120).prop_map(|len| (Head::new(Kind::Part, 0, len), vec![7; 14]));
    prop_oneof![1 => begin, 3 => part, 1 => inline]
}

/// The number of an arena, of a region of a group, or of an arena of whoever reads it.
fn arena() -> impl Strategy<Value = u8> {
    prop_oneof![0u8..4, SHARED..SHARED + 4, BACK..BACK + 2]
}

fn descriptor() -> impl Strategy<Value = [u64; 2]> {
    let odd = prop_oneof![0u32..5000, any::<u32>()];
    (arena(), 0u16..3, prop_oneof![10u32..28, any::<u32>()], odd.clone(), odd).prop_map(
        |(slab, generation, block, offset, len)| Descriptor { slab, generation, block, offset, len }.pack(),
    )
}

fn payload() -> impl Strategy<Value = Vec<u64>> {
    let descriptors = prop::collection::vec(descriptor(), 0..=7).prop_map(|d| d.concat());
    let lens = prop_oneof![Just(4096u32), Just(64), any::<u32>()];
    let grow = (0u8..70, lens, prop_oneof![1u32..20, any::<u32>()])
        .prop_map(|(slab, block_len, blocks)| Grow { slab, block_len, blocks }.pack().to_vec());
    let share = (SHARED - 1..SHARED + 4, prop_oneof![Just(4096u64), Just(8192), any::<u64>()])
        .prop_map(|(region, bytes)| Share { region, bytes }.pack().to_vec());
    let retire = (arena(), 0u64..2).prop_map(|(at, odd)| vec![u64::from(at) | odd << 8]);
    prop_oneof![4 => descriptors, 2 => grow, 2 => share, 1 => retire, 1 => prop::collection::vec(any::<u64>(), 0..=14)]
}

fn record() -> impl Strategy<Value = (Head, [u64; 6])> {
    let likely = (1u64..3, Just(8192u64), 0u64..3, 0u64..9000, 0u64..9, 0u64..2);
    let likely = likely.prop_map(|(window, bytes, page, len, access, fresh)| {
        let words = [window, bytes, page * 8, len, access, fresh];
        (Head { kind: 2, flags: 0, count: 48 }, words)
    });
    let kinds = prop_oneof![Just((1, 16)), Just((3, 8)), Just((4, 16)), Just((5, 24)), any::<(u8, u8)>()];
    let words = prop_oneof![Just([0; 6]), prop::array::uniform6(0u64..3), any::<[u64; 6]>()];
    let other = (kinds, words).prop_map(|((kind, count), words)| (Head { kind, flags: 0, count }, words));
    prop_oneof![2 => likely, 1 => other]
}

fn step() -> impl Strategy<Value = Step> {
    let counts = prop_oneof![Just(0u64), 0u64..300, any::<u64>()];
    let head = (0u8..11, prop_oneof![0u8..8, any::<u8>()], prop_oneof![0u8..20, any::<u8>()]);
    let head = head.prop_map(|(kind, flags, count)| Head { kind, flags, count });
    prop_oneof![
        2 => (0usize..14_000, any::<u64>()).prop_map(|(at, word)| Step::Word(at, word)),
        8 => (head, 0u64..4, payload()).prop_map(|(head, seq, words)| Step::Slot(head, seq, words)),
        4 => (large(), 1u64..3).prop_map(|((head, words), seq)| Step::Slot(head, seq, words)),
        2 => (arena(), 0u8..3, 0u16..3, 0u16..30).prop_map(|(slab, sent_back, generation, block)| Step::Return(Return { slab, sent_back, generation, block })),
        1 => (counts.clone(), counts).prop_map(|(a, b)| Step::Counts(a, b)),
        1 => any::<u64>().prop_map(Step::Sleep),
        1 => any::<u8>().prop_map(Step::Byte),
        3 => (prop_oneof![Just(4096u64), Just(8192), 0u64..100_000], any::<bool>()).prop_map(|(n, s)| Step::Arena(n, s)),
        1 => Just(Step::Close),
        4 => (prop_oneof![0usize..200, 0usize..9000], any::<bool>()).prop_map(|(n, own)| Step::Send(n, own)),
        2 => (0usize..9000).prop_map(Step::SendShared),
        1 => Just(Step::Leave),
        2 => (0usize..50_000).prop_map(Step::Alloc),
        6 => Just(Step::Receive),
        1 => (0usize..10_000).prop_map(Step::Release),
        1 => Just(Step::DropAll),
        8 => record().prop_map(|(head, words)| Step::Say(head, words)),
        2 => (0usize..3, any::<bool>()).prop_map(|(pages, sealed)| Step::Export(pages, sealed)),
        4 => (0u64..3, prop_oneof![0u64..9000, any::<u64>()], 0u8..6).prop_map(|(k, at, op)| Step::Operate(k, at, op)),
        1 => Just(Step::Grant),
    ]
}

/// Everything the good side got; it is read in full.
fn read(frames: &mut Batch<Frame>, kept: &mut Vec<Frame>) {
    for frame in frames.drain() {
        let sum: u64 = frame.payload.segments().iter().flat_map(|s| s.iter()).map(|b| u64::from(*b)).sum();
        std::hint::black_box(sum);
        kept.push(frame);
    }
}

pub(super) fn good_step(
    good: &mut End,
    step: &Step,
    kept: &mut Vec<Frame>,
    group: &MemoryGroup,
    cx: &mut Context<'_>,
) -> Result<(), LaneError> {
    let mut batch = Batch::new();
    match step {
        Step::Send(len, own) => {
            let payload: zc_core::memory::Message = match own {
                true => match good.lane.tx.poll_alloc(cx, *len) {
                    Poll::Ready(Ok(mut buf)) => {
                        buf.put_slice(&body(*len, 1));
                        buf.freeze().into()
                    }
                    _ => return Ok(()),
                },
                false => body(*len, 1).into(),
            };
            if let Poll::Ready(ready) = good.lane.tx.poll_ready(cx, *len) {
                ready?;
                good.lane.tx.start_send(data(1, payload), true).map_err(|r| r.error)?;
            }
            if let Poll::Ready(done) = good.lane.tx.poll_flush(cx) {
                done?;
            }
            let _ = good.lane.tx.poll_completions(cx, &mut Batch::new());
        }
        Step::SendShared(len) => {
            // It is there already, or there again after it was left.
            let _ = good.lane.tx.join_group(group);
            let Ok(mut buf) = group.pool().try_alloc(*len) else { return Ok(()) };
            buf.put_slice(&body(*len, 2));
            if let Poll::Ready(ready) = good.lane.tx.poll_ready(cx, *len) {
                ready?;
                good.lane.tx.start_send(data(1, buf.freeze()), true).map_err(|r| r.error)?;
            }
            let _ = good.lane.tx.poll_flush(cx);
        }
        Step::Leave => good.lane.tx.leave_group(group),
        Step::Alloc(len) => drop(good.lane.tx.poll_alloc(cx, *len)),
        Step::Receive => {
            good.drive(cx);
            good.lane.rx.try_recv(&mut batch)?;
            read(&mut batch, kept);
            if let Poll::Ready(got) = good.lane.rx.poll_recv(cx, &mut batch) {
                got?;
                read(&mut batch, kept);
            }
        }
        Step::Operate(key, at, op) => operate(good, *key, *at, *op, cx)?,
        Step::Grant => grant(good)?,
        Step::Release(bytes) => good.lane.rx.release(*bytes),
        Step::DropAll => kept.clear(),
        _ => {}
    }
    Ok(())
}

/// A one-sided operation, and what became of earlier ones.
fn operate(good: &mut End, key: u64, at: u64, op: u8, cx: &mut Context<'_>) -> Result<(), LaneError> {
    let Some(remote) = &mut good.lane.remote else { return Ok(()) };
    let key = RemoteKey::from_bytes(&[[0; 8], key.to_ne_bytes()].concat()).unwrap();
    let op = match op {
        0 | 1 => RemoteOp::Read { into: good.pool.try_alloc(5000).unwrap(), len: 5000 * usize::from(op) },
        2 | 3 => RemoteOp::Write { message: body(300, 1).into(), notify: (op == 3).then_some(at) },
        4 => RemoteOp::CompareSwap { expected: 0, new: 1 },
        _ => RemoteOp::FetchAdd { add: 1 },
    };
    if let Poll::Ready(ready) = remote.poll_ready(cx) {
        ready?;
        remote.start(&key, at, op)?;
    }
    if let Poll::Ready(done) = remote.poll_completions(cx, &mut Batch::new()) {
        done?;
    }
    Ok(())
}

/// Lets the peer use memory that is gone at once.
fn grant(good: &mut End) -> Result<(), LaneError> {
    struct Full;
    impl NotifySink for Full {
        fn poll_notify(&self, _: &mut Context<'_>, _: u64) -> Poll<()> {
            Poll::Pending
        }
    }
    let Some(remote) = &mut good.lane.remote else { return Ok(()) };
    let memory = Region::builder(4096).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites);
    let memory = ExportMemory::new(memory.prefault(true), 4096).unwrap();
    let key =
        remote.grant(RemoteGrant { memory, range: 0..4096, access: Access::ALL, notify: Arc::new(Full) })?;
    assert_eq!(remote.revoke(&key), Revoked::Done, "nobody asked about it");
    Ok(())
}

async fn attack(steps: Vec<Step>, trust: Trust) {
    let (mut good, mut evil) = join(trust).await;
    let mut kept = Vec::new();
    let waker = Waker::noop();
    let mut cx = Context::from_waker(waker);
    let mut link = Some(());
    let group = group();
    for step in steps {
        match &step {
            Step::Word(at, word) => evil.words.store(at % (evil.region.len() / 8), *word),
            Step::Slot(head, seq, words) => evil.slot(*head, *seq, words),
            Step::Return(back) => evil.give_back(*back),
            Step::Counts(a, b) => {
                evil.words.store(CONSUMED, *a);
                evil.words.store(TAKEN, *b);
                evil.words.store(REMOTE_CONSUMED, *a % 20);
                evil.words.store(NOTIFIED, *b % 3);
                evil.words.store(REMOTE_REVOKED, *a % 3);
            }
            Step::Sleep(epoch) => {
                evil.words.store(RX_SLEEP, *epoch);
                evil.words.store(TX_SLEEP, *epoch);
            }
            Step::Byte(byte) => {
                let _ = evil.link.poll_write(&mut cx, &[*byte]);
            }
            Step::Arena(bytes, sealed) => {
                evil.arena(*bytes, *sealed, &mut cx);
                tokio::task::yield_now().await;
            }
            Step::Say(head, words) => evil.say(*head, words),
            Step::Export(pages, sealed) => {
                let sealing = if *sealed { Sealing::AnyoneWrites } else { Sealing::OwnerWrites };
                let memory = Region::builder(pages * 4096 + 1).backing(Backing::Memfd).sealing(sealing);
                let memory = memory.prefault(true);
                let _ = evil.link.poll_send_descriptors(&mut cx, &[memory.build().unwrap().fd().unwrap()]);
                tokio::task::yield_now().await;
            }
            Step::Close => {
                if link.take().is_some() {
                    let _ = evil.link.poll_shutdown(&mut cx);
                }
            }
            own => {
                tokio::task::yield_now().await;
                // Errors stay: the lane goes on being used, and must bear it.
                let _ = good_step(&mut good, own, &mut kept, &group, &mut cx);
            }
        }
    }
    let _ = good_step(&mut good, &Step::Receive, &mut kept, &group, &mut cx);
}

fn fuzz(trust: Trust) {
    try_cases(32, &prop::collection::vec(step(), 1..80), |steps| attack(steps, trust));
}

#[test]
fn fuzz_hostile_peer_of_our_user() {
    fuzz(Trust::Cooperative);
}

#[test]
fn fuzz_hostile_stranger() {
    fuzz(Trust::Untrusted);
}
