//! The service of the document.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use tonic::body::Body;
use tonic::metadata::{Binary, MetadataMap, MetadataValue};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::pb::test_service_server::TestService;
use crate::pb::{
    EchoStatus, Empty, Payload, ResponseParameters, SimpleRequest, SimpleResponse, StreamingInputCallRequest,
    StreamingInputCallResponse, StreamingOutputCallRequest, StreamingOutputCallResponse,
};
use crate::{HANG, compressed};

pub(crate) const INITIAL: &str = "x-grpc-test-echo-initial";
pub(crate) const TRAILING: &str = "x-grpc-test-echo-trailing-bin";

#[derive(Clone, Default)]
pub(crate) struct Service {
    /// A clone for each streaming call whose handler lives.
    pub(crate) streaming: Arc<()>,
}

impl Service {
    pub(crate) async fn wait_until_idle(&self, before: usize) {
        let look = async {
            while Arc::strong_count(&self.streaming) > before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(HANG, look).await.expect("a handler goes on");
    }
}

pub(crate) fn payload(size: i32) -> Option<Payload> {
    Some(Payload { r#type: 0, body: Bytes::from(vec![0; size as usize]) })
}

fn asked_for(status: Option<EchoStatus>) -> Result<(), Status> {
    status.map_or(Ok(()), |status| Err(Status::new(Code::from_i32(status.code), status.message)))
}

/// In a response's extensions: what its trailers have to bring back.
#[derive(Clone)]
struct Trailing(MetadataValue<Binary>);

fn echo<T>(from: &MetadataMap, to: &mut Response<T>) {
    if let Some(value) = from.get(INITIAL) {
        to.metadata_mut().insert(INITIAL, value.clone());
    }
    if let Some(value) = from.get_bin(TRAILING) {
        to.extensions_mut().insert(Trailing(value.clone()));
    }
}

/// Puts into the trailers what is to go there: handlers of tonic set headers only.
pub(crate) fn with_trailers(response: http::Response<Body>) -> http::Response<Body> {
    let Some(Trailing(value)) = response.extensions().get().cloned() else { return response };
    let value = http::HeaderValue::from_bytes(value.as_encoded_bytes()).unwrap();
    response.map(|body| {
        Body::new(body.map_frame(move |frame| match frame.into_trailers() {
            Err(frame) => frame,
            Ok(mut trailers) => {
                trailers.insert(TRAILING, value.clone());
                http_body::Frame::trailers(trailers)
            }
        }))
    })
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
        echo(&metadata, &mut response);
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
        let streaming = self.streaming.clone();
        let answers = requests.flat_map(|request| match request {
            Err(status) => stream::iter([Err(status)]).boxed(),
            Ok(request) => match asked_for(request.response_status) {
                Err(status) => stream::iter([Err(status)]).boxed(),
                Ok(()) => stream::iter(request.response_parameters).then(answer).boxed(),
            },
        });
        let answers = answers.inspect(move |_| {
            let _ = &streaming;
        });
        let mut response = Response::new(answers.boxed());
        echo(&metadata, &mut response);
        Ok(response)
    }

    async fn unimplemented_call(&self, _request: Request<Empty>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("as the document has it"))
    }
}
