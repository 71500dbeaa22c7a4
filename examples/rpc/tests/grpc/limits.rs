//! What is refused, on every kind of connection, and that there is room again afterwards.

use std::convert::Infallible;
use std::error::Error;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::executor::block_on;
use http::{Request, Response};
use http_body_util::{Empty, StreamBody};
use tonic::Code;
use tonic::service::Routes;
use tower::{Service, ServiceExt, service_fn};
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_examples_rpc::pb::echo_server::EchoServer;
use zc_http::{Body, Channel, ErrorKind, Executed, Limits, Server};

use crate::world::{HANG, Obedient, payload, transports, wait_for, waiting};

/// Calls of one connection that wait at the client: `zc_http`'s own bound.
const MAX_WAITING: usize = 65_536;

fn get() -> Request<Empty<Bytes>> {
    Request::get("/").body(Empty::new()).unwrap()
}

#[tokio::test]
async fn beyond_the_concurrency_limit_calls_are_refused_and_can_be_made_again() {
    for transport in transports() {
        let service = Obedient::default();
        let routes = Routes::new(EchoServer::new(service.clone()));
        let server = Server::new().concurrency_limit(2);
        let (channel, server) = transport.serve_with(server, routes, std::future::pending()).await;
        let mut client = EchoClient::new(channel);
        let held = [client.clone(), client.clone()];
        let held =
            held.map(|mut client| tokio::spawn(async move { client.unary(waiting()).await.map(drop) }));
        wait_for(&service.alive, 2).await;
        let status = client.unary(payload("a")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{transport:?}: {status:?}");
        let error = status.source().unwrap().downcast_ref::<zc_http::Error>().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Reset(zc_http::Code::REFUSED)), "{error:?}");
        assert_eq!((error.executed(), error.is_retryable()), (Executed::No, true));
        held.iter().for_each(tokio::task::JoinHandle::abort);
        wait_for(&service.alive, 0).await;
        assert_eq!(client.unary(payload("a")).await.unwrap().into_inner().data, "a");
        server.abort();
    }
}

/// Handlers may hold on to calls that have ended; with so many that its memory would be theirs, a connection takes none.
#[tokio::test]
async fn a_connection_whose_ended_calls_are_held_takes_no_more_than_twice_its_calls() {
    const MAX_CALLS: u32 = 4;
    for transport in transports() {
        let held = Arc::new(Mutex::new(Vec::new()));
        let holding = held.clone();
        let service = service_fn(move |request: Request<Body>| {
            holding.lock().unwrap().push(request);
            std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>()
        });
        let mut limits = Limits::default();
        limits.max_calls = MAX_CALLS;
        let server = Server::new().limits(limits);
        let (channel, server) = transport.serve_with(server, service, std::future::pending()).await;
        // Makes a call until it is held or refused, and gives it up.
        let call = async || {
            let before = held.lock().unwrap().len();
            let seen = async {
                while held.lock().unwrap().len() == before {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            };
            let ended = async {
                tokio::select! {
                    ended = channel.clone().oneshot(get()) => Err(ended.map(drop).unwrap_err()),
                    () = seen => Ok(()),
                }
            };
            tokio::time::timeout(HANG, ended).await.expect("it hangs")
        };
        for _ in 0..2 {
            for _ in 0..2 * MAX_CALLS {
                call().await.unwrap();
            }
            let refused = call().await.unwrap_err();
            assert!(matches!(refused.kind(), ErrorKind::Reset(zc_http::Code::REFUSED)), "{refused:?}");
            assert_eq!(refused.executed(), Executed::No, "{transport:?}");
            held.lock().unwrap().clear();
        }
        server.abort();
    }
}

#[tokio::test]
async fn a_queue_that_is_full_says_so_at_once() {
    for transport in transports() {
        let mut limits = Limits::default();
        limits.max_calls = 1;
        let service = Obedient::default();
        let routes = Routes::new(EchoServer::new(service.clone()));
        let server = Server::new().limits(limits);
        let (mut channel, server) = transport.serve_with(server, routes, std::future::pending()).await;
        let mut client = EchoClient::new(channel.clone());
        let holding = tokio::spawn(async move { client.unary(waiting()).await.map(drop) });
        wait_for(&service.alive, 1).await;
        let mut waiting = Vec::new();
        for _ in 0..MAX_WAITING {
            let mut call = channel.call(get());
            assert!(futures::poll!(&mut call).is_pending());
            waiting.push(call);
        }
        let full = channel.clone().oneshot(get()).await.unwrap_err();
        assert!(matches!(full.kind(), ErrorKind::QueueFull), "{transport:?}: {full:?}");
        assert_eq!((full.executed(), full.is_retryable()), (Executed::No, true));
        // One place is enough for the next.
        drop(waiting.pop());
        let mut next = channel.call(get());
        assert!(futures::poll!(&mut next).is_pending());
        drop((waiting, next));
        holding.abort();
        wait_for(&service.alive, 0).await;
        let mut client = EchoClient::new(channel);
        let answer = client.unary(payload("a"));
        assert_eq!(tokio::time::timeout(HANG, answer).await.unwrap().unwrap().into_inner().data, "a");
        server.abort();
    }
}

/// Outside of a runtime.
fn beside<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> T {
    std::thread::spawn(move || block_on(call)).join().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_runtime_there_is_an_error_and_no_panic() {
    for transport in transports() {
        let (channel, _service, server) = transport.serve_obedient().await;
        // What needs nobody beside it works.
        let answer = beside(channel.clone().oneshot(get()));
        assert_eq!(answer.unwrap().headers()["grpc-status"], "12");
        // A question that goes on, and whose handler waits for it, needs somebody who sends it.
        let endless =
            StreamBody::new(futures::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>());
        let question = Request::post("/zc.examples.echo.v1.Echo/Collect").header("do", "wait").body(endless);
        let nobody = beside(channel.oneshot(question.unwrap())).unwrap_err();
        assert!(matches!(nobody.kind(), ErrorKind::NoRuntime), "{nobody:?}");
        assert!(!nobody.is_retryable(), "{transport:?}");

        let fresh = Channel::new(&transport.fabric(), &transport.uri).unwrap();
        let nobody = beside(fresh.oneshot(get())).unwrap_err();
        assert!(matches!(nobody.kind(), ErrorKind::NoRuntime), "{nobody:?}");
        assert_eq!((nobody.executed(), nobody.is_retryable()), (Executed::No, false), "{transport:?}");
        server.abort();
    }
}
