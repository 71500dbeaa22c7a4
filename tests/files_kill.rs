//! Peers that are killed in the middle of a file, and what is left of it. The peer is this program again.
#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use zc::memory::KernelCopied;
use zc::transport::{LaneLimits, MAX_IDLE_PIPES};
use zc::{
    Connection, ConnectionError, ConnectionOptions, Delivery, Fabric, FileFault, FileWay, Listener, Policy,
    SendFileOptions,
};

const GUARD: Duration = Duration::from_secs(120);
/// In the other process: the address, how many messages it takes before it stops reading, and its window.
const PEER: &str = "ZC_TEST_FILES_PEER";
const LEN: usize = 4_000_000;
/// Of a peer, twice, until it is dead.
const SILENCE: Duration = Duration::from_secs(1);
/// Nothing else in this program may open descriptors while they are counted.
static ALONE: Mutex<()> = Mutex::const_new(());

#[cfg(feature = "shm")]
const KINDS: [&str; 4] = ["tcp", "unix", "uring", "shm"];
#[cfg(not(feature = "shm"))]
const KINDS: [&str; 3] = ["tcp", "unix", "uring"];

/// Those that this machine has.
fn kinds() -> impl Iterator<Item = &'static str> {
    #[cfg(feature = "uring")]
    let has_uring = zc_transport_uring::probe().is_ok();
    #[cfg(not(feature = "uring"))]
    let has_uring = false;
    KINDS.into_iter().filter(move |kind| has_uring || *kind != "uring")
}

async fn guarded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future).await.expect("it hangs")
}

const WINDOW: u32 = 64 << 10;

fn fabric(kind: &str) -> Fabric {
    fabric_with(kind, WINDOW)
}

fn fabric_with(kind: &str, window: u32) -> Fabric {
    let mut limits = LaneLimits::default();
    limits.recv_window = window;
    let policy = Policy::default();
    let policy = match kind {
        "shm" => policy,
        "uring" => policy.with_override("uring").unwrap(),
        _ => policy.with_override("tcp").unwrap(),
    };
    let mut options = ConnectionOptions::default();
    if window != WINDOW {
        (options.keepalive_interval, options.keepalive_timeout) = (SILENCE, SILENCE);
    }
    Fabric::auto_builder().limits(limits).policy(policy).options(options).build().unwrap()
}

fn address(kind: &str, n: usize) -> String {
    match kind {
        "tcp" => "zc+tcp://127.0.0.1:0".into(),
        "uring" => "zc+uring://127.0.0.1:0".into(),
        "unix" => format!("zc+unix://@files-kill-{}-{n}", std::process::id()),
        other => format!("zc+{other}://files-kill-{}-{n}", std::process::id()),
    }
}

fn file() -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&(0..LEN).map(|at| ((at * 31) ^ (at >> 9)) as u8).collect::<Vec<_>>()).unwrap();
    Arc::new(file)
}

