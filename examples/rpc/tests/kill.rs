//! A process that is killed, and what is left of its connections in the other.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tokio::task::{JoinHandle, JoinSet};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::transport::Endpoint;
use tonic::{Code, Streaming};
use zc::{Fabric, Policy};
use zc_examples_rpc::echo;
use zc_examples_rpc::grpc::{GrpcChannel, stock_channel};
use zc_examples_rpc::pb::Payload;
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_http::{Channel, ErrorKind, Protocol, Server, ZcConnector};

const HANG: Duration = Duration::from_secs(60);
/// From the moment when calls are under way to the kill.
const MOMENTS_MS: [u64; 6] = [0, 1, 2, 5, 11, 23];
/// From the beginning of a connection to the kill.
const MOMENTS_US: [u64; 8] = [0, 30, 100, 300, 600, 1000, 2000, 4000];
/// What a process may have more after some rounds than after the first: less than one connection over shared memory takes.
const ROUNDS_BYTES: usize = 32 << 20;
const SIZES: [usize; 3] = [64, 5_000, 300_000];
/// Tells this program, started again, that it is the client to be killed, and where to go.
const CLIENT_OF: &str = "ZC_TEST_CLIENT_OF";
/// In front of a zc URI there: HTTP/2 on a byte stream.
const STREAM: &str = "http2+";

fn uris(test: &str) -> [String; 3] {
    let process = std::process::id();
    [
        "zc+tcp://127.0.0.1:0".to_owned(),
        format!("zc+unix://@zc-kill-{test}-{process}"),
        format!("zc+shm://@zc-kill-{test}-shm-{process}"),
    ]
}

/// What this process has of the memory of the machine.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

/// What a URI is here for. Over a Unix socket zc would choose shared memory.
fn transport(uri: &str) -> &'static str {
    if uri.contains("shm") { "shm" } else { "tcp" }
}

/// Without io_uring: its engine keeps descriptors for seconds after the last connection, which is not what is asked here.
fn fabric(uri: &str) -> Fabric {
    let policy = Policy::default().with_override(transport(uri)).unwrap();
    Fabric::auto_builder().policy(policy).build().unwrap()
}

/// What connections take of this process. Its tests run one at a time.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    mappings: usize,
    tasks: usize,
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The runtimes of other tests hold descriptors, too.
fn alone(test: impl Future<Output = ()>) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

