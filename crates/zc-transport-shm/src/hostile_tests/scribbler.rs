//! All memory that a peer can write changes while it is used, and anything comes on the link.

use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use zc_core::memory::{Backing, ExportMemory, PeerMapping, Region, Sealing};
use zc_core::transport::*;

use super::any_step::{Step, good_step};
use super::{Evil, first_block, group, join};
use crate::common::{End, Setup, body, data, pair, run};
use crate::layout::{
    BY_REFERENCE, CONSUMED, Descriptor, Geometry, Grow, Head, Kind, NOTIFIED, PASSED_ON, REMOTE_CALLS,
    REMOTE_CONSUMED, REMOTE_REVOKED, REMOTE_RING, REMOTE_SLEEP, RX_SLEEP, Return, SHARED, SLOT_WORDS, Share,
    TAKEN, TX_SLEEP,
};
use crate::limits::{FIRST_BLOCKS, REMOTE_SLOTS};
use crate::sys;
use crate::words::{OwnWords, WriteWords};

/// What changes in a round: any of these together, which as bits are the number of the round.
const PAYLOAD: u32 = 1;
const SLOTS: u32 = 2;
const RETURNS: u32 = 4;
const COUNTS: u32 = 8;
const RECORDS: u32 = 16;
/// Any word of any region, to any value.
const ANYTHING: u32 = 32;
const LINK: u32 = 64;
const ROUNDS: u32 = 128;
/// Of one round.
const TURNS: u64 = 24;
/// Of each region besides the evil side's half.
const REGION_BYTES: usize = 64 << 10;
/// Written at a time.
const PAYLOAD_WORDS: usize = 2000;
const MOST_PAUSE_US: u64 = 2000;
/// A key of the evil side.
const KEY: u64 = 1;

#[test]
fn memory_of_a_friend_that_never_keeps_still() {
    never_still(Trust::Cooperative);
}

#[test]
fn memory_of_a_stranger_that_never_keeps_still() {
    never_still(Trust::Untrusted);
}

fn never_still(trust: Trust) {
    run(async {
        let mut others = pair(&Setup::default()).await;
        for round in 0..ROUNDS {
            let mut used = Used::in_full(trust).await;
            let scribbler = Scribbler::start(&used, round);
            for turn in 0..TURNS {
                used.turn(turn, round).await;
                if turn % 8 == 0 {
                    echo(&mut others, turn).await;
                }
            }
            drop(scribbler);
            used.end(round).await;
        }
    });
}

/// Whoever else has a connection notices nothing.
async fn echo((a, b): &mut (End, End), seq: u64) {
    let mut buf = a.alloc(5000).await;
    buf.put_slice(&body(5000, seq as usize));
    a.send(data(seq, buf.freeze())).await.unwrap();
    let frame = b.recv().await.unwrap().remove(0);
    b.lane.rx.release(5000);
    b.send(frame).await.unwrap();
    assert!(a.recv().await.unwrap()[0].payload == body(5000, seq as usize)[..]);
    a.lane.rx.release(5000);
}

/// A lane on which all is there that the evil side can write.
struct Used {
    good: End,
    evil: Evil,
    /// Besides its half.
    regions: Vec<Region>,
    /// Granted to the evil side.
    granted: Option<ExportMemory>,
    /// It has ended, and not before it could.
    failed: Option<LaneError>,
}

impl Used {
    async fn in_full(trust: Trust) -> Self {
        let (good, evil) = join(trust).await;
        let mut used = Self { good, evil, regions: Vec::new(), granted: None, failed: None };
        let blocks = (REGION_BYTES / 4096) as u32;
        used.show(Kind::Grow, Grow { slab: 1, block_len: 4096, blocks }.pack()).await;
        used.show(Kind::Share, Share { region: SHARED, bytes: REGION_BYTES as u64 }.pack()).await;
        used.evil.slot(Head::new(Kind::Data, 0, 8), 1, &[7]);
        assert_eq!(used.good.recv().await.unwrap().len(), 1, "all before it was taken");
        if trust == Trust::Cooperative {
            used.export().await;
            used.grant().await;
        }
        used
    }

    async fn show(&mut self, kind: Kind, words: [u64; 2]) {
        let region = sys::create(REGION_BYTES).unwrap();
        self.pass(region.fd().unwrap()).await;
        self.evil.slot(Head::new(kind, 0, 16), 0, &words);
        self.regions.push(region);
    }

    async fn pass(&mut self, fd: BorrowedFd<'_>) {
        poll_fn(|cx| self.evil.link.poll_send_descriptors(cx, &[fd])).await.unwrap();
    }

