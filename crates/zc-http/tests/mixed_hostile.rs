//! Clients that mean no good, at a port that serves zc and HTTP: each ends within its limit, and another goes on.

#![cfg(feature = "hyper")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};
use zc::{ConnectionOptions, Fabric, PlainStream};
use zc_http::{Body, Channel, Limits, Server};

const HANG: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What hyper takes over HTTP/1 at least.
const HTTP1_BYTES: usize = 8192;

async fn hello(_request: Request<Body>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
}

async fn serve(uri: &str, server: Server, options: ConnectionOptions) {
    let fabric = Fabric::auto_builder().options(options).build().unwrap();
    let listener = fabric.listen_mixed(uri).await.unwrap();
    tokio::spawn(server.serve(listener, service_fn(hello)));
}

async fn plain(uri: &str) -> PlainStream {
    Fabric::auto().unwrap().connect_plain(uri).await.unwrap()
}

async fn http2(uri: &str) -> SendRequest<Empty<Bytes>> {
    let io = TokioIo::new(plain(uri).await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn get() -> Request<Empty<Bytes>> {
    Request::get("http://localhost/").body(Empty::new()).unwrap()
}

/// All that the server says until it hangs up.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    // However it ends.
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

/// How long the server keeps a client that says this, piece by piece, and then nothing.
async fn kept(uri: &str, pieces: &[&[u8]], pause: Duration) -> Duration {
    let began = Instant::now();
    let (mut reading, mut writing) = tokio::io::split(plain(uri).await);
    let talking = async {
        for piece in pieces {
            writing.write_all(piece).await.unwrap();
            tokio::time::sleep(pause).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = tokio::time::timeout(HOUR, rest(&mut reading)) => drop(ended.expect("it holds its place for ever")),
        () = talking => {}
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn who_says_too_little_ends_within_its_limit() {
    const URI: &str = "zc+mem://mixed-hostile-little";
    // Nobody waits for a place.
    serve(URI, Server::new().max_connections(10), ConnectionOptions::default()).await;
    let bytes: Vec<&[u8]> = PREFACE.chunks(1).collect();
    let headers: Vec<&[u8]> =
        std::iter::once(&b"GET / HTTP/1.1\r\n"[..]).chain([&b"a: b\r\n"[..]; 9]).collect();
    let (at_once, slow) = (Duration::ZERO, Duration::from_secs(5));
    let all = async {
        tokio::join!(
            kept(URI, &[], at_once),
            kept(URI, &[b"\xf5"], at_once),
            kept(URI, &[b"G"], at_once),
            kept(URI, &[b"PRI "], at_once),
            kept(URI, &bytes[..23], slow),
            kept(URI, &headers, slow),
            kept(URI, &[PREFACE], at_once),
        )
    };
    let going_on = async {
        let mut sender = http2(URI).await;
        loop {
            assert_eq!(sender.send_request(get()).await.unwrap().status(), 200);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let took = tokio::select! {
        took = all => took,
        () = going_on => unreachable!(),
    };
    let (silent, half_hello, one_byte, half_preface, slow_preface, slow_headers, no_answers) = took;
    for (what, took, limit_s) in [
        ("silent", silent, 5),
        ("half a HELLO", half_hello, 5),
        ("one byte", one_byte, 30),
        ("half a preface", half_preface, 30),
        ("a preface byte by byte", slow_preface, 30),
        ("headers one by one", slow_headers, 30),
        ("no answers to PING", no_answers, 40),
    ] {
        let limit = Duration::from_secs(limit_s);
        assert!(took >= limit && took < limit + Duration::from_secs(1), "{what}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn headers_over_http1_are_bounded_in_bytes_and_number() {
    const URI: &str = "zc+mem://mixed-hostile-http1";
    let mut limits = Limits::default();
    (limits.max_header_bytes, limits.max_header_count) = (1000, 120);
    serve(URI, Server::new().limits(limits), ConnectionOptions::default()).await;
    let head = b"GET / HTTP/1.1\r\nconnection: close\r\n";
    let fields = |count| [&head[..], &b"a: b\r\n".repeat(count), b"\r\n"].concat();
    let endless = [&head[..], b"a: ", &[b'x'; HTTP1_BYTES]].concat();
    let began = Instant::now();
    for (said, status) in [(fields(119), "200"), (fields(120), "431"), (endless, "431")] {
        let mut stream = plain(URI).await;
        stream.write_all(&said).await.unwrap();
        let answer = rest(&mut stream).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "no time had to pass");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test(start_paused = true)]
async fn headers_over_http2_that_never_end_do_the_connection() {
    const URI: &str = "zc+mem://mixed-hostile-http2";
    const CONTINUATION: u8 = 9;
    serve(URI, Server::new(), ConnectionOptions::default()).await;
    let mut sender = http2(URI).await;
    // Large ones, and such as hold next to nothing: a field of one byte, and nothing at all.
    let fields = |count| b"\0\x01a\x01b".repeat(count);
    for block in [fields(3000), fields(1), Vec::new()] {
        let mut stream = plain(URI).await;
        let began = [PREFACE, &frame(4, 0, 0, &[]), &frame(1, 0, 1, &[0x82, 0x84, 0x86])].concat();
        stream.write_all(&began).await.unwrap();
        let (mut reading, mut writing) = tokio::io::split(stream);
        let talking = async {
            let more = frame(CONTINUATION, 0, 1, &block);
            for _ in 0..1000 {
                if writing.write_all(&more).await.is_err() {
                    return;
                }
                assert_eq!(sender.send_request(get()).await.unwrap().status(), 200);
            }
            panic!("it takes all of it");
        };
        let hearing = async {
            let mut said = Vec::new();
            let _ = reading.read_to_end(&mut said).await;
        };
        let ended = async {
            tokio::select! { () = talking => {}, () = hearing => {} }
        };
        tokio::time::timeout(HANG, ended).await.expect("it hangs");
    }
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_after_its_handshake_is_an_idle_connection() {
    const URI: &str = "zc+mem://mixed-hostile-idle";
    let mut options = ConnectionOptions::default();
    options.idle = Some(Duration::from_secs(600));
    serve(URI, Server::new().max_connections(2), options).await;
    let fabric = Fabric::auto().unwrap();
    let began = Instant::now();
    let mut silent = fabric.connect(URI).await.unwrap();
    let channel = Channel::new(&fabric, URI).unwrap();
    let going_on = async {
        loop {
            assert_eq!(channel.clone().oneshot(get()).await.unwrap().status(), 200);
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    };
    tokio::select! {
        ended = tokio::time::timeout(HOUR, silent.recv()) => drop(ended.expect("it holds its place for ever")),
        () = going_on => unreachable!(),
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(600) && took < Duration::from_secs(700), "{took:?}");
}

#[tokio::test]
async fn a_server_returns_when_its_listener_has_ended() {
    let fabric = Fabric::auto().unwrap();
    let mut mixed = fabric.listen_mixed("zc+mem://mixed-hostile-ended").await.unwrap();
    mixed.close();
    let mut zc = fabric.listen("zc+mem://mixed-hostile-ended").await.unwrap();
    zc.close();
    let both = async {
        tokio::join!(
            Server::new().serve(mixed, service_fn(hello)),
            Server::new().serve(zc, service_fn(hello)),
        )
    };
    tokio::time::timeout(HANG, both).await.expect("it goes on");
}
