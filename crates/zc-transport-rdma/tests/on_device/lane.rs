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
    within(async { tokio::try_join!(client.connect(&uri), listener.accept()) }).await
}

pub(crate) async fn echo((client, server): &mut (Connection, Connection), len: usize) {
    within(async {
        let payload = vec![len as u8; len];
        client.send(Message::from(payload.clone())).await.unwrap();
        let got = server.recv().await.unwrap().unwrap();
        server.send(got).await.unwrap();
        match client.recv().await {
            Ok(back) => assert!(back.unwrap() == payload[..]),
            // The other side may know more.
            Err(error) => panic!("{error}; at the other side: {:?}", server.recv().await),
        }
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

/// How long it is, MiB: as long as the machine's memory allows, which has to hold it twice.
const LONGEST_MIB: &str = "ZC_RDMA_LONGEST_MIB";

/// As long as messages may be, as far as there is memory: each is read into one buffer of its length, by several requests at a time,
/// and none of it is copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_messages_arrive_whole() {
    if device().is_none() {
        return;
    }
    let mib: usize = std::env::var(LONGEST_MIB).map_or(64, |mib| mib.parse().unwrap());
    let len = mib << 20;
    // A message that no credit was given for leaves a share of the pool to others.
    let of_pool = || BufPool::builder().max_bytes(2 * len + (32 << 20)).build();
    let fabric = || {
        let transport = Arc::new(RdmaTransport::new(RdmaOptions::default()));
        fabric_over(transport).pool(of_pool()).build().unwrap()
    };
    let (client, server) = (fabric(), fabric());
    let mut listener = server.listen(URI).await.unwrap();
    let (client, mut server) = pair(&client, &mut listener).await.unwrap();
    let moved = async {
        let mut buf = client.alloc(len).await.unwrap();
        buf.unfilled_mut()[..len].iter_mut().enumerate().for_each(|(at, byte)| *byte = mark(at));
        buf.advance(len);
        let before = client.ledger();
        client.send(buf.freeze()).await.unwrap();
        let got = server.recv().await.unwrap().unwrap();
        assert_eq!((got.len(), got.segments().len()), (len, 1));
        let wrong = got.segments()[0].iter().enumerate().position(|(at, byte)| *byte != mark(at));
        assert_eq!(wrong, None);
        assert_eq!(client.ledger().since(&before).copied_bytes(), 0);
        assert_eq!(server.ledger().copied_bytes(), 0);
    };
    tokio::time::timeout(LONG_LIMIT, moved).await.expect("it hangs");
}

/// A hang guard: an emulated device moves some 50 MB in a second.
const LONG_LIMIT: Duration = Duration::from_secs(600);

/// Of no period that a piece or a packet has.
fn mark(at: usize) -> u8 {
    (at % 251) as u8
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
