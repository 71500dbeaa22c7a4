//! A connection as a stream of bytes.

#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::error::Error;
use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::time::Duration;

use futures::FutureExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zc::memory::{BufPool, CopyPlace};
use zc::transport::LaneLimits;
use zc::{BYTE_STREAM_MESSAGE, ByteStream, CloseCode, Connection, ConnectionError, Fabric, Message};

const GUARD: Duration = Duration::from_secs(60);

async fn pair(recv_window: u32) -> (Connection, Connection) {
    let mut limits = LaneLimits::default();
    limits.recv_window = recv_window;
    zc::testing::pair(&Fabric::auto_builder().limits(limits).build().unwrap()).await.unwrap()
}

async fn streams(recv_window: u32) -> (ByteStream, ByteStream) {
    let (client, server) = pair(recv_window).await;
    (client.into_byte_stream().unwrap(), server.into_byte_stream().unwrap())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 9)) as u8).collect()
}

#[tokio::test(start_paused = true)]
async fn bytes_arrive_in_order_and_end_with_shutdown() {
    let (mut client, mut server) = streams(256 << 10).await;
    let sent = pattern(3 << 20);
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let error = client.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
        let source = error.into_inner().unwrap();
        assert!(matches!(source.downcast_ref(), Some(ConnectionError::Finished { .. })));
        // The other direction goes on after the shutdown.
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.unwrap();
    assert!(got == expected);
    server.write_all(b"got it").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(writing.await.unwrap(), "got it");
    let ledger = server.connection().ledger();
    assert_eq!(ledger.copied_at(CopyPlace::App), expected.len() as u64, "every copy is counted");
    assert_eq!(ledger.copied_at(CopyPlace::Gather), 6);
}

#[tokio::test(start_paused = true)]
async fn vectored_writes_are_gathered_into_one_message() {
    let (client, mut server) = pair(4 << 20).await;
    let mut client = client.into_byte_stream().unwrap();
    assert!(client.is_write_vectored());
    let (a, b) = (pattern(1000), pattern(BYTE_STREAM_MESSAGE));
    let slices = [IoSlice::new(&a), IoSlice::new(&[]), IoSlice::new(&b), IoSlice::new(&a)];
    let written = client.write_vectored(&slices).await.unwrap();
    assert_eq!(written, BYTE_STREAM_MESSAGE, "one message's worth");
    assert_eq!(client.write(&[]).await.unwrap(), 0);
    let message = server.recv().await.unwrap().unwrap();
    assert_eq!(message.len(), written);
    let flat = message.as_contiguous().unwrap();
    assert!(flat[..1000] == a && flat[1000..] == b[..written - 1000]);
    assert_eq!(client.connection().ledger().copied_at(CopyPlace::Gather), written as u64);
    assert_eq!(client.connection().stats().sent_messages, 1, "an empty write sends nothing");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_borrows_copies_nothing() {
    let (mut client, mut server) = streams(4 << 20).await;
    client.write_all(b"one line\nand another\nrest").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(server.fill_buf().await.unwrap(), b"one line\nand another\nrest");
    server.consume(9);
    assert_eq!(server.fill_buf().await.unwrap(), b"and another\nrest");
    server.consume(16);
    assert!(server.fill_buf().await.unwrap().is_empty(), "the end");
    assert!(server.fill_buf().await.unwrap().is_empty(), "and stays so");
    let ledger = server.connection().ledger();
    assert_eq!(ledger.copied_at(CopyPlace::App), 0);
    assert_eq!(server.connection().stats().leased_bytes, 0, "what was consumed is given back");
}

#[tokio::test(start_paused = true)]
async fn empty_messages_are_no_end_and_ropes_are_read_through() {
    let (client, server) = pair(4 << 20).await;
    let mut server = server.into_byte_stream().unwrap();
    client.send(Message::new()).await.unwrap();
    let mut rope = Message::from(pattern(3));
    rope.push(pattern(700)).unwrap();
    client.send(rope).await.unwrap();
    drop(client);
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.unwrap();
    assert!(got[..3] == pattern(3) && got[3..] == pattern(700));
}

#[tokio::test(start_paused = true)]
async fn a_writer_waits_for_a_peer_that_does_not_read() {
    let (mut client, mut server) = streams(16 << 10).await;
    let block = pattern(10_000);
    let mut written = 0;
    while let Some(result) = client.write(&block).now_or_never() {
        written += result.unwrap();
        assert!(written < 4 << 20, "it is bounded");
    }
    // Dropped while it waited, a write has taken nothing.
    assert!(tokio::time::timeout(GUARD, client.write(&block)).await.is_err());
    let reading = tokio::spawn(async move {
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        got
    });
    client.write_all(b"end").await.unwrap();
    client.flush().await.unwrap();
    client.shutdown().await.unwrap();
    let got = reading.await.unwrap();
    assert_eq!(got.len(), written + 3);
    assert!(got.chunks(block.len()).all(|chunk| chunk == &block[..] || chunk == b"end"));
}

/// Nobody else waits for a stream that was polled and left alone, nor for one that was served otherwise.
#[tokio::test]
async fn a_stream_that_waits_for_memory_holds_up_nobody() {
    const LEN: usize = 256 << 10;
    let pool = BufPool::builder().max_bytes(1 << 20).build();
    let fabric = Fabric::auto_builder().pool(pool.clone()).build().unwrap();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let (client, server) = zc::testing::pair(&fabric).await.unwrap();
        streams.push((client.into_byte_stream().unwrap(), server));
    }
    let mut held: Vec<_> = std::iter::from_fn(|| pool.try_alloc(LEN).ok()).collect();
    // What they have is the pool's memory, too: the least that a stream wants is a byte.
    while let Ok(buf) = pool.try_alloc(1) {
        held.push(buf);
    }
    for (stream, _) in &mut streams {
        assert!(stream.write(b"x").now_or_never().is_none());
    }
    let mut last = Box::pin(pool.alloc(LEN));
    assert!(futures::poll!(&mut last).is_pending());
    held.retain(|buf| buf.capacity() < LEN);
    // The first is served at once, the others stay away.
    assert!(streams[0].0.write(b"x").now_or_never().is_some());
    assert!(futures::poll!(&mut last).is_ready(), "it waits for streams");
}

