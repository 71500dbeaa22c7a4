//! Messages by AF_XDP or UDP: which carries a connection and why.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::time::Duration;

use zc::transport::Unavailable;
use zc::{Connection, Error, Fabric, Outcome, Policy};

/// A guard against hanging, no bound on speed.
const GUARD: Duration = Duration::from_secs(120);

async fn try_pair(policy: Policy, uri: &str) -> Result<(Connection, Connection), Error> {
    let fabric = || Fabric::auto_builder().policy(policy.clone()).build().unwrap();
    let mut listener = fabric().listen(uri).await?;
    let uri = listener.local_uri().to_string();
    let client = fabric();
    let pair = async { tokio::try_join!(client.connect(&uri), listener.accept()) };
    tokio::time::timeout(GUARD, pair).await.expect("it hangs")
}

async fn pair(policy: Policy, uri: &str) -> (Connection, Connection) {
    try_pair(policy, uri).await.unwrap()
}

fn why<'a>(connection: &'a Connection, name: &str) -> &'a Unavailable {
    let candidates = connection.report().candidates();
    let candidate = candidates.iter().find(|candidate| candidate.transport == name).unwrap();
    match &candidate.outcome {
        Outcome::Unavailable(why) => why,
        outcome => panic!("{name}: {outcome:?}"),
    }
}

async fn talk(client: &mut Connection, server: &mut Connection) {
    let talk = async {
        for len in [0, 5, 3000, 1 << 20] {
            client.send(vec![7; len]).await.unwrap();
            let message = server.recv().await.unwrap().unwrap();
            server.send(message).await.unwrap();
            assert!(client.recv().await.unwrap().unwrap() == vec![7; len][..]);
        }
    };
    tokio::time::timeout(GUARD, talk).await.expect("it hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_by_its_own_name() {
    for uri in ["zc+udp://127.0.0.1:0", "zc+udp://[::1]:0"] {
        let (mut client, mut server) = pair(Policy::default(), uri).await;
        assert_eq!((client.report().chosen(), server.report().chosen()), ("udp", "udp"));
        talk(&mut client, &mut server).await;
    }
}

/// The loopback interface has no Ethernet address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_stands_in_for_an_interface_that_can_not() {
    let (mut client, mut server) = pair(Policy::default(), "zc+xdp://127.0.0.1:0?if=zc-none").await;
    assert_eq!(client.report().chosen(), "udp");
    let refused = why(&client, "xdp");
    assert!(!refused.remedy().is_empty());
    assert!(matches!(refused.code(), "no_device" | "missing_capability"), "{refused}");
    talk(&mut client, &mut server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_carry_what_neither_can() {
    let policy = Policy::default().with_override("^udp,shm").unwrap();
    let (mut client, mut server) = pair(policy, "zc://127.0.0.1:0?if=zc-none").await;
    assert!(matches!(client.report().chosen(), "tcp" | "uring"));
    assert!(matches!(why(&client, "udp"), Unavailable::ForbiddenByPolicy));
    talk(&mut client, &mut server).await;
}

/// Nobody asked for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_without_an_interface_means_neither() {
    let policy = Policy::default().with_override("^shm").unwrap();
    let (client, _server) = pair(policy, "zc://127.0.0.1:0").await;
    assert!(matches!(client.report().chosen(), "tcp" | "uring"));
    for name in ["xdp", "udp"] {
        assert!(why(&client, name).is_expected(), "{}", why(&client, name));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_has_only_streams_is_no_peer() {
    let only = |names: &str| {
        let policy = Policy::default().with_override(names).unwrap();
        Fabric::auto_builder().policy(policy).build().unwrap()
    };
    let mut listener = only("tcp").listen("zc://127.0.0.1:0").await.unwrap();
    let uri = listener.local_uri().to_string().replace("zc://", "zc+udp://");
    let client = only("^shm");
    let accepting = tokio::spawn(async move { listener.accept().await.map(drop) });
    let connected = tokio::time::timeout(GUARD, client.connect(&uri)).await.unwrap();
    accepting.abort();
    let Err(Error::NoTransport(report)) = connected else { panic!("it connected, or failed otherwise") };
    assert!(report.to_string().contains("peer_lacks"), "{report}");
}
