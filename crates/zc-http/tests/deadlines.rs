//! When calls end that take too long, in simulated time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tower::{Service, service_fn};
use zc::Fabric;
use zc_http::{Body, BoxError, Channel, Code, Error, ErrorKind, Executed, Limits, Listening, Server};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
/// The deadline of the calls.
const LATE: Duration = Duration::from_millis(250);

/// What goes on at the server.
#[derive(Clone, Default)]
struct Seen {
    calls: Arc<AtomicUsize>,
    /// Bodies that are still being sent.
    answers: Arc<AtomicUsize>,
    go_on: Arc<Notify>,
}

struct Answering(Arc<AtomicUsize>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Seen {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Until the server has nothing left of any call.
    async fn nothing_left(&self) {
        let look = async {
            while self.answers.load(Ordering::SeqCst) > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, look).await.expect("a call goes on");
    }

    async fn handle<B>(self, request: Request<B>) -> Result<Response<BoxBody<Bytes, BoxError>>, Infallible> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.answers.fetch_add(1, Ordering::SeqCst);
        let answering = Answering(self.answers.clone());
        let text = match request.uri().path() {
            "/endless" => Bytes::from_static(&[7; 1000]),
            "/hold" => {
                self.go_on.notified().await;
                Bytes::new()
            }
            _ => request
                .headers()
                .get("grpc-timeout")
                .map_or(Bytes::new(), |left| left.as_bytes().to_vec().into()),
        };
        let times = if request.uri().path() == "/endless" { usize::MAX } else { 1 };
        let frames = futures::stream::repeat(text).take(times).map(move |bytes| {
            let _sent_by = &answering;
            Ok(Frame::data(bytes))
        });
        Ok(Response::new(BodyExt::boxed(StreamBody::new(frames))))
    }
}

fn serve(listener: impl Into<Listening> + Send + 'static, limits: Limits) -> Seen {
    let seen = Seen::default();
    let handler = seen.clone();
    let service = service_fn(move |request: Request<Body>| handler.clone().handle(request));
    tokio::spawn(Server::new().limits(limits).serve(listener, service));
    seen
}

fn request(path: &str, timeout: Option<&str>) -> Request<Empty<Bytes>> {
    let mut request = Request::get(format!("http://localhost{path}"));
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    request.body(Empty::new()).unwrap()
}

async fn text(answer: Result<Response<Body>, Error>) -> String {
    let bytes = answer.unwrap().into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.into()).unwrap()
}

/// One call at a time, the others wait for it.
async fn one_at_a_time(name: &str) -> (Seen, Channel) {
    let fabric = Fabric::auto().unwrap();
    let mut limits = Limits::default();
    limits.max_calls = 1;
    let seen = serve(fabric.listen(name).await.unwrap(), limits);
    (seen, Channel::new(&fabric, name).unwrap())
}

async fn hold(seen: &Seen, channel: &mut Channel) -> tokio::task::JoinHandle<Result<Response<Body>, Error>> {
    let held = tokio::spawn(channel.call(request("/hold", None)));
    while seen.calls() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    held
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_ends_does_whether_it_is_read_or_not() {
    let fabric = Fabric::auto().unwrap();
    let seen = serve(fabric.listen("zc+mem://deadlines-endless").await.unwrap(), Limits::default());
    let mut channel = Channel::new(&fabric, "zc+mem://deadlines-endless").unwrap();
    for is_read in [false, true] {
        let began = Instant::now();
        let mut body = channel.call(request("/endless", Some("250m"))).await.unwrap().into_body();
        let ended = if is_read {
            loop {
                match body.frame().await.unwrap() {
                    Ok(_) => sleep(Duration::from_millis(1)).await,
                    Err(error) => break error,
                }
            }
        } else {
            seen.nothing_left().await;
            // Of what is here already nothing is given out.
            body.frame().await.unwrap().unwrap_err()
        };
        assert!(matches!(ended.kind(), ErrorKind::Deadline), "{ended:?}");
        assert_eq!(ended.executed(), Executed::Maybe);
        assert!(began.elapsed() >= LATE && began.elapsed() < 2 * LATE, "{:?}", began.elapsed());
        seen.nothing_left().await;
        // Nor does it hold its place.
        channel.ping().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_handed_over_whole_and_not_read_ends() {
    const SIZE: usize = 10 << 20;
    let fabric = Fabric::auto().unwrap();
    let uri = "zc+mem://deadlines-whole";
    let listener = fabric.listen(uri).await.unwrap();
    let service = service_fn(|_request: Request<Body>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![7; SIZE]))))
    });
    // While an answer counts as running, the next one is refused.
    tokio::spawn(Server::new().concurrency_limit(1).serve(listener, service));
    let mut channel = Channel::new(&fabric, uri).unwrap();
    let is_refused = async |mut channel: Channel| match channel.call(request("/", None)).await {
        Ok(answer) => {
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), SIZE);
            false
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Reset(Code::REFUSED)), "{error:?}");
            true
        }
    };
    let _unread = channel.call(request("/", Some("250m"))).await.unwrap();
    sleep(LATE / 2).await;
    assert!(is_refused(channel.clone()).await, "it still waits to be taken");
    sleep(LATE).await;
    assert!(!is_refused(channel.clone()).await, "its deadline has passed");
    // And what is taken in time no longer counts, and is whole.
    let read = channel.call(request("/", Some("250m"))).await.unwrap();
    assert_eq!(read.into_body().collect().await.unwrap().to_bytes().len(), SIZE);
    assert!(!is_refused(channel.clone()).await);
}

