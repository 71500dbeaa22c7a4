//! The tonic service, served, called and measured: over zc both ways, over what tonic brings itself, and in process.

use bytes::Bytes;
use futures::StreamExt;
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
use zc_http::{Channel, ZcConnector, ZcIncoming};

use crate::bench::{self, Ledger, Report};
use crate::cli::{Point, ServerArgs};
use crate::counted::CountingConnector;
use crate::echo::{MAX_MESSAGE, service};
use crate::inproc::Beside;
use crate::pb::Payload;
use crate::pb::echo_client::EchoClient;
use crate::{BoxError, process};

/// The URI of no transport: the service is called in this process.
pub const INPROC: &str = "inproc:";

/// Whether a URI is no zc one: what tonic brings itself, or nothing between caller and service.
pub fn is_baseline(uri: &str) -> bool {
    uri == INPROC || uri.starts_with("http://") || uri.starts_with("unix:")
}

/// Only zc carries streams that are not HTTP/2 by themselves.
fn check(uri: &str, http2: bool) -> Result<(), BoxError> {
    match http2 && is_baseline(uri) {
        true => Err(format!("--http2 is HTTP/2 over zc, and {uri} is no zc URI: leave it out").into()),
        false => Ok(()),
    }
}

/// Serves until it is told to stop. The line that differs from a tonic server on TCP is the last one.
///
/// # Errors
/// Nothing can listen there.
pub async fn serve(args: &ServerArgs) -> Result<(), BoxError> {
    let (uri, child) = (args.uri.as_str(), args.child);
    check(uri, args.http2)?;
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

/// tonic's own channel, for the URIs that are its own.
///
/// # Errors
/// Nobody is there.
pub async fn stock_channel(uri: &str) -> Result<Option<tonic::transport::Channel>, BoxError> {
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

/// What generated clients take as their channel, with all that they ask of it.
pub trait GrpcChannel:
    GrpcService<
        Body,
        Error: Into<StdError>,
        ResponseBody: tonic::codegen::Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
    >
{
}

impl<T> GrpcChannel for T where
    T: GrpcService<
            Body,
            Error: Into<StdError>,
            ResponseBody: tonic::codegen::Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
        >
{
}

/// The generated client, with room for the messages of the examples.
pub fn echo_client<T: GrpcChannel>(channel: T) -> EchoClient<T> {
    EchoClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

/// Makes calls to a server in a process of its own, or without a transport to the service on a thread of its own.
///
/// # Errors
/// The server did not start, or a call failed.
pub async fn measure(uri: &str, http2: bool, point: Point) -> Result<Report, BoxError> {
    check(uri, http2)?;
    if uri == INPROC {
        let service = Beside::start()?;
        process::pin(1);
        return measure_on(service.channel(), uri, point, || service.cpu_ns(), Ledger::default).await;
    }
    let server = process::Server::start(uri, http2)?;
    process::pin(1);
    if let Some(channel) = stock_channel(&server.uri).await? {
        return measure_on(channel, uri, point, || server.cpu_ns(), Ledger::default).await;
    }
    if http2 {
        let connector = CountingConnector::new(ZcConnector::new(&Fabric::auto()?, &server.uri)?);
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector.clone()).await?;
        let ledger = || connector.ledger().map_or_else(Ledger::default, |ledger| (&ledger).into());
        return measure_on(channel, uri, point, || server.cpu_ns(), ledger).await;
    }
    let channel = Channel::new(&Fabric::auto()?, &server.uri)?;
    measure_on(channel.clone(), uri, point, || server.cpu_ns(), || Ledger::of(&channel)).await
}

async fn measure_on<T: GrpcChannel + Clone>(
    channel: T,
    uri: &str,
    point: Point,
    cpu_ns: impl Fn() -> u64,
    ledger: impl Fn() -> Ledger,
) -> Result<Report, BoxError> {
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
