//! A tonic service on zc: the generated code and the service are the same as on HTTP/2.
//!
//! ```text
//! grpc_echo                               both sides as two processes, one table
//! grpc_echo server zc://127.0.0.1:7000    the sides alone; also http://ADDRESS and unix:PATH (stock tonic)
//! grpc_echo client zc://127.0.0.1:7000
//! grpc_echo bench --uri zc+tcp://127.0.0.1:0 --size 64 --inflight 128 --json [--http2]
//! ```

#![allow(clippy::print_stdout, reason = "a program")]

use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use futures::stream;
use zc::Fabric;
use zc_examples_rpc::cli::{Args, Command, Point, print_head, print_row};
use zc_examples_rpc::grpc::{GrpcChannel, INPROC, echo_client, measure, serve, stock_channel};
use zc_examples_rpc::pb::{Ask, Payload};
use zc_examples_rpc::{BoxError, process};
use zc_http::Channel;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    match Args::parse().command {
        None => both().await,
        Some(Command::Server(args)) => serve(&args).await,
        Some(Command::Client { uri }) => client(&uri).await,
        Some(Command::Bench(args)) => args.run(|point| measure(&args.uri, args.http2, point)).await,
    }
}

async fn client(uri: &str) -> Result<(), BoxError> {
    if let Some(channel) = stock_channel(uri).await? {
        return show(channel).await;
    }
    let channel = Channel::new(&Fabric::auto()?, uri)?;
    channel.connect().await?;
    if let Some(report) = channel.report() {
        println!("{report}");
    }
    show(channel).await
}

/// The four kinds of call.
async fn show<T: GrpcChannel>(channel: T) -> Result<(), BoxError> {
    let mut client = echo_client(channel);
    let payload = |text: &'static str| Payload { data: Bytes::from_static(text.as_bytes()) };
    let answer = client.unary(payload("hello")).await?.into_inner();
    println!("unary:  {:?}", answer.data);
    let summary = client.collect(stream::iter(["a", "bc", "def"].map(payload))).await?.into_inner();
    println!("client stream: {} messages, {} bytes", summary.messages, summary.bytes);
    let ask = Ask { data: Bytes::from_static(b"again"), times: 3 };
    let mut answers = client.repeat(ask).await?.into_inner();
    let mut count = 0;
    while answers.message().await?.is_some() {
        count += 1;
    }
    println!("server stream: {count} messages");
    let mut answers = client.chat(stream::iter(["one", "two"].map(payload))).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        println!("both ways: {:?}", answer.data);
    }
    Ok(())
}

/// A table: the same service over what this machine has, both ways, and as stock tonic.
async fn both() -> Result<(), BoxError> {
    let server = process::Server::start("zc://127.0.0.1:0", false)?;
    client(&server.uri).await?;
    drop(server);
    println!();
    print_head();
    let name = format!("grpc_echo-{}", std::process::id());
    let unix = format!("unix:{}", std::env::temp_dir().join(&name).display());
    let zc = ["zc://127.0.0.1:0", "zc+tcp://127.0.0.1:0", &format!("zc+unix://@{name}")];
    for uri in [INPROC].iter().chain(&zc).chain(&["http://127.0.0.1:0", &unix]) {
        rows(uri, false).await?;
    }
    for uri in zc {
        rows(uri, true).await?;
    }
    Ok(())
}

async fn rows(uri: &str, http2: bool) -> Result<(), BoxError> {
    for (size, inflight) in [(64, 1), (64, 128), (1 << 20, 1)] {
        let point = Point { size, inflight, duration: Duration::from_millis(200) };
        let mut report = measure(uri, http2, point).await?;
        if http2 {
            report.uri.push_str(" --http2");
        }
        print_row(&report);
    }
    Ok(())
}
