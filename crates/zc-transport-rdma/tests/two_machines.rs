//! What takes two machines, with a wire in between. `cargo xtask test --only rdmapair` runs it on both test machines, where
//! `ZC_RDMA_SIDE` says which one this is; elsewhere each test says so and passes by.
//!
//! The peer runs `the_peer_serves`, and does for each connection what its first message asks for. The main machine runs
//! the others, which can have the peer killed and switched on again, and frames lost, by a word to the host.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use zc::testing::fabric_over;
use zc::transport::{Access, OneSided, RemoteKey};
use zc::{
    Completion, Connection, ConnectionError, ConnectionOptions, Delivery, Error, Export, Fabric,
    FabricBuilder, Outcome, RemoteFault,
};
use zc_core::memory::{BufPool, Message};
use zc_core::wire::Stage;
use zc_transport_rdma::*;

/// A hang guard.
const LIMIT: Duration = Duration::from_secs(90);
const SIDE: &str = "ZC_RDMA_SIDE";
const MAIN: &str = "zc+rdma://10.0.0.1:0";
const PEER: &str = "zc+rdma://10.0.0.2:7000";
/// Words to the host: `peer-off`, `peer-on`, `lose N`, `lose-longer N`. When it has done that, it says how many frames were lost until then.
const HOST: &str = "/run/host";
const ANSWERS: &str = "/run/answers";
/// What Soft-RoCE counts.
const COUNTERS: &str = "/sys/class/infiniband/rxe0/ports/1/hw_counters";
const EXPORT_BYTES: usize = 1 << 20;
const LONG_BYTES: usize = 4 << 20;
/// Connections with operations under way when a machine is killed.
const OPERATING: u64 = 6;

fn is_on(side: &str) -> bool {
    let is_it = std::env::var(SIDE).is_ok_and(|found| found == side);
    if !is_it {
        println!("not the {side} machine of two, so this tests nothing");
    }
    is_it
}

