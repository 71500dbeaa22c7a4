//! What `docs/tonic.md` says of copies, by the ledger.

use zc::LedgerSnapshot;
use zc::memory::CopyPlace;
use zc_examples_rpc::pb::echo_client::EchoClient;
use zc_http::Channel;

use crate::world::{Transport, payload, transports};

const CALLS: u64 = 10;

/// What some calls cost at the client: by the transport, and by zc-http.
async fn copied(transport: &Transport, size: usize) -> (LedgerSnapshot, LedgerSnapshot) {
    let (channel, _service, _server) = transport.again().serve_obedient().await;
    let mut client = EchoClient::new(channel.clone());
    client.unary(payload("a")).await.unwrap();
    let ledgers = |channel: &Channel| channel.ledgers().unwrap();
    let (transport_before, http_before) = ledgers(&channel);
    for _ in 0..CALLS {
        client.unary(payload(vec![1; size])).await.unwrap();
    }
    let (transport, http) = ledgers(&channel);
    (transport.since(&transport_before), http.since(&http_before))
}

#[tokio::test]
async fn small_messages_are_copied_once_behind_their_headers() {
    const SIZE: u64 = 100;
    for transport in transports() {
        let (by_transport, http) = copied(&transport, SIZE as usize).await;
        let once = SIZE * CALLS..(SIZE + 20) * CALLS;
        assert!(once.contains(&http.copied_bytes()), "{transport:?}: {http:?}");
        assert_eq!(by_transport.copied_at(CopyPlace::Foreign), 0, "{transport:?}: {by_transport:?}");
    }
}

#[tokio::test]
async fn large_messages_are_copied_into_shared_memory_only() {
    for transport in transports() {
        for size in [50_000_u64, 1 << 20] {
            let (by_transport, http) = copied(&transport, size as usize).await;
            let all = size * CALLS;
            // But for the last bytes of a message, when they make a frame of their own.
            assert!(http.copied_bytes() <= 1024 * CALLS, "{transport:?}: {http:?}");
            let foreign = by_transport.copied_at(CopyPlace::Foreign);
            match transport.chosen {
                "shm" => assert!((all..all + all / 100).contains(&foreign), "{by_transport:?}"),
                _ => assert_eq!(foreign, 0, "{by_transport:?}"),
            }
            // What came in was lent, or read to where it stays: streams may cut a frame.
            let rest = by_transport.copied_bytes() - foreign;
            let cut = if transport.chosen == "shm" { 0 } else { all / 10 };
            assert!(rest <= cut, "{transport:?}: {by_transport:?}");
        }
    }
}
