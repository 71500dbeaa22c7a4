//! Whether a call that failed may have been executed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::Notify;
use tower::{ServiceExt, service_fn};
use zc::Fabric;
use zc_http::{Body, BoxError, Channel, ErrorKind, Executed, Server};

#[tokio::test]
async fn a_body_that_fails_at_once_fails_before_anything_was_sent() {
    let fabric = Fabric::auto().unwrap();
    let listener = fabric.listen("zc+mem://executed-body").await.unwrap();
    let echo = service_fn(|request: Request<Body>| async {
        Ok::<_, std::convert::Infallible>(Response::new(request.into_body()))
    });
    tokio::spawn(Server::new().serve(listener, echo));
    let channel = Channel::new(&fabric, "zc+mem://executed-body").unwrap();
    channel.connect().await.unwrap();
    let body = StreamBody::new(futures::stream::iter([Err::<Frame<Bytes>, _>("my own error")]));
    let failed = channel.clone().oneshot(Request::post("/").body(body).unwrap()).await.unwrap_err();
    assert!(matches!(failed.kind(), ErrorKind::Body(_)), "{failed:?}");
    // Making it again would fail again.
    assert_eq!((failed.executed(), failed.is_retryable()), (Executed::No, false));
    channel.ping().await.unwrap();
}

/// Becomes an error only after a while.
struct Slow;

impl From<Slow> for BoxError {
    fn from(_: Slow) -> Self {
        std::thread::sleep(std::time::Duration::from_millis(50));
        "my own error".into()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_fails_later_says_why() {
    let fabric = Fabric::auto().unwrap();
    let listener = fabric.listen("zc+mem://executed-later").await.unwrap();
    let came = Arc::new(Notify::new());
    let never = {
        let came = came.clone();
        service_fn(move |_request: Request<Body>| {
            came.notify_one();
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        })
    };
    tokio::spawn(Server::new().serve(listener, never));
    let channel = Channel::new(&fabric, "zc+mem://executed-later").unwrap();
    channel.connect().await.unwrap();
    let later = futures::stream::once(async move {
        came.notified().await;
        Err::<Frame<Bytes>, _>(Slow)
    });
    let call = channel.clone().oneshot(Request::post("/").body(StreamBody::new(later)).unwrap());
    let failed = tokio::spawn(call).await.unwrap().unwrap_err();
    assert!(matches!(failed.kind(), ErrorKind::Body(_)), "{failed:?}");
    assert_eq!(failed.executed(), Executed::Maybe);
}

#[cfg(feature = "hyper")]
mod http2 {
    use std::time::Duration;

    use http_body_util::Empty;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const HANG: Duration = Duration::from_secs(60);
    /// Kinds of frames.
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    /// Error codes.
    const NO_ERROR: u8 = 0;
    const INTERNAL_ERROR: u8 = 2;
    const REFUSED_STREAM: u8 = 7;
    const CANCEL: u8 = 8;

    fn frame(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, payload.len() as u8, kind, 0, 0, 0, 0, stream];
        bytes.extend_from_slice(payload);
        bytes
    }

    fn reset(code: u8) -> Vec<u8> {
        frame(RST_STREAM, 1, &[0, 0, 0, code])
    }

    fn go_away(last: u8, code: u8) -> Vec<u8> {
        frame(GOAWAY, 0, &[0, 0, 0, last, 0, 0, 0, code])
    }

    /// Answers the first call with these bytes, and then ends the connection.
    async fn answer(mut stream: TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await?;
        if !preface.starts_with(b"PRI") {
            return Ok(());
        }
        stream.write_all(&frame(SETTINGS, 0, &[])).await?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            stream.read_exact(&mut vec![0; len as usize]).await?;
            if head[3] == HEADERS {
                break;
            }
        }
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        // What the client still says is none of our business; closing now could take our last words from it.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
    }

    async fn failed_by(bytes: Vec<u8>) -> zc_http::Error {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("zc+tcp://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = answer(stream, &bytes).await;
            }
        });
        let channel = Channel::builder().fall_back(true).build(&Fabric::auto().unwrap(), &uri).unwrap();
        let call = channel.oneshot(Request::get("/").body(Empty::<Bytes>::new()).unwrap());
        let failed = tokio::time::timeout(HANG, call).await.expect("it hangs").unwrap_err();
        server.abort();
        assert!(matches!(failed.kind(), ErrorKind::Http(_)), "{failed:?}");
        failed
    }

    #[tokio::test]
    async fn what_no_service_has_seen_was_not_executed() {
        for said in [reset(REFUSED_STREAM), go_away(0, NO_ERROR), go_away(0, INTERNAL_ERROR)] {
            let failed = failed_by(said.clone()).await;
            assert_eq!(
                (failed.executed(), failed.is_retryable()),
                (Executed::No, true),
                "{said:?}: {failed:?}"
            );
            #[cfg(feature = "tonic")]
            assert_eq!(tonic::Status::from(failed).code(), tonic::Code::Unavailable, "{said:?}");
        }
    }

    #[tokio::test]
    async fn what_may_have_been_executed() {
        let ends =
            [reset(CANCEL), reset(INTERNAL_ERROR), go_away(1, NO_ERROR), go_away(1, INTERNAL_ERROR), vec![]];
        for said in ends {
            let failed = failed_by(said.clone()).await;
            assert_eq!(
                (failed.executed(), failed.is_retryable()),
                (Executed::Maybe, false),
                "{said:?}: {failed:?}"
            );
        }
    }
}
