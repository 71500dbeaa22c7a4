//! The proxy example relays backpressure, half-close and the way a side closes.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "test helpers")]

#[path = "../examples/proxy.rs"]
#[allow(dead_code, reason = "the program around what is tested")]
mod proxy;

use std::time::Duration;

use proxy::{Relayed, relay};
use tokio::task::JoinHandle;
use zc::transport::LaneLimits;
use zc::{CloseCode, Connection, ConnectionError, Fabric, TrySendError};

const GUARD: Duration = Duration::from_secs(60);
/// Simulated: nothing that could still move waits that long, and no ping is due yet.
const STILL: Duration = Duration::from_secs(1);
const WINDOW: u32 = 64 << 10;
const SIZE: usize = 4 << 10;

fn fabric() -> Fabric {
    let mut limits = LaneLimits::default();
    limits.recv_window = WINDOW;
    Fabric::auto_builder().limits(limits).build().unwrap()
}

/// Two connections with the proxy between them, of the kind of `uri`: one end, the other end, and what the proxy says at its end.
async fn through(uri: &str) -> (Connection, Connection, JoinHandle<Relayed>) {
    let (fabric, middle) = (fabric(), fabric());
    let mut front = middle.listen(uri).await.unwrap();
    let mut back = fabric
        .listen(&if uri.contains("://127.") { uri.into() } else { format!("{uri}-back") })
        .await
        .unwrap();
    let (front_uri, back_uri) = (front.local_uri().to_string(), back.local_uri().to_string());
    let (client, left) = tokio::try_join!(fabric.connect(&front_uri), front.accept()).unwrap();
    let (right, server) = tokio::try_join!(middle.connect(&back_uri), back.accept()).unwrap();
    let proxy = tokio::spawn(relay(left, right, std::future::pending()));
    (client, server, proxy)
}

fn numbered(n: u64) -> Vec<u8> {
    n.to_le_bytes().into_iter().chain(std::iter::repeat_n(n as u8, SIZE - 8)).collect()
}

/// Sends numbered messages until none was taken for a while (in simulated time).
async fn fill(from: &Connection) -> u64 {
    let mut sent = 0;
    while tokio::time::timeout(STILL, from.send(numbered(sent))).await.is_ok_and(|sent| sent.is_ok()) {
        sent += 1;
    }
    sent
}

#[tokio::test(start_paused = true)]
async fn a_side_that_does_not_receive_holds_up_the_other() {
    let (client, mut server, _proxy) = through("zc+mem://proxy-backpressure").await;
    let sent = fill(&client).await;
    // Two windows of payload, and what each of the three processes holds in its hand or on its way out.
    let most = u64::from(2 * WINDOW) + 4 * SIZE as u64;
    assert!(sent > 0 && sent * SIZE as u64 <= most, "{sent} messages went nowhere");
    assert!(matches!(client.sender().try_send(numbered(0)), Err(TrySendError::Full(_))));

    // The other direction is open all the same.
    server.send(&b"back"[..]).await.unwrap();
    let mut client = client;
    assert_eq!(client.recv().await.unwrap().unwrap(), b"back"[..]);

    // Each message taken makes room for others, and nothing is lost or out of order.
    for n in 0..sent {
        assert_eq!(server.recv().await.unwrap().unwrap(), numbered(n)[..]);
    }
    assert!(tokio::time::timeout(STILL, server.recv()).await.is_err(), "nothing else was sent");
    let more = fill(&client).await;
    assert!(more > 0, "it never opened again");
    for n in 0..more {
        assert_eq!(server.recv().await.unwrap().unwrap(), numbered(n)[..]);
    }
}

