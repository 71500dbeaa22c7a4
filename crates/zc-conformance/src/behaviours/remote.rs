//! One-sided operations, done by the lane or by the session layer: the owner's memory holds what was written, and
//! nobody touches what he may not.

use std::time::Duration;

use zc::transport::{Access, OneSided, RemoteKey};
use zc::{Connection, Export, Fabric, RemoteFault, RemoteMemory};

use super::cancel::polled;
use crate::data::{self, Random, assert_is, numbered};
use crate::peer::{Part, Peer};
use crate::run::{Skipped, Verdict};
use crate::setup::Bench;

/// Bytes of the memory that these behaviours share.
const EXPORT_BYTES: usize = 3 << 20;
/// The word that a peer's process counts in.
pub(crate) const COUNTER_AT: u64 = 0;
/// Where it writes.
pub(crate) const WRITES_AT: u64 = 64;
/// How much at a time.
pub(crate) const WRITE_BYTES: usize = 200_000;

/// Two ends; the server's memory, and the client's way to it.
struct Shared {
    client: Connection,
    server: Connection,
    export: Export,
    key: RemoteKey,
    memory: RemoteMemory,
}

fn fabric_of(bench: &Bench) -> Fabric {
    bench.server().build().unwrap()
}

fn needs_operations(connection: &Connection) -> Result<(), Skipped> {
    match connection.caps().one_sided {
        OneSided::Native | OneSided::Emulated => Ok(()),
        _ => Err(Skipped("the transport carries no one-sided operations".into())),
    }
}

async fn shared(bench: &Bench) -> Result<Shared, Skipped> {
    let (client, server) = bench.pair().await;
    needs_operations(&server)?;
    let export = fabric_of(bench).export(EXPORT_BYTES).unwrap();
    let key = export.grant(&server, Access::ALL, ..).unwrap();
    let memory = client.remote();
    Ok(Shared { client, server, export, key, memory })
}

/// Against an oracle: any size at any place, and every other byte as it was.
pub async fn one_sided_operations_move_bytes(bench: &Bench) -> Verdict {
    let Shared { export, key, memory, .. } = &shared(bench).await?;
    let mut random = Random(7);
    let mut oracle = data::bytes(0, EXPORT_BYTES);
    export.write(0, &oracle).unwrap();
    for (n, most) in [1, 9, 600, 70_000, 2 << 20].into_iter().cycle().take(40).enumerate() {
        let len = random.below(most + 1);
        let at = random.below(EXPORT_BYTES - len);
        let bytes = data::bytes(n, len);
        memory.write(key, at as u64, bytes.clone()).await.unwrap();
        oracle[at..at + len].copy_from_slice(&bytes);
        let len = random.below(most.min(1 << 20) + 1);
        let at = random.below(EXPORT_BYTES - len);
        let read = memory.read(key, at as u64, len).await.unwrap();
        let read: Vec<u8> = read.segments().iter().flat_map(|part| part.iter().copied()).collect();
        assert!(read == oracle[at..at + len], "{len} bytes at {at}");
    }
    let mut seen = vec![0; EXPORT_BYTES];
    export.read(0, &mut seen).unwrap();
    assert!(seen == oracle, "the owner sees something else");
    Ok(())
}

