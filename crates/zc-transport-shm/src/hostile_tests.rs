//! A peer that writes anything at any time into every page it has and sends anything on the link.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use zc_core::memory::{Backing, BufPool, ExportMemory, MemoryGroup, Region, Sealing};
use zc_core::transport::*;

use crate::bell::PeerBell;
use crate::common::{End, Setup, body, data, links, run, try_end};
use crate::layout::{
    ACK, BACK, BY_REFERENCE, CONSUMED, Descriptor, Geometry, Grow, Head, Kind, NOTIFIED, REMOTE_CONSUMED,
    REMOTE_REVOKED, REMOTE_RING, RX_SLEEP, Return, SHARED, SLOT_WORDS, Share, TAKEN, TX_SLEEP,
};
use crate::limits::{REMOTE_SLOTS, RING_SLOTS};
use crate::sys;
use crate::transport::own_uid;
use crate::words::{OwnWords, WriteWords};

/// The evil side: writable memory of its own, and the link.
pub(crate) struct Evil {
    pub(crate) words: OwnWords,
    geometry: Geometry,
    region: Region,
    pub(crate) link: Box<dyn ControlLink>,
    slot: u64,
    returned: u64,
    said: u64,
    pub(crate) theirs: Vec<OwnedFd>,
}

pub(crate) async fn join(trust: Trust) -> (End, Evil) {
    join_with(trust, RING_SLOTS).await
}

/// With so many slots of the evil side.
async fn join_with(trust: Trust, slots: u32) -> (End, Evil) {
    let (mut evil, good) = links().await;
    let geometry = Geometry::new(slots);
    let offer =
        crate::offer::ShmOffer { geometry, max_arena_bytes: 64 << 20, uid: own_uid(), pid: 1, wary: false };
    let offer = Offer { version: crate::offer::VERSION, bytes: offer.encode() };
    let region = sys::create(geometry.bytes()).unwrap();
    let words = OwnWords::new(&region, geometry.bytes());
    geometry.write(&words);
    let bell: OwnedFd = match trust {
        Trust::Cooperative => rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap(),
        Trust::Untrusted => std::os::unix::net::UnixStream::pair().unwrap().0.into(),
    };
    let setup = Setup { trust, pool_bytes: 16 << 20, ..Setup::default() };
    let fds = [region.fd().unwrap(), bell.as_fd()];
    std::future::poll_fn(|cx| evil.poll_send_descriptors(cx, &fds)).await.unwrap();
    let end = try_end(good, Role::Server, &setup, Some(offer)).await.unwrap();
    let theirs = std::future::poll_fn(|cx| evil.poll_recv_descriptors(cx, 2)).await.unwrap();
    let evil = Evil { words, geometry, region, link: evil, slot: 0, returned: 0, said: 0, theirs };
    (end, evil)
}

#[derive(Debug, Clone)]
enum Step {
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

impl Evil {
    fn slot(&mut self, head: Head, seq: u64, words: &[u64]) {
        let slots = u64::from(self.geometry.slots);
        let at = self.geometry.ring_at() + (self.slot % slots) as usize * SLOT_WORDS;
        self.words.store(at + 1, seq);
        words.iter().enumerate().for_each(|(i, word)| self.words.store(at + 2 + i, *word));
        self.words.publish(at, head.pack((self.slot / slots) as u32 + 1));
        self.slot += 1;
    }

    fn give_back(&mut self, back: Return) {
        let entries = u64::from(self.geometry.returns);
        let at = self.geometry.returns_at() + (self.returned % entries) as usize;
        self.words.publish(at, back.pack((self.returned / entries) as u16 + 1));
        self.returned += 1;
    }

    /// What the one-sided half says.
    pub(crate) fn say(&mut self, head: Head, words: &[u64]) {
        let slots = u64::from(REMOTE_SLOTS);
        let at = REMOTE_RING + (self.said % slots) as usize * SLOT_WORDS;
        words.iter().enumerate().for_each(|(i, word)| self.words.store(at + 2 + i, *word));
        self.words.publish(at, head.pack((self.said / slots) as u32 + 1));
        self.said += 1;
    }

