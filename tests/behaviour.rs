//! What a connection promises, checked alike over in-process links, TCP and Unix sockets.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt;
use zc::transport::LaneLimits;
use zc::{
    CloseCode, Completion, Connection, ConnectionError, Delivery, Fabric, FabricBuilder, Message,
    TrySendError,
};

const GUARD: Duration = Duration::from_secs(60);

async fn guarded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future).await.expect("it hangs")
}

fn unique(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("behaviour-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    match kind {
        "mem" => format!("zc+mem://{name}"),
        "tcp" => "zc+tcp://127.0.0.1:0".into(),
        _ => format!("zc+unix://@{name}"),
    }
}

async fn pair_of(kind: &str, client: FabricBuilder, server: FabricBuilder) -> (Connection, Connection) {
    let mut listener = server.build().unwrap().listen(&unique(kind)).await.unwrap();
    let uri = listener.local_uri().to_string();
    let client = client.build().unwrap();
    guarded(async { tokio::try_join!(client.connect(&uri), listener.accept()) }).await.unwrap()
}

async fn pair(kind: &str) -> (Connection, Connection) {
    pair_of(kind, Fabric::auto_builder(), Fabric::auto_builder()).await
}

fn small_window() -> FabricBuilder {
    let mut limits = LaneLimits::default();
    limits.recv_window = 64 << 10;
    Fabric::auto_builder().limits(limits)
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed.wrapping_mul(17)) as u8).collect()
}

fn flat(message: &Message) -> Vec<u8> {
    message.segments().iter().flat_map(|segment| segment.iter().copied()).collect()
}

fn numbered(sender: u32, n: u32, len: usize) -> Vec<u8> {
    let head = sender.to_le_bytes().into_iter().chain(n.to_le_bytes());
    head.chain(std::iter::repeat_n(0x5a, len)).collect()
}

fn number(message: &Message) -> (u32, u32) {
    let flat = flat(message);
    let (a, rest) = flat.split_first_chunk::<4>().unwrap();
    let (b, _) = rest.split_first_chunk::<4>().unwrap();
    (u32::from_le_bytes(*a), u32::from_le_bytes(*b))
}

/// Makes one test per kind of link out of a function that takes the kind.
macro_rules! over_each_link {
    ($($name:ident),* $(,)?) => {
        mod mem { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::guarded(super::$name("mem")).await; })* }
        mod tcp { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::guarded(super::$name("tcp")).await; })* }
        mod unix { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::guarded(super::$name("unix")).await; })* }
    };
}

over_each_link!(
    echoes_every_size_in_order,
    ropes_arrive_as_one_message,
    half_close_leaves_the_other_direction,
    drain_returns_once_the_peer_has_all,
    close_tells_code_and_reason,
    send_after_close_returns_the_message,
    too_large_returns_the_message,
    delivered_means_queued_by_the_peer,
    a_stalled_receiver_bounds_the_sender,
    clones_keep_their_own_order,
    dropped_recv_loses_nothing,
    dropped_send_sends_all_or_nothing,
);

async fn echoes_every_size_in_order(kind: &str) {
    const SIZES: [usize; 12] = [0, 1, 63, 64, 511, 512, 513, 4096, 65535, 65536, 1 << 20, 5 << 20];
    let (mut client, mut server) = pair(kind).await;
    let echo = tokio::spawn(async move {
        while let Some(message) = server.recv().await.unwrap() {
            server.send(message).await.unwrap();
        }
    });
    let (sender, mut receiver) = client.split();
    let sending = tokio::spawn(async move {
        for (at, size) in SIZES.into_iter().enumerate() {
            sender.send(bytes(size, at)).await.unwrap();
        }
        sender.finish().await.unwrap();
    });
    for (at, size) in SIZES.into_iter().enumerate() {
        let message = receiver.recv().await.unwrap().unwrap();
        assert_eq!(message.len(), size);
        assert!(flat(&message) == bytes(size, at), "content of size {size}");
    }
    sending.await.unwrap();
    echo.await.unwrap();
}

