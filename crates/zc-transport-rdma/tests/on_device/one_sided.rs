//! One-sided operations over lanes: what the suite does not look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use zc::transport::{Access, OneSided, RemoteKey};
use zc::{Connection, Export, Fabric, RemoteFault, RemoteMemory};
use zc_transport_rdma::{AtomicScope, GATHER_BYTES, NOTIFY_WINDOW, RdmaOptions};

use super::engine::within;
use super::lane::{URI, fabric, pair};
use super::rig::device;

const EXPORT_BYTES: usize = 1 << 20;
const COUNTER_AT: u64 = 64;
const LOCK_AT: u64 = 128;
const GUARDED_AT: u64 = 192;

/// Memory of a server, and clients that may use all of it.
struct Lent {
    _fabric: Fabric,
    export: Export,
    clients: Vec<Lease>,
}

struct Lease {
    client: Connection,
    server: Connection,
    key: RemoteKey,
}

impl Lease {
    fn memory(&self) -> RemoteMemory {
        self.client.remote()
    }
}

async fn lent(clients: usize) -> Option<Lent> {
    lent_of(clients, EXPORT_BYTES).await
}

async fn lent_of(clients: usize, bytes: usize) -> Option<Lent> {
    drop(device()?);
    let (ours, theirs) = (fabric(RdmaOptions::default()), fabric(RdmaOptions::default()));
    let mut listener = theirs.listen(URI).await.unwrap();
    let export = theirs.export(bytes).unwrap();
    let mut all = Vec::new();
    for _ in 0..clients {
        let (client, server) = pair(&ours, &mut listener).await.unwrap();
        assert_eq!((client.caps().one_sided, server.caps().one_sided), (OneSided::Native, OneSided::Native));
        let key = export.grant(&server, Access::ALL, ..).unwrap();
        all.push(Lease { client, server, key });
    }
    Some(Lent { _fabric: theirs, export, clients: all })
}

/// The device's work alone: the owner's session layer hears of none of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_are_the_devices() {
    let Some(Lent { export, clients, .. }) = lent(1).await else { return };
    let (memory, key) = (clients[0].memory(), clients[0].key);
    within(async {
        for n in 0..50_u64 {
            memory.write(&key, 8, vec![n as u8; 3000]).await.unwrap();
            assert_eq!(memory.read(&key, 8, 3000).await.unwrap(), vec![n as u8; 3000][..]);
            assert_eq!(memory.fetch_add(&key, 0, 3).await.unwrap(), 3 * n);
        }
        // Longer than what the port transfers at once: several requests, and the same.
        let long: Vec<u8> = (0..EXPORT_BYTES - 16).map(|n| (n % 249) as u8).collect();
        memory.write(&key, 16, long.clone()).await.unwrap();
        let mut seen = vec![0; long.len()];
        export.read(16, &mut seen).unwrap();
        assert!(seen == long);
    })
    .await;
    assert_eq!(clients[0].server.stats().remote_operations, 0);
}

/// They keep their order, also where devices would not: a write must not overtake a read in front of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_under_way_keep_their_order() {
    let Some(Lent { export, clients, .. }) = lent(1).await else { return };
    let (memory, key) = (clients[0].memory(), clients[0].key);
    within(async {
        for round in 0..30_u64 {
            export.store_u64(COUNTER_AT, round).unwrap();
            let word = round.to_ne_bytes().to_vec();
            let next = (round + 1000).to_ne_bytes().to_vec();
            let long = vec![round as u8; 60_000];
            let (read, written, again, added, last, _) = tokio::join!(
                biased;
                memory.read(&key, COUNTER_AT, 8),
                memory.write(&key, COUNTER_AT, next.clone()),
                memory.read(&key, COUNTER_AT, 8),
                memory.fetch_add(&key, COUNTER_AT, 5),
                memory.read(&key, COUNTER_AT, 8),
                memory.write(&key, 4096, long),
            );
            written.unwrap();
            assert_eq!(read.unwrap(), word[..], "what was there before the write");
            assert_eq!(again.unwrap(), next[..]);
            assert_eq!(added.unwrap(), round + 1000);
            assert_eq!(last.unwrap(), (round + 1005).to_ne_bytes()[..]);
        }
        // More than may be under way.
        let all = (0..300_u64).map(|n| {
            let memory = memory.clone();
            async move { memory.fetch_add(&key, COUNTER_AT, if n == 0 { 0 } else { 1 }).await.unwrap() }
        });
        let before = export.load_u64(COUNTER_AT).unwrap();
        let seen = futures::future::join_all(all).await;
        let expected: Vec<u64> = std::iter::once(before).chain((0..299).map(|n| before + n)).collect();
        assert_eq!(seen, expected, "in the order in which they were asked for");
    })
    .await;
}

