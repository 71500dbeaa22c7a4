//! What `docs/tonic.md` says of copies, by the ledger.

use zc_examples_rpc::pb::echo_client::EchoClient;

use crate::world::{payload, transports};

#[tokio::test]
async fn measure() {
    for transport in transports() {
        for size in [100, 50_000, 1 << 20] {
            let (channel, _service, _server) = transport.again().serve_obedient().await;
            let mut client = EchoClient::new(channel.clone());
            client.unary(payload("a")).await.unwrap();
            let (tb, hb) = channel.ledgers().unwrap();
            for _ in 0..10 { client.unary(payload(vec![1; size])).await.unwrap(); }
            let (t, h) = channel.ledgers().unwrap();
            println!("{transport:?} {size}: {:?} {:?}", t.since(&tb), h.since(&hb));
        }
    }
}
