//! Bodies that lie in memory of the connection go out as they are, by the ledgers of both ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use parking_lot::Mutex;
use tower::{ServiceExt, service_fn};
use zc::memory::CopyPlace;
use zc::transport::Role;
use zc::{Closed, Fabric, Observer, Sender};
use zc_http::{Body, BoxError, Channel, Server};

const HANG: Duration = Duration::from_secs(60);
/// The body of a frame, as long as it may be: memory is lent once at a time, so what is longer goes as it lies in part only.
const PIECE: usize = 65_280;
const PIECES: usize = 3;
const BODY: usize = PIECES * PIECE;
const CALLS: usize = 10;

#[derive(Default)]
struct Ends(Mutex<Vec<Closed>>);

impl Observer for Ends {
    fn closed(&self, event: &Closed) {
        self.0.lock().push(event.clone());
    }
}

type AnyBody = BoxBody<Bytes, BoxError>;

/// A body in memory of the connection.
async fn own(sender: &Sender) -> AnyBody {
    let mut frames = Vec::new();
    for _ in 0..PIECES {
        let mut buf = sender.alloc(PIECE).await.unwrap();
        buf.put_slice(&[5; PIECE]);
        frames.push(Ok(Frame::data(buf.freeze().into())));
    }
    BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)))
}

fn other() -> AnyBody {
    Full::new(Bytes::from(vec![5; BODY])).map_err(Into::into).boxed()
}

async fn handle(own_memory: Sender, request: Request<Body>) -> Result<Response<AnyBody>, Infallible> {
    Ok(Response::new(match request.uri().path() {
        "/forward" => request.into_body().map_err(Into::into).boxed(),
        "/own" => own(&own_memory).await,
        _ => other(),
    }))
}

/// What was copied at the client and at the server: in all, and because it lay elsewhere.
async fn copied(path: &str, body_is_own: bool) -> [(u64, u64); 2] {
    let ends = Arc::new(Ends::default());
    let fabric = Fabric::auto_builder().observer(ends.clone()).build().unwrap();
    let uri =
        format!("zc+shm://@zc-http-copies{}-{body_is_own}-{}", path.replace('/', "-"), std::process::id());
    let mut listener = fabric.listen(&uri).await.unwrap();
    let (client, server) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
    let (of_client, of_server) = (client.sender(), server.sender());
    let service = service_fn(move |request| handle(of_server.clone(), request));
    let serving = tokio::spawn(async move { Server::new().serve_connection(server, service).await });
    let channel = Channel::builder().on(client).await.unwrap();
    for _ in 0..CALLS {
        let body = if body_is_own { own(&of_client).await } else { other() };
        let request = Request::post(path).body(body).unwrap();
        let answer = channel.clone().oneshot(request).await.unwrap();
        let answer = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(answer.len() == BODY && answer.iter().all(|byte| *byte == 5));
    }
    assert_eq!(channel.ledgers().unwrap().1.copied_bytes(), 0, "by zc-http");
    drop((channel, of_client));
    let closed = async {
        while ends.0.lock().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HANG, closed).await.expect("it stays open");
    serving.await.unwrap();
    let closed = ends.0.lock();
    [Role::Client, Role::Server].map(|role| {
        let end = closed.iter().find(|closed| closed.role == role).unwrap();
        assert_eq!(end.transport, "shm");
        assert!(end.ledger.moved_bytes >= (CALLS * BODY) as u64, "{:?}", end.ledger);
        (end.ledger.copied_bytes(), end.ledger.copied_at(CopyPlace::Foreign))
    })
}

#[tokio::test]
async fn what_came_in_is_sent_on_as_it_lies() {
    assert_eq!(copied("/forward", true).await, [(0, 0), (0, 0)]);
}

#[tokio::test]
async fn memory_of_the_connection_is_sent_as_it_lies() {
    assert_eq!(copied("/own", true).await, [(0, 0), (0, 0)]);
}

#[tokio::test]
async fn other_memory_is_copied_once_and_counted() {
    let once = (CALLS * BODY) as u64;
    assert_eq!(copied("/other", false).await, [(once, once), (once, once)]);
}
