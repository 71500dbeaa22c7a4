//! One-sided operations over shared memory: in the owner's memory itself, between processes too.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use zc::memory::CopyPlace;
use zc::transport::{Access, OneSided, RemoteKey};
use zc::{Connection, Export, Fabric, MAX_NOTIFICATIONS_PER_CONNECTION, Policy, RemoteFault};

/// Set in the other process: where to connect to.
const CHILD: &str = "ZC_SHM_REMOTE_CHILD";
const EXPORT_BYTES: usize = 2 << 20;
const READ_BYTES: usize = 1 << 20;
const ADDS: u64 = 1000;
/// The word in which both processes count.
const COUNTER_AT: u64 = READ_BYTES as u64;
/// Where the other process says what it found.
const SUM_AT: u64 = COUNTER_AT + 8;

fn run<F: Future>(future: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(Duration::from_secs(120), future).await.expect("hangs") })
}

fn name(test: &str) -> String {
    format!("zc+shm://remote-{test}-{}", std::process::id())
}

async fn pair(fabric: &Fabric, uri: &str) -> (Connection, Connection) {
    let mut listener = fabric.listen(uri).await.unwrap();
    let local = listener.local_uri().to_string();
    tokio::try_join!(fabric.connect(&local), listener.accept()).unwrap()
}

fn body(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31) ^ (i >> 9)) as u8).collect()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: the other process. It reads, adds, says so, and waits for the end.
#[test]
fn child() {
    let Ok(uri) = std::env::var(CHILD) else { return };
    run(async {
        let mut connection = Fabric::auto().unwrap().connect(&uri).await.unwrap();
        assert_eq!(connection.caps().one_sided, OneSided::Native);
        let message = connection.recv().await.unwrap().unwrap();
        let key = RemoteKey::from_bytes(message.as_contiguous().unwrap()).unwrap();
        let memory = connection.remote();
        let read = memory.read(&key, 0, READ_BYTES).await.unwrap();
        let read: Vec<u8> = read.segments().iter().flat_map(|part| part.iter().copied()).collect();
        for _ in 0..ADDS {
            memory.fetch_add(&key, COUNTER_AT, 1).await.unwrap();
        }
        memory.write_with_notify(&key, SUM_AT, Vec::from(sum(&read).to_ne_bytes()), 7).await.unwrap();
        while connection.recv().await.is_ok_and(|message| message.is_some()) {}
    });
}

#[test]
fn another_process_reads_and_counts_in_the_owners_memory() {
    run(async {
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen(&name("process")).await.unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child", "--nocapture"]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = Killed(child.env(CHILD, listener.local_uri().to_string()).spawn().unwrap());
        let connection = listener.accept().await.unwrap();
        let export = fabric.export(EXPORT_BYTES).unwrap();
        export.write(0, &body(READ_BYTES)).unwrap();
        let key = export.grant(&connection, Access::ALL, ..).unwrap();
        connection.send(key.to_bytes()).await.unwrap();
        for _ in 0..ADDS {
            export.fetch_add(COUNTER_AT, 1).unwrap();
        }
        let told = export.notified().await;
        assert_eq!((told.key, told.value), (key, 7));
        assert_eq!(export.load_u64(COUNTER_AT).unwrap(), 2 * ADDS);
        assert_eq!(export.load_u64(SUM_AT).unwrap(), sum(&body(READ_BYTES)));
        assert_eq!(connection.ledger().copied_at(CopyPlace::Remote), 0, "the owner did nothing");
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        // It may have died in the middle of anything: the memory is the owner's.
        export.revoke(&key).unwrap();
        assert_eq!(export.load_u64(COUNTER_AT).unwrap(), 2 * ADDS);
        export.store_u64(COUNTER_AT, 1).unwrap();
    });
}

fn seen(export: &Export, at: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    export.read(at, &mut out).unwrap();
    out
}

#[test]
fn revoked_memory_is_replaced_and_the_peer_knows_at_once() {
    run(async {
        let fabric = Fabric::auto().unwrap();
        let (client, server) = pair(&fabric, &name("revoke")).await;
        let export = fabric.export(100_000).unwrap();
        let (key, other) = (
            export.grant(&server, Access::ALL, ..).unwrap(),
            export.grant(&server, Access::READ, 8..).unwrap(),
        );
        let memory = client.remote();
        memory.write(&key, 0, body(100_000)).await.unwrap();
        memory.read(&other, 0, 8).await.unwrap();
        export.revoke(&key).unwrap();
        assert!(seen(&export, 0, 100_000) == body(100_000), "the owner has a copy");
        for key in [&key, &other] {
            let error = memory.read(key, 0, 8).await.unwrap_err();
            assert!(matches!(error.fault, RemoteFault::Revoked), "both were of the old memory: {error}");
        }
        let fresh = export.grant(&server, Access::ALL, ..).unwrap();
        assert_eq!(memory.fetch_add(&fresh, 8, 1).await.unwrap() + 1, export.load_u64(8).unwrap());
        // One that was never used costs nothing to revoke.
        let before = export.ledger();
        export.revoke(&export.grant(&server, Access::ALL, ..).unwrap()).unwrap();
        assert_eq!(export.ledger().since(&before).copied_bytes(), 0);
    });
}

