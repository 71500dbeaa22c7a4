//! Many connections that carry nothing: what they take, that they cost no time, and that all comes back.
#![cfg(not(loom))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs
)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::process::descriptors;
use common::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zc_core::memory::{Backing, BufPool, MemoryGroup};
use zc_core::transport::*;

const PAIRS: usize = 1000;
/// Memory, two bells and the link of each end, and what each has of the other.
const DESCRIPTORS_OF_A_PAIR: u64 = 12;
/// What the process needs besides.
const OTHER_DESCRIPTORS: u64 = 100;
/// Both ends of a connection together.
const MOST_BYTES: usize = 256 << 10;

/// Descriptors and memory are the whole process's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Bytes of memory that are ours, pages that several mappings share counted once.
fn proportional_bytes() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find(|l| l.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// As many pairs as the limit of descriptors allows, which is raised as far as it goes.
fn pairs() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(OTHER_DESCRIPTORS);
    let pairs = PAIRS.min((allowed / DESCRIPTORS_OF_A_PAIR) as usize);
    if pairs < PAIRS {
        println!("only {pairs} connections: RLIMIT_NOFILE allows no more");
    }
    pairs
}

#[test]
fn a_thousand_idle_connections() {
    let _alone = alone();
    let count = pairs();
    run(async {
        let setup = Setup { pool_bytes: 1 << 20, ..Setup::default() };
        // They are also in a group, of which nothing is sent.
        let group = MemoryGroup::new(BufPool::builder().max_bytes(1 << 20));
        drop(pair(&setup).await);
        let (fds, bytes) = (descriptors(), proportional_bytes());
        let mut all = Vec::new();
        for _ in 0..count {
            let (mut a, mut b) = pair(&setup).await;
            for (seq, len) in [(1, 60), (2, 4000)] {
                a.send(data(seq, body(len, 1))).await.unwrap();
                for frame in b.recv().await.unwrap() {
                    b.lane.rx.release(frame.payload.len());
                }
            }
            a.lane.tx.join_group(&group).unwrap();
            all.push((a, b));
        }
        let each = proportional_bytes().saturating_sub(bytes) / count;
        println!("{each} bytes and {} descriptors per connection, both ends", (descriptors() - fds) / count);
        assert!(each < MOST_BYTES, "{each} bytes");
        sleeps(&mut all).await;
        // And all of them still work.
        for (a, b) in &mut all {
            b.send(data(1, body(60, 2))).await.unwrap();
            assert!(a.recv().await.unwrap()[0].payload == body(60, 2)[..]);
        }
        drop(all);
        assert_eq!(descriptors(), fds, "descriptors are left");
    });
}

/// Once all have gone to sleep, nobody is woken any more, and nobody asks for a timer.
async fn sleeps(all: &mut [(End, End)]) {
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    loop {
        woken.0.store(0, Ordering::SeqCst);
        for end in all.iter_mut().flat_map(|(a, b)| [a, b]) {
            let drive = end.lane.drive.as_mut().unwrap();
            assert_eq!(drive.poll_drive(&mut cx, std::time::Instant::now()).unwrap(), None, "a timer");
            assert!(end.lane.tx.poll_flush(&mut cx).is_ready());
            assert!(end.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
        }
        // Bells that rang before are heard of now.
        tokio::time::sleep(Duration::from_millis(100)).await;
        if woken.0.load(Ordering::SeqCst) == 0 {
            break;
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(woken.0.load(Ordering::SeqCst), 0, "an idle connection woke");
}

/// As a connection that is served: whoever is woken looks at everything.
async fn idles(mut end: End, looks: Arc<AtomicUsize>) {
    let look = |cx: &mut Context<'_>| {
        looks.fetch_add(1, Ordering::SeqCst);
        end.drive(cx);
        assert!(end.lane.tx.poll_flush(cx).is_ready());
        assert!(end.lane.rx.poll_recv(cx, &mut Batch::new()).is_pending());
        Poll::<()>::Pending
    };
    std::future::poll_fn(look).await;
}

/// Each keeps a buffer of the other's group. Both ask to be rung when it comes back, and have nothing to ring for.
#[test]
fn a_loan_each_way_wakes_nobody() {
    let _alone = alone();
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let group = || MemoryGroup::new(BufPool::builder().backing(Backing::Memfd).max_bytes(1 << 20));
        let groups = [group(), group()];
        let mut kept = Vec::new();
        for (at, group) in groups.iter().enumerate() {
            let (from, to) = if at == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
            from.lane.tx.join_group(group).unwrap();
            let mut buf = group.pool().try_alloc(50_000).unwrap();
            buf.put_slice(&body(50_000, 1));
            from.send(data(1, buf.freeze())).await.unwrap();
            kept.extend(to.recv().await.unwrap());
            to.lane.rx.release(50_000);
            assert_eq!(from.ledger.snapshot().copied_bytes() + to.ledger.snapshot().copied_bytes(), 0);
        }
        let looks = Arc::new(AtomicUsize::new(0));
        let tasks = [a, b].map(|end| tokio::spawn(idles(end, looks.clone())));
        // What rang before is heard of; then there is nothing more, or this never ends.
        loop {
            let before = looks.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(200)).await;
            if looks.load(Ordering::SeqCst) == before && before >= 2 {
                break;
            }
        }
        assert!(groups.iter().all(|group| group.pool().stats().in_use_bytes > 0), "they are kept");
        drop(kept);
        // They do hear of what comes back.
        while groups.iter().any(|group| group.pool().stats().in_use_bytes > 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for task in tasks {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled(), "a look failed");
        }
    });
}
