//! What docs/http.md says of calls over HTTP/2 whose bodies nobody reads.

#![cfg(feature = "hyper")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinHandle;
use tower::{ServiceExt, service_fn};
use zc::Fabric;
use zc_http::{Body, Channel, Limits, Protocol, Server, ZcIncoming};

const HANG: Duration = Duration::from_secs(60);
/// Simulated: longer than anything here takes.
const LONG: Duration = Duration::from_secs(10);
const WINDOW: u32 = 64 << 10;

/// With room for so many calls that stall.
fn limits(stalled: u32) -> Limits {
    let mut limits = Limits::default();
    limits.call_window_bytes = WINDOW;
    limits.connection_window_bytes = stalled * WINDOW;
    limits
}

/// A server on HTTP/2 that answers each call with twice the window.
async fn serve_long_answers(fabric: &Fabric, uri: &str) {
    let mut incoming = ZcIncoming::new(fabric.listen_mixed(uri).await.unwrap());
    tokio::spawn(async move {
        let long = |_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![1; 2 * WINDOW as usize]))))
        };
        while let Some(Ok(stream)) = incoming.next().await {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), hyper::service::service_fn(long)));
        }
    });
}

async fn answer(channel: &Channel) -> Response<Body> {
    let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    let call = channel.clone().oneshot(request);
    tokio::time::timeout(HANG, call).await.expect("it hangs").unwrap()
}

#[tokio::test(start_paused = true)]
async fn answers_that_nobody_reads_leave_others_what_the_window_has_beyond_them() {
    let (fabric, uri) = (Fabric::auto().unwrap(), "zc+mem://stalled-http2-answers");
    serve_long_answers(&fabric, uri).await;
    let channel = Channel::builder().fall_back(true).limits(limits(21)).build(&fabric, uri).unwrap();
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(answer(&channel).await);
    }
    assert_eq!(channel.protocol(), Some(Protocol::Http2));
    for _ in 0..10 {
        let read = tokio::time::timeout(LONG, answer(&channel).await.into_body().collect()).await;
        assert_eq!(read.expect("it waits").unwrap().to_bytes().len(), 2 * WINDOW as usize);
    }
    // One more, and nothing is left: until one is dropped.
    stalled.push(answer(&channel).await);
    let mut waits = Box::pin(answer(&channel).await.into_body().collect());
    assert!(tokio::time::timeout(LONG, &mut waits).await.is_err(), "the page says less than is true");
    stalled.pop();
    assert!(tokio::time::timeout(LONG, waits).await.expect("it waits").is_ok());
}

#[tokio::test(start_paused = true)]
async fn questions_that_nobody_reads_do_the_same_at_the_server() {
    let (fabric, uri) = (Fabric::auto().unwrap(), "zc+mem://stalled-http2-questions");
    let service = service_fn(|request: Request<Body>| async move {
        if request.uri().path() == "/stall" {
            let _held = request;
            return std::future::pending().await;
        }
        Ok::<_, Infallible>(Response::new(request.into_body()))
    });
    let listener = fabric.listen_mixed(uri).await.unwrap();
    tokio::spawn(Server::new().limits(limits(21)).serve(listener, service));
    let io = TokioIo::new(fabric.connect_plain(uri).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let call = |path: &str| {
        let body = Full::new(Bytes::from(vec![1; 2 * WINDOW as usize]));
        let request = Request::post(format!("http://localhost{path}")).body(body).unwrap();
        let mut sender = sender.clone();
        tokio::spawn(async move { sender.send_request(request).await.unwrap().into_body().collect().await })
    };
    let mut stalled: Vec<_> = (0..20).map(|_| call("/stall")).collect();
    tokio::time::sleep(LONG).await;
    for _ in 0..10 {
        let echoed = tokio::time::timeout(LONG, call("/echo")).await.expect("it waits").unwrap();
        assert_eq!(echoed.unwrap().to_bytes().len(), 2 * WINDOW as usize);
    }
    // One more, and nothing is left: until one is given up.
    stalled.push(call("/stall"));
    tokio::time::sleep(LONG).await;
    assert!(!stalled.iter().any(JoinHandle::is_finished), "one was answered, or refused");
    let mut waits = call("/echo");
    assert!(tokio::time::timeout(LONG, &mut waits).await.is_err(), "the page says less than is true");
    stalled.pop().unwrap().abort();
    let echoed = tokio::time::timeout(LONG, waits).await.expect("it waits").unwrap();
    assert_eq!(echoed.unwrap().to_bytes().len(), 2 * WINDOW as usize);
}
