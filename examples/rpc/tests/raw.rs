//! The service on the message API: its four calls on every kind of connection, and what they copy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::time::Duration;

use bytes::{Buf, Bytes};
use prost::Message as _;
use zc::memory::MAX_SEGMENTS;
use zc::{Connection, Fabric, Message, Policy};
use zc_examples_rpc::BoxError;
use zc_examples_rpc::pb::{Ask, Summary};
use zc_examples_rpc::raw::{Caller, HEAD_BYTES, answer};

const HANG: Duration = Duration::from_secs(60);
/// More than travels in a slot of shared memory.
const SIZES: [usize; 4] = [200, 5000, 64 << 10, 3 << 20];
const REPEATED: u32 = 30;

fn uris(test: &str) -> [String; 4] {
    let name = format!("zc-raw-{test}-{}", std::process::id());
    [
        format!("zc+mem://raw-{test}"),
        "zc+tcp://127.0.0.1:0".to_owned(),
        format!("zc+unix://@{name}"),
        format!("zc+shm://@{name}-shm"),
    ]
}

/// Both ends of a connection; over a Unix socket zc would choose shared memory.
async fn pair(uri: &str) -> (Connection, Connection) {
    let only = if uri.starts_with("zc+unix:") { "tcp" } else { "^rdma" };
    let policy = Policy::default().with_override(only).unwrap();
    let fabric = Fabric::auto_builder().policy(policy).build().unwrap();
    let mut listener = fabric.listen(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap()
}

/// Whatever the client does while it is served.
async fn served(server: &mut Connection, client: impl Future<Output = ()>) {
    let served = async {
        tokio::select! {
            biased;
            () = client => {}
            ended = answer(server) => panic!("{ended:?}"),
        }
    };
    tokio::time::timeout(HANG, served).await.expect("it hangs");
}

fn data(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 7) as u8).collect()
}

fn bytes(mut message: Message) -> Bytes {
    message.copy_to_bytes(message.remaining())
}

/// Each kind of call.
async fn all_four(caller: &mut Caller, size: usize) {
    let data = data(size);
    assert_eq!(bytes(caller.unary(&data).await.unwrap()), data);
    let summary = caller.collect((0..7).map(|_| &data[..])).await.unwrap();
    assert_eq!(summary, Summary { messages: 7, bytes: 7 * size as u64 });
    let mut answers = caller.repeat(&data, REPEATED).await.unwrap();
    for _ in 0..REPEATED {
        assert_eq!(bytes(answers.message().await.unwrap().unwrap()), data);
    }
    assert!(answers.message().await.unwrap().is_none());
    let mut chat = caller.chat();
    for len in [size, size - 1, size] {
        chat.send(&data[..len]).await.unwrap();
        assert_eq!(bytes(chat.message().await.unwrap().unwrap()), data[..len]);
    }
    chat.finish().await.unwrap();
    assert!(chat.message().await.unwrap().is_none());
}

