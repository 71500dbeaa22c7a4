//! A process that is killed, and what is left of its connections in the other.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tokio::task::JoinSet;
use tonic::{Code, Streaming};
use zc::Fabric;
use zc_examples_rpc::echo;
use zc_examples_rpc::pb::Payload;
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_http::{Channel, ErrorKind, Server};

const HANG: Duration = Duration::from_secs(60);
/// From the moment when calls are under way to the kill.
const MOMENTS_MS: [u64; 6] = [0, 1, 2, 5, 11, 23];
const SIZES: [usize; 3] = [64, 5_000, 300_000];
/// Tells this program, started again, that it is the client to be killed, and where to go.
const CLIENT_OF: &str = "ZC_TEST_CLIENT_OF";

fn uris(test: &str) -> [String; 3] {
    let process = std::process::id();
    [
        "zc+tcp://127.0.0.1:0".to_owned(),
        format!("zc+unix://@zc-kill-{test}-{process}"),
        format!("zc+shm://@zc-kill-{test}-shm-{process}"),
    ]
}

/// What a URI is here for. Over a Unix socket zc would choose shared memory.
fn transport(uri: &str) -> &'static str {
    if uri.contains("shm") { "shm" } else { "tcp" }
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

async fn open_chats(client: &mut EchoClient<Channel>) -> Vec<Streaming<Payload>> {
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
fn call_until_the_end(client: &EchoClient<Channel>) -> JoinSet<Code> {
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
    let fabric = Fabric::auto().unwrap();
    for uri in uris("server") {
        let before = Held::now();
        for moment in MOMENTS_MS {
            kill_a_server(&fabric, &uri, Duration::from_millis(moment)).await;
            before.wait_for_no_more(&format!("{uri} after {moment} ms")).await;
        }
    }
}

async fn kill_a_server(fabric: &Fabric, uri: &str, moment: Duration) {
    let mut server = Command::new(env!("CARGO_BIN_EXE_grpc_echo"))
        .args(["server", uri, "--child"])
        .env("ZC_TRANSPORTS", transport(uri))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let channel = Channel::new(fabric, &line_of(&mut server, "zc")).unwrap();
    let mut client = EchoClient::new(channel.clone());
    let mut chats = open_chats(&mut client).await;
    assert_eq!(channel.report().unwrap().chosen(), transport(uri));
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
fn a_killed_client_leaves_nothing() {
    alone(kill_clients());
}

async fn kill_clients() {
    for uri in uris("client") {
        let listener = Fabric::auto().unwrap().listen(&uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        let server = tokio::spawn(Server::new().serve(listener, echo::service()));
        tokio::task::yield_now().await;
        let before = Held::now();
        for moment in MOMENTS_MS {
            let mut client = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "the_client_to_be_killed", "--nocapture"])
                .env(CLIENT_OF, &uri)
                .env("ZC_TRANSPORTS", transport(&uri))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
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
            before.wait_for_no_more(&format!("{uri} after {moment} ms")).await;
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
    let channel = Channel::new(&Fabric::auto().unwrap(), &uri).unwrap();
    let mut client = EchoClient::new(channel);
    let _chats = open_chats(&mut client).await;
    let calls = call_until_the_end(&client);
    // On a line of its own, whatever the harness has printed.
    std::io::stdout().write_all(b"\ncalling\n").unwrap();
    calls.join_all().await;
}
