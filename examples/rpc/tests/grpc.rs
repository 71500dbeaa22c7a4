//! gRPC as tonic speaks it, over zc instead of HTTP/2.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use tower::ServiceBuilder;
use zc::Fabric;
use zc_examples_rpc::echo::{self, MAX_MESSAGE};
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_examples_rpc::pb::echo_server::{Echo, EchoServer};
use zc_examples_rpc::pb::{self, Ask, Payload, Summary};
use zc_http::{Channel, Server};

const HANG: Duration = Duration::from_secs(60);
const TRANSPORTS: [&str; 2] = ["zc+mem://grpc-", "zc+tcp://127.0.0.1:0"];

static NAMES: AtomicUsize = AtomicUsize::new(0);

async fn serve(uri: &str, routes: Routes) -> (Channel, JoinHandle<()>) {
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    let uri = if uri.ends_with('-') { format!("{uri}{number}") } else { uri.to_owned() };
    let fabric = Fabric::auto().unwrap();
    let listener = fabric.listen(&uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    let server = tokio::spawn(Server::new().serve(listener, routes));
    (Channel::new(&fabric, &uri).unwrap(), server)
}

fn payload(data: impl Into<Bytes>) -> Payload {
    Payload { data: data.into() }
}

/// Does as its metadata says.
#[derive(Clone, Default)]
struct Obedient {
    alive: Arc<AtomicUsize>,
}

struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn enter(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self(alive.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn wait_for(alive: &AtomicUsize, count: usize) {
    let look = async {
        while alive.load(Ordering::SeqCst) != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HANG, look).await.expect("it never came");
}

type Payloads = Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for Obedient {
    async fn unary(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let _alive = Alive::enter(&self.alive);
        let metadata = request.metadata().clone();
        match metadata.get("do").and_then(|what| what.to_str().ok()) {
            Some("fail") => {
                let details = ErrorDetails::with_bad_request_violation("data", "is not nice");
                let mut status = Status::with_error_details(Code::InvalidArgument, "não é bom", details);
                status.metadata_mut().insert("why", MetadataValue::from_static("because"));
                return Err(status);
            }
            Some("wait") => std::future::pending::<()>().await,
            _ => {}
        }
        let mut response = Response::new(request.into_inner());
        for key in ["x-text"] {
            if let Some(value) = metadata.get(key) {
                response.metadata_mut().insert(key, value.clone());
            }
        }
        if let Some(value) = metadata.get_bin("x-bytes-bin") {
            response.metadata_mut().insert_bin("x-bytes-bin", value.clone());
        }
        Ok(response)
    }

    async fn collect(&self, request: Request<Streaming<Payload>>) -> Result<Response<Summary>, Status> {
        let _alive = Alive::enter(&self.alive);
        echo::EchoService.collect(request).await
    }

    type RepeatStream = Payloads;

    async fn repeat(&self, request: Request<Ask>) -> Result<Response<Payloads>, Status> {
        let alive = Alive::enter(&self.alive);
        let data = request.into_inner().data;
        let endless = stream::repeat(data).map(move |data| {
            let _ = &alive;
            Ok(Payload { data })
        });
        Ok(Response::new(endless.boxed()))
    }

    type ChatStream = Payloads;

    async fn chat(&self, request: Request<Streaming<Payload>>) -> Result<Response<Payloads>, Status> {
        let alive = Alive::enter(&self.alive);
        let answers = request.into_inner().map(move |payload| {
            let _ = &alive;
            payload.and_then(|payload| match &payload.data[..] {
                b"stop" => Err(Status::aborted("as asked")),
                _ => Ok(payload),
            })
        });
        Ok(Response::new(answers.boxed()))
    }
}

#[tokio::test]
async fn all_four_kinds_of_call() {
    for uri in TRANSPORTS {
        let (channel, _server) = serve(uri, Routes::new(echo::service())).await;
        let mut client = EchoClient::new(channel);
        assert_eq!(client.unary(payload("one")).await.unwrap().into_inner().data, "one");
        assert_eq!(client.unary(payload("")).await.unwrap().into_inner().data, "");
        let summary = client.collect(stream::iter((0..100).map(|_| payload("abc")))).await.unwrap();
        assert_eq!(summary.into_inner(), Summary { messages: 100, bytes: 300 });
        let ask = Ask { data: Bytes::from(vec![1; 1000]), times: 300 };
        let answers = client.repeat(ask).await.unwrap().into_inner();
        assert_eq!(answers.filter(|answer| std::future::ready(answer.is_ok())).count().await, 300);
        let (tx, rx) = mpsc::channel(1);
        let mut answers = client.chat(ReceiverStream::new(rx)).await.unwrap().into_inner();
        for n in 0..50_u8 {
            tx.send(payload(vec![n])).await.unwrap();
            assert_eq!(answers.message().await.unwrap().unwrap().data, vec![n]);
        }
        drop(tx);
        assert!(answers.message().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn large_messages_and_their_limit() {
    for uri in TRANSPORTS {
        let (channel, _server) = serve(uri, Routes::new(echo::service())).await;
        let mut client = EchoClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let large = Bytes::from((0..5_000_000_u32).map(|n| (n * 7) as u8).collect::<Vec<_>>());
        assert_eq!(client.unary(payload(large.clone())).await.unwrap().into_inner().data, large);
        let mut strict = EchoClient::new(channel);
        assert_eq!(strict.unary(payload(large)).await.unwrap_err().code(), Code::OutOfRange);
    }
}

#[tokio::test]
async fn metadata_status_and_details() {
    for uri in TRANSPORTS {
        let (channel, _server) = serve(uri, Routes::new(EchoServer::new(Obedient::default()))).await;
        let mut client = EchoClient::new(channel);
        for _ in 0..3 {
            let mut request = Request::new(payload("a"));
            request.metadata_mut().insert("x-text", MetadataValue::from_static("text"));
            request.metadata_mut().insert_bin("x-bytes-bin", MetadataValue::from_bytes(&[0, 255, 10]));
            let response = client.unary(request).await.unwrap();
            assert_eq!(response.metadata().get("x-text").unwrap(), "text");
            let bytes = response.metadata().get_bin("x-bytes-bin").unwrap().to_bytes().unwrap();
            assert_eq!(bytes, [0, 255, 10][..]);
            let mut request = Request::new(payload("a"));
            request.metadata_mut().insert("do", MetadataValue::from_static("fail"));
            let status = client.unary(request).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "não é bom"));
            assert_eq!(status.metadata().get("why").unwrap(), "because");
            let details = status.get_error_details();
            assert_eq!(details.bad_request().unwrap().field_violations[0].field, "data");
        }
        let mut answers =
            client.chat(stream::iter(["a", "stop", "b"].map(payload))).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().data, "a");
        assert_eq!(answers.message().await.unwrap_err().code(), Code::Aborted);
        let mut stranger = tonic_health::pb::health_client::HealthClient::new(
            serve(uri, Routes::new(echo::service())).await.0,
        );
        let status = stranger.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
}

#[tokio::test(start_paused = true)]
async fn deadlines() {
    let service = Obedient::default();
    let (channel, _server) = serve(TRANSPORTS[0], Routes::new(EchoServer::new(service.clone()))).await;
    let mut client = EchoClient::new(channel);
    let mut request = Request::new(payload("a"));
    request.metadata_mut().insert("do", MetadataValue::from_static("wait"));
    request.set_timeout(Duration::from_millis(300));
    let began = tokio::time::Instant::now();
    let status = client.unary(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(began.elapsed() < Duration::from_secs(1));
    wait_for(&service.alive, 0).await;
    let (_tx, rx) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(rx));
    request.set_timeout(Duration::from_millis(300));
    let mut answers = client.chat(request).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    wait_for(&service.alive, 0).await;
}

#[tokio::test]
async fn cancelling_from_both_sides() {
    for uri in TRANSPORTS {
        let service = Obedient::default();
        let (channel, _server) = serve(uri, Routes::new(EchoServer::new(service.clone()))).await;
        let mut client = EchoClient::new(channel);
        let mut request = Request::new(payload("a"));
        request.metadata_mut().insert("do", MetadataValue::from_static("wait"));
        let mut waiting = client.clone();
        let mut call = Box::pin(waiting.unary(request));
        tokio::select! {
            _ = &mut call => panic!("nobody answers"),
            () = wait_for(&service.alive, 1) => {}
        }
        drop(call);
        wait_for(&service.alive, 0).await;
        // An endless answer, left in the middle; and a question whose answer ended.
        let mut endless =
            client.repeat(Ask { data: Bytes::from(vec![0; 10_000]), times: 0 }).await.unwrap().into_inner();
        for _ in 0..20 {
            assert!(endless.message().await.unwrap().is_some());
        }
        drop(endless);
        wait_for(&service.alive, 0).await;
        let (tx, rx) = mpsc::channel(1);
        let mut answers = client.chat(ReceiverStream::new(rx)).await.unwrap().into_inner();
        tx.send(payload("stop")).await.unwrap();
        assert_eq!(answers.message().await.unwrap_err().code(), Code::Aborted);
        tokio::time::timeout(HANG, tx.closed()).await.expect("the question goes on");
    }
}

#[tokio::test]
async fn a_killed_server_is_unavailable_to_every_call() {
    for uri in TRANSPORTS {
        let service = Obedient::default();
        let (channel, server) = serve(uri, Routes::new(EchoServer::new(service.clone()))).await;
        let mut client = EchoClient::new(channel);
        let (_tx, rx) = mpsc::channel(1);
        let mut chat = client.chat(ReceiverStream::new(rx)).await.unwrap().into_inner();
        let calls = (0..10).map(|_| {
            let mut client = client.clone();
            let mut request = Request::new(payload("a"));
            request.metadata_mut().insert("do", MetadataValue::from_static("wait"));
            async move { client.unary(request).await.unwrap_err().code() }
        });
        let mut calls = Box::pin(futures::future::join_all(calls));
        tokio::select! {
            _ = &mut calls => panic!("nobody answers"),
            () = wait_for(&service.alive, 11) => {}
        }
        server.abort();
        let codes = tokio::time::timeout(HANG, calls).await.expect("calls hang");
        assert!(codes.iter().all(|code| *code == Code::Unavailable), "{codes:?}");
        assert_eq!(chat.message().await.unwrap_err().code(), Code::Unavailable);
        wait_for(&service.alive, 0).await;
        assert_eq!(client.unary(payload("a")).await.unwrap_err().code(), Code::Unavailable);
    }
}

#[tokio::test]
async fn compression_and_interceptors() {
    let server = EchoServer::new(echo::EchoService)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    let guarded = tonic::service::interceptor::InterceptedService::new(server, |request: Request<()>| {
        match request.metadata().get("token") {
            Some(_) => Ok(request),
            None => Err(Status::unauthenticated("no token")),
        }
    });
    let mut routes = Routes::builder();
    routes.add_service(guarded);
    let (channel, _server) = serve(TRANSPORTS[1], routes.routes()).await;
    let mut stranger = EchoClient::new(channel.clone());
    assert_eq!(stranger.unary(payload("a")).await.unwrap_err().code(), Code::Unauthenticated);
    let with_token = |mut request: Request<()>| {
        request.metadata_mut().insert("token", MetadataValue::from_static("t"));
        Ok(request)
    };
    let mut client = EchoClient::with_interceptor(channel, with_token)
        .send_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Gzip);
    let text = Bytes::from("zero ".repeat(20_000));
    let response = client.unary(payload(text.clone())).await.unwrap();
    assert_eq!(response.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert_eq!(response.into_inner().data, text);
}

#[tokio::test]
async fn health_and_reflection() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<EchoServer<echo::EchoService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .build_v1()
        .unwrap();
    let routes = Routes::new(echo::service()).add_service(health).add_service(reflection);
    let (channel, _server) = serve(TRANSPORTS[0], routes).await;
    let mut client = HealthClient::new(channel.clone());
    let service = "zc.examples.echo.v1.Echo".to_owned();
    let check = tonic_health::pb::HealthCheckRequest { service };
    let answer = client.check(check).await.unwrap().into_inner();
    assert_eq!(answer.status, tonic_health::pb::health_check_response::ServingStatus::Serving as i32);
    let mut client = ServerReflectionClient::new(channel);
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client.server_reflection_info(stream::iter([list])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("another answer") };
    assert!(list.service.iter().any(|service| service.name == "zc.examples.echo.v1.Echo"));
}

#[tokio::test]
async fn tower_middleware() {
    // On the server: a call beyond the limit is shed, a slow one times out.
    let service = Obedient::default();
    let layers = ServiceBuilder::new()
        .layer(tower_http::trace::TraceLayer::new_for_grpc())
        .load_shed()
        .concurrency_limit(1)
        .timeout(Duration::from_millis(200))
        .service(Routes::new(EchoServer::new(service.clone())));
    let fabric = Fabric::auto().unwrap();
    let listener = fabric.listen("zc+mem://grpc-tower").await.unwrap();
    tokio::spawn(Server::new().serve(listener, layers));
    let channel = Channel::new(&fabric, "zc+mem://grpc-tower").unwrap();
    let mut client = EchoClient::new(channel.clone());
    let mut request = Request::new(payload("a"));
    request.metadata_mut().insert("do", MetadataValue::from_static("wait"));
    let mut slow = client.clone();
    let slow = tokio::spawn(async move { slow.unary(request).await });
    wait_for(&service.alive, 1).await;
    let shed = client.unary(payload("b")).await.unwrap_err();
    assert_eq!(shed.code(), Code::ResourceExhausted, "{shed:?}");
    let timed_out = slow.await.unwrap().unwrap_err();
    assert!(timed_out.message().contains("timed out"), "{timed_out:?}");
    assert_eq!(client.unary(payload("c")).await.unwrap().into_inner().data, "c");

    // At the client, and over several servers.
    let servers =
        futures::future::join_all([0, 1].map(|_| serve(TRANSPORTS[0], Routes::new(echo::service())))).await;
    let channels: Vec<Channel> = servers.iter().map(|(channel, _)| channel.clone()).collect();
    let completion = tower::load::CompleteOnResponse::default();
    let loads =
        channels.into_iter().map(move |channel| tower::load::PendingRequests::new(channel, completion));
    let balanced = tower::balance::p2c::Balance::new(tower::discover::ServiceList::new::<
        http::Request<tonic::body::Body>,
    >(loads));
    let stack = ServiceBuilder::new().buffer(16).concurrency_limit(4).service(balanced);
    let mut client = EchoClient::new(stack);
    for _ in 0..10 {
        assert_eq!(client.unary(payload("d")).await.unwrap().into_inner().data, "d");
    }
}