#[tokio::test]
async fn all_four_kinds_of_call_and_over_shared_memory_no_data_is_copied() {
    for uri in uris("calls") {
        let (mut client, mut server) = pair(&uri).await;
        let mut caller = Caller::new(&mut client);
        let calls = async {
            for size in SIZES {
                all_four(&mut caller, size).await;
            }
        };
        served(&mut server, calls).await;
        // What is answered again and again gets a head each time, beside the data; the last is alone, and travels in a slot.
        let heads = (HEAD_BYTES * REPEATED as usize * SIZES.len()) as u64;
        for (ledger, copied) in [(client.ledger(), 0), (server.ledger(), heads)] {
            assert!(ledger.moved_bytes > 3 << 20, "{uri}: {ledger:?}");
            if uri.starts_with("zc+shm:") {
                assert_eq!(ledger.copied_bytes(), copied, "{uri}: {ledger:?}");
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_a_message_too() {
    for uri in uris("nothing") {
        let (mut client, mut server) = pair(&uri).await;
        let mut caller = Caller::new(&mut client);
        let calls = async {
            assert!(caller.unary(b"").await.unwrap().is_empty());
            let summary = caller.collect([&b""[..], b""].into_iter()).await.unwrap();
            assert_eq!(summary, Summary { messages: 2, bytes: 0 });
            assert_eq!(caller.collect(std::iter::empty()).await.unwrap(), Summary::default());
            assert!(caller.repeat(b"a", 0).await.unwrap().message().await.unwrap().is_none());
            let mut answers = caller.repeat(b"", 2).await.unwrap();
            for _ in 0..2 {
                assert!(answers.message().await.unwrap().unwrap().is_empty());
            }
            assert!(answers.message().await.unwrap().is_none());
        };
        served(&mut server, calls).await;
    }
}

/// A long answer does not keep others waiting for their own, and one that its caller leaves harms nobody.
#[tokio::test]
async fn calls_take_turns() {
    for uri in uris("turns") {
        let (client, mut server) = pair(&uri).await;
        let (mut client, ask) = (client, Ask { data: data(500).into(), times: 2000 }.encode_to_vec());
        let calls = async {
            client.send([&b"\x01\0\0\0\x03\x01\0\0"[..], &ask].concat()).await.unwrap();
            client.send(&b"\x02\0\0\0\x01\x01\0\0\x0a\x01a"[..]).await.unwrap();
            let mut before = 0;
            loop {
                let answer = bytes(client.recv().await.unwrap().unwrap());
                match (answer[0], answer[5]) {
                    (1, 0) => before += 1,
                    (2, 1) => break,
                    other => panic!("{other:?} after {before}"),
                }
            }
            assert!(before < 2000, "{uri}");
            // The rest comes, and what was left behind is passed over.
            let mut caller = Caller::new(&mut client);
            let _left = caller.repeat(&data(500), 300).await.unwrap();
            assert_eq!(bytes(caller.unary(b"b").await.unwrap()), "b");
        };
        served(&mut server, calls).await;
    }
}

/// More of them than may be open at a time.
#[tokio::test]
async fn what_is_dropped_half_way_is_ended_with_the_next_call() {
    let (mut client, mut server) = pair("zc+mem://raw-left").await;
    let calls = async {
        let mut caller = Caller::new(&mut client);
        for _ in 0..1100 {
            tokio::select! {
                biased;
                _ = caller.collect(std::iter::repeat(&b"endless"[..])) => unreachable!(),
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(bytes(caller.unary(b"a").await.unwrap()), "a");
    };
    served(&mut server, calls).await;
}

/// As it lies in memory of the connection, which shared memory hands over in those pieces.
#[tokio::test]
async fn a_request_in_as_many_pieces_as_can_be_is_answered() {
    let ask = Ask { data: data(2 << 20).into(), times: 1 }.encode_to_vec();
    let ask = [&b"\x01\0\0\0\x03\x01\0\0"[..], &ask].concat();
    for uri in uris("pieces") {
        let (mut client, mut server) = pair(&uri).await;
        let (tx, mut rx) = client.split();
        let calls = async {
            let mut request = Message::new();
            for piece in ask.chunks(ask.len().div_ceil(MAX_SEGMENTS)) {
                let mut buf = tx.alloc(piece.len()).await.unwrap();
                buf.put_slice(piece);
                request.push(buf.freeze()).unwrap();
            }
            assert_eq!(request.segments().len(), MAX_SEGMENTS);
            tx.send(request).await.unwrap();
            let answer = bytes(rx.recv().await.unwrap().unwrap());
            // Without `times`.
            assert_eq!(answer[HEAD_BYTES..], ask[HEAD_BYTES..ask.len() - 2]);
        };
        served(&mut server, calls).await;
    }
}

async fn ended_by(uri: &str, frames: impl Iterator<Item = Vec<u8>>) -> BoxError {
    let (client, mut server) = pair(uri).await;
    let saying = async {
        for frame in frames {
            client.send(frame).await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        tokio::select! {
            ended = answer(&mut server) => ended.unwrap_err(),
            () = saying => unreachable!(),
        }
    };
    tokio::time::timeout(HANG, ended).await.expect("it goes on")
}

#[tokio::test]
async fn what_makes_no_sense_ends_the_connection() {
    for bad in
        [&b"short"[..], b"\0\0\0\0\x05\x01\0\0", b"\0\0\0\0\x01\0\0\0", b"\0\0\0\0\x01\x01\0\0\x0a\x02a"]
    {
        ended_by("zc+mem://raw-bad", std::iter::once(bad.to_vec())).await;
    }
    let many = (0_u32..).map(|call| [&call.to_le_bytes()[..], b"\x02\0\0\0"].concat());
    let ended = ended_by("zc+mem://raw-many", many.take(1001)).await;
    assert_eq!(ended.to_string(), "too many calls at a time");
    // Fewer keep too much if they are large, while they last.
    let large = Ask { data: vec![7; 65 << 20].into(), times: u32::MAX }.encode_to_vec();
    let large = [&b"\x01\0\0\0\x03\x01\0\0"[..], &large].concat();
    let ended = ended_by("zc+mem://raw-large", std::iter::once(large)).await;
    assert_eq!(ended.to_string(), "too much to keep at a time");
    let (mut client, mut server) = pair("zc+mem://raw-large-in-turn").await;
    let in_turn = async {
        let (mut caller, data) = (Caller::new(&mut client), vec![7; 33 << 20]);
        for _ in 0..2 {
            let mut answers = caller.repeat(&data, 1).await.unwrap();
            assert_eq!(answers.message().await.unwrap().unwrap().len(), data.len());
            assert!(answers.message().await.unwrap().is_none());
        }
    };
    served(&mut server, in_turn).await;
}
