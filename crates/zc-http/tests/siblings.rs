//! Channels behind one load balancer, in simulated time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PendingRequests};
use tower::{Service, ServiceExt, service_fn};
use zc::Fabric;
use zc_http::{Body, BoxError, Channel, Error, ErrorKind, Executed, Server, Siblings};

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

/// Is there, and refuses everything beyond `places` calls at a time, each of which takes a while.
async fn serve_few(fabric: &Fabric, uri: &str, places: usize) -> (JoinHandle<()>, Arc<AtomicUsize>) {
    let listener = fabric.listen(uri).await.unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let counted = served.clone();
    let hello = service_fn(move |_: Request<Body>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        }
    });
    (tokio::spawn(Server::new().concurrency_limit(places).serve(listener, hello)), served)
}

async fn refused(channel: &mut Channel) {
    let error = call(channel).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Reset(_)), "{error:?}");
    assert!(error.is_retryable());
}

/// How long it takes until a channel is ready.
async fn rests(channel: &mut Channel) -> Duration {
    let began = Instant::now();
    timeout(LONG, ready(channel)).await.unwrap();
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_rests_while_another_takes_calls() {
    let (fabric, uris) = (Fabric::auto().unwrap(), ["zc+mem://siblings-e", "zc+mem://siblings-f"]);
    let (_refuses, _) = serve_few(&fabric, uris[0], 0).await;
    let (_one, _) = serve_few(&fabric, uris[1], 1).await;
    let [mut a, mut b] = channels(&fabric, uris);
    a.connect().await.unwrap();
    b.connect().await.unwrap();
    let mut expected = 100;
    for _ in 0..10 {
        refused(&mut a).await;
        // That those who were under way are refused as well makes it no longer.
        refused(&mut a).await;
        let took = rests(&mut a).await.as_millis();
        assert!(took <= expected + 5 && took >= expected * 4 / 5 - 5, "{took} of {expected} ms");
        assert!(rests(&mut b).await.is_zero());
        expected = (2 * expected).min(10_000);
    }
    // Once no other takes calls, there is nothing to wait for.
    refused(&mut a).await;
    let mut waiting = a.clone();
    let waiting = tokio::spawn(async move { rests(&mut waiting).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!waiting.is_finished());
    let mut busy = b.clone();
    let busy = tokio::spawn(async move { call(&mut busy).await });
    tokio::task::yield_now().await;
    refused(&mut b).await;
    assert!(waiting.await.unwrap() < Duration::from_millis(30));
    assert!(rests(&mut b).await.is_zero(), "nor for this one");
    busy.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_makes_the_next_pause_short() {
    let (fabric, uris) = (Fabric::auto().unwrap(), ["zc+mem://siblings-i", "zc+mem://siblings-j"]);
    let (_one, _) = serve_few(&fabric, uris[0], 1).await;
    let _server = serve(&fabric, uris[1]).await;
    let [mut a, b] = channels(&fabric, uris);
    a.connect().await.unwrap();
    b.connect().await.unwrap();
    for _ in 0..5 {
        let mut busy = a.clone();
        let busy = tokio::spawn(async move { call(&mut busy).await });
        tokio::time::sleep(Duration::from_millis(1)).await;
        refused(&mut a).await;
        // It was sent before the pause.
        busy.await.unwrap().unwrap();
        let took = rests(&mut a).await.as_millis();
        assert!((60..=105).contains(&took), "{took} ms");
        assert!(call(&mut a).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_balancer_leaves_alone_who_refuses() {
    let (fabric, uris) = (Fabric::auto().unwrap(), ["zc+mem://siblings-g", "zc+mem://siblings-h"]);
    let (_refuses, none) = serve_few(&fabric, uris[0], 0).await;
    let (_works, served) = serve_few(&fabric, uris[1], 1000).await;
    let loads =
        channels(&fabric, uris).map(|channel| PendingRequests::new(channel, CompleteOnResponse::default()));
    let mut balance = Balance::new(ServiceList::new::<Request<Empty<Bytes>>>(Vec::from(loads)));
    let (began, mut refused, mut calls) = (Instant::now(), 0, futures::stream::FuturesUnordered::new());
    for n in 0..1000_usize {
        // Always some under way: who refuses at once has the least to do.
        if calls.len() >= 8 && calls.next().await.is_some_and(|answer: Result<_, BoxError>| answer.is_err()) {
            refused += 1;
        }
        let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
        let ready = timeout(LONG, ServiceExt::<Request<Empty<Bytes>>>::ready(&mut balance)).await;
        calls.push(ready.unwrap_or_else(|_| panic!("call {n} waits")).unwrap().call(request));
    }
    while let Some(answer) = calls.next().await {
        refused += usize::from(answer.is_err());
    }
    // 1000 calls of 10 ms each, 8 at a time: a pause doubles four or five times.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!((none.load(Ordering::SeqCst), served.load(Ordering::SeqCst)), (0, 1000 - refused));
    assert!((1..=60).contains(&refused), "{refused} of 1000 were refused");
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