#[tokio::test(start_paused = true)]
async fn what_a_call_waits_for_its_turn_is_taken_off_its_time() {
    let (seen, mut channel) = one_at_a_time("zc+mem://deadlines-queue").await;
    assert_eq!(text(channel.call(request("/", Some("1000m"))).await).await, "1000m", "it need not wait");
    seen.calls.store(0, Ordering::SeqCst);
    let held = hold(&seen, &mut channel).await;
    let (mut with, mut without) = (channel.clone(), channel.clone());
    let with = tokio::spawn(async move { text(with.call(request("/", Some("1000m"))).await).await });
    let without = tokio::spawn(async move { text(without.call(request("/", None)).await).await });
    sleep(Duration::from_millis(400)).await;
    assert_eq!(seen.calls(), 1, "they are in the queue");
    seen.go_on.notify_one();
    let left = with.await.unwrap();
    let micros: u64 = left.strip_suffix('u').unwrap().parse().unwrap();
    assert!((590_000..=600_000).contains(&micros), "{left}");
    assert_eq!(without.await.unwrap(), "");
    held.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_late_before_its_turn_is_never_sent() {
    let (seen, mut channel) = one_at_a_time("zc+mem://deadlines-expired").await;
    let held = hold(&seen, &mut channel).await;
    let began = Instant::now();
    let late = channel.call(request("/", Some("250m"))).await.unwrap_err();
    assert!(matches!(late.kind(), ErrorKind::Deadline), "{late:?}");
    assert_eq!((late.executed(), late.is_retryable()), (Executed::No, false));
    assert!(began.elapsed() >= LATE && began.elapsed() < 2 * LATE, "{:?}", began.elapsed());
    seen.go_on.notify_one();
    held.await.unwrap().unwrap();
    channel.ping().await.unwrap();
    assert_eq!(seen.calls(), 1);
    // The time begins with the call, and not when somebody looks at it.
    let call = channel.call(request("/", Some("250m")));
    sleep(2 * LATE).await;
    let late = call.await.unwrap_err();
    assert!(matches!((late.kind(), late.executed()), (ErrorKind::Deadline, Executed::No)), "{late:?}");
    channel.ping().await.unwrap();
    assert_eq!(seen.calls(), 1);
    // And before there is a connection.
    let fabric = Fabric::auto().unwrap();
    let _nobody_serves = fabric.listen("zc+mem://deadlines-silent").await.unwrap();
    let mut channel = Channel::new(&fabric, "zc+mem://deadlines-silent").unwrap();
    let late = channel.call(request("/", Some("250m"))).await.unwrap_err();
    assert!(matches!((late.kind(), late.executed()), (ErrorKind::Deadline, Executed::No)), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_deadline_calls_wait_as_long_as_it_takes() {
    let (seen, mut channel) = one_at_a_time("zc+mem://deadlines-none").await;
    let held = hold(&seen, &mut channel).await;
    let mut other = channel.clone();
    let waiting = tokio::spawn(async move { text(other.call(request("/", None)).await).await });
    sleep(100 * LONG).await;
    assert!(!waiting.is_finished() && !held.is_finished());
    seen.go_on.notify_one();
    assert_eq!(waiting.await.unwrap(), "");
    held.await.unwrap().unwrap();
}

#[tokio::test]
async fn without_a_runtime_it_is_an_error() {
    let fabric = Fabric::auto().unwrap();
    let mut channel = Channel::new(&fabric, "zc+mem://deadlines-no-runtime").unwrap();
    let call = move || channel.call(request("/", Some("250m"))).now_or_never();
    let failed = std::thread::spawn(call).join().unwrap().expect("it waits for nobody").unwrap_err();
    assert!(matches!(failed.kind(), ErrorKind::NoRuntime), "{failed:?}");
    assert_eq!(failed.executed(), Executed::No);
}

#[cfg(feature = "hyper")]
mod beside_zc {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn over_http2_an_answer_ends_that_nobody_reads() {
        let fabric = Fabric::auto().unwrap();
        let uri = "zc+mem://deadlines-http2";
        let seen = serve(fabric.listen_mixed(uri).await.unwrap(), Limits::default());
        let io = TokioIo::new(fabric.connect_plain(uri).await.unwrap());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let mut grpc = request("/endless", Some("250m"));
        grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        for request in [request("/endless", Some("250m")), grpc] {
            let began = Instant::now();
            let answer = sender.send_request(request).await.unwrap();
            // It fills its window, and then nobody asks the body.
            sleep(LATE / 2).await;
            assert_eq!(seen.answers.load(Ordering::SeqCst), 1);
            seen.nothing_left().await;
            assert!(began.elapsed() >= LATE && began.elapsed() < 2 * LATE, "{:?}", began.elapsed());
            assert!(answer.into_body().collect().await.is_err(), "it is cut off");
        }
        let still = sender.send_request(request("/", Some("1000m"))).await.unwrap();
        assert_eq!(still.into_body().collect().await.unwrap().to_bytes(), "1000m", "the connection goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn over_http1_its_connection_ends() {
        let fabric = Fabric::auto().unwrap();
        let uri = "zc+mem://deadlines-http1";
        let seen = serve(fabric.listen_mixed(uri).await.unwrap(), Limits::default());
        let mut client = fabric.connect_plain(uri).await.unwrap();
        client.write_all(b"GET /endless HTTP/1.1\r\nhost: a\r\ngrpc-timeout: 250m\r\n\r\n").await.unwrap();
        sleep(LATE / 2).await;
        assert_eq!(seen.answers.load(Ordering::SeqCst), 1);
        seen.nothing_left().await;
        let mut all = Vec::new();
        timeout(LONG, client.read_to_end(&mut all)).await.expect("it stays open").unwrap();
        assert!(all.starts_with(b"HTTP/1.1 200 OK") && !all.ends_with(b"0\r\n\r\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_fell_back_looks_at_its_deadline_first() {
        // A server that knows of no deadlines.
        let fabric = Fabric::auto().unwrap();
        let uri = "zc+mem://deadlines-stock";
        let mut incoming = zc_http::ZcIncoming::new(fabric.listen_mixed(uri).await.unwrap());
        let seen = Seen::default();
        let handler = seen.clone();
        tokio::spawn(async move {
            while let Some(Ok(stream)) = incoming.next().await {
                let handler = handler.clone();
                let service = hyper::service::service_fn(move |request| handler.clone().handle(request));
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        let mut channel = Channel::builder().fall_back(true).build(&fabric, uri).unwrap();
        channel.connect().await.unwrap();
        let began = Instant::now();
        let mut body = channel.call(request("/endless", Some("250m"))).await.unwrap().into_body();
        let ended = loop {
            match body.frame().await.unwrap() {
                Ok(_) => sleep(Duration::from_millis(1)).await,
                Err(error) => break error,
            }
        };
        assert!(matches!(ended.kind(), ErrorKind::Deadline), "{ended:?}");
        assert!(began.elapsed() < 2 * LATE, "{:?}", began.elapsed());
        seen.nothing_left().await;
    }
}
