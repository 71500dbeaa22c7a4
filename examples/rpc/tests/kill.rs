//! A server process that is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tonic::Code;
use zc::Fabric;
use zc_examples_rpc::pb::Payload;
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_http::{Channel, ErrorKind};

const HANG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn every_call_ends_with_unavailable() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_grpc_echo"))
        .args(["server", "zc+tcp://127.0.0.1:0", "--child"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut uri = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut uri).unwrap();
    let channel = Channel::new(&Fabric::auto().unwrap(), uri.trim()).unwrap();
    let mut client = EchoClient::new(channel.clone());
    let hello = Payload { data: Bytes::from_static(b"hello") };
    client.unary(hello.clone()).await.unwrap();
    let mut chats = Vec::new();
    for _ in 0..20 {
        let endless = stream::iter([hello.clone()]).chain(stream::pending());
        let mut chat = client.chat(endless).await.unwrap().into_inner();
        assert!(chat.message().await.unwrap().is_some());
        chats.push(chat);
    }
    server.kill().unwrap();
    server.wait().unwrap();
    for chat in &mut chats {
        let ended = tokio::time::timeout(HANG, chat.message()).await.expect("a call hangs");
        assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(client.unary(hello).await.unwrap_err().code(), Code::Unavailable);
    let nobody = channel.connect().await.unwrap_err();
    assert!(matches!(nobody.kind(), ErrorKind::Connect(_)) && nobody.is_retryable(), "{nobody:?}");
}
