//! Calls of all kinds, and how they end.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use zc_examples_rpc::echo::{self, MAX_MESSAGE};
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_examples_rpc::pb::echo_server::EchoServer;
use zc_examples_rpc::pb::{Ask, Summary};

use crate::world::{HANG, mem, payload, transports, wait_for, waiting};

#[tokio::test]
async fn all_four_kinds_of_call() {
    for transport in transports() {
        let (channel, _server) = transport.serve(Routes::new(echo::service())).await;
        let mut client = EchoClient::new(channel);
        assert_eq!(client.unary(payload("one")).await.unwrap().into_inner().data, "one");
        assert_eq!(client.unary(payload("")).await.unwrap().into_inner().data, "");
        let summary = client.collect(stream::iter((0..100).map(|_| payload("abc")))).await.unwrap();
        assert_eq!(summary.into_inner(), Summary { messages: 100, bytes: 300 });
        let ask = Ask { data: Bytes::from(vec![1; 1000]), times: 300 };
        let answers = client.repeat(ask).await.unwrap().into_inner();
        assert_eq!(answers.filter(|answer| std::future::ready(answer.is_ok())).count().await, 300);
        let (tx, rx) = mpsc::channel(1);
        let mut answers = client.chat(ReceiverStream::new(rx)).await.unwrap().into_inner();
        for n in 0..50_u8 {
            tx.send(payload(vec![n])).await.unwrap();
            assert_eq!(answers.message().await.unwrap().unwrap().data, vec![n]);
        }
        drop(tx);
        assert!(answers.message().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn large_messages_and_their_limits_at_both_ends() {
    let large = Bytes::from((0..5_000_000_u32).map(|n| (n * 7) as u8).collect::<Vec<_>>());
    for transport in transports() {
        let (channel, _server) = transport.serve(Routes::new(echo::service())).await;
        let mut client = EchoClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        assert_eq!(client.unary(payload(large.clone())).await.unwrap().into_inner().data, large);
        // tonic's own limit of what comes in is 4 MiB.
        let mut takes_less = EchoClient::new(channel.clone());
        assert_eq!(takes_less.unary(payload(large.clone())).await.unwrap_err().code(), Code::OutOfRange);
        let mut sends_less = EchoClient::new(channel).max_encoding_message_size(1000);
        assert_eq!(sends_less.unary(payload(vec![0; 2000])).await.unwrap_err().code(), Code::OutOfRange);
        assert_eq!(sends_less.unary(payload(vec![0; 900])).await.unwrap().into_inner().data.len(), 900);
    }
    for transport in transports() {
        let server = EchoServer::new(echo::EchoService).max_encoding_message_size(1000);
        let (channel, _server) = transport.serve(Routes::new(server)).await;
        let mut client = EchoClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        // The server takes no more than 4 MiB, and answers no more than 1000 bytes.
        for size in [5_000_000, 2000] {
            let refused = client.unary(payload(large.slice(..size))).await.unwrap_err();
            assert_eq!(refused.code(), Code::OutOfRange, "{transport:?}, {size}: {refused:?}");
        }
        let ask = Ask { data: large.slice(..2000), times: 1 };
        let refused = client.repeat(ask).await.unwrap().into_inner().message().await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange);
        assert_eq!(client.unary(payload("a")).await.unwrap().into_inner().data, "a");
    }
}

#[tokio::test]
async fn metadata_status_and_details() {
    for transport in transports() {
        let (channel, _service, _server) = transport.serve_obedient().await;
        let mut client = EchoClient::new(channel.clone());
        for _ in 0..3 {
            let mut request = Request::new(payload("a"));
            request.metadata_mut().insert("x-text", MetadataValue::from_static("text"));
            request.metadata_mut().insert_bin("x-bytes-bin", MetadataValue::from_bytes(&[0, 255, 10]));
            let response = client.unary(request).await.unwrap();
            assert_eq!(response.metadata().get("x-text").unwrap(), "text");
            let bytes = response.metadata().get_bin("x-bytes-bin").unwrap().to_bytes().unwrap();
            assert_eq!(bytes, [0, 255, 10][..]);
            let mut request = Request::new(payload("a"));
            request.metadata_mut().insert("do", MetadataValue::from_static("fail"));
            let status = client.unary(request).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "não é bom"));
            assert_eq!(status.metadata().get("why").unwrap(), "because");
            let details = status.get_error_details();
            assert_eq!(details.bad_request().unwrap().field_violations[0].field, "data");
        }
        let mut answers =
            client.chat(stream::iter(["a", "stop", "b"].map(payload))).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().data, "a");
        assert_eq!(answers.message().await.unwrap_err().code(), Code::Aborted);
        let mut stranger = tonic_health::pb::health_client::HealthClient::new(channel);
        let status = stranger.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
}

