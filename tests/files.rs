//! Files that are sent: the content, and all that can happen to a file and to a connection meanwhile.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::fs::File;
use std::future::Future;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use zc::transport::LaneLimits;
use zc::{
    Completion, Connection, Delivery, Fabric, FabricBuilder, FileFault, FileWay, Message, Policy,
    SendFileError, SendFileOptions,
};

const GUARD: Duration = Duration::from_secs(120);
const STREAMS: [&str; 4] = ["tcp", "unix", "uring", "uring-unix"];
#[cfg(feature = "shm")]
const KINDS: [&str; 6] = ["tcp", "unix", "uring", "uring-unix", "mem", "shm"];
#[cfg(not(feature = "shm"))]
const KINDS: [&str; 5] = ["tcp", "unix", "uring", "uring-unix", "mem"];

/// Those that this machine has.
fn kinds(all: &'static [&'static str]) -> impl Iterator<Item = &'static str> {
    #[cfg(feature = "uring")]
    let has_uring = zc_transport_uring::probe().is_ok();
    #[cfg(not(feature = "uring"))]
    let has_uring = false;
    all.iter().copied().filter(move |kind| has_uring || !kind.starts_with("uring"))
}

/// Pipes are scarce: who counts on them is not beside who takes them all.
static PIPES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn guarded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future).await.expect("it hangs")
}

fn unique(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("files-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    match kind {
        "tcp" => "zc+tcp://127.0.0.1:0".into(),
        "unix" => format!("zc+unix://@{name}"),
        "uring" => "zc+uring://127.0.0.1:0".into(),
        "uring-unix" => format!("zc+uring://@{name}"),
        other => format!("zc+{other}://{name}"),
    }
}

async fn pair_of(kind: &str, builder: impl Fn() -> FabricBuilder) -> (Connection, Connection) {
    let fabric = || {
        // Of several transports for the same address, the one that is meant.
        let only = match kind {
            "tcp" | "unix" => Policy::default().with_override("tcp").unwrap(),
            "uring" | "uring-unix" => Policy::default().with_override("uring").unwrap(),
            _ => Policy::default(),
        };
        builder().policy(only).build().unwrap()
    };
    let mut listener = fabric().listen(&unique(kind)).await.unwrap();
    let (uri, client) = (listener.local_uri().to_string(), fabric());
    guarded(async { tokio::try_join!(client.connect(&uri), listener.accept()) }).await.unwrap()
}

async fn pair(kind: &str) -> (Connection, Connection) {
    pair_of(kind, Fabric::auto_builder).await
}

fn small_window() -> FabricBuilder {
    let mut limits = LaneLimits::default();
    limits.recv_window = 64 << 10;
    Fabric::auto_builder().limits(limits)
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ (at >> 17)) as u8).collect()
}

fn file_of(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

fn append(message: &Message, to: &mut Vec<u8>) {
    message.segments().iter().for_each(|segment| to.extend(segment.iter().copied()));
}

async fn receive(conn: &mut Connection, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        append(&conn.recv().await.unwrap().expect("it ended early"), &mut all);
    }
    all
}

fn options(change: impl FnOnce(&mut SendFileOptions)) -> SendFileOptions {
    let mut options = SendFileOptions::default();
    change(&mut options);
    options
}

/// Polls once, without a wake-up to come.
fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

async fn goes_on(client: &Connection, server: &mut Connection) {
    client.send(&b"and on"[..]).await.unwrap();
    assert_eq!(guarded(server.recv()).await.unwrap().unwrap(), b"and on"[..]);
}

