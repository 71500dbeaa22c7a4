//! Two users: what a process of another user gets by default, what it gets when the policy admits it, and what is
//! left of it when it is killed.
//!
//! The other process is this program again, with a variable that says what to be. Only root can start it; without
//! root these tests say so and pass by.
#![cfg(not(loom))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs
)]

#[path = "../../../tests/common/another_user.rs"]
mod another_user;
mod common;

use std::cell::Cell;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use another_user::{AnotherUser, can_be_started};
use common::process::{descriptors, mappings};
use common::*;
use zc::{Connection, ConnectionError, Deadlines, Error, Fabric, Outcome, Policy, SelectionReport};
use zc_core::memory::{CopyPlace, Message};
use zc_core::transport::*;
use zc_transport_shm::{INLINE_MAX, ShmTransport};
use zc_transport_tcp::{StreamLinks, TcpTransport};

/// `nobody`, who is a user of every system.
const STRANGER: u32 = 65534;
/// What the other process is to do.
const TASK: &str = "ZC_SHM_STRANGER";
const KILLS: usize = 40;
const SIZES: [usize; 12] =
    [0, 1, 64, INLINE_MAX, INLINE_MAX + 1, 4096, 4160, 4161, 65535, 65536, 1 << 20, 10 << 20];
const LONGEST_IN_FLOOD: usize = 200_000;
const GUARD: Duration = Duration::from_secs(60);

/// Nothing else in this program may open and close descriptors while they are counted.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fabric(policy: Policy) -> Fabric {
    // Nothing fails because the machine is busy.
    let mut deadlines = Deadlines::default();
    (deadlines.hello, deadlines.offers, deadlines.join, deadlines.total) = (GUARD, GUARD, GUARD, GUARD);
    Fabric::builder()
        .transport(Arc::new(ShmTransport::default()))
        .transport(Arc::new(TcpTransport))
        .links(Arc::new(StreamLinks))
        .policy(policy)
        .deadlines(deadlines)
        .build()
        .unwrap()
}

fn admitting() -> Fabric {
    fabric(Policy::default().accept_uids([STRANGER]))
}

fn shm_outcome(report: &SelectionReport) -> Outcome {
    let found = report.candidates().iter().find(|candidate| candidate.transport == "shm");
    found.unwrap_or_else(|| panic!("shm is not in\n{report}")).outcome.clone()
}

/// Every message is a window of one pattern that begins elsewhere. The pattern for the longest takes a while to make.
fn message(seq: usize, len: usize) -> &'static [u8] {
    static SHORT: LazyLock<Vec<u8>> = LazyLock::new(|| body(LONGEST_IN_FLOOD + 4096, 0));
    static LONG: LazyLock<Vec<u8>> = LazyLock::new(|| body((10 << 20) + 4096, 0));
    let pattern = if len > LONGEST_IN_FLOOD { &LONG } else { &SHORT };
    &pattern[seq % 4096..][..len]
}

/// Copied out, or small enough to come in a slot: in bytes.
fn parts(lens: impl IntoIterator<Item = usize>) -> (u64, u64) {
    let lens = lens.into_iter().map(|len| (len, len as u64));
    lens.fold(
        (0, 0),
        |(out, inline), (len, n)| {
            if len > INLINE_MAX { (out + n, inline) } else { (out, inline + n) }
        },
    )
}

/// Whether there can be a stranger.
fn has_stranger(what: &str) -> bool {
    can_be_started(what, &[STRANGER])
}

fn start(task: &str) -> AnotherUser {
    AnotherUser::start(STRANGER, "stranger_process", TASK, task)
}

/// The process of the other user; without the variable there is nothing to do.
#[test]
fn stranger_process() {
    let Ok(task) = std::env::var(TASK) else { return };
    // Nobody stays behind when the test is gone.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    run(async {
        // Root is accepted by everybody: this side needs no policy.
        let fabric = fabric(Policy::default());
        match task.split_once(' ').unwrap() {
            ("listen", uri) => {
                let mut listener = fabric.listen(uri).await.unwrap();
                println!("\nuri={}", listener.local_uri());
                echo(listener.accept().await.unwrap()).await;
            }
            ("connect", uri) => match fabric.connect(uri).await {
                Ok(connection) => echo(connection).await,
                Err(error) => println!("\nrefused: {error}"),
            },
            ("flood", uri) => {
                let connection = fabric.connect(uri).await.unwrap();
                println!("\nended: {}", flood(connection, 0, |_| ()).await);
            }
            other => panic!("{other:?}"),
        }
    });
}

