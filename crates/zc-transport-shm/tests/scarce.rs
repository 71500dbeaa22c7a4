//! With less than usual: locked memory, /dev/shm, descriptors. Each test runs its part in a process of its own.
#![cfg(not(loom))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs
)]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use common::*;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zc_core::memory::{AllocError, Backing, BufPool, MemoryGroup};
use zc_core::transport::*;
use zc_transport_shm::{DESCRIPTOR_LOOK_MS, DESCRIPTOR_WAIT_MS};

/// Set in the process of a test: what it does.
const PART: &str = "ZC_SHM_SCARCE_PART";

/// Runs `part` of [`child`] by a shell that gives things up first, below the program `by`.
fn run_part(part: &str, first: &str, by: &str) {
    let script = format!("{first} exec {by} \"$0\" --exact child --test-threads=1 --nocapture");
    let shell = ["--mount", "--propagation", "private", "sh", "-ec", script.as_str()];
    let this = std::env::current_exe().unwrap();
    let done = Command::new("unshare").args(shell).arg(this).env(PART, part).output();
    let Ok(done) = done else {
        println!("not tested: there is no program unshare");
        return;
    };
    let text = [done.stdout, done.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    if text.contains("unshare failed") || text.contains("permission denied") {
        println!("not tested: making a mount namespace takes root");
        return;
    }
    assert!(done.status.success() && text.contains("part is done"), "{text}");
}

#[test]
fn with_little_memory_to_lock() {
    // Without the capability the limit counts for root, too.
    let drop = "setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock";
    let by = if Command::new("setpriv").arg("--version").output().is_ok() { drop } else { "" };
    run_part("memlock", "ulimit -l 64;", by);
}

#[test]
fn with_a_small_dev_shm() {
    run_part("messages", "mount -t tmpfs -o size=64m zc-test /dev/shm;", "");
}

/// A memfd needs no mount.
#[test]
fn without_dev_shm() {
    run_part("messages", "mount -t tmpfs -o size=4k,nr_inodes=1,ro zc-test /dev; [ ! -e /dev/shm ];", "");
}

#[test]
fn with_descriptors_that_run_out() {
    run_part("descriptors", "", "");
}

#[test]
fn descriptors_that_we_cannot_open_are_our_own_shortage() {
    run_part("link", "", "");
}

#[test]
fn memory_that_comes_when_there_are_no_descriptors_left() {
    run_part("arenas", "", "");
}

#[test]
fn descriptors_that_never_come_end_the_lane_in_so_many_words() {
    run_part("given up", "", "");
}

#[test]
fn a_peer_whose_memory_cannot_be_opened_is_refused_with_the_reason() {
    run_part("join", "", "");
}

/// Not a test of its own.
#[test]
fn child() {
    match std::env::var(PART).as_deref() {
        Ok("messages") => run(messages()),
        Ok("memlock") => {
            assert_eq!(getrlimit(Resource::Memlock).current, Some(64 << 10));
            run(messages());
        }
        Ok("link") => run(link()),
        Ok("descriptors") => run(descriptors()),
        Ok("arenas") => run(arenas()),
        Ok("given up") => run(given_up()),
        Ok("join") => run(join()),
        _ => return,
    }
    println!("part is done");
}

/// More than 64 MiB are under way, and 64 MiB in one piece.
async fn messages() {
    let (mut a, mut b) = pair(&Setup::default()).await;
    let mut kept = Vec::new();
    for (seq, len) in [60, 4000, 16 << 20, 64 << 20].into_iter().enumerate() {
        let mut buf = a.alloc(len).await;
        buf.put_slice(&body(len, seq));
        a.send(data(seq as u64 + 1, buf.freeze())).await.unwrap();
        let got = b.recv().await.unwrap();
        assert!(got[0].payload == body(len, seq)[..]);
        b.lane.rx.release(len);
        kept.push(got);
    }
    assert_eq!(a.ledger.snapshot().copied_bytes(), 0);
}

/// While none can be had, a sender waits for what the peer gives back; it fails when nothing will come.
async fn descriptors() {
    let (mut a, mut b) = pair(&Setup::default()).await;
    let mut cx = Context::from_waker(Waker::noop());
    let mut buf = a.alloc(1 << 20).await;
    buf.put_slice(&body(1 << 20, 1));
    a.send(data(1, buf.freeze())).await.unwrap();
    let got = b.recv().await.unwrap();
    b.lane.rx.release(1 << 20);
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
    assert!(a.lane.tx.poll_alloc(&mut cx, 1 << 20).is_pending());
    // A message that must be copied waits in the queue, and small ones go on after it.
    a.lane.tx.start_send(data(2, body(1 << 20, 2)), false).unwrap();
    assert!(a.lane.tx.poll_flush(&mut cx).is_pending());
    drop(got);
    a.send(data(3, body(60, 3))).await.unwrap();
    let mut got = Vec::new();
    while got.len() < 2 {
        got.extend(b.recv().await.unwrap());
    }
    assert!(got[0].payload == body(1 << 20, 2)[..] && got[1].payload == body(60, 3)[..]);
    got.clear();
    // Nothing is with the peer: no block of that size will come.
    let failed = a.lane.tx.poll_alloc(&mut cx, 8 << 20);
    assert!(matches!(failed, Poll::Ready(Err(AllocFailure::Pool(AllocError::Os(_))))), "{failed:?}");
    setrlimit(Resource::Nofile, before).unwrap();
    drop(a.alloc(8 << 20).await);
}

/// Every descriptor that the process may have, but for `left` of them.
fn all_descriptors(left: usize) -> Vec<OwnedFd> {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), ..before }).unwrap();
    let open = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).ok();
    let mut all: Vec<_> = std::iter::from_fn(open).collect();
    all.truncate(all.len() - left);
    all
}

