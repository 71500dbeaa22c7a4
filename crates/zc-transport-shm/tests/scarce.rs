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

use std::os::fd::AsFd;
use std::process::Command;
use std::task::{Context, Poll, Waker};

use common::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zc_core::memory::AllocError;
use zc_core::transport::*;

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
    std::future::poll_fn(|cx| a.poll_send_descriptors(cx, &two)).await.unwrap();
    assert_eq!(std::future::poll_fn(|cx| b.poll_recv_descriptors(cx, 2)).await.unwrap().len(), 2);
}