    /// The good side maps memory of the evil one.
    async fn export(&mut self) {
        let memory = export();
        let key = key([0, KEY]);
        self.good.lane.remote.as_mut().unwrap().start(&key, 0, RemoteOp::FetchAdd { add: 1 }).unwrap();
        self.pass(memory.region().fd().unwrap()).await;
        let granted = [1, REGION_BYTES as u64, 0, REGION_BYTES as u64, 7, 1];
        self.evil.say(Head { kind: 2, flags: 0, count: 48 }, &granted);
        let mut done = Batch::new();
        while done.is_empty() {
            self.poll_remote(&mut done);
            tokio::task::yield_now().await;
        }
        assert_eq!(memory.load_u64(0), Ok(1), "it is mapped");
        self.regions.push(memory.region().clone());
    }

    /// The evil side maps memory of the good one.
    async fn grant(&mut self) {
        struct Takes;
        impl NotifySink for Takes {
            fn poll_notify(&self, _: &mut Context<'_>, _: u64) -> std::task::Poll<()> {
                std::task::Poll::Ready(())
            }
        }
        let memory = export();
        let range = 0..memory.len();
        let grant =
            RemoteGrant { memory: memory.clone(), range, access: Access::ALL, notify: Arc::new(Takes) };
        let key = self.good.lane.remote.as_mut().unwrap().grant(grant).unwrap();
        let (words, _) = key.as_bytes().as_chunks::<8>();
        let words: Vec<_> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        self.evil.say(Head { kind: 1, flags: 0, count: 16 }, &words);
        self.poll_remote(&mut Batch::new());
        let got = poll_fn(|cx| self.evil.link.poll_recv_descriptors(cx, 1)).await.unwrap().remove(0);
        let sealing = Sealing::AnyoneWrites;
        let mapping = PeerMapping { writable: true, sealing, ..PeerMapping::new(REGION_BYTES) };
        self.regions.push(mapping.map(got).unwrap());
        self.granted = Some(memory);
    }

    fn poll_remote(&mut self, done: &mut Batch<RemoteCompletion>) {
        let mut cx = Context::from_waker(Waker::noop());
        self.good.drive(&mut cx);
        let polled = self.good.lane.remote.as_mut().unwrap().poll_completions(&mut cx, done);
        assert!(!matches!(polled, std::task::Poll::Ready(Err(_))), "{polled:?}");
    }

    /// Each half does something, and the evil side sends a message in one of its regions.
    async fn turn(&mut self, turn: u64, round: u32) {
        let at = turn as u32 / 3;
        let (slab, block) = match turn % 3 {
            0 => (0, first_block() + at % FIRST_BLOCKS),
            1 => (1, at % (REGION_BYTES / 4096) as u32),
            _ => (SHARED, at),
        };
        let name = Descriptor { slab, generation: 0, block, offset: 0, len: 4000 };
        self.evil.slot(Head::new(Kind::Data, BY_REFERENCE, 1), turn, &name.pack());
        if round & LINK != 0 && (turn + u64::from(round)).is_multiple_of(6) {
            self.junk(turn / 6 + u64::from(round));
        }
        let (mut kept, group) = (Vec::new(), group());
        let mut cx = Context::from_waker(Waker::noop());
        for step in [
            Step::Receive,
            Step::Send(3000, true),
            Step::SendShared(3000),
            Step::Send(90, false),
            Step::Alloc(20_000),
            Step::Operate(KEY, 8 * turn, turn as u8 % 6),
            Step::Operate(KEY + 1, 0, 4),
            Step::Grant,
            Step::Release(4000),
            Step::Leave,
        ] {
            if let Err(error) = good_step(&mut self.good, &step, &mut kept, &group, &mut cx) {
                let typed = matches!(
                    error,
                    LaneError::Protocol(_)
                        | LaneError::Memory(_)
                        | LaneError::PeerGone(_)
                        | LaneError::Closed
                );
                assert!(typed, "{step:?} in round {round}: {error:?}");
                self.failed.get_or_insert(error);
            }
        }
        if let Some(granted) = &self.granted {
            granted.fetch_add(8 * turn, 1).unwrap();
            granted.read(0, &mut [0; 4000], &self.good.ledger).unwrap();
        }
        tokio::task::yield_now().await;
    }

    /// Anything on the link.
    fn junk(&mut self, what: u64) {
        let cx = &mut Context::from_waker(Waker::noop());
        let link = &mut self.evil.link;
        let (null, one): (OwnedFd, _) = (std::fs::File::open("/dev/null").unwrap().into(), export());
        let _ = match what % 5 {
            0 => link.poll_write(cx, &[what as u8; 3]).map_ok(drop),
            1 => link.poll_send_descriptors(cx, &[null.as_fd()]),
            2 => link.poll_send_descriptors(cx, &[one.region().fd().unwrap()]),
            3 => link.poll_send_descriptors(cx, &[null.as_fd(), one.region().fd().unwrap()]),
            _ => link.poll_send_descriptors(cx, &[self.regions[0].fd().unwrap()]),
        };
    }