#[tokio::test]
async fn any_range_arrives_as_it_is() {
    let _pipes = PIPES.lock().await;
    let all = content(3_000_000);
    let file = file_of(&all);
    for kind in kinds(&KINDS) {
        let (client, mut server) = pair(kind).await;
        for (start, len) in [
            (0, 0),
            (0, 1),
            (5, 4095),
            (4096, 65_535),
            (0, 65_536),
            (1, 65_537),
            (4095, 524_288),
            (8192, 524_288),
            (100, 600_000),
            (12_345, 2_000_001),
            (0, 3_000_000),
        ] {
            for way in [FileWay::Auto, FileWay::Read] {
                let sender = client.sender();
                let options = options(|options| options.way = way);
                let range = start as u64..(start + len) as u64;
                let sending = sender.send_file(file.clone(), range, options);
                let (sent, got) = guarded(async { tokio::join!(sending, receive(&mut server, len)) }).await;
                let sent = sent.unwrap();
                assert!(got == all[start..start + len], "{kind} {way:?} {len} at {start}");
                assert_eq!(sent.bytes, len as u64);
                let spliced =
                    if STREAMS.contains(&kind) && way == FileWay::Auto && len >= 65_536 { len } else { 0 };
                assert_eq!(sent.spliced_bytes, spliced as u64, "{kind} {way:?} {len}");
            }
        }
    }
}

/// As a range that has bytes does: a header that was fed does not wait for the driver's next look.
#[tokio::test]
async fn an_empty_range_pushes_out_what_was_fed() {
    for kind in KINDS {
        let (client, mut server) = pair(kind).await;
        let sender = client.sender();
        tokio::time::pause(); // nothing comes because of a timer
        sender.feed(&b"head"[..]).await.unwrap();
        let sent = sender.send_file(file_of(&[]), 0..0, SendFileOptions::default()).await.unwrap();
        assert_eq!((sent.bytes, sent.messages), (0, 0));
        let mut receiving = std::pin::pin!(server.recv());
        let mut looks = 0;
        let got = loop {
            if let Poll::Ready(got) = poll_once(&mut receiving) {
                break got;
            }
            looks += 1;
            assert!(looks < 10_000, "{kind}: it was not pushed out");
            tokio::task::yield_now().await;
        };
        assert_eq!(got.unwrap().unwrap(), b"head"[..]);
        tokio::time::resume();
    }
}

#[tokio::test]
async fn messages_are_as_long_as_asked_and_end_with_pages() {
    let all = content(300_000);
    for kind in kinds(&KINDS) {
        let (client, mut server) = pair(kind).await;
        for way in [FileWay::Auto, FileWay::Read] {
            let options = options(|options| (options.chunk_bytes, options.way) = (70_000, way));
            let sent = client.sender().send_file(file_of(&all), 1000..300_000, options).await.unwrap();
            let (mut at, mut messages) = (1000, 0);
            while at < 300_000 {
                let len = guarded(server.recv()).await.unwrap().unwrap().len();
                assert!(len <= 70_000);
                at += len;
                messages += 1;
                assert!(at == 300_000 || at % 4096 == 0, "{at}");
            }
            assert_eq!((sent.messages, at), (messages, 300_000));
        }
    }
}

#[tokio::test]
async fn past_the_page_cache_too_or_a_typed_refusal() {
    let all = content(700_001);
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all(&all).unwrap();
    file.as_file().sync_all().unwrap();
    let (file, path) = file.into_parts();
    let file = Arc::new(file);
    for kind in kinds(&KINDS) {
        let (client, mut server) = pair(kind).await;
        for (start, len) in [(0, 700_001), (4097, 3), (513, 600_000)] {
            let options = options(|options| options.way = FileWay::Direct);
            let range = start as u64..(start + len) as u64;
            match guarded(client.sender().send_file(file.clone(), range, options)).await {
                Ok(sent) => {
                    assert_eq!((sent.bytes, sent.spliced_bytes), (len as u64, 0));
                    assert!(receive(&mut server, len).await == all[start..start + len], "{kind}");
                }
                Err(error) => {
                    assert!(matches!(error.fault, FileFault::NoDirect(_)), "{error}");
                    assert_eq!(error.sent(), 0);
                }
            }
        }
        // No file system is mounted there that reads past a cache.
        let options = options(|options| options.way = FileWay::Direct);
        let proc = File::open("/proc/self/status").unwrap();
        let error = client.sender().send_file(proc, 0..0, options).await.unwrap_err();
        assert!(matches!(error.fault, FileFault::NoDirect(_)), "{error}");
        goes_on(&client, &mut server).await;
    }
    drop(path);
}