#[tokio::test(start_paused = true)]
async fn deadlines() {
    let (channel, service, _server) = mem().serve_obedient().await;
    let mut client = EchoClient::new(channel);
    let mut request = waiting();
    request.set_timeout(Duration::from_millis(300));
    let began = tokio::time::Instant::now();
    let status = client.unary(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(began.elapsed() < Duration::from_secs(1));
    wait_for(&service.alive, 0).await;
    let (_tx, rx) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(rx));
    request.set_timeout(Duration::from_millis(300));
    let mut answers = client.chat(request).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    wait_for(&service.alive, 0).await;
}

#[tokio::test]
async fn deadlines_end_both_sides_on_every_transport() {
    for transport in transports() {
        let (channel, service, _server) = transport.serve_obedient().await;
        let mut client = EchoClient::new(channel);
        let mut request = waiting();
        request.set_timeout(Duration::from_millis(20));
        let late = tokio::time::timeout(HANG, client.unary(request)).await.expect("the call hangs");
        assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded, "{transport:?}");
        let (_tx, rx) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(rx));
        request.set_timeout(Duration::from_millis(20));
        let late = async {
            match client.chat(request).await {
                Ok(answers) => answers.into_inner().message().await.unwrap_err(),
                Err(status) => status,
            }
        };
        let late = tokio::time::timeout(HANG, late).await.expect("the stream hangs");
        assert_eq!(late.code(), Code::DeadlineExceeded, "{transport:?}");
        wait_for(&service.alive, 0).await;
    }
}

#[tokio::test]
async fn stalled_streams_never_block_the_others() {
    for transport in transports() {
        let (channel, service, _server) = transport.serve_obedient().await;
        let mut client = EchoClient::new(channel);
        // Answers without an end that nobody takes: their windows fill up, all but one of those that the connection's has
        // room for.
        let mut stalled = Vec::new();
        for _ in 0..7 {
            let ask = Ask { data: Bytes::from(vec![9; 100_000]), times: 0 };
            stalled.push(client.repeat(ask).await.unwrap().into_inner());
        }
        // And questions that the handlers do not take.
        let endless = || stream::repeat(payload(vec![8; 100_000]));
        let unread = (0..3).map(|_| {
            let mut client = client.clone();
            let mut request = Request::new(endless());
            request.metadata_mut().insert("do", MetadataValue::from_static("wait"));
            tokio::spawn(async move { client.collect(request).await.map(drop) })
        });
        let unread: Vec<_> = unread.collect();
        wait_for(&service.alive, 10).await;
        for size in [5, 5000, 300_000].into_iter().cycle().take(60) {
            let call = client.unary(payload(vec![1; size]));
            let answer = tokio::time::timeout(HANG, call)
                .await
                .unwrap_or_else(|_| panic!("{transport:?}: {size} bytes wait for streams that stalled"));
            assert_eq!(answer.unwrap().into_inner().data.len(), size);
        }
        assert!(unread.iter().all(|call| !call.is_finished()));
        // They were held up, and not lost.
        for answers in &mut stalled {
            for _ in 0..30 {
                assert_eq!(answers.message().await.unwrap().unwrap().data.len(), 100_000);
            }
        }
        drop(stalled);
        unread.iter().for_each(tokio::task::JoinHandle::abort);
        wait_for(&service.alive, 0).await;
    }
}

