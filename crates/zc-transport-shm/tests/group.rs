//! Memory of groups on lanes: what is shown, what is kept, and what is told when it is gone.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Instant;

use common::*;
use tokio::sync::Notify;
use zc_core::memory::{Backing, BufPool, MemoryGroup, PinnedBuf, RegionKind};
use zc_core::transport::*;
use zc_transport_shm::{MAX_GROUPS, MAX_SHARED_LOANS, MAX_SHARED_REGIONS};

fn group(max_bytes: usize) -> MemoryGroup {
    MemoryGroup::new(BufPool::builder().name("group").backing(Backing::Memfd).max_bytes(max_bytes))
}

fn filled(group: &MemoryGroup, len: usize, seed: usize) -> PinnedBuf {
    let mut buf = group.pool().try_alloc(len).unwrap();
    buf.put_slice(&body(len, seed));
    buf.freeze()
}

fn copied(end: &End) -> u64 {
    end.ledger.snapshot().copied_bytes()
}

struct Wakes(Arc<Notify>);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

async fn pass(a: &mut End, b: &mut End, seq: u64, buf: PinnedBuf) -> Vec<Frame> {
    a.send(data(seq, buf)).await.unwrap();
    let frames = b.recv().await.unwrap();
    frames.iter().for_each(|frame| b.lane.rx.release(frame.payload.len()));
    frames
}

/// Who trusts nobody copies, and gives back at once; the sender copies nothing.
#[test]
fn strangers_copy_out() {
    run(async {
        let setup = Setup { trust: Trust::Untrusted, ..Setup::default() };
        let (mut a, mut b) = pair(&setup).await;
        let group = group(8 << 20);
        a.lane.tx.join_group(&group).unwrap();
        for seq in 1..20 {
            let buf = filled(&group, 5000, seq);
            let frames = pass(&mut a, &mut b, seq as u64, buf).await;
            let [only] = frames[0].payload.segments() else { panic!() };
            assert!(*only == body(5000, seq)[..] && only.region().unwrap().info().kind == RegionKind::Own);
        }
        assert_eq!((copied(&a), copied(&b)), (0, 19 * 5000));
        drop(a.alloc(100_000).await);
        assert_eq!(group.pool().stats().in_use_bytes, 0);
    });
}

/// Parts of one message, in any order and more than once, next to memory of the lane and of strangers.
#[test]
fn ropes_of_all_kinds_of_memory() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (one, other) = (group(8 << 20), group(8 << 20));
        a.lane.tx.join_group(&one).unwrap();
        a.lane.tx.join_group(&other).unwrap();
        let (x, y) = (filled(&one, 9000, 1), filled(&other, 3000, 2));
        let mut own = a.alloc(500).await;
        own.put_slice(&body(500, 3));
        let mut message = zc_core::memory::Message::new();
        let mut expect = Vec::new();
        for part in [x.slice(10..), y.clone(), own.freeze(), x.slice(..200), body(300, 4).into(), y, x] {
            expect.extend_from_slice(&part);
            message.push(part).unwrap();
        }
        a.send(data(1, message)).await.unwrap();
        let frames = b.recv().await.unwrap();
        assert!(frames[0].payload == expect[..]);
        assert_eq!((copied(&a), copied(&b)), (300, 0));
    });
}

/// The peer is told when a region is gone, and shown the next one under the number that is free.
#[test]
fn regions_come_and_go() {
    const LEN: usize = 32 << 10;
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let pool = BufPool::builder().name("comes").backing(Backing::Memfd).max_bytes(8 << 20);
        let group = MemoryGroup::new(pool.region_bytes(LEN));
        a.lane.tx.join_group(&group).unwrap();
        let maps = |what: &str| {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().filter(|line| line.contains(what)).count()
        };
        let mut cx = Context::from_waker(Waker::noop());
        for round in 0..2 * MAX_SHARED_REGIONS {
            let frames = pass(&mut a, &mut b, round as u64 + 1, filled(&group, LEN, round)).await;
            assert!(frames[0].payload == body(LEN, round)[..]);
            drop(frames);
            // What came back is looked at, the pool lets go of it, and the next look tells the peer.
            drop(a.alloc(100_000).await);
            group.pool().trim();
            let start = Instant::now();
            let mut drive = |now| a.lane.drive.as_mut().unwrap().poll_drive(&mut cx, now).unwrap();
            let due = drive(start).expect("it knows that a region is gone");
            drive(due);
            assert!(a.lane.tx.poll_flush(&mut cx).is_ready());
            assert!(b.lane.rx.try_recv(&mut Batch::new()).unwrap().is_none());
            assert!(maps("memfd:comes") <= 4, "round {round}: {}", maps("memfd:comes"));
        }
        assert_eq!((copied(&a), copied(&b)), (0, 0));
    });
}