#[tokio::test]
async fn what_is_no_readable_file_is_refused_by_its_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, content(100)).unwrap();
    let open = |flags: i32| -> File {
        let flags = rustix::fs::OFlags::from_bits_retain(flags as u32);
        File::from(rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap())
    };
    let pipe = || -> OwnedFd { rustix::pipe::pipe().unwrap().0 };
    let socket = || -> OwnedFd { std::net::TcpListener::bind("127.0.0.1:0").unwrap().into() };
    for kind in kinds(&KINDS) {
        let (client, mut server) = pair(kind).await;
        let sender = client.sender();
        let send = async |file: File, range| -> SendFileError {
            let error = sender.send_file(file, range, SendFileOptions::default()).await.unwrap_err();
            assert_eq!((error.sent(), error.delivery(), error.is_retryable()), (0, Delivery::NotSent, false));
            error
        };
        for other in [
            File::open(dir.path()).unwrap(),
            File::open("/dev/zero").unwrap(),
            pipe().into(),
            socket().into(),
        ] {
            assert!(matches!(send(other, 0..10).await.fault, FileFault::NotRegular));
        }
        for flags in [libc::O_WRONLY, libc::O_PATH] {
            assert!(matches!(send(open(flags), 0..10).await.fault, FileFault::NotReadable));
        }
        for range in [std::ops::Range { start: 7, end: 5 }, 0..u64::MAX] {
            assert!(matches!(send(open(0), range).await.fault, FileFault::BadRange(_)));
        }
        for (range, less) in [(0..101, 1), (90..150, 50), (200..300, 200)] {
            let fault = send(open(0), range).await.fault;
            assert!(matches!(fault, FileFault::Truncated { missing } if missing == less), "{fault}");
        }
        // Says that it is empty, and is not: what it says counts.
        let fault = send(File::open("/proc/self/maps").unwrap(), 0..10).await.fault;
        assert!(matches!(fault, FileFault::Truncated { missing: 10 }), "{fault}");
        goes_on(&client, &mut server).await;
    }
}

/// A file system whose files can't be spliced is read instead; `/proc` has such files, but none with a length. A file of
/// sysfs has one.
#[tokio::test]
async fn a_file_that_can_not_be_spliced_is_read() {
    let (client, mut server) = pair("tcp").await;
    let Ok(file) = File::open("/sys/kernel/btf/vmlinux") else { return };
    let len = file.metadata().unwrap().len().min(2 << 20);
    let mut all = vec![0; len as usize];
    file.read_exact_at(&mut all, 0).unwrap();
    let sender = client.sender();
    let sending = sender.send_file(file, 0..len, SendFileOptions::default());
    let (sent, got) = guarded(async { tokio::join!(sending, receive(&mut server, len as usize)) }).await;
    assert_eq!(sent.unwrap().bytes, len);
    assert!(got == all);
}

