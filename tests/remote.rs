//! One-sided operations: what they do, what they refuse, and what is known when they fail.

#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use zc::testing::{FaultPlan, FaultTransport, fabric_over, mem_transport, pair};
use zc::transport::OneSided;
use zc::wire::{MAX_REMOTE_CHUNK, MAX_REMOTE_RECORDS};
use zc::{
    Access, Connection, ConnectionError, Delivery, Export, Fabric, GrantError, MAX_GRANTS,
    MAX_NOTIFICATIONS_PER_CONNECTION, MAX_REMOTE_READ, Message, RemoteError, RemoteFault, RemoteKey,
    RemoteMemory,
};

#[path = "remote/native.rs"]
mod native;
#[path = "remote/peers.rs"]
mod peers;

const GUARD: Duration = Duration::from_secs(120);
const CHUNK: usize = MAX_REMOTE_CHUNK;

async fn guarded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, test).await.expect("it hangs")
}

async fn connected(uri: &str) -> (Fabric, Connection, Connection) {
    let fabric = Fabric::auto().unwrap();
    let mut listener = fabric.listen(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    let (client, server) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
    (fabric, client, server)
}

/// An export of the server's, with a key for the client.
async fn exported(len: usize, access: Access) -> (Export, RemoteKey, RemoteMemory, Connection, Connection) {
    let fabric = Fabric::auto().unwrap();
    let (client, server) = pair(&fabric).await.unwrap();
    let export = fabric.export(len).unwrap();
    let key = export.grant(&server, access, ..).unwrap();
    (export, key, client.remote(), client, server)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + seed) as u8).collect()
}

fn flat(message: &Message) -> Vec<u8> {
    message.segments().iter().flat_map(|segment| segment.iter().copied()).collect()
}

fn content(export: &Export) -> Vec<u8> {
    let mut all = vec![0; export.len() as usize];
    export.read(0, &mut all).unwrap();
    all
}

#[track_caller]
fn refused(result: Result<impl Sized, RemoteError>, want: fn(&RemoteFault) -> bool) {
    let Err(error) = result else { panic!("it was not refused") };
    assert!(want(&error.fault), "{error}");
    assert_eq!(error.delivery(), Delivery::NotSent, "{error}");
    assert!(!error.may_have_happened());
}