#[tokio::test(start_paused = true)]
async fn errors_say_what_a_socket_would_and_why() {
    let (client, server) = pair(4 << 20).await;
    let mut client = client.into_byte_stream().unwrap();
    server.close(CloseCode::app(5).unwrap(), "no more").await;
    let error = client.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("no more"), "{error}");
    let inner: &(dyn Error + 'static) = error.get_ref().unwrap();
    let inner = inner.downcast_ref::<ConnectionError>().unwrap();
    assert!(matches!(inner, ConnectionError::ClosedByPeer { .. }), "{inner:?}");
    let error = client.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(start_paused = true)]
async fn the_traits_of_futures_do_the_same() {
    use futures::io::{AsyncBufRead, AsyncRead, AsyncWrite};
    let (mut client, mut server) = streams(4 << 20).await;
    let written = poll_fn(|cx| AsyncWrite::poll_write(Pin::new(&mut client), cx, b"hello")).await.unwrap();
    assert_eq!(written, 5);
    poll_fn(|cx| AsyncWrite::poll_flush(Pin::new(&mut client), cx)).await.unwrap();
    poll_fn(|cx| AsyncWrite::poll_close(Pin::new(&mut client), cx)).await.unwrap();
    let mut out = [0; 3];
    let read = poll_fn(|cx| AsyncRead::poll_read(Pin::new(&mut server), cx, &mut out)).await.unwrap();
    assert_eq!(&out[..read], b"hel");
    let lent = poll_fn(|cx| {
        AsyncBufRead::poll_fill_buf(Pin::new(&mut server), cx).map(|rest| rest.unwrap() == b"lo")
    });
    assert!(lent.await);
    AsyncBufRead::consume(Pin::new(&mut server), 2);
    let read = poll_fn(|cx| AsyncRead::poll_read(Pin::new(&mut server), cx, &mut out)).await.unwrap();
    assert_eq!(read, 0);
}
