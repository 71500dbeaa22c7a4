//! Peers that speak zc and not our protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tower::{ServiceExt, service_fn};
use zc::{Connection, Fabric, Policy};
use zc_http::{Body, Channel, ErrorKind, Executed, Limits, Server, Violation};

const HANG: Duration = Duration::from_secs(60);

async fn hello(_request: Request<Body>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
}

fn settings() -> Vec<u8> {
    let mut bytes = b"\x01\x01\0\0zcht".to_vec();
    for value in [100_u32, 1 << 20, 1 << 20, 16 << 10, 128, 4096, 65_280] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn get(call: u32) -> Vec<u8> {
    let mut bytes = b"\x02\x05\x02\0".to_vec();
    bytes.extend_from_slice(&call.to_le_bytes());
    bytes.extend_from_slice(b"\0\0\0\0\x82\x8a");
    bytes
}

/// What the server says to these frames: how it ended, and its GOAWAY.
async fn server_says(frames: Vec<Vec<u8>>) -> (ErrorKind, Option<Vec<u8>>) {
    let (mut client, server) = zc::testing::pair(&Fabric::auto().unwrap()).await.unwrap();
    let mut limits = Limits::default();
    limits.max_calls = 4;
    limits.reset_burst = 10;
    limits.resets_per_s = 1;
    let serving = tokio::spawn(async move {
        Server::new().limits(limits).serve_connection(server, service_fn(hello)).await
    });
    for frame in frames {
        if client.send(frame).await.is_err() {
            break;
        }
    }
    let kind = tokio::time::timeout(HANG, serving).await.expect("the server goes on").unwrap();
    (kind, go_away(&mut client).await)
}

async fn go_away(connection: &mut Connection) -> Option<Vec<u8>> {
    while let Ok(Some(message)) = connection.recv().await {
        let bytes = message.as_contiguous().unwrap().to_vec();
        if bytes[0] == 6 {
            return Some(bytes);
        }
    }
    None
}

#[tokio::test]
async fn a_broken_frame_ends_the_connection_with_a_typed_error() {
    let (kind, go_away) = server_says(vec![settings(), get(2), get(1)]).await;
    assert!(matches!(kind, ErrorKind::Violation(Violation::Unexpected(_))), "{kind}");
    assert_eq!(go_away.expect("it said nothing")[1], 6);
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let mut frames = vec![settings()];
    for call in 1..100_u32 {
        frames.push(get(call));
        let mut reset = b"\x03\x01\0\0".to_vec();
        reset.extend_from_slice(&call.to_le_bytes());
        frames.push(reset);
    }
    let (kind, go_away) = server_says(frames).await;
    assert!(matches!(kind, ErrorKind::Violation(Violation::Flood(_))), "{kind}");
    assert_eq!(go_away.unwrap()[1], 7);
}

#[tokio::test]
async fn a_server_that_is_none_is_named() {
    let (client, server) = zc::testing::pair(&Fabric::auto().unwrap()).await.unwrap();
    server.send(&b"220 mail.example ESMTP"[..]).await.unwrap();
    let failed = Channel::builder().on(client).await.unwrap_err();
    assert!(matches!(failed.kind(), ErrorKind::Violation(_)), "{failed:?}");
    assert_eq!(failed.executed(), Executed::No);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let (client, server) = zc::testing::pair(&Fabric::auto().unwrap()).await.unwrap();
    let failed = Channel::builder().on(client).await.unwrap_err();
    assert!(matches!(failed.kind(), ErrorKind::NoGreeting), "{failed:?}");
    drop(server);
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_fails_the_call() {
    let (client, mut server) = zc::testing::pair(&Fabric::auto().unwrap()).await.unwrap();
    server.send(settings()).await.unwrap();
    let channel = Channel::builder().on(client).await.unwrap();
    let call = tokio::spawn(channel.clone().oneshot(Request::get("/").body(Empty::<Bytes>::new()).unwrap()));
    while server.recv().await.unwrap().unwrap().as_contiguous().unwrap()[0] != 2 {}
    // A body before its headers.
    server.send(&b"\x02\x04\0\0\x01\0\0\0\0\0\0\0body"[..]).await.unwrap();
    let failed = call.await.unwrap().unwrap_err();
    assert!(matches!(failed.kind(), ErrorKind::Violation(Violation::Unexpected(_))), "{failed:?}");
    assert_eq!(failed.executed(), Executed::Maybe);
}

/// Every kind of connection, at an address of its own.
fn uris(test: &str) -> [String; 4] {
    let process = std::process::id();
    [
        format!("zc+mem://hostile-{test}"),
        "zc+tcp://127.0.0.1:0".to_owned(),
        format!("zc+unix://@zc-hostile-{test}-{process}"),
        format!("zc+shm://@zc-hostile-{test}-shm-{process}"),
    ]
}

/// zc would choose shared memory at a Unix socket.
fn fabric(uri: &str) -> Fabric {
    let only = if uri.starts_with("zc+unix:") { "tcp" } else { "^rdma" };
    let policy = Policy::default().with_override(only).unwrap();
    Fabric::auto_builder().policy(policy).build().unwrap()
}

const MAX_CALLS: u32 = 4;
const CALL_WINDOW: u32 = 20_000;
const CONNECTION_WINDOW: u32 = 60_000;
const MAX_BODY: u32 = 8000;

fn strict() -> Limits {
    let mut limits = Limits::default();
    limits.max_calls = MAX_CALLS;
    limits.call_window_bytes = CALL_WINDOW;
    limits.connection_window_bytes = CONNECTION_WINDOW;
    limits.max_body_frame_bytes = MAX_BODY;
    limits.reset_burst = 10;
    limits.resets_per_s = 1;
    limits
}

/// Answers to GET; everything else it holds without taking a byte.
async fn hold(alive: Arc<()>, request: Request<Body>) -> Result<Response<Full<Bytes>>, Infallible> {
    let _alive = alive;
    if request.method() == http::Method::GET {
        return hello(request).await;
    }
    let _held = request;
    std::future::pending().await
}

fn call(flags: u8, id: u32, headers: &[u8], body: usize) -> Vec<u8> {
    let len = u16::try_from(headers.len()).unwrap().to_le_bytes();
    [&[2, flags, len[0], len[1]], &id.to_le_bytes()[..], &[0; 4], headers, &vec![b'x'; body]].concat()
}

/// A question whose body goes on.
fn post(id: u32, body: usize) -> Vec<u8> {
    call(1, id, b"\x81\x8a", body)
}

fn more(id: u32, body: usize) -> Vec<u8> {
    call(0, id, b"", body)
}

fn control(kind: u8, call: u32, value: u32) -> Vec<u8> {
    [&[kind, 0, 0, 0], &call.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

fn reset(id: u32) -> Vec<u8> {
    [&[3, 1, 0, 0], &id.to_le_bytes()[..]].concat()
}

/// What ends a connection, and the code that the server says then.
fn attacks() -> Vec<(&'static str, Vec<Vec<u8>>, u8)> {
    let post_all = |body| (1..=MAX_CALLS).map(move |id| post(id, body));
    let flood = (1..100).flat_map(|id| [get(id), reset(id)]);
    vec![
        ("another protocol", vec![b"GET / HTTP/1.1".to_vec()], 6),
        ("a call before its settings", vec![get(1)], 6),
        ("settings twice", vec![settings(), settings()], 6),
        ("calls that go back", vec![settings(), get(2), get(1)], 6),
        ("unknown flags", vec![settings(), b"\x02\xff\0\0\x01\0\0\0\0\0\0\0".to_vec()], 6),
        ("a grant beyond all windows", vec![settings(), control(4, 0, u32::MAX)], 6),
        ("a grant of nothing", vec![settings(), control(4, 0, 0)], 6),
        ("a grant to nobody", vec![settings(), control(4, 77, 10)], 6),
        ("a body frame above the limit", vec![settings(), post(1, MAX_BODY as usize + 1)], 6),
        ("a body beyond its window", [vec![settings(), post(1, 8000)], vec![more(1, 8000); 2]].concat(), 6),
        (
            "bodies beyond the connection's window",
            std::iter::once(settings())
                .chain(post_all(8000))
                .chain((1..=4).map(|id| more(id, 8000)))
                .collect(),
            6,
        ),
        (
            "more calls than it may",
            std::iter::once(settings()).chain(post_all(0)).chain([post(5, 0)]).collect(),
            6,
        ),
        ("a flood of resets", std::iter::once(settings()).chain(flood).collect(), 7),
        (
            "a flood of pings, whose answers nobody reads",
            std::iter::once(settings())
                .chain((0..200_000).map(|n| [&[5, 0, 0, 0][..], &u64::to_le_bytes(n)].concat()))
                .collect(),
            7,
        ),
    ]
}

async fn until_idle(alive: &Arc<()>, idle: usize, what: &str) {
    let look = async {
        while Arc::strong_count(alive) > idle {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HANG, look).await.unwrap_or_else(|_| panic!("{what}: a handler is left"));
}

struct Attacked {
    fabric: Fabric,
    uri: String,
    alive: Arc<()>,
    idle: usize,
    good: Channel,
}

impl Attacked {
    async fn start(uri: &str) -> Self {
        let (fabric, alive) = (fabric(uri), Arc::new(()));
        let listener = fabric.listen(uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        let for_handlers = alive.clone();
        let service = service_fn(move |request| hold(for_handlers.clone(), request));
        tokio::spawn(Server::new().limits(strict()).serve(listener, service));
        let good = Channel::new(&fabric, &uri).unwrap();
        let attacked = Self { fabric, uri, alive, idle: 0, good };
        attacked.goes_on("before").await;
        Self { idle: Arc::strong_count(&attacked.alive), ..attacked }
    }

    /// For others nothing has happened.
    async fn goes_on(&self, what: &str) {
        let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
        let answer = tokio::time::timeout(HANG, self.good.clone().oneshot(request)).await;
        assert_eq!(answer.expect("it hangs").expect(what).status(), 200);
    }

    /// Says all of it, or as much as is heard.
    async fn attack(&self, frames: Vec<Vec<u8>>) -> Connection {
        let connection = self.fabric.connect(&self.uri).await.unwrap();
        let saying = async {
            for frame in frames {
                if connection.send(frame).await.is_err() {
                    break;
                }
            }
        };
        tokio::time::timeout(HANG, saying).await.expect("the server holds on to it");
        connection
    }
}

#[tokio::test]
async fn a_hostile_client_ends_its_own_connection_only_on_every_transport() {
    for uri in uris("client") {
        let attacked = Attacked::start(&uri).await;
        for (what, frames, code) in attacks() {
            let what = format!("{what} over {uri}");
            let mut connection = attacked.attack(frames).await;
            let said = tokio::time::timeout(HANG, go_away(&mut connection)).await.expect(&what);
            // Who does not read may miss it.
            let heard = said.as_ref().map_or(code, |said| said[1]);
            assert!(heard == code && (said.is_some() || code == 7), "{what}: {said:?}");
            until_idle(&attacked.alive, attacked.idle, &what).await;
            attacked.goes_on(&what).await;
        }
    }
}

#[tokio::test]
async fn endless_headers_end_their_calls_only_on_every_transport() {
    for uri in uris("headers") {
        let attacked = Attacked::start(&uri).await;
        let mut connection = attacked.attack(vec![settings()]).await;
        let many = b"\x00\x01a\x01b".repeat(10_000);
        // 40,000 bytes: 127 in the first byte of the length, the rest in groups of seven bits.
        let long = [&b"\x00\x01a\x7f\xc1\xb7\x02"[..], &[b'v'; 40_000]].concat();
        for id in 1..=200_u32 {
            let block = [&b"\x81\x8a"[..], if id % 2 == 0 { &many } else { &long }].concat();
            connection.send(call(1, id, &block, 0)).await.unwrap();
            let reset = loop {
                let frame = tokio::time::timeout(HANG, connection.recv()).await.expect("it hangs");
                let frame = frame.unwrap().expect("the connection ended").as_contiguous().unwrap().to_vec();
                if frame[0] == 3 {
                    break frame;
                }
            };
            assert_eq!(reset, [&[3, 5, 0, 0], &id.to_le_bytes()[..]].concat());
        }
        // No handler has seen them (the connection's service is the one more), and this very connection still makes calls.
        assert_eq!(Arc::strong_count(&attacked.alive), attacked.idle + 1, "{uri}");
        connection.send(get(201)).await.unwrap();
        let answered =
            async { while connection.recv().await.unwrap().unwrap().as_contiguous().unwrap()[0] != 2 {} };
        tokio::time::timeout(HANG, answered).await.expect("it hangs");
        attacked.goes_on(&uri).await;
    }
}

/// A stream of numbers, always the same.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// A frame that could be one, with some of its bytes changed.
    fn frame(&mut self) -> Vec<u8> {
        let (id, value) = (self.below(6) as u32, self.below(1 << 32) as u32);
        let mut frame = match self.below(8) {
            0 => get(id),
            1 => post(id, self.below(9000) as usize),
            2 => more(id, self.below(9000) as usize),
            3 => control(4, id, value >> self.below(32)),
            4 => reset(id),
            5 => control(5, id, value),
            6 => control(6, id, value),
            _ => (0..self.below(60)).map(|_| self.below(256) as u8).collect(),
        };
        if self.below(2) == 0 && !frame.is_empty() {
            let at = self.below(frame.len().min(24) as u64) as usize;
            frame[at] = self.below(256) as u8;
        }
        frame
    }
}

#[tokio::test]
async fn frames_at_random_never_hurt_others_on_any_transport() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for uri in uris("random") {
        let attacked = Attacked::start(&uri).await;
        for round in 0..100 {
            let frames = std::iter::once(settings()).chain((0..20).map(|_| numbers.frame())).collect();
            let connection = attacked.attack(frames).await;
            if round % 2 == 0 {
                attacked.goes_on(&uri).await;
            }
            drop(connection);
        }
        until_idle(&attacked.alive, attacked.idle, &uri).await;
        attacked.goes_on(&uri).await;
    }
}

#[tokio::test]
async fn a_server_that_answers_at_random_fails_calls_and_hangs_none() {
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    for uri in uris("server") {
        let fabric = fabric(&uri);
        let mut listener = fabric.listen(&uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        let seed = numbers.below(u64::MAX) | 1;
        let server = tokio::spawn(async move {
            let mut numbers = Numbers(seed);
            loop {
                let connection = listener.accept().await.unwrap();
                let _ = connection.send(settings()).await;
                for _ in 0..20 {
                    let _ = connection.send(numbers.frame()).await;
                }
                // Whatever it meant, that was all: with the connection ends what is still open.
            }
        });
        let channel = Channel::new(&fabric, &uri).unwrap();
        for _ in 0..100 {
            let calls = (0..3).map(|_| {
                let call = channel.clone().oneshot(Request::get("/").body(Empty::<Bytes>::new()).unwrap());
                tokio::spawn(async move { call.await?.into_body().collect().await.map(drop) })
            });
            for call in calls.collect::<Vec<_>>() {
                let ended = tokio::time::timeout(HANG, call).await.expect("a call hangs").unwrap();
                if let Err(error) = ended {
                    assert_ne!(error.to_string(), "", "{error:?}");
                }
            }
        }
        server.abort();
    }
}
