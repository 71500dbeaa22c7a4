//! A server that speaks zc, and zc-http as it likes: its connection ends, its calls with it, and the channel finds another.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tokio::task::JoinHandle;
use tower::{ServiceExt, service_fn};
use zc::{Connection, Fabric, Policy};
use zc_http::{Body, Channel, Code, Error, ErrorKind, Limits, Server};

use crate::HANG;

const CALL_WINDOW: u32 = 12_000;
const CONNECTION_WINDOW: u32 = 20_000;
const RESERVE: u32 = 3000;
const MAX_BODY: u32 = 8000;
/// Calls that are under way when it begins.
const CALLS: u32 = 2;
/// A header block with `:status: 200`.
const OK: &[u8] = b"\x8c";

/// What the client takes.
fn strict() -> Limits {
    let mut limits = Limits::default();
    limits.call_window_bytes = CALL_WINDOW;
    limits.connection_window_bytes = CONNECTION_WINDOW;
    limits.call_reserve_bytes = RESERVE;
    limits.max_body_frame_bytes = MAX_BODY;
    limits
}

fn settings(window: u32) -> Vec<u8> {
    let mut bytes = b"\x01\x01\0\0zcht".to_vec();
    for value in [100_u32, window, 1 << 20, 16 << 10, 128, 4096, 65_280] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn answer(flags: u8, id: u32, headers: &[u8], body: usize) -> Vec<u8> {
    let len = u16::try_from(headers.len()).unwrap().to_le_bytes();
    [&[2, flags, len[0], len[1]], &id.to_le_bytes()[..], &[0; 4], headers, &vec![b'x'; body]].concat()
}

/// The beginning of an answer.
fn head(id: u32, body: usize) -> Vec<u8> {
    answer(1, id, OK, body)
}

fn more(id: u32, body: usize) -> Vec<u8> {
    answer(0, id, b"", body)
}

fn control(kind: u8, call: u32, value: u32) -> Vec<u8> {
    [&[kind, 0, 0, 0], &call.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

/// What it says before it knows of a call, and what the client calls that.
fn greetings() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("does not speak zc-http", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("does not speak zc-http", head(1, 0)),
        ("does not speak zc-http", control(4, 0, 1)),
        ("wider than can be", settings(u32::MAX)),
    ]
}

/// What it says to calls, what the client calls that, and the code that it tells the server.
fn attacks() -> Vec<(&'static str, Vec<Vec<u8>>, u8)> {
    let flood = (0..200_000).map(|n| [&[5, 0, 0, 0][..], &u64::to_le_bytes(n)].concat());
    vec![
        ("SETTINGS again", vec![settings(1000)], 6),
        ("an answer to a call that never was", vec![head(77, 0)], 6),
        ("a body before its headers", vec![more(1, 4)], 6),
        ("headers again", vec![head(1, 0), head(1, 0)], 6),
        ("a bad frame", vec![answer(0xf8, 1, OK, 0)], 6),
        ("a bad frame", vec![vec![9; 12]], 6),
        ("cut short", vec![b"\x02\x01\0".to_vec()], 6),
        ("cut short", vec![b"\x02\x01\xff\0\x01\0\0\0\0\0\0\0".to_vec()], 6),
        ("a bad header block", vec![answer(1, 1, b"\xff\x7f", 0)], 6),
        ("a bad header block", vec![answer(1, 1, b"\x00\x7f", 0)], 6),
        ("wider than can be", vec![control(4, 0, u32::MAX)], 6),
        ("a grant of nothing", vec![control(4, 1, 0)], 6),
        ("WINDOW of a call that never was", vec![control(4, 77, 10)], 6),
        ("RESET of a call that never was", vec![[&[3, 1, 0, 0][..], &77_u32.to_le_bytes()].concat()], 6),
        ("a body frame above the limit", vec![head(1, MAX_BODY as usize + 1)], 6),
        ("of a call", vec![head(1, 8000), more(1, 4000), more(1, 1)], 6),
        ("of the connection", vec![head(1, 8000), head(2, 8000), more(1, 4000), more(2, 4000)], 6),
        ("a flood of", flood.collect(), 7),
    ]
}

/// Every kind of connection, at an address of its own.
fn uris(test: &str) -> [String; 4] {
    let name = format!("zc-hostile-server-{test}-{}", std::process::id());
    [
        format!("zc+mem://hostile-server-{test}"),
        "zc+tcp://127.0.0.1:0".to_owned(),
        format!("zc+unix://@{name}"),
        format!("zc+shm://@{name}-shm"),
    ]
}

/// Over a Unix socket zc would choose shared memory.
fn fabric(uri: &str) -> Fabric {
    let only = if uri.starts_with("zc+unix:") { "tcp" } else { "^rdma" };
    let policy = Policy::default().with_override(only).unwrap();
    Fabric::auto_builder().policy(policy).build().unwrap()
}

async fn hello(_request: Request<Body>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
}

fn get() -> Request<Empty<Bytes>> {
    Request::get("/").body(Empty::new()).unwrap()
}

/// Waits for so many calls.
async fn calls(connection: &mut Connection, mut count: u32) {
    while count > 0 {
        let frame = connection.recv().await.unwrap().expect("the client is gone");
        let bytes = frame.as_contiguous().unwrap();
        count -= u32::from(bytes[0] == 2 && bytes[1] & 1 == 1);
    }
}

/// Says all of it, or as much as is heard; the code of the client's GOAWAY, if that is read.
async fn say(connection: &mut Connection, frames: Vec<Vec<u8>>) -> Option<u8> {
    for frame in frames {
        if connection.send(frame).await.is_err() {
            break;
        }
    }
    while let Ok(Some(message)) = connection.recv().await {
        let bytes = message.as_contiguous().unwrap();
        if bytes[0] == 6 {
            return Some(bytes[1]);
        }
    }
    None
}

/// Serves one connection with `hostile`, and the next as it should be.
async fn serve<F>(
    uri: &str,
    hostile: impl FnOnce(Connection) -> F,
) -> (Channel, impl Future<Output = F::Output>)
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let fabric = fabric(uri);
    let mut listener = fabric.listen(uri).await.unwrap();
    let channel =
        Channel::builder().limits(strict()).build(&fabric, &listener.local_uri().to_string()).unwrap();
    let connecting = channel.clone();
    // It is the channel's own attempt, which whoever asks later shares.
    drop(tokio::spawn(async move { connecting.connect().await }));
    let hostile = tokio::spawn(hostile(listener.accept().await.unwrap()));
    let good: JoinHandle<()> = tokio::spawn(Server::new().serve(listener, service_fn(hello)));
    let said = async move {
        let said = tokio::time::timeout(HANG, hostile).await.expect("the client goes on").unwrap();
        drop(good);
        said
    };
    (channel, said)
}

/// The call ended for what the server did.
fn check(ended: &Error, why: &str, uri: &str) {
    let ErrorKind::Violation(violation) = ended.kind() else { panic!("{why} over {uri}: {ended:?}") };
    assert!(violation.to_string().contains(why), "{why} over {uri}: {ended:?}");
    assert_eq!(tonic::Status::from(ended.clone()).code(), tonic::Code::Unavailable);
}

/// The channel is none the worse for it.
async fn goes_on(channel: &Channel, why: &str) {
    let found = async {
        loop {
            match channel.clone().oneshot(get()).await {
                Ok(response) => break response,
                Err(error) => assert!(error.is_retryable(), "{why}: {error:?}"),
            }
        }
    };
    let response = tokio::time::timeout(HANG, found).await.expect("it finds nobody");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello", "{why}");
}

#[tokio::test]
async fn one_that_greets_badly_is_named() {
    for (at, (why, frame)) in greetings().into_iter().enumerate() {
        for uri in uris(&format!("greeting-{at}")) {
            let frame = frame.clone();
            let (channel, said) = serve(&uri, async move |mut connection| {
                say(&mut connection, vec![frame]).await;
            })
            .await;
            let failed = tokio::time::timeout(HANG, channel.connect()).await.expect("it hangs").unwrap_err();
            check(&failed, why, &uri);
            said.await;
            goes_on(&channel, why).await;
        }
    }
}

#[tokio::test]
async fn one_that_breaks_the_protocol_ends_its_own_calls_only() {
    for (at, (why, frames, code)) in attacks().into_iter().enumerate() {
        for uri in uris(&format!("calls-{at}")) {
            let frames = frames.clone();
            let (channel, said) = serve(&uri, async move |mut connection| {
                connection.send(settings(1 << 20)).await.unwrap();
                calls(&mut connection, CALLS).await;
                say(&mut connection, frames).await
            })
            .await;
            channel.connect().await.unwrap();
            let asked: Vec<_> = (0..CALLS).map(|_| tokio::spawn(channel.clone().oneshot(get()))).collect();
            let said = said.await;
            // Who does not read may miss it.
            assert!(said == Some(code) || (said.is_none() && code == 7), "{why} over {uri}: {said:?}");
            for call in asked {
                let ended = async {
                    match call.await.unwrap() {
                        Ok(response) => response.into_body().collect().await.map(drop),
                        Err(error) => Err(error),
                    }
                };
                let ended = tokio::time::timeout(HANG, ended).await.expect("a call hangs");
                check(&ended.unwrap_err(), why, &uri);
            }
            goes_on(&channel, why).await;
        }
    }
}

#[tokio::test]
async fn headers_that_make_no_answer_end_their_call_only() {
    for uri in uris("headers") {
        let many = [OK, &b"\x00\x01a\x01b".repeat(200)].concat();
        // 40,000 bytes: 127 in the first byte of the length, the rest in groups of seven bits.
        let long = [OK, &b"\x00\x01a\x7f\xc1\xb7\x02"[..], &[b'v'; 40_000]].concat();
        let bad = [(b"\x9a".to_vec(), Code::MALFORMED), (many, Code::TOO_LARGE), (long, Code::TOO_LARGE)];
        let blocks: Vec<_> = bad.iter().map(|(block, _)| block.clone()).collect();
        let (channel, said) = serve(&uri, async move |mut connection| {
            connection.send(settings(1 << 20)).await.unwrap();
            for (block, id) in blocks.iter().chain([&OK.to_vec()]).zip(1..) {
                calls(&mut connection, 1).await;
                connection.send(answer(5, id, block, 0)).await.unwrap();
            }
            say(&mut connection, Vec::new()).await
        })
        .await;
        for (_, code) in bad {
            let call = channel.clone().oneshot(get());
            let ended = tokio::time::timeout(HANG, call).await.expect("it hangs").unwrap_err();
            let ErrorKind::Ended(why) = ended.kind() else { panic!("{uri}: {ended:?}") };
            assert_eq!(*why, code, "{uri}");
        }
        // The same connection still makes calls.
        assert_eq!(channel.clone().oneshot(get()).await.unwrap().status(), 200, "{uri}");
        drop(channel);
        said.await;
    }
}
