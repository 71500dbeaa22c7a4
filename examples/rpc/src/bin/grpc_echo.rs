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
use futures::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::StdError;
use tonic::transport::server::Connected;
use tonic::transport::{Endpoint, Server};
use zc::Fabric;
use zc_examples_rpc::bench::{self, Ledger, Report};
use zc_examples_rpc::cli::{Args, Command, Point, ServerArgs, print_head, print_row};
use zc_examples_rpc::echo::{MAX_MESSAGE, service};
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_examples_rpc::pb::{Ask, Payload};
use zc_examples_rpc::{BoxError, process};
use zc_http::{Channel, ZcConnector, ZcIncoming};

const INPROC: &str = "inproc:";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    match Args::parse().command {
        None => both().await,
        Some(Command::Server(args)) => serve(&args).await,
        Some(Command::Client { uri }) => client(&uri).await,
        Some(Command::Bench(args)) => args.run(|point| measure(&args.uri, args.http2, point)).await,
    }
}

/// The line that differs from a tonic server on TCP is the last one.
async fn serve(args: &ServerArgs) -> Result<(), BoxError> {
    let (uri, child) = (args.uri.as_str(), args.child);
    if child {
        process::pin(0);
    }
    if let Some(address) = uri.strip_prefix("http://") {
        let listener = TcpListener::bind(address).await?;
        println!("http://{}", listener.local_addr()?);
        let incoming = TcpListenerStream::new(listener).map(|stream| {
            stream.inspect(|stream| {
                let _ = stream.set_nodelay(true);
            })
        });
        return serve_stock(incoming, child).await;
    }
    if let Some(path) = uri.strip_prefix("unix:") {
        let listener = UnixListener::bind(path)?;
        println!("{uri}");
        let served = serve_stock(UnixListenerStream::new(listener), child).await;
        std::fs::remove_file(path)?;
        return served;
    }
    let listener = Fabric::auto()?.listen(uri).await?;
    println!("{}", listener.local_uri());
    if args.http2 {
        return serve_stock(ZcIncoming::new(listener), child).await;
    }
    zc_http::Server::new().serve_with_shutdown(listener, service(), process::stopped(child)).await;
    Ok(())
}

/// tonic's own server, for the URIs that are its own. It would wait for its clients to go first.
async fn serve_stock<I, IO, E>(incoming: I, child: bool) -> Result<(), BoxError>
where
    I: futures::Stream<Item = Result<IO, E>>,
    E: Into<BoxError>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    tokio::select! {
        served = Server::builder().add_service(service()).serve_with_incoming(incoming) => Ok(served?),
        () = process::stopped(child) => Ok(()),
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

/// tonic's own channel, for the URIs that are its own.
async fn stock_channel(uri: &str) -> Result<Option<tonic::transport::Channel>, BoxError> {
    if uri.starts_with("http://") {
        return Ok(Some(Endpoint::from_shared(uri.to_owned())?.connect().await?));
    }
    let Some(path) = uri.strip_prefix("unix:") else { return Ok(None) };
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Ok(Some(Endpoint::from_static("http://localhost").connect_with_connector(connector).await?))
}

fn echo_client<T>(channel: T) -> EchoClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    EchoClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

/// The four kinds of call.
async fn show<T>(channel: T) -> Result<(), BoxError>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
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

/// A table: the same service over what this machine has.
async fn both() -> Result<(), BoxError> {
    let server = process::Server::start("zc://127.0.0.1:0", false)?;
    client(&server.uri).await?;
    drop(server);
    println!();
    print_head();
    let socket = std::env::temp_dir().join(format!("grpc_echo-{}", std::process::id()));
    let unix = format!("unix:{}", socket.display());
    for uri in [INPROC, "zc://127.0.0.1:0", "zc+tcp://127.0.0.1:0", "http://127.0.0.1:0", &unix] {
        for (size, inflight) in [(64, 1), (64, 128), (1 << 20, 1)] {
            let point = Point { size, inflight, duration: Duration::from_millis(500) };
            print_row(&measure(uri, false, point).await?);
        }
    }
    Ok(())
}

async fn measure(uri: &str, http2: bool, point: Point) -> Result<Report, BoxError> {
    if uri == INPROC {
        let cpu_ns = || process::cpu_ns(std::process::id());
        return measure_on(service(), uri, point, cpu_ns, Ledger::default).await;
    }
    let server = process::Server::start(uri, http2)?;
    process::pin(1);
    if let Some(channel) = stock_channel(&server.uri).await? {
        return measure_on(channel, uri, point, || server.cpu_ns(), Ledger::default).await;
    }
    if http2 {
        let connector = ZcConnector::new(&Fabric::auto()?, &server.uri)?;
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
        return measure_on(channel, uri, point, || server.cpu_ns(), Ledger::default).await;
    }
    let channel = Channel::new(&Fabric::auto()?, &server.uri)?;
    measure_on(channel.clone(), uri, point, || server.cpu_ns(), || Ledger::of(&channel)).await
}

async fn measure_on<T>(
    channel: T,
    uri: &str,
    point: Point,
    cpu_ns: impl Fn() -> u64,
    ledger: impl Fn() -> Ledger,
) -> Result<Report, BoxError>
where
    T: GrpcService<Body> + Clone,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    let client = echo_client(channel);
    let data = Bytes::from(vec![7; point.size]);
    let call = || {
        let (mut client, data) = (client.clone(), data.clone());
        async move {
            let answer = client.unary(Payload { data: data.clone() }).await?.into_inner();
            if answer.data.len() == data.len() { Ok(()) } else { Err("another answer".into()) }
        }
    };
    bench::run(uri, point.size, point.inflight, point.duration, cpu_ns, ledger, call).await
}
