//! Clients on HTTP/2 at the port that serves both, byte by byte.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tower::{ServiceExt, service_fn};
use zc::Fabric;
use zc_http::{Body, Channel, Limits, Server};

use crate::HANG;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const ENHANCE_YOUR_CALM: u32 = 11;
const MAX_CALLS: usize = 50;
const WINDOW: u32 = 100_000;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `:method: GET` or `POST`, `:scheme: http`, `:path: /`, and a server's name.
fn headers(stream: u32, method: u8, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &[method, 0x86, 0x84, 0x41, 0x01, b'a'])
}

fn post(stream: u32) -> Vec<u8> {
    headers(stream, 0x83, 0)
}

fn window(stream: u32, add: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &add.to_be_bytes())
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

struct Attacked {
    address: String,
    good: Channel,
    /// Handlers now, and at most.
    alive: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Attacked {
    async fn start() -> Self {
        let fabric = Fabric::auto().unwrap();
        let listener = fabric.listen_mixed("zc+tcp://127.0.0.1:0").await.unwrap();
        let uri = listener.local_uri().to_string();
        let (alive, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (alive.clone(), most.clone());
        // Answers to zc, and nothing to those on HTTP/2, whose bodies it does not read.
        let service = service_fn(move |request: Request<Body>| {
            let (alive, most) = counts.clone();
            async move {
                if request.uri().path() == "/good" {
                    return Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"good"))));
                }
                most.fetch_max(alive.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let _alive = (Alive(alive), request);
                std::future::pending().await
            }
        });
        let mut limits = Limits::default();
        limits.max_calls = MAX_CALLS as u32;
        limits.call_window_bytes = WINDOW;
        tokio::spawn(Server::new().limits(limits).serve(listener, service));
        let good = Channel::new(&fabric, &uri).unwrap();
        Self { address: uri.replace("zc+tcp://", ""), good, alive, most }
    }

    async fn connect(&self) -> (OwnedReadHalf, OwnedWriteHalf) {
        let (reading, mut writing) = TcpStream::connect(&self.address).await.unwrap().into_split();
        writing.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        (reading, writing)
    }

    /// For others nothing has happened, and nothing is left of this one.
    async fn goes_on(&self, what: &str) {
        let good = async {
            let request = Request::get("/good").body(Empty::<Bytes>::new()).unwrap();
            let answer = self.good.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "good", "{what}");
            while self.alive.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(HANG, good)
            .await
            .unwrap_or_else(|_| panic!("{what}: others hang, or a handler is left"));
        assert!(self.most.swap(0, Ordering::SeqCst) <= MAX_CALLS, "{what}");
    }
}

/// The code of the next frame of one of those kinds, if one comes before the end.
async fn code_of(reading: &mut OwnedReadHalf, kinds: &[u8]) -> Option<u32> {
    loop {
        let mut head = [0; 9];
        reading.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        reading.read_exact(&mut payload).await.ok()?;
        if kinds.contains(&head[3]) {
            let at = if head[3] == GOAWAY { 4 } else { 0 };
            return Some(u32::from_be_bytes(payload[at..at + 4].try_into().unwrap()));
        }
    }
}

#[tokio::test]
async fn lies_about_windows_end_the_connection_or_the_stream() {
    let attacked = Attacked::start().await;
    let too_wide = frame(SETTINGS, 0, 0, &[&[0, 4][..], &u32::MAX.to_be_bytes()].concat());
    // In frames of the size that everybody takes.
    let beyond = (0..=WINDOW / 16_384).map(|_| frame(DATA, 0, 1, &[b'x'; 16_384]));
    let beyond = std::iter::once(post(1)).chain(beyond).collect::<Vec<_>>().concat();
    let lies: [(&str, Vec<u8>, &[u8], u32); 6] = [
        (
            "a grant beyond all windows",
            [window(0, 0x7fff_ffff), window(0, 0x7fff_ffff)].concat(),
            &[GOAWAY],
            FLOW_CONTROL_ERROR,
        ),
        ("a grant of nothing", window(0, 0), &[GOAWAY], PROTOCOL_ERROR),
        ("a window wider than can be", too_wide, &[GOAWAY], PROTOCOL_ERROR),
        ("a grant to nobody", window(99, 1), &[GOAWAY], PROTOCOL_ERROR),
        (
            "a grant beyond a stream's window",
            [post(1), window(1, 0x7fff_ffff)].concat(),
            &[RST_STREAM],
            FLOW_CONTROL_ERROR,
        ),
        ("a body beyond its window", beyond, &[RST_STREAM, GOAWAY], FLOW_CONTROL_ERROR),
    ];
    for (what, said, kinds, code) in lies {
        let (mut reading, mut writing) = attacked.connect().await;
        // It may hang up before it has heard all.
        let _ = writing.write_all(&said).await;
        let heard = tokio::time::timeout(HANG, code_of(&mut reading, kinds)).await.expect(what);
        assert_eq!(heard, Some(code), "{what}");
        drop((reading, writing));
        attacked.goes_on(what).await;
    }
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection_and_runs_no_more_handlers_than_calls() {
    let attacked = Attacked::start().await;
    let (mut reading, mut writing) = attacked.connect().await;
    let flood = async {
        for at in 0..10_000 {
            let calls: Vec<u8> = (0..100)
                .flat_map(|n| {
                    let stream = 2 * (100 * at + n) + 1;
                    [headers(stream, 0x82, END_STREAM), reset(stream)].concat()
                })
                .collect();
            if writing.write_all(&calls).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let heard = async {
        tokio::select! {
            heard = code_of(&mut reading, &[GOAWAY]) => heard,
            () = flood => unreachable!(),
        }
    };
    let heard = tokio::time::timeout(HANG, heard).await.expect("it takes all of it");
    assert_eq!(heard, Some(ENHANCE_YOUR_CALM));
    attacked.goes_on("a flood of resets").await;
}

#[tokio::test]
async fn calls_beyond_the_limit_are_refused_and_reset_ones_leave_nothing() {
    let attacked = Attacked::start().await;
    let (mut reading, mut writing) = attacked.connect().await;
    // It acknowledges our settings, and from then on counts.
    let all: Vec<u8> = (0..=MAX_CALLS as u32).flat_map(|n| post(2 * n + 1)).collect();
    writing.write_all(&all).await.unwrap();
    let refused =
        tokio::time::timeout(HANG, code_of(&mut reading, &[RST_STREAM])).await.expect("all are taken");
    assert_eq!(refused, Some(7), "REFUSED_STREAM");
    let taken: Vec<u8> = (0..MAX_CALLS as u32).flat_map(|n| reset(2 * n + 1)).collect();
    writing.write_all(&taken).await.unwrap();
    attacked.goes_on("calls that were reset").await;
}