    fn arena(&mut self, bytes: u64, sealed: bool, cx: &mut Context<'_>) {
        let fd: OwnedFd = match sealed {
            true => match sys::create((bytes as usize).next_multiple_of(4096).max(4096)) {
                Ok(region) => region.fd().unwrap().try_clone_to_owned().unwrap(),
                Err(_) => return,
            },
            false => std::fs::File::open("/dev/null").unwrap().into(),
        };
        let fds: Vec<BorrowedFd<'_>> = vec![fd.as_fd(); if bytes.is_multiple_of(7) { 2 } else { 1 }];
        let _ = self.link.poll_send_descriptors(cx, &fds);
    }
}

/// Everything the good side got; it is read in full.
fn read(frames: &mut Batch<Frame>, kept: &mut Vec<Frame>) {
    for frame in frames.drain() {
        let sum: u64 = frame.payload.segments().iter().flat_map(|s| s.iter()).map(|b| u64::from(*b)).sum();
        std::hint::black_box(sum);
        kept.push(frame);
    }
}

fn good_step(
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
                    std::task::Poll::Ready(Ok(mut buf)) => {
                        buf.put_slice(&body(*len, 1));
                        buf.freeze().into()
                    }
                    _ => return Ok(()),
                },
                false => body(*len, 1).into(),
            };
            if let std::task::Poll::Ready(ready) = good.lane.tx.poll_ready(cx, *len) {
                ready?;
                good.lane.tx.start_send(data(1, payload), true).map_err(|r| r.error)?;
            }
            if let std::task::Poll::Ready(done) = good.lane.tx.poll_flush(cx) {
                done?;
            }
            let _ = good.lane.tx.poll_completions(cx, &mut Batch::new());
        }
        Step::SendShared(len) => {
            // It is there already, or there again after it was left.
            let _ = good.lane.tx.join_group(group);
            let Ok(mut buf) = group.pool().try_alloc(*len) else { return Ok(()) };
            buf.put_slice(&body(*len, 2));
            if let std::task::Poll::Ready(ready) = good.lane.tx.poll_ready(cx, *len) {
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
            if let std::task::Poll::Ready(got) = good.lane.rx.poll_recv(cx, &mut batch) {
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
    if let std::task::Poll::Ready(ready) = remote.poll_ready(cx) {
        ready?;
        remote.start(&key, at, op)?;
    }
    if let std::task::Poll::Ready(done) = remote.poll_completions(cx, &mut Batch::new()) {
        done?;
    }
    Ok(())
}

/// Lets the peer use memory that is gone at once.
fn grant(good: &mut End) -> Result<(), LaneError> {
    struct Full;
    impl NotifySink for Full {
        fn poll_notify(&self, _: &mut Context<'_>, _: u64) -> std::task::Poll<()> {
            std::task::Poll::Pending
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

fn group() -> MemoryGroup {
    MemoryGroup::forwarding(BufPool::builder().backing(Backing::Memfd).max_bytes(8 << 20))
}

/// A case brings up a whole lane: far fewer than decoders get. A runner of its own, since the macro's takes the number
/// that is asked for.
fn fuzz(trust: Trust) {
    let all = ProptestConfig::default().cases;
    let config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases((all / 20).max(32)) };
    let steps = prop::collection::vec(step(), 1..80);
    let done = TestRunner::new(config).run(&steps, |steps| {
        run(attack(steps, trust));
        Ok(())
    });
    done.unwrap_or_else(|failed| panic!("{failed}"));
}

#[test]
fn fuzz_hostile_peer_of_our_user() {
    fuzz(Trust::Cooperative);
}

#[test]
fn fuzz_hostile_stranger() {
    fuzz(Trust::Untrusted);
}

/// What a lie about a message in parts is, and that a good one after it would have been taken.
#[test]
fn lies_about_messages_in_parts() {
    type Lie = Box<dyn Fn(&Evil) -> Vec<(Head, u64, Vec<u64>)>>;
    let begin = |total: u64| (Head::new(Kind::Large, 0, 8), 1, vec![total]);
    let part = |evil: &Evil, nth: u32, len: u32| {
        let block = evil.geometry.first_block() + nth;
        let at = Descriptor { slab: 0, generation: 0, block, offset: 0, len };
        (Head::new(Kind::Part, BY_REFERENCE, 1), 1, at.pack().to_vec())
    };
    let inline = |len: usize| (Head::new(Kind::Part, 0, len), 1, vec![1; 14]);
    let cases: Vec<(&str, Lie)> = vec![
        ("no message", Box::new(move |e| vec![part(e, 0, 100)])),
        ("no bytes", Box::new(move |_| vec![begin(0)])),
        ("longer than agreed", Box::new(move |_| vec![begin(1 << 31)])),
        ("longer than the pool", Box::new(move |_| vec![begin(1 << 30)])),
        ("no length", Box::new(move |_| vec![(Head::new(Kind::Large, 0, 0), 1, vec![])])),
        ("two at once", Box::new(move |_| vec![begin(5000), begin(5000)])),
        ("more than it said", Box::new(move |e| vec![begin(5000), part(e, 0, 4000), part(e, 1, 1001)])),
        ("more than it said, in a slot", Box::new(move |_| vec![begin(100), inline(101)])),
        ("more parts than it needs", Box::new(move |_| vec![begin(100), inline(100), inline(1)])),
        ("a part of nothing", Box::new(move |e| vec![begin(100), part(e, 0, 0)])),
        ("a slot of nothing", Box::new(move |_| vec![begin(100), inline(0)])),
        ("a slot of too much", Box::new(move |_| vec![begin(1000), inline(113)])),
        ("outside", Box::new(move |e| vec![begin(100_000), part(e, 0, 4161)])),
        ("another block", Box::new(move |e| vec![begin(100_000), part(e, 99, 100)])),
        ("another number", Box::new(move |e| vec![begin(5000), (part(e, 0, 10).0, 2, part(e, 0, 10).2)])),
        (
            "two places",
            Box::new(move |e| vec![begin(5000), (Head { count: 2, ..part(e, 0, 9).0 }, 1, vec![0; 4])]),
        ),
        ("data between", Box::new(move |_| vec![begin(5000), (Head::new(Kind::Data, 0, 8), 1, vec![1])])),
        (
            "a record between",
            Box::new(move |_| vec![begin(5000), (Head::new(Kind::Session, 0, 8), 0, vec![1])]),
        ),
        ("the end between", Box::new(move |_| vec![begin(5000), (Head::new(Kind::Close, 0, 0), 0, vec![])])),
    ];
    for trust in [Trust::Cooperative, Trust::Untrusted] {
        for (what, lie) in &cases {
            run(async {
                let (mut good, mut evil) = join(trust).await;
                for (head, seq, words) in lie(&evil) {
                    evil.slot(head, seq, &words);
                }
                let error = loop {
                    match good.recv().await {
                        Ok(frames) => assert!(frames.iter().all(|f| f.payload.len() == 100), "{what}"),
                        Err(error) => break error,
                    }
                };
                assert!(matches!(error, LaneError::Protocol(_) | LaneError::Memory(_)), "{what}: {error:?}");
                assert_eq!(good.pool.stats().in_use_bytes, 0, "{what}");
            });
        }
        run(async {
            let (mut good, mut evil) = join(trust).await;
            for (head, seq, words) in [begin(5000), part(&evil, 0, 4160), inline(40), part(&evil, 1, 800)] {
                evil.slot(head, seq, &words);
            }
            assert_eq!(good.recv().await.unwrap()[0].payload.len(), 5000);
        });
    }
}

/// Slots of messages in parts, most of them as they should be.
#[derive(Debug, Clone)]
enum Part {
    Begin {
        seq: u64,
        total: u64,
    },
    Named {
        seq: u64,
        nth: u32,
        len: u32,
    },
    Inline {
        seq: u64,
        len: usize,
    },
    Whole,
    /// What is left, or as much of it as fits.
    Right,
}

fn part() -> impl Strategy<Value = Part> {
    let seq = || prop_oneof![30 => Just(1u64), 1 => Just(2)];
    let nth = prop_oneof![30 => 0u32..15, 1 => 15u32..99];
    prop_oneof![
        3 => (seq(), prop_oneof![20 => 1u64..20_000, 1 => Just(0), 1 => any::<u64>()])
            .prop_map(|(seq, total)| Part::Begin { seq, total }),
        4 => (seq(), nth, prop_oneof![20 => 1u32..4161, 1 => any::<u32>()])
            .prop_map(|(seq, nth, len)| Part::Named { seq, nth, len }),
        2 => (seq(), prop_oneof![20 => 1usize..113, 1 => 0usize..256]).prop_map(|(seq, len)| Part::Inline { seq, len }),
        1 => Just(Part::Whole),
        12 => Just(Part::Right),
    ]
}

/// What parts amount to, thought of without any memory.
#[derive(Default)]
struct Model {
    /// Number of the message under way, and bytes that are missing.
    under_way: Option<(u64, usize)>,
    messages: Vec<usize>,
    total: usize,
}

impl Model {
    /// False for a lie.
    fn take(&mut self, part: &Part) -> bool {
        let (seq, len, most) = match *part {
            Part::Whole => {
                self.messages.push(8);
                return self.under_way.is_none();
            }
            Part::Begin { seq, total } => {
                let good = self.under_way.is_none() && (1..=12 << 20).contains(&total);
                self.under_way = Some((seq, total as usize));
                self.total = total as usize;
                return good;
            }
            Part::Named { nth, .. } if nth >= crate::FIRST_BLOCKS => return false,
            Part::Named { seq, len, .. } => (seq, len as usize, crate::FIRST_BLOCK_BYTES as usize),
            Part::Inline { seq, len } => (seq, len, crate::INLINE_MAX),
            Part::Right => unreachable!("made into another"),
        };
        let Some((same, left)) = self.under_way else { return false };
        self.under_way = (left > len).then(|| (seq, left - len));
        if left == len {
            self.messages.push(self.total);
        }
        seq == same && (1..=left.min(most)).contains(&len)
    }

    /// A slot that is as it should be.
    fn right(&self, nth: u32) -> Part {
        match self.under_way {
            None => Part::Begin { seq: 1, total: 9000 },
            Some((seq, left)) if left <= 50 => Part::Inline { seq, len: left },
            Some((seq, left)) => {
                Part::Named { seq, nth: nth % crate::FIRST_BLOCKS, len: left.min(4160) as u32 }
            }
        }
    }
}

impl Evil {
    fn part(&mut self, part: &Part) {
        match *part {
            Part::Begin { seq, total } => self.slot(Head::new(Kind::Large, 0, 8), seq, &[total]),
            Part::Named { seq, nth, len } => {
                let block = self.geometry.first_block() + nth;
                let at = Descriptor { slab: 0, generation: 0, block, offset: 0, len };
                self.slot(Head::new(Kind::Part, BY_REFERENCE, 1), seq, &at.pack());
            }
            Part::Inline { seq, len } => self.slot(Head::new(Kind::Part, 0, len), seq, &[3; 14]),
            Part::Whole => self.slot(Head::new(Kind::Data, 0, 8), 1, &[3]),
            Part::Right => unreachable!("made into another"),
        }
    }
}

const MOST_PARTS: usize = 60;

/// Whatever comes: the messages that are whole before the first lie, in order, and then its end.
async fn tell_in_parts(parts: Vec<Part>, trust: Trust) {
    let (mut good, mut evil) = join(trust).await;
    let (mut model, mut honest) = (Model::default(), true);
    for (nth, part) in parts.into_iter().enumerate() {
        let part = if let Part::Right = part { model.right(nth as u32) } else { part };
        let before = model.messages.len();
        evil.part(&part);
        if !model.take(&part) {
            model.messages.truncate(before);
            honest = false;
            break;
        }
    }
    let (mut got, mut batch, mut looks) = (Vec::new(), Batch::new(), 0);
    let end = loop {
        match good.lane.rx.try_recv(&mut batch) {
            // At each look one part is taken.
            Ok(None) if looks > MOST_PARTS => break Ok(()),
            Ok(None) => looks += 1,
            Ok(_) => got.extend(batch.drain().map(|frame| frame.payload.len())),
            Err(error) => break Err(error),
        }
        got.last().into_iter().for_each(|len| good.lane.rx.release(*len));
    };
    assert_eq!(got, model.messages);
    assert_eq!(end.is_ok(), honest, "{end:?}");
    let pool = good.pool.clone();
    if !honest {
        assert_eq!(pool.stats().in_use_bytes, 0);
    }
    drop(good);
    assert_eq!(pool.stats().in_use_bytes, 0);
}

#[test]
fn fuzz_parts_are_whole_messages_or_the_end() {
    for trust in [Trust::Cooperative, Trust::Untrusted] {
        let all = ProptestConfig::default().cases;
        let config =
            ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases((all / 4).max(32)) };
        let done = TestRunner::new(config).run(&prop::collection::vec(part(), 1..MOST_PARTS), |parts| {
            run(tell_in_parts(parts, trust));
            Ok(())
        });
        done.unwrap_or_else(|failed| panic!("{failed}"));
    }
}

/// However short parts are, a turn takes a bounded number of them.
#[test]
fn short_parts_take_turns_too() {
    run(async {
        let (mut good, mut evil) = join_with(Trust::Untrusted, 4096).await;
        evil.part(&Part::Begin { seq: 1, total: 5000 });
        (0..3000).for_each(|_| evil.part(&Part::Inline { seq: 1, len: 1 }));
        let mut cx = Context::from_waker(Waker::noop());
        let most = (crate::PARTS_TURN_BYTES / crate::MIN_PART_COST_BYTES) as u64;
        for turn in 1..3 {
            assert!(good.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
            assert_eq!(good.ledger.snapshot().inline_bytes, turn * most);
        }
        // Who spins looks many times in a turn.
        for look in 1..40 {
            assert!(good.lane.rx.try_recv(&mut Batch::new()).unwrap().is_none());
            assert_eq!(good.ledger.snapshot().inline_bytes, 2 * most + look);
        }
    });
}

/// Every page changes all the time while the lane is used.
#[test]
fn memory_that_never_keeps_still() {
    run(async {
        for round in 0..200u64 {
            let (mut good, evil) = join(Trust::Untrusted).await;
            let stop = Arc::new(AtomicBool::new(false));
            let (words, geometry, stopped) = (evil.words.clone(), evil.geometry, stop.clone());
            let scribbler = std::thread::spawn(move || {
                let mut random = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut next = || {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random
                };
                while !stopped.load(Ordering::Relaxed) {
                    let (slot, what) = (next() as usize % 8, next());
                    let at = geometry.ring_at() + slot * SLOT_WORDS;
                    let head = Head {
                        kind: 1 + (what & 1) as u8,
                        flags: (what >> 8) as u8 & 7,
                        count: (what >> 16) as u8 & 7,
                    };
                    words.publish(at, head.pack(1));
                    let d = Descriptor {
                        slab: 0,
                        generation: 0,
                        block: 10 + (what >> 24) as u32 % 20,
                        offset: (what >> 30) as u32 % 4200,
                        len: (what >> 40) as u32 % 4200,
                    };
                    d.pack().into_iter().enumerate().for_each(|(i, word)| words.store(at + 2 + i, word));
                    words.store(
                        geometry.first_block() as usize * geometry.block_len as usize / 8
                            + what as usize % 4000,
                        what,
                    );
                }
            });
            let mut cx = Context::from_waker(Waker::noop());
            let (mut kept, group) = (Vec::new(), group());
            for _ in 0..50 {
                let _ = good_step(&mut good, &Step::Receive, &mut kept, &group, &mut cx);
                let _ = good_step(&mut good, &Step::Send(3000, true), &mut kept, &group, &mut cx);
                let _ = good_step(&mut good, &Step::SendShared(3000), &mut kept, &group, &mut cx);
                kept.clear();
            }
            stop.store(true, Ordering::Relaxed);
            scribbler.join().unwrap();
        }
    });
}

#[test]
fn bells_of_the_wrong_kind_are_refused() {
    use crate::bell::BellKind;
    let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(PeerBell::new(file(), BellKind::Eventfd).is_none());
    assert!(PeerBell::new(file(), BellKind::Socket).is_none());
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    assert!(PeerBell::new(pipe, BellKind::Eventfd).is_none());
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    assert!(PeerBell::new(bell, BellKind::Eventfd).is_some());
}

/// Only of a Unix socket do we know what a call does at worst.
#[test]
fn bells_that_are_other_sockets_are_refused() {
    use crate::bell::BellKind;
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(PeerBell::new(tcp.into(), BellKind::Socket).is_none());
    let (datagrams, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(PeerBell::new(datagrams.into(), BellKind::Socket).is_none());
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(PeerBell::new(stream.into(), BellKind::Socket).is_some());
}

async fn send_arenas(evil: &mut Evil, count: usize) {
    let region = sys::create(4096).unwrap();
    for _ in 0..count {
        std::future::poll_fn(|cx| evil.link.poll_send_descriptors(cx, &[region.fd().unwrap()]))
            .await
            .unwrap();
    }
}

/// A peer that dies with as many descriptors under way as it may have is noticed all the same.
#[test]
fn the_end_of_a_peer_with_descriptors_under_way() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        send_arenas(&mut evil, crate::MAX_PENDING_DESCRIPTORS).await;
        let mut cx = Context::from_waker(Waker::noop());
        assert!(good.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
        drop(evil.link);
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
    });
}

/// More of them is a lie; and a lie is not the end of those who read: what they may read stays ours to keep.
#[test]
fn a_lie_releases_nothing_and_the_end_does() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let mut buf = good.alloc(4000).await;
        buf.put_slice(&body(4000, 1));
        let keep = buf.freeze();
        good.send(data(1, keep.clone())).await.unwrap();
        send_arenas(&mut evil, crate::MAX_PENDING_DESCRIPTORS + 1).await;
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::Protocol(_)), "{error}");
        assert!(good.send(data(2, body(9, 0))).await.is_err());
        let mut keep = keep.try_into_mut().expect_err("writable while the peer reads it");
        drop(evil.link);
        while let Err(shared) = keep.try_into_mut() {
            keep = shared;
            let mut cx = Context::from_waker(Waker::noop());
            good.drive(&mut cx);
            assert!(good.lane.tx.poll_flush(&mut cx).is_ready());
            tokio::task::yield_now().await;
        }
    });
}

