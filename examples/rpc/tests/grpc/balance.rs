//! Several servers behind tower's load balancing: one dies, one fails, and both come back.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::Code;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceBuilder;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PendingRequests};
use tower::util::BoxCloneService;
use zc::Fabric;
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_examples_rpc::{BoxError, echo};
use zc_http::{Channel, Executed, Server, Siblings};

use crate::world::{HANG, Transport, payload, transports, wait_for, waiting};

/// A server that can be told to take no calls, and counts those that it took.
struct Member {
    fabric: Fabric,
    uri: String,
    served: Arc<AtomicUsize>,
    /// Takes as many calls at a time.
    places: usize,
    server: JoinHandle<()>,
}

impl Member {
    async fn start(transport: &Transport) -> Self {
        // An address of its own, whose ports no other test takes while a server is down.
        let uri = transport.uri.replace("127.0.0.1", "127.0.0.78");
        let (fabric, served, server) = (transport.fabric(), Arc::default(), tokio::spawn(async {}));
        let mut member = Self { fabric, uri, served, places: 1000, server };
        member.serve().await;
        member
    }

    /// Where it was before, as soon as the address is free.
    async fn serve(&mut self) {
        let listen = async {
            loop {
                match self.fabric.listen(&self.uri).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let listener = tokio::time::timeout(HANG, listen).await.expect("its address stays taken");
        self.uri = listener.local_uri().to_string();
        let served = self.served.clone();
        let routes = ServiceBuilder::new()
            .map_request(move |request: http::Request<zc_http::Body>| {
                served.fetch_add(1, Ordering::SeqCst);
                request
            })
            .service(Routes::new(echo::service()));
        let server = Server::new().concurrency_limit(self.places);
        self.server = tokio::spawn(server.serve(listener, routes));
    }

    async fn stop(&mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }

    fn served(&self) -> usize {
        self.served.swap(0, Ordering::SeqCst)
    }
}

type Client = EchoClient<BoxCloneService<http::Request<Body>, http::Response<zc_http::Body>, BoxError>>;

fn balanced(members: &[Member]) -> Client {
    let siblings = Siblings::new();
    let loads = members.iter().map(|member| {
        let channel = Channel::builder().siblings(&siblings).build(&member.fabric, &member.uri).unwrap();
        PendingRequests::new(channel, CompleteOnResponse::default())
    });
    let balance = Balance::new(ServiceList::new::<http::Request<Body>>(loads.collect::<Vec<_>>()));
    EchoClient::new(BoxCloneService::new(ServiceBuilder::new().buffer(64).service(balance)))
}

/// Tries of some calls.
#[derive(Debug, Default, PartialEq)]
struct Tries {
    answered: usize,
    /// No server took them.
    not_executed: usize,
    /// They went to a server whose end was not known yet.
    maybe: usize,
}

/// Makes calls, each until it is answered.
async fn calls(client: &mut Client, count: usize) -> Tries {
    let mut tries = Tries::default();
    while tries.answered < count {
        let call = client.unary(payload("d"));
        match tokio::time::timeout(HANG, call).await.expect("a call hangs") {
            Ok(answer) => {
                assert_eq!(answer.into_inner().data, "d");
                tries.answered += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                let error = status.source().unwrap().downcast_ref::<zc_http::Error>().unwrap();
                assert_eq!(error.is_retryable(), error.executed() == Executed::No);
                match error.executed() {
                    Executed::No => tries.not_executed += 1,
                    Executed::Maybe => tries.maybe += 1,
                }
                assert!(tries.not_executed < 100_000, "nobody takes calls");
            }
        }
    }
    tries
}

/// Makes calls, none of which fails, until all members have served some.
async fn calls_until_all_serve(client: &mut Client, members: &[Member]) {
    for member in members {
        let _ = member.served();
    }
    let served = |member: &Member| member.served.load(Ordering::SeqCst) > 0;
    let calls = async {
        while !members.iter().all(served) {
            assert_eq!(calls(client, 60).await, ALL_AT_ONCE, "one still fails");
        }
    };
    tokio::time::timeout(HANG, calls).await.expect("one is not found");
    for member in members {
        let _ = member.served();
    }
}

const ALL_AT_ONCE: Tries = Tries { answered: 60, not_executed: 0, maybe: 0 };

#[tokio::test]
async fn a_server_that_dies_costs_no_call_and_is_found_again() {
    for one in transports() {
        let [two, three] = [one.again(), one.again()];
        let mut members = [Member::start(&one).await, Member::start(&two).await, Member::start(&three).await];
        let mut client = balanced(&members);
        calls_until_all_serve(&mut client, &members).await;

        // Whoever calls before that is known has bad luck, and nobody else.
        members[0].stop().await;
        let tries = calls(&mut client, 60).await;
        assert!(tries.maybe + tries.not_executed <= 1, "{one:?}: {tries:?}");
        assert_eq!(members[0].served(), 0);
        assert!(members[1..].iter().all(|member| member.served() > 0), "{one:?}");

        members[1].stop().await;
        let tries = calls(&mut client, 60).await;
        assert!(tries.maybe + tries.not_executed <= 1, "{one:?}: {tries:?}");
        assert_eq!(members[2].served(), 60, "the last one takes all");

        // Nobody is left: calls fail, and do not wait.
        members[2].stop().await;
        for _ in 0..20 {
            let call = client.unary(payload("d"));
            let status = tokio::time::timeout(HANG, call).await.expect("a call hangs").unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        }

        // All are back: the balance and its channels are the same as before.
        for member in &mut members {
            member.serve().await;
        }
        calls(&mut client, 60).await;
        calls_until_all_serve(&mut client, &members).await;
    }
}

#[tokio::test]
async fn a_server_that_refuses_leaves_its_calls_to_the_others() {
    for one in transports() {
        let two = one.again();
        let mut members = [Member::start(&one).await, Member::start(&two).await];
        members[0].stop().await;
        members[0].places = 0;
        members[0].serve().await;
        let mut client = balanced(&members);
        let tries = calls(&mut client, 60).await;
        assert!(tries.not_executed > 0 && tries.maybe == 0, "{one:?}: {tries:?}");
        assert_eq!((members[0].served(), members[1].served()), (0, 60), "{one:?}");

        members[0].stop().await;
        members[0].places = 1000;
        members[0].serve().await;
        // Its channel looks for it now and then.
        calls(&mut client, 60).await;
        calls_until_all_serve(&mut client, &members).await;
    }
}

/// Calls that a server has taken are never made twice behind the caller's back.
#[tokio::test]
async fn a_call_that_was_taken_is_not_called_retryable() {
    for transport in transports() {
        let (channel, service, server) = transport.serve_obedient().await;
        let mut client = EchoClient::new(channel);
        let call = tokio::spawn(async move { client.unary(waiting()).await });
        wait_for(&service.alive, 1).await;
        server.abort();
        let status = tokio::time::timeout(HANG, call).await.expect("it hangs").unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{transport:?}: {status:?}");
        let error = status.source().unwrap().downcast_ref::<zc_http::Error>().unwrap();
        assert_eq!((error.executed(), error.is_retryable()), (Executed::Maybe, false));
    }
}
