//! Groups over shared memory: one buffer for many processes, and messages that are forwarded as they lie.
#![cfg(feature = "testing")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use zc::memory::{AllocError, BufPool, RegionKind};
use zc::transport::{Completion, LaneLimits};
use zc::{Connection, Fabric, Group, Listener, PinnedBuf};

/// Set in a process that is a member: what it does, and where.
const MEMBER: &str = "ZC_SHM_GROUP_MEMBER";
const GUARD: Duration = Duration::from_secs(60);
const MEMBERS: usize = 4;
const ROUNDS: u64 = 100;

fn run<F: Future>(future: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(GUARD, future).await.expect("hangs") })
}

/// A name of this test alone.
fn uri(test: &str) -> String {
    format!("zc+shm://group-{test}-{}", std::process::id())
}

fn size_of_message(seq: u64) -> usize {
    [113, 5000, 64 << 10, 300_000][seq as usize % 4]
}

fn byte(seq: u64, at: usize) -> u8 {
    (at.wrapping_mul(31) ^ seq as usize ^ (at >> 9)) as u8
}

fn is_whole(message: &[u8], seq: u64, len: usize) -> bool {
    message.len() == len && message.iter().enumerate().all(|(at, found)| *found == byte(seq, at))
}

async fn filled(group: &Group, seq: u64, len: usize) -> PinnedBuf {
    let mut buf = group.alloc(len).await.unwrap();
    buf.resize(len, 0);
    buf.iter_mut().enumerate().for_each(|(at, to)| *to = byte(seq, at));
    buf.freeze()
}

async fn accept(listener: &mut Listener) -> Connection {
    try_accept(listener).await.unwrap()
}

async fn try_accept(listener: &mut Listener) -> Result<Connection, zc::Error> {
    let connection = listener.accept().await?;
    assert_eq!(connection.report().chosen(), "shm", "{}", connection.report());
    Ok(connection)
}

/// Both ends of connections within this process.
async fn pairs(fabric: &Fabric, uri: &str, count: usize) -> Vec<(Connection, Connection)> {
    let mut listener = fabric.listen(uri).await.unwrap();
    let mut pairs = Vec::new();
    for _ in 0..count {
        let (there, here) = tokio::try_join!(fabric.connect(uri), try_accept(&mut listener)).unwrap();
        pairs.push((here, there));
    }
    pairs
}