async fn everything_works(uri: &str, mode: OneSided) {
    let (fabric, mut client, server) = connected(uri).await;
    assert_eq!((client.caps().one_sided, server.caps().one_sided), (mode, mode));
    let export = fabric.export(MAX_REMOTE_READ + 100).unwrap();
    let key = export.grant(&server, Access::ALL, ..).unwrap();
    server.send(key.to_bytes()).await.unwrap();
    let message = client.recv().await.unwrap().unwrap();
    let key = RemoteKey::from_bytes(message.as_contiguous().unwrap()).unwrap();
    let remote = client.remote();
    let counts_it = if mode == OneSided::Native { &client } else { &server };
    let before = counts_it.ledger();
    for (i, len) in
        [0, 1, 7, 8, 9, 513, CHUNK - 1, CHUNK, CHUNK + 1, 1 << 20, MAX_REMOTE_READ].into_iter().enumerate()
    {
        let (bytes, offset) = (pattern(len, i), i as u64);
        remote.write(&key, offset, bytes.clone()).await.unwrap();
        let mut seen = vec![0; len];
        export.read(offset, &mut seen).unwrap();
        assert!(seen == bytes, "{len} bytes written");
        assert!(flat(&remote.read(&key, offset, len).await.unwrap()) == bytes, "{len} bytes read");
    }
    let copied = counts_it.ledger().since(&before).copied_at(zc::memory::CopyPlace::Remote);
    assert!(
        copied >= 2 * (MAX_REMOTE_READ as u64 + (1 << 20)),
        "the copies are counted where they are made: {copied}"
    );
    // Longer than the window, and of more segments than a record holds.
    let mut rope = Message::new();
    (0..64).for_each(|i| rope.push(pattern(if i % 2 == 0 { 3 } else { CHUNK }, i)).unwrap());
    let whole = flat(&rope);
    remote.write(&key, 5, rope).await.unwrap();
    assert!(content(&export)[5..5 + whole.len()] == whole[..]);

    export.store_u64(64, 40).unwrap();
    assert_eq!(remote.fetch_add(&key, 64, 2).await.unwrap(), 40);
    assert_eq!(remote.compare_swap(&key, 64, 41, 1).await.unwrap(), 42);
    assert_eq!(remote.compare_swap(&key, 64, 42, u64::MAX).await.unwrap(), 42);
    assert_eq!(export.fetch_add(64, 1).unwrap(), u64::MAX);
    assert_eq!(remote.fetch_add(&key, 64, 0).await.unwrap(), 0);

    let bytes = pattern(3 * CHUNK, 9);
    assert!(export.try_notified().is_none());
    let (told, written) =
        tokio::join!(export.notified(), remote.write_with_notify(&key, 1, bytes.clone(), 77));
    written.unwrap();
    assert_eq!((told.key, told.value), (key, 77));
    assert!(content(&export)[1..1 + bytes.len()] == bytes[..], "what was notified of is there");
    remote.write_with_notify(&key, 0, Message::new(), 78).await.unwrap();
    // By records it is there when the answer is; otherwise when the owner's task has come to it.
    let told = if mode == OneSided::Native { Some(export.notified().await) } else { export.try_notified() };
    assert_eq!(told.unwrap().value, 78);
    assert!(export.try_notified().is_none());

    // Afterwards the connection carries messages as before.
    client.send(vec![1; 100_000]).await.unwrap();
    let mut server = server;
    assert_eq!(server.recv().await.unwrap().unwrap().len(), 100_000);
}