/// The end of the peer's stream is heard behind a descriptor for which there is no room, also by a lane that had ended before.
/// In a process of its own, since the limit is the process's.
#[test]
fn the_end_behind_what_can_not_be_opened() {
    const CHILD: &str = "ZC_SHM_TEST_WITHOUT_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "hostile_tests::the_end_behind_what_can_not_be_opened";
        let done = child.args(["--exact", name]).env(CHILD, "1").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        return;
    }
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let mut buf = good.alloc(4000).await;
        buf.put_slice(&body(4000, 1));
        let keep = buf.freeze();
        good.send(data(1, keep.clone())).await.unwrap();
        send_arenas(&mut evil, 1).await;
        let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        limit.current = Some(3);
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        // Until it has seen that there is something it can't open.
        let mut cx = Context::from_waker(Waker::noop());
        let mut drive =
            |good: &mut End| good.lane.drive.as_mut().unwrap().poll_drive(&mut cx, Instant::now());
        while drive(&mut good).unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        evil.slot(Head::new(Kind::Close, ACK, 0), 0, &[]);
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::Protocol(_)), "{error}");
        let mut keep = Some(keep.try_into_mut().expect_err("writable while the peer reads it"));
        drop(evil.link);
        // Driven only when it asks to be.
        std::future::poll_fn(|cx| {
            good.drive(cx);
            assert!(good.lane.tx.poll_flush(cx).is_ready());
            keep = keep.take().and_then(|keep| keep.try_into_mut().err());
            if keep.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
}

/// Who has passed our messages on may be gone while others read them: nothing that it did not give back is written again,
/// neither while the lane is there nor after.
#[test]
fn what_was_passed_on_is_not_written_when_the_peer_is_gone() {
    for lane_goes_first in [false, true] {
        run(async {
            let (mut good, mut evil) = join(Trust::Cooperative).await;
            let mut kept = Vec::new();
            for seq in 1..3 {
                let mut buf = good.alloc(4000).await;
                buf.put_slice(&body(4000, 1));
                kept.push(buf.freeze());
                good.send(data(seq, kept[kept.len() - 1].clone())).await.unwrap();
            }
            evil.words.store(crate::layout::PASSED_ON, 1);
            // It gives the second back, as the last thing it does.
            let (_, offset) = kept[1].place().unwrap();
            let block = (offset / crate::FIRST_BLOCK_BYTES as usize) as u16;
            evil.give_back(Return { slab: 0, sent_back: 0, generation: 0, block });
            if lane_goes_first {
                drop(good);
                drop(evil.link);
            } else {
                drop(evil.link);
                assert!(matches!(good.recv().await, Err(LaneError::PeerGone(_))));
                assert!(good.send(data(3, body(9, 0))).await.is_err());
                drop(good);
            }
            assert!(kept.pop().unwrap().try_into_mut().is_ok(), "it came back");
            for _ in 0..10 {
                drop(crate::common::pair(&Setup::default()).await);
                kept = vec![kept.pop().unwrap().try_into_mut().expect_err("others may read it")];
            }
        });
    }
}

/// So it is when a stranger's bell ends.
#[test]
fn a_bell_that_ends_is_the_end_of_the_lane() {
    run(async {
        let (mut good, mut evil) = join(Trust::Untrusted).await;
        let mut buf = good.alloc(4000).await;
        buf.put_slice(&body(4000, 1));
        let keep = buf.freeze();
        good.send(data(1, keep.clone())).await.unwrap();
        evil.theirs.clear();
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
        assert!(good.send(data(2, body(9, 0))).await.is_err());
        assert!(keep.try_into_mut().is_err(), "writable while the peer reads it");
    });
}

/// Mapping takes long: one turn maps one arena.
#[test]
fn arenas_are_mapped_one_a_turn() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        send_arenas(&mut evil, 3).await;
        for slab in 1..=3 {
            let grow = Grow { slab, block_len: 4096, blocks: 1 };
            evil.slot(Head::new(Kind::Grow, 0, 16), 0, &grow.pack());
        }
        evil.slot(Head::new(Kind::Data, 0, 8), 1, &[7]);
        let mut batch = Batch::new();
        let mut cx = Context::from_waker(Waker::noop());
        let mut turns = 0;
        while good.lane.rx.try_recv(&mut batch).unwrap().is_none() {
            tokio::task::yield_now().await;
            good.drive(&mut cx);
            turns += 1;
        }
        assert!(turns >= 3, "{turns}");
        assert_eq!(batch.drain().count(), 1);
    });
}