fn options(way: FileWay) -> SendFileOptions {
    let mut options = SendFileOptions::default();
    (options.way, options.chunk_bytes) = (way, 100_000);
    options
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until no more are open than before, but for the pipes that are kept.
async fn settles(before: usize) {
    let most = before + 2 * MAX_IDLE_PIPES;
    guarded(async {
        while descriptors() > most {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn peer() {
    let Ok(task) = std::env::var(PEER) else { return };
    let parts: Vec<_> = task.split(' ').collect();
    let [uri, takes, window] = parts[..] else { return };
    let kind = ["shm", "uring"].into_iter().find(|kind| uri.contains(kind)).unwrap_or("tcp");
    let mut conn = fabric_with(kind, window.parse().unwrap()).connect(uri).await.unwrap();
    for _ in 0..takes.parse().unwrap() {
        conn.recv().await.unwrap().unwrap();
    }
    println!("\ntaken");
    // Until it is killed; nothing more is read.
    std::thread::sleep(GUARD);
}

async fn accept_peer(listener: &mut Listener, takes: usize, window: u32) -> (Child, Connection) {
    let task = format!("{} {takes} {window}", listener.local_uri());
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--exact", "peer", "--nocapture"])
        .env(PEER, task)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    (child, guarded(listener.accept()).await.unwrap())
}

async fn kill_once_it_has_taken(mut child: Child) {
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let killing = move || {
        let mut line = String::new();
        while !line.starts_with("taken") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "it ended by itself");
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    };
    tokio::task::spawn_blocking(killing).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_killed_in_the_middle_of_a_file_is_an_error_that_says_how_far_it_got() {
    let _alone = ALONE.lock().await;
    // Opened once and kept: the runtime's, a log's.
    drop(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let before = descriptors();
    let file = file();
    let mut n = 0;
    for kind in kinds() {
        for way in [FileWay::Auto, FileWay::Read] {
            for takes in [0, 1, 7, 30] {
                n += 1;
                let mut listener = fabric(kind).listen(&address(kind, n)).await.unwrap();
                let (child, conn) = accept_peer(&mut listener, takes, WINDOW).await;
                let sender = conn.sender();
                let sending = sender.send_file(file.clone(), 0..LEN as u64, options(way));
                let (sent, ()) =
                    guarded(async { tokio::join!(sending, kill_once_it_has_taken(child)) }).await;
                let error = sent.unwrap_err();
                assert!(matches!(error.fault, FileFault::Connection(_)), "{kind} {way:?} {takes} {error}");
                assert!(error.sent() < LEN as u64, "{error}");
                assert!(error.sent() >= (takes * 4096) as u64, "{error}");
                // It may be dead before anything was sent.
                assert_eq!(error.delivery() == Delivery::NotSent, error.sent() == 0, "{error}");
            }
        }
    }
    drop(file);
    settles(before).await;
}

/// Chunks wait in its pipes for a socket that takes nothing any more, and there are no others: nobody gives those back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stops_for_good_does_not_keep_the_file_waiting() {
    let _alone = ALONE.lock().await;
    let file = Arc::new(tempfile::tempfile().unwrap());
    file.set_len(1 << 30).unwrap();
    for kind in ["tcp", "unix"] {
        for way in [FileWay::Auto, FileWay::Read] {
            let window = 256 << 20;
            let mut listener = fabric_with(kind, window).listen(&address(kind, 1000)).await.unwrap();
            let (mut child, conn) = accept_peer(&mut listener, 0, window).await;
            rustix::process::kill_process(
                rustix::process::Pid::from_child(&child),
                rustix::process::Signal::STOP,
            )
            .unwrap();
            let error = guarded(conn.sender().send_file(file.clone(), 0..1 << 30, options(way))).await;
            let error = error.unwrap_err();
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(
                matches!(error.fault, FileFault::Connection(ConnectionError::Dead { .. })),
                "{kind} {way:?} {error}"
            );
        }
    }
}

#[tokio::test]
async fn pipes_and_descriptors_come_back_however_it_ends() {
    let _alone = ALONE.lock().await;
    drop(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let before = descriptors();
    let file = file();
    for round in 0..60_u64 {
        let uri = address("tcp", 0);
        let mut listener = fabric("tcp").listen(&uri).await.unwrap();
        let (uri, fabric) = (listener.local_uri().to_string(), fabric("tcp"));
        let (client, server) =
            guarded(async { tokio::try_join!(fabric.connect(&uri), listener.accept()) }).await.unwrap();
        let sender = client.sender();
        let mut sending = sender.send_file(file.clone(), 0..LEN as u64, options(FileWay::Auto));
        // Dropped with chunks in every state: in a pipe, in the lane, half in the socket; one or the other end first.
        let _ = tokio::time::timeout(Duration::from_micros(round * 50), &mut sending).await;
        if round % 2 == 0 { drop(server) } else { drop(sending) }
    }
    drop(file);
    settles(before).await;
}

/// What the other process of the next test does.
#[tokio::test]
async fn dies_of_broken_pipes() {
    if std::env::var_os(PEER).is_none_or(|task| task != "SIGPIPE") {
        return;
    }
    // SAFETY: to be killed by a signal needs no handler, and nothing else runs in this process.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let mut listener = fabric("tcp").listen("zc+tcp://127.0.0.1:0").await.unwrap();
    let (uri, fabric) = (listener.local_uri().to_string(), fabric("tcp"));
    let pair = async { tokio::try_join!(fabric.connect(&uri), listener.accept()) };
    let (client, mut server) = guarded(pair).await.unwrap();
    let sender = client.sender();
    let sending = sender.send_file(file(), 0..LEN as u64, options(FileWay::Auto));
    let (sent, ()) = guarded(async {
        tokio::join!(sending, async move {
            for _ in 0..3 {
                server.recv().await.unwrap().unwrap();
            }
            drop(server);
        })
    })
    .await;
    assert!(matches!(sent.unwrap_err().fault, FileFault::Connection(_)));
    assert!(matches!(client.ledger().kernel_copied, KernelCopied::Known(_)), "splicing would not tell");
}

/// What the other process of the test after it does.
#[tokio::test]
async fn begins_to_die_of_broken_pipes() {
    if std::env::var_os(PEER).is_none_or(|task| task != "SIGPIPE later") {
        return;
    }
    let mut listener = fabric("tcp").listen("zc+tcp://127.0.0.1:0").await.unwrap();
    let (uri, fabric) = (listener.local_uri().to_string(), fabric("tcp"));
    let pair = async { tokio::try_join!(fabric.connect(&uri), listener.accept()) };
    let (client, mut server) = guarded(pair).await.unwrap();
    let sender = client.sender();
    let sending = sender.send_file(file(), 0..LEN as u64, options(FileWay::Auto));
    let receiving = async {
        let mut got = server.recv().await.unwrap().unwrap().len();
        // SAFETY: to be killed by a signal needs no handler, and nothing else in this process cares for it.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        while got < LEN {
            got += server.recv().await.unwrap().unwrap().len();
        }
    };
    let (sent, ()) = guarded(async { tokio::join!(sending, receiving) }).await;
    let spliced = sent.unwrap().spliced_bytes;
    assert!(0 < spliced && spliced < LEN as u64 / 4, "{spliced} bytes, but only at first");
}

#[test]
fn a_process_that_would_die_of_a_broken_pipe_does_not_splice() {
    let _alone = ALONE.blocking_lock();
    for (test, task) in
        [("dies_of_broken_pipes", "SIGPIPE"), ("begins_to_die_of_broken_pipes", "SIGPIPE later")]
    {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", test, "--nocapture"]).env(PEER, task).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
    }
}
