//! Which transport is chosen, and how a refusal explains itself.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::time::Duration;

use zc::transport::Unavailable;
use zc::{Connection, Error, Fabric, Outcome, Policy, Stage};

/// Lets a client try to connect to a server with every transport.
async fn try_connect(client: &Fabric, scheme: &str) -> Result<(Connection, Connection), Error> {
    let mut listener = Fabric::auto().unwrap().listen("zc://127.0.0.1:0").await.unwrap();
    let zc::transport::LinkAddr::Tcp(at) = listener.local_uri().addr().clone() else {
        panic!("not a TCP address")
    };
    let uri = format!("{scheme}://{at}");
    tokio::time::timeout(Duration::from_secs(60), async {
        let connect = std::pin::pin!(client.connect(&uri));
        let accept = std::pin::pin!(listener.accept());
        match futures::future::select(connect, accept).await {
            futures::future::Either::Left((connected, accept)) => {
                let connected = connected?;
                Ok((connected, accept.await?))
            }
            futures::future::Either::Right((accepted, connect)) => Ok((connect.await?, accepted?)),
        }
    })
    .await
    .expect("it hangs")
}

fn refusal(result: Result<(Connection, Connection), Error>) -> Error {
    match result {
        Ok(_) => panic!("it connected"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_transport_that_is_not_there_is_refused_at_the_offers() {
    let error = refusal(try_connect(&Fabric::auto().unwrap(), "zc+rdma").await);
    assert_eq!(error.stage(), Some(Stage::Offers), "{error:?}");
    let Error::NoTransport(report) = &error else { panic!("{error:?}") };
    let rdma = report.candidates().iter().find(|candidate| candidate.transport == "rdma");
    assert!(matches!(rdma.unwrap().outcome, Outcome::Unavailable(_)), "{report}");
    assert!(!error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn the_clients_policy_forbids_tcp() {
    let policy = Policy::default().with_override("^tcp,shm").unwrap();
    let fabric = Fabric::auto_builder().policy(policy).build().unwrap();
    let error = refusal(try_connect(&fabric, "zc").await);
    assert_eq!(error.stage(), Some(Stage::Offers), "{error:?}");
    let Error::NoTransport(report) = &error else { panic!("{error:?}") };
    let forbidden = Outcome::Unavailable(Unavailable::ForbiddenByPolicy);
    let tcp = report.candidates().iter().find(|candidate| candidate.transport == "tcp");
    assert_eq!(tcp.unwrap().outcome, forbidden, "{report}");
    assert!(!error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn the_report_of_a_good_connection() {
    let (client, server) = try_connect(&Fabric::auto().unwrap(), "zc+tcp").await.unwrap();
    for connection in [&client, &server] {
        let report = connection.report();
        assert_eq!(report.chosen(), "tcp");
        let text = report.to_string();
        let line = text.lines().find(|line| line.starts_with("tcp")).unwrap();
        assert!(line.ends_with("chosen"), "{text}");
        let json = report.to_json();
        assert_eq!(json["chosen"], "tcp");
        let candidates = json["candidates"].as_array().unwrap();
        assert_eq!(candidates.len(), report.candidates().len());
        let tcp = candidates.iter().find(|candidate| candidate["transport"] == "tcp").unwrap();
        assert_eq!(tcp["outcome"], "chosen");
    }
}

#[tokio::test]
async fn what_was_asked_for_and_is_not_compiled_in_names_its_feature() {
    let policy = Policy::default().with_override("shm,rdma,tcp").unwrap();
    let fabric = Fabric::auto_builder().policy(policy).build().unwrap();
    assert_eq!(fabric.missing("tcp"), None);
    let (client, _server) = try_connect(&fabric, "zc").await.unwrap();
    let report = client.report();
    let found = |name| report.candidates().iter().find(|one| one.transport == name).unwrap().outcome.clone();
    let missing = fabric.missing("shm");
    assert_eq!(missing.is_none(), cfg!(feature = "shm"));
    if let Some(why) = missing {
        assert_eq!(why, Unavailable::NotCompiled { feature: "shm" });
        assert_eq!(why.remedy(), "build with the Cargo feature `shm`");
        assert_eq!(found("shm"), Outcome::Unavailable(why));
    }
    // No feature of this build has it.
    let rdma = fabric.missing("rdma").unwrap();
    assert!(rdma.code() == "not_registered" && rdma.remedy().contains("`rdma`"), "{rdma}");
    assert!(matches!(found("rdma"), Outcome::Unavailable(_)));
}
