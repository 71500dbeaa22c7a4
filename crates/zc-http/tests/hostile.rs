//! Peers that speak zc and not our protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use tower::{ServiceExt, service_fn};
use zc::{Connection, Fabric};
use zc_http::{Body, Channel, ErrorKind, Executed, Limits, Server, Violation};

const HANG: Duration = Duration::from_secs(60);

async fn hello(_request: Request<Body>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
}

fn settings() -> Vec<u8> {
    let mut bytes = b"\x01\x01\0\0zcht".to_vec();
    for value in [100_u32, 1 << 20, 1 << 20, 16 << 10, 128, 4096, 65_280] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn get(call: u32) -> Vec<u8> {
    let mut bytes = b"\x02\x05\x02\0".to_vec();
    bytes.extend_from_slice(&call.to_le_bytes());
    bytes.extend_from_slice(b"\0\0\0\0\x82\x8a");
    bytes
}

/// What the server says to these frames: how it ended, and its GOAWAY.
async fn server_says(frames: Vec<Vec<u8>>) -> (ErrorKind, Option<Vec<u8>>) {
    let (mut client, server) = zc::testing::pair(&Fabric::auto().unwrap()).await.unwrap();
    let mut limits = Limits::default();
    limits.max_calls = 4;
    limits.reset_burst = 10;
    limits.resets_per_s = 1;
    let serving = tokio::spawn(async move {
        Server::new().limits(limits).serve_connection(server, service_fn(hello)).await
    });
    for frame in frames {
        if client.send(frame).await.is_err() {
            break;
        }
    }
    let kind = tokio::time::timeout(HANG, serving).await.expect("the server goes on").unwrap();
    (kind, go_away(&mut client).await)
}

async fn go_away(connection: &mut Connection) -> Option<Vec<u8>> {
    while let Ok(Some(message)) = connection.recv().await {
        let bytes = message.as_contiguous().unwrap().to_vec();
        if bytes[0] == 6 {
            return Some(bytes);
        }
    }
    None
}

#[tokio::test]
async fn broken_frames_end_the_connection_and_say_why() {
    let cases: [(Vec<Vec<u8>>, u8); 6] = [
        (vec![b"GET / HTTP/1.1".to_vec()], 6),
        (vec![get(1)], 6),
        (vec![settings(), settings()], 6),
        (vec![settings(), get(2), get(1)], 6),
        (vec![settings(), b"\x04\0\0\0\0\0\0\0\xff\xff\xff\xff".to_vec()], 6),
        (vec![settings(), b"\x02\xff\0\0\x01\0\0\0\0\0\0\0".to_vec()], 6),
    ];
    for (frames, code) in cases {
        let (kind, go_away) = server_says(frames.clone()).await;
        assert!(matches!(kind, ErrorKind::Violation(_)), "{frames:?}: {kind}");
        assert_eq!(go_away.expect("it said nothing")[1], code);
    }
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let mut frames = vec![settings()];
    for call in 1..100_u32 {
        frames.push(get(call));
        let mut reset = b"\x03\x01\0\0".to_vec();
        reset.extend_from_slice(&call.to_le_bytes());
        frames.push(reset);
    }
    let (kind, go_away) = server_says(frames).await;
    assert!(matches!(kind, ErrorKind::Violation(Violation::Flood(_))), "{kind}");
    assert_eq!(go_away.unwrap()[1], 7);
}

#[tokio::test]
async fn a_server_that_is_none_is_named() {
    let (client, server) = zc::testing::pair(&Fabric::auto().unwrap()).await.unwrap();
    server.send(&b"220 mail.example ESMTP"[..]).await.unwrap();
    let failed = Channel::builder().on(client).await.unwrap_err();
    assert!(matches!(failed.kind(), ErrorKind::Violation(_)), "{failed:?}");
    assert_eq!(failed.executed(), Executed::No);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let (client, server) = zc::testing::pair(&Fabric::auto().unwrap()).await.unwrap();
    let failed = Channel::builder().on(client).await.unwrap_err();
    assert!(matches!(failed.kind(), ErrorKind::NoGreeting), "{failed:?}");
    drop(server);
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_fails_the_call() {
    let (client, mut server) = zc::testing::pair(&Fabric::auto().unwrap()).await.unwrap();
    server.send(settings()).await.unwrap();
    let channel = Channel::builder().on(client).await.unwrap();
    let call = tokio::spawn(channel.clone().oneshot(Request::get("/").body(Empty::<Bytes>::new()).unwrap()));
    while server.recv().await.unwrap().unwrap().as_contiguous().unwrap()[0] != 2 {}
    // A body before its headers.
    server.send(&b"\x02\x04\0\0\x01\0\0\0\0\0\0\0body"[..]).await.unwrap();
    let failed = call.await.unwrap().unwrap_err();
    assert!(matches!(failed.kind(), ErrorKind::Violation(Violation::Unexpected(_))), "{failed:?}");
    assert_eq!(failed.executed(), Executed::Maybe);
}