/// One that is lent is not given back by a copy.
#[test]
fn a_block_is_not_copied_out_while_it_is_lent() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let block = evil.geometry.first_block();
        let at = Descriptor { slab: 0, generation: 0, block, offset: 0, len: 500 };
        let head = |kind| Head::new(kind, BY_REFERENCE, 1);
        evil.slot(head(Kind::Data), 1, &at.pack());
        evil.slot(head(Kind::Session), 0, &at.pack());
        let lent = good.recv().await.unwrap();
        assert_eq!(lent.len(), 1);
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::Protocol(_)), "{error}");
    });
}

/// Records take memory of nobody who might not have any.
#[test]
fn records_come_through_an_exhausted_pool() {
    run(async {
        let setup = Setup { pool_bytes: 1 << 20, trust: Trust::Untrusted, ..Setup::default() };
        let (mut a, mut b) = crate::common::pair(&setup).await;
        // Nothing is left: neither in the pool nor below the lease.
        let mut all = Vec::new();
        for len in [64 << 10, 4096, 1024, 256, 64] {
            while let Ok(buf) = b.pool.try_alloc(len) {
                all.push(buf);
            }
        }
        for len in [40, 400, 1000] {
            let record = Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: body(len, 1).into() };
            a.lane.tx.start_send(record, false).unwrap();
            assert!(a.lane.tx.poll_flush(&mut Context::from_waker(Waker::noop())).is_ready());
            assert!(b.recv().await.unwrap()[0].payload == body(len, 1)[..]);
        }
        drop(all);
    });
}

