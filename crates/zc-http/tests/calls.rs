//! Calls from outside: bodies, trailers, cancellation, limits, and how connections end.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use futures::channel::mpsc;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use tokio::sync::Notify;
use tower::{ServiceExt, service_fn};
use zc::Fabric;
use zc_http::{Body, Channel, Error, ErrorKind, Executed, Limits, Server};

/// A hang guard, not a bound on speed.
const HANG: Duration = Duration::from_secs(60);

type Answer = Result<Response<BoxBody<Bytes, zc_http::BoxError>>, Infallible>;

fn full(bytes: impl Into<Bytes>) -> BoxBody<Bytes, zc_http::BoxError> {
    Full::new(bytes.into()).map_err(Into::into).boxed()
}

/// Counts handlers that are alive.
#[derive(Clone, Default)]
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn enter(&self) -> AliveGuard {
        self.0.fetch_add(1, Ordering::SeqCst);
        AliveGuard(self.0.clone())
    }

    async fn wait_for(&self, count: usize) {
        until(|| self.0.load(Ordering::SeqCst) == count).await;
    }
}

struct AliveGuard(Arc<AtomicUsize>);

impl Drop for AliveGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn until(condition: impl Fn() -> bool) {
    let look = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HANG, look).await.expect("it never came");
}

/// What the tests call.
async fn handle(alive: Alive, request: Request<Body>) -> Answer {
    let _guard = alive.enter();
    let (parts, body) = request.into_parts();
    Ok(match parts.uri.path() {
        "/echo" => Response::new(body.map_err(Into::into).boxed()),
        "/collect" => Response::new(full(body.collect().await.map_or(Bytes::new(), |body| body.to_bytes()))),
        "/method" => Response::builder()
            .status(201)
            .header("query", parts.uri.query().unwrap_or("none"))
            .header("x", parts.headers.get("x").cloned().unwrap_or(HeaderValue::from_static("none")))
            .body(full(parts.method.to_string()))
            .unwrap(),
        "/early" => Response::new(full("early")),
        "/large" => Response::new(full(vec![7; 3 << 20])),
        "/never" => {
            let _held = body;
            std::future::pending().await
        }
        "/broken" => {
            let frames = [Ok(Frame::data(Bytes::from_static(b"half"))), Err("broken".into())];
            Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))))
        }
        "/panic" => panic!("as asked"),
        "/headers" => {
            let mut response = Response::new(full(""));
            let value = HeaderValue::from_bytes(&[b'v'; 20_000]).unwrap();
            response.headers_mut().insert("long", value);
            response
        }
        "/trailers" => {
            let trailers = HeaderMap::from_iter([("a".parse().unwrap(), HeaderValue::from_static("b"))]);
            let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
            Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))))
        }
        _ => Response::builder().status(404).body(full("")).unwrap(),
    })
}

struct World {
    channel: Channel,
    alive: Alive,
    server: tokio::task::JoinHandle<()>,
    stop: Arc<Notify>,
    uri: String,
}

async fn world(uri: &str, server: Server, limits: Limits) -> World {
    let fabric = Fabric::auto().unwrap();
    let listener = fabric.listen(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    let (alive, stop) = (Alive::default(), Arc::new(Notify::new()));
    let (handlers, stopping) = (alive.clone(), stop.clone());
    let service = service_fn(move |request| handle(handlers.clone(), request));
    let signal = async move { stopping.notified().await };
    let server = tokio::spawn(server.serve_with_shutdown(listener, service, signal));
    let channel = Channel::builder().limits(limits).build(&fabric, &uri).unwrap();
    World { channel, alive, server, stop, uri }
}

fn small_windows() -> Limits {
    let mut limits = Limits::default();
    limits.call_window_bytes = 10_000;
    limits.connection_window_bytes = 100_000;
    limits.max_body_frame_bytes = 4096;
    limits.max_calls = 8;
    limits
}

impl World {
    async fn mem(name: &str) -> Self {
        world(&format!("zc+mem://calls-{name}"), Server::new(), Limits::default()).await
    }

    async fn call<B>(&self, path: &str, body: B) -> Result<Response<Body>, Error>
    where
        B: http_body::Body<Data = Bytes, Error: Into<zc_http::BoxError>> + Send + 'static,
    {
        let request = Request::post(path).body(body).unwrap();
        let call = self.channel.clone().oneshot(request);
        tokio::time::timeout(HANG, call).await.expect("the call hangs")
    }

    async fn text(&self, path: &str, body: &'static str) -> Result<Bytes, Error> {
        let response = self.call(path, Full::new(Bytes::from_static(body.as_bytes()))).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }
}

#[tokio::test]
async fn heads_bodies_and_trailers_on_every_transport() {
    let name = format!("zc-calls-all-{}", std::process::id());
    let (unix, shm) = (format!("zc+unix://@{name}"), format!("zc+shm://@{name}-shm"));
    for uri in ["zc+mem://calls-all", "zc+tcp://127.0.0.1:0", &unix, &shm] {
        for limits in [Limits::default(), small_windows()] {
            let world = world(uri, Server::new().limits(limits.clone()), limits).await;
            assert_eq!(world.text("/echo", "hello").await.unwrap(), "hello");
            assert_eq!(world.text("/collect", "hello").await.unwrap(), "hello");
            let request = Request::put("/method?a=b").header("x", "y").body(Empty::<Bytes>::new()).unwrap();
            let response = world.channel.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), 201);
            assert_eq!(
                (&response.headers()["query"], &response.headers()["x"]),
                (&"a=b".parse().unwrap(), &"y".parse().unwrap())
            );
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "PUT");
            let trailers =
                world.call("/trailers", Empty::new()).await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(trailers.trailers().unwrap()["a"], "b");
            assert_eq!(trailers.to_bytes(), "body");
            let large = Bytes::from((0..2_000_000_u32).map(|n| n as u8).collect::<Vec<_>>());
            let echoed = world.call("/echo", Full::new(large.clone())).await.unwrap();
            assert_eq!(echoed.into_body().collect().await.unwrap().to_bytes(), large);
            assert_eq!(world.call("/nothing", Empty::new()).await.unwrap().status(), 404);
            world.channel.ping().await.unwrap();
            world.stop.notify_one();
            world.server.await.unwrap();
        }
    }
}