/// Clients and the owner count in one word; and change another one that a lock guards, with steps that are no atomics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_clients_count_exactly_and_a_lock_excludes() {
    const EACH: u64 = 150;
    let Some(Lent { export, clients, .. }) = lent(4).await else { return };
    // On this device the owner's processor would lose counts, or have its own lost.
    assert_eq!(device().unwrap().limits().unwrap().atomics, AtomicScope::Device);
    let export = Arc::new(export);
    let tasks: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(number, lease)| {
            let (memory, key, own) = (lease.memory(), lease.key, number as u64 + 1);
            tokio::spawn(async move {
                for _ in 0..EACH {
                    memory.fetch_add(&key, COUNTER_AT, own).await.unwrap();
                    while memory.compare_swap(&key, LOCK_AT, 0, own).await.unwrap() != 0 {
                        tokio::task::yield_now().await;
                    }
                    let seen = memory.read(&key, GUARDED_AT, 8).await.unwrap();
                    let seen = u64::from_ne_bytes(seen.as_contiguous().unwrap().try_into().unwrap());
                    memory.write(&key, GUARDED_AT, (seen + 1).to_ne_bytes().to_vec()).await.unwrap();
                    assert_eq!(memory.compare_swap(&key, LOCK_AT, own, 0).await.unwrap(), own, "it is ours");
                }
            })
        })
        .collect();
    let owner = {
        let export = export.clone();
        tokio::task::spawn_blocking(move || {
            for _ in 0..EACH {
                export.fetch_add(COUNTER_AT, 100).unwrap();
                while export.compare_swap(LOCK_AT, 0, 99).unwrap() != 0 {
                    std::thread::yield_now();
                }
                let seen = export.load_u64(GUARDED_AT).unwrap();
                export.store_u64(GUARDED_AT, seen + 1).unwrap();
                assert_eq!(export.compare_swap(LOCK_AT, 99, 0).unwrap(), 99);
            }
        })
    };
    within(async {
        for task in tasks {
            task.await.unwrap();
        }
        owner.await.unwrap();
    })
    .await;
    assert_eq!(export.load_u64(COUNTER_AT).unwrap(), EACH * (1 + 2 + 3 + 4 + 100));
    assert_eq!(export.load_u64(GUARDED_AT).unwrap(), EACH * 5);
}

/// Work requests of which only the last one has an end that anybody hears of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_of_more_requests_than_the_queue_pair_takes() {
    const BYTES: usize = 20 << 20;
    assert!(BYTES > RdmaOptions::default().send_depth as usize * GATHER_BYTES);
    let Some(Lent { export, clients, .. }) = lent_of(1, BYTES).await else { return };
    let (memory, key) = (clients[0].memory(), clients[0].key);
    // Of no pool: it goes in copies of that length.
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at / 4096 + at % 251) as u8).collect();
    within(memory.write(&key, 0, bytes.clone())).await.unwrap();
    let mut seen = vec![0; BYTES];
    export.read(0, &mut seen).unwrap();
    assert!(seen == bytes, "not what was written");
}