/// Several tasks of the peer and the owner count in one word; none is lost.
pub async fn atomics_of_both_sides_add_up(bench: &Bench) -> Verdict {
    const EACH: u64 = 200;
    let shared = shared(bench).await?;
    shared.export.store_u64(8, 1).unwrap();
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let (memory, key) = (shared.memory.clone(), shared.key);
            tokio::spawn(async move {
                for _ in 0..EACH {
                    memory.fetch_add(&key, 8, 2).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..EACH {
        shared.export.fetch_add(8, 2).unwrap();
        tokio::task::yield_now().await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    let sum = 1 + 4 * EACH * 2;
    assert_eq!(shared.export.load_u64(8).unwrap(), sum);
    assert_eq!(shared.memory.compare_swap(&shared.key, 8, sum + 1, 5).await.unwrap(), sum);
    assert_eq!(shared.memory.compare_swap(&shared.key, 8, sum, 5).await.unwrap(), sum);
    assert_eq!(shared.export.load_u64(8).unwrap(), 5);
    Ok(())
}

/// Whoever is told of it finds it.
pub async fn a_notification_comes_after_what_was_written(bench: &Bench) -> Verdict {
    let Shared { export, key, memory, .. } = &shared(bench).await?;
    for (n, len) in [0, 1, 5000, 1 << 20].into_iter().enumerate() {
        let writing = memory.write_with_notify(key, 3, data::bytes(n, len), n as u64);
        let telling = async {
            let told = export.notified().await;
            let mut seen = vec![0; len];
            export.read(3, &mut seen).unwrap();
            assert!(seen == data::bytes(n, len), "{len} bytes are not there yet");
            told
        };
        let (written, told) = tokio::join!(writing, telling);
        written.unwrap();
        assert_eq!((told.key, told.value), (*key, n as u64));
    }
    assert!(export.try_notified().is_none());
    Ok(())
}

/// Nor is anything changed by it.
pub async fn what_is_not_granted_is_refused(bench: &Bench) -> Verdict {
    let Shared { client, mut server, export, memory, .. } = shared(bench).await?;
    let before = data::bytes(1, EXPORT_BYTES);
    export.write(0, &before).unwrap();
    let grant = |access| export.grant(&server, access, 64..1064).unwrap();
    let (read, write) = (grant(Access::READ), grant(Access::WRITE));
    let faults = [
        memory.write(&read, 0, vec![9]).await.unwrap_err(),
        memory.fetch_add(&read, 0, 1).await.unwrap_err(),
        memory.read(&write, 0, 1).await.unwrap_err(),
    ];
    assert!(faults.iter().all(|error| matches!(error.fault, RemoteFault::Denied)), "{faults:?}");
    let faults = [
        memory.read(&read, 1000, 1).await.unwrap_err(),
        memory.read(&read, u64::MAX - 1, 1).await.unwrap_err(),
        memory.write(&write, 0, vec![9; 1001]).await.unwrap_err(),
        memory.write_with_notify(&write, 1 << 40, vec![9], 1).await.unwrap_err(),
    ];
    assert!(faults.iter().all(|error| matches!(error.fault, RemoteFault::OutOfBounds)), "{faults:?}");
    let invented = RemoteKey::from_bytes(&[7; 16]).unwrap();
    let from_here = server.remote().read(&read, 0, 1).await.unwrap_err();
    let faults = [memory.read(&invented, 0, 1).await.unwrap_err(), from_here];
    assert!(faults.iter().all(|error| matches!(error.fault, RemoteFault::Revoked)), "{faults:?}");
    let mut after = vec![0; EXPORT_BYTES];
    export.read(0, &mut after).unwrap();
    assert!(after == before && export.try_notified().is_none(), "a refused operation did something");
    client.send(numbered(0, 1, 100)).await.unwrap();
    assert_eq!(data::number(&server.recv().await.unwrap().unwrap()), (0, 1), "the connection goes on");
    Ok(())
}

/// Once it is revoked, the owner's memory is the owner's, and another key still works.
pub async fn revoking_ends_access(bench: &Bench) -> Verdict {
    let Shared { server, export, key, memory, .. } = &shared(bench).await?;
    export.write(0, &data::bytes(2, 1000)).unwrap();
    let writing = {
        let (memory, key) = (memory.clone(), *key);
        tokio::spawn(async move {
            loop {
                if let Err(error) = memory.write(&key, 0, vec![0xee; 100_000]).await {
                    return error;
                }
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    export.revoke(key).unwrap();
    export.write(0, &data::bytes(3, 100_000)).unwrap();
    let error = writing.await.unwrap();
    assert!(matches!(error.fault, RemoteFault::Revoked), "{error}");
    let error = memory.fetch_add(key, 8, 1).await.unwrap_err();
    assert!(matches!(error.fault, RemoteFault::Revoked), "{error}");
    let mut seen = vec![0; 100_000];
    export.read(0, &mut seen).unwrap();
    assert!(seen == data::bytes(3, 100_000), "written after it was revoked");
    let again = export.grant(server, Access::READ, ..).unwrap();
    assert_is(&memory.read(&again, 0, 100_000).await.unwrap(), 3, 100_000);
    Ok(())
}

/// Operations are dropped after any number of polls; those behind them, and messages, go on.
pub async fn a_one_sided_operation_given_up_leaves_nothing(bench: &Bench) -> Verdict {
    let Shared { client, mut server, export, key, memory } = shared(bench).await?;
    for n in 0..120 {
        let polls = n % 4;
        let at = (n * 64) as u64;
        match n % 3 {
            0 => drop(polled(polls, memory.write(&key, at, data::bytes(n, 150_000))).await),
            1 => drop(polled(polls, memory.read(&key, at, 150_000)).await),
            _ => drop(polled(polls, memory.fetch_add(&key, at, 1)).await),
        }
        if n % 10 == 0 {
            memory.write(&key, 0, data::bytes(n, 5000)).await.unwrap();
            assert_is(&memory.read(&key, 0, 5000).await.unwrap(), n, 5000);
            client.send(numbered(0, n as u32, 3000)).await.unwrap();
            assert_eq!(data::number(&server.recv().await.unwrap().unwrap()), (0, n as u32));
        }
    }
    export.write(0, &data::bytes(9, 64)).unwrap();
    assert_is(&memory.read(&key, 0, 64).await.unwrap(), 9, 64);
    Ok(())
}

/// The owner's memory is the owner's again, whatever the peer was doing.
pub async fn a_peer_killed_while_it_writes_into_an_export(bench: &Bench) -> Verdict {
    bench.needs_processes().await?;
    let mut listener = bench.listen(bench.server()).await;
    let mut peer = Peer::start(bench, Part::Remote, &listener.local_uri().to_string());
    let mut connection = listener.accept().await.unwrap();
    needs_operations(&connection)?;
    let export = fabric_of(bench).export(EXPORT_BYTES).unwrap();
    export.store_u64(COUNTER_AT, 0).unwrap();
    let key = export.grant(&connection, Access::ALL, ..).unwrap();
    connection.send(key.to_bytes()).await.unwrap();
    while export.load_u64(COUNTER_AT).unwrap() < 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    peer.kill();
    while connection.recv().await.is_ok_and(|message| message.is_some()) {}
    export.revoke(&key).unwrap();
    // What it wrote is whole words of one of its two patterns; nobody writes any more.
    let mut seen = vec![0; WRITE_BYTES];
    export.read(WRITES_AT, &mut seen).unwrap();
    assert!(seen.iter().all(|byte| matches!(byte, 0x55 | 0xaa)), "bytes that nobody wrote");
    export.write(WRITES_AT, &vec![1; WRITE_BYTES]).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    export.read(WRITES_AT, &mut seen).unwrap();
    assert!(seen.iter().all(|byte| *byte == 1), "a dead peer writes");
    assert!(export.grant(&connection, Access::READ, ..).is_err(), "the connection has ended");
    Ok(())
}

/// What the other process does in [`a_peer_killed_while_it_writes_into_an_export`].
pub(crate) async fn write_for_ever(mut connection: Connection) {
    let message = connection.recv().await.unwrap().unwrap();
    let key = RemoteKey::from_bytes(message.as_contiguous().unwrap()).unwrap();
    let memory = connection.remote();
    for pattern in [0x55, 0xaa].into_iter().cycle() {
        memory.write(&key, WRITES_AT, vec![pattern; WRITE_BYTES]).await.unwrap();
        memory.fetch_add(&key, COUNTER_AT, 1).await.unwrap();
    }
}