#[tokio::test]
async fn both_directions_stream_at_the_same_time() {
    let world = World::mem("bidi").await;
    let (mut tx, rx) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let mut answer = world.call("/echo", StreamBody::new(rx)).await.unwrap().into_body();
    for n in 0..100_u8 {
        tx.send(Ok(Frame::data(Bytes::from(vec![n; 10])))).await.unwrap();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), vec![n; 10]);
    }
    drop(tx);
    assert!(answer.frame().await.is_none());
    world.alive.wait_for(0).await;
}

#[tokio::test]
async fn a_stalled_stream_never_blocks_the_others() {
    let world = world("zc+mem://calls-stalled", Server::new().limits(small_windows()), small_windows()).await;
    let mut stalled = Vec::new();
    for _ in 0..5 {
        // Nobody takes their bodies.
        stalled.push(world.call("/large", Empty::new()).await.unwrap());
    }
    for _ in 0..200 {
        assert_eq!(world.text("/echo", "hello").await.unwrap(), "hello");
    }
    for response in stalled {
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 3 << 20);
    }
}

#[tokio::test]
async fn dropping_a_call_ends_its_handler_and_frees_its_place() {
    let world = world("zc+mem://calls-drop", Server::new().limits(small_windows()), Limits::default()).await;
    for _ in 0..5 {
        // As many as go at a time, and one that waits for its place.
        let calls: Vec<_> = (0..9).map(|_| Box::pin(world.call("/never", Empty::new()))).collect();
        let mut all = futures::future::join_all(calls);
        let started = world.alive.wait_for(8);
        tokio::select! {
            _ = &mut all => panic!("nobody answers"),
            () = started => {}
        }
        drop(all);
        world.alive.wait_for(0).await;
    }
    assert_eq!(world.text("/echo", "still here").await.unwrap(), "still here");
}

#[tokio::test]
async fn dropping_a_response_body_ends_the_call() {
    let world = World::mem("drop-body").await;
    let (tx, rx) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let response = world.call("/echo", StreamBody::new(rx)).await.unwrap();
    drop(response);
    // The request's body is dropped with the call.
    until(|| tx.is_closed()).await;
}

#[tokio::test]
async fn an_early_answer_stops_the_question() {
    let world = World::mem("early").await;
    let (mut tx, rx) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let response = world.call("/early", StreamBody::new(rx)).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "early");
    let sent = async { while tx.send(Ok(Frame::data(Bytes::from_static(b"more")))).await.is_ok() {} };
    tokio::time::timeout(HANG, sent).await.expect("the body goes on for ever");
}

#[tokio::test]
async fn what_breaks_ends_its_own_call_only() {
    let world = World::mem("breaks").await;
    // Whether the head still arrives depends on when the body broke.
    let broken = world.text("/broken", "").await.unwrap_err();
    assert!(matches!(broken.kind(), ErrorKind::Reset(code) if *code == zc_http::Code::INTERNAL));
    let panicked = world.text("/panic", "").await.unwrap_err();
    assert_eq!(panicked.executed(), Executed::Maybe);
    assert!(world.text("/headers", "").await.is_err());
    let frames = [Ok(Frame::data(Bytes::from_static(b"a"))), Err("my own error")];
    let mine = world.call("/collect", StreamBody::new(futures::stream::iter(frames))).await.unwrap_err();
    assert!(mine.to_string().contains("my own error"), "{mine}");
    let long = Request::get("/echo").header("long", "v".repeat(20_000)).body(Empty::<Bytes>::new()).unwrap();
    let refused = world.channel.clone().oneshot(long).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::HeadersTooLarge));
    assert_eq!(refused.executed(), Executed::No);
    assert_eq!(world.text("/echo", "alive").await.unwrap(), "alive");
    world.alive.wait_for(0).await;
}

