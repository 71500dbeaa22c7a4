//! The peer's process is killed: what arrived stays, then there is an error, and memory comes back.

use std::time::Duration;

use zc::{Completion, Connection, ConnectionError};

use crate::data::{number, numbered};
use crate::peer::{FROM_HOLDER, HELD, Part, Peer};
use crate::run::Verdict;
use crate::setup::Bench;

async fn with_peer(bench: &Bench, part: Part) -> (Connection, Peer) {
    let mut listener = bench.listen(bench.server()).await;
    let peer = Peer::start(bench, part, &listener.local_uri().to_string());
    (listener.accept().await.unwrap(), peer)
}

/// Sends until it fails, which it must.
async fn send_fails(connection: &Connection) {
    while connection.send(numbered(0, 0, 2000)).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

/// It holds some messages, or is about to; what it sent before is not lost.
pub async fn a_peer_killed_while_holding_buffers(bench: &Bench) -> Verdict {
    bench.needs_processes().await?;
    let (mut connection, mut peer) = with_peer(bench, Part::Hold).await;
    for n in 0..2 * HELD {
        connection.sender().send_with(numbered(0, n, 2000), Completion::Delivered).await.unwrap();
    }
    for n in 0..FROM_HOLDER / 2 {
        assert_eq!(number(&connection.recv().await.unwrap().unwrap()), (1, n));
    }
    peer.kill();
    // What was queued here before is still returned, in order; "ready" is the last there can be.
    let mut next = FROM_HOLDER / 2;
    let error = loop {
        match connection.recv().await {
            Ok(message) if next == FROM_HOLDER => assert_eq!(message.unwrap(), b"ready"[..]),
            Ok(message) => assert_eq!(number(&message.expect("a killed peer has not finished")), (1, next)),
            Err(error) => break error,
        }
        next += 1;
    };
    assert!(matches!(error, ConnectionError::Lane(_)), "{error}");
    assert_eq!(connection.recv().await.unwrap_err().to_string(), error.to_string(), "it stays");
    send_fails(&connection).await;
    Ok(())
}

/// Messages come whole and in order up to some point, never a part of one.
pub async fn a_peer_killed_while_sending(bench: &Bench) -> Verdict {
    bench.needs_processes().await?;
    let (mut connection, mut peer) = with_peer(bench, Part::Flood).await;
    for n in 0..30 {
        assert_eq!(number(&connection.recv().await.unwrap().unwrap()), (2, n));
    }
    peer.kill();
    let mut next = 30;
    let error = loop {
        match connection.recv().await {
            Ok(message) => assert_eq!(number(&message.expect("a killed peer has not finished")), (2, next)),
            Err(error) => break error,
        }
        next += 1;
    };
    assert!(matches!(error, ConnectionError::Lane(_)), "{error}");
    send_fails(&connection).await;
    Ok(())
}

/// Who waits for room learns of it.
pub async fn a_send_that_waits_when_the_peer_is_killed(bench: &Bench) -> Verdict {
    bench.needs_processes().await?;
    let (mut connection, mut peer) = with_peer(bench, Part::Hold).await;
    for n in 0..HELD {
        connection.send(numbered(0, n, 2000)).await.unwrap();
    }
    while connection.recv().await.unwrap().unwrap() != b"ready"[..] {}
    let sender = connection.sender();
    let waiting = tokio::spawn(async move {
        // The peer takes nothing more: soon there is no room.
        while sender.send(numbered(0, 0, 1 << 20)).await.is_ok() {}
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    peer.kill();
    waiting.await.unwrap();
    assert!(connection.recv().await.is_err());
    Ok(())
}
