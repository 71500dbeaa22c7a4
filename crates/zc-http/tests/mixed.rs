//! Old and new clients at old and new servers, on one port.

#![cfg(feature = "hyper")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tower::{Service, ServiceExt, service_fn};
use zc::{Fabric, SharedSecret};
use zc_http::{
    BoxError, Channel, ErrorKind, Executed, PeerInfo, Protocol, Server, ZcConnector, ZcIncoming, ZcStream,
};

const HANG: Duration = Duration::from_secs(60);

type Answer = Response<BoxBody<Bytes, BoxError>>;

fn full(bytes: impl Into<Bytes>) -> BoxBody<Bytes, BoxError> {
    Full::new(bytes.into()).map_err(Into::into).boxed()
}

/// Whatever carries the call, the same service.
async fn handle<B>(request: Request<B>) -> Result<Answer, Infallible>
where
    B: http_body::Body<Data = Bytes> + Send + Sync + 'static,
    B::Error: Into<BoxError> + 'static,
{
    Ok(match request.uri().path() {
        "/never" => std::future::pending().await,
        "/half" => {
            let frames = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"half")))])
                .chain(futures::stream::pending());
            Response::new(BodyExt::boxed(StreamBody::new(frames)))
        }
        "/chosen" => {
            let info = request.extensions().get::<PeerInfo>();
            Response::new(full(info.map_or(String::new(), |info| info.report.chosen().to_owned())))
        }
        _ => Response::new(request.into_body().map_err(Into::into).boxed()),
    })
}

async fn serve_hyper<I>(io: I)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(handle::<hyper::body::Incoming>);
    let builder = auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(io), service).await;
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Serving {
    /// Everything on one port.
    Mixed,
    /// zc-http, as before.
    ZcHttp,
    /// HTTP over zc as a byte stream, and beside it.
    Streams,
    /// HTTP over TCP.
    Stock,
}