#[test]
fn an_export_that_nobody_listens_to_makes_its_writers_busy_and_nobody_else() {
    run(async {
        let fabric = Fabric::auto().unwrap();
        let (mut client, server) = pair(&fabric, &name("busy")).await;
        let export = fabric.export(4096).unwrap();
        let key = export.grant(&server, Access::ALL, ..).unwrap();
        let memory = client.remote();
        let mut sent = 0;
        let error = loop {
            match memory.write_with_notify(&key, 0, vec![1; 8], sent).await {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error.fault, RemoteFault::Busy), "{error}");
        assert!(sent >= MAX_NOTIFICATIONS_PER_CONNECTION as u64, "{sent}");
        server.send(vec![1; 10]).await.unwrap();
        assert_eq!(client.recv().await.unwrap().unwrap().len(), 10);
        memory.fetch_add(&key, 8, 1).await.unwrap();
        for value in 0..sent {
            assert_eq!(export.notified().await.value, value);
        }
        assert!(export.try_notified().is_none());
        memory.write_with_notify(&key, 0, vec![1; 8], 9).await.unwrap();
        assert_eq!(export.notified().await.value, 9);
    });
}

/// A message that is sent after the write finds the notification, once the key is revoked.
#[test]
fn what_was_told_is_there_when_the_key_is_revoked() {
    run(async {
        let fabric = Fabric::auto().unwrap();
        let (client, mut server) = pair(&fabric, &name("told")).await;
        for round in 0..100u64 {
            let export = fabric.export(4096).unwrap();
            let key = export.grant(&server, Access::ALL, ..).unwrap();
            for value in 0..20 {
                client.remote().write_with_notify(&key, 0, vec![1; 8], value).await.unwrap();
            }
            client.send(vec![1]).await.unwrap();
            server.recv().await.unwrap().unwrap();
            export.revoke(&key).unwrap();
            for value in 0..20 {
                assert_eq!(export.try_notified().map(|told| told.value), Some(value), "round {round}");
            }
        }
    });
}

#[test]
fn an_export_that_nobody_listens_to_holds_up_no_other() {
    run(async {
        let fabric = Fabric::auto().unwrap();
        let (client, server) = pair(&fabric, &name("others")).await;
        let (deaf, keen) = (fabric.export(4096).unwrap(), fabric.export(4096).unwrap());
        let deaf_key = deaf.grant(&server, Access::ALL, ..).unwrap();
        let keen_key = keen.grant(&server, Access::ALL, ..).unwrap();
        let memory = client.remote();
        let sent = MAX_NOTIFICATIONS_PER_CONNECTION as u64 + 50;
        for value in 0..sent {
            memory.write_with_notify(&deaf_key, 0, vec![1; 8], value).await.unwrap();
        }
        for value in 0..300 {
            memory.write_with_notify(&keen_key, 0, vec![1; 8], value).await.unwrap();
            assert_eq!(keen.notified().await.value, value);
        }
        for value in 0..sent {
            assert_eq!(deaf.notified().await.value, value);
        }
    });
}

/// Nobody else's process gets a mapping that it could keep.
#[test]
fn who_trusts_nobody_grants_by_records() {
    run(async {
        let fabric = Fabric::auto_builder().policy(Policy::default().trust_nobody()).build().unwrap();
        let (client, server) = pair(&fabric, &name("records")).await;
        assert_eq!(
            (client.caps().one_sided, server.caps().one_sided),
            (OneSided::Emulated, OneSided::Emulated)
        );
        let export = fabric.export(4096).unwrap();
        let key = export.grant(&server, Access::ALL, ..).unwrap();
        client.remote().write(&key, 0, body(4096)).await.unwrap();
        assert!(seen(&export, 0, 4096) == body(4096));
        assert_eq!(server.ledger().copied_at(CopyPlace::Remote), 4096);
    });
}

/// An operation that is done at once is no reason to keep others on the thread waiting.
#[tokio::test]
async fn who_writes_without_end_lets_others_have_their_turn() {
    let fabric = Fabric::auto().unwrap();
    let (owner, user) = pair(&fabric, &name("turns")).await;
    let export = fabric.export(4096).unwrap();
    let key = export.grant(&owner, Access::WRITE, ..).unwrap();
    let stop = std::rc::Rc::new(std::cell::Cell::new(false));
    let told = stop.clone();
    let writes = async {
        for _ in 0..100_000 {
            if told.get() {
                return;
            }
            user.remote().write(&key, 0, vec![1; 64]).await.unwrap();
        }
        panic!("nobody else had a turn");
    };
    let others = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        stop.set(true);
    };
    tokio::join!(writes, others);
}

/// What is given up at its first poll is not put off each time, and what is asked for later does not come first.
#[tokio::test]
async fn giving_way_loses_no_turn_and_no_order() {
    let fabric = Fabric::auto().unwrap();
    let (owner, user) = pair(&fabric, &name("order")).await;
    let export = fabric.export(4096).unwrap();
    let key = export.grant(&owner, Access::ALL, ..).unwrap();
    let memory = user.remote();
    // Once the peer has said what the key stands for.
    memory.fetch_add(&key, 0, 1).await.unwrap();
    let at_once = (0..200).filter(|_| memory.fetch_add(&key, 0, 1).now_or_never().is_some()).count();
    assert!(at_once > 190, "{at_once} of 200");
    let first = export.load_u64(0).unwrap();
    for batch in 0..40 {
        let adds = (0..10).map(|_| memory.fetch_add(&key, 0, 1));
        let seen: Vec<u64> = join_all(adds).await.into_iter().map(Result::unwrap).collect();
        let expect = first + batch * 10;
        assert!(seen.iter().copied().eq(expect..expect + 10), "{seen:?}");
    }
}
