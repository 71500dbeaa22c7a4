//! Processes killed at random points of their life, while they join as well as while they send, seen through the facade:
//! the others go on, what was fully sent arrives, and nothing is left.
//!
//! The other process is this program again. It marks in a memory file that it shares with us how far it has come, so that
//! we know also when it can say nothing any more.
#![cfg(all(feature = "tokio", feature = "tcp", feature = "shm"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use zc::memory::{BufPool, Message};
use zc::{Completion, Connection, ConnectionError, Deadlines, Delivery, Error, Fabric, Listener};

const GUARD: Duration = Duration::from_secs(60);
/// What the other process does: its part, its number, and the URI.
const PART: &str = "ZC_TEST_SHM_KILL";
/// The process that it dies with.
const PARENT: &str = "ZC_TEST_SHM_KILL_PARENT";
/// Kills of one run; many times that many under `ZC_SOAK`.
const KILLS: u32 = 100;
/// Connections that are tried while their server is killed.
const AT_ONCE: usize = 4;
/// The shortest time in which a kill may fall, counted from the start of the process.
const LIFE: Duration = Duration::from_millis(20);

/// Marks of the other process; above the last, how many messages it has sent.
const STARTED: u64 = 1;
const UP: u64 = 2;

/// Nothing else in this program may open descriptors or map memory while they are counted.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run<F: Future>(future: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(future)
}

fn kills() -> u32 {
    if std::env::var_os("ZC_SOAK").is_some() { 20 * KILLS } else { KILLS }
}

/// Between 0 and 1, always the same for a number.
fn share(at: u32) -> f64 {
    f64::from(at.wrapping_mul(2_654_435_761)) / f64::from(u32::MAX)
}

/// Nothing fails because the machine is busy.
fn fabric(pool: &BufPool) -> Fabric {
    let mut deadlines = Deadlines::default();
    (deadlines.hello, deadlines.offers, deadlines.join, deadlines.total) = (GUARD, GUARD, GUARD, GUARD);
    Fabric::auto_builder().pool(pool.clone()).deadlines(deadlines).build().unwrap()
}

/// Bytes in front of a message's pattern: who sent it and which it is.
const HEAD_BYTES: usize = 8;

/// Sizes that use the slots, the first arena, and later ones.
fn size_of_message(n: u32) -> usize {
    [8, 64, 112, 113, 4000, 30_000, 200_000][(n.wrapping_mul(2_654_435_761) >> 7) as usize % 7]
}

fn pattern(n: u32, len: usize) -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let pattern = PATTERN.get_or_init(|| (0..204_800_usize).map(|i| ((i * 31) ^ (i >> 9)) as u8).collect());
    &pattern[n as usize % 4096..][..len]
}

fn assert_is(message: &Message, who: u32, n: u32) {
    let [bytes] = message.segments() else { panic!("{} segments", message.segments().len()) };
    let (head, body) = bytes.split_at(HEAD_BYTES);
    assert_eq!(head, [who.to_le_bytes(), n.to_le_bytes()].concat(), "message {n} of {who}");
    assert!(body == pattern(n, size_of_message(n) - HEAD_BYTES), "message {n} of {who} is not whole");
}

/// How far the other process has come; it outlives that one.
struct Marks(File);

impl Marks {
    fn new() -> Self {
        let file = File::from(rustix::fs::memfd_create("marks", MemfdFlags::CLOEXEC).unwrap());
        let marks = Self(file);
        marks.set(0);
        marks
    }
    /// In the other process, of which it is the standard input.
    fn inherited() -> Self {
        Self(File::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap()))
    }
    fn set(&self, mark: u64) {
        self.0.write_all_at(&mark.to_le_bytes(), 0).unwrap();
    }
    fn now(&self) -> u64 {
        let mut mark = [0; 8];
        self.0.read_exact_at(&mut mark, 0).unwrap();
        u64::from_le_bytes(mark)
    }
    fn wait_for(&self, mark: u64) {
        let began = Instant::now();
        while self.now() < mark {
            assert!(began.elapsed() < GUARD, "it never came to {mark}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Killed at the latest when it is dropped.
struct Other {
    child: Child,
    marks: Marks,
}

impl Other {
    /// Call this on a thread that stays: the process dies with it.
    fn start(part: &str, number: u32, uri: &str) -> Self {
        let marks = Marks::new();
        let input: OwnedFd = marks.0.try_clone().unwrap().into();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "other_process", "--nocapture", "--test-threads=1"])
            .env(PART, format!("{part} {number} {uri}"))
            .env(PARENT, std::process::id().to_string())
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self { child: child.unwrap(), marks }
    }
    fn kill(&mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "it ended by itself: {status}");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process; without the variable there is nothing to do.
#[test]
fn other_process() {
    let Ok(part) = std::env::var(PART) else { return };
    // Nobody stays behind when the test is killed.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if parent != std::env::var(PARENT).ok() {
        return; // It was gone before the signal was set.
    }
    let words: Vec<&str> = part.split(' ').collect();
    let &[part, number, uri] = &words[..] else { panic!("{part}") };
    let (marks, number) = (Marks::inherited(), number.parse().unwrap());
    run(async {
        let fabric = fabric(&BufPool::builder().build());
        match part {
            "send" => {
                marks.set(STARTED);
                let connection = fabric.connect(uri).await.unwrap();
                marks.set(UP);
                send_for_ever(&connection, number, &marks).await;
            }
            "listen" => {
                let mut listener = fabric.listen(uri).await.unwrap();
                marks.set(UP);
                let mut accepted = Vec::new();
                loop {
                    accepted.push(listener.accept().await.unwrap());
                }
            }
            other => panic!("{other}"),
        }
    });
}

async fn send_for_ever(connection: &Connection, who: u32, marks: &Marks) {
    for n in 0.. {
        let len = size_of_message(n);
        let mut buf = connection.alloc(len).await.unwrap();
        buf.put_slice(&who.to_le_bytes());
        buf.put_slice(&n.to_le_bytes());
        buf.put_slice(pattern(n, len - HEAD_BYTES));
        connection.send(buf.freeze()).await.unwrap();
        connection.sender().flush().await.unwrap();
        marks.set(UP + 1 + u64::from(n));
    }
}

/// What this process has, of which nothing may be left.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    mappings: usize,
    pool_bytes: u64,
}

