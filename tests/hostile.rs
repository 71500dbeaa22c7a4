//! Peers that do not speak the protocol, or stop speaking: they fail alone.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use tokio::task::spawn_blocking;
use zc::{Deadlines, Error, Fabric, FabricBuilder, Listener, Stage};

const GUARD: Duration = Duration::from_secs(60);

/// The front of a HELLO: magic, versions, role, reserved, length of the body.
fn hello_header(len: u32) -> Vec<u8> {
    let magic = zc::wire::MAGIC;
    let versions = zc::wire::VersionRange::SUPPORTED;
    let fixed = [versions.min(), versions.max(), 0, 0];
    magic.into_iter().chain(fixed).chain(len.to_le_bytes()).collect()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn patient() -> FabricBuilder {
    // Long enough that no good handshake fails on a busy machine, and no failure here is a timeout.
    deadlines(Duration::from_secs(600))
}

fn deadlines(each: Duration) -> FabricBuilder {
    let mut deadlines = Deadlines::default();
    deadlines.hello = each;
    deadlines.offers = each;
    deadlines.join = each;
    Fabric::auto_builder().deadlines(deadlines)
}

async fn listener(builder: FabricBuilder) -> (Listener, String) {
    let listener = builder.build().unwrap().listen("zc+tcp://127.0.0.1:0").await.unwrap();
    let address = listener.local_uri().to_string().strip_prefix("zc+tcp://").unwrap().to_owned();
    (listener, address)
}

/// Reads until the other side hangs up.
fn until_end(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(GUARD)).unwrap();
    let mut sink = Vec::new();
    if let Err(error) = stream.read_to_end(&mut sink) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
}

/// Drives the listener until the hostile peer sees its connection end, then lets a good one in.
async fn rejected_then_good(bytes: impl Into<Vec<u8>>, then_shut: bool) {
    let (mut listener, address) = listener(patient()).await;
    let (bytes, to) = (bytes.into(), address.clone());
    let hostile = spawn_blocking(move || {
        let mut stream = TcpStream::connect(to).unwrap();
        // The listener may hang up before it has read everything.
        let _ = stream.write_all(&bytes);
        if then_shut {
            let _ = stream.shutdown(Shutdown::Write);
        }
        until_end(&mut stream);
    });
    tokio::time::timeout(GUARD, async {
        tokio::select! {
            ended = hostile => ended.unwrap(),
            _ = listener.accept() => panic!("a hostile peer was accepted"),
        }
        let client = Fabric::auto().unwrap();
        let uri = format!("zc+tcp://{address}");
        let (connected, mut accepted) = tokio::try_join!(client.connect(&uri), listener.accept()).unwrap();
        connected.send(&b"good"[..]).await.unwrap();
        assert_eq!(accepted.recv().await.unwrap().unwrap(), b"good"[..]);
    })
    .await
    .expect("it hangs");
    assert_eq!(listener.failed_handshakes(), 1);
}

#[tokio::test]
async fn noise_is_refused() {
    rejected_then_good(noise(4096), false).await;
}

#[tokio::test]
async fn http_is_refused() {
    rejected_then_good(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", false).await;
}

#[tokio::test]
async fn a_hello_cut_short_is_refused() {
    let mut hello = hello_header(100);
    hello.append(&mut vec![0; 40]);
    for len in [1, 4, 11, 12, hello.len()] {
        rejected_then_good(hello.get(..len).unwrap(), true).await;
    }
}

#[tokio::test]
async fn a_connection_closed_without_a_byte_is_a_failed_handshake() {
    rejected_then_good(b"", true).await;
}

#[tokio::test]
async fn a_hello_that_claims_too_much_is_refused_at_once() {
    for len in [4097, u32::MAX] {
        rejected_then_good(hello_header(len), false).await;
    }
}

#[tokio::test]
async fn a_hello_of_noise_is_refused() {
    let mut hello = hello_header(512);
    hello.append(&mut noise(512));
    rejected_then_good(hello, false).await;
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let (mut listener, address) = listener(deadlines(Duration::from_millis(50))).await;
    let silent = spawn_blocking(move || until_end(&mut TcpStream::connect(address).unwrap()));
    tokio::time::timeout(GUARD, async {
        tokio::select! {
            ended = silent => ended.unwrap(),
            _ = listener.accept() => panic!("a silent peer was accepted"),
        }
    })
    .await
    .expect("it hangs");
    assert_eq!(listener.failed_handshakes(), 1);
}

#[tokio::test]
async fn silent_peers_do_not_hold_up_a_good_one() {
    let (mut listener, address) = listener(patient()).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(&address).unwrap());
    }
    let client = Fabric::auto().unwrap();
    let uri = format!("zc+tcp://{address}");
    let both = async { tokio::try_join!(client.connect(&uri), listener.accept()) };
    let (connected, accepted) = tokio::time::timeout(GUARD, both).await.expect("it hangs").unwrap();
    assert_eq!(connected.report().chosen(), "tcp");
    assert_eq!(accepted.report().chosen(), "tcp");
    assert_eq!(listener.failed_handshakes(), 0, "the silent ones still have their time");
}

#[tokio::test]
async fn a_server_that_talks_garbage_is_a_typed_error_of_hello() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("zc+tcp://{}", server.local_addr().unwrap());
    let garbage = spawn_blocking(move || {
        let (mut stream, _) = server.accept().unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").unwrap();
        stream
    });
    let client = patient().build().unwrap();
    let both = async { tokio::join!(client.connect(&uri), garbage) };
    let (connected, _stream) = tokio::time::timeout(GUARD, both).await.expect("it hangs");
    let Err(error) = connected else { panic!("it connected") };
    assert!(matches!(error, Error::Wire { stage: Stage::Hello, .. }), "{error:?}");
    assert_eq!(error.stage(), Some(Stage::Hello));
    assert_eq!(error.delivery(), zc::Delivery::NotSent);
}
