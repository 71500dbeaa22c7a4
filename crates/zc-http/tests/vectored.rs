//! Slices that are written together go out together.

#![cfg(feature = "hyper")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zc::{Fabric, Incoming};
use zc_http::ZcStream;

const HANG: Duration = Duration::from_secs(60);
/// More than the kernel takes in one write.
const MANY: usize = 1500;

async fn write(stream: &mut ZcStream, slices: &[IoSlice<'_>]) -> usize {
    assert!(stream.is_write_vectored());
    poll_fn(|cx| Pin::new(&mut *stream).poll_write_vectored(cx, slices)).await.unwrap()
}

fn slices<'a>() -> [IoSlice<'a>; 4] {
    [&b"one "[..], b"", b"write ", b"for all"].map(IoSlice::new)
}

#[tokio::test]
async fn over_zc_they_are_one_message() {
    for uri in ["zc+mem://vectored", "zc+tcp://127.0.0.1:0"] {
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen(uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        let (client, mut server) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
        let mut stream = ZcStream::new(client).unwrap();
        assert_eq!(write(&mut stream, &slices()).await, 17);
        stream.flush().await.unwrap();
        let message = tokio::time::timeout(HANG, server.recv()).await.expect("it hangs").unwrap().unwrap();
        assert_eq!(message.as_contiguous().unwrap(), b"one write for all");
    }
}

#[tokio::test]
async fn on_a_plain_link_they_are_one_write() {
    let path = format!("zc+unix://@zc-vectored-{}", std::process::id());
    for uri in ["zc+tcp://127.0.0.1:0", &path] {
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen_mixed(uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        let mut stream = ZcStream::from(fabric.connect_plain(&uri).await.unwrap());
        // Without, the first alone would go.
        assert_eq!(write(&mut stream, &slices()).await, 17);
        let many = vec![IoSlice::new(b"x"); MANY];
        let count = write(&mut stream, &many).await;
        assert!(count > 1 && count < MANY, "{count}");
        stream.shutdown().await.unwrap();
        let accepted = tokio::time::timeout(HANG, listener.accept()).await.expect("it hangs").unwrap();
        let Incoming::Plain(mut server) = accepted else { panic!("that was no HELLO") };
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, format!("one write for all{}", "x".repeat(count)));
    }
}

#[tokio::test]
async fn a_link_that_knows_no_slices_writes_them_one_by_one() {
    let fabric = Fabric::auto().unwrap();
    let mut listener = fabric.listen_mixed("zc+mem://vectored-plain").await.unwrap();
    let mut stream = ZcStream::from(fabric.connect_plain("zc+mem://vectored-plain").await.unwrap());
    assert!(!stream.is_write_vectored());
    let mut slices = &mut slices()[..];
    while !slices.is_empty() {
        let count = poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, slices)).await.unwrap();
        IoSlice::advance_slices(&mut slices, count);
    }
    stream.shutdown().await.unwrap();
    let accepted = tokio::time::timeout(HANG, listener.accept()).await.expect("it hangs").unwrap();
    let Incoming::Plain(mut server) = accepted else { panic!("that was no HELLO") };
    let mut text = String::new();
    server.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "one write for all");
}