impl Held {
    fn now(pool: &BufPool) -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            mappings: maps.lines().filter(|line| line.contains("zc-shm")).count(),
            pool_bytes: pool.stats().in_use_bytes,
        }
    }

    /// When what a connection leaves has gone with its driver: nothing changes any more.
    async fn at_rest(pool: &BufPool) -> Self {
        const SAME: u32 = 40;
        let began = Instant::now();
        let (mut last, mut same) = (Self::now(pool), 0);
        while same < SAME {
            assert!(began.elapsed() < GUARD, "left behind: {last:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
            let now = Self::now(pool);
            same = if now == last && (now.mappings, now.pool_bytes) == (0, 0) { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    async fn comes_back(&self, pool: &BufPool) {
        let began = Instant::now();
        while Self::now(pool) != *self {
            assert!(began.elapsed() < GUARD, "left behind: {:?}, at first {self:?}", Self::now(pool));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Reads to the end, keeping some; says who it was and how many came.
async fn read(mut connection: Connection) -> Option<(u32, u64)> {
    assert_eq!(connection.report().chosen(), "shm", "{}", connection.report());
    let (mut who, mut seen, mut held) = (None, 0, Vec::new());
    let error = loop {
        let message = match connection.recv().await {
            Ok(message) => message.expect("who was killed has not finished"),
            Err(error) => break error,
        };
        let head = message.segments()[0][..4].try_into().unwrap();
        let who = *who.get_or_insert(u32::from_le_bytes(head));
        assert_is(&message, who, seen);
        seen += 1;
        held.push(message);
        held.drain(..held.len().saturating_sub(5));
    };
    assert!(matches!(error, ConnectionError::Lane(_)), "{error}");
    let refused = connection.sender().send_with(vec![0; 10], Completion::Delivered).await.unwrap_err();
    assert_ne!(refused.delivery(), Delivery::Delivered);
    for (message, n) in held.iter().rev().zip((0..seen).rev()) {
        assert_is(message, who.unwrap(), n);
    }
    who.map(|who| (who, u64::from(seen)))
}

/// Serves whoever comes, until it is told to stop; says how many messages came of each.
async fn serve(mut listener: Listener, mut stop: oneshot::Receiver<()>) -> HashMap<u32, u64> {
    let mut reads = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => drop(reads.spawn(read(accepted.unwrap()))),
            _ = &mut stop => break,
        }
    }
    println!("{} connections came up", reads.len());
    reads.join_all().await.into_iter().flatten().collect()
}

/// How long it takes until it has sent something: from the start of the process, and from when it begins to connect.
fn a_life(uri: &str) -> (Duration, Duration) {
    let began = Instant::now();
    let mut other = Other::start("send", u32::MAX, uri);
    other.marks.wait_for(STARTED);
    let started = began.elapsed();
    other.marks.wait_for(UP + 1);
    let sent = began.elapsed();
    other.kill();
    (sent.max(LIFE / 2), sent - started)
}

/// What each of the killed had sent, and how many of them died in which part of their lives.
fn kill_many(uri: &str, mut life: Duration, mut join: Duration) -> HashMap<u32, u64> {
    let (mut sent, mut early, mut joining) = (HashMap::new(), 0, 0);
    let mut more = None;
    for at in 0.. {
        if at >= kills() {
            if joining > 0 && !sent.is_empty() {
                break;
            }
            // What was measured once is wrong on a machine that was busy then, or is now.
            assert!(
                more.get_or_insert_with(Instant::now).elapsed() < GUARD,
                "the kills fell all in one place"
            );
            if sent.is_empty() {
                (life, join) = (2 * life, 2 * join);
            } else {
                join /= 2;
            }
        }
        let mut other = Other::start("send", at, uri);
        // Every other time it is the begin of joining that starts the clock.
        let most = if at % 2 == 0 {
            life.mul_f64(1.5)
        } else {
            other.marks.wait_for(STARTED);
            join
        };
        std::thread::sleep(most.mul_f64(share(at)));
        other.kill();
        match other.marks.now() {
            0 => early += 1,
            STARTED => joining += 1,
            mark => drop(sent.insert(at, mark - UP)),
        }
    }
    println!("killed: {early} before they joined, {joining} while, {} later", sent.len());
    sent
}

#[test]
fn clients_killed_at_any_moment_leave_the_server_as_it_was() {
    let _alone = alone();
    run(async {
        let pool = BufPool::builder().build();
        let uri = format!("zc+shm://killed-{}", std::process::id());
        let listener = fabric(&pool).listen(&uri).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(serve(listener, stopped));
        let (life, join) = blocking(&uri, a_life).await;
        let before = Held::at_rest(&pool).await;
        let sent = blocking(&uri, move |uri| kill_many(uri, life, join)).await;
        before.comes_back(&pool).await;
        // And it serves whoever comes.
        blocking(&uri, a_life).await;
        before.comes_back(&pool).await;
        stop.send(()).unwrap();
        let seen = serving.await.unwrap();
        for (who, sent) in sent {
            let seen = seen.get(&who).copied().unwrap_or(0);
            assert!(sent <= seen, "{who} had sent {sent} messages; {seen} came");
        }
    });
}

/// On this thread nothing else would go on.
async fn blocking<T: Send + 'static>(uri: &str, work: impl FnOnce(&str) -> T + Send + 'static) -> T {
    let uri = uri.to_owned();
    tokio::task::spawn_blocking(move || work(&uri)).await.unwrap()
}

/// Connects; `false` if that failed, which has a reason. A connection that came up ends.
async fn connect_to_the_dying(fabric: Fabric, uri: String) -> bool {
    match fabric.connect(&uri).await {
        Ok(mut connection) => {
            let error = connection.recv().await.unwrap_err();
            assert!(matches!(error, ConnectionError::Lane(_)), "{error}");
            true
        }
        // It is noticed, and not because a deadline passes.
        Err(
            error @ (Error::Open { .. }
            | Error::Link { .. }
            | Error::Wire { .. }
            | Error::Join(_)
            | Error::NoTransport(_)
            | Error::Connection(_)),
        ) => {
            assert_eq!(error.delivery(), Delivery::NotSent);
            false
        }
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn connecting_to_a_server_that_is_killed_ends() {
    let _alone = alone();
    let dir = tempfile::Builder::new().prefix("zc-shm-kill-").tempdir().unwrap();
    run(async {
        let pool = BufPool::builder().build();
        let fabric = fabric(&pool);
        // What is killed leaves its socket at the path, and the next takes its place.
        let uris = [
            format!("zc+shm://dying-{}", std::process::id()),
            format!("zc+shm://{}", dir.path().join("s").display()),
        ];
        let (mut join, mut before, mut came_up, mut failed) = (Duration::ZERO, None, 0, 0);
        for at in 0..=kills() {
            let uri = &uris[at as usize % 2];
            let server = Other::start("listen", 0, uri);
            let mut server = blocking(uri, move |_| {
                server.marks.wait_for(UP);
                server
            })
            .await;
            let began = Instant::now();
            let clients: JoinSet<_> =
                (0..AT_ONCE).map(|_| connect_to_the_dying(fabric.clone(), uri.clone())).collect();
            if at == 0 {
                // How long it takes where nobody dies.
                drop(fabric.connect(uri).await.unwrap());
                join = began.elapsed();
            } else {
                tokio::time::sleep(join.mul_f64(share(at))).await;
            }
            blocking(uri, move |_| server.kill()).await;
            let up = tokio::time::timeout(2 * GUARD, clients.join_all()).await.expect("connecting hangs");
            came_up += up.iter().filter(|up| **up).count();
            failed += up.iter().filter(|up| !**up).count();
            let nobody = fabric.connect(uri).await.err().expect("nobody listens");
            assert!(matches!(nobody, Error::Open { .. }), "{nobody:?}");
            if at == 0 {
                before = Some(Held::at_rest(&pool).await);
            }
        }
        println!("{came_up} connections came up, {failed} did not");
        assert!(came_up > 0 && failed > 0, "the kills fell all in one place");
        before.unwrap().comes_back(&pool).await;
    });
}
