//! iceoryx2's publish-subscribe: one service for each direction, payload in loaned memory.

use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use rustix::process::{getpid, getppid};

use super::iceoryx::{IpcNode, node, service};
use super::ready::say_ready;
use crate::Result;
use crate::child::{Running, serve_by_name};
use crate::contender::{End, Link, read};
use crate::job::Job;

pub(super) struct PubSub;

pub(super) struct Ports {
    publisher: Publisher<ipc::Service, [u8], ()>,
    subscriber: Subscriber<ipc::Service, [u8], ()>,
    /// Goes after its ports.
    _node: IpcNode,
}

impl Ports {
    fn new(job: &Job, out: &str, back: &str, client_id: u32) -> Result<Self> {
        let node = node(job)?;
        let open = |direction: &str| {
            let name = service(job, direction, client_id)?;
            let builder = node.service_builder(&name).publish_subscribe::<[u8]>();
            let builder = builder.max_publishers(1).max_subscribers(1).history_size(0);
            // Full means wait, as with every other contender.
            let builder = builder.enable_safe_overflow(false).subscriber_max_buffer_size(job.depth());
            Ok::<_, crate::Error>(builder.subscriber_max_borrowed_samples(1).open_or_create()?)
        };
        let subscriber = open(back)?.subscriber_builder().create()?;
        let publisher = open(out)?
            .publisher_builder()
            .initial_max_slice_len(job.size)
            .max_loaned_samples(1)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()?;
        Ok(Self { publisher, subscriber, _node: node })
    }
}

impl Link for PubSub {
    const NAME: &'static str = "iceoryx2 pub-sub";
    type End = Ports;

    fn client(job: &Job) -> Result<(Running, Ports)> {
        let server = serve_by_name(job)?;
        Ok((server, Ports::new(job, "there", "back", getpid().as_raw_nonzero().get() as u32)?))
    }

    fn server(job: &Job) -> Result<Ports> {
        let client_id = getppid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32);
        let ports = Ports::new(job, "back", "there", client_id)?;
        say_ready()?;
        Ok(ports)
    }
}

impl End for Ports {
    async fn send(&mut self, mark: u8, size: usize) -> Result<()> {
        let sample = self.publisher.loan_slice_uninit(size)?.write_from_fn(|_| mark);
        if sample.send()? == 0 {
            return Err("nobody has subscribed".into());
        }
        Ok(())
    }

    async fn recv(&mut self, size: usize) -> Result<u8> {
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                return read(sample.payload(), size);
            }
        }
    }
}