/// Sends a message that needs memory of its own, while there are descriptors to make it.
async fn send_large(a: &mut End, seq: u64, len: usize) {
    let mut buf = a.alloc(len).await;
    buf.put_slice(&body(len, seq as usize));
    a.send(data(seq, buf.freeze())).await.unwrap();
}

/// Drives the lane by the clock, too.
async fn receive(b: &mut End) -> Result<Vec<Frame>, LaneError> {
    loop {
        if let Ok(got) = tokio::time::timeout(Duration::from_millis(20), b.recv()).await {
            return got;
        }
    }
}

/// What is in reserve makes room, for one after the other, and the messages are lent as ever.
async fn arenas() {
    let mut setup = Setup::default();
    (setup.limits.send_window, setup.limits.recv_window) = (64 << 20, 64 << 20);
    (setup.limits.lease_soft, setup.limits.lease_hard) = (256 << 20, 512 << 20);
    let (mut a, mut b) = pair(&setup).await;
    let group = MemoryGroup::new(BufPool::builder().backing(Backing::Memfd).max_bytes(32 << 20));
    a.lane.tx.join_group(&group).unwrap();
    let mut kept = Vec::new();
    for round in 0..5 {
        let (first, second) = (3 * round + 1, 3 * round + 2);
        // Two at a time: the second has no room until the first is mapped.
        send_large(&mut a, first, (1 + round as usize) << 20).await;
        send_large(&mut a, second, (7 + round as usize) << 20).await;
        let mut buf = group.pool().try_alloc(1 << 20).unwrap();
        buf.put_slice(&body(1 << 20, 1));
        a.send(data(3 * round + 3, buf.freeze())).await.unwrap();
        let all = all_descriptors(0);
        let mut got = Vec::new();
        while got.len() < 3 {
            got.extend(receive(&mut b).await.unwrap());
            assert!(rustix::io::fcntl_dupfd_cloexec(&all[0], 0).is_err(), "descriptors are left");
        }
        assert!(got[0].payload == body((1 + round as usize) << 20, first as usize)[..]);
        assert!(got[1].payload == body((7 + round as usize) << 20, second as usize)[..]);
        assert!(got[2].payload == body(1 << 20, 1)[..]);
        got.iter().for_each(|frame| b.lane.rx.release(frame.payload.len()));
        kept.extend(got);
    }
    assert_eq!((a.ledger.snapshot().copied_bytes(), b.ledger.snapshot().copied_bytes()), (0, 0));
}