/// Sends back what comes, from memory of the connection, and says what this took.
async fn echo(mut connection: Connection) {
    println!("\n{}", connection.report());
    assert_eq!(connection.peer().cred.map_or(0, |cred| cred.uid), 0);
    let (tx, mut rx) = connection.split();
    let mut lens = Vec::new();
    while let Some(message) = rx.recv().await.unwrap() {
        let mut buf = tx.alloc(message.len()).await.unwrap();
        message.segments().iter().for_each(|segment| buf.put_slice(segment));
        lens.push(message.len());
        tx.send(buf.freeze()).await.unwrap();
    }
    // The other side has all it wants, and may be gone by now.
    let drained = connection.drain(GUARD).await;
    assert!(matches!(drained, Ok(()) | Err(ConnectionError::ClosedByPeer { .. })), "{drained:?}");
    if connection.report().chosen() == "shm" {
        assert_eq!(connection.caps().zero_copy_rx, ZeroCopy::Never);
        let (out, inline) = parts(lens);
        let ledger = connection.ledger();
        assert_eq!((ledger.copied_at(CopyPlace::CopyOut), ledger.copied_bytes()), (out, out));
        assert_eq!(ledger.inline_bytes, 2 * inline);
        println!("\ncopied out {out}");
    }
}

fn size_in_flood(seq: usize) -> usize {
    [8, 64, 112, 113, 4000, 30_000, LONGEST_IN_FLOOD][(seq.wrapping_mul(2_654_435_761) >> 7) % 7]
}

/// Sends as fast as it can and checks what comes, until the connection ends; the last `keep` messages are kept.
async fn flood(mut connection: Connection, keep: usize, seen: impl Fn(usize)) -> ConnectionError {
    let (tx, mut rx) = connection.split();
    let sending = async {
        for seq in 1.. {
            let Ok(mut buf) = tx.alloc(size_in_flood(seq)).await else { break };
            buf.put_slice(message(seq, size_in_flood(seq)));
            if tx.send(buf.freeze()).await.is_err() {
                break;
            }
        }
    };
    let receiving = async {
        let mut kept: Vec<(usize, Message)> = Vec::new();
        for seq in 1.. {
            match rx.recv().await {
                Ok(Some(got)) => {
                    assert!(
                        got == *message(seq, size_in_flood(seq)),
                        "message {seq} is not whole or not the next"
                    );
                    kept.push((seq, got));
                    kept.drain(..kept.len().saturating_sub(keep));
                    seen(seq);
                }
                Ok(None) => panic!("a kill is no orderly end"),
                Err(error) => {
                    // They are ours, whatever became of the memory that they came in.
                    kept.iter().for_each(|(seq, got)| assert!(*got == *message(*seq, size_in_flood(*seq))));
                    return error;
                }
            }
        }
        unreachable!("it has no end")
    };
    let (error, ()) = futures::future::join(receiving, sending).await;
    let sent = connection.send(vec![0; 100]).await;
    assert!(sent.is_err(), "a send to nobody");
    error
}

