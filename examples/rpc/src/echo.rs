//! The service: an ordinary tonic one, which knows nothing of what carries it.

use std::pin::Pin;

use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use crate::pb::echo_server::{Echo, EchoServer};
use crate::pb::{Ask, Payload, Summary};

/// The largest message that the examples send, and a little more.
pub const MAX_MESSAGE: usize = 20 << 20;

/// Sends back what it gets.
#[derive(Debug, Default, Clone, Copy)]
pub struct EchoService;

/// Ready to be served.
pub fn service() -> EchoServer<EchoService> {
    EchoServer::new(EchoService).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

type Payloads = Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for EchoService {
    async fn unary(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn collect(&self, request: Request<Streaming<Payload>>) -> Result<Response<Summary>, Status> {
        let mut payloads = request.into_inner();
        let mut summary = Summary::default();
        while let Some(payload) = payloads.message().await? {
            summary.messages += 1;
            summary.bytes += payload.data.len() as u64;
        }
        Ok(Response::new(summary))
    }

    type RepeatStream = Payloads;

    async fn repeat(&self, request: Request<Ask>) -> Result<Response<Payloads>, Status> {
        let Ask { data, times } = request.into_inner();
        let payloads = (0..times).map(move |_| Ok(Payload { data: data.clone() }));
        Ok(Response::new(stream::iter(payloads).boxed()))
    }

    type ChatStream = Payloads;

    async fn chat(&self, request: Request<Streaming<Payload>>) -> Result<Response<Payloads>, Status> {
        Ok(Response::new(request.into_inner().boxed()))
    }
}
