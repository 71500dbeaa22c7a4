//! Which transport is chosen, and how a refusal explains itself.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::time::Duration;

use zc::transport::Unavailable;
use zc::{Connection, Error, Fabric, Outcome, Policy, Stage};

#[path = "common/streams.rs"]
mod streams;

use streams::is_stream;

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
    let error = refusal(try_connect(&Fabric::auto().unwrap(), "zc+own").await);
    assert_eq!(error.stage(), Some(Stage::Offers), "{error:?}");
    let Error::NoTransport(report) = &error else { panic!("{error:?}") };
    let own = report.candidates().iter().find(|candidate| candidate.transport == "own");
    assert!(matches!(own.unwrap().outcome, Outcome::Unavailable(_)), "{report}");
    assert!(!error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn the_clients_policy_forbids_streams() {
    let policy = Policy::default().with_override("^tcp,uring,shm").unwrap();
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
    assert_eq!(client.report().chosen(), "tcp");
    assert!(is_stream(server.report().chosen()), "the server may have another engine for the same stream");
    for connection in [&client, &server] {
        let report = connection.report();
        let chosen = report.chosen();
        let text = report.to_string();
        let line = text.lines().find(|line| line.starts_with(chosen)).unwrap();
        assert!(line.ends_with("chosen"), "{text}");
        let json = report.to_json();
        assert_eq!(json["chosen"], chosen);
        let candidates = json["candidates"].as_array().unwrap();
        assert_eq!(candidates.len(), report.candidates().len());
        let tcp = candidates.iter().find(|candidate| candidate["transport"] == chosen).unwrap();
        assert_eq!(tcp["outcome"], "chosen");
    }
}

#[tokio::test]
async fn what_was_asked_for_and_is_not_compiled_in_names_its_feature() {
    let policy = Policy::default().with_override("shm,rdma,own,tcp").unwrap();
    let fabric = Fabric::auto_builder().policy(policy).build().unwrap();
    assert_eq!(fabric.missing("tcp"), None);
    let (client, _server) = try_connect(&fabric, "zc").await.unwrap();
    let report = client.report();
    let found = |name| report.candidates().iter().find(|one| one.transport == name).unwrap().outcome.clone();
    for (name, feature) in [("shm", cfg!(feature = "shm")), ("rdma", cfg!(feature = "rdma"))] {
        let missing = fabric.missing(name);
        assert_eq!(missing.is_none(), feature);
        if let Some(why) = missing {
            assert_eq!(why, Unavailable::NotCompiled { feature: name });
            assert_eq!(why.remedy(), format!("build with the Cargo feature `{name}`"));
            assert_eq!(found(name), Outcome::Unavailable(why));
        }
    }
    // No feature of any build has it.
    let own = fabric.missing("own").unwrap();
    assert!(own.code() == "not_registered" && own.remedy().contains("`own`"), "{own}");
    assert!(matches!(found("own"), Outcome::Unavailable(_)));
}
