//! A tarpc service on zc: its transport is any `Sink` and `Stream` of values, here the messages of a connection.
//!
//! ```text
//! tarpc_echo                               both sides as two processes, one table
//! tarpc_echo server zc://127.0.0.1:7000    the sides alone
//! tarpc_echo client zc://127.0.0.1:7000
//! tarpc_echo bench --uri zc+tcp://127.0.0.1:0 --size 64 --inflight 128 --json
//! ```
//!
//! A value is serialized straight into memory that the connection sends, and read where it arrived: zc copies nothing. serde
//! copies the bytes of a message once at each side, into the memory and out of it.

#![allow(clippy::print_stdout, reason = "a program")]

use std::time::Duration;

use clap::Parser;
use futures::StreamExt;
use serde_bytes::ByteBuf;
use tarpc::server::{BaseChannel, Channel};
use tarpc::{client, context};
use zc::{Connection, Fabric};
use zc_examples_rpc::bench::{self, Ledger, Report};
use zc_examples_rpc::cli::{Args, Command, Point, ServerArgs, print_head, print_row};
use zc_examples_rpc::items::Items;
use zc_examples_rpc::{BoxError, process};

/// Calls of one client at a time; tarpc turns further ones down.
const MAX_CALLS: usize = 1024;

#[tarpc::service]
trait Echo {
    /// Sends back what it gets.
    async fn echo(data: ByteBuf) -> ByteBuf;
}

#[derive(Clone)]
struct Service;

impl Echo for Service {
    async fn echo(self, _: context::Context, data: ByteBuf) -> ByteBuf {
        data
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    match Args::parse().command {
        None => {
            let server = process::Server::start("zc://127.0.0.1:0", false)?;
            table(&server.uri, || server.cpu_ns()).await
        }
        Some(Command::Server(ServerArgs { uri, http2: false, child })) => serve(&uri, child).await,
        Some(Command::Client { uri }) => table(&uri, || 0).await,
        Some(Command::Bench(args)) if !args.http2 => {
            let server = process::Server::start(&args.uri, false)?;
            process::pin(1);
            let caller = Caller::new(Fabric::auto()?.connect(&server.uri).await?);
            args.run(|point| caller.measure(point, || server.cpu_ns())).await
        }
        Some(Command::Server(_) | Command::Bench(_)) => Err("there is no HTTP in this one".into()),
    }
}

async fn serve(uri: &str, child: bool) -> Result<(), BoxError> {
    if child {
        process::pin(0);
    }
    let mut listener = Fabric::auto()?.listen(uri).await?;
    println!("{}", listener.local_uri());
    let mut stopped = std::pin::pin!(process::stopped(child));
    loop {
        tokio::select! {
            () = &mut stopped => return Ok(()),
            connection = listener.accept() => drop(tokio::spawn(answer(connection?))),
        }
    }
}

/// Until the client has finished.
async fn answer(mut connection: Connection) {
    let channel = BaseChannel::with_defaults(Items::new(connection.split()));
    let answers = channel.max_concurrent_requests(MAX_CALLS).execute(Service.serve());
    answers.for_each(async |answer| drop(tokio::spawn(answer))).await;
}

async fn table(uri: &str, cpu_ns: impl Fn() -> u64) -> Result<(), BoxError> {
    let caller = Caller::new(Fabric::auto()?.connect(uri).await?);
    println!("{}", caller.connection.report());
    print_head();
    for (size, inflight) in [(64, 1), (64, 128), (64 << 10, 16), (1 << 20, 1)] {
        let point = Point { size, inflight, duration: Duration::from_millis(500) };
        let mut report = caller.measure(point, &cpu_ns).await?;
        uri.clone_into(&mut report.uri);
        print_row(&report);
    }
    Ok(())
}

struct Caller {
    /// Of its halves the client has made its transport.
    connection: Connection,
    client: EchoClient,
}

impl Caller {
    fn new(mut connection: Connection) -> Self {
        let client = EchoClient::new(client::Config::default(), Items::new(connection.split())).spawn();
        Self { connection, client }
    }

    async fn measure(
        &self,
        Point { size, inflight, duration }: Point,
        cpu_ns: impl Fn() -> u64,
    ) -> Result<Report, BoxError> {
        let data = ByteBuf::from(vec![7; size]);
        let call = || {
            let data = data.clone();
            async {
                let answer = self.client.echo(context::current(), data).await?;
                if answer.len() == size { Ok(()) } else { Err("another answer".into()) }
            }
        };
        let ledger = || Ledger::from(&self.connection.ledger());
        bench::run("", size, inflight, duration, cpu_ns, ledger, call).await
    }
}
