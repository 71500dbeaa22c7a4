//! The cases that compress: client_compressed_unary, server_compressed_unary, and both for streams.
//!
//! tonic compresses all messages of a stream or none, and tells nobody which it received so. Here bodies are looked at on
//! their way, and streams of both kinds of message are put together by hand; tonic reads them.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use prost::Message;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::codegen::Body as HttpBody;
use tonic::{Code, Extensions, Status};
use tower::{ServiceBuilder, ServiceExt};
use zc_examples_rpc::BoxError;
use zc_examples_rpc::grpc::GrpcChannel;

use crate::cases::size_of;
use crate::pb::test_service_client::TestServiceClient;
use crate::pb::test_service_server::TestServiceServer;
use crate::pb::{
    BoolValue, ResponseParameters, SimpleRequest, StreamingInputCallRequest, StreamingInputCallResponse,
    StreamingOutputCallRequest,
};
use crate::service::{Service, payload, with_trailers};

/// Flag and length in front of each message.
const PREFIX: usize = 5;

/// Which messages of a body came compressed, as far as it was read.
#[derive(Clone, Default)]
struct Flags(Arc<Mutex<Vec<bool>>>);

impl Flags {
    fn all(&self) -> Vec<bool> {
        self.0.lock().unwrap().clone()
    }
}

/// A body whose messages' flags are noted on the way.
pub(crate) struct Watched<B> {
    body: Pin<Box<B>>,
    flags: Flags,
    prefix: BytesMut,
    /// Bytes of the message that are still to come.
    rest: usize,
}

impl<B> Watched<B> {
    fn note(&mut self, mut data: Bytes) {
        while data.has_remaining() {
            let skipped = self.rest.min(data.len());
            data.advance(skipped);
            self.rest -= skipped;
            let prefix = (PREFIX - self.prefix.len()).min(data.len());
            self.prefix.put(data.split_to(prefix));
            if self.prefix.len() == PREFIX {
                self.flags.0.lock().unwrap().push(self.prefix.get_u8() == 1);
                self.rest = self.prefix.get_u32() as usize;
            }
        }
    }
}

