//! Servers of several ages at one address, under a channel that lives on, and servers that say nothing to zc.

#![cfg(feature = "hyper")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinHandle;
use tower::{ServiceExt, service_fn};
use zc::{Deadlines, Fabric, SelectionReport};
use zc_http::{Channel, ErrorKind, Executed, Protocol, Server};

const HANG: Duration = Duration::from_secs(60);

async fn echo<B>(request: Request<B>) -> Result<Response<B>, Infallible> {
    Ok(Response::new(request.into_body()))
}

async fn serve_stock(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let builder = auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(io), hyper::service::service_fn(echo)).await;
}

/// An old server: HTTP over TCP, and nothing else. Its connections end with it.
async fn stock(at: &str) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind(at).await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let mut served = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => served.push(serve_stock(accepted.unwrap().0)),
                Some(()) = served.next() => {}
            }
        }
    });
    (at, server)
}

/// A new one, which old clients reach as well.
async fn mixed(at: &str) -> JoinHandle<()> {
    let listener = Fabric::auto().unwrap().listen_mixed(&format!("zc+tcp://{at}")).await.unwrap();
    tokio::spawn(Server::new().serve(listener, service_fn(echo)))
}

async fn stop(server: JoinHandle<()>) {
    server.abort();
    let _ = server.await;
}

async fn call(channel: &Channel) -> Result<Bytes, zc_http::Error> {
    let request = Request::post("/").body(Full::new(Bytes::from_static(b"hello"))).unwrap();
    let call = tokio::time::timeout(HANG, channel.clone().oneshot(request));
    Ok(call.await.expect("it hangs")?.into_body().collect().await?.to_bytes())
}

/// Some calls may find out that the last server is gone.
async fn call_until_answered(channel: &Channel) {
    let calls = async { while call(channel).await.is_err() {} };
    tokio::time::timeout(HANG, calls).await.expect("nobody answers");
    assert_eq!(call(channel).await.unwrap(), "hello");
}

/// A channel that makes do with what there is.
fn channel(fabric: &Fabric, uri: &str) -> Channel {
    Channel::builder().fall_back(true).build(fabric, uri).unwrap()
}

fn is_plain(report: &SelectionReport) {
    assert_eq!(report.chosen(), zc::PLAIN, "{report}");
    assert!(report.to_string().contains("not_zc"), "{report}");
}

#[tokio::test]
async fn servers_of_several_ages_one_after_the_other_under_one_channel() {
    // An address of its own, whose ports no other test takes.
    let (at, mut server) = stock("127.0.0.79:0").await;
    for uri in [format!("zc+tcp://{at}"), format!("zc://{at}")] {
        let channel = channel(&Fabric::auto().unwrap(), &uri);
        for is_new in [false, false, true, true, false] {
            stop(server).await;
            server = if is_new { mixed(&at).await } else { stock(&at).await.1 };
            call_until_answered(&channel).await;
            let report = channel.report().unwrap();
            if is_new {
                assert_eq!(channel.protocol(), Some(Protocol::ZcHttp), "{report}");
                assert_ne!(report.chosen(), zc::PLAIN);
            } else {
                assert_eq!(channel.protocol(), Some(Protocol::Http2), "{report}");
                is_plain(&report);
            }
        }
        stop(server).await;
        // Nobody is there: that is no reason to fall back.
        let gone = async {
            loop {
                match call(&channel).await {
                    Err(error) if matches!(error.kind(), ErrorKind::Connect(_)) => break error,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        let gone = tokio::time::timeout(HANG, gone).await.expect("it goes on");
        assert_eq!(gone.executed(), Executed::No);
        server = stock(&at).await.1;
    }
}

#[tokio::test]
async fn an_old_server_on_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("zc-http-upgrade-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            tokio::spawn(serve_stock(listener.accept().await.unwrap().0));
        }
    });
    let channel = channel(&Fabric::auto().unwrap(), &format!("zc+unix://{}", path.display()));
    let answer = call(&channel).await;
    let _ = std::fs::remove_file(path);
    assert_eq!(answer.unwrap(), "hello");
    assert_eq!(channel.protocol(), Some(Protocol::Http2));
    is_plain(&channel.report().unwrap());
}

/// What a server does that is told HELLO.
#[derive(Debug, Clone, Copy, PartialEq)]
enum AtHello {
    Closes,
    /// Waits for something that it knows.
    IsSilent,
}

/// Looks at the first bytes: none of them is lost to HTTP.
async fn serve_picky(stream: TcpStream, at_hello: AtHello) {
    let mut first = [0; 3];
    // None, once it has ended.
    while stream.peek(&mut first).await.is_ok_and(|count| (1..first.len()).contains(&count)) {
        tokio::task::yield_now().await;
    }
    match at_hello {
        _ if &first == b"PRI" => serve_stock(stream).await,
        AtHello::Closes => {}
        AtHello::IsSilent => {
            let mut stream = stream;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    }
}

#[tokio::test]
async fn servers_that_close_or_are_silent_at_hello() {
    // Only one that is silent is found out by time.
    for (at_hello, hello) in [(AtHello::Closes, HANG), (AtHello::IsSilent, Duration::from_millis(300))] {
        let mut deadlines = Deadlines::default();
        (deadlines.hello, deadlines.total) = (hello, 2 * HANG);
        let fabric = Fabric::auto_builder().deadlines(deadlines).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                tokio::spawn(serve_picky(listener.accept().await.unwrap().0, at_hello));
            }
        });
        for uri in [format!("zc+tcp://{at}"), format!("zc://{at}")] {
            let channel = channel(&fabric, &uri);
            assert_eq!(call(&channel).await.unwrap(), "hello", "{at_hello:?} {uri}");
            assert_eq!(channel.protocol(), Some(Protocol::Http2));
            is_plain(&channel.report().unwrap());
            // Without leave it is an error that says what happened.
            let strict = Channel::new(&fabric, &uri).unwrap();
            let failed = strict.connect().await.unwrap_err();
            let ErrorKind::Connect(error) = failed.kind() else { panic!("{failed:?}") };
            match (at_hello, &**error) {
                (AtHello::Closes, zc::Error::Link { stage: zc::Stage::Hello, .. }) => {}
                (AtHello::IsSilent, zc::Error::Timeout { stage: zc::Stage::Hello }) => {}
                (_, error) => panic!("{at_hello:?}: {error:?}"),
            }
        }
    }
}

#[tokio::test]
async fn who_speaks_neither_is_not_taken_for_a_server() {
    let mut deadlines = Deadlines::default();
    deadlines.hello = Duration::from_millis(300);
    let fabric = Fabric::auto_builder().deadlines(deadlines).build().unwrap();
    for answer in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail\r\n", b"hm"] {
        for closes in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let uri = format!("zc+tcp://{}", listener.local_addr().unwrap());
            tokio::spawn(async move {
                let mut held = Vec::new();
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    // It may be gone.
                    let _ = stream.write_all(answer).await;
                    if !closes {
                        held.push(stream);
                    }
                }
            });
            let channel = Channel::builder()
                .fall_back(true)
                .greeting_timeout(Duration::from_millis(300))
                .build(&fabric, &uri)
                .unwrap();
            let failed = tokio::time::timeout(HANG, channel.connect()).await.expect("it hangs").unwrap_err();
            // What zc found says more than that HTTP/2 is not spoken either.
            assert!(matches!(failed.kind(), ErrorKind::Connect(_)), "{answer:?} {closes}: {failed:?}");
            assert_eq!(failed.executed(), Executed::No);
            assert_eq!(channel.protocol(), None);
        }
    }
}