/// The file is cut while it is sent, once for every message that has arrived by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_cut_at_any_step_is_a_typed_error_and_the_connection_goes_on() {
    const CHUNK: usize = 16 << 10;
    let all = content(40 * CHUNK);
    for kind in kinds(&KINDS) {
        for way in [FileWay::Auto, FileWay::Read] {
            // One connection for all: it has to survive each of them.
            let (client, server) = pair_of(kind, small_window).await;
            let server = Arc::new(tokio::sync::Mutex::new(server));
            for step in [0, 1, 2, 5, 11, 30, 39] {
                let file = file_of(&all);
                let (cut, receiver) = (file.clone(), server.clone());
                let cutter = async move {
                    let (mut server, mut got) = (receiver.lock().await, Vec::new());
                    for _ in 0..step {
                        append(&server.recv().await.unwrap().unwrap(), &mut got);
                    }
                    tokio::task::spawn_blocking(move || cut.set_len(5000).unwrap()).await.unwrap();
                    loop {
                        let message = server.recv().await.unwrap().unwrap();
                        if message == b"end"[..] {
                            return got;
                        }
                        append(&message, &mut got);
                    }
                };
                let cutter = tokio::spawn(cutter);
                let options = options(|options| (options.chunk_bytes, options.way) = (CHUNK, way));
                let sent = guarded(client.sender().send_file(file, 0..all.len() as u64, options)).await;
                client.send(&b"end"[..]).await.unwrap();
                let got = guarded(cutter).await.unwrap();
                let bytes = match sent {
                    // It was all taken before the cut.
                    Ok(sent) => sent.bytes,
                    Err(error) => {
                        let missing = match error.fault {
                            FileFault::Truncated { missing } => missing,
                            ref other => panic!("{other}"),
                        };
                        assert!(missing >= 1 && error.sent() + missing <= all.len() as u64, "{error}");
                        error.sent()
                    }
                };
                assert_eq!(got.len() as u64, bytes, "{kind} {way:?} {step}: what was sent is what arrives");
                // The kernel may clear what lay behind the cut in pages that have not gone out yet.
                let wrong = got.iter().zip(&all).filter(|(got, of_file)| **got != **of_file && **got != 0);
                assert_eq!(wrong.count(), 0, "{kind} {way:?} {step}");
                assert!(got[..got.len().min(4096)] == all[..got.len().min(4096)]);
            }
        }
    }
}