/// What was sent before arrives, and then the reason; the other side hears of the end.
async fn given_up() {
    let (mut a, mut b) = pair(&Setup::default()).await;
    send_large(&mut a, 1, 1 << 20).await;
    send_large(&mut a, 2, 7 << 20).await;
    let _all = all_descriptors(0);
    let mut cx = Context::from_waker(Waker::noop());
    let start = Instant::now();
    let mut drive = |now| b.lane.drive.as_mut().unwrap().poll_drive(&mut cx, now).unwrap();
    // Nobody receives, so the first one's memory is not mapped: there is nothing in reserve for the second.
    let next = loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if let Some(next) = drive(start) {
            break next;
        }
    };
    assert_eq!(next, start + Duration::from_millis(DESCRIPTOR_LOOK_MS));
    assert_eq!(drive(next), Some(next + Duration::from_millis(DESCRIPTOR_LOOK_MS)));
    assert_eq!(drive(start + Duration::from_millis(DESCRIPTOR_WAIT_MS)), None);
    assert!(b.recv().await.unwrap()[0].payload == body(1 << 20, 1)[..]);
    let error = b.recv().await.unwrap_err();
    assert!(matches!(error, LaneError::Os { errno, .. } if errno == Errno::MFILE.raw_os_error()), "{error}");
    assert!(error.to_string().contains("ulimit -n"), "{error}");
    let error = a.recv().await.unwrap_err();
    assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
    // That the other side is gone is heard all the same, behind what is never opened.
    drop(a);
    let mut cx = Context::from_waker(Waker::noop());
    while !matches!(b.lane.tx.poll_close(&mut cx), Poll::Ready(Err(_))) {
        b.drive(&mut cx);
    }
}

/// It has room for its own memory and bell, and not for the peer's.
async fn join() {
    let (mut peer, link) = links().await;
    let one = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let two = [one.as_fd(), one.as_fd()];
    std::future::poll_fn(|cx| peer.poll_send_descriptors(cx, &two)).await.unwrap();
    let _all = all_descriptors(4);
    let Err(error) = try_end(link, Role::Server, &Setup::default(), None).await else { panic!() };
    let WireupError::Unavailable(why) = &error else { panic!("{error}") };
    let operation = "receive the peer's memory";
    assert_eq!(*why, Unavailable::Os { errno: Errno::MFILE.raw_os_error(), operation });
    assert!(why.remedy().contains("ulimit -n"), "{}", why.remedy());
}

/// The peer sent no more than it may.
async fn link() {
    let (mut a, mut b) = links().await;
    let one = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let two = [one.as_fd(), one.as_fd()];
    std::future::poll_fn(|cx| a.poll_send_descriptors(cx, &two)).await.unwrap();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
    let error = std::future::poll_fn(|cx| b.poll_recv_descriptors(cx, 2)).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()), "{error}");
    setrlimit(Resource::Nofile, before).unwrap();
    // They are still there.
    assert_eq!(std::future::poll_fn(|cx| b.poll_recv_descriptors(cx, 2)).await.unwrap().len(), 2);
    // Or thrown away, which takes none.
    std::future::poll_fn(|cx| a.poll_send_descriptors(cx, &two)).await.unwrap();
    std::future::poll_fn(|cx| a.poll_send_descriptors(cx, &[])).await.unwrap();
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
    let error = std::future::poll_fn(|cx| b.poll_recv_descriptors(cx, 0)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert_eq!(std::future::poll_fn(|cx| b.poll_recv_descriptors(cx, 0)).await.unwrap().len(), 0);
    setrlimit(Resource::Nofile, before).unwrap();
}