/// As soon as somebody listens.
async fn connect(fabric: &Fabric, uri: &str) -> Connection {
    loop {
        match fabric.connect(uri).await {
            Ok(connection) => return connection,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn take(connection: &mut Connection) -> PinnedBuf {
    let message = connection.recv().await.unwrap().unwrap();
    let mut segments = message.into_segments();
    let only = segments.next().unwrap();
    assert!(segments.next().is_none(), "one buffer arrives as one");
    only
}

fn copied(connection: &Connection) -> u64 {
    connection.ledger().copied_bytes()
}

struct Member(Child);

impl Member {
    fn start(what: &str, uri: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "member", "--test-threads=1"])
            .env(MEMBER, format!("{what} {uri}"))
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    fn ends_well(mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: a process that is a member.
#[test]
fn member() {
    let Ok(task) = std::env::var(MEMBER) else { return };
    let (what, uri) = task.split_once(' ').unwrap();
    run(async {
        let fabric = Fabric::auto().unwrap();
        if what == "forwards" {
            return forwards(&fabric, uri).await;
        }
        let mut connection = fabric.connect(uri).await.unwrap();
        match what {
            "reads" => reads(&mut connection).await,
            "holds" => holds(&mut connection).await,
            "sends" => sends(&connection).await,
            other => panic!("{other}"),
        }
    });
}

/// Checks all that comes, and that nothing of it was copied.
async fn reads(connection: &mut Connection) {
    let mut seq = 0;
    while let Some(message) = connection.recv().await.unwrap() {
        let [only] = message.segments() else { panic!("one buffer arrives as one") };
        assert!(is_whole(only, seq, size_of_message(seq)), "message {seq}");
        assert_eq!(only.region().unwrap().info().kind, RegionKind::Peer, "lent where it lies");
        seq += 1;
    }
    assert_eq!((seq, copied(connection)), (ROUNDS, 0));
}

/// Keeps everything until it is killed.
async fn holds(connection: &mut Connection) {
    let mut kept = Vec::new();
    loop {
        kept.push(connection.recv().await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A hub: what the first sends goes to the second, until it is killed.
async fn forwards(fabric: &Fabric, uri: &str) {
    let (hub, mut listener) = (fabric.forwarding_group(), fabric.listen(uri).await.unwrap());
    let (mut from, to) = (accept(&mut listener).await, accept(&mut listener).await);
    [&from, &to].iter().for_each(|member| hub.admit(member).unwrap());
    to.send(PinnedBuf::from_static(b"ready")).await.unwrap();
    while let Some(message) = from.recv().await.unwrap() {
        to.send(message).await.unwrap();
    }
}

async fn sends(connection: &Connection) {
    for seq in 0..ROUNDS {
        let len = size_of_message(seq);
        let mut buf = connection.alloc(len).await.unwrap();
        buf.resize(len, 0);
        buf.iter_mut().enumerate().for_each(|(at, to)| *to = byte(seq, at));
        connection.send(buf.freeze()).await.unwrap();
    }
    connection.drain(GUARD).await.unwrap();
    assert_eq!(copied(connection), 0);
}

#[test]
fn one_buffer_goes_to_four_processes_and_nobody_copies() {
    run(async {
        let uri = uri("processes");
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen(&uri).await.unwrap();
        let (group, mut members, mut connections) = (fabric.group(), Vec::new(), Vec::new());
        for _ in 0..MEMBERS {
            members.push(Member::start("reads", &uri));
            let connection = accept(&mut listener).await;
            group.admit(&connection).unwrap();
            connections.push(connection);
        }
        for seq in 0..ROUNDS {
            let buf = filled(&group, seq, size_of_message(seq)).await;
            for connection in &connections {
                connection.send(buf.clone()).await.unwrap();
            }
        }
        for connection in connections {
            assert_eq!(copied(&connection), 0, "{:?}", connection.ledger());
            connection.drain(GUARD).await.unwrap();
        }
        assert!(members.into_iter().all(Member::ends_well));
        while group.memory().pool().stats().in_use_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// Every peer reads the same pages, and the buffer is ours again when the last of them is done.
#[test]
fn a_buffer_is_used_again_when_all_have_given_it_back() {
    const LEN: usize = 1 << 20;
    run(async {
        let fabric = Fabric::auto().unwrap();
        let mut ends = pairs(&fabric, &uri("back"), 3).await;
        let group =
            fabric.group_with(BufPool::builder().backing(zc::memory::Backing::Memfd).max_bytes(4 << 20));
        ends.iter().for_each(|(here, _)| group.admit(here).unwrap());
        let buf = filled(&group, 1, LEN).await;
        let mut held = Vec::new();
        for (here, there) in &mut ends {
            here.send(buf.clone()).await.unwrap();
            held.push(take(there).await);
        }
        assert!(held.iter().all(|part| is_whole(part, 1, LEN)));
        let mut buf = buf.try_into_mut().expect_err("still with three");
        while let Some(part) = held.pop() {
            let copy = part.clone();
            drop(part);
            // Looks at what came back.
            drop(ends[0].0.alloc(100 << 10).await.unwrap());
            buf = buf.try_into_mut().expect_err("a clone is kept there");
            drop(copy);
        }
        loop {
            for (here, _) in &ends {
                drop(here.alloc(100 << 10).await.unwrap());
            }
            match buf.try_into_mut() {
                Ok(_) => break,
                Err(shared) => buf = shared,
            }
        }
        assert!(ends.iter().all(|(here, there)| copied(here) + copied(there) == 0));
    });
}

#[test]
fn who_was_not_admitted_gets_a_copy_of_his_own() {
    const LEN: usize = 10_000;
    run(async {
        let fabric = Fabric::auto().unwrap();
        let mut ends = pairs(&fabric, &uri("outside"), 2).await;
        let group = fabric.group();
        group.admit(&ends[0].0).unwrap();
        for round in 1..=3_u64 {
            let buf = filled(&group, round, LEN).await;
            for (here, there) in &mut ends {
                here.send(buf.clone()).await.unwrap();
                assert!(is_whole(&take(there).await, round, LEN));
            }
            assert_eq!((copied(&ends[0].0), copied(&ends[1].0)), (0, round * LEN as u64));
        }
        // And so does one who has left.
        group.dismiss(&ends[0].0);
        assert_eq!(group.memory().members(), 0);
        let (here, there) = &mut ends[0];
        here.send(filled(&group, 9, LEN).await).await.unwrap();
        assert!(is_whole(&take(there).await, 9, LEN));
        assert_eq!(copied(here), LEN as u64);
        // He may come back.
        group.admit(here).unwrap();
        here.send(filled(&group, 10, LEN).await).await.unwrap();
        assert!(is_whole(&take(there).await, 10, LEN));
        assert_eq!(copied(here), LEN as u64);
    });
}

#[test]
fn a_killed_member_gives_back_what_it_held() {
    const LEN: usize = 100_000;
    run(async {
        let uri = uri("killed");
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen(&uri).await.unwrap();
        let group = fabric.group();
        for _ in 0..5 {
            let mut holder = Member::start("holds", &uri);
            let connection = accept(&mut listener).await;
            group.admit(&connection).unwrap();
            for seq in 0..8 {
                connection.send(filled(&group, seq, LEN).await).await.unwrap();
            }
            assert!(group.memory().pool().stats().in_use_bytes >= 8 * LEN as u64);
            holder.0.kill().unwrap();
            // Nothing is done on the connection: its driver notices.
            while group.memory().pool().stats().in_use_bytes > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
}

/// What a member keeps is bounded, whatever it does: the others go on without a copy.
#[test]
fn a_member_that_gives_nothing_back_stops_nobody() {
    const LEN: usize = 64 << 10;
    run(async {
        let fabric = Fabric::auto().unwrap();
        let mut ends = pairs(&fabric, &uri("hoards"), 3).await;
        let memory = BufPool::builder().backing(zc::memory::Backing::Memfd).max_bytes(8 << 20);
        let group = fabric.group_with(memory);
        ends.iter().for_each(|(here, _)| group.admit(here).unwrap());
        let mut hoard = Vec::new();
        for seq in 0..500 {
            let buf = filled(&group, seq, LEN).await;
            for (at, (here, there)) in ends.iter_mut().enumerate() {
                here.send(buf.clone()).await.unwrap();
                let got = take(there).await;
                assert!(is_whole(&got, seq, LEN), "{seq}");
                if at == 0 {
                    hoard.push(got);
                }
            }
        }
        assert!(copied(&ends[0].0) > 0, "the hoarder gets copies in the end");
        assert!(ends[1..].iter().all(|(here, there)| copied(here) + copied(there) == 0));
        assert!(matches!(group.try_alloc(9 << 20), Err(AllocError::TooLarge { .. })));
        for (seq, kept) in hoard.iter().enumerate() {
            assert!(is_whole(kept, seq as u64, LEN), "{seq} was written again");
        }
    });
}

/// From a process through the hub to three others, each byte written once.
#[test]
fn a_hub_forwards_without_a_copy() {
    run(async {
        let uri = uri("hub");
        // Readers may fall behind by everything that is sent.
        let mut limits = LaneLimits::default();
        (limits.lease_soft, limits.lease_hard) = (64 << 20, 128 << 20);
        let fabric = Fabric::auto_builder().limits(limits).build().unwrap();
        let mut listener = fabric.listen(&uri).await.unwrap();
        let (hub, mut readers, mut members) = (fabric.forwarding_group(), Vec::new(), Vec::new());
        for _ in 0..3 {
            members.push(Member::start("reads", &uri));
            readers.push(accept(&mut listener).await);
        }
        members.push(Member::start("sends", &uri));
        let mut sender = accept(&mut listener).await;
        readers.iter().chain([&sender]).for_each(|member| hub.admit(member).unwrap());
        while let Some(message) = sender.recv().await.unwrap() {
            for reader in &readers {
                reader.send(message.clone()).await.unwrap();
            }
        }
        for reader in readers {
            assert_eq!(copied(&reader), 0, "{:?}", reader.ledger());
            reader.drain(GUARD).await.unwrap();
        }
        assert_eq!(copied(&sender), 0);
        assert!(members.into_iter().all(Member::ends_well));
    });
}

/// A message is its sender's again only when the last of those it was forwarded to is done with it.
#[test]
fn what_is_forwarded_stays_until_all_are_done() {
    const LEN: usize = 50_000;
    run(async {
        let fabric = Fabric::auto().unwrap();
        let mut ends = pairs(&fabric, &uri("stays"), 2).await;
        let hub = fabric.forwarding_group();
        ends.iter().for_each(|(here, _)| hub.admit(here).unwrap());
        let [(from, source), (to, sink)] = &mut ends[..] else { panic!() };
        let mut sent = source.alloc(LEN).await.unwrap();
        sent.resize(LEN, 0);
        sent.iter_mut().enumerate().for_each(|(at, b)| *b = byte(1, at));
        let mut sent = sent.freeze();
        source.send(sent.clone()).await.unwrap();
        to.send(take(from).await).await.unwrap();
        let got = take(sink).await;
        assert!(is_whole(&got, 1, LEN));
        for _ in 0..20 {
            drop((to.alloc(100 << 10).await.unwrap(), source.alloc(100 << 10).await.unwrap()));
            sent = sent.try_into_mut().expect_err("writable while it is read");
        }
        drop(got);
        loop {
            drop((to.alloc(100 << 10).await.unwrap(), source.alloc(100 << 10).await.unwrap()));
            match sent.try_into_mut() {
                Ok(_) => break,
                Err(shared) => sent = shared,
            }
        }
        assert_eq!(ends.iter().map(|(a, b)| copied(a) + copied(b)).sum::<u64>(), 0);
    });
}

/// The hub has nothing else to send, and nobody looks: its sender hears all the same when the reader is done. Once a second would
/// be too late for the guard.
#[test]
fn a_sender_hears_when_what_was_forwarded_is_done_with() {
    const LEN: usize = 50_000;
    run(async {
        let fabric = Fabric::auto().unwrap();
        let mut ends = pairs(&fabric, &uri("hears"), 2).await;
        let hub = fabric.forwarding_group();
        ends.iter().for_each(|(here, _)| hub.admit(here).unwrap());
        let [(from, source), (to, sink)] = &mut ends[..] else { panic!() };
        let sender = source.sender();
        for _ in 0..200 {
            let mut buf = source.alloc(LEN).await.unwrap();
            buf.resize(LEN, 1);
            let sent = sender.send_with(buf.freeze(), Completion::Sent);
            let forwarded = async {
                to.send(take(from).await).await.unwrap();
                drop(take(sink).await);
            };
            tokio::join!(async { sent.await.unwrap() }, forwarded);
        }
        assert_eq!(ends.iter().map(|(a, b)| copied(a) + copied(b)).sum::<u64>(), 0);
    });
}

/// A message as long as its sender's lease is copied on: a reader that keeps it keeps no credit.
#[test]
fn a_long_message_that_a_reader_keeps_stops_no_sender() {
    const LEN: usize = 3 << 20;
    run(async {
        let mut limits = LaneLimits::default();
        (limits.lease_soft, limits.lease_hard) = (1 << 20, 3 << 20);
        (limits.recv_window, limits.send_window) = (1 << 20, 1 << 20);
        let fabric = Fabric::auto_builder().limits(limits).build().unwrap();
        let mut ends = pairs(&fabric, &uri("long"), 2).await;
        let hub = fabric.forwarding_group();
        ends.iter().for_each(|(here, _)| hub.admit(here).unwrap());
        let [(from, source), (to, sink)] = &mut ends[..] else { panic!() };
        let mut kept = None;
        for len in [LEN, 500_000, 500_000, 500_000, 500_000, 500_000] {
            let mut buf = source.alloc(len).await.unwrap();
            buf.resize(len, 1);
            source.send(buf.freeze()).await.unwrap();
            let message = take(from).await;
            if kept.is_none() {
                to.send(message).await.unwrap();
                kept = Some(take(sink).await);
            }
        }
        assert!(kept.unwrap() == vec![1; LEN][..]);
        assert_eq!(copied(to), LEN as u64);
    });
}

/// One who keeps all it can, goes and comes back: whoever sent that can still send.
#[test]
fn what_is_kept_of_a_member_counts_after_its_reader_has_gone() {
    const LEN: usize = 200;
    run(async {
        let (uri, fabric) = (uri("kept"), Fabric::auto().unwrap());
        let mut listener = fabric.listen(&uri).await.unwrap();
        let (source, mut from) = tokio::try_join!(fabric.connect(&uri), try_accept(&mut listener)).unwrap();
        let hub = fabric.forwarding_group();
        hub.admit(&from).unwrap();
        let mut kept = Vec::new();
        for _ in 0..4 {
            let (mut sink, to) = tokio::try_join!(fabric.connect(&uri), try_accept(&mut listener)).unwrap();
            hub.admit(&to).unwrap();
            for _ in 0..300 {
                let seq = kept.len() as u64;
                let mut buf = source.alloc(LEN).await.unwrap();
                buf.resize(LEN, 0);
                buf.iter_mut().enumerate().for_each(|(at, b)| *b = byte(seq, at));
                source.send(buf.freeze()).await.unwrap();
                to.send(take(&mut from).await).await.unwrap();
                kept.push(take(&mut sink).await);
            }
        }
        assert!(kept.iter().enumerate().all(|(seq, part)| is_whole(part, seq as u64, LEN)));
    });
}

/// The hub is killed while one member reads what another wrote: that one may not write it, for nobody tells it when the
/// other is done.
#[test]
fn what_was_forwarded_stays_as_it_is_when_the_hub_is_killed() {
    const LEN: usize = 50_000;
    run(async {
        let (uri, fabric) = (uri("dead-hub"), Fabric::auto().unwrap());
        let mut hub = Member::start("forwards", &uri);
        let source = connect(&fabric, &uri).await;
        let mut sink = connect(&fabric, &uri).await;
        // Both are admitted.
        assert!(take(&mut sink).await[..] == *b"ready");
        let mut sent = source.alloc(LEN).await.unwrap();
        sent.resize(LEN, 0);
        sent.iter_mut().enumerate().for_each(|(at, b)| *b = byte(1, at));
        let mut sent = sent.freeze();
        source.send(sent.clone()).await.unwrap();
        let got = take(&mut sink).await;
        assert_eq!(got.region().unwrap().info().kind, RegionKind::Peer, "lent where it lies");
        hub.0.kill().unwrap();
        while source.send(PinnedBuf::from_static(b"anybody there?")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(source);
        for _ in 0..50 {
            sent = sent.try_into_mut().expect_err("writable while it is read");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(is_whole(&got, 1, LEN));
    });
}

/// A plain group shows its own memory and nothing of its members.
#[test]
fn members_of_a_plain_group_do_not_see_each_other() {
    const LEN: usize = 20_000;
    run(async {
        let fabric = Fabric::auto().unwrap();
        let mut ends = pairs(&fabric, &uri("plain"), 3).await;
        let (group, hub) = (fabric.group(), fabric.forwarding_group());
        ends.iter().for_each(|(here, _)| group.admit(here).unwrap());
        // Of a hub, the sender alone, and then the receiver alone.
        for member in [0, 1] {
            hub.admit(&ends[member].0).unwrap();
            let [(from, source), (to, sink), _] = &mut ends[..] else { panic!() };
            let before = copied(to);
            let mut buf = source.alloc(LEN).await.unwrap();
            buf.resize(LEN, 3);
            source.send(buf.freeze()).await.unwrap();
            to.send(take(from).await).await.unwrap();
            assert!(take(sink).await == vec![3; LEN][..]);
            assert_eq!(copied(to) - before, LEN as u64, "forwarded, so copied");
            hub.dismiss(&ends[member].0);
        }
    });
}
