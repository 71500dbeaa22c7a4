//! The cases of gRPC's interop document, by their names there, on every transport: over zc-http, and over
//! HTTP/2 on a byte stream. Left out are those that need accounts or TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

mod compressed;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Response, Status, Streaming};
use zc::{Fabric, Policy};
use zc_examples_rpc::grpc::GrpcChannel;
use zc_http::{Channel, Server, ZcConnector};

use self::pb::test_service_client::TestServiceClient;
use self::pb::test_service_server::{TestService, TestServiceServer};
use self::pb::unimplemented_service_client::UnimplementedServiceClient;
use self::pb::{
    EchoStatus, Empty, Payload, ResponseParameters, SimpleRequest, SimpleResponse, StreamingInputCallRequest,
    StreamingInputCallResponse, StreamingOutputCallRequest, StreamingOutputCallResponse,
};

#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated")]
mod pb {
    tonic::include_proto!("grpc.testing");
}

const HANG: Duration = Duration::from_secs(60);
const INITIAL: &str = "x-grpc-test-echo-initial";
const TRAILING: &str = "x-grpc-test-echo-trailing-bin";

#[derive(Clone, Default)]
struct Service {
    /// A clone for each streaming call whose handler lives.
    streaming: Arc<()>,
}

impl Service {
    async fn wait_until_idle(&self, before: usize) {
        let look = async {
            while Arc::strong_count(&self.streaming) > before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(HANG, look).await.expect("a handler goes on");
    }
}

fn payload(size: i32) -> Option<Payload> {
    Some(Payload { r#type: 0, body: Bytes::from(vec![0; size as usize]) })
}

fn asked_for(status: Option<EchoStatus>) -> Result<(), Status> {
    status.map_or(Ok(()), |status| Err(Status::new(Code::from_i32(status.code), status.message)))
}

fn echo(from: &MetadataMap, to: &mut MetadataMap) {
    if let Some(value) = from.get(INITIAL) {
        to.insert(INITIAL, value.clone());
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<StreamingOutputCallResponse, Status>> + Send>>;

async fn answer(parameters: ResponseParameters) -> Result<StreamingOutputCallResponse, Status> {
    tokio::time::sleep(Duration::from_micros(parameters.interval_us as u64)).await;
    Ok(StreamingOutputCallResponse { payload: payload(parameters.size) })
}

#[tonic::async_trait]
impl TestService for Service {
    async fn empty_call(&self, _request: Request<Empty>) -> Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }

    async fn unary_call(&self, request: Request<SimpleRequest>) -> Result<Response<SimpleResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        compressed::check(request.expect_compressed, &extensions, 0)?;
        asked_for(request.response_status)?;
        let mut response = Response::new(SimpleResponse { payload: payload(request.response_size) });
        if request.response_compressed.is_some_and(|compressed| !compressed.value) {
            response.disable_compression();
        }
        echo(&metadata, response.metadata_mut());
        Ok(response)
    }

    type StreamingOutputCallStream = Answers;

    async fn streaming_output_call(
        &self,
        request: Request<StreamingOutputCallRequest>,
    ) -> Result<Response<Answers>, Status> {
        let parameters = request.into_inner().response_parameters;
        let compressed = parameters.iter().map(|of| of.compressed.is_some_and(|of| of.value)).collect();
        let mut response = Response::new(stream::iter(parameters).then(answer).boxed());
        response.extensions_mut().insert(compressed::Wanted(compressed));
        Ok(response)
    }

    async fn streaming_input_call(
        &self,
        request: Request<Streaming<StreamingInputCallRequest>>,
    ) -> Result<Response<StreamingInputCallResponse>, Status> {
        let _streaming = self.streaming.clone();
        let (_, extensions, mut requests) = request.into_parts();
        let (mut sum, mut number) = (0, 0);
        while let Some(request) = requests.message().await? {
            compressed::check(request.expect_compressed, &extensions, number)?;
            number += 1;
            sum += request.payload.map_or(0, |payload| payload.body.len() as i32);
        }
        Ok(Response::new(StreamingInputCallResponse { aggregated_payload_size: sum }))
    }

    type FullDuplexCallStream = Answers;

    async fn full_duplex_call(
        &self,
        request: Request<Streaming<StreamingOutputCallRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let trailing = metadata.get_bin(TRAILING).cloned();
        let streaming = self.streaming.clone();
        let answers = requests.flat_map(|request| match request {
            Err(status) => stream::iter([Err(status)]).boxed(),
            Ok(request) => match asked_for(request.response_status) {
                Err(status) => stream::iter([Err(status)]).boxed(),
                Ok(()) => stream::iter(request.response_parameters).then(answer).boxed(),
            },
        });
        // tonic sends trailers with a status only: an end that is OK can carry them as one, too.
        let last = trailing.map(|value| {
            let mut status = Status::new(Code::Ok, "");
            status.metadata_mut().insert_bin(TRAILING, value);
            Err(status)
        });
        let answers = answers.chain(stream::iter(last)).inspect(move |_| {
            let _ = &streaming;
        });
        let mut response = Response::new(answers.boxed());
        echo(&metadata, response.metadata_mut());
        Ok(response)
    }

    async fn unimplemented_call(&self, _request: Request<Empty>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("as the document has it"))
    }
}

fn simple(payload_size: i32, response_size: i32) -> SimpleRequest {
    SimpleRequest { response_size, payload: payload(payload_size), ..SimpleRequest::default() }
}

fn output(sizes: &[i32], payload_size: i32) -> StreamingOutputCallRequest {
    let parameters = |size: &i32| ResponseParameters { size: *size, ..ResponseParameters::default() };
    StreamingOutputCallRequest {
        response_parameters: sizes.iter().map(parameters).collect(),
        payload: payload(payload_size),
        ..StreamingOutputCallRequest::default()
    }
}

fn size_of(answer: Option<StreamingOutputCallResponse>) -> Option<usize> {
    Some(answer?.payload.unwrap().body.len())
}

/// What carries the calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Via {
    ZcHttp,
    Http2,
}

const REQUESTS: [i32; 4] = [27_182, 8, 1828, 45_904];
const RESPONSES: [i32; 4] = [31_415, 9, 2653, 58_979];
const SPECIAL: &str = "\t\ntest with whitespace\r\nand Unicode BMP \u{263a} and non-BMP \u{1f608}\t\n";

async fn cases<T: GrpcChannel + Clone>(channel: T, service: &Service, via: Via) {
    let mut client = TestServiceClient::new(channel.clone());
    let client = &mut client;

    // empty_unary
    assert_eq!(client.empty_call(Empty {}).await.unwrap().into_inner(), Empty {});

    // large_unary
    let large = client.unary_call(simple(271_828, 314_159)).await.unwrap().into_inner();
    assert_eq!(large.payload.unwrap().body, vec![0; 314_159]);

    // client_streaming
    let requests = REQUESTS.map(|size| StreamingInputCallRequest {
        payload: payload(size),
        ..StreamingInputCallRequest::default()
    });
    let sum = client.streaming_input_call(stream::iter(requests)).await.unwrap().into_inner();
    assert_eq!(sum.aggregated_payload_size, 74_922);

    // server_streaming
    let answers = client.streaming_output_call(output(&RESPONSES, 0)).await.unwrap().into_inner();
    let sizes: Vec<_> = answers.map(|answer| size_of(answer.ok()).unwrap() as i32).collect().await;
    assert_eq!(sizes, RESPONSES);

    // ping_pong
    let (tx, rx) = mpsc::channel(1);
    let mut answers = client.full_duplex_call(ReceiverStream::new(rx)).await.unwrap().into_inner();
    for (request, response) in REQUESTS.into_iter().zip(RESPONSES) {
        tx.send(output(&[response], request)).await.unwrap();
        assert_eq!(size_of(answers.message().await.unwrap()), Some(response as usize));
    }
    drop(tx);
    assert_eq!(answers.message().await.unwrap(), None);

    // empty_stream
    let mut answers = client.full_duplex_call(stream::empty()).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap(), None);