async fn ropes_arrive_as_one_message(kind: &str) {
    let (client, mut server) = pair(kind).await;
    for sizes in [[1, 2, 3], [600, 4096, 9], [70_000, 1, 300_000]] {
        let mut rope = Message::new();
        let mut expected = Vec::new();
        for (seed, size) in sizes.into_iter().enumerate() {
            rope.push(bytes(size, seed)).unwrap();
            expected.append(&mut bytes(size, seed));
        }
        let receive = server.recv();
        let (sent, got) = tokio::join!(client.send(rope), receive);
        sent.unwrap();
        assert!(flat(&got.unwrap().unwrap()) == expected, "{sizes:?}");
    }
}

async fn half_close_leaves_the_other_direction(kind: &str) {
    let (mut client, mut server) = pair(kind).await;
    client.send(&b"last"[..]).await.unwrap();
    client.sender().finish().await.unwrap();
    assert_eq!(server.recv().await.unwrap().unwrap(), b"last"[..]);
    assert!(server.recv().await.unwrap().is_none());
    assert!(server.recv().await.unwrap().is_none(), "and stays so");
    let error = client.send(&b"late"[..]).await.unwrap_err();
    assert!(matches!(error.error, ConnectionError::Finished { .. }), "{error}");
    for n in 0..10 {
        server.send(bytes(1000, n)).await.unwrap();
        assert!(flat(&client.recv().await.unwrap().unwrap()) == bytes(1000, n));
    }
}

async fn drain_returns_once_the_peer_has_all(kind: &str) {
    let (client, mut server) = pair(kind).await;
    for n in 0..300 {
        client.send(numbered(0, n, 100)).await.unwrap();
    }
    // The peer's application takes nothing: its session layer queues.
    client.drain(GUARD).await.unwrap();
    for n in 0..300 {
        let got = server.try_recv().unwrap().expect("queued already");
        assert_eq!(number(&got), (0, n));
    }
    assert!(server.recv().await.unwrap().is_none());
}

async fn close_tells_code_and_reason(kind: &str) {
    let (client, mut server) = pair(kind).await;
    let app = CloseCode::app(7).unwrap();
    client.close(app, "enough for today").await;
    let error = server.recv().await.unwrap_err();
    match error {
        ConnectionError::ClosedByPeer { code, reason } => {
            assert_eq!((code, reason.as_str()), (app, "enough for today"));
        }
        other => panic!("{other}"),
    }
    let error = server.send(&b"x"[..]).await.unwrap_err();
    assert!(matches!(error.error, ConnectionError::ClosedByPeer { code, .. } if code == app), "{error}");
}

async fn send_after_close_returns_the_message(kind: &str) {
    let (client, mut server) = pair(kind).await;
    let sender = client.sender();
    client.close(CloseCode::app(1).unwrap(), "done").await;
    assert!(server.recv().await.is_err());
    for sender in [sender, server.sender()] {
        let error = sender.send(&b"keep me"[..]).await.unwrap_err();
        assert_eq!(error.delivery(), Delivery::NotSent);
        assert!(error.is_retryable());
        assert_eq!(error.into_message().unwrap(), b"keep me"[..]);
    }
}

async fn too_large_returns_the_message(kind: &str) {
    let mut limits = LaneLimits::default();
    limits.recv_max_message = 1000;
    let (client, mut server) =
        pair_of(kind, Fabric::auto_builder(), Fabric::auto_builder().limits(limits)).await;
    let error = client.send(bytes(1001, 3)).await.unwrap_err();
    assert!(matches!(error.error, ConnectionError::TooLarge { len: 1001, max: 1000 }), "{error}");
    assert_eq!(error.delivery(), Delivery::NotSent);
    assert!(!error.is_retryable());
    assert!(flat(&error.into_message().unwrap()) == bytes(1001, 3));
    client.send(bytes(1000, 4)).await.unwrap();
    assert!(flat(&server.recv().await.unwrap().unwrap()) == bytes(1000, 4), "the connection goes on");
}

