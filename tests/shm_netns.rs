//! Shared memory between two network namespaces: a path leads from one to the other, and a port proves no host.
//!
//! The other process is this program again; its namespace is its own, and dies with it.
#![cfg(all(feature = "tokio", feature = "tcp", feature = "shm"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use zc::transport::{LinkError, Unavailable};
use zc::{Connection, Fabric, Outcome, SelectionReport};
use zc_transport_shm::ShmTransport;
use zc_transport_tcp::TcpTransport;

#[path = "common/leaving.rs"]
mod leaving;
#[path = "common/skipped.rs"]
mod skipped;

use leaving::{Leaving, leave};
use skipped::skipped;

const GUARD: Duration = Duration::from_secs(60);
/// Set in the other process: where it connects to.
const URI: &str = "ZC_TEST_SHM_NETNS";

/// The process in another namespace; without the variable there is nothing to do.
#[tokio::test]
async fn other_process() {
    let Ok(uri) = std::env::var(URI) else { return };
    let connected = if uri.starts_with("zc://") {
        let fabric = Fabric::builder().links(Arc::new(Leaving)).transport(Arc::new(ShmTransport::default()));
        fabric.transport(Arc::new(TcpTransport)).build().unwrap().connect(&uri).await
    } else {
        if let Err(error) = leave() {
            println!("\nskipped: no network namespace: {error}");
            return;
        }
        Fabric::auto().unwrap().connect(&uri).await
    };
    let mut connection = match connected {
        Err(zc::Error::Open { source: LinkError::Io { operation: "unshare", source }, .. }) => {
            println!("\nskipped: no network namespace: {source}");
            return;
        }
        connected => connected.unwrap(),
    };
    println!("\n{}", connection.report());
    // Until the other side is done.
    while let Some(message) = connection.recv().await.unwrap() {
        connection.send(message).await.unwrap();
    }
}

async fn echoes(connection: &mut Connection) {
    for len in [60, 4000, 3 << 20] {
        let mut buf = connection.alloc(len).await.unwrap();
        buf.put_slice(&vec![len as u8; len]);
        connection.send(buf.freeze()).await.unwrap();
        assert!(connection.recv().await.unwrap().unwrap() == vec![len as u8; len][..]);
    }
}

/// What this side reports of a connection with the other process, and what that one says; `None` where it may not have a
/// namespace.
async fn with_other_namespace(uri: &str) -> Option<(SelectionReport, String)> {
    let mut listener = Fabric::auto().unwrap().listen(uri).await.unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "other_process", "--nocapture"])
        .env(URI, listener.local_uri().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = spawn_blocking(move || child.wait_with_output().unwrap());
    let served = async {
        let mut connection = listener.accept().await.unwrap();
        echoes(&mut connection).await;
        let report = connection.report().clone();
        connection.drain(GUARD).await.unwrap();
        report
    };
    let both = async {
        let (mut said, mut served) = (said, pin!(served));
        // One that may not begin never comes; one that is done may be gone before our last word is out.
        let (output, report) = tokio::select! {
            output = &mut said => (output.unwrap(), None),
            report = &mut served => (said.await.unwrap(), Some(report)),
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some((_, why)) = said.split_once("skipped: ") {
            skipped("another network namespace", why.lines().next().unwrap_or_default());
            return None;
        }
        assert!(output.status.success(), "{said}");
        let report = match report {
            Some(report) => report,
            None => served.await,
        };
        Some((report, said))
    };
    tokio::time::timeout(GUARD, both).await.expect("it hangs")
}

#[tokio::test]
async fn by_a_port_it_falls_back_and_says_why() {
    let Some((report, said)) = with_other_namespace("zc://127.0.0.1:0").await else { return };
    assert_ne!(report.chosen(), "shm", "{report}");
    let shm = report.candidates().iter().find(|one| one.transport == "shm").unwrap();
    assert_eq!(shm.outcome, Outcome::Unavailable(Unavailable::DifferentNetns), "{report}");
    assert!(said.contains("different_netns") && said.contains("socket path"), "{said}");
}

#[tokio::test]
async fn by_a_path_it_shares_memory() {
    let dir = tempfile::Builder::new().prefix("zc-netns-").tempdir().unwrap();
    let done = with_other_namespace(&format!("zc+shm://{}", dir.path().join("s").display())).await;
    if let Some((report, _)) = done {
        assert_eq!(report.chosen(), "shm", "{report}");
    }
}