/// One who keeps many messages gets copies past the bound, and nothing stops.
#[test]
fn loans_are_bounded() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let group = group(64 << 20);
        a.lane.tx.join_group(&group).unwrap();
        let mut kept = Vec::new();
        let all = MAX_SHARED_LOANS as usize + 50;
        for seq in 0..all {
            kept.extend(pass(&mut a, &mut b, seq as u64 + 1, filled(&group, 200, seq)).await);
        }
        assert_eq!((copied(&a), copied(&b)), (50 * 200, 0));
        assert!(kept.iter().enumerate().all(|(seq, frame)| frame.payload == body(200, seq)[..]));
        kept.clear();
        drop(pass(&mut a, &mut b, all as u64 + 1, filled(&group, 200, 1)).await);
        assert_eq!(copied(&a), 50 * 200, "there is room again");
    });
}

/// A sender that is idle is woken for what comes back, each time: others wait for that memory.
#[test]
fn an_idle_sender_hears_of_what_comes_back() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let group = group(8 << 20);
        a.lane.tx.join_group(&group).unwrap();
        for round in 0..20 {
            let mut kept = Vec::new();
            for at in 1..=4 {
                kept.extend(pass(&mut a, &mut b, round * 4 + at, filled(&group, 50_000, 1)).await);
            }
            while group.pool().stats().in_use_bytes > 0 {
                let (before, came) = (group.pool().stats().in_use_bytes, Arc::new(Notify::new()));
                let waker = Waker::from(Arc::new(Wakes(came.clone())));
                assert!(a.lane.tx.poll_flush(&mut Context::from_waker(&waker)).is_ready());
                kept.pop();
                // Nothing is driven, so nobody looks by the clock.
                came.notified().await;
                assert!(a.lane.tx.poll_flush(&mut Context::from_waker(&waker)).is_ready());
                assert!(group.pool().stats().in_use_bytes < before);
            }
        }
        assert_eq!((copied(&a), copied(&b)), (0, 0));
    });
}

/// A lane that is gone leaves with the peer what it reads: the group does not write it again before.
#[test]
fn what_a_peer_reads_outlives_the_lane() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let group = group(8 << 20);
        a.lane.tx.join_group(&group).unwrap();
        let frames = pass(&mut a, &mut b, 1, filled(&group, 50_000, 7)).await;
        drop(a);
        assert!(group.pool().stats().in_use_bytes > 0, "the peer reads it");
        assert_eq!(group.members(), 0);
        for seed in 0..50 {
            drop(filled(&group, 50_000, seed));
        }
        assert!(frames[0].payload == body(50_000, 7)[..]);
        drop((frames, b));
        // Looked after when lanes come and go.
        while group.pool().stats().in_use_bytes > 0 {
            drop(pair(&Setup::default()).await);
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn groups_and_their_memory_are_bounded() {
    run(async {
        let mut setup = Setup::default();
        setup.options.max_arena_bytes = 4 << 20;
        let (mut a, mut b) = pair(&setup).await;
        // Of groups, the peer maps as much as of an arena.
        let large = group(64 << 20);
        a.lane.tx.join_group(&large).unwrap();
        let held = filled(&large, 5 << 20, 0);
        drop(pass(&mut a, &mut b, 1, held.slice(..5000)).await);
        assert_eq!(copied(&a), 5000);
        let groups: Vec<_> = (0..MAX_GROUPS).map(|_| group(1 << 20)).collect();
        let joined: Vec<_> = groups.iter().map(|group| a.lane.tx.join_group(group)).collect();
        assert!(joined.iter().filter(|done| done.is_ok()).count() == MAX_GROUPS - 1);
        // What no peer can map is copied.
        let private = MemoryGroup::new(BufPool::builder().max_bytes(1 << 20));
        a.lane.tx.leave_group(&large);
        a.lane.tx.join_group(&private).unwrap();
        drop(pass(&mut a, &mut b, 2, filled(&private, 1000, 0)).await);
        assert_eq!(copied(&a), 6000);
    });
}

/// A connection that goes on when groups do not has room for others, and lets their memory go.
#[test]
fn groups_that_nobody_has_are_left() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        for seq in 1..3 * MAX_GROUPS {
            let group = group(8 << 20);
            a.lane.tx.join_group(&group).unwrap();
            let buf = filled(&group, 5000, seq);
            let pool = group.pool().clone();
            drop(group);
            drop(pass(&mut a, &mut b, seq as u64, buf).await);
            drop(a.alloc(100_000).await);
            assert_eq!(pool.stats().in_use_bytes, 0);
        }
        assert_eq!((copied(&a), copied(&b)), (0, 0));
    });
}