/// A peer that clears `O_NONBLOCK` on our bell can't make us block.
#[test]
fn a_bell_never_blocks_its_owner() {
    run(async {
        for kind in [crate::bell::BellKind::Eventfd, crate::bell::BellKind::Socket] {
            let (bell, theirs) = crate::bell::Bell::new(kind, &crate::common::TokioReactor::new()).unwrap();
            let copy = rustix::io::fcntl_dupfd_cloexec(&theirs, 0).unwrap();
            let peer = PeerBell::new(theirs, kind).unwrap();
            peer.ring();
            std::future::poll_fn(|cx| bell.poll_rung(cx)).await.unwrap();
            rustix::fs::fcntl_setfl(&copy, rustix::fs::OFlags::empty()).unwrap();
            peer.ring();
            std::future::poll_fn(|cx| bell.poll_rung(cx)).await.unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            assert!(bell.poll_rung(&mut cx).is_pending());
        }
    });
}

/// What a peer says of regions of groups is checked like all else: each lie ends the lane, and only it.
#[test]
fn lies_about_regions_of_groups() {
    let share = |region: u8, bytes: u64| (Kind::Share, Share { region, bytes }.pack().to_vec());
    let name = |slab: u8, loan: u32, offset: u32, len: u32| {
        let at = Descriptor { slab, generation: 0, block: loan, offset, len };
        (Kind::Data, at.pack().to_vec())
    };
    let first = share(SHARED, 8192);
    let cases = [
        ("not a region", vec![share(5, 8192)]),
        ("another size", vec![share(SHARED, 4096)]),
        ("no size", vec![share(SHARED, 0)]),
        ("beyond the bound", vec![share(SHARED, u64::MAX)]),
        ("twice", vec![first.clone(), first.clone()]),
        ("no such region", vec![first.clone(), name(SHARED | 1, 0, 0, 200)]),
        ("no such loan", vec![first.clone(), name(SHARED, crate::MAX_SHARED_LOANS, 0, 200)]),
        ("past the end", vec![first.clone(), name(SHARED, 0, 8000, 200)]),
        ("around the end", vec![first.clone(), name(SHARED, 0, u32::MAX, 200)]),
        ("nothing", vec![first.clone(), name(SHARED, 0, 0, 0)]),
        ("a loan made twice", vec![first.clone(), name(SHARED, 3, 0, 200), name(SHARED, 3, 500, 200)]),
        ("gone", vec![first.clone(), (Kind::Retire, vec![SHARED.into()]), name(SHARED, 0, 0, 200)]),
        ("gone twice", vec![first, (Kind::Retire, vec![SHARED.into()]), (Kind::Retire, vec![SHARED.into()])]),
    ];
    for (what, slots) in cases {
        run(async {
            let (mut good, mut evil) = join(Trust::Cooperative).await;
            let region = sys::create(8192).unwrap();
            for (kind, words) in slots {
                if kind == Kind::Share {
                    let fd = [region.fd().unwrap()];
                    std::future::poll_fn(|cx| evil.link.poll_send_descriptors(cx, &fd)).await.unwrap();
                }
                let head = match kind {
                    Kind::Data => Head::new(kind, BY_REFERENCE, 1),
                    _ => Head::new(kind, 0, words.len() * 8),
                };
                evil.slot(head, 1, &words);
            }
            let mut kept = Vec::new();
            let error = loop {
                match good.recv().await {
                    Ok(frames) => kept.extend(frames),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, LaneError::Protocol(_)), "{what}: {error}");
        });
    }
}

