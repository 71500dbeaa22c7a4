//! tower's layers, around the service and around the channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::service::Routes;
use tonic::{Code, Response, Status};
use tower::{Service, ServiceBuilder};
use tower_http::trace::{OnFailure, OnRequest, OnResponse, TraceLayer};
use tracing::Span;
use zc_examples_rpc::BoxError;
use zc_examples_rpc::grpc::GrpcChannel;
use zc_examples_rpc::pb::Payload;
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_examples_rpc::pb::echo_server::EchoServer;
use zc_http::{Channel, Server};

use crate::world::{HANG, Obedient, Transport, payload, transports, wait_for, waiting};

/// Long enough for a call that is answered at once, on a busy machine.
const SHORT: Duration = Duration::from_secs(1);
/// No limit.
const MANY: usize = 1000;

/// What a trace layer has seen.
#[derive(Clone, Default)]
struct Seen {
    requests: Arc<AtomicUsize>,
    responses: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
}

impl Seen {
    fn counts(&self) -> [usize; 3] {
        [&self.requests, &self.responses, &self.failures].map(|count| count.load(Ordering::SeqCst))
    }
}

impl<B> OnRequest<B> for Seen {
    fn on_request(&mut self, _: &http::Request<B>, _: &Span) {
        self.requests.fetch_add(1, Ordering::SeqCst);
    }
}

impl<B> OnResponse<B> for Seen {
    fn on_response(self, _: &http::Response<B>, _: Duration, _: &Span) {
        self.responses.fetch_add(1, Ordering::SeqCst);
    }
}

impl<F> OnFailure<F> for Seen {
    fn on_failure(&mut self, _: F, _: Duration, _: &Span) {
        self.failures.fetch_add(1, Ordering::SeqCst);
    }
}

type Call = JoinHandle<Result<Payload, Status>>;

/// A call that nobody answers, once its handler runs.
async fn slow<T>(client: &EchoClient<T>, service: &Obedient) -> Call
where
    T: GrpcChannel + GrpcService<Body, Future: Send> + Clone + Send + 'static,
{
    let mut client = client.clone();
    let call = tokio::spawn(async move { client.unary(waiting()).await.map(Response::into_inner) });
    wait_for(&service.alive, 1).await;
    call
}

async fn ended(call: Call) -> Status {
    tokio::time::timeout(HANG, call).await.expect("it hangs").unwrap().unwrap_err()
}

/// Serves with what `layers` put around the routes.
async fn serve<S, B>(
    transport: &Transport,
    layers: impl FnOnce(Routes) -> S,
) -> (Channel, Obedient, JoinHandle<()>)
where
    S: Service<http::Request<zc_http::Body>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: tonic::codegen::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let service = Obedient::default();
    let layered = layers(Routes::new(EchoServer::new(service.clone())));
    let (channel, server) = transport.serve_with(Server::new(), layered, std::future::pending()).await;
    (channel, service, server)
}

/// All that the tests put around a service and around a channel.
macro_rules! layers {
    ($seen:expr) => {
        ServiceBuilder::new()
            .layer(
                TraceLayer::new_for_grpc()
                    .on_request($seen.clone())
                    .on_response($seen.clone())
                    .on_failure($seen.clone()),
            )
            .load_shed()
            .concurrency_limit(1)
            .timeout(SHORT)
    };
}

/// One call has the only place until its time is over, another is shed, and then there is room again.
async fn hold<T>(mut client: EchoClient<T>, service: &Obedient, seen: &Seen, transport: &Transport)
where
    T: GrpcChannel + GrpcService<Body, Future: Send> + Clone + Send + 'static,
{
    let slow = slow(&client, service).await;
    let shed = client.unary(payload("b")).await.unwrap_err();
    assert_eq!(shed.code(), Code::ResourceExhausted, "{transport:?}: {shed:?}");
    assert_eq!(seen.counts(), [2, 0, 1], "{transport:?}");
    let late = ended(slow).await;
    assert!(late.message().contains("timed out"), "{transport:?}: {late:?}");
    // The handler is gone with the call.
    wait_for(&service.alive, 0).await;
    assert_eq!(client.unary(payload("c")).await.unwrap().into_inner().data, "c");
    assert_eq!(seen.counts(), [3, 1, 2], "{transport:?}");
}

#[tokio::test]
async fn around_the_service() {
    for transport in transports() {
        let seen = Seen::default();
        let (channel, service, _server) = serve(&transport, |routes| layers!(seen).service(routes)).await;
        hold(EchoClient::new(channel), &service, &seen, &transport).await;
    }
}

#[tokio::test]
async fn around_the_channel() {
    for transport in transports() {
        let seen = Seen::default();
        let (channel, service, _server) = transport.serve_obedient().await;
        hold(EchoClient::new(layers!(seen).service(channel)), &service, &seen, &transport).await;
    }
}

/// Without shedding, who comes beyond the limit waits: at most as many run as it says, and all are answered.
#[tokio::test]
async fn a_concurrency_limit_holds_calls_back() {
    for transport in transports() {
        for at_the_client in [false, true] {
            let at_the_server = if at_the_client { MANY } else { 2 };
            let (channel, service, _server) = serve(&transport.again(), |routes| {
                ServiceBuilder::new().concurrency_limit(at_the_server).service(routes)
            })
            .await;
            let limit = if at_the_client { 2 } else { MANY };
            let layers = ServiceBuilder::new().concurrency_limit(limit);
            let client = EchoClient::new(layers.service(channel));
            let mut calls = tokio::task::JoinSet::new();
            for _ in 0..6 {
                let mut client = client.clone();
                calls.spawn(async move { client.unary(waiting()).await.map(drop) });
            }
            wait_for(&service.alive, 2).await;
            // Those that wait get their turn as the others are given up.
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(service.alive.load(Ordering::SeqCst), 2, "{transport:?}");
            calls.shutdown().await;
            wait_for(&service.alive, 0).await;
            let mut client = client.clone();
            assert_eq!(client.unary(payload("c")).await.unwrap().into_inner().data, "c");
        }
    }
}