/// What one who was dismissed keeps is no part of anyone's, and the same connection gets no other part for it.
#[test]
fn what_a_dismissed_member_keeps_counts_for_all() {
    const LEN: usize = 60_000;
    run(async {
        let group = group(8 << 20);
        let (mut kept, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..6 {
            let (mut hub, mut hoarder) = pair(&Setup::default()).await;
            hub.lane.tx.join_group(&group).unwrap();
            for at in 1..=100 {
                kept.extend(pass(&mut hub, &mut hoarder, at, filled(&group, LEN, 3)).await);
            }
            hub.lane.tx.leave_group(&group);
            ends.push((hub, hoarder));
        }
        let left = group.lent_bytes();
        assert!(left > 3 << 20 && left <= 4 << 20, "{left}");
        drop(kept);
        for (hub, _) in &mut ends {
            drop(hub.alloc(100_000).await);
        }
        assert_eq!((group.lent_bytes(), group.pool().stats().in_use_bytes), (0, 0));
    });
}

/// Who waits for what a member that is gone had need not ask: lanes of groups are woken, and look until it is free.
#[test]
fn lanes_look_after_what_is_left_behind() {
    run(async {
        let (mut a, _b) = pair(&Setup::default()).await;
        let group = group(8 << 20);
        a.lane.tx.join_group(&group).unwrap();
        let came = Arc::new(Notify::new());
        let waker = Waker::from(Arc::new(Wakes(came.clone())));
        let mut cx = Context::from_waker(&waker);
        let (mut hub, mut reader) = pair(&Setup::default()).await;
        hub.lane.tx.join_group(&group).unwrap();
        let frames = pass(&mut hub, &mut reader, 1, filled(&group, 50_000, 7)).await;
        let start = Instant::now();
        assert!(a.lane.drive.as_mut().unwrap().poll_drive(&mut cx, start).is_ok());
        drop(hub);
        came.notified().await;
        let mut now =
            a.lane.drive.as_mut().unwrap().poll_drive(&mut cx, start).unwrap().expect("a look is due");
        drop((frames, reader));
        while group.pool().stats().in_use_bytes > 0 {
            now = a.lane.drive.as_mut().unwrap().poll_drive(&mut cx, now).unwrap().unwrap();
            assert!(a.lane.tx.poll_flush(&mut cx).is_ready());
            // Looks are rare, by the clock, whoever asks for them.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
}

/// One who keeps its share, goes and comes back, again and again: there is memory for others all the same.
#[test]
fn coming_back_gives_nobody_another_share() {
    const LEN: usize = 60_000;
    run(async {
        let (mut other, mut reader) = pair(&Setup::default()).await;
        let group = group(8 << 20);
        other.lane.tx.join_group(&group).unwrap();
        let (mut kept, mut seq) = (Vec::new(), 0);
        for _ in 0..10 {
            let (mut hub, mut hoarder) = pair(&Setup::default()).await;
            hub.lane.tx.join_group(&group).unwrap();
            for at in 1..=80 {
                kept.extend(pass(&mut hub, &mut hoarder, at, filled(&group, LEN, 3)).await);
                seq += 1;
                drop(pass(&mut other, &mut reader, seq, filled(&group, LEN, 4)).await);
                drop(other.alloc(100_000).await);
            }
        }
        let left = group.lent_bytes();
        assert!(left > 0 && left <= (8 << 20) / 3 * 2, "{left}");
        assert!(kept.iter().all(|frame| frame.payload == body(LEN, 3)[..]));
        drop(kept);
        while group.lent_bytes() > 0 {
            drop(pair(&Setup::default()).await);
            tokio::task::yield_now().await;
        }
    });
}

/// A lane on which nothing happens hears that a group is over, of which it was told nothing else, and leaves it.
#[test]
fn an_idle_lane_leaves_a_group_that_is_over() {
    run(async {
        let (mut a, _b) = pair(&Setup::default()).await;
        let came = Arc::new(Notify::new());
        let waker = Waker::from(Arc::new(Wakes(came.clone())));
        let mut cx = Context::from_waker(&waker);
        for forwards in [false, true] {
            let pool = BufPool::builder().backing(Backing::Memfd).max_bytes(8 << 20);
            let group = if forwards { MemoryGroup::forwarding(pool) } else { MemoryGroup::new(pool) };
            a.lane.tx.join_group(&group).unwrap();
            let start = Instant::now();
            a.lane.drive.as_mut().unwrap().poll_drive(&mut cx, start).unwrap();
            assert!(a.lane.tx.poll_flush(&mut cx).is_ready());
            let buf = filled(&group, 100, 1);
            drop(group);
            let _ = futures::FutureExt::now_or_never(came.notified());
            drop(buf);
            came.notified().await;
            let mut drive = |now| a.lane.drive.as_mut().unwrap().poll_drive(&mut cx, now).unwrap();
            let due = drive(start).expect("a look is due");
            drive(due);
            assert!(a.lane.tx.poll_flush(&mut cx).is_ready());
            let mut drive = |now| a.lane.drive.as_mut().unwrap().poll_drive(&mut cx, now).unwrap();
            assert_eq!(drive(due), None, "it is still in the group");
        }
    });
}

/// Who leaves and comes back still has what it kept: that is no second part of the same group.
#[test]
fn a_connection_that_comes_back_has_one_part() {
    const LEN: usize = 60_000;
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (mut other, _reader) = pair(&Setup::default()).await;
        let group = group(8 << 20);
        other.lane.tx.join_group(&group).unwrap();
        let (mut kept, mut seq) = (Vec::new(), 0);
        for _ in 0..3 {
            a.lane.tx.join_group(&group).unwrap();
            for _ in 0..60 {
                seq += 1;
                kept.extend(pass(&mut a, &mut b, seq, filled(&group, LEN, 3)).await);
            }
            assert!(group.lent_bytes() <= (8 << 20) / 3, "{}", group.lent_bytes());
            a.lane.tx.leave_group(&group);
        }
        assert!(group.lent_bytes() > 2 << 20);
        drop(kept);
        drop(a.alloc(100_000).await);
        assert_eq!(group.lent_bytes(), 0);
    });
}

/// Members that came first took larger parts. All the same there is always one left, and those who give back get it.
#[test]
fn who_comes_late_finds_a_part() {
    const LEN: usize = 60_000;
    run(async {
        let group = group(8 << 20);
        let (mut kept, mut ends) = (Vec::new(), Vec::new());
        for members in 1..=4 {
            let (mut hub, mut hoarder) = pair(&Setup::default()).await;
            hub.lane.tx.join_group(&group).unwrap();
            for at in 1..=100 {
                kept.extend(pass(&mut hub, &mut hoarder, at, filled(&group, LEN, 3)).await);
            }
            let most = (8 << 20) - (8 << 20) / (members + 1);
            assert!(group.lent_bytes() <= most, "{} of {most}", group.lent_bytes());
            assert!(group.pool().stats().in_use_bytes <= most as u64);
            ends.push((hub, hoarder));
        }
    });
}