    async fn end(self, round: u32) {
        let Self { mut good, mut evil, failed, .. } = self;
        if round & !PAYLOAD == 0 {
            // Nobody is to mind what is in messages.
            assert!(failed.is_none(), "{failed:?}");
            evil.slot(Head::new(Kind::Data, 0, 8), 1, &[7]);
            assert_eq!(good.recv().await.unwrap().len(), 1);
        }
        let pool = good.pool.clone();
        drop(good);
        assert_eq!(pool.stats().in_use_bytes, 0, "the pool keeps something of round {round}");
    }
}

fn export() -> ExportMemory {
    let memory = Region::builder(REGION_BYTES).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites);
    ExportMemory::new(memory.prefault(true), REGION_BYTES).unwrap()
}

fn key(words: [u64; 2]) -> RemoteKey {
    RemoteKey::from_bytes(&words.map(u64::to_ne_bytes).concat()).unwrap()
}

/// A thread that writes until it is dropped.
struct Scribbler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scribbler {
    fn start(used: &Used, round: u32) -> Self {
        let half = (used.evil.words.clone(), used.evil.region.len() / 8);
        let others =
            used.regions.iter().map(|region| (OwnWords::new(region, region.len()), region.len() / 8));
        let regions = std::iter::once(half).chain(others).collect();
        let random = u64::from(round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut pen = Pen { regions, geometry: used.evil.geometry, random };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let aims = [PAYLOAD, SLOTS, RETURNS, COUNTS, RECORDS, ANYTHING];
            while !stopped.load(Ordering::Relaxed) {
                for aim in aims.into_iter().filter(|aim| round & aim != 0) {
                    // Nobody minds what is in messages: it can change all the time.
                    (0..if aim == PAYLOAD { PAYLOAD_WORDS } else { 1 }).for_each(|_| pen.write(aim));
                }
                // One lie is the end: some come late.
                std::thread::sleep(Duration::from_micros(pen.next() % MOST_PAUSE_US));
                if round & !LINK == 0 {
                    return;
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Scribbler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
    }
}

struct Pen {
    /// The first is the evil side's half.
    regions: Vec<(OwnWords, usize)>,
    geometry: Geometry,
    random: u64,
}

impl Pen {
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Of small numbers more than of others.
    fn number(&mut self) -> u64 {
        if self.next().is_multiple_of(8) { self.next() } else { self.next() % 20 }
    }

    fn write(&mut self, aim: u32) {
        let (half, value) = (self.regions[0].0.clone(), self.next());
        match aim {
            PAYLOAD => {
                let (first, which) = (self.geometry.first_block() as usize, self.below(self.regions.len()));
                let from = if which == 0 { first * self.geometry.block_len as usize / 8 } else { 0 };
                let at = from + self.below(self.regions[which].1 - from);
                self.regions[which].0.store(at, value);
            }
            SLOTS => {
                let at = self.geometry.ring_at() + self.below(32) * SLOT_WORDS;
                let name = self.name().pack();
                half.store_all(at + 1, &[value % 30, name[0], name[1], self.random, value]);
                let head = Head {
                    kind: value as u8 % 10,
                    flags: (value >> 8) as u8 & 7,
                    count: (value >> 16) as u8 % 17,
                };
                half.publish(at, head.pack(1));
            }
            RETURNS => {
                let at = self.geometry.returns_at() + self.below(32);
                let Descriptor { slab, generation, block, .. } = self.name();
                let back = Return { slab, sent_back: value as u8 & 1, generation, block: block as u16 };
                half.publish(at, back.pack(1));
            }
            COUNTS => {
                let counts = [
                    CONSUMED,
                    TAKEN,
                    PASSED_ON,
                    RX_SLEEP,
                    TX_SLEEP,
                    REMOTE_SLEEP,
                    REMOTE_CONSUMED,
                    NOTIFIED,
                    REMOTE_CALLS,
                    REMOTE_REVOKED,
                ];
                let number = self.number();
                half.publish(counts[value as usize % counts.len()], number);
            }
            RECORDS => {
                let at = REMOTE_RING + self.below(REMOTE_SLOTS as usize) * SLOT_WORDS;
                let words: [u64; 6] = std::array::from_fn(|_| self.number());
                half.store_all(at + 2, &words);
                let (kind, count) = [(1, 16), (2, 48), (3, 8), (4, 16), (5, 24)][value as usize % 5];
                half.publish(at, Head { kind, flags: 0, count }.pack(1));
            }
            _ => {
                let which = self.below(self.regions.len());
                let at = self.below(self.regions[which].1);
                self.regions[which].0.store(at, value);
            }
        }
    }

    /// A place that may be one.
    fn name(&mut self) -> Descriptor {
        let slab = [0, 1, SHARED, crate::layout::BACK][self.below(4)];
        let block = if slab == 1 { 0 } else { self.geometry.first_block() } + self.below(20) as u32;
        let (offset, len) = (self.below(64) as u32, self.below(4200) as u32);
        Descriptor { slab, generation: self.below(2) as u16, block, offset, len }
    }
}
