//! What a handler is told of the connection that its call came in on.

use serde_json::Value;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::transport::{self, Endpoint};
use tonic::{Code, Request};
use zc_examples_rpc::grpc::GrpcChannel;
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_examples_rpc::pb::echo_server::EchoServer;
use zc_http::{Channel, Server, ZcConnector, ZcIncoming};

use crate::world::{Obedient, payload, transports};

/// What the handler finds in its request, as the report's JSON and the peer's process, if that is known.
async fn told(channel: impl GrpcChannel) -> Result<(Value, Option<i32>), Code> {
    let mut request = Request::new(payload("a"));
    request.metadata_mut().insert("do", MetadataValue::from_static("tell"));
    let answer = EchoClient::new(channel).unary(request).await.map_err(|status| status.code())?;
    let (report, process) = serde_json::from_slice(&answer.into_inner().data).unwrap();
    Ok((report, process))
}

/// The report says what was chosen, and why nothing else that was looked at.
fn check((report, process): (Value, Option<i32>), chosen: &str, uri: &str) {
    assert_eq!(report["chosen"], chosen, "{uri}: {report}");
    let candidates = report["candidates"].as_array().unwrap();
    for candidate in candidates {
        let outcome = candidate["outcome"].as_str().unwrap();
        assert_eq!(outcome == "chosen", candidate["transport"] == chosen, "{uri}: {report}");
        assert_eq!(outcome == "unavailable", candidate["reason"].is_string(), "{uri}: {report}");
    }
    // On a link of this host the kernel says who that is.
    let ours = uri.starts_with("zc+unix:") || uri.starts_with("zc+shm:");
    assert_eq!(process, ours.then(|| std::process::id() as i32), "{uri}");
}

fn tonics_own(incoming: ZcIncoming) -> JoinHandle<Result<(), transport::Error>> {
    let service = EchoServer::new(Obedient::default());
    tokio::spawn(transport::Server::builder().add_service(service).serve_with_incoming(incoming))
}

#[tokio::test]
async fn tonics_own_server_on_zc_passes_it_on() {
    for transport in transports() {
        let fabric = transport.fabric();
        let listener = fabric.listen(&transport.uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        let server = tonics_own(ZcIncoming::new(listener));
        let connector = ZcConnector::new(&fabric, &uri).unwrap();
        let channel = Endpoint::from_static("http://zc").connect_with_connector(connector).await.unwrap();
        check(told(channel).await.unwrap(), transport.chosen, &uri);
        server.abort();
    }
}

#[tokio::test]
async fn of_a_client_that_knows_nothing_of_zc_too() {
    let fabric = zc::Fabric::auto().unwrap();
    let listener = fabric.listen_mixed("zc+tcp://127.0.0.1:0").await.unwrap();
    let uri = listener.local_uri().to_string();
    let server = tonics_own(ZcIncoming::new(listener));
    let stock = Endpoint::from_shared(uri.replace("zc+tcp", "http")).unwrap().connect().await.unwrap();
    check(told(stock).await.unwrap(), zc::PLAIN, &uri);
    server.abort();
}

#[tokio::test]
async fn over_zc_http_it_is_told_if_the_server_was_asked_to() {
    for transport in transports() {
        let fabric = transport.fabric();
        for asked in [true, false] {
            let listener = fabric.listen(&transport.again().uri).await.unwrap();
            let uri = listener.local_uri().to_string();
            let routes = Routes::new(EchoServer::new(Obedient::default()));
            let server = tokio::spawn(Server::new().peer_info(asked).serve(listener, routes));
            match told(Channel::new(&fabric, &uri).unwrap()).await {
                Ok(told) if asked => check(told, transport.chosen, &uri),
                told => assert_eq!((told.unwrap_err(), asked), (Code::NotFound, false), "{uri}"),
            }
            server.abort();
        }
    }
}
