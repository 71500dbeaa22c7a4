//! A listener at a path that is killed leaves its socket there: who listens next takes its place.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use zc::{Connection, Fabric};
use zc_transport_tcp::StreamLinks;

use crate::common::process::Killed;
use crate::common::{body, run};
use crate::transport::ShmTransport;

/// The listener that is to be killed is told its address by this.
const LISTEN_AT: &str = "ZC_SHM_TEST_LISTEN_AT";

fn fabric() -> Fabric {
    let builder = Fabric::builder().transport(Arc::new(ShmTransport::default())).links(Arc::new(StreamLinks));
    builder.build().unwrap()
}

async fn echo(connection: &mut Connection) {
    let got = connection.recv().await.unwrap().unwrap();
    connection.send(got).await.unwrap();
}

async fn is_answered(connection: &mut Connection) {
    connection.send(body(10_000, 1)).await.unwrap();
    assert!(connection.recv().await.unwrap().unwrap() == body(10_000, 1)[..]);
}

#[test]
fn a_killed_listener_is_replaced_at_its_path() {
    if let Ok(uri) = std::env::var(LISTEN_AT) {
        return run(async {
            let mut listener = fabric().listen(&uri).await.unwrap();
            let mut connection = listener.accept().await.unwrap();
            echo(&mut connection).await;
            std::future::pending().await
        });
    }
    run(async {
        let folder = tempfile::Builder::new().prefix("zc-shm-path-").tempdir().unwrap();
        let path = folder.path().join("socket");
        let uri = format!("zc+shm://{}", path.display());
        let mut first = Command::new(std::env::current_exe().unwrap());
        first.args(["--exact", "path_tests::a_killed_listener_is_replaced_at_its_path"]);
        let first = Killed(first.env(LISTEN_AT, &uri).stdout(Stdio::null()).spawn().unwrap());
        let mut connection = loop {
            match fabric().connect(&uri).await {
                Ok(connection) => break connection,
                // It has not begun.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        is_answered(&mut connection).await;
        assert!(fabric().listen(&uri).await.is_err(), "two listen at one path");
        drop(first);
        assert!(connection.recv().await.is_err());
        assert!(path.exists() && fabric().connect(&uri).await.is_err(), "it is left, and nobody listens");

        let mut next = fabric().listen(&uri).await.unwrap();
        let (client, server) = futures::future::join(fabric().connect(&uri), next.accept()).await;
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        assert_eq!(client.report().chosen(), "shm");
        futures::future::join(is_answered(&mut client), echo(&mut server)).await;
        drop(next);
        assert!(!path.exists(), "one that ends takes its socket along");
    });
}
