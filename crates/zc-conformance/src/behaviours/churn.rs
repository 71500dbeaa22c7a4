//! Connections come and go; nothing of them stays.

use std::time::Duration;

use zc::{Fabric, Listener};

use crate::data::{ask, echo};
use crate::peer::{Part, Peer};
use crate::run::{Verdict, nothing_is_left, tasks};
use crate::setup::Bench;

/// Connections at a time.
const AT_ONCE: usize = 8;
/// Connections after which caches, tables and lazily opened descriptors are there.
const WARM_UP: usize = 200;
/// All connections come in so many batches.
const BATCHES: usize = 3;
/// What grew in all of these is watched for so many in all: memory that is used for the first time comes to an end.
const MOST_BATCHES: usize = 10;
/// Growth of resident memory in a batch that is no leak: 1 KiB per connection would be more.
const MAX_GROWTH_BYTES: u64 = 512 << 10;

/// In a process of its own, so that no other test's descriptors are counted.
pub async fn thousands_of_connections_leave_nothing(bench: &Bench) -> Verdict {
    let mut process = Peer::start(bench, Part::Churn, "-");
    let status = process.ended().await;
    assert!(status.success(), "{status}; its standard error says why");
    Ok(())
}

/// What that process does.
pub(crate) async fn churn(bench: &Bench) {
    let mut listener = bench.listen(bench.server()).await;
    // The listener's own.
    let listening = tasks();
    let fabric = bench.client().build().unwrap();
    open_and_close(&fabric, &mut listener, WARM_UP).await;
    nothing_is_left(bench, listening).await;
    let descriptors = open_descriptors();
    let mut growth = Vec::new();
    while growth.len() < BATCHES
        || growth.len() < MOST_BATCHES && growth.iter().all(|bytes| *bytes > MAX_GROWTH_BYTES)
    {
        let resident = resident_bytes();
        open_and_close(&fabric, &mut listener, bench.connections() / BATCHES).await;
        nothing_is_left(bench, listening).await;
        growth.push(resident_bytes().saturating_sub(resident));
    }
    assert_eq!(listener.failed_handshakes(), 0);
    // The kernel may take a moment to close what a task has dropped.
    for _ in 0..1000 {
        if open_descriptors() <= descriptors {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(open_descriptors() <= descriptors, "{} descriptors, {descriptors} before", open_descriptors());
    // A leak grows every time.
    assert!(growth.iter().any(|bytes| *bytes <= MAX_GROWTH_BYTES), "bytes more each time: {growth:?}");
}

async fn open_and_close(fabric: &Fabric, listener: &mut Listener, count: usize) {
    let uri = listener.local_uri().to_string();
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..AT_ONCE {
        let (fabric, uri) = (fabric.clone(), uri.clone());
        let share = count / AT_ONCE + usize::from(n < count % AT_ONCE);
        clients.spawn(async move {
            for n in 0..share {
                let mut connection = fabric.connect(&uri).await.unwrap();
                ask(&mut connection, n as u32, 600).await;
            }
        });
    }
    let mut servers = tokio::task::JoinSet::new();
    for _ in 0..count {
        servers.spawn(echo(listener.accept().await.unwrap()));
        while let Some(ended) = servers.try_join_next() {
            ended.unwrap();
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    while let Some(ended) = servers.join_next().await {
        ended.unwrap();
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}