async fn half_close(uri: &str) {
    let (mut client, mut server, proxy) = through(uri).await;
    for n in 0..10 {
        client.send(numbered(n)).await.unwrap();
    }
    client.sender().finish().await.unwrap();
    for n in 0..10 {
        assert_eq!(server.recv().await.unwrap().unwrap(), numbered(n)[..]);
    }
    assert!(server.recv().await.unwrap().is_none(), "the end of one direction");

    // Far more than the windows hold, so the client must take part.
    let answers = async {
        for n in 0..1000 {
            server.send(numbered(n)).await.unwrap();
        }
        server.sender().finish().await.unwrap();
    };
    let read = async {
        for n in 0..1000 {
            assert_eq!(client.recv().await.unwrap().unwrap(), numbered(n)[..]);
        }
        assert!(client.recv().await.unwrap().is_none());
    };
    tokio::join!(answers, read);
    assert!(!proxy.is_finished(), "both have finished and neither has closed");
    drop(client);
    let relayed = proxy.await.unwrap();
    assert_eq!((relayed.to_server, relayed.to_client, relayed.code), (10, 1000, CloseCode::NORMAL));
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    for uri in ["zc+mem://proxy-half", "zc+tcp://127.0.0.1:0"] {
        tokio::time::timeout(GUARD, half_close(uri)).await.expect("it hangs");
    }
}

async fn closes(uri: &str, finished_first: bool) {
    let code = CloseCode::app(7).unwrap();
    let (client, mut server, proxy) = through(uri).await;
    client.send(&b"last"[..]).await.unwrap();
    if finished_first {
        client.sender().finish().await.unwrap();
    }
    client.close(code, "enough").await;
    assert_eq!(server.recv().await.unwrap().unwrap(), b"last"[..]);
    let error = loop {
        match server.recv().await {
            Ok(None) => drop(server.send(&b"?"[..]).await),
            Ok(Some(message)) => panic!("{message:?}"),
            Err(error) => break error,
        }
        tokio::task::yield_now().await;
        if let Err(error) = server.send(&b"?"[..]).await {
            break error.error;
        }
    };
    let ConnectionError::ClosedByPeer { code: told, reason } = error else { panic!("{error}") };
    assert_eq!((told, &*reason), (code, "enough"));
    assert_eq!(proxy.await.unwrap().code, code);
}

#[tokio::test]
async fn code_and_reason_of_a_close_are_passed_on() {
    for (name, finished_first) in [("a", false), ("b", true)] {
        let uri = format!("zc+mem://proxy-close-{name}");
        tokio::time::timeout(GUARD, closes(&uri, finished_first)).await.expect("it hangs");
    }
}

#[tokio::test]
async fn what_came_before_a_close_arrives_though_the_other_direction_fails() {
    let test = async {
        let (mut client, server, proxy) = through("zc+mem://proxy-before").await;
        for n in 0..8 {
            server.send(numbered(n)).await.unwrap();
        }
        server.close(CloseCode::GOING_AWAY, "maintenance").await;
        // Finds a server that is gone, which must not end the way back.
        let _ = client.send(numbered(0)).await;
        for n in 0..8 {
            assert_eq!(client.recv().await.unwrap().unwrap(), numbered(n)[..]);
        }
        let error = client.recv().await.unwrap_err();
        assert!(
            matches!(&error, ConnectionError::ClosedByPeer { reason, .. } if reason == "maintenance"),
            "{error}"
        );
        assert_eq!(proxy.await.unwrap().code, CloseCode::GOING_AWAY);
    };
    tokio::time::timeout(GUARD, test).await.expect("it hangs");
}

#[tokio::test]
async fn a_received_buffer_is_sent_on_as_it_is() {
    let test = async {
        let (client, mut server, proxy) = through("zc+mem://proxy-ledger").await;
        for _ in 0..3 {
            client.send(vec![5; 1 << 20]).await.unwrap();
            assert_eq!(server.recv().await.unwrap().unwrap().len(), 1 << 20);
        }
        client.close(CloseCode::NORMAL, "").await;
        let relayed = proxy.await.unwrap();
        assert_eq!(relayed.server.copied_bytes(), 0, "{relayed}");
    };
    tokio::time::timeout(GUARD, test).await.expect("it hangs");
}
