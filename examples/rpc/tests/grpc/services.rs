//! Health and reflection, for clients of either kind: what `grpcurl` and a load balancer's probe ask.

use futures::stream;
use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use tonic::Code;
use tonic::service::Routes;
use tonic::transport::Endpoint;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Answered;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::server::HealthReporter;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use zc::Fabric;
use zc_examples_rpc::grpc::GrpcChannel;
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_examples_rpc::pb::echo_server::EchoServer;
use zc_examples_rpc::{echo, pb};
use zc_http::Server;

use crate::world::{payload, transports};

const ECHO: &str = "zc.examples.echo.v1.Echo";

async fn routes() -> (HealthReporter, Routes) {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<EchoServer<echo::EchoService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .unwrap();
    (reporter, Routes::new(echo::service()).add_service(health).add_service(reflection))
}

/// Everything that is asked of a server before it is called.
async fn ask<T: GrpcChannel + Clone>(channel: T, reporter: &HealthReporter) {
    health(channel.clone(), reporter).await;
    reflection(channel.clone()).await;
    let answer = EchoClient::new(channel).unary(payload("a")).await.unwrap().into_inner();
    assert_eq!(answer.data, "a");
}

async fn health<T: GrpcChannel>(channel: T, reporter: &HealthReporter) {
    let mut client = HealthClient::new(channel);
    let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
    assert_eq!(client.check(of(ECHO)).await.unwrap().into_inner().status(), Answered::Serving);
    assert_eq!(client.check(of("no.such.Service")).await.unwrap_err().code(), Code::NotFound);
    let mut changes = client.watch(of(ECHO)).await.unwrap().into_inner();
    assert_eq!(changes.message().await.unwrap().unwrap().status(), Answered::Serving);
    reporter.set_service_status(ECHO, ServingStatus::NotServing).await;
    assert_eq!(changes.message().await.unwrap().unwrap().status(), Answered::NotServing);
    reporter.set_service_status(ECHO, ServingStatus::Serving).await;
    assert_eq!(changes.message().await.unwrap().unwrap().status(), Answered::Serving);
}

async fn reflection<T: GrpcChannel>(channel: T) {
    let questions = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol(ECHO.to_owned()),
        MessageRequest::FileContainingSymbol(format!("{ECHO}.Chat")),
        MessageRequest::FileContainingSymbol("zc.examples.echo.v1.Payload".to_owned()),
        MessageRequest::FileByFilename("echo.proto".to_owned()),
    ];
    let ask = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(stream::iter(questions.map(ask))).await.unwrap();
    let mut answers = answers.into_inner();
    let mut next = async || answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = next().await else { panic!("another answer") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&ECHO) && names.contains(&"grpc.health.v1.Health"), "{names:?}");
    let known = FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap().file;
    for _ in 0..4 {
        let MessageResponse::FileDescriptorResponse(files) = next().await else { panic!("another answer") };
        let [file] = &files.file_descriptor_proto[..] else { panic!("one file") };
        let file = FileDescriptorProto::decode(&file[..]).unwrap();
        assert!(known.contains(&file), "{}", file.name());
        let methods: Vec<_> = file.service[0].method.iter().map(|method| method.name()).collect();
        assert_eq!(methods, ["Unary", "Collect", "Repeat", "Chat"]);
    }
    assert!(answers.message().await.unwrap().is_none());
    // What is not there ends that call.
    let unknown = ask(MessageRequest::FileContainingSymbol("no.such.Symbol".to_owned()));
    let mut answers = client.server_reflection_info(stream::iter([unknown])).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn over_zc_http() {
    for transport in transports() {
        let (reporter, routes) = routes().await;
        let (channel, _server) = transport.serve(routes).await;
        ask(channel, &reporter).await;
    }
}

#[tokio::test]
async fn to_a_stock_client_at_the_port_that_serves_zc_too() {
    let fabric = Fabric::auto().unwrap();
    let listener = fabric.listen_mixed("zc+tcp://127.0.0.1:0").await.unwrap();
    let uri = listener.local_uri().to_string();
    let (reporter, routes) = routes().await;
    tokio::spawn(Server::new().serve(listener, routes));
    let stock = Endpoint::from_shared(uri.replace("zc+tcp", "http")).unwrap().connect().await.unwrap();
    ask(stock, &reporter).await;
    let channel = zc_http::Channel::new(&fabric, &uri).unwrap();
    ask(channel.clone(), &reporter).await;
    assert_eq!(channel.protocol(), Some(zc_http::Protocol::ZcHttp));
}
