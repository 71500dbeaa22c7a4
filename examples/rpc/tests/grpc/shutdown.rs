//! A server that stops while calls are under way.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::client::GrpcService;
use tonic::service::Routes;
use tonic::transport::Endpoint;
use zc_examples_rpc::grpc::GrpcChannel;
use zc_examples_rpc::pb::Summary;
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_examples_rpc::pb::echo_server::EchoServer;
use zc_http::{Channel, Executed, Server, ZcConnector};

use crate::world::{HANG, Obedient, Transport, mem, payload, transports, wait_for, waiting};

/// What is told to stop, and what it serves with.
struct Serving {
    channel: Channel,
    service: Obedient,
    server: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

async fn serve(transport: &Transport, server: Server) -> Serving {
    let (service, (stop, stopped)) = (Obedient::default(), oneshot::channel());
    let routes = Routes::new(EchoServer::new(service.clone()));
    let (channel, server) = transport.serve_with(server, routes, async { drop(stopped.await) }).await;
    Serving { channel, service, server, stop }
}

/// Two calls go on while the server stops, and others find nobody.
async fn finish<T>(channel: T, service: &Obedient, stop: oneshot::Sender<()>, via_http2: bool, what: &str)
where
    T: GrpcChannel + GrpcService<tonic::body::Body, Future: Send> + Clone + Send + 'static,
{
    let mut client = EchoClient::new(channel);
    let (chatting, rx) = mpsc::channel(1);
    let mut chat = client.chat(ReceiverStream::new(rx)).await.unwrap().into_inner();
    let (asking, rx) = mpsc::channel(1);
    let mut asked = client.clone();
    let collect = tokio::spawn(async move { asked.collect(ReceiverStream::new(rx)).await });
    asking.send(payload("one")).await.unwrap();
    wait_for(&service.alive, 2).await;
    stop.send(()).unwrap();

    let gone = async {
        loop {
            match client.unary(payload("new")).await {
                Ok(_) => tokio::task::yield_now().await,
                // tonic's own word for a call that meets the GOAWAY of HTTP/2 on its way.
                Err(status) if via_http2 && status.code() == Code::Internal => {}
                Err(status) => break status,
            }
        }
    };
    let gone = tokio::time::timeout(HANG, gone).await.expect("calls are still taken");
    assert_eq!(gone.code(), Code::Unavailable, "{what}: {gone:?}");

    for words in ["a", "last words"] {
        chatting.send(payload(words)).await.unwrap();
        assert_eq!(chat.message().await.unwrap().unwrap().data, words, "{what}");
    }
    drop(chatting);
    assert!(chat.message().await.unwrap().is_none());
    asking.send(payload("two")).await.unwrap();
    drop(asking);
    let summary = collect.await.unwrap().unwrap().into_inner();
    assert_eq!(summary, Summary { messages: 2, bytes: 6 }, "{what}");
}

#[tokio::test]
async fn calls_under_way_are_finished_and_others_not_taken() {
    for transport in transports() {
        let Serving { channel, service, server, stop } = serve(&transport, Server::new()).await;
        finish(channel, &service, stop, false, &transport.uri).await;
        tokio::time::timeout(HANG, server).await.expect("it goes on").unwrap();
    }
}

#[tokio::test]
async fn over_http2_too() {
    for transport in transports() {
        let fabric = transport.fabric();
        let listener = fabric.listen_mixed(&transport.uri).await.unwrap();
        let connector = ZcConnector::new(&fabric, &listener.local_uri().to_string()).unwrap();
        let (service, (stop, stopped)) = (Obedient::default(), oneshot::channel());
        let routes = Routes::new(EchoServer::new(service.clone()));
        let signal = async { drop(stopped.await) };
        let server = tokio::spawn(Server::new().serve_with_shutdown(listener, routes, signal));
        let channel = Endpoint::from_static("http://zc").connect_with_connector(connector).await.unwrap();
        finish(channel, &service, stop, true, &transport.uri).await;
        tokio::time::timeout(HANG, server).await.expect("it goes on").unwrap();
    }
}

/// Two calls that would go on for ever, and how the server ends them.
async fn outlive(transport: &Transport, timeout: Duration) -> Duration {
    let Serving { channel, service, server, stop } =
        serve(transport, Server::new().shutdown_timeout(timeout)).await;
    let mut client = EchoClient::new(channel);
    let (_chatting, rx) = mpsc::channel(1);
    let mut chat = client.chat(ReceiverStream::new(rx)).await.unwrap().into_inner();
    let call = tokio::spawn(async move { client.unary(waiting()).await });
    wait_for(&service.alive, 2).await;
    let began = tokio::time::Instant::now();
    stop.send(()).unwrap();
    tokio::time::timeout(HANG, server).await.expect("it goes on").unwrap();
    let took = began.elapsed();
    let ended = [call.await.unwrap().unwrap_err(), chat.message().await.unwrap_err()];
    for status in ended {
        assert_eq!(status.code(), Code::Unavailable, "{transport:?}: {status:?}");
    }
    wait_for(&service.alive, 0).await;
    took
}

#[tokio::test]
async fn calls_that_outlive_the_time_are_ended_on_every_transport() {
    for transport in transports() {
        outlive(&transport, Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn and_not_before() {
    let timeout = Duration::from_secs(7);
    let took = outlive(&mem(), timeout).await;
    assert!(took >= timeout && took < timeout + Duration::from_secs(1), "{took:?}");
}

/// Whoever is not accepted waits, and makes its calls once there is a place.
#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    for transport in transports() {
        let service = Obedient::default();
        let fabric = transport.fabric();
        let listener = fabric.listen(&transport.uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        let routes = Routes::new(EchoServer::new(service.clone()));
        let server = tokio::spawn(Server::new().max_connections(2).serve(listener, routes));
        let patient = || Channel::builder().greeting_timeout(HANG).build(&fabric, &uri).unwrap();
        let served = [patient(), patient()];
        for channel in &served {
            channel.connect().await.unwrap();
        }
        let mut client = EchoClient::new(patient());
        let mut call = Box::pin(client.unary(payload("third")));
        let early = tokio::time::timeout(Duration::from_millis(50), &mut call).await;
        assert!(early.is_err(), "{transport:?}: one too many is served");
        for channel in &served {
            assert_eq!(
                EchoClient::new(channel.clone()).unary(payload("a")).await.unwrap().into_inner().data,
                "a"
            );
        }
        drop(served);
        let answer = tokio::time::timeout(HANG, call).await.expect("its turn never comes").unwrap();
        assert_eq!(answer.into_inner().data, "third");
        server.abort();
    }
}

/// Who asks in vain is told that nothing was done.
#[tokio::test]
async fn a_call_that_was_not_taken_can_be_made_elsewhere() {
    use std::error::Error;
    for transport in transports() {
        let Serving { channel, service: _, server, stop } = serve(&transport, Server::new()).await;
        stop.send(()).unwrap();
        tokio::time::timeout(HANG, server).await.expect("it goes on").unwrap();
        let status = EchoClient::new(channel).unary(payload("a")).await.unwrap_err();
        let error = status.source().unwrap().downcast_ref::<zc_http::Error>().unwrap();
        assert_eq!(
            (error.executed(), error.is_retryable()),
            (Executed::No, true),
            "{transport:?}: {error:?}"
        );
    }
}
