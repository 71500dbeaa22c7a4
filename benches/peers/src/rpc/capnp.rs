//! Cap'n Proto RPC, over TCP and over a Unix socket.

use capnp::capability::Rc;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty::VatNetwork};
use tokio::task::LocalSet;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::bench;
use crate::Result;
use crate::contender::{Contender, block_on};
use crate::echo_capnp::echo;
use crate::job::{Job, Test};
use crate::machine::{Cores, pin};
use crate::samples::Metric;
use crate::sockets::{self, Stream};

pub(super) struct CapnProto {
    pub(super) name: &'static str,
    pub(super) tcp: bool,
}

struct Service;

impl echo::Server for Service {
    async fn unary(
        self: Rc<Self>,
        params: echo::UnaryParams,
        mut results: echo::UnaryResults,
    ) -> std::result::Result<(), capnp::Error> {
        results.get().set_data(params.get()?.get_data()?);
        Ok(())
    }
}

impl Contender for CapnProto {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, test: Test, _size: usize) -> bool {
        test == Test::Calls
    }

    fn measure(&self, job: &Job) -> Result<Vec<(Metric, f64)>> {
        pin(Cores::TWO.client)?;
        block_on(LocalSet::new().run_until(async {
            let (server, stream) = sockets::client(job, self.tcp)?;
            let mut system = RpcSystem::new(network(stream, Side::Client), None);
            let client: echo::Client = system.bootstrap(Side::Server);
            tokio::task::spawn_local(system);
            let data = vec![7; job.size];
            bench::run(job, &server, async || {
                let mut request = client.unary_request();
                request.get().set_data(&data);
                let answer = request.send().promise.await?;
                if answer.get()?.get_data()?.len() == job.size {
                    Ok(())
                } else {
                    Err("another answer".into())
                }
            })
            .await
        }))
    }

    fn serve(&self, _job: &Job) -> Result<()> {
        pin(Cores::TWO.server)?;
        block_on(LocalSet::new().run_until(async {
            let service: echo::Client = capnp_rpc::new_client(Service);
            let stream = sockets::server(self.tcp)?;
            Ok(RpcSystem::new(network(stream, Side::Server), Some(service.client)).await?)
        }))
    }
}

fn network(stream: Stream, side: Side) -> Box<VatNetwork<impl futures::AsyncRead + Unpin>> {
    let (reader, writer) = tokio::io::split(stream);
    Box::new(VatNetwork::new(reader.compat(), writer.compat_write(), side, Default::default()))
}
