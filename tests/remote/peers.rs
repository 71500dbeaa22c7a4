//! Peers that are killed, that are old, or that don't keep to the protocol.

use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zc::wire::{FrameHeader, HELLO_HEADER_BYTES, RemoteAction, RemoteRequest, Tlvs, put_tlv};

use super::*;

const ENV_SERVE: &str = "ZC_TEST_REMOTE_URI";

/// Killed however the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The other process of the test below: exports, serves two operations, and then stands still.
#[test]
fn peer_process() {
    let Ok(uri) = std::env::var(ENV_SERVE) else { return };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let fabric = Fabric::auto().unwrap();
        let conn = fabric.connect(&uri).await.unwrap();
        let export = fabric.export(1 << 20).unwrap();
        let key = export.grant(&conn, Access::ALL, ..).unwrap();
        conn.send(key.to_bytes()).await.unwrap();
        export.notified().await;
        // Nobody drives the connection from here on, and the parent kills.
        std::thread::sleep(GUARD);
    });
}

#[tokio::test]
async fn an_owner_killed_under_way_leaves_it_unknown() {
    guarded(async {
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen("zc+tcp://127.0.0.1:0").await.unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peers::peer_process", "--nocapture", "--test-threads=1"])
            .env(ENV_SERVE, listener.local_uri().to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = Process(child);
        let mut conn = listener.accept().await.unwrap();
        let message = conn.recv().await.unwrap().unwrap();
        let key = RemoteKey::from_bytes(message.as_contiguous().unwrap()).unwrap();
        let remote = conn.remote();
        assert_eq!(remote.fetch_add(&key, 0, 5).await.unwrap(), 0);
        // Its answer may come or not: the other end stands still right after.
        let _ = tokio::time::timeout(Duration::from_millis(1), remote.write_with_notify(&key, 8, vec![1], 1))
            .await;
        let mut pending: Vec<_> = (0..3).map(|_| Box::pin(remote.fetch_add(&key, 0, 1))).collect();
        loop {
            // They go out, and then have time to be answered, if it is not standing still yet.
            for pause in [20, 0] {
                let mut left = Vec::new();
                for mut future in pending {
                    if futures::poll!(future.as_mut()).is_pending() {
                        left.push(future);
                    }
                }
                pending = left;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            if pending.len() == 3 {
                break;
            }
            pending = (0..3).map(|_| Box::pin(remote.fetch_add(&key, 0, 1))).collect();
        }
        child.0.kill().unwrap();
        let mut unknown = 0;
        for future in pending {
            match future.await {
                Ok(_) => {}
                Err(error) => {
                    assert!(matches!(error.fault, RemoteFault::Connection(_)), "{error}");
                    assert_eq!(error.delivery(), Delivery::Unknown);
                    unknown += 1;
                }
            }
        }
        assert!(unknown > 0, "nobody could answer");
        assert_eq!(remote.read(&key, 0, 1).await.unwrap_err().delivery(), Delivery::NotSent);
    })
    .await;
}

/// Reads a HELLO and takes out that its sender knows REMOTE frames.
async fn older_hello(from: &mut TcpStream) -> Vec<u8> {
    let mut hello = vec![0; HELLO_HEADER_BYTES];
    from.read_exact(&mut hello).await.unwrap();
    let mut body = vec![0; u32::from_le_bytes(*hello[8..].first_chunk().unwrap()) as usize];
    from.read_exact(&mut body).await.unwrap();
    let mut older = Vec::new();
    let mut found = false;
    for tlv in Tlvs::new(&body) {
        let tlv = tlv.unwrap();
        if tlv.kind == 9 {
            found = true;
        } else {
            put_tlv(&mut older, tlv.kind, tlv.value).unwrap();
        }
    }
    assert!(found, "a HELLO of today says so");
    hello.truncate(8);
    hello.extend((older.len() as u32).to_le_bytes());
    hello.extend(older);
    hello
}

#[tokio::test]
async fn a_peer_from_before_one_sided_operations_is_spoken_to_without() {
    guarded(async {
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen("zc+tcp://127.0.0.1:0").await.unwrap();
        let server_address = listener.local_uri().to_string().strip_prefix("zc+tcp://").unwrap().to_owned();
        let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("zc+tcp://{}", between.local_addr().unwrap());
        let proxy = tokio::spawn(async move {
            let (mut client, _) = between.accept().await.unwrap();
            let mut server = TcpStream::connect(server_address).await.unwrap();
            let hello = older_hello(&mut client).await;
            server.write_all(&hello).await.unwrap();
            let hello = older_hello(&mut server).await;
            client.write_all(&hello).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
        let (client, mut server) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
        assert_eq!((client.caps().one_sided, server.caps().one_sided), (OneSided::None, OneSided::None));
        let export = fabric.export(64).unwrap();
        assert!(matches!(export.grant(&server, Access::ALL, ..), Err(GrantError::Unsupported)));
        let key = RemoteKey::from_bytes(&[1; 16]).unwrap();
        let unsupported = |fault: &RemoteFault| matches!(fault, RemoteFault::Unsupported);
        refused(client.remote().read(&key, 0, 1).await, unsupported);
        refused(client.remote().fetch_add(&key, 0, 1).await, unsupported);
        client.send(&b"hello"[..]).await.unwrap();
        assert_eq!(server.recv().await.unwrap().unwrap(), b"hello"[..]);
        drop((client, server));
        proxy.await.unwrap();
    })
    .await;
}

/// Why a connection of ours ends when its peer, which has a key, says this.
async fn injected(bytes: impl FnOnce([u8; 16]) -> Vec<u8>) -> ConnectionError {
    let fabric = Fabric::auto().unwrap();
    let mut listener = fabric.listen("zc+tcp://127.0.0.1:0").await.unwrap();
    let server_address = listener.local_uri().to_string().strip_prefix("zc+tcp://").unwrap().to_owned();
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("zc+tcp://{}", between.local_addr().unwrap());
    let (up, is_up) = tokio::sync::oneshot::channel::<Vec<u8>>();
    let proxy = tokio::spawn(async move {
        let (mut client, _) = between.accept().await.unwrap();
        let mut server = TcpStream::connect(server_address).await.unwrap();
        let bytes = tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => panic!("it ended early"),
            bytes = is_up => bytes.unwrap(),
        };
        let _ = server.write_all(&bytes).await;
        // The answers are never read.
        (client, server)
    });
    let (mut client, mut server) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
    let export = fabric.export(64 << 10).unwrap();
    let key = export.grant(&server, Access::ALL, ..).unwrap();
    client.send(&b"up"[..]).await.unwrap();
    server.recv().await.unwrap();
    // Nothing of the set-up is on its way any more.
    server.send(&b"up"[..]).await.unwrap();
    client.recv().await.unwrap();
    up.send(bytes(*key.as_bytes().first_chunk().unwrap())).unwrap();
    let error = server.recv().await.unwrap_err();
    drop(proxy.await.unwrap());
    assert!(content(&export).iter().all(|byte| *byte == 0));
    error
}

fn framed(record: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = FrameHeader::remote(record.len() as u32).encode().into();
    bytes.extend(record);
    bytes
}

fn request(key: [u8; 16], id: u64, action: RemoteAction) -> Vec<u8> {
    let mut record = Vec::new();
    RemoteRequest { id, key, offset: 0, action }.encode(&mut record);
    framed(&record)
}

#[tokio::test]
async fn hostile_records_end_their_connection_with_a_typed_error() {
    let ask = |id| request([3; 16], id, RemoteAction::Read { len: 8, extent: 8 });
    let mut short = ask(1);
    short.truncate(40);
    short[4] = 24;
    let mut answer = vec![0x80];
    answer.resize(24, 0);
    for (name, bytes) in [
        ("a number left out", [ask(1), ask(3)].concat()),
        ("a short record", short),
        ("an answer to nothing", framed(&answer)),
        ("an empty record", framed(&[])),
        ("no operation", framed(&[9; 56])),
    ] {
        let error = guarded(injected(|_| bytes)).await;
        let typed = matches!(error, ConnectionError::Session(_) | ConnectionError::Lane(_));
        assert!(typed && !error.to_string().contains("went away"), "{name}: {error}");
    }
    let long: Vec<u8> = FrameHeader::remote(CHUNK as u32 + 57).encode().into();
    let error = guarded(injected(|_| long)).await;
    assert!(error.to_string().contains("remote record is too long"), "{error}");
}

#[tokio::test]
async fn a_peer_that_asks_without_end_and_reads_nothing_is_bounded() {
    // 64 MiB of answers: more than the sockets take.
    let read = RemoteAction::Read { len: CHUNK as u32, extent: CHUNK as u64 };
    let error = guarded(injected(|key| (1..=1024).flat_map(|id| request(key, id, read)).collect())).await;
    assert!(error.to_string().contains("without an answer"), "{error}");
}
