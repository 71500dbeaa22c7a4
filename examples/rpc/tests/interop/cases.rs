//! The cases, each called by its name in the document.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use zc_examples_rpc::grpc::GrpcChannel;

use crate::HANG;
use crate::pb::test_service_client::TestServiceClient;
use crate::pb::unimplemented_service_client::UnimplementedServiceClient;
use crate::pb::{
    EchoStatus, Empty, ResponseParameters, SimpleRequest, StreamingInputCallRequest,
    StreamingOutputCallRequest, StreamingOutputCallResponse,
};
use crate::service::{INITIAL, Service, TRAILING, payload};

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

pub(crate) fn size_of(answer: Option<StreamingOutputCallResponse>) -> Option<usize> {
    Some(answer?.payload.unwrap().body.len())
}

/// What carries the calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    ZcHttp,
    Http2,
}

const REQUESTS: [i32; 4] = [27_182, 8, 1828, 45_904];
const RESPONSES: [i32; 4] = [31_415, 9, 2653, 58_979];
const SPECIAL: &str = "\t\ntest with whitespace\r\nand Unicode BMP \u{263a} and non-BMP \u{1f608}\t\n";

pub(crate) async fn cases<T: GrpcChannel + Clone>(channel: T, service: &Service, via: Via) {
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
    // Of a call with one answer tonic hands out both kinds together.
    assert_eq!(response.metadata().get(INITIAL).unwrap(), "test_initial_metadata_value");
    let trailing = response.metadata().get_bin(TRAILING).expect("no trailing metadata");
    assert_eq!(trailing.to_bytes().unwrap(), [0xab, 0xab, 0xab][..]);
    let requests = stream::iter([output(&[314_159], 271_828)]);
    let response = client.full_duplex_call(with_metadata(requests)).await.unwrap();
    assert_eq!(response.metadata().get(INITIAL).unwrap(), "test_initial_metadata_value");
    assert!(!response.metadata().contains_key(TRAILING));
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

pub(crate) async fn timeout_on_sleeping_server<T: GrpcChannel>(channel: T, via: Via) {
    let mut client = TestServiceClient::new(channel);
    let (tx, rx) = mpsc::channel(1);
    tx.send(output(&[], 27_182)).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(rx));
    request.set_timeout(Duration::from_millis(1));
    let late = match client.full_duplex_call(request).await {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    // Over HTTP/2 tonic's own channel, or server, may be first to drop the call, and calls that cancelled.
    let cancelled = via == Via::Http2 && late.code() == Code::Cancelled;
    assert!(late.code() == Code::DeadlineExceeded || cancelled, "{late:?}");
}