#[tokio::test]
async fn cancelling_from_both_sides() {
    for transport in transports() {
        let (channel, service, _server) = transport.serve_obedient().await;
        let mut client = EchoClient::new(channel);
        let mut calling = client.clone();
        let mut call = Box::pin(calling.unary(waiting()));
        tokio::select! {
            _ = &mut call => panic!("nobody answers"),
            () = wait_for(&service.alive, 1) => {}
        }
        drop(call);
        wait_for(&service.alive, 0).await;
        // An endless answer, left in the middle; and a question whose answer ended.
        let mut endless =
            client.repeat(Ask { data: Bytes::from(vec![0; 10_000]), times: 0 }).await.unwrap().into_inner();
        for _ in 0..20 {
            assert!(endless.message().await.unwrap().is_some());
        }
        drop(endless);
        wait_for(&service.alive, 0).await;
        let (tx, rx) = mpsc::channel(1);
        let mut answers = client.chat(ReceiverStream::new(rx)).await.unwrap().into_inner();
        tx.send(payload("stop")).await.unwrap();
        assert_eq!(answers.message().await.unwrap_err().code(), Code::Aborted);
        tokio::time::timeout(HANG, tx.closed()).await.expect("the question goes on");
    }
}

#[tokio::test]
async fn a_killed_server_is_unavailable_to_every_call() {
    for transport in transports() {
        let (channel, service, server) = transport.serve_obedient().await;
        let mut client = EchoClient::new(channel);
        let (_tx, rx) = mpsc::channel(1);
        let mut chat = client.chat(ReceiverStream::new(rx)).await.unwrap().into_inner();
        let calls = (0..10).map(|_| {
            let mut client = client.clone();
            async move { client.unary(waiting()).await.unwrap_err().code() }
        });
        let mut calls = Box::pin(futures::future::join_all(calls));
        tokio::select! {
            _ = &mut calls => panic!("nobody answers"),
            () = wait_for(&service.alive, 11) => {}
        }
        server.abort();
        let codes = tokio::time::timeout(HANG, calls).await.expect("calls hang");
        assert!(codes.iter().all(|code| *code == Code::Unavailable), "{codes:?}");
        assert_eq!(chat.message().await.unwrap_err().code(), Code::Unavailable);
        wait_for(&service.alive, 0).await;
        assert_eq!(client.unary(payload("a")).await.unwrap_err().code(), Code::Unavailable);
    }
}

#[tokio::test]
async fn compression_and_interceptors() {
    for transport in transports() {
        let server = EchoServer::new(echo::EchoService)
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
        let guarded = InterceptedService::new(server, |request: Request<()>| {
            match request.metadata().get("token").is_some() {
                true => Ok(request),
                false => Err(Status::unauthenticated("no token")),
            }
        });
        let (channel, _server) = transport.serve(Routes::new(guarded)).await;
        let mut stranger = EchoClient::new(channel.clone());
        assert_eq!(stranger.unary(payload("a")).await.unwrap_err().code(), Code::Unauthenticated);
        let with_token = |mut request: Request<()>| {
            request.metadata_mut().insert("token", MetadataValue::from_static("t"));
            Ok(request)
        };
        let mut client = EchoClient::with_interceptor(channel.clone(), with_token)
            .send_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Gzip);
        let text = Bytes::from("zero ".repeat(200_000));
        let response = client.unary(payload(text.clone())).await.unwrap();
        assert_eq!(response.metadata().get("grpc-encoding").unwrap(), "gzip");
        assert_eq!(response.into_inner().data, text);
        let answers = client.chat(stream::iter([payload(text.clone()), payload("b")])).await.unwrap();
        let answers: Vec<_> = answers.into_inner().map(|answer| answer.unwrap().data).collect().await;
        assert_eq!(answers, [text.clone(), Bytes::from("b")]);
        // Both ways it was less than a tenth.
        let (moved, _) = channel.ledgers().unwrap();
        assert!(moved.moved_bytes < text.len() as u64 / 10, "{transport:?}: {moved:?}");
        let unwilling = |_: Request<()>| Err(Status::failed_precondition("not today"));
        let mut unwilling = EchoClient::with_interceptor(channel, unwilling);
        assert_eq!(unwilling.unary(payload("a")).await.unwrap_err().code(), Code::FailedPrecondition);
    }
}

#[tokio::test]
async fn a_server_that_takes_no_compression_says_so() {
    for transport in transports() {
        let (channel, _server) = transport.serve(Routes::new(echo::service())).await;
        let mut client = EchoClient::new(channel).send_compressed(CompressionEncoding::Gzip);
        assert_eq!(client.unary(payload("a")).await.unwrap_err().code(), Code::Unimplemented);
    }
}