#[tokio::test]
async fn everything_works_over_tcp() {
    guarded(everything_works("zc+tcp://127.0.0.1:0", OneSided::Emulated)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_over_unix_sockets() {
    let dir = tempfile::Builder::new().prefix("zc-remote-").tempdir().unwrap();
    // Where descriptors can travel, memory is shared.
    let mode = if cfg!(feature = "shm") { OneSided::Native } else { OneSided::Emulated };
    guarded(everything_works(&format!("zc+unix://{}/socket", dir.path().display()), mode)).await;
}

#[tokio::test]
async fn everything_works_in_memory() {
    guarded(everything_works("zc+mem://remote-everything", OneSided::Emulated)).await;
}

#[tokio::test]
async fn what_is_not_granted_is_refused_and_changes_nothing() {
    let fabric = Fabric::auto().unwrap();
    let (client, server) = pair(&fabric).await.unwrap();
    let export = fabric.export(4 * CHUNK).unwrap();
    export.write(0, &pattern(4 * CHUNK, 3)).unwrap();
    let before = content(&export);
    let remote = client.remote();
    let grant = |access| export.grant(&server, access, 64..3 * CHUNK as u64).unwrap();
    let (read, write, atomic) = (grant(Access::READ), grant(Access::WRITE), grant(Access::ATOMIC));
    let size = 3 * CHUNK - 64;

    let denied = |fault: &RemoteFault| matches!(fault, RemoteFault::Denied);
    refused(remote.write(&read, 0, vec![1]).await, denied);
    refused(remote.fetch_add(&read, 0, 1).await, denied);
    refused(remote.read(&write, 0, 1).await, denied);
    refused(remote.compare_swap(&write, 0, 1, 2).await, denied);
    refused(remote.read(&atomic, 0, 1).await, denied);
    refused(remote.write_with_notify(&atomic, 0, vec![1], 1).await, denied);

    let outside = |fault: &RemoteFault| matches!(fault, RemoteFault::OutOfBounds);
    refused(remote.read(&read, size as u64, 1).await, outside);
    refused(remote.read(&read, u64::MAX, 2).await, outside);
    refused(remote.write(&write, size as u64 - 3, vec![1; 4]).await, outside);
    // Its first records would fit.
    refused(remote.write(&write, 0, vec![1; size + 1]).await, outside);
    refused(remote.write_with_notify(&write, 8, vec![1; size], 5).await, outside);
    refused(remote.fetch_add(&atomic, size as u64, 1).await, outside);
    refused(remote.fetch_add(&atomic, u64::MAX - 7, 1).await, outside);

    refused(remote.fetch_add(&atomic, 4, 1).await, |fault| matches!(fault, RemoteFault::Misaligned));
    let too_large = remote.read(&read, 0, MAX_REMOTE_READ + 1).await;
    refused(too_large, |fault| matches!(fault, RemoteFault::TooLarge { max: MAX_REMOTE_READ, .. }));

    let revoked = |fault: &RemoteFault| matches!(fault, RemoteFault::Revoked);
    for key in [&[9; 16][..], &[9; 32], &[9]] {
        refused(remote.read(&RemoteKey::from_bytes(key).unwrap(), 0, 1).await, revoked);
    }
    // A key of another connection, and the right key from the wrong side.
    let (other_client, other_server) = pair(&fabric).await.unwrap();
    refused(other_client.remote().read(&read, 0, 1).await, revoked);
    refused(other_server.remote().read(&read, 0, 1).await, revoked);
    refused(server.remote().read(&read, 0, 1).await, revoked);
    assert_eq!(content(&export), before);
    assert!(export.try_notified().is_none());
    assert_eq!(flat(&remote.read(&read, 0, 10).await.unwrap()), before[64..74], "and the right one works");

    for range in [8..8, 8..1 << 40, 4..16] {
        let error = export.grant(&server, Access::READ, range).unwrap_err();
        assert!(matches!(error, GrantError::BadRange { .. }), "{error}");
    }
}

#[tokio::test]
async fn revoking_and_dropping_end_access() {
    let (export, key, remote, _client, server) = exported(4096, Access::ALL).await;
    let kept = export.grant(&server, Access::READ, ..).unwrap();
    remote.write(&key, 0, vec![1; 8]).await.unwrap();
    export.revoke(&key).unwrap();
    export.revoke(&key).unwrap();
    let revoked = |fault: &RemoteFault| matches!(fault, RemoteFault::Revoked);
    refused(remote.write(&key, 0, vec![2; 8]).await, revoked);
    assert_eq!(flat(&remote.read(&kept, 0, 8).await.unwrap()), [1; 8]);
    drop(export);
    refused(remote.read(&kept, 0, 8).await, revoked);
}

#[tokio::test]
async fn a_write_that_is_revoked_under_way_stops_there_and_says_so() {
    // More than the window: it can't all be on its way before the future is polled again.
    let len = 3 * MAX_REMOTE_RECORDS * CHUNK;
    let (export, key, remote, client, _server) = exported(len, Access::WRITE).await;
    guarded(async {
        let write = remote.write(&key, 0, vec![1; len]);
        tokio::pin!(write);
        let mut before = Vec::new();
        // Until it has begun and is not done.
        while !before.contains(&1) {
            assert!(futures::poll!(write.as_mut()).is_pending());
            tokio::task::yield_now().await;
            before = content(&export);
        }
        assert!(before.contains(&0), "it is under way");
        export.revoke(&key).unwrap();
        let error = write.await.unwrap_err();
        assert!(matches!(error.fault, RemoteFault::Revoked), "{error}");
        assert!(error.may_have_happened(), "part of it is written");
        assert!(content(&export) == before, "nothing is touched after revoke has returned");
    })
    .await;
    drop(client);
}

#[tokio::test]
async fn grants_are_bounded_and_end_with_the_connection() {
    let fabric = Fabric::auto().unwrap();
    let (client, server) = pair(&fabric).await.unwrap();
    let export = fabric.export(64).unwrap();
    let keys: Vec<_> = (0..MAX_GRANTS).map(|_| export.grant(&server, Access::READ, ..).unwrap()).collect();
    let error = export.grant(&server, Access::READ, ..).unwrap_err();
    assert!(matches!(error, GrantError::TooMany { max: MAX_GRANTS }), "{error}");
    export.revoke(&keys[7]).unwrap();
    export.grant(&server, Access::READ, ..).unwrap();

    let remote = client.remote();
    client.close(zc::CloseCode::NORMAL, "").await;
    let error = remote.read(&keys[0], 0, 1).await.unwrap_err();
    assert!(matches!(error.fault, RemoteFault::Connection(ConnectionError::ClosedHere)), "{error}");
    assert_eq!(error.delivery(), Delivery::NotSent);
    guarded(async {
        let mut server = server;
        while server.recv().await.unwrap().is_some() {}
        // Its task ends soon after.
        while !matches!(export.grant(&server, Access::READ, ..), Err(GrantError::Ended)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn notifications_are_bounded_per_connection() {
    let (export, key, remote, _client, server) = exported(64, Access::ALL).await;
    let second = export.grant(&server, Access::WRITE, ..).unwrap();
    // Another connection.
    let (others, theirs) = pair(&Fabric::auto().unwrap()).await.unwrap();
    let (other, others) = (export.grant(&theirs, Access::WRITE, ..).unwrap(), others.remote());
    for value in 0..MAX_NOTIFICATIONS_PER_CONNECTION as u64 {
        remote.write_with_notify(&key, 0, vec![1], value).await.unwrap();
    }
    let busy = |fault: &RemoteFault| matches!(fault, RemoteFault::Busy);
    refused(remote.write_with_notify(&key, 0, vec![2], 0).await, busy);
    refused(remote.write_with_notify(&second, 0, vec![2], 0).await, busy);
    // Nor does a fresh key help.
    export.revoke(&second).unwrap();
    let third = export.grant(&server, Access::WRITE, ..).unwrap();
    refused(remote.write_with_notify(&third, 0, vec![2], 0).await, busy);
    assert_eq!(content(&export)[0], 1, "nothing was written");
    remote.write(&key, 1, vec![3]).await.unwrap();
    others.write_with_notify(&other, 0, vec![4], 99).await.unwrap();
    for value in 0..MAX_NOTIFICATIONS_PER_CONNECTION as u64 {
        assert_eq!(export.notified().await.value, value, "in order");
    }
    let told = export.notified().await;
    assert_eq!((told.key, told.value), (other, 99));
    remote.write_with_notify(&key, 0, vec![2], 100).await.unwrap();
    assert_eq!(export.try_notified().unwrap().value, 100);
}

#[tokio::test]
async fn every_waiting_task_may_take_a_notification() {
    let (export, key, remote, _client, _server) = exported(64, Access::ALL).await;
    let one = export.notified();
    let mut one = Box::pin(one);
    let mut other = Box::pin(export.notified());
    assert!(futures::poll!(one.as_mut()).is_pending());
    assert!(futures::poll!(other.as_mut()).is_pending());
    remote.write_with_notify(&key, 0, vec![1], 5).await.unwrap();
    // The one that waits longest goes away with its wake-up.
    drop(one);
    assert_eq!(guarded(other).await.value, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn atomics_of_both_sides_add_up_and_a_lock_excludes() {
    const ROUNDS: u64 = 400;
    guarded(async {
        let fabric = Fabric::auto().unwrap();
        let export = Arc::new(fabric.export(64).unwrap());
        let mut tasks = Vec::new();
        let mut ends = Vec::new();
        for _ in 0..3 {
            let (client, server) = pair(&fabric).await.unwrap();
            let key = export.grant(&server, Access::ALL, ..).unwrap();
            let remote = client.remote();
            ends.push((client, server));
            tasks.push(tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    remote.fetch_add(&key, 0, 1).await.unwrap();
                    while remote.compare_swap(&key, 8, 0, 1).await.unwrap() != 0 {}
                    // Not atomic: the lock keeps the others out.
                    let seen = remote.read(&key, 16, 8).await.unwrap();
                    let seen = u64::from_ne_bytes(*flat(&seen).first_chunk().unwrap());
                    remote.write(&key, 16, Vec::from((seen + 1).to_ne_bytes())).await.unwrap();
                    assert_eq!(remote.compare_swap(&key, 8, 1, 0).await.unwrap(), 1);
                }
            }));
        }
        let owner = export.clone();
        let own = tokio::task::spawn_blocking(move || {
            for _ in 0..ROUNDS {
                owner.fetch_add(0, 1).unwrap();
                while owner.compare_swap(8, 0, 1).unwrap() != 0 {
                    std::thread::yield_now();
                }
                let seen = owner.load_u64(16).unwrap();
                owner.store_u64(16, seen + 1).unwrap();
                assert_eq!(owner.compare_swap(8, 1, 0).unwrap(), 1);
            }
        });
        for task in tasks {
            task.await.unwrap();
        }
        own.await.unwrap();
        assert_eq!(export.load_u64(0).unwrap(), 4 * ROUNDS);
        assert_eq!(export.load_u64(16).unwrap(), 4 * ROUNDS);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_and_many_operations_go_on_beside_each_other() {
    guarded(async {
        let (fabric, client, mut server) = connected("zc+tcp://127.0.0.1:0").await;
        let export = fabric.export(16 << 20).unwrap();
        let key = export.grant(&server, Access::ALL, ..).unwrap();
        let back = {
            let other = fabric.export(1 << 20).unwrap();
            let key = other.grant(&client, Access::ALL, ..).unwrap();
            (other, key)
        };
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        // Far more than the window holds, in both directions.
        for i in 0..8u64 {
            let (remote, stop, served) = (client.remote(), stop.clone(), served.clone());
            tasks.push(tokio::spawn(async move {
                let bytes = pattern(1 << 20, i as usize);
                while !stop.load(Ordering::Relaxed) {
                    remote.write(&key, i << 20, bytes.clone()).await.unwrap();
                    assert!(flat(&remote.read(&key, i << 20, 1 << 20).await.unwrap()) == bytes);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        let (remote, back_key, stopped) = (server.remote(), back.1, stop.clone());
        tasks.push(tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                remote.fetch_add(&back_key, 0, 1).await.unwrap();
            }
        }));
        let sender = client.sender();
        let sending = tokio::spawn(async move {
            for n in 0..300u32 {
                let len = if n % 10 == 0 { 500_000 } else { 100 };
                sender.send(vec![n as u8; len]).await.unwrap();
            }
        });
        for n in 0..300u32 {
            let message = server.recv().await.unwrap().unwrap();
            assert!(
                message.segments().iter().all(|s| s.iter().all(|byte| *byte == n as u8)),
                "in order and whole"
            );
        }
        sending.await.unwrap();
        while served.load(Ordering::Relaxed) < 16 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.unwrap();
        }
        assert!(back.0.load_u64(0).unwrap() > 0);
    })
    .await;
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Polls up to `polls` times, each after a wake-up or after the others ran for a while; then drops it.
async fn poll_then_drop<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(flag.clone());
    for _ in 0..polls {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        for _ in 0..20 {
            tokio::task::yield_now().await;
            if flag.0.swap(false, Ordering::SeqCst) {
                break;
            }
        }
    }
    None
}

#[tokio::test]
async fn every_operation_may_be_dropped_at_every_point() {
    let len = 3 * MAX_REMOTE_RECORDS * CHUNK / 2;
    let (export, key, remote, client, _server) = exported(len, Access::ALL).await;
    guarded(async {
        let mut added = 0;
        for polls in 0..12 {
            // With the window free, and with it full of somebody else's write.
            for full in [false, true] {
                let other = remote.write(&key, 0, vec![polls as u8; len]);
                let mut other = Box::pin(other);
                if full {
                    assert!(futures::poll!(other.as_mut()).is_pending());
                }
                poll_then_drop(remote.read(&key, 0, 3 * CHUNK), polls).await;
                poll_then_drop(remote.write(&key, 64, vec![7; len - 64]), polls).await;
                poll_then_drop(remote.write_with_notify(&key, 0, vec![7; 5], 1), polls).await;
                poll_then_drop(remote.compare_swap(&key, 8, 1, 2), polls).await;
                poll_then_drop(export.notified(), polls).await;
                if full {
                    other.await.unwrap();
                }
                while export.try_notified().is_some() {}
                // The window is not stuck, and answers still belong to their questions.
                remote.write(&key, 32, vec![polls as u8; 8]).await.unwrap();
                assert_eq!(flat(&remote.read(&key, 32, 8).await.unwrap()), [polls as u8; 8]);
                let before = export.load_u64(0).unwrap();
                if poll_then_drop(remote.fetch_add(&key, 0, 1), polls).await.is_some() {
                    added += 1;
                    assert_eq!(export.load_u64(0).unwrap(), before.wrapping_add(1));
                }
            }
        }
        assert!(added > 0);
        assert_eq!(client.stats().awaited_sends, 0);
    })
    .await;
}

#[tokio::test]
async fn a_future_that_is_not_polled_holds_up_nobody() {
    let (_export, key, remote, _client, _server) = exported(CHUNK, Access::ALL).await;
    guarded(async {
        let mut kept: Vec<_> =
            (0..MAX_REMOTE_RECORDS).map(|_| Box::pin(remote.read(&key, 0, CHUNK))).collect();
        for future in &mut kept {
            assert!(futures::poll!(future.as_mut()).is_pending());
        }
        for n in 0..200 {
            assert_eq!(remote.fetch_add(&key, 0, 1).await.unwrap(), n);
        }
        for future in kept {
            assert_eq!(future.await.unwrap().len(), CHUNK);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_breaks_under_way_leaves_it_unknown() {
    let transport = FaultTransport::new(mem_transport(), FaultPlan::new(1));
    let switch = transport.switch();
    let fabric = fabric_over(Arc::new(transport)).build().unwrap();
    let (client, server) = pair(&fabric).await.unwrap();
    let export = fabric.export(64).unwrap();
    let key = export.grant(&server, Access::ALL, ..).unwrap();
    let remote = client.remote();
    remote.fetch_add(&key, 0, 1).await.unwrap();
    let mut under_way = Box::pin(remote.fetch_add(&key, 0, 1));
    assert!(futures::poll!(under_way.as_mut()).is_pending());
    switch.cut(&zc::transport::LaneError::PeerGone("pulled"));
    let error = under_way.await.unwrap_err();
    assert!(matches!(error.fault, RemoteFault::Connection(_)), "{error}");
    assert_eq!(error.delivery(), Delivery::Unknown);
    let error = remote.fetch_add(&key, 0, 1).await.unwrap_err();
    assert_eq!(error.delivery(), Delivery::NotSent, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_nothing_else_is_not_idle() {
    let mut options = zc::ConnectionOptions::default();
    options.idle = Some(Duration::from_secs(8));
    let fabric = Fabric::auto_builder().options(options).build().unwrap();
    let (client, server) = pair(&fabric).await.unwrap();
    let export = fabric.export(64).unwrap();
    let key = export.grant(&server, Access::ALL, ..).unwrap();
    let remote = client.remote();
    for n in 0..20 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(remote.fetch_add(&key, 0, 1).await.unwrap(), n);
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(remote.fetch_add(&key, 0, 1).await.is_err(), "now it was");
}
