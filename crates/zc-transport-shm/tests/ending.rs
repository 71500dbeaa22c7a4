//! Messages outlive the lane they came by: what the peer still reads does not become writable.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use common::process::{CHILD, Killed, again};
use common::*;
use zc_core::memory::{PinnedBuf, PinnedBufMut};
use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

/// And what it does there.
const PART: &str = "ZC_SHM_ENDING_PART";

/// A message from the lane's own memory, of which the sender keeps a clone.
async fn send_and_keep(end: &mut End) -> PinnedBuf {
    let mut buf = end.alloc(4000).await;
    buf.put_slice(&body(4000, 1));
    let keep = buf.freeze();
    end.send(data(1, keep.clone())).await.unwrap();
    keep
}

/// Drives an end that is over until the buffer is nobody else's.
async fn comes_back(end: &mut End, mut keep: PinnedBuf) -> PinnedBufMut {
    loop {
        let mut cx = Context::from_waker(Waker::noop());
        end.drive(&mut cx);
        assert!(matches!(end.lane.tx.poll_flush(&mut cx), Poll::Ready(Err(_))));
        match keep.try_into_mut() {
            Ok(buf) => return buf,
            Err(shared) => keep = shared,
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[test]
fn the_end_of_a_lane_is_not_the_end_of_its_readers() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let keep = send_and_keep(&mut a).await;
        let got = b.recv().await.unwrap();
        drop(b);
        let end = a.recv().await.unwrap_err();
        assert!(matches!(end, LaneError::PeerGone(_)), "{end}");
        assert!(matches!(a.send(data(2, body(9, 0))).await, Err(LaneError::PeerGone(_))));
        let keep = keep.try_into_mut().expect_err("writable while the peer reads it");
        assert!(got[0].payload == body(4000, 1)[..]);
        drop(got);
        drop(comes_back(&mut a, keep).await);
    });
}

/// Each side holds a message of the other, and neither has its lane: nobody waits for the other for ever.
#[test]
fn what_outlives_both_lanes_comes_back() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (kept_a, kept_b) = (send_and_keep(&mut a).await, send_and_keep(&mut b).await);
        let (at_b, at_a) = (b.recv().await.unwrap(), a.recv().await.unwrap());
        drop((a, b));
        let kept_a = kept_a.try_into_mut().expect_err("b reads it");
        let kept_b = kept_b.try_into_mut().expect_err("a reads it");
        assert!(at_b[0].payload == body(4000, 1)[..] && at_a[0].payload == body(4000, 1)[..]);
        drop((at_a, at_b));
        for mut keep in [kept_a, kept_b] {
            // Lanes that begin or end look after those that are gone.
            while let Err(shared) = keep.try_into_mut() {
                keep = shared;
                drop(pair(&Setup::default()).await);
            }
        }
    });
}

#[test]
fn a_peer_that_is_killed_reads_nothing_any_more() {
    run(async {
        let (mut a, mut child) = end_and_child("keep").await;
        let keep = send_and_keep(&mut a).await;
        assert_eq!(a.recv().await.unwrap().len(), 1, "its word that it has the message");
        let keep = keep.try_into_mut().expect_err("the peer reads it");
        child.0.kill().unwrap();
        assert!(matches!(a.recv().await, Err(LaneError::PeerGone(_))));
        drop(comes_back(&mut a, keep).await);
    });
}

/// Two processes that talk with each other are killed at once. Nothing is left that has a name, and nothing that
/// has none: both were reaped, and what they had mapped and opened went with them.
#[test]
fn both_sides_are_killed_at_once() {
    let shm = || std::fs::read_dir("/dev/shm").map_or(0, |all| all.flatten().filter(is_ours).count());
    let before = shm();
    for at in 0..20 {
        let name = format!("zc-shm-both-{}-{at}", std::process::id());
        let mut sides = [spawn(&name, "listen"), spawn(&name, "talk")];
        std::thread::sleep(std::time::Duration::from_millis(10 * at));
        for side in &mut sides {
            side.0.kill().unwrap();
        }
        for mut side in sides {
            side.0.wait().unwrap();
        }
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        assert!(!sockets.contains(&name), "a socket is left");
        assert_eq!(shm(), before, "a file is left");
    }
}

fn is_ours(file: &std::fs::DirEntry) -> bool {
    file.file_name().to_string_lossy().contains("zc")
}

fn spawn(name: &str, part: &str) -> Killed {
    Killed(again(name).env(PART, part).spawn().unwrap())
}

async fn end_and_child(part: &str) -> (End, Killed) {
    let name = format!("zc-shm-ending-{}-{part}", std::process::id());
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let mut listener = StreamLinks.bind(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
    let child = spawn(&name, part);
    (accepted(&mut *listener, &Setup::default()).await, child)
}

/// Not a test of its own: the processes that get killed.
#[test]
fn child() {
    let (Ok(name), Ok(part)) = (std::env::var(CHILD), std::env::var(PART)) else { return };
    let addr = LinkAddr::UnixAbstract(name);
    run(async {
        let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
        let link = if part == "listen" {
            let mut listener = StreamLinks.bind(&addr, &reactor).await.unwrap();
            std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap()
        } else {
            loop {
                match StreamLinks.connect(&addr, &reactor).await {
                    Ok(link) => break link,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
                }
            }
        };
        let role = if part == "listen" { Role::Server } else { Role::Client };
        let mut end = try_end(link, role, &Setup::default(), None).await.unwrap();
        let mut kept = Vec::new();
        for seq in 1.. {
            if part == "keep" {
                kept.extend(end.recv().await.unwrap());
                end.send(data(seq, body(8, 0))).await.unwrap();
            } else {
                let len = [8, 4000, 200_000][seq as usize % 3];
                end.send(data(seq, body(len, 0))).await.unwrap();
                for frame in end.recv().await.unwrap() {
                    end.lane.rx.release(frame.payload.len());
                }
            }
        }
    });
}