#[tokio::test]
async fn beyond_the_concurrency_limit_calls_are_refused_and_can_be_made_again() {
    let world = world("zc+mem://calls-limit", Server::new().concurrency_limit(2), Limits::default()).await;
    let (one, two) = (world.call("/never", Empty::new()), world.call("/never", Empty::new()));
    let mut held = Box::pin(futures::future::join(one, two));
    tokio::select! {
        _ = &mut held => panic!("nobody answers"),
        () = world.alive.wait_for(2) => {}
    }
    let refused = world.text("/echo", "a").await.unwrap_err();
    assert!(refused.is_retryable(), "{refused:?}");
    drop(held);
    world.alive.wait_for(0).await;
    assert_eq!(world.text("/echo", "a").await.unwrap(), "a");
}

#[tokio::test]
async fn shutting_down_finishes_what_is_under_way() {
    let world = World::mem("shutdown").await;
    let (mut tx, rx) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let mut answer = world.call("/echo", StreamBody::new(rx)).await.unwrap().into_body();
    world.stop.notify_one();
    // The channel hears of it, and finds nobody else.
    let gone = async {
        loop {
            match world.text("/echo", "new").await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        }
    };
    let gone = tokio::time::timeout(HANG, gone).await.unwrap();
    assert_eq!(gone.executed(), Executed::No, "{gone:?}");
    tx.send(Ok(Frame::data(Bytes::from_static(b"last words")))).await.unwrap();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "last words");
    drop(tx);
    assert!(answer.frame().await.is_none());
    tokio::time::timeout(HANG, world.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lost_server_fails_its_calls_and_a_new_one_is_found() {
    // An address of its own, whose ports no other test takes.
    let world = world("zc+tcp://127.0.0.77:0", Server::new(), Limits::default()).await;
    let held = world.call("/never", Empty::new());
    let mut held = Box::pin(held);
    tokio::select! {
        _ = &mut held => panic!("nobody answers"),
        () = world.alive.wait_for(1) => {}
    }
    world.server.abort();
    let lost = held.await.unwrap_err();
    assert_eq!(lost.executed(), Executed::Maybe, "{lost:?}");
    world.alive.wait_for(0).await;
    let nobody = world.text("/echo", "a").await.unwrap_err();
    assert_eq!(nobody.executed(), Executed::No, "{nobody:?}");
    let fabric = Fabric::auto().unwrap();
    let listener = fabric.listen(&world.uri).await.unwrap();
    let alive = world.alive.clone();
    tokio::spawn(Server::new().serve(listener, service_fn(move |request| handle(alive.clone(), request))));
    assert_eq!(world.text("/echo", "again").await.unwrap(), "again");
}

#[tokio::test]
async fn a_lost_client_ends_its_handlers() {
    let world = World::mem("lost-client").await;
    let channel = world.channel.clone();
    let alive = world.alive.clone();
    drop(world.channel);
    let call = tokio::spawn(channel.oneshot(Request::get("/never").body(Empty::<Bytes>::new()).unwrap()));
    alive.wait_for(1).await;
    call.abort();
    alive.wait_for(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_counts_from_the_call_on() {
    let world = World::mem("deadline").await;
    for path in ["/never", "/echo"] {
        let (_tx, rx) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
        let body = StreamBody::new(rx);
        let request = Request::post(path).header("grpc-timeout", "250m").body(body).unwrap();
        let began = tokio::time::Instant::now();
        let failed = match world.channel.clone().oneshot(request).await {
            Ok(response) => response.into_body().collect().await.map(drop).unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(failed.kind(), ErrorKind::Deadline | ErrorKind::Reset(_)), "{failed:?}");
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(250) && took < Duration::from_millis(500), "{took:?}");
        world.alive.wait_for(0).await;
    }
}

#[tokio::test]
async fn many_calls_at_a_time_on_many_threads() {
    let world = Arc::new(World::mem("many").await);
    let calls = (0..64).map(|n: usize| {
        let world = world.clone();
        tokio::spawn(async move {
            for round in 0..50 {
                let bytes = Bytes::from(vec![n as u8; (n * 997 + round * 131) % 40_000]);
                let path = ["/echo", "/collect"][round % 2];
                let echoed = world.call(path, Full::new(bytes.clone())).await.unwrap();
                assert_eq!(echoed.into_body().collect().await.unwrap().to_bytes(), bytes);
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn a_body_is_moved_and_not_copied() {
    let fabric = Fabric::auto().unwrap();
    let (client, server) = zc::testing::pair(&fabric).await.unwrap();
    let service = service_fn(|request| handle(Alive::default(), request));
    tokio::spawn(async move { Server::new().serve_connection(server, service).await });
    let channel = Channel::builder().on(client).await.unwrap();
    let body = Bytes::from(vec![1; 32 << 10]);
    let request = Request::post("/collect").body(Full::new(body.clone())).unwrap();
    let response = channel.clone().oneshot(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    let (_, http) = channel.ledgers().unwrap();
    assert_eq!(http.copied_bytes(), 0);
}
