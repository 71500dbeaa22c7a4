//! Whose memory is mapped where, and for how long: what the system says of processes that share memory.
#![cfg(all(feature = "tokio", feature = "tcp", feature = "shm"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zc::transport::Isolation;
use zc::{Completion, Connection, Fabric, Group, Listener};

const GUARD: Duration = Duration::from_secs(60);
/// Set in a process that connects: to where.
const URI: &str = "ZC_TEST_SHM_MEMORY";
/// Larger than what a connection begins with.
const LARGE: usize = 3 << 20;

/// Nothing else in this program may map memory while it is looked at.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run<F: Future>(future: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(2 * GUARD, future).await.expect("hangs") })
}

fn uri(test: &str) -> String {
    format!("zc+shm://memory-{test}-{}", std::process::id())
}

/// A memory file by which two processes know that they map the same.
type Inode = u64;

/// What a process maps of memory files: each with its bytes.
fn mapped(pid: u32) -> Vec<(Inode, u64)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let of_memfd = maps.lines().filter(|line| line.contains("/memfd:"));
    of_memfd
        .map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (from, to) = fields[0].split_once('-').unwrap();
            let address = |hex| u64::from_str_radix(hex, 16).unwrap();
            (fields[4].parse().unwrap(), address(to) - address(from))
        })
        .collect()
}

/// All memory files that a process has mapped or open.
fn memory_of(pid: u32) -> BTreeSet<Inode> {
    let mut all: BTreeSet<Inode> = mapped(pid).into_iter().map(|(inode, _)| inode).collect();
    for file in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let path = file.unwrap().path();
        let is_memory = |to: std::path::PathBuf| to.to_string_lossy().starts_with("/memfd:");
        if std::fs::read_link(&path).is_ok_and(is_memory) {
            all.insert(std::fs::metadata(&path).unwrap().ino());
        }
    }
    all
}

fn mapped_bytes() -> u64 {
    mapped(std::process::id()).into_iter().map(|(_, bytes)| bytes).sum()
}

async fn pair(uri: &str) -> (Connection, Connection) {
    let fabric = Fabric::auto().unwrap();
    let mut listener = fabric.listen(uri).await.unwrap();
    tokio::try_join!(fabric.connect(uri), listener.accept()).unwrap()
}