async fn delivered_means_queued_by_the_peer(kind: &str) {
    let (client, mut server) = pair(kind).await;
    for n in 0..50 {
        client.sender().send_with(numbered(1, n, 10), Completion::Delivered).await.unwrap();
        let got = server.try_recv().unwrap().expect("queued before the send was done");
        assert_eq!(number(&got), (1, n));
    }
}

async fn a_stalled_receiver_bounds_the_sender(kind: &str) {
    let (client, mut server) = pair_of(kind, small_window(), small_window()).await;
    let sender = client.sender();
    let mut sent = 0;
    // 256 MiB would be far above the window and every socket buffer.
    for n in 0..4096 {
        match sender.try_send(numbered(2, n, 64 << 10)) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full(message)) => {
                assert_eq!(number(&message), (2, n), "the message comes back");
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent > 0 && sent < 4096, "{sent} messages were taken");
    for n in 0..sent {
        assert_eq!(number(&server.recv().await.unwrap().unwrap()), (2, n));
    }
    sender.send(numbered(2, sent, 64 << 10)).await.unwrap();
    assert_eq!(number(&server.recv().await.unwrap().unwrap()), (2, sent), "room came back");
}

async fn clones_keep_their_own_order(kind: &str) {
    let (client, mut server) = pair_of(kind, small_window(), small_window()).await;
    let mut tasks = Vec::new();
    for id in 0..8 {
        let sender = client.sender();
        tasks.push(tokio::spawn(async move {
            for n in 0..200 {
                sender.send(numbered(id, n, 1000)).await.unwrap();
            }
        }));
    }
    let mut next = [0; 8];
    for _ in 0..8 * 200 {
        let (id, n) = number(&server.recv().await.unwrap().unwrap());
        assert_eq!(n, next[id as usize], "sender {id}");
        next[id as usize] += 1;
    }
    assert_eq!(next, [200; 8]);
    for task in tasks {
        task.await.unwrap();
    }
}

async fn dropped_recv_loses_nothing(kind: &str) {
    let (client, mut server) = pair(kind).await;
    let sending = tokio::spawn(async move {
        for n in 0..500 {
            client.send(numbered(3, n, 20)).await.unwrap();
            if n % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        client.sender().finish().await.unwrap();
        client
    });
    let mut next = 0;
    for turn in 0..500 {
        tokio::select! {
            biased;
            got = server.recv() => {
                let Some(message) = got.unwrap() else { break };
                assert_eq!(number(&message), (3, next));
                next += 1;
            }
            () = std::future::ready(()) => {}
        }
        if turn % 3 == 0 {
            tokio::task::yield_now().await;
        }
    }
    while let Some(message) = server.recv().await.unwrap() {
        assert_eq!(number(&message), (3, next));
        next += 1;
    }
    assert_eq!(next, 500);
    sending.await.unwrap();
}

async fn dropped_send_sends_all_or_nothing(kind: &str) {
    let (client, mut server) = pair_of(kind, small_window(), small_window()).await;
    let sender = client.sender();
    let mut taken = Vec::new();
    let mut dropped = 0;
    for n in 0..4096 {
        match sender.send(numbered(4, n, 30_000)).now_or_never() {
            Some(result) => {
                result.unwrap();
                taken.push(n);
            }
            None => dropped += 1,
        }
        // Once the sender was held back, take some, so that dropped and taken sends alternate.
        if dropped > 0 && n % 5 == 0 && !taken.is_empty() {
            let got = server.recv().await.unwrap().unwrap();
            assert_eq!(number(&got), (4, taken.remove(0)));
            assert_eq!(got.len(), 30_008);
        }
        if dropped == 40 {
            break;
        }
    }
    assert_eq!(dropped, 40);
    sender.finish().await.unwrap();
    for n in taken {
        let got = server.recv().await.unwrap().unwrap();
        assert_eq!((number(&got), got.len()), ((4, n), 30_008));
    }
    assert!(server.recv().await.unwrap().is_none(), "what was dropped was not sent");
}
