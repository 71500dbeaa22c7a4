//! Where the tests call: a server on each kind of connection, and a service that does as it is told.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use tower::Service;
use zc::{Fabric, Policy};
use zc_examples_rpc::pb::echo_server::{Echo, EchoServer};
use zc_examples_rpc::pb::{Ask, Payload, Summary};
use zc_examples_rpc::{BoxError, echo};
use zc_http::{Channel, PeerInfo, Server};

/// A hang guard, not a bound on speed.
pub(crate) const HANG: Duration = Duration::from_secs(60);

static NAMES: AtomicUsize = AtomicUsize::new(0);

/// A kind of connection, and an address of its own for it.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    pub(crate) uri: String,
    /// What has to carry the calls there.
    pub(crate) chosen: &'static str,
}

/// Inside the process; the others cross it as they would cross two.
pub(crate) fn mem() -> Transport {
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    Transport { uri: format!("zc+mem://grpc-{number}"), chosen: "mem" }
}

/// All of them; every call has new addresses.
pub(crate) fn transports() -> [Transport; 4] {
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    let name = format!("zc-grpc-{}-{number}", std::process::id());
    [
        mem(),
        Transport { uri: "zc+tcp://127.0.0.1:0".to_owned(), chosen: "tcp" },
        // zc would choose shared memory here.
        Transport { uri: format!("zc+unix://@{name}"), chosen: "tcp" },
        Transport { uri: format!("zc+shm://@{name}-shm"), chosen: "shm" },
    ]
}

impl Transport {
    /// The same kind, at an address of its own.
    pub(crate) fn again(&self) -> Self {
        transports().into_iter().find(|other| other.kind() == self.kind()).unwrap()
    }

    fn kind(&self) -> &str {
        self.uri.split(':').next().unwrap_or_default()
    }

    pub(crate) fn fabric(&self) -> Fabric {
        let policy = match self.uri.starts_with("zc+unix:") {
            true => Policy::default().with_override("tcp").unwrap(),
            false => Policy::default(),
        };
        Fabric::auto_builder().policy(policy).build().unwrap()
    }

    /// A server, and a channel that has reached it over what it should.
    pub(crate) async fn serve(&self, routes: Routes) -> (Channel, JoinHandle<()>) {
        self.serve_with(Server::new(), routes, std::future::pending()).await
    }

    /// With options, any service, and a signal to stop.
    pub(crate) async fn serve_with<S, B>(
        &self,
        server: Server,
        service: S,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> (Channel, JoinHandle<()>)
    where
        S: Service<http::Request<zc_http::Body>, Response = http::Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: tonic::codegen::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let fabric = self.fabric();
        let listener = fabric.listen(&self.uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        let server = tokio::spawn(server.serve_with_shutdown(listener, service, signal));
        let channel = Channel::new(&fabric, &uri).unwrap();
        channel.connect().await.unwrap();
        assert_eq!(channel.report().unwrap().chosen(), self.chosen);
        (channel, server)
    }

    /// With the service that does as it is told.
    pub(crate) async fn serve_obedient(&self) -> (Channel, Obedient, JoinHandle<()>) {
        let service = Obedient::default();
        let (channel, server) = self.serve(Routes::new(EchoServer::new(service.clone()))).await;
        (channel, service, server)
    }
}

pub(crate) fn payload(data: impl Into<Bytes>) -> Payload {
    Payload { data: data.into() }
}

/// A call that is answered never.
pub(crate) fn waiting() -> Request<Payload> {
    let mut request = Request::new(payload("a"));
    request.metadata_mut().insert("do", MetadataValue::from_static("wait"));
    request
}

/// Does as its metadata says.
#[derive(Clone, Default)]
pub(crate) struct Obedient {
    pub(crate) alive: Arc<AtomicUsize>,
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

pub(crate) async fn wait_for(alive: &AtomicUsize, count: usize) {
    let look = async {
        while alive.load(Ordering::SeqCst) != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HANG, look).await.expect("it never came");
}

type Payloads = Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

/// What is known of the connection.
#[allow(clippy::result_large_err, reason = "a handler's")]
fn tell(info: Option<&PeerInfo>) -> Result<Response<Payload>, Status> {
    let info = info.ok_or_else(|| Status::not_found("nothing is known"))?;
    let process = info.peer.cred.as_ref().map(|cred| cred.pid);
    let told = serde_json::json!([info.report.to_json(), process]);
    Ok(Response::new(payload(told.to_string())))
}

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
            Some("tell") => return tell(request.extensions().get()),
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
        if request.metadata().contains_key("do") {
            let _unread = request;
            return std::future::pending().await;
        }
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