impl<B: HttpBody<Data = Bytes>> HttpBody for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, B::Error>>> {
        let frame = std::task::ready!(self.body.as_mut().poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.note(data.clone());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

fn watch<B>(body: B, extensions: &mut http::Extensions) -> Watched<B> {
    let flags = Flags::default();
    extensions.insert(flags.clone());
    Watched { body: Box::pin(body), flags, prefix: BytesMut::new(), rest: 0 }
}

/// As the document asks of servers: what was expected to be compressed has to be, and the reverse.
#[allow(clippy::result_large_err, reason = "a handler's")]
pub(crate) fn check(expected: Option<BoolValue>, request: &Extensions, number: usize) -> Result<(), Status> {
    let flags = request.get::<Flags>().map(Flags::all).unwrap_or_default();
    match expected {
        Some(expected) if flags.get(number) != Some(&expected.value) => {
            Err(Status::invalid_argument("not compressed as expected"))
        }
        _ => Ok(()),
    }
}

/// In a response's extensions: which messages of its stream are to go out compressed.
#[derive(Clone)]
pub(crate) struct Wanted(pub(crate) Vec<bool>);

/// Of the compressed messages of a response, leaves those so that are wanted so.
async fn as_wanted(response: http::Response<Body>) -> Result<http::Response<Body>, BoxError> {
    let Some(Wanted(wanted)) = response.extensions().get().cloned() else { return Ok(response) };
    let (parts, body) = response.into_parts();
    if !parts.headers.contains_key("grpc-encoding") {
        return Ok(http::Response::from_parts(parts, body));
    }
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned();
    let (mut bytes, mut frames) = (collected.to_bytes(), Vec::new());
    for wanted in wanted {
        let (_, len) = (bytes.get_u8(), bytes.get_u32());
        let mut message = Vec::new();
        GzDecoder::new(&bytes.split_to(len as usize)[..]).read_to_end(&mut message)?;
        frames.push(Ok::<_, Status>(http_body::Frame::data(framed(&message, wanted))));
    }
    frames.extend(trailers.map(|trailers| Ok(http_body::Frame::trailers(trailers))));
    Ok(http::Response::from_parts(parts, Body::new(StreamBody::new(futures::stream::iter(frames)))))
}

fn framed(message: &[u8], compressed: bool) -> Bytes {
    let mut encoded = Vec::new();
    if compressed {
        let mut gzip = GzEncoder::new(&mut encoded, Compression::fast());
        gzip.write_all(message).unwrap();
        gzip.finish().unwrap();
    } else {
        encoded.extend_from_slice(message);
    }
    let mut frame = BytesMut::with_capacity(PREFIX + encoded.len());
    frame.put_u8(compressed.into());
    frame.put_u32(encoded.len() as u32);
    frame.put_slice(&encoded);
    frame.freeze()
}

/// The service, for those who compress, too.
pub(crate) fn service(service: Service) -> TestServiceServer<Service> {
    TestServiceServer::new(service)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
}

/// Around a service: it sees which messages come compressed, and says which go out so, and with what trailers.
pub(crate) fn around<S, B>(
    service: S,
) -> impl tower::Service<http::Request<B>, Response = http::Response<Body>, Error = BoxError, Future: Send>
+ Clone
+ Send
+ 'static
where
    S: tower::Service<http::Request<Watched<B>>, Response = http::Response<Body>, Error: Into<BoxError>>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
{
    ServiceBuilder::new()
        .map_request(|request: http::Request<B>| {
            let (mut parts, body) = request.into_parts();
            let body = watch(body, &mut parts.extensions);
            http::Request::from_parts(parts, body)
        })
        .service(service)
        .map_response(with_trailers)
        .map_err(Into::into)
        .and_then(as_wanted)
}

/// A channel whose responses tell which of their messages came compressed.
pub(crate) fn watched<T: GrpcChannel + Clone>(channel: T) -> impl GrpcChannel + Clone {
    tower::service_fn(move |request| {
        let mut channel = channel.clone();
        async move {
            poll_fn(|cx| channel.poll_ready(cx)).await?;
            let (mut parts, body) = channel.call(request).await?.into_parts();
            let body = watch(body, &mut parts.extensions);
            Ok::<_, T::Error>(http::Response::from_parts(parts, body))
        }
    })
}

fn flags(extensions: &Extensions) -> Vec<bool> {
    extensions.get::<Flags>().unwrap().all()
}

pub(crate) async fn cases<T: GrpcChannel + Clone>(channel: T) {
    let plain = TestServiceClient::new(channel.clone()).accept_compressed(CompressionEncoding::Gzip);
    let compressing = plain.clone().send_compressed(CompressionEncoding::Gzip);
    client_compressed_unary(plain.clone(), compressing).await;
    server_compressed_unary(plain.clone()).await;
    client_compressed_streaming(channel).await;
    server_compressed_streaming(plain).await;
}

async fn client_compressed_unary<T: GrpcChannel>(
    mut plain: TestServiceClient<T>,
    mut compressing: TestServiceClient<T>,
) {
    let request = |compressed| SimpleRequest {
        expect_compressed: Some(BoolValue { value: compressed }),
        response_size: 314_159,
        payload: payload(271_828),
        ..SimpleRequest::default()
    };
    // A probe whether the server looks.
    let refused = plain.unary_call(request(true)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    for (client, compressed) in [(&mut compressing, true), (&mut plain, false)] {
        let answer = client.unary_call(request(compressed)).await.unwrap().into_inner();
        assert_eq!(answer.payload.unwrap().body, vec![0; 314_159]);
    }
}

async fn server_compressed_unary<T: GrpcChannel>(mut client: TestServiceClient<T>) {
    for compressed in [true, false] {
        let response = client.unary_call(SimpleRequest {
            response_compressed: Some(BoolValue { value: compressed }),
            response_size: 314_159,
            payload: payload(271_828),
            ..SimpleRequest::default()
        });
        let response = response.await.unwrap();
        assert_eq!(flags(response.extensions()), [compressed]);
        assert_eq!(response.into_inner().payload.unwrap().body, vec![0; 314_159]);
    }
}

async fn client_compressed_streaming<T: GrpcChannel>(mut channel: T) {
    let message = |size, compressed| {
        let expect_compressed = Some(BoolValue { value: compressed });
        StreamingInputCallRequest { payload: payload(size), expect_compressed }.encode_to_vec()
    };
    let probe = framed(&message(27_182, true), false);
    let both = [framed(&message(27_182, true), true), framed(&message(45_904, false), false)].concat();
    for (body, expected) in [(probe, Err("3")), (both.into(), Ok(73_086))] {
        let request = http::Request::post("/grpc.testing.TestService/StreamingInputCall")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-encoding", "gzip")
            .body(Body::new(Full::new(body).map_err(|never| match never {})))
            .unwrap();
        let ready = poll_fn(|cx| channel.poll_ready(cx)).await;
        assert!(ready.is_ok());
        let Ok(response) = channel.call(request).await else { panic!("the call failed") };
        let status = response.headers().get("grpc-status").cloned();
        let Ok(body) = response.into_body().collect().await else { panic!("the body failed") };
        let status = status.or(body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()));
        let status = status.unwrap();
        match expected {
            Err(code) => assert_eq!(status, code),
            Ok(sum) => {
                assert_eq!(status, "0");
                let answer = StreamingInputCallResponse::decode(&body.to_bytes()[PREFIX..]).unwrap();
                assert_eq!(answer.aggregated_payload_size, sum);
            }
        }
    }
}

async fn server_compressed_streaming<T: GrpcChannel>(mut client: TestServiceClient<T>) {
    let parameters = |size, compressed| {
        let compressed = Some(BoolValue { value: compressed });
        ResponseParameters { size, compressed, ..ResponseParameters::default() }
    };
    let response = client.streaming_output_call(StreamingOutputCallRequest {
        response_parameters: vec![parameters(31_415, true), parameters(92_653, false)],
        ..StreamingOutputCallRequest::default()
    });
    let (_, answers, extensions) = response.await.unwrap().into_parts();
    let sizes: Vec<_> = answers.map(|answer| size_of(answer.ok()).unwrap()).collect().await;
    assert_eq!(sizes, [31_415, 92_653]);
    assert_eq!(flags(&extensions), [true, false]);
}