/// A region that could shrink under us is no region.
#[test]
fn regions_of_groups_are_sealed_or_refused() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        std::future::poll_fn(|cx| evil.link.poll_send_descriptors(cx, &[fd.as_fd()])).await.unwrap();
        evil.slot(Head::new(Kind::Share, 0, 16), 0, &Share { region: SHARED, bytes: 8192 }.pack());
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::Protocol(_)), "{error}");
    });
}

/// A loan that was never made, or of a group's buffer that came back already, can't be given back.
#[test]
fn what_was_not_lent_of_a_group_is_not_taken_back() {
    for wrong in [
        Return { slab: SHARED, sent_back: 0, generation: 0, block: 1 },
        Return { slab: SHARED | 1, sent_back: 0, generation: 0, block: 0 },
        Return { slab: SHARED, sent_back: 0, generation: 1, block: 0 },
        Return { slab: 0, sent_back: 0, generation: 0, block: 0 },
    ] {
        run(async {
            let (mut good, mut evil) = join(Trust::Cooperative).await;
            let group = group();
            good.lane.tx.join_group(&group).unwrap();
            let mut buf = group.pool().try_alloc(4000).unwrap();
            buf.put_slice(&body(4000, 1));
            let keep = buf.freeze();
            good.send(data(1, keep.clone())).await.unwrap();
            assert_eq!(good.ledger.snapshot().copied_bytes(), 0);
            evil.give_back(wrong);
            assert!(
                good.send(data(2, vec![0; 500])).await.is_err()
                    || good.lane.tx.poll_flush(&mut Context::from_waker(Waker::noop())).is_ready()
            );
            let mut cx = Context::from_waker(Waker::noop());
            let poll = good.lane.tx.poll_alloc(&mut cx, 100_000);
            assert!(matches!(poll, std::task::Poll::Ready(Err(_))), "{wrong:?}");
            // The lane is at its end, and the peer may still read.
            assert!(keep.clone().try_into_mut().is_err());
            drop(good);
            assert!(keep.try_into_mut().is_err(), "kept until the peer is gone (M2)");
            drop(evil.link);
        });
    }
}