/// Serves; the answer is where.
async fn serve(serving: Serving, uri: &str) -> String {
    if serving == Serving::Stock {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("zc+tcp://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                tokio::spawn(serve_hyper(listener.accept().await.unwrap().0));
            }
        });
        return uri;
    }
    let fabric = Fabric::auto().unwrap();
    let service = service_fn(handle::<zc_http::Body>);
    let server = Server::new().peer_info(true);
    if serving == Serving::ZcHttp {
        let listener = fabric.listen(uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        tokio::spawn(server.serve(listener, service));
        return uri;
    }
    let listener = fabric.listen_mixed(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    match serving {
        Serving::Streams => drop(tokio::spawn(async move {
            let mut incoming = ZcIncoming::new(listener);
            while let Some(Ok(stream)) = incoming.next().await {
                tokio::spawn(serve_hyper(stream));
            }
        })),
        _ => drop(tokio::spawn(server.serve(listener, service))),
    }
    uri
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Calling {
    /// zc-http, or what else there is.
    Either,
    ZcHttp,
    /// HTTP/2 over zc as a byte stream.
    Stream,
    /// Clients that know nothing of zc.
    Http1,
    Http2,
}

const BODY: usize = 300_000;

async fn call(calling: Calling, uri: &str) -> Result<(Bytes, Option<Channel>), BoxError> {
    let fabric = Fabric::auto()?;
    let body = Bytes::from((0..BODY as u32).map(|n| n as u8).collect::<Vec<_>>());
    let request = Request::post("http://localhost/echo").body(Full::new(body))?;
    let (answer, channel) = match calling {
        Calling::Either | Calling::ZcHttp => {
            let channel = Channel::builder().fall_back(calling == Calling::Either).build(&fabric, uri)?;
            let answer = channel.clone().oneshot(request).await?;
            channel.ping().await?;
            (answer.into_body().collect().await?.to_bytes(), Some(channel))
        }
        Calling::Stream | Calling::Http2 => {
            let stream: ZcStream = match calling {
                Calling::Stream => {
                    let mut connector = ZcConnector::new(&fabric, uri)?;
                    connector.call("http://localhost".parse()?).await?.into_inner()
                }
                _ => fabric.connect_plain(uri).await?.into(),
            };
            let io = TokioIo::new(stream);
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            (sender.send_request(request).await?.into_body().collect().await?.to_bytes(), None)
        }
        Calling::Http1 => {
            let io = TokioIo::new(fabric.connect_plain(uri).await?);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::spawn(connection);
            (sender.send_request(request).await?.into_body().collect().await?.to_bytes(), None)
        }
    };
    assert_eq!(answer.len(), BODY);
    assert!(answer.iter().zip(0_u32..).all(|(byte, n)| *byte == n as u8));
    Ok((answer, channel))
}

#[tokio::test]
async fn old_and_new_clients_at_old_and_new_servers() {
    use {Calling as C, Serving as S};
    let works = [
        (S::Mixed, vec![C::Either, C::ZcHttp, C::Stream, C::Http1, C::Http2]),
        (S::ZcHttp, vec![C::Either, C::ZcHttp]),
        (S::Streams, vec![C::Either, C::Stream, C::Http1, C::Http2]),
        (S::Stock, vec![C::Either, C::Http1, C::Http2]),
    ];
    for (serving, callings) in works {
        let uri = serve(serving, "zc+tcp://127.0.0.1:0").await;
        for calling in [C::Either, C::ZcHttp, C::Stream, C::Http1, C::Http2] {
            let called = tokio::time::timeout(HANG, call(calling, &uri)).await.expect("it hangs");
            let expected = callings.contains(&calling);
            assert_eq!(called.is_ok(), expected, "{calling:?} at {serving:?}: {:?}", called.err());
            let Ok((_, Some(channel))) = called else { continue };
            // It says what it speaks, and over what.
            let (protocol, chosen) = match serving {
                S::Mixed | S::ZcHttp => (Protocol::ZcHttp, "tcp"),
                S::Streams => (Protocol::Http2, "tcp"),
                S::Stock => (Protocol::Http2, zc::PLAIN),
            };
            assert_eq!(channel.protocol(), Some(protocol));
            let report = channel.report().unwrap();
            assert_eq!(report.chosen(), chosen);
            assert_eq!(report.to_string().contains("does not speak zc"), serving == S::Stock, "{report}");
        }
    }
}

#[tokio::test]
async fn one_port_of_every_kind() {
    let path = std::env::temp_dir().join(format!("zc-http-mixed-{}", std::process::id()));
    for uri in ["zc+mem://mixed-kinds".to_owned(), format!("zc+unix://{}", path.display())] {
        let uri = serve(Serving::Mixed, &uri).await;
        for calling in [Calling::Either, Calling::ZcHttp, Calling::Stream, Calling::Http1, Calling::Http2] {
            let called = tokio::time::timeout(HANG, call(calling, &uri)).await.expect("it hangs");
            assert!(called.is_ok(), "{calling:?} at {uri}: {:?}", called.err());
        }
    }
    let _ = std::fs::remove_file(path);
}

#[tokio::test]
async fn the_service_learns_how_a_call_came() {
    let uri = serve(Serving::Mixed, "zc+tcp://127.0.0.1:0").await;
    let fabric = Fabric::auto().unwrap();
    let channel = Channel::new(&fabric, &uri).unwrap();
    let ask = Request::get("/chosen").body(Empty::<Bytes>::new()).unwrap();
    let answer = channel.oneshot(ask).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(answer, "tcp");
    // As somebody with curl would ask.
    let mut curl = TcpStream::connect(uri.strip_prefix("zc+tcp://").unwrap()).await.unwrap();
    curl.write_all(b"GET /chosen HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    curl.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with(zc::PLAIN), "{text}");
}

#[tokio::test]
async fn nothing_falls_back_where_it_must_not() {
    let uri = serve(Serving::Stock, "").await;
    let secret = SharedSecret::new("test", &[7_u8; 32]).unwrap();
    let strict = Fabric::auto_builder().authenticator(std::sync::Arc::new(secret)).build().unwrap();
    let denies = zc::Policy::default().fallback(zc::Fallback::Deny);
    let denies = Fabric::auto_builder().policy(denies).build().unwrap();
    for fabric in [strict, denies] {
        assert!(fabric.connect_plain(&uri).await.is_err());
        let channel = Channel::builder().fall_back(true).build(&fabric, &uri).unwrap();
        let failed = channel.connect().await.unwrap_err();
        assert!(matches!(failed.kind(), ErrorKind::Connect(_)), "{failed:?}");
    }
}

async fn http2(uri: &str) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
    let io = TokioIo::new(Fabric::auto().unwrap().connect_plain(uri).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn get(path: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::get(format!("http://localhost{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn deadlines_and_limits_are_those_of_zc() {
    let fabric = Fabric::auto().unwrap();
    let listener = fabric.listen_mixed("zc+mem://mixed-limits").await.unwrap();
    let server = Server::new().concurrency_limit(1);
    tokio::spawn(server.serve(listener, service_fn(handle::<zc_http::Body>)));
    let mut sender = http2("zc+mem://mixed-limits").await;
    let grpc = [("content-type", "application/grpc"), ("grpc-timeout", "300m")];
    let began = tokio::time::Instant::now();
    let late = sender.send_request(get("/never", &grpc)).await.unwrap();
    assert_eq!(late.headers()["grpc-status"], "4");
    let half = sender.send_request(get("/half", &grpc)).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(half.trailers().unwrap()["grpc-status"], "4");
    assert_eq!(half.to_bytes(), "half");
    assert!(began.elapsed() < Duration::from_secs(1));
    // The one place is free again; then it is taken.
    let taken = sender.send_request(get("/half", &[])).await.unwrap();
    for headers in [&grpc[..], &[]] {
        let refused = sender.send_request(get("/echo", headers)).await.unwrap_err();
        let refused = std::error::Error::source(&refused).unwrap().downcast_ref::<h2::Error>().unwrap();
        assert!(refused.is_reset() && refused.reason() == Some(h2::Reason::REFUSED_STREAM), "{refused:?}");
    }
    let client = fabric.connect_plain("zc+mem://mixed-limits").await.unwrap();
    let (mut http1, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(http1.send_request(get("/echo", &[])).await.unwrap().status(), 503);
    drop(taken);
    let free = async {
        while sender.send_request(get("/echo", &[])).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HANG, free).await.expect("the place stays taken");
}

#[tokio::test]
async fn shutting_down_lets_calls_on_http2_finish() {
    let fabric = Fabric::auto().unwrap();
    let listener = fabric.listen_mixed("zc+mem://mixed-shutdown").await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let (answer, answered) = oneshot::channel::<()>();
    let answered = std::sync::Arc::new(tokio::sync::Mutex::new(Some(answered)));
    let service = service_fn(move |_: Request<zc_http::Body>| {
        let answered = answered.clone();
        async move {
            let answered = answered.lock().await.take();
            answered.unwrap().await.unwrap();
            Ok::<_, Infallible>(Response::new(full("done")))
        }
    });
    let server = Server::new();
    let signal = async { drop(stopped.await) };
    let server = tokio::spawn(server.serve_with_shutdown(listener, service, signal));
    let mut sender = http2("zc+mem://mixed-shutdown").await;
    let call = tokio::spawn(sender.send_request(get("/", &[])));
    tokio::task::yield_now().await;
    stop.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    answer.send(()).unwrap();
    let body = call.await.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "done");
    tokio::time::timeout(HANG, server).await.expect("it goes on").unwrap();
}

#[tokio::test]
async fn a_server_on_http2_that_is_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("zc+tcp://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut served = futures::stream::FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => served.push(serve_hyper(accepted.unwrap().0)),
                Some(()) = served.next() => {}
            }
        }
    });
    let channel = Channel::builder().fall_back(true).build(&Fabric::auto().unwrap(), &uri).unwrap();
    let mut half = channel.clone().oneshot(get("/half", &[])).await.unwrap().into_body();
    assert_eq!(half.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    server.abort();
    let broken = tokio::time::timeout(HANG, half.frame()).await.expect("it hangs").unwrap().unwrap_err();
    assert!(matches!(broken.kind(), ErrorKind::Http(_)), "{broken:?}");
    assert_eq!(broken.executed(), Executed::Maybe);
    #[cfg(feature = "tonic")]
    assert_eq!(tonic::Status::from(broken).code(), tonic::Code::Unavailable);
}