/// Has the host do it, and says how many frames were lost until then.
fn tell_host(word: &str) -> u64 {
    let mut answers = BufReader::new(fs::File::open(ANSWERS).unwrap());
    let mut host = fs::OpenOptions::new().write(true).open(HOST).unwrap();
    host.write_all(format!("{word}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    answers.read_line(&mut answer).unwrap();
    answer.trim_end().parse().unwrap()
}

/// A wire that loses frames for as long as this lives, however the test ends.
struct Lossy {
    what: &'static str,
    lost_before: u64,
    retries_before: u64,
}

impl Lossy {
    fn begin(what: &'static str, which: u32) -> Self {
        let retries_before = retries();
        Self { what, lost_before: tell_host(&format!("{what} {which}")), retries_before }
    }

    /// Frames that were lost, and how often Soft-RoCE has noticed here. It is over then.
    fn end(self) -> (u64, u64) {
        (self.stop() - self.lost_before, retries() - self.retries_before)
    }

    fn stop(&self) -> u64 {
        tell_host(&format!("{} 0", self.what))
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How often nobody acknowledged in time, or the peer said that something is missing.
fn retries() -> u64 {
    let count = |name| fs::read_to_string(format!("{COUNTERS}/{name}")).unwrap();
    ["completer_retry_err", "rcvd_seq_err"]
        .map(|name| count(name).trim_end().parse::<u64>().unwrap())
        .iter()
        .sum()
}

fn over_rdma() -> FabricBuilder {
    fabric_over(Arc::new(RdmaTransport::default())).pool(BufPool::builder().max_bytes(128 << 20).build())
}

fn fabric() -> Fabric {
    over_rdma().build().unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it hangs")
}

/// Tries until the peer is up.
async fn peer(fabric: &Fabric, wanted: &str) -> Connection {
    within(async {
        loop {
            if let Ok(conn) = fabric.connect(PEER).await {
                assert_eq!((conn.report().chosen(), conn.caps().one_sided), ("rdma", OneSided::Native));
                conn.send(Message::from(Vec::from(wanted))).await.unwrap();
                return conn;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await
}

/// No two places near each other hold the same, and no two messages.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 9) ^ seed) as u8).collect()
}

async fn echo(conn: &mut Connection, seed: usize, len: usize) {
    try_echo(conn, seed, len).await.unwrap();
}

/// What comes back, comes back whole. Else, how the connection has ended.
async fn try_echo(conn: &mut Connection, seed: usize, len: usize) -> Result<(), String> {
    let bytes = pattern(seed, len);
    conn.send(Message::from(bytes.clone())).await.map_err(|error| error.to_string())?;
    let back = within(conn.recv()).await.map_err(|error| error.to_string())?.ok_or("it finished")?;
    assert!(back == bytes[..], "{len} bytes came back damaged");
    Ok(())
}

// ---------------------------------------------------------------------------------------------- the peer's part

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peer_serves() {
    if !is_on("peer") {
        return;
    }
    let fabric = fabric();
    let mut listener = fabric.listen(PEER).await.unwrap();
    let mut all = JoinSet::new();
    loop {
        tokio::select! {
            conn = listener.accept() => drop(all.spawn(serve(fabric.clone(), conn.unwrap()))),
            Some(done) = all.join_next() => if done.unwrap() { break },
        }
    }
}

/// Whether that is all.
async fn serve(fabric: Fabric, mut conn: Connection) -> bool {
    let Ok(Some(wanted)) = conn.recv().await else { return false };
    let wanted =
        String::from_utf8(wanted.segments().iter().flat_map(|part| part.to_vec()).collect()).unwrap();
    match wanted.split_once(' ').unwrap_or((&wanted, "")) {
        ("echo", _) => {
            while let Ok(Some(message)) = conn.recv().await {
                if conn.send(message).await.is_err() {
                    break;
                }
            }
        }
        ("lend", _) => {
            let export = fabric.export(EXPORT_BYTES).unwrap();
            let key = export.grant(&conn, Access::ALL, ..).unwrap();
            conn.send(Message::from(key.as_bytes().to_vec())).await.unwrap();
            conn.closed().await;
        }
        ("pour", _) => while conn.send(Message::from(pattern(1, LONG_BYTES))).await.is_ok() {},
        ("use", uri) => use_memory(fabric.connect(uri).await.unwrap()).await,
        ("end", _) => {
            let _ = conn.send(Message::from(&b"ended"[..])).await;
            conn.closed().await;
            return true;
        }
        other => panic!("{other:?}"),
    }
    false
}

/// Of whoever is at the other end, who sends a key first.
async fn use_memory(mut conn: Connection) {
    let key = key(&mut conn).await;
    let memory = conn.remote();
    loop {
        let (written, added) =
            tokio::join!(memory.write(&key, 4096, vec![7; 100_000]), memory.fetch_add(&key, 0, 1));
        if written.is_err() || added.is_err() {
            return;
        }
    }
}

async fn key(conn: &mut Connection) -> RemoteKey {
    let key = within(conn.recv()).await.unwrap().unwrap();
    RemoteKey::from_bytes(key.as_contiguous().unwrap()).unwrap()
}

// ---------------------------------------------------------------------------------------------- the main machine's

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_all_lengths_and_operations_arrive() {
    if !is_on("main") {
        return;
    }
    let fabric = fabric();
    let mut conn = peer(&fabric, "echo").await;
    for (seed, len) in [0, 1, 256, 257, 1024, 1025, 4095, 4096, 4097, 70_000, 1 << 20, LONG_BYTES, 10_000_001]
        .into_iter()
        .enumerate()
    {
        echo(&mut conn, seed, len).await;
    }
    operations(&fabric).await;
}

async fn operations(fabric: &Fabric) {
    let mut lent = peer(fabric, "lend").await;
    let key = key(&mut lent).await;
    let memory = lent.remote();
    within(async {
        for n in 0..20 {
            assert_eq!(memory.fetch_add(&key, 0, 3).await.unwrap(), 3 * n);
        }
        let long = pattern(5, EXPORT_BYTES - 8);
        memory.write(&key, 8, long.clone()).await.unwrap();
        assert!(memory.read(&key, 8, long.len()).await.unwrap() == long[..]);
        assert_eq!(memory.compare_swap(&key, 0, 60, 1).await.unwrap(), 60);
    })
    .await;
}

/// Packets that are lost are sent again, in both directions and for all kinds of operations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_loses_packets_loses_no_message() {
    if !is_on("main") {
        return;
    }
    let fabric = fabric();
    let mut conn = peer(&fabric, "echo").await;
    let (lossy, began) = (Lossy::begin("lose", 100), Instant::now());
    for seed in 0..60 {
        echo(&mut conn, seed, [0, 64, 3000, 4096][seed % 4]).await;
    }
    operations(&fabric).await;
    let (lost, retries) = lossy.end();
    println!("{lost} frames lost, {retries} retries: {:.1} s", began.elapsed().as_secs_f64());
    assert!(lost > 0 && retries > 0, "nothing was lost that mattered");
}

/// The same for operations of which several are under way at a time, so that some wait in the device for others. Nobody else would notice
/// if they stood for ever: messages, and so keepalive, go on beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_loses_packets_keeps_no_operation_waiting() {
    const ROUNDS: u64 = 400;
    if !is_on("main") {
        return;
    }
    let fabric = fabric();
    let mut conn = peer(&fabric, "lend").await;
    let key = key(&mut conn).await;
    let memory = conn.remote();
    let (lossy, began) = (Lossy::begin("lose", 100), Instant::now());
    for round in 0..ROUNDS {
        let bytes = pattern(round as usize, 5000);
        let (_, written, added, seen) = within(async {
            tokio::join!(
                memory.read(&key, 8192, 10_000),
                memory.write(&key, 8, bytes.clone()),
                memory.fetch_add(&key, 0, 1),
                memory.read(&key, 8, 5000),
            )
        })
        .await;
        written.unwrap();
        assert_eq!(added.unwrap(), round);
        assert!(seen.unwrap() == bytes[..], "damaged in round {round}");
    }
    let (lost, retries) = lossy.end();
    println!("{lost} frames lost, {retries} retries: {:.1} s", began.elapsed().as_secs_f64());
    assert!(lost > 0 && retries > 0, "nothing was lost that mattered");
}

/// For long ones windows are bound in between. If one comes to be bound again, Soft-RoCE of Linux 6.1 leaves the queue pair standing for ever
/// (`docs/rdma.md`): that ends the connection, and the next one goes on. What arrives is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_loses_packets_damages_no_long_message() {
    if !is_on("main") {
        return;
    }
    let mut options = ConnectionOptions::default();
    (options.keepalive_interval, options.keepalive_timeout) =
        (Duration::from_secs(1), Duration::from_secs(3));
    let fabric = over_rdma().options(options).build().unwrap();
    let mut conn = peer(&fabric, "echo").await;
    let lossy = Lossy::begin("lose", 100);
    let (began, mut ends) = (Instant::now(), Vec::new());
    for seed in 0..40 {
        while let Err(end) = try_echo(&mut conn, seed, [5000, 100_000][seed % 2]).await {
            ends.push(end);
            conn = peer(&fabric, "echo").await;
        }
    }
    let ((lost, retries), took_s) = (lossy.end(), began.elapsed().as_secs_f64());
    println!("{lost} frames lost, {retries} retries: {took_s:.1} s, connections that ended: {ends:?}");
    assert!(lost > 0 && retries > 0, "nothing was lost that mattered");
    // A connection that lives through nothing would be one for each message.
    assert!(ends.len() < 15, "{ends:?}");
}

/// Cards and their packets are longer than what a switch in between lets through: a lane that comes up must not be one that
/// loses every longer message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_whose_packets_are_too_long_for_the_wire_does_not_come_up() {
    if !is_on("main") {
        return;
    }
    let fabric = fabric();
    let mut conn = peer(&fabric, "echo").await;
    // Packets of 1024 bytes and their headers.
    let lossy = Lossy::begin("lose-longer", 1000);
    let refused = within(fabric.connect(PEER)).await.map(drop).unwrap_err();
    let (lost, _) = lossy.end();
    println!("{lost} frames lost, connecting: {refused}");
    let Error::NoTransport(report) = &refused else { panic!("{refused:?}") };
    let [candidate] = report.candidates() else { panic!("{report}") };
    assert_eq!((&*candidate.transport, candidate.stage), ("rdma", Stage::Join), "{report}");
    // The device has found it out, and no deadline.
    let Outcome::Unavailable(why) = &candidate.outcome else { panic!("{report}") };
    // Ours or the peer's, whichever is the first to say so.
    assert!(why.to_string().contains("does not acknowledge") && lost > 0, "{report}");
    drop(conn);
    conn = peer(&fabric, "echo").await;
    echo(&mut conn, 1, LONG_BYTES).await;
}

/// How something that was under way has ended, and when.
struct Ended {
    what: &'static str,
    how: String,
    at: Instant,
}

impl Ended {
    fn now(what: &'static str, how: impl std::fmt::Display) -> Self {
        Self { what, how: how.to_string(), at: Instant::now() }
    }
}

/// The peer is gone between two packets, and says nothing any more, not even on the control link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_killed_is_noticed_and_leaves_nothing() {
    if !is_on("main") {
        return;
    }
    let fabric = fabric();
    let mut listener = fabric.listen(MAIN).await.unwrap();
    let ours = listener.local_uri().to_string();
    // What is only made once is there.
    drop(peer(&fabric, "echo").await);
    let before = settled().await;
    let mut all = JoinSet::new();
    let done = Arc::new(AtomicU64::new(0));
    all.spawn(is_echoed(peer(&fabric, "echo").await));
    all.spawn(wants_delivery(peer(&fabric, "echo").await));
    all.spawn(sends_long(peer(&fabric, "lend").await));
    all.spawn(receives_long(peer(&fabric, "pour").await));
    // Without keepalive only the device can end these.
    let mut options = ConnectionOptions::default();
    options.keepalive_interval = Duration::ZERO;
    let patient = over_rdma().options(options).build().unwrap();
    for _ in 0..OPERATING {
        all.spawn(operates(peer(&patient, "lend").await, done.clone()));
    }
    all.spawn(is_idle(peer(&fabric, "echo").await));
    let asked = peer(&fabric, &format!("use {ours}")).await;
    let used = within(listener.accept()).await.unwrap();
    let export = Arc::new(fabric.export(EXPORT_BYTES).unwrap());
    all.spawn(is_used(used, export.clone()));
    within(async {
        while done.load(Relaxed) < 20 * OPERATING || export.load_u64(0).unwrap() < 20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    tell_host("peer-off");
    let killed = Instant::now();
    while let Some(ended) = within(all.join_next()).await {
        let Ended { what, how, at } = ended.unwrap();
        println!("{what}: {how} ({:.1} s)", at.duration_since(killed).as_secs_f64());
    }
    within(asked.closed()).await;
    drop((asked, export));
    // Nobody is there.
    let refused = within(fabric.connect(PEER)).await.map(drop).unwrap_err();
    println!("connecting: {refused}");
    assert_eq!(left_when_settled(&before).await, before);

    // Another machine in its place: as a server, and as a client of the listener that has seen it all.
    tell_host("peer-on");
    let mut fresh = peer(&fabric, "echo").await;
    echo(&mut fresh, 9, LONG_BYTES).await;
    operations(&fabric).await;
    let asked = peer(&fabric, &format!("use {ours}")).await;
    let used = within(listener.accept()).await.unwrap();
    let export = fabric.export(EXPORT_BYTES).unwrap();
    lend(&used, &export).await;
    within(async {
        while export.load_u64(0).unwrap() < 20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    drop((asked, used, export, fresh));
    assert_eq!(left_when_settled(&before).await, before);
}

/// The last: has the peer end, so that it can be seen whether it leaves anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the last one"]
async fn the_peer_ends() {
    if !is_on("main") {
        return;
    }
    let mut conn = peer(&fabric(), "end").await;
    assert_eq!(within(conn.recv()).await.unwrap().unwrap(), b"ended"[..]);
}

// ---------------------------------------------------------------------------------------------- what is under way

/// Every one but `Dead` is of the lane itself: it has found that nobody acknowledges.
fn is_end(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::Lane(_) | ConnectionError::Dead { .. })
}

async fn is_echoed(mut conn: Connection) -> Ended {
    let bytes = pattern(3, 3000);
    loop {
        let sent = conn.send(Message::from(bytes.clone())).await.map_err(|error| error.error);
        let ended = match sent {
            Ok(()) => conn.recv().await.err(),
            Err(error) => Some(error),
        };
        if let Some(error) = ended {
            assert!(is_end(&error), "{error:?}");
            return Ended::now("echo", error);
        }
    }
}

async fn wants_delivery(mut conn: Connection) -> Ended {
    let (sender, mut receiver) = conn.split();
    let draining = tokio::spawn(async move { while let Ok(Some(_)) = receiver.recv().await {} });
    loop {
        let sent = sender.send_with(Message::from(pattern(4, 3000)), Completion::Delivered).await;
        if let Err(error) = sent {
            assert_eq!(error.delivery(), Delivery::Unknown, "{error:?}");
            assert!(is_end(&error.error), "{error:?}");
            within(draining).await.unwrap();
            return Ended::now("delivery", error);
        }
    }
}

/// The peer takes none of them, so that some are announced and not read.
async fn sends_long(conn: Connection) -> Ended {
    loop {
        if let Err(error) = conn.send(Message::from(pattern(4, LONG_BYTES))).await {
            assert!(is_end(&error.error), "{error:?}");
            return Ended::now("long messages to it", error);
        }
    }
}

async fn receives_long(mut conn: Connection) -> Ended {
    let bytes = pattern(1, LONG_BYTES);
    loop {
        match conn.recv().await {
            Ok(message) => assert!(message.unwrap() == bytes[..]),
            Err(error) => {
                assert!(is_end(&error), "{error:?}");
                return Ended::now("long messages from it", error);
            }
        }
    }
}

async fn operates(mut conn: Connection, done: Arc<AtomicU64>) -> Ended {
    let key = key(&mut conn).await;
    let memory = conn.remote();
    loop {
        let (read, written, added) = tokio::join!(
            memory.read(&key, 8, 100_000),
            memory.write(&key, 8, vec![3; 50_000]),
            memory.fetch_add(&key, 0, 1),
        );
        done.fetch_add(1, Relaxed);
        let errors = [read.err(), written.err(), added.err()];
        if errors.iter().all(Option::is_none) {
            continue;
        }
        // All that were under way end, and a further one does not begin.
        let later = memory.fetch_add(&key, 0, 1).await.unwrap_err();
        for error in errors.into_iter().flatten().chain([later.clone()]) {
            assert!(matches!(&error.fault, RemoteFault::Connection(why) if is_end(why)), "{error:?}");
        }
        return Ended::now("one-sided operations", later);
    }
}

/// Only the keepalive finds out.
async fn is_idle(mut conn: Connection) -> Ended {
    let error = conn.recv().await.unwrap_err();
    assert!(is_end(&error), "{error:?}");
    Ended::now("idle", error)
}

async fn lend(conn: &Connection, export: &Export) {
    let key = export.grant(conn, Access::ALL, ..).unwrap();
    conn.send(Message::from(key.as_bytes().to_vec())).await.unwrap();
}

/// Its memory is used by the peer's device, of which it hears nothing.
async fn is_used(conn: Connection, export: Arc<Export>) -> Ended {
    lend(&conn, &export).await;
    let error = conn.closed().await;
    assert!(is_end(&error), "{error:?}");
    // The memory is its owner's.
    export.write(4096, &[1; 4096]).unwrap();
    Ended::now("memory that it used", error)
}

// ---------------------------------------------------------------------------------------------- what is left

/// Of this program: what the device has for it, and how many descriptors it has.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    device: String,
    descriptors: usize,
}

fn left() -> Left {
    let shown = Command::new("rdma").arg("resource").output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
    let device = String::from_utf8(shown.stdout).unwrap();
    Left { device, descriptors: fs::read_dir("/proc/self/fd").unwrap().count() }
}

/// When the engine has ended with its last connection.
async fn settled() -> Left {
    within(async {
        loop {
            let found = left();
            if found.device.contains(" mr 0 ctx 0 ") {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
}

/// What there is when that is as it was, or when it has been long.
async fn left_when_settled(before: &Left) -> Left {
    let until = Instant::now() + LIMIT;
    loop {
        let found = left();
        if found == *before || Instant::now() >= until {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