impl Held {
    fn now() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        }
    }

    /// Waits until no more than this is held.
    async fn wait_for_no_more(self, after: &str) {
        let look = async {
            loop {
                let now = Self::now();
                let more = now.descriptors > self.descriptors || now.mappings > self.mappings;
                if !more && now.tasks <= self.tasks {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let gone = tokio::time::timeout(HANG, look).await;
        assert!(gone.is_ok(), "{after}: {:?} is left, {self:?} was there before", Self::now());
    }
}

/// The line that a child prints first and that begins so.
fn line_of(child: &mut Child, begin: &str) -> String {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).find(|line| line.starts_with(begin)).unwrap()
}

fn payload(size: usize) -> Payload {
    Payload { data: Bytes::from(vec![7; size]) }
}

async fn open_chats<T: GrpcChannel>(client: &mut EchoClient<T>) -> Vec<Streaming<Payload>> {
    let mut chats = Vec::new();
    for _ in 0..20 {
        let endless = stream::iter([payload(5)]).chain(stream::pending());
        let mut chat = client.chat(endless).await.unwrap().into_inner();
        assert!(chat.message().await.unwrap().is_some());
        chats.push(chat);
    }
    chats
}

/// Calls of all sizes, one after the other until one fails; what that says.
fn call_until_the_end<T>(client: &EchoClient<T>) -> JoinSet<Code>
where
    T: GrpcChannel + GrpcService<Body, Future: Send> + Clone + Send + 'static,
{
    let mut calls = JoinSet::new();
    for at in 0..12 {
        let mut client = client.clone();
        calls.spawn(async move {
            loop {
                if let Err(status) = client.unary(payload(SIZES[at % SIZES.len()])).await {
                    return status.code();
                }
            }
        });
    }
    calls
}

#[test]
fn a_killed_server_is_unavailable_and_leaves_nothing() {
    alone(kill_servers());
}

async fn kill_servers() {
    for (protocol, name) in [(Protocol::ZcHttp, "server"), (Protocol::Http2, "server-http2")] {
        for uri in uris(name) {
            let fabric = fabric(&uri);
            let before = Held::now();
            let mut first = None;
            for moment in MOMENTS_MS {
                kill_a_server(&fabric, &uri, protocol, Duration::from_millis(moment)).await;
                before.wait_for_no_more(&format!("{uri} after {moment} ms")).await;
                let (resident, first) = (resident_bytes(), *first.get_or_insert_with(resident_bytes));
                assert!(resident < first + ROUNDS_BYTES, "{uri}: {first} bytes have become {resident}");
            }
        }
    }
}

fn start_server(uri: &str, protocol: Protocol) -> Child {
    Command::new(env!("CARGO_BIN_EXE_grpc_echo"))
        .args(["server", uri, "--child"])
        .args((protocol == Protocol::Http2).then_some("--http2"))
        .env("ZC_TRANSPORTS", transport(uri))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn kill_a_server(fabric: &Fabric, uri: &str, protocol: Protocol, moment: Duration) {
    let mut server = start_server(uri, protocol);
    let uri_of_it = line_of(&mut server, "zc");
    let channel = Channel::builder().fall_back(true).build(fabric, &uri_of_it).unwrap();
    let mut client = EchoClient::new(channel.clone());
    let mut chats = open_chats(&mut client).await;
    let report = channel.report().unwrap();
    assert_eq!(report.chosen(), transport(uri), "{report}");
    assert_eq!(channel.protocol(), Some(protocol));
    assert_eq!(
        Held::now().mappings > 0,
        transport(uri) == "shm",
        "what is counted here is not what there is"
    );
    let mut calls = call_until_the_end(&client);
    tokio::time::sleep(moment).await;
    server.kill().unwrap();
    server.wait().unwrap();
    for chat in &mut chats {
        let ended = tokio::time::timeout(HANG, chat.message()).await.expect("a call hangs");
        assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    }
    while let Some(code) = tokio::time::timeout(HANG, calls.join_next()).await.expect("a call hangs") {
        assert_eq!(code.unwrap(), Code::Unavailable);
    }
    assert_eq!(client.unary(payload(5)).await.unwrap_err().code(), Code::Unavailable);
    let nobody = channel.connect().await.unwrap_err();
    assert!(matches!(nobody.kind(), ErrorKind::Connect(_)) && nobody.is_retryable(), "{nobody:?}");
}

#[test]
fn a_server_that_is_killed_while_somebody_connects_leaves_nothing() {
    alone(async {
        for uri in uris("connecting") {
            let fabric = fabric(&uri);
            let before = Held::now();
            for moment in MOMENTS_US {
                let mut server = start_server(&uri, Protocol::ZcHttp);
                let channel = Channel::new(&fabric, &line_of(&mut server, "zc")).unwrap();
                let connecting = channel.clone();
                let connecting = tokio::spawn(async move { connecting.connect().await });
                tokio::time::sleep(Duration::from_micros(moment)).await;
                server.kill().unwrap();
                server.wait().unwrap();
                let connected = tokio::time::timeout(HANG, connecting).await.expect("it hangs").unwrap();
                // In time or not: nobody is there now.
                assert!(connected.as_ref().err().is_none_or(zc_http::Error::is_retryable), "{connected:?}");
                let called = EchoClient::new(channel).unary(payload(5)).await.unwrap_err();
                assert_eq!(called.code(), Code::Unavailable, "{uri} after {moment} us");
                before.wait_for_no_more(&format!("{uri} after {moment} us")).await;
            }
        }
    });
}

#[test]
fn a_client_that_is_killed_while_it_connects_leaves_nothing() {
    alone(async {
        for uri in uris("connects") {
            let (uri, server) = serve_mixed(&uri).await;
            let before = Held::now();
            // A test program takes a while until it is there.
            for moment in MOMENTS_US {
                let mut client = start_client(&uri, &uri, Stdio::null());
                tokio::time::timeout(HANG, wait_for_descriptors(before)).await.expect("nobody connects");
                tokio::time::sleep(Duration::from_micros(moment)).await;
                client.kill().unwrap();
                client.wait().unwrap();
                before.wait_for_no_more(&format!("{uri} after {moment} us")).await;
            }
            server.abort();
            let _ = server.await;
        }
    });
}

/// Until somebody has begun to connect.
async fn wait_for_descriptors(before: Held) {
    while Held::now().descriptors <= before.descriptors {
        tokio::task::yield_now().await;
    }
}

/// zc-http and HTTP/2 on one port.
async fn serve_mixed(uri: &str) -> (String, JoinHandle<()>) {
    let listener = fabric(uri).listen_mixed(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    let server = tokio::spawn(Server::new().serve(listener, echo::service()));
    tokio::task::yield_now().await;
    (uri, server)
}

/// At `to`, which may say another protocol than the server's own URI does.
fn start_client(uri: &str, to: &str, printed: Stdio) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_client_to_be_killed", "--nocapture"])
        .env(CLIENT_OF, to)
        .env("ZC_TRANSPORTS", transport(uri))
        .stdout(printed)
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_client_leaves_nothing() {
    alone(kill_clients());
}

async fn kill_clients() {
    for uri in uris("client") {
        let (uri, server) = serve_mixed(&uri).await;
        let before = Held::now();
        let (stream, plain) = (format!("{STREAM}{uri}"), uri.replace("zc+tcp:", "http:"));
        let mut ways = vec![&uri, &stream];
        ways.extend((plain != uri).then_some(&plain));
        let rounds = ways.iter().flat_map(|to| MOMENTS_MS.map(|moment| (to, moment)));
        let mut first = None;
        for (to, moment) in rounds {
            let mut client = start_client(&uri, to, Stdio::piped());
            let (mut client, _) = tokio::task::spawn_blocking(move || {
                let line = line_of(&mut client, "calling");
                (client, line)
            })
            .await
            .unwrap();
            tokio::time::sleep(Duration::from_millis(moment)).await;
            assert!(Held::now().tasks > before.tasks, "nobody is served");
            client.kill().unwrap();
            client.wait().unwrap();
            before.wait_for_no_more(&format!("{to} after {moment} ms")).await;
            let (resident, first) = (resident_bytes(), *first.get_or_insert_with(resident_bytes));
            assert!(resident < first + ROUNDS_BYTES, "{to}: {first} bytes have become {resident}");
        }
        server.abort();
        let _ = server.await;
    }
}

/// No test of its own: what the one above starts.
#[test]
fn the_client_to_be_killed() {
    let Ok(uri) = std::env::var(CLIENT_OF) else { return };
    alone(call_for_ever(uri));
}

async fn call_for_ever(uri: String) {
    if let Some(channel) = stock_channel(&uri).await.unwrap() {
        return call_on(channel).await;
    }
    let fabric = Fabric::auto().unwrap();
    let Some(uri) = uri.strip_prefix(STREAM) else {
        return call_on(Channel::new(&fabric, &uri).unwrap()).await;
    };
    let connector = ZcConnector::new(&fabric, uri).unwrap();
    call_on(Endpoint::from_static("http://zc").connect_with_connector(connector).await.unwrap()).await;
}

async fn call_on<T>(channel: T)
where
    T: GrpcChannel + GrpcService<Body, Future: Send> + Clone + Send + 'static,
{
    let mut client = EchoClient::new(channel);
    let _chats = open_chats(&mut client).await;
    let calls = call_until_the_end(&client);
    // On a line of its own, whatever the harness has printed.
    std::io::stdout().write_all(b"\ncalling\n").unwrap();
    calls.join_all().await;
}
