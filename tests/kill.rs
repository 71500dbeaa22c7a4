//! A peer process that is killed: the survivor keeps what arrived, gets errors, and gives memory back.

#![cfg(all(unix, feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use zc::{BufPool, Completion, Connection, Fabric, Listener};

const GUARD: Duration = Duration::from_secs(60);
const ADDRESS: &str = "ZC_TEST_KILL_ADDRESS";
const FROM_PEER: usize = 100;
const TO_PEER: usize = 50;
const SIZE: usize = 2000;

/// The other process; without the variable there is nothing to do.
#[tokio::test]
async fn peer_process() {
    let Ok(uri) = std::env::var(ADDRESS) else { return };
    let mut connection = Fabric::auto().unwrap().connect(&uri).await.unwrap();
    let sender = connection.sender();
    for n in 0..FROM_PEER {
        sender.send_with(vec![n as u8; SIZE], Completion::Delivered).await.unwrap();
    }
    // Holds some messages, leaves others in the queue, and waits to be killed.
    let mut held = Vec::new();
    for _ in 0..TO_PEER / 2 {
        held.push(connection.recv().await.unwrap().unwrap());
    }
    sender.send(&b"ready"[..]).await.unwrap();
    std::future::pending::<()>().await;
}

/// Killed however the test ends.
struct Peer(Child);

impl Peer {
    fn spawn(uri: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peer_process", "--nocapture"])
            .env(ADDRESS, uri)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn listen(kind: &str, pool: &BufPool) -> Listener {
    let uri = match kind {
        "tcp" => "zc+tcp://127.0.0.1:0".to_owned(),
        _ => format!("zc+unix://@kill-{}", std::process::id()),
    };
    Fabric::auto_builder().pool(pool.clone()).build().unwrap().listen(&uri).await.unwrap()
}

/// Sends until it fails, which it must.
async fn send_fails(connection: &Connection) {
    loop {
        let mut buf = connection.alloc(SIZE).await.unwrap();
        buf.resize(SIZE, 7);
        if connection.send(buf.freeze()).await.is_err() {
            return;
        }
    }
}

async fn survives(kind: &str) {
    let pool = BufPool::builder().build();
    let mut listener = listen(kind, &pool).await;
    let mut peer = Peer::spawn(&listener.local_uri().to_string());
    let mut connection = listener.accept().await.unwrap();
    for _ in 0..TO_PEER {
        let mut buf = connection.alloc(SIZE).await.unwrap();
        buf.resize(SIZE, 3);
        connection.sender().send_with(buf.freeze(), Completion::Delivered).await.unwrap();
    }
    // The first ones now; "ready" is behind all the others, which this side's session layer
    // has queued, as the peer's own completions say before it goes on.
    for n in 0..FROM_PEER / 2 {
        assert_eq!(connection.recv().await.unwrap().unwrap(), vec![n as u8; SIZE][..]);
    }
    // The peer acknowledged what it queued, so nothing is unread in its socket when it is killed.
    peer.kill();
    let mut at = FROM_PEER / 2;
    let error = loop {
        match connection.recv().await {
            Ok(Some(message)) if at < FROM_PEER => {
                assert_eq!(message, vec![at as u8; SIZE][..]);
                at += 1;
            }
            Ok(Some(message)) => assert_eq!(message, b"ready"[..]),
            Ok(None) => panic!("a killed peer has not finished"),
            Err(error) => break error,
        }
    };
    assert_eq!(connection.recv().await.unwrap_err().to_string(), error.to_string(), "it stays");
    send_fails(&connection).await;
    drop(connection);
    drop(listener);
    // The connection's task ends on its own; the guard bounds this.
    while pool.stats().in_use_buffers != 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_killed_peer_over_tcp() {
    tokio::time::timeout(GUARD, survives("tcp")).await.expect("it hangs");
}

#[tokio::test]
async fn a_killed_peer_over_a_unix_socket() {
    tokio::time::timeout(GUARD, survives("unix")).await.expect("it hangs");
}

#[tokio::test]
async fn a_send_that_waits_for_room_fails_when_the_peer_is_killed() {
    let pool = BufPool::builder().build();
    let mut listener = listen("tcp", &pool).await;
    let test = async {
        let mut peer = Peer::spawn(&listener.local_uri().to_string());
        let mut connection = listener.accept().await.unwrap();
        // The peer takes TO_PEER / 2 messages, then no more: soon there is no room.
        while connection.recv().await.unwrap().unwrap() != b"ready"[..] {
            if let Err(error) = connection.sender().try_send(vec![1; SIZE]) {
                panic!("{error}");
            }
        }
        let sender = connection.sender();
        let (full, held_back) = tokio::sync::oneshot::channel();
        let blocked = tokio::spawn(async move {
            while sender.try_send(vec![1; 1 << 20]).is_ok() {}
            let waiting = sender.send(vec![1; 1 << 20]);
            full.send(()).unwrap();
            waiting.await
        });
        held_back.await.unwrap();
        peer.kill();
        // It may get room once more while the queue of the kernel empties, so others follow.
        let _ = blocked.await.unwrap();
        send_fails(&connection).await;
    };
    tokio::time::timeout(GUARD, test).await.expect("it hangs");
    drop(listener);
}
