//! The cases of gRPC's interop document, by their names there: over zc-http on every transport, over HTTP/2 on a zc byte
//! stream, and with tonic's own client, or its own server, at the other end.
//!
//! Left out are those that need accounts or TLS (the credentials), a cache between both sides (`cacheable_unary`), load
//! reports (`orca_…`), and the `…_soak` cases, which are the calls of `large_unary` for as long as one likes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

mod cases;
mod compressed;
mod service;

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{self, Endpoint};
use tower::layer::layer_fn;
use zc::{Fabric, Outcome, Policy};
use zc_examples_rpc::BoxError;
use zc_examples_rpc::grpc::GrpcChannel;
use zc_http::{Channel, Protocol, Server, ZcConnector, ZcIncoming};

use self::cases::{Via, cases, timeout_on_sleeping_server};
use self::service::Service;

#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated")]
mod pb {
    tonic::include_proto!("grpc.testing");
}

const HANG: Duration = Duration::from_secs(60);

/// All cases but the one of the deadline.
async fn timeless<T: GrpcChannel + Clone>(channel: T, service: &Service, via: Via) {
    let calls = async {
        cases(channel.clone(), service, via).await;
        compressed::cases(compressed::watched(channel)).await;
    };
    tokio::time::timeout(HANG, calls).await.expect("it hangs");
}

async fn all<T: GrpcChannel + Clone>(channel: T, service: &Service, via: Via) {
    timeless(channel.clone(), service, via).await;
    tokio::time::timeout(HANG, timeout_on_sleeping_server(channel, via)).await.expect("it hangs");
}

/// A kind of connection, and an address for it.
struct Place {
    fabric: Fabric,
    uri: String,
    chosen: &'static str,
}

impl Place {
    fn at(uri: String, chosen: &'static str) -> Self {
        // Over a Unix socket zc would choose shared memory.
        let policy = match uri.starts_with("zc+unix:") {
            true => Policy::default().with_override("tcp").unwrap(),
            false => Policy::default(),
        };
        Self { fabric: Fabric::auto_builder().policy(policy).build().unwrap(), uri, chosen }
    }

    fn each(test: &str) -> [Self; 4] {
        let name = format!("zc-interop-{test}-{}", std::process::id());
        [
            Self::at(format!("zc+mem://interop-{test}"), "mem"),
            Self::at("zc+tcp://127.0.0.1:0".to_owned(), "tcp"),
            Self::at(format!("zc+unix://@{name}"), "tcp"),
            Self::at(format!("zc+shm://@{name}-shm"), "shm"),
        ]
    }

    /// zc-http and HTTP on one port.
    async fn serve(mut self, service: &Service) -> (Self, JoinHandle<()>) {
        let listener = self.fabric.listen_mixed(&self.uri).await.unwrap();
        self.uri = listener.local_uri().to_string();
        let routes = compressed::around(Routes::new(compressed::service(service.clone())));
        let server = tokio::spawn(Server::new().serve(listener, routes));
        (self, server)
    }

    /// tonic's own server, which sees a stream.
    async fn serve_with_tonic(mut self, service: &Service) -> (Self, JoinHandle<()>) {
        let listener = self.fabric.listen(&self.uri).await.unwrap();
        self.uri = listener.local_uri().to_string();
        let server = with_tonic(ZcIncoming::new(listener), service);
        (self, server)
    }

    /// tonic's own client, which sees a stream.
    async fn stream(&self) -> transport::Channel {
        let connector = ZcConnector::new(&self.fabric, &self.uri).unwrap();
        Endpoint::from_static("http://interop").connect_with_connector(connector).await.unwrap()
    }

    /// A channel that speaks HTTP/2 if the server speaks nothing else.
    fn falling_back(&self) -> Channel {
        Channel::builder().fall_back(true).build(&self.fabric, &self.uri).unwrap()
    }
}

fn with_tonic<I, IO, E>(incoming: I, service: &Service) -> JoinHandle<()>
where
    I: futures::Stream<Item = Result<IO, E>> + Send + 'static,
    E: Into<BoxError> + Send + 'static,
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static,
{
    let serving = transport::Server::builder()
        .layer(layer_fn(compressed::around::<Routes, _>))
        .add_service(compressed::service(service.clone()))
        .serve_with_incoming(incoming);
    tokio::spawn(async move { serving.await.unwrap() })
}

#[tokio::test]
async fn over_zc_http() {
    for place in Place::each("http") {
        let service = Service::default();
        let (place, server) = place.serve(&service).await;
        let channel = Channel::new(&place.fabric, &place.uri).unwrap();
        all(channel.clone(), &service, Via::ZcHttp).await;
        assert_eq!(channel.report().unwrap().chosen(), place.chosen);
        server.abort();
    }
}

#[tokio::test]
async fn over_http2_at_the_port_of_zc_http() {
    for place in Place::each("http2") {
        let service = Service::default();
        let (place, server) = place.serve(&service).await;
        all(place.stream().await, &service, Via::Http2).await;
        server.abort();
    }
}

/// Who knows nothing of zc, at the port that serves both.
#[tokio::test]
async fn stock_tonic_at_the_port_of_zc_http() {
    let service = Service::default();
    let (place, server) = Place::at("zc+tcp://127.0.0.1:0".to_owned(), "tcp").serve(&service).await;
    let endpoint = Endpoint::from_shared(place.uri.replace("zc+tcp", "http")).unwrap();
    all(endpoint.connect().await.unwrap(), &service, Via::Http2).await;
    server.abort();
}

/// Both of tonic's own sides stop the clock when there are response headers, so that a stream whose server sleeps never
/// ends; a zc channel does not.
#[tokio::test]
async fn with_tonics_own_server_on_zc() {
    for place in Place::each("tonic") {
        let service = Service::default();
        let (place, server) = place.serve_with_tonic(&service).await;
        timeless(place.stream().await, &service, Via::Http2).await;
        let channel = place.falling_back();
        all(channel.clone(), &service, Via::Http2).await;
        assert_eq!(channel.protocol(), Some(Protocol::Http2));
        assert_eq!(channel.report().unwrap().chosen(), place.chosen);
        server.abort();
    }
}

/// A server that knows nothing of zc; its own client first, which is what HTTP/2 over zc is held to.
#[tokio::test]
async fn at_stock_tonic_over_tcp() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Service::default();
    let server = with_tonic(TcpListenerStream::new(listener), &service);
    let stock = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    timeless(stock, &service, Via::Http2).await;

    let channel = Place::at(format!("zc+tcp://{address}"), zc::PLAIN).falling_back();
    all(channel.clone(), &service, Via::Http2).await;
    assert_eq!(channel.protocol(), Some(Protocol::Http2));
    why_plain(&channel);
    server.abort();
}

/// The report has a reason for every transport that was not taken.
fn why_plain(channel: &Channel) {
    let report = channel.report().unwrap();
    assert_eq!(report.chosen(), zc::PLAIN);
    let others = report.candidates().iter().filter(|candidate| candidate.transport != zc::PLAIN);
    let names = others.map(|candidate| match &candidate.outcome {
        Outcome::Unavailable(why) if why.code() == "not_zc" => candidate.transport.as_str(),
        outcome => panic!("{}: {outcome:?}", candidate.transport),
    });
    let names: Vec<_> = names.collect();
    assert!(["shm", "tcp"].iter().all(|name| names.contains(name)), "{names:?}");
}
