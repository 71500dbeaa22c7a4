//! iceoryx2's request-response, payload in loaned memory both ways.

use iceoryx2::active_request::ActiveRequest;
use iceoryx2::pending_response::PendingResponse;
use iceoryx2::port::client::Client;
use iceoryx2::port::server::Server;
use iceoryx2::prelude::*;
use rustix::process::{getpid, getppid};

use super::iceoryx::{IpcNode, node, service};
use super::ready::say_ready;
use crate::Result;
use crate::child::{Running, serve_by_name};
use crate::contender::{End, Link, read};
use crate::job::{Job, Test};

pub(super) struct RequestResponse;

type Pending = PendingResponse<ipc::Service, [u8], (), [u8], ()>;
type Request = ActiveRequest<ipc::Service, [u8], (), [u8], ()>;

pub(super) enum Side {
    Client { pending: Option<Pending>, client: Client<ipc::Service, [u8], (), [u8], ()>, _node: IpcNode },
    Server { request: Option<Request>, server: Server<ipc::Service, [u8], (), [u8], ()>, _node: IpcNode },
}

impl Link for RequestResponse {
    const NAME: &'static str = "iceoryx2 request-response";
    type End = Side;

    fn takes(test: Test, _size: usize) -> bool {
        test == Test::RoundTrip
    }

    fn client(job: &Job) -> Result<(Running, Side)> {
        let process = serve_by_name(job)?;
        let node = node(job)?;
        let name = service(job, "call", getpid().as_raw_nonzero().get() as u32)?;
        let opened = node.service_builder(&name).request_response::<[u8], [u8]>().open()?;
        let client = opened.client_builder().initial_max_slice_len(job.size).create()?;
        Ok((process, Side::Client { pending: None, client, _node: node }))
    }

    fn server(job: &Job) -> Result<Side> {
        let node = node(job)?;
        let client_id = getppid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32);
        let name = service(job, "call", client_id)?;
        let builder = node.service_builder(&name).request_response::<[u8], [u8]>();
        let created = builder.max_clients(1).max_servers(1).create()?;
        let server = created.server_builder().initial_max_slice_len(job.size).create()?;
        say_ready()?;
        Ok(Side::Server { request: None, server, _node: node })
    }
}

impl End for Side {
    async fn send(&mut self, mark: u8, size: usize) -> Result<()> {
        match self {
            Self::Client { pending, client, .. } => {
                *pending = Some(client.loan_slice_uninit(size)?.write_from_fn(|_| mark).send()?);
            }
            Self::Server { request, .. } => {
                let request = request.take().ok_or("nobody has asked")?;
                request.loan_slice_uninit(size)?.write_from_fn(|_| mark).send()?;
            }
        }
        Ok(())
    }

    async fn recv(&mut self, size: usize) -> Result<u8> {
        loop {
            match self {
                Self::Client { pending, .. } => {
                    let response = pending.as_ref().ok_or("nothing was asked")?.receive()?;
                    if let Some(response) = response {
                        return read(response.payload(), size);
                    }
                }
                Self::Server { request, server, .. } => {
                    if let Some(received) = server.receive()? {
                        let mark = read(received.payload(), size)?;
                        *request = Some(received);
                        return Ok(mark);
                    }
                }
            }
        }
    }
}