/// What the device refuses ends that operation alone. Others of the connection that were behind it go on, and messages never stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_ends_harms_nothing_but_its_own_operations() {
    let Some(Lent { export, mut clients, .. }) = lent(1).await else { return };
    let Lease { client, server, key: good } = &mut clients[0];
    let memory = client.remote();
    let mut counted = 0;
    for round in 0..10_u64 {
        let bad = export.grant(server, Access::WRITE, 4096..8192).unwrap();
        let writing = {
            let (memory, mut writes) = (memory.clone(), 0);
            tokio::spawn(async move {
                loop {
                    match memory.write(&bad, 0, vec![1; 4096]).await {
                        Ok(()) => writes += 1,
                        Err(error) => return (error, writes),
                    }
                }
            })
        };
        // Several at a time, until after the refusal: it finds some of them behind it.
        let is_over = Arc::new(AtomicBool::new(false));
        let counting = {
            let (memory, key, is_over) = (memory.clone(), *good, is_over.clone());
            tokio::spawn(async move {
                let mut count = 0_u64;
                while !is_over.load(Relaxed) {
                    let (one, read, written, other) = tokio::join!(
                        memory.fetch_add(&key, COUNTER_AT, 1),
                        memory.read(&key, 0, 32),
                        memory.write(&key, 8192, vec![5; 6000]),
                        memory.fetch_add(&key, COUNTER_AT, 1),
                    );
                    written.unwrap();
                    assert_eq!(read.unwrap().len(), 32);
                    assert_eq!(one.unwrap() + 1, other.unwrap(), "nobody else counts");
                    count += 2;
                }
                count
            })
        };
        tokio::time::sleep(Duration::from_millis(10 + round)).await;
        export.revoke(&bad).unwrap();
        export.write(4096, &[7; 4096]).unwrap();
        let (error, _) = within(writing).await.unwrap();
        assert!(matches!(error.fault, RemoteFault::Revoked), "{error}");
        is_over.store(true, Relaxed);
        counted += within(counting).await.unwrap();
        let mut seen = [0; 4096];
        export.read(4096, &mut seen).unwrap();
        assert_eq!(seen, [7; 4096], "written after it was revoked");
        client.send(&b"still here"[..]).await.unwrap();
        assert_eq!(within(server.recv()).await.unwrap().unwrap(), b"still here"[..]);
    }
    assert_eq!(export.load_u64(COUNTER_AT).unwrap(), counted, "each was done once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_ends_by_itself() {
    let Some(Lent { export, clients, .. }) = lent(1).await else { return };
    let Lease { client, server, key } = &clients[0];
    let (memory, from) = (client.remote(), Instant::now());
    let lasts = Duration::from_millis(150);
    let short = export.grant_for(server, Access::WRITE, ..4096, lasts).unwrap();
    let error = within(async {
        loop {
            if let Err(error) = memory.write(&short, 0, vec![1; 4096]).await {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(error.fault, RemoteFault::Revoked), "{error}");
    assert!(from.elapsed() >= lasts, "not before its time");
    export.write(0, &[2; 4096]).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(within(memory.read(key, 0, 4096)).await.unwrap(), [2; 4096][..], "the other key goes on");
}

/// Whoever is told too much of says so, and the writer can go on when it has been taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_are_bounded_and_told_in_order() {
    let Some(Lent { export, clients, .. }) = lent(1).await else { return };
    let (memory, key) = (clients[0].memory(), clients[0].key);
    let most = NOTIFY_WINDOW + zc::MAX_NOTIFICATIONS_PER_CONNECTION as u64;
    within(async {
        let mut told = 0_u64;
        let busy = loop {
            match memory.write_with_notify(&key, 0, told.to_ne_bytes().to_vec(), told).await {
                Ok(()) => told += 1,
                Err(error) => break error,
            }
            assert!(told <= most, "there is no end to it");
        };
        assert!(matches!(busy.fault, RemoteFault::Busy), "{busy}");
        assert!(told >= NOTIFY_WINDOW, "{told}");
        assert_eq!(export.load_u64(0).unwrap(), told - 1, "what was refused has written nothing");
        for n in 0..told {
            assert_eq!(export.notified().await.value, n);
        }
        // There is room again, as soon as the writer hears of it.
        while memory.write_with_notify(&key, 0, vec![9; 8], 1 << 40).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(export.notified().await.value, 1 << 40);
    })
    .await;
}

/// Both sides lend and use at once, over queue pairs that know nothing of each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_lend_to_each_other() {
    let Some(Lent { export, clients, _fabric: theirs }) = lent(1).await else { return };
    let Lease { client, server, key } = &clients[0];
    let back = theirs.export(4096).unwrap();
    let to_server = back.grant(client, Access::ALL, ..).unwrap();
    let (forth, theirs) = (client.remote(), server.remote());
    within(async {
        for n in 0..50_u64 {
            let (a, b) = tokio::join!(forth.fetch_add(key, 0, 1), theirs.fetch_add(&to_server, 0, 2));
            assert_eq!((a.unwrap(), b.unwrap()), (n, 2 * n));
        }
        // What one side does wrong is no business of the other's operations.
        let bad = export.grant(server, Access::READ, ..).unwrap();
        forth.read(&bad, 0, 8).await.unwrap();
        export.revoke(&bad).unwrap();
        let (refused, done) = tokio::join!(forth.read(&bad, 0, 8), theirs.fetch_add(&to_server, 0, 2));
        assert!(matches!(refused.unwrap_err().fault, RemoteFault::Revoked));
        assert_eq!(done.unwrap(), 100);
    })
    .await;
}

/// Operations that are under way when a connection ends say so, and the owner's memory is the owner's again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ends_takes_the_access_with_it() {
    let Some(Lent { export, mut clients, .. }) = lent(1).await else { return };
    let Lease { client, server, key } = clients.remove(0);
    let memory = client.remote();
    let writing = tokio::spawn(async move {
        loop {
            if let Err(error) = memory.write(&key, 0, vec![5; 100_000]).await {
                return error;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    drop(server);
    let error = within(writing).await.unwrap();
    assert!(matches!(error.fault, RemoteFault::Connection(_) | RemoteFault::Revoked), "{error}");
    within(client.closed()).await;
    export.write(0, &[1; 4096]).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut seen = [0; 4096];
    export.read(0, &mut seen).unwrap();
    assert_eq!(seen, [1; 4096]);
}