/// What is said of a loan that is sent back: which, of what generation, and where in what was sent.
#[test]
fn only_what_was_lent_is_delivered_as_sent_back() {
    let right = Descriptor { slab: BACK, generation: 0, block: 0, offset: 100, len: 4000 };
    for (what, wrong) in [
        ("generation", Descriptor { generation: 1, ..right }),
        ("arena", Descriptor { slab: BACK | 1, ..right }),
        ("arena of the last number", Descriptor { slab: BACK | 63, ..right }),
        ("block", Descriptor { block: 1, ..right }),
        ("no block", Descriptor { block: u32::MAX, ..right }),
        ("before what was sent", Descriptor { offset: 99, ..right }),
        ("behind what was sent", Descriptor { len: 4001, ..right }),
        ("far behind", Descriptor { offset: u32::MAX, len: u32::MAX, ..right }),
        ("nothing", Descriptor { len: 0, ..right }),
    ] {
        sent_back(&[right, wrong], None, what);
    }
    let back = Return { slab: 0, sent_back: 0, generation: 0, block: 0 };
    sent_back(&[right], Some(Return { sent_back: 0, ..back }), "given back without a word of it");
    sent_back(&[right, right], Some(Return { sent_back: 1, ..back }), "once too often");
    sent_back(&[right; 300], None, "more often than can be said");
}