#[tokio::test]
async fn a_file_that_is_cut_before_a_chunk_is_got_is_an_error_for_sure() {
    let all = content(2_000_000);
    for kind in kinds(&KINDS) {
        for way in [FileWay::Auto, FileWay::Read] {
            let (client, mut server) = pair_of(kind, small_window).await;
            let (file, sender) = (file_of(&all), client.sender());
            let options = options(|options| (options.chunk_bytes, options.way) = (100_000, way));
            let mut sending = sender.send_file(file.clone(), 0..2_000_000, options);
            // Nothing is received: it stops when the window is full.
            let first = async {
                while sending.sent() == 0 {
                    assert!(poll_once(&mut sending).is_pending());
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            guarded(first).await;
            file.set_len(1_000_000).unwrap();
            let got = async {
                let mut got = 0;
                while got < 900_000 {
                    got += server.recv().await.unwrap().unwrap().len() as u64;
                }
                got
            };
            let (sent, mut got) = guarded(async { tokio::join!(sending, got) }).await;
            let error = sent.unwrap_err();
            assert!(matches!(error.fault, FileFault::Truncated { missing: 1_000_000 }), "{kind} {error}");
            assert!(error.sent() < 1_000_000);
            while got < error.sent() {
                got += guarded(server.recv()).await.unwrap().unwrap().len() as u64;
            }
            assert_eq!(got, error.sent());
            goes_on(&client, &mut server).await;
        }
    }
}

/// All of it is with the lane, but not yet with the peer: of a spliced file those are the file's own pages.
#[tokio::test]
async fn a_change_is_found_until_the_completion_that_was_asked_for() {
    const LEN: u64 = 96 << 10;
    for kind in KINDS {
        for way in [FileWay::Auto, FileWay::Read] {
            let (client, mut server) = pair(kind).await;
            let (file, sender) = (file_of(&content(LEN as usize)), client.sender());
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(100)).unwrap();
            let options = options(|options| {
                (options.way, options.unchanged, options.completion) = (way, true, Completion::Delivered);
            });
            let mut sending = sender.send_file(file.clone(), 0..LEN, options);
            let handed_over = async {
                while sending.sent() < LEN {
                    assert!(poll_once(&mut sending).is_pending());
                    if sending.sent() < LEN {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            };
            guarded(handed_over).await;
            file.write_all_at(b"other", 5).unwrap();
            let (sent, got) =
                guarded(async { tokio::join!(sending, receive(&mut server, LEN as usize)) }).await;
            let error = sent.expect_err("it was changed");
            assert!(matches!(error.fault, FileFault::Changed), "{kind} {way:?} {error}");
            assert_eq!((error.sent(), error.delivery(), got.len() as u64), (LEN, Delivery::Delivered, LEN));
            goes_on(&client, &mut server).await;
        }
    }
}

#[tokio::test]
async fn a_change_is_found_if_asked_for_and_growth_is_none_of_our_business_otherwise() {
    for kind in kinds(&KINDS) {
        for (way, unchanged) in
            [(FileWay::Auto, false), (FileWay::Auto, true), (FileWay::Read, false), (FileWay::Read, true)]
        {
            for what in ["grow", "write"] {
                let (client, mut server) = pair_of(kind, small_window).await;
                let (file, sender) = (file_of(&content(1_000_000)), client.sender());
                // Well before any clock tick of the write to come.
                let past = std::time::SystemTime::now() - Duration::from_secs(100);
                file.set_modified(past).unwrap();
                let options = options(|options| {
                    (options.chunk_bytes, options.way, options.unchanged) = (50_000, way, unchanged);
                });
                let mut sending = sender.send_file(file.clone(), 0..1_000_000, options);
                let begun = async {
                    while sending.sent() == 0 {
                        assert!(poll_once(&mut sending).is_pending());
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                guarded(begun).await;
                match what {
                    "grow" => file.set_len(2_000_000).unwrap(),
                    _ => file.write_all_at(b"other", 999_000).unwrap(),
                }
                let drain = async {
                    let mut got = 0;
                    while let Ok(Some(message)) = server.recv().await {
                        got += message.len() as u64;
                    }
                    got
                };
                let sent = async {
                    let sent = sending.await;
                    client.drain(GUARD).await.unwrap();
                    sent
                };
                let (sent, got) = guarded(async {
                    let (sent, got) = futures::join!(sent, drain);
                    (sent, got)
                })
                .await;
                match sent {
                    Ok(sent) => assert!(!unchanged && sent.bytes == 1_000_000, "{kind} {way:?} {what}"),
                    Err(error) => {
                        assert!(unchanged && matches!(error.fault, FileFault::Changed), "{kind} {error}");
                        assert_eq!(error.sent(), got);
                        assert_eq!(error.delivery(), Delivery::Unknown, "that was before it was drained");
                    }
                }
            }
        }
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Polls up to `polls` times, each after a wake-up, and drops it: how much was sent.
async fn poll_then_drop(mut sending: zc::SendFile<'_>, polls: usize) -> (u64, bool) {
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(flag.clone());
    for _ in 0..polls {
        if std::pin::Pin::new(&mut sending).poll(&mut Context::from_waker(&waker)).is_ready() {
            return (sending.sent(), true);
        }
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_micros(100)).await;
            if flag.0.swap(false, Ordering::SeqCst) {
                break;
            }
        }
    }
    (sending.sent(), false)
}

#[tokio::test]
async fn dropped_at_any_point_whole_messages_were_sent_and_the_rest_can_follow() {
    const LEN: usize = 300_000;
    let all = content(LEN);
    for kind in kinds(&KINDS) {
        for (way, completion) in [
            (FileWay::Auto, Completion::Accepted),
            (FileWay::Auto, Completion::Delivered),
            (FileWay::Auto, Completion::Sent),
            (FileWay::Read, Completion::Delivered),
        ] {
            let (client, server) = pair_of(kind, small_window).await;
            let server = Arc::new(tokio::sync::Mutex::new(server));
            let (file, mut finished) = (file_of(&all), 0);
            for polls in 0..60 {
                let options = || {
                    options(|options| {
                        (options.chunk_bytes, options.way, options.completion) = (70_000, way, completion);
                    })
                };
                let receiver = server.clone();
                let receiving = tokio::spawn(async move {
                    let (mut server, mut got) = (receiver.lock().await, Vec::new());
                    loop {
                        let message = server.recv().await.unwrap().unwrap();
                        if message == b"end"[..] {
                            return got;
                        }
                        assert!(message.len() <= 70_000);
                        append(&message, &mut got);
                    }
                });
                let sender = client.sender();
                let attempt = sender.send_file(file.clone(), 0..LEN as u64, options());
                let (sent, ended) = poll_then_drop(attempt, polls).await;
                // What follows begins exactly there.
                let rest =
                    guarded(sender.send_file(file.clone(), sent..LEN as u64, options())).await.unwrap();
                assert_eq!(rest.bytes, LEN as u64 - sent);
                client.send(&b"end"[..]).await.unwrap();
                assert!(guarded(receiving).await.unwrap() == all, "{kind} {way:?} {polls}");
                assert_eq!(client.stats().waiting_senders, 0);
                finished += usize::from(ended);
                if finished == 3 {
                    break;
                }
            }
            assert!(finished > 0, "{kind} {way:?}: never to the end");
        }
    }
}

#[tokio::test]
async fn a_slow_receiver_holds_the_file_up_and_nobody_else() {
    let all = content(8_000_000);
    for kind in kinds(&KINDS) {
        let (client, mut server) = pair_of(kind, small_window).await;
        let sender = client.sender();
        let mut sending = sender.send_file(file_of(&all), 0..8_000_000, SendFileOptions::default());
        let mut waits = 0;
        while waits < 30 {
            assert!(poll_once(&mut sending).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
            waits += 1;
        }
        assert!(sending.sent() <= 2 * (512 << 10), "{kind}: {} bytes are under way", sending.sent());
        let (sent, got) = guarded(async {
            tokio::join!(sending, async {
                let mut got = Vec::new();
                while got.len() < all.len() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    append(&server.recv().await.unwrap().unwrap(), &mut got);
                }
                got
            })
        })
        .await;
        assert_eq!(sent.unwrap().bytes, 8_000_000);
        assert!(got == all, "{kind}");
    }
}

#[tokio::test]
async fn an_end_in_the_middle_says_how_far_it_got() {
    for kind in kinds(&KINDS) {
        for way in [FileWay::Auto, FileWay::Read] {
            let (client, mut server) = pair_of(kind, small_window).await;
            let options = options(|options| (options.way, options.chunk_bytes) = (way, 50_000));
            let sender = client.sender();
            let sending = sender.send_file(file_of(&content(3_000_000)), 0..3_000_000, options);
            let (sent, ()) = guarded(async {
                tokio::join!(sending, async move {
                    for _ in 0..3 {
                        server.recv().await.unwrap().unwrap();
                    }
                    drop(server);
                })
            })
            .await;
            let error = sent.unwrap_err();
            assert!(matches!(error.fault, FileFault::Connection(_)), "{kind} {way:?} {error}");
            assert!((100_000..3_000_000).contains(&error.sent()), "{kind} {error}");
            assert_ne!(error.delivery(), Delivery::NotSent);
        }
    }
}

#[tokio::test]
async fn delivered_means_that_the_peer_has_it_all() {
    let all = content(1_000_000);
    for kind in kinds(&KINDS) {
        for way in [FileWay::Auto, FileWay::Read] {
            for completion in [Completion::Sent, Completion::Delivered] {
                let (client, mut server) = pair(kind).await;
                let options = options(|options| (options.way, options.completion) = (way, completion));
                let sender = client.sender();
                let sending = sender.send_file(file_of(&all), 0..1_000_000, options);
                let (sent, got) =
                    guarded(async { tokio::join!(sending, receive(&mut server, 1_000_000)) }).await;
                assert_eq!(sent.unwrap().bytes, 1_000_000);
                assert!(got == all, "{kind} {way:?} {completion:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_over_many_connections_and_over_one() {
    let _pipes = PIPES.lock().await;
    let all: Arc<[u8]> = content(400_000).into();
    let file = file_of(&all);
    for kind in kinds(&KINDS) {
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..40_u64 {
            let (client, mut server) = pair(kind).await;
            let (file, all) = (file.clone(), all.clone());
            tasks.spawn(async move {
                let sender = client.sender();
                let sending = sender.send_file(file, i..400_000, SendFileOptions::default());
                let (sent, got) = tokio::join!(sending, receive(&mut server, 400_000 - i as usize));
                sent.unwrap();
                assert!(got == all[i as usize..], "{i}");
            });
        }
        guarded(tasks.join_all()).await;
        // Messages of eight files come in between each other, each file's in order.
        let (client, mut server) = pair(kind).await;
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..8_u8 {
            let sender = client.sender();
            let file = file_of(&vec![i; 300_000]);
            tasks.spawn(async move {
                sender.send_file(file, 0..300_000, options(|o| o.chunk_bytes = 40_000)).await.unwrap()
            });
        }
        let mut counts = [0; 8];
        let receiving = async {
            while counts.iter().sum::<usize>() < 8 * 300_000 {
                let (message, mut bytes) = (server.recv().await.unwrap().unwrap(), Vec::new());
                append(&message, &mut bytes);
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a message is of one file");
                counts[bytes[0] as usize] += bytes.len();
            }
        };
        guarded(receiving).await;
        assert_eq!(counts, [300_000; 8]);
        guarded(tasks.join_all()).await;
    }
}

#[tokio::test]
async fn nothing_of_a_spliced_file_is_copied_by_us() {
    let _pipes = PIPES.lock().await;
    let all = content(2_000_000);
    for kind in kinds(&STREAMS) {
        let (client, mut server) = pair(kind).await;
        let before = client.ledger();
        let sender = client.sender();
        let sending = sender.send_file(file_of(&all), 0..2_000_000, SendFileOptions::default());
        let (sent, got) = guarded(async { tokio::join!(sending, receive(&mut server, 2_000_000)) }).await;
        assert_eq!(sent.unwrap().spliced_bytes, 2_000_000);
        assert!(got == all);
        let ledger = client.ledger().since(&before);
        assert_eq!((ledger.copied_bytes(), ledger.inline_bytes, ledger.moved_bytes), (0, 0, 2_000_000));
    }
    // Read straight into memory that is sent as it is: also over shared memory.
    for kind in kinds(&KINDS) {
        let (client, mut server) = pair(kind).await;
        let before = client.ledger();
        let sender = client.sender();
        let options = options(|options| options.way = FileWay::Read);
        let sending = sender.send_file(file_of(&all), 0..2_000_000, options);
        let (sent, got) = guarded(async { tokio::join!(sending, receive(&mut server, 2_000_000)) }).await;
        sent.unwrap();
        assert!(got == all);
        let ledger = client.ledger().since(&before);
        assert_eq!((ledger.copied_bytes(), ledger.moved_bytes), (0, 2_000_000), "{kind}");
    }
}

#[tokio::test]
async fn the_place_in_the_file_stays_where_it_was() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content(200_000)).unwrap();
    file.seek(std::io::SeekFrom::Start(77)).unwrap();
    let mut shared = file.try_clone().unwrap();
    let (client, mut server) = pair("tcp").await;
    client.sender().send_file(file, 0..200_000, SendFileOptions::default()).await.unwrap();
    receive(&mut server, 200_000).await;
    assert_eq!(shared.stream_position().unwrap(), 77);
}
