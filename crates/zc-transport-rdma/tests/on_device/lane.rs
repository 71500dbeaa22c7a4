//! Lanes: what the suite does not look at.

use std::sync::Arc;
use std::time::Duration;

use zc::testing::fabric_over;
use zc::{Connection, Error, Fabric, Listener};
use zc_core::memory::{BufPool, Message};
use zc_transport_rdma::*;

use super::engine::within;
use super::rig::device;

pub(crate) const URI: &str = "zc+rdma://10.0.0.1:0";

pub(crate) fn fabric(options: RdmaOptions) -> Fabric {
    fabric_over(Arc::new(RdmaTransport::new(options)))
        .pool(BufPool::builder().max_bytes(64 << 20).build())
        .build()
        .unwrap()
}

pub(crate) async fn pair(
    client: &Fabric,
    listener: &mut Listener,
) -> Result<(Connection, Connection), Error> {
    let uri = listener.local_uri().to_string();
    let (connected, accepted) = within(async { tokio::join!(client.connect(&uri), listener.accept()) }).await;
    Ok((connected?, accepted?))
}

async fn echo((client, server): &mut (Connection, Connection), len: usize) {
    within(async {
        let payload = vec![len as u8; len];
        client.send(Message::from(payload.clone())).await.unwrap();
        let got = server.recv().await.unwrap().unwrap();
        server.send(got).await.unwrap();
        assert!(client.recv().await.unwrap().unwrap() == payload[..]);
    })
    .await;
}

/// They share the receive buffers of one engine at either end, and are gone when they are closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_connections_at_once() {
    if device().is_none() {
        return;
    }
    let (client, server) = (fabric(RdmaOptions::default()), fabric(RdmaOptions::default()));
    let mut listener = server.listen(URI).await.unwrap();
    let mut all = Vec::new();
    for _ in 0..200 {
        all.push(pair(&client, &mut listener).await.unwrap());
    }
    for (n, pair) in all.iter_mut().enumerate() {
        echo(pair, 100 * n).await;
    }
    drop(all);
    within(async {
        while queue_pairs() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Reliable ones: the port has one for its own packets.
fn queue_pairs() -> usize {
    let shown = std::process::Command::new("rdma").args(["resource", "show", "qp"]).output().unwrap();
    String::from_utf8_lossy(&shown.stdout).matches("type RC").count()
}

/// A connection for which no receive buffers are left is refused with a reason; those that are there go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_refused() {
    if device().is_none() {
        return;
    }
    let options = RdmaOptions { recv_buffers: 2 * MIN_SHARE, ..RdmaOptions::default() };
    let (client, server) = (fabric(RdmaOptions::default()), fabric(options));
    let mut listener = server.listen(URI).await.unwrap();
    let mut first = pair(&client, &mut listener).await.unwrap();
    let mut second = pair(&client, &mut listener).await.unwrap();
    let uri = listener.local_uri().to_string();
    let third = within(async {
        let accepting = tokio::spawn(async move { listener.accept().await.map(drop) });
        let third = client.connect(&uri).await.map(drop);
        accepting.abort();
        third
    })
    .await;
    let Err(Error::NoTransport(report)) = third else { panic!("{third:?}") };
    assert!(report.to_string().contains("no_receive_buffers"), "{report}");
    for len in [10, 5_000, 500_000] {
        echo(&mut first, len).await;
        echo(&mut second, len).await;
    }
}

/// Whoever is dropped goes on to say how far it is, for what the other side streams to it. That must not cost the long message
/// that it had accepted, which the other side still reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_message_arrives_although_the_other_side_streams_to_its_sender() {
    if device().is_none() {
        return;
    }
    let (client, server) = (fabric(RdmaOptions::default()), fabric(RdmaOptions::default()));
    let mut listener = server.listen(URI).await.unwrap();
    for round in 0..20 {
        let (client, mut server) = pair(&client, &mut listener).await.unwrap();
        let sender = server.sender();
        let streaming = tokio::spawn(async move {
            // Until the other side is gone.
            while sender.send(Message::from(vec![2; 1000])).await.is_ok() {}
        });
        tokio::time::sleep(Duration::from_millis(round)).await;
        within(async {
            client.send(Message::from(vec![1; 1 << 20])).await.unwrap();
            drop(client);
            let got = server.recv().await.unwrap().expect("what was accepted");
            assert!(got == vec![1; 1 << 20][..]);
        })
        .await;
        drop(server);
        within(streaming).await.unwrap();
    }
}