/// The tasks of a connection end a moment after it; those of the test before may have been counted.
async fn all_came_back(descriptors_before: usize) {
    let start = Instant::now();
    while mappings() > 0 || descriptors() > descriptors_before {
        let left = (mappings(), descriptors());
        assert!(
            start.elapsed() < GUARD / 2,
            "(mappings, descriptors) {left:?}, more than (0, {descriptors_before})"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn by_default_a_stranger_gets_a_stream_and_both_sides_know_why() {
    if !has_stranger("a stranger by default") {
        return;
    }
    let _alone = alone();
    run(async {
        let mut listener = fabric(Policy::default()).listen("zc://127.0.0.1:0").await.unwrap();
        let stranger = start(&format!("connect {}", listener.local_uri()));
        let mut connection = listener.accept().await.unwrap();
        assert_eq!(connection.report().chosen(), "tcp", "{}", connection.report());
        let why = Unavailable::PeerUid { uid: STRANGER };
        assert!(why.remedy().contains("policy"), "{}", why.remedy());
        assert_eq!(shm_outcome(connection.report()), Outcome::Unavailable(why));
        connection.send(message(1, 5000).to_vec()).await.unwrap();
        assert!(connection.recv().await.unwrap().unwrap() == *message(1, 5000));
        assert_eq!(mappings(), 0, "there is memory for a stranger");
        drop_in_order(connection).await;
        let said = stranger.rest().await;
        assert!(said.contains(&format!("uid_refused ({STRANGER})")), "{said}");
    });
}

#[test]
fn by_default_a_server_of_a_stranger_gets_no_memory_either() {
    if !has_stranger("a server of a stranger") {
        return;
    }
    let _alone = alone();
    run(async {
        // By TCP there is something to fall back to.
        let mut stranger = start("listen zc://127.0.0.1:0");
        let uri = stranger.says("uri=").await;
        let connection = fabric(Policy::default()).connect(&uri).await.unwrap();
        assert_eq!(connection.report().chosen(), "tcp", "{}", connection.report());
        let why = Outcome::Unavailable(Unavailable::PeerUid { uid: STRANGER });
        assert_eq!(shm_outcome(connection.report()), why);
        assert_eq!(mappings(), 0, "there is memory for a stranger");
        drop_in_order(connection).await;
        stranger.rest().await;

        // By the name of shared memory there is not: it may be squatted.
        let mut squatter = start(&format!("listen {}", name("squatted")));
        let uri = squatter.says("uri=").await;
        let Err(Error::NoTransport(report)) = fabric(Policy::default()).connect(&uri).await else {
            panic!("it talks to whoever has the name")
        };
        assert_eq!(shm_outcome(&report), why);
        assert_eq!(mappings(), 0);
    });
}

#[test]
fn by_default_a_stranger_finds_the_names_of_shared_memory_closed() {
    if !has_stranger("closed names") {
        return;
    }
    let _alone = alone();
    run(async {
        let by_name = fabric(Policy::default()).listen(&name("closed")).await.unwrap();
        let stranger = start(&format!("connect {}", by_name.local_uri()));
        let said = stranger.rest().await;
        assert!(said.contains("refused: ") && said.contains("peer_uid (65534)"), "{said}");

        // A socket in a directory that everybody can enter has the mode 0600.
        let dir = tempfile::Builder::new().prefix("zc-strangers-").tempdir().unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        let uri = format!("zc+shm://{}", dir.path().join("s").display());
        let by_path = fabric(Policy::default()).listen(&uri).await.unwrap();
        let said = start(&format!("connect {uri}")).rest().await;
        assert!(said.contains("refused: ") && said.contains("Permission denied"), "{said}");
        assert_eq!(mappings(), 0);
        drop((by_name, by_path));
    });
}

fn name(what: &str) -> String {
    format!("zc+shm://strangers-{what}-{}", std::process::id())
}

async fn drop_in_order(connection: Connection) {
    connection.drain(GUARD).await.unwrap();
    drop(connection);
}

/// Sends every size to a stranger that sends it back, and keeps what comes.
async fn talk_to_a_stranger(connection: &mut Connection) {
    assert_eq!(connection.report().chosen(), "shm", "{}", connection.report());
    assert_eq!(connection.peer().cred.unwrap().uid, STRANGER);
    assert_eq!(connection.caps().zero_copy_rx, ZeroCopy::Never, "it is trusted");
    let (tx, mut rx) = connection.split();
    let mut kept = Vec::new();
    for (seq, len) in SIZES.into_iter().cycle().take(3 * SIZES.len()).enumerate() {
        let mut buf = tx.alloc(len).await.unwrap();
        buf.put_slice(message(seq, len));
        tx.send(buf.freeze()).await.unwrap();
        let got = rx.recv().await.unwrap().unwrap();
        assert!(got == *message(seq, len), "message {seq} of {len} bytes");
        kept.push((seq, len, got));
        // Of the long ones a few.
        kept.drain(..kept.len().saturating_sub(SIZES.len()));
    }
    kept.iter().for_each(|(seq, len, got)| assert!(*got == *message(*seq, *len)));
    let (out, inline) = parts(SIZES);
    let ledger = connection.ledger();
    assert_eq!((ledger.copied_at(CopyPlace::CopyOut), ledger.copied_bytes()), (3 * out, 3 * out));
    assert_eq!(ledger.inline_bytes, 2 * 3 * inline);
}

#[test]
fn an_admitted_stranger_is_copied_out_on_both_sides() {
    if !has_stranger("an admitted stranger") {
        return;
    }
    let _alone = alone();
    run(async {
        // Tokio's own descriptors are there once something waits.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let before = descriptors();
        let copied = format!("copied out {}", 3 * parts(SIZES).0);
        for uri in ["zc://127.0.0.1:0".to_owned(), name("admitted")] {
            let mut listener = admitting().listen(&uri).await.unwrap();
            let stranger = start(&format!("connect {}", listener.local_uri()));
            let mut connection = listener.accept().await.unwrap();
            talk_to_a_stranger(&mut connection).await;
            drop_in_order(connection).await;
            let said = stranger.rest().await;
            assert!(said.contains(&copied), "{said}");
        }
        // Its own server, which need not be told to accept root.
        let mut stranger = start(&format!("listen {}", name("served")));
        let mut connection = admitting().connect(&stranger.says("uri=").await).await.unwrap();
        talk_to_a_stranger(&mut connection).await;
        drop_in_order(connection).await;
        let said = stranger.rest().await;
        assert!(said.contains(&copied), "{said}");
        all_came_back(before).await;
    });
}

#[test]
fn killed_strangers_are_noticed_and_leave_nothing() {
    if !has_stranger("killed strangers") {
        return;
    }
    let _alone = alone();
    run(async {
        let mut listener = admitting().listen(&name("killed")).await.unwrap();
        let before = descriptors();
        for at in 0..KILLS {
            let task = format!("flood {}", listener.local_uri());
            let stranger = start(&task);
            let connection = listener.accept().await.unwrap();
            assert_eq!(connection.caps().zero_copy_rx, ZeroCopy::Never);
            // From the first message on, and at some point of the flood.
            let after = Duration::from_micros((at as u64 * 7919) % 12_000);
            let (arrived, first) = mpsc::channel();
            let killer = std::thread::spawn(move || {
                first.recv_timeout(GUARD).unwrap();
                std::thread::sleep(after);
                drop(stranger);
            });
            let last = Cell::new(0);
            let seen = |seq| {
                last.set(seq);
                let _ = arrived.send(());
            };
            let error = flood(connection, 20, seen).await;
            assert!(matches!(error, ConnectionError::Lane(LaneError::PeerGone(_))), "{error}");
            assert!(last.get() > 0, "kill {at} met no message");
            killer.join().unwrap();
            all_came_back(before).await;
        }
    });
}