/// A peer that holds a part of a block sends it back by each of `names`, and says that it gives it back before the last. Either
/// half may find the lie, but one does, and what was sent stays as it is.
fn sent_back(names: &[Descriptor], back: Option<Return>, what: &str) {
    for trust in [Trust::Cooperative, Trust::Untrusted] {
        run(async {
            let (mut good, mut evil) = join(trust).await;
            let mut buf = good.alloc(4160).await;
            buf.put_slice(&body(4160, 1));
            let whole = buf.freeze();
            let part = whole.slice(100..4100);
            good.send(data(1, part.clone())).await.unwrap();
            let block = first_block();
            let mut error = None;
            for (n, name) in names.iter().enumerate() {
                if n + 1 == names.len()
                    && let Some(back) = back
                {
                    evil.give_back(Return { block: block as u16, ..back });
                    error = look(&mut good);
                }
                let name = Descriptor { block: name.block.saturating_add(block), ..*name };
                evil.slot(Head::new(Kind::Data, BY_REFERENCE, 1), 1, &name.pack());
                if error.is_some() {
                    break;
                }
                match good.recv().await {
                    Ok(frames) => {
                        for frame in frames {
                            let at = name.offset as usize;
                            assert!(frame.payload == whole[at..at + name.len as usize]);
                            good.lane.rx.release(frame.payload.len());
                        }
                    }
                    Err(found) => error = Some(found),
                }
            }
            let error = error.unwrap_or_else(|| panic!("{what}: nobody minds"));
            assert!(matches!(error, LaneError::Protocol(_)), "{what}: {error}");
            assert!(part.clone().try_into_mut().is_err() && part == whole[100..4100]);
        });
    }
}

/// A block that is given back with too high a count is as one that is not given back.
#[test]
fn who_says_too_much_keeps_the_block() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let mut buf = good.alloc(4000).await;
        buf.put_slice(&body(4000, 1));
        let sent = buf.freeze();
        good.send(data(1, sent.clone())).await.unwrap();
        let back = Return { slab: 0, sent_back: 3, generation: 0, block: first_block() as u16 };
        evil.give_back(back);
        assert!(look(&mut good).is_none());
        let sent = sent.try_into_mut().unwrap_err();
        // It can't be given back once more.
        evil.give_back(back);
        assert!(matches!(look(&mut good), Some(LaneError::Protocol(_))));
        drop(good);
        assert!(sent.try_into_mut().is_err(), "kept until the peer is gone (M2)");
        drop(evil.link);
    });
}

/// A part of a message in parts is never what was lent to the sender: there would be no end of it.
#[test]
fn parts_are_never_sent_back() {
    for trust in [Trust::Cooperative, Trust::Untrusted] {
        run(async {
            let (mut good, mut evil) = join(trust).await;
            let mut buf = good.alloc(4000).await;
            buf.put_slice(&body(4000, 1));
            good.send(data(1, buf.freeze())).await.unwrap();
            evil.slot(Head::new(Kind::Large, 0, 8), 1, &[8000]);
            let name = Descriptor { slab: BACK, generation: 0, block: first_block(), offset: 0, len: 4000 };
            evil.slot(Head::new(Kind::Part, BY_REFERENCE, 1), 1, &name.pack());
            assert!(matches!(good.recv().await, Err(LaneError::Protocol(_))));
            assert_eq!(good.pool.stats().in_use_bytes, 0);
        });
    }
}

/// Nothing is sent back that a session or a one-sided record could be.
#[test]
fn records_are_never_sent_back() {
    for kind in [Kind::Session, Kind::Remote] {
        run(async {
            let (mut good, mut evil) = join(Trust::Cooperative).await;
            let mut buf = good.alloc(4000).await;
            buf.put_slice(&body(4000, 1));
            good.send(data(1, buf.freeze())).await.unwrap();
            let name = Descriptor { slab: BACK, generation: 0, block: first_block(), offset: 0, len: 200 };
            evil.slot(Head::new(kind, BY_REFERENCE, 1), 1, &name.pack());
            assert!(matches!(good.recv().await, Err(LaneError::Protocol(_))));
        });
    }
}

fn first_block() -> u32 {
    Geometry::new(RING_SLOTS).first_block()
}

/// What the sending half finds when it looks at the return ring.
fn look(good: &mut End) -> Option<LaneError> {
    let mut cx = Context::from_waker(Waker::noop());
    match good.lane.tx.poll_completions(&mut cx, &mut Batch::new()) {
        std::task::Poll::Ready(Err(error)) => Some(error),
        _ => None,
    }
}