    metadata_and_statuses(client).await;

    // unimplemented_method, unimplemented_service
    let status = client.unimplemented_call(Empty {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let status = UnimplementedServiceClient::new(channel).unimplemented_call(Empty {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);

    cancellation(client, service, via).await;
}

async fn metadata_and_statuses<T: GrpcChannel>(client: &mut TestServiceClient<T>) {
    // custom_metadata
    fn with_metadata<M>(message: M) -> Request<M> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(INITIAL, MetadataValue::from_static("test_initial_metadata_value"));
        metadata.insert_bin(TRAILING, MetadataValue::from_bytes(&[0xab, 0xab, 0xab]));
        request
    }
    let response = client.unary_call(with_metadata(simple(271_828, 314_159))).await.unwrap();
    assert_eq!(response.metadata().get(INITIAL).unwrap(), "test_initial_metadata_value");
    let requests = stream::iter([output(&[314_159], 271_828)]);
    let response = client.full_duplex_call(with_metadata(requests)).await.unwrap();
    assert_eq!(response.metadata().get(INITIAL).unwrap(), "test_initial_metadata_value");
    let mut answers = response.into_inner();
    assert_eq!(size_of(answers.message().await.unwrap()), Some(314_159));
    assert_eq!(answers.message().await.unwrap(), None);
    let trailers = answers.trailers().await.unwrap().unwrap();
    assert_eq!(trailers.get_bin(TRAILING).unwrap().to_bytes().unwrap(), [0xab, 0xab, 0xab][..]);

    // status_code_and_message, special_status_message
    for message in ["test status message", SPECIAL] {
        let status = Some(EchoStatus { code: 2, message: message.into() });
        let request = SimpleRequest { response_status: status.clone(), ..SimpleRequest::default() };
        let failed = client.unary_call(request).await.unwrap_err();
        assert_eq!((failed.code(), failed.message()), (Code::Unknown, message));
        let request = StreamingOutputCallRequest { response_status: status, ..output(&[], 0) };
        let mut answers = client.full_duplex_call(stream::iter([request])).await.unwrap().into_inner();
        let failed = answers.message().await.unwrap_err();
        assert_eq!((failed.code(), failed.message()), (Code::Unknown, message));
    }
}

async fn cancellation<T: GrpcChannel>(client: &mut TestServiceClient<T>, service: &Service, via: Via) {
    let idle = Arc::strong_count(&service.streaming);

    // cancel_after_begin: in Rust, dropping the call cancels it.
    let (tx, rx) = mpsc::channel::<StreamingInputCallRequest>(1);
    tokio::select! {
        biased;
        _ = client.streaming_input_call(ReceiverStream::new(rx)) => panic!("nothing was sent"),
        () = tokio::time::sleep(Duration::from_millis(5)) => {}
    }
    tokio::time::timeout(HANG, tx.closed()).await.expect("the call goes on");
    service.wait_until_idle(idle).await;

    // cancel_after_first_response
    let (tx, rx) = mpsc::channel(1);
    let mut answers = client.full_duplex_call(ReceiverStream::new(rx)).await.unwrap().into_inner();
    tx.send(output(&[31_415], 27_182)).await.unwrap();
    assert_eq!(size_of(answers.message().await.unwrap()), Some(31_415));
    drop(answers);
    match via {
        Via::ZcHttp => tokio::time::timeout(HANG, tx.closed()).await.expect("the call goes on"),
        // Once there are response headers, hyper's client keeps a call whose answer was dropped until the request's
        // stream ends by itself, over TCP as over zc.
        Via::Http2 => drop(tx),
    }
    service.wait_until_idle(idle).await;
}

async fn timeout_on_sleeping_server<T: GrpcChannel>(channel: T) {
    let mut client = TestServiceClient::new(channel);
    let (tx, rx) = mpsc::channel(1);
    tx.send(output(&[], 27_182)).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(rx));
    request.set_timeout(Duration::from_millis(1));
    let late = match client.full_duplex_call(request).await {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    // A deadline that passes at the client drops the call: tonic's own channel calls that cancelled.
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
}

/// Both ways over one transport.
async fn on(uri: &str, policy: Policy, chosen: &str) {
    let fabric = Fabric::auto_builder().policy(policy).build().unwrap();
    let listener = fabric.listen_mixed(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    let service = Service::default();
    let server = tokio::spawn(Server::new().serve(listener, compressed::service(service.clone())));
    let channel = Channel::new(&fabric, &uri).unwrap();
    let over_zc_http = async {
        cases(channel.clone(), &service, Via::ZcHttp).await;
        compressed::cases(compressed::watched(channel.clone())).await;
        timeout_on_sleeping_server(channel.clone()).await;
    };
    tokio::time::timeout(HANG, over_zc_http).await.expect("zc-http hangs");
    assert_eq!(channel.report().unwrap().chosen(), chosen);
    let connector = ZcConnector::new(&fabric, &uri).unwrap();
    let stream = Endpoint::from_static("http://interop").connect_with_connector(connector).await.unwrap();
    let over_http2 = async {
        cases(stream.clone(), &service, Via::Http2).await;
        compressed::cases(compressed::watched(stream.clone())).await;
        timeout_on_sleeping_server(stream).await;
    };
    tokio::time::timeout(HANG, over_http2).await.expect("HTTP/2 hangs");
    server.abort();
}

#[tokio::test]
async fn in_process() {
    on("zc+mem://interop", Policy::default(), "mem").await;
}

#[tokio::test]
async fn over_tcp() {
    on("zc+tcp://127.0.0.1:0", Policy::default(), "tcp").await;
}

#[tokio::test]
async fn over_a_unix_socket() {
    let uri = format!("zc+unix://@zc-interop-{}", std::process::id());
    on(&uri, Policy::default().with_override("tcp").unwrap(), "tcp").await;
}

#[tokio::test]
async fn over_shared_memory() {
    let uri = format!("zc+shm://@zc-interop-shm-{}", std::process::id());
    on(&uri, Policy::default(), "shm").await;
}

/// What HTTP/2 over zc is held to. Of deadlines it does more: tonic's own server and channel stop the clock when there
/// are response headers, so that a stream whose server sleeps never ends.
#[tokio::test]
async fn on_stock_tonic_over_tcp() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let service = Service::default();
    let serving = tonic::transport::Server::builder()
        .add_service(TestServiceServer::new(service.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let server = tokio::spawn(serving);
    let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    tokio::time::timeout(HANG, cases(channel, &service, Via::Http2)).await.expect("HTTP/2 hangs");
    server.abort();
}
