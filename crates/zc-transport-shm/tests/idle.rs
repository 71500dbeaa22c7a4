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

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use common::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zc_core::memory::{BufPool, MemoryGroup};
use zc_core::transport::*;

const PAIRS: usize = 1000;
/// Memory, two bells and the link of each end, and what each has of the other.
const DESCRIPTORS_OF_A_PAIR: u64 = 12;
/// What the process needs besides.
const OTHER_DESCRIPTORS: u64 = 100;
/// Both ends of a connection together.
const MOST_BYTES: usize = 256 << 10;

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

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
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