/// What a burst of large messages made grow goes by itself: nobody sends, receives or asks for anything.
#[test]
fn grown_memory_goes_without_a_call() {
    let _alone = alone();
    run(async {
        let (mut a, mut b) = pair(&uri("shrinks")).await;
        let at_first = mapped_bytes();
        for len in [100_000, LARGE, 10 << 20] {
            for (from, to) in [(0, 1), (1, 0)] {
                let ends = [&mut a, &mut b];
                let mut buf = ends[from].alloc(len).await.unwrap();
                buf.resize(len, 1);
                ends[from].send(buf.freeze()).await.unwrap();
                assert_eq!(ends[to].recv().await.unwrap().unwrap().len(), len);
            }
        }
        // Both directions, each mapped by both ends.
        let grown = mapped_bytes();
        assert!(grown >= at_first + 4 * (10 << 20), "{at_first} bytes, then {grown}");
        let began = Instant::now();
        while mapped_bytes() > at_first {
            assert!(
                began.elapsed() < GUARD,
                "{} bytes are still mapped, at first {at_first}",
                mapped_bytes()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // And it goes on.
        b.send(vec![2; LARGE]).await.unwrap();
        assert_eq!(a.recv().await.unwrap().unwrap().len(), LARGE);
    });
}

/// A process that is connected; ended at the latest when it is dropped.
struct Client {
    child: Child,
    connection: Option<Connection>,
}

impl Client {
    async fn start(listener: &mut Listener) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "client", "--nocapture"])
            .env(URI, listener.local_uri().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let mut client = Self { child: child.unwrap(), connection: None };
        let connection = listener.accept().await.unwrap();
        assert_eq!(connection.report().chosen(), "shm", "{}", connection.report());
        assert_eq!(connection.caps().isolation, Isolation::PerConnection);
        client.connection = Some(connection);
        client
    }

    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().unwrap()
    }

    /// It keeps what it gets, and sends a long message of its own.
    async fn exchange(&mut self, message: impl Into<zc::Message>) -> zc::Message {
        let connection = self.connection();
        connection.sender().send_with(message, Completion::Delivered).await.unwrap();
        connection.recv().await.unwrap().unwrap()
    }

    fn memory(&self) -> BTreeSet<Inode> {
        memory_of(self.child.id())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: the process that connects.
#[test]
fn client() {
    let Ok(uri) = std::env::var(URI) else { return };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    run(async {
        let mut connection = Fabric::auto().unwrap().connect(&uri).await.unwrap();
        assert_eq!(connection.caps().isolation, Isolation::PerConnection);
        let mut kept = Vec::new();
        while let Ok(Some(message)) = connection.recv().await {
            kept.push(message);
            let mut buf = connection.alloc(LARGE).await.unwrap();
            buf.resize(LARGE, 1);
            connection.send(buf.freeze()).await.unwrap();
        }
    });
}

async fn lent(connection: &Connection) -> zc::Message {
    let mut buf = connection.alloc(LARGE).await.unwrap();
    buf.resize(LARGE, 1);
    buf.freeze().into()
}

fn common(one: &BTreeSet<Inode>, other: &BTreeSet<Inode>) -> BTreeSet<Inode> {
    one & other
}

/// Each has what lies between it and the server, from the first message to grown arenas, and nothing of the other.
#[test]
fn connections_have_nothing_of_each_other() {
    let _alone = alone();
    run(async {
        let mut listener = Fabric::auto().unwrap().listen(&uri("apart")).await.unwrap();
        let mut one = Client::start(&mut listener).await;
        let mut other = Client::start(&mut listener).await;
        let mut kept = Vec::new();
        for client in [&mut one, &mut other] {
            let at_first = client.memory();
            assert_eq!(at_first.len(), 2, "its own memory and the server's");
            let message = lent(client.connection()).await;
            kept.push(client.exchange(message).await);
            assert!(client.memory().len() > at_first.len(), "its arenas have grown");
        }
        let here = memory_of(std::process::id());
        let (one, other) = (one.memory(), other.memory());
        assert!(one.is_subset(&here) && other.is_subset(&here), "{one:?}, {other:?}, {here:?}");
        assert!(common(&one, &other).is_empty(), "{one:?}, {other:?}");
    });
}

async fn of_group(group: &Group) -> zc::PinnedBuf {
    let mut buf = group.alloc(LARGE).await.unwrap();
    buf.resize(LARGE, 1);
    buf.freeze()
}

/// Members have the group's memory in common, and of a forwarding one what the others send; who was not admitted has
/// nothing of it, though it gets the same messages.
#[test]
fn who_is_not_in_a_group_has_nothing_of_it() {
    let _alone = alone();
    run(async {
        for forwards in [false, true] {
            let fabric = Fabric::auto().unwrap();
            let group = if forwards { fabric.forwarding_group() } else { fabric.group() };
            let mut listener = fabric.listen(&uri(&format!("group-{forwards}"))).await.unwrap();
            let mut one = Client::start(&mut listener).await;
            let mut other = Client::start(&mut listener).await;
            let mut stranger = Client::start(&mut listener).await;
            group.admit(one.connection()).unwrap();
            group.admit(other.connection()).unwrap();
            let buffer = of_group(&group).await;
            let sent = one.exchange(buffer.clone()).await;
            for client in [&mut other, &mut stranger] {
                client.exchange(buffer.clone()).await;
                client.exchange(sent.clone()).await;
            }
            let of_stranger = stranger.memory();
            let (one, other) = (one.memory(), other.memory());
            assert!(common(&one, &of_stranger).is_empty(), "{one:?}, {of_stranger:?}");
            assert!(common(&other, &of_stranger).is_empty(), "{other:?}, {of_stranger:?}");
            // Its memory, and when forwarding the arena that the forwarded message lies in.
            let shared = common(&one, &other).len();
            assert!(if forwards { shared >= 2 } else { shared == 1 }, "{one:?}, {other:?}");
        }
    });
}
