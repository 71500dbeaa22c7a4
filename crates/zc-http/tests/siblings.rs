//! Channels behind one load balancer, in simulated time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tower::{Service, ServiceExt, service_fn};
use zc::Fabric;
use zc_http::{Body, Channel, Error, ErrorKind, Executed, Server, Siblings};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(120);
/// The longest pause between attempts, and what connecting takes.
const FOUND_AGAIN: Duration = Duration::from_secs(11);

async fn serve(fabric: &Fabric, uri: &str) -> JoinHandle<()> {
    let listener = fabric.listen(uri).await.unwrap();
    let hello = service_fn(|_: Request<Body>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
    });
    tokio::spawn(Server::new().serve(listener, hello))
}

async fn stop(server: JoinHandle<()>) {
    server.abort();
    let _ = server.await;
}

async fn ready(channel: &mut Channel) {
    ServiceExt::<Request<Empty<Bytes>>>::ready(channel).await.unwrap();
}

async fn is_ready(channel: &mut Channel) -> bool {
    timeout(LONG, ready(channel)).await.is_ok()
}

async fn call(channel: &mut Channel) -> Result<Response<Body>, Error> {
    channel.call(Request::get("/").body(Empty::<Bytes>::new()).unwrap()).await
}

async fn lose(channel: &Channel) {
    // Its server is gone; that is heard soon.
    timeout(LONG, async { while channel.ping().await.is_ok() {} }).await.unwrap();
}

fn channels<const N: usize>(fabric: &Fabric, uris: [&str; N]) -> [Channel; N] {
    let siblings = Siblings::new();
    uris.map(|uri| Channel::builder().siblings(&siblings).build(fabric, uri).unwrap())
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_reached_is_not_ready_while_another_can_be() {
    let (fabric, uris) = (Fabric::auto().unwrap(), ["zc+mem://siblings-a", "zc+mem://siblings-b"]);
    let server_a = serve(&fabric, uris[0]).await;
    let [mut a, mut b] = channels(&fabric, uris);
    // While none is connected, whoever is asked connects with its call.
    assert!(is_ready(&mut a).await && is_ready(&mut b).await);
    assert!(call(&mut a).await.is_ok());
    assert!(is_ready(&mut a).await && !is_ready(&mut b).await);
    assert!(!is_ready(&mut b.clone()).await, "clones are in the same place");
    // Its server comes: it is found by itself.
    let server_b = serve(&fabric, uris[1]).await;
    let began = Instant::now();
    timeout(LONG, ready(&mut b)).await.unwrap();
    assert!(began.elapsed() <= FOUND_AGAIN, "{:?}", began.elapsed());
    assert!(b.report().is_some() && call(&mut b).await.is_ok());
    // The other is lost: now that one is not ready.
    stop(server_a).await;
    lose(&a).await;
    assert!(!is_ready(&mut a).await && is_ready(&mut b).await);
    // The last one is lost while the other waits: calls fail as those of a single channel.
    let mut waiting = a.clone();
    let waiting = tokio::spawn(async move {
        ready(&mut waiting).await;
        waiting
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    stop(server_b).await;
    lose(&b).await;
    assert!(is_ready(&mut b).await);
    let mut a = timeout(LONG, waiting).await.unwrap().unwrap();
    for channel in [&mut a, &mut b] {
        let error = call(channel).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Connect(_)), "{error}");
        assert_eq!((error.executed(), error.is_retryable()), (Executed::No, true));
    }
    // And calls connect again, without a pause.
    let _server = serve(&fabric, uris[0]).await;
    assert!(is_ready(&mut a).await && call(&mut a).await.is_ok());
}

/// Takes connections and ends them.
async fn turn_away(fabric: &Fabric, uri: &str) -> Arc<AtomicUsize> {
    let mut listener = fabric.listen(uri).await.unwrap();
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = attempts.clone();
    tokio::spawn(async move {
        while let Ok(connection) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    });
    attempts
}

#[tokio::test(start_paused = true)]
async fn attempts_to_connect_are_apart() {
    let (fabric, uris) = (Fabric::auto().unwrap(), ["zc+mem://siblings-c", "zc+mem://siblings-d"]);
    let _server = serve(&fabric, uris[0]).await;
    let [mut good, mut bad] = channels(&fabric, uris);
    let attempts = turn_away(&fabric, uris[1]).await;
    assert!(call(&mut good).await.is_ok());
    // 0.1 s, doubled up to 10 s: 7 in 12.7 s, and one in 8 to 10 s from then on.
    assert!(timeout(Duration::from_secs(100), ready(&mut bad)).await.is_err());
    let count = attempts.load(Ordering::SeqCst);
    assert!((15..=20).contains(&count), "{count} attempts in 100 s");
    // Asking again and again, by several clones, changes nothing.
    for _ in 0..1000 {
        let mut clone = bad.clone();
        assert!(timeout(Duration::from_millis(1), ready(&mut clone)).await.is_err());
    }
    let more = attempts.load(Ordering::SeqCst) - count;
    assert!(more <= 1, "{more} attempts in 1 s");
}

#[tokio::test(start_paused = true)]
async fn a_single_channel_is_always_ready() {
    let fabric = Fabric::auto().unwrap();
    let mut channel = Channel::new(&fabric, "zc+mem://siblings-none").unwrap();
    for _ in 0..3 {
        assert!(is_ready(&mut channel).await);
        let error = call(&mut channel).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Connect(_)));
    }
    let _server = serve(&fabric, "zc+mem://siblings-none").await;
    assert!(call(&mut channel).await.is_ok(), "without a pause");
}
