//! tarpc with bincode, over TCP and over a Unix socket.

use futures::StreamExt;
use serde_bytes::ByteBuf;
use tarpc::server::{BaseChannel, Channel};
use tarpc::{ClientMessage, Response, client, context, serde_transport};
use tokio_serde::formats::Bincode;
use tokio_util::codec::LengthDelimitedCodec;

use super::bench;
use crate::Result;
use crate::contender::{Contender, block_on};
use crate::job::{Job, Test};
use crate::machine::{Cores, pin};
use crate::samples::Metric;
use crate::sockets::{self, Stream};

/// Largest frame: the largest message, and room for what is around it.
const MAX_FRAME_BYTES: usize = 16 << 20;

pub(super) struct Tarpc {
    pub(super) name: &'static str,
    pub(super) tcp: bool,
}

#[tarpc::service]
trait Echo {
    async fn unary(data: ByteBuf) -> ByteBuf;
}

#[derive(Clone)]
struct Service;

impl Echo for Service {
    async fn unary(self, _: context::Context, data: ByteBuf) -> ByteBuf {
        data
    }
}

impl Contender for Tarpc {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, test: Test, _size: usize) -> bool {
        test == Test::Calls
    }

    fn measure(&self, job: &Job) -> Result<Vec<(Metric, f64)>> {
        pin(Cores::TWO.client)?;
        block_on(async {
            let (server, stream) = sockets::client(job, self.tcp)?;
            let transport = serde_transport::new(codec().new_framed(stream), Bincode::default());
            let client = EchoClient::new(client::Config::default(), transport).spawn();
            let data = ByteBuf::from(vec![7; job.size]);
            bench::run(job, &server, async || {
                let answer = client.unary(context::current(), data.clone()).await?;
                if answer.len() == job.size { Ok(()) } else { Err("another answer".into()) }
            })
            .await
        })
    }

    fn serve(&self, _job: &Job) -> Result<()> {
        pin(Cores::TWO.server)?;
        block_on(async {
            answer(sockets::server(self.tcp)?).await;
            Ok(())
        })
    }
}

fn codec() -> tokio_util::codec::length_delimited::Builder {
    let mut codec = LengthDelimitedCodec::builder();
    codec.max_frame_length(MAX_FRAME_BYTES);
    codec
}

async fn answer(stream: Stream) {
    let codec = Bincode::<ClientMessage<EchoRequest>, Response<EchoResponse>>::default();
    let transport = serde_transport::new(self::codec().new_framed(stream), codec);
    let requests = BaseChannel::with_defaults(transport).execute(Service.serve());
    requests.for_each(async |request| drop(tokio::spawn(request))).await;
}
