//! The same-host proof between processes: of one user, of two users, in two network namespaces.
//!
//! Children are this program again, with a variable that says what to be; they end when the connection does.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "test helpers")]

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::task::spawn_blocking;
use zc::transport::{LinkError, LinkProvider, Trust, Unavailable};
use zc::{Error, Fabric, FabricBuilder, Outcome, Policy, SelectionReport};

#[path = "common/another_user.rs"]
mod another_user;
#[path = "common/leaving.rs"]
mod leaving;
#[path = "common/passed.rs"]
mod passed;
#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/streams.rs"]
mod streams;

use another_user::{AnotherUser, can_be_started};
use leaving::Leaving;
use passed::{GUARD, guarded, outcome, passing, with};
use skipped::skipped;
use streams::is_stream;

const NOBODY: u32 = 65534;
const TCP: &str = "zc://127.0.0.1:0";

/// The other process of the next test; without the variable there is nothing to do.
#[tokio::test]
async fn peer_process() {
    let Ok(uri) = std::env::var("ZC_TEST_WIREUP_URI") else { return };
    let mut connection = passing().build().unwrap().connect(&uri).await.unwrap();
    assert_eq!(connection.report().chosen(), "passed", "{}", connection.report());
    assert_eq!(
        connection.peer().cred.unwrap().pid,
        rustix::process::getppid().unwrap().as_raw_nonzero().get()
    );
    let message = connection.recv().await.unwrap().unwrap();
    connection.send(message).await.unwrap();
    connection.drain(GUARD).await.unwrap();
}

#[tokio::test]
async fn descriptors_travel_between_processes_after_the_proof() {
    let mut listener = passing().build().unwrap().listen(TCP).await.unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "peer_process", "--nocapture"])
        .env("ZC_TEST_WIREUP_URI", listener.local_uri().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let test = async {
        let mut connection = listener.accept().await.unwrap();
        assert_eq!(connection.report().chosen(), "passed", "{}", connection.report());
        let cred = connection.peer().cred.unwrap();
        assert_eq!(cred.pid.unsigned_abs(), child.id());
        connection.send(&b"ping"[..]).await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), b"ping"[..]);
        assert!(connection.recv().await.unwrap().is_none());
    };
    let done = tokio::time::timeout(GUARD, test).await;
    if done.is_err() {
        let _ = child.kill();
    }
    assert!(child.wait().unwrap().success());
    done.expect("it hangs");
}

fn refused(report: &SelectionReport) -> Unavailable {
    match outcome(report, "passed") {
        Outcome::Unavailable(why) => why,
        other => panic!("{other:?} in\n{report}"),
    }
}

/// Whether there can be a process of another user.
fn has_another_user(what: &str) -> bool {
    can_be_started(what, &[NOBODY])
}

fn of_another_user(what: &str) -> AnotherUser {
    AnotherUser::start(NOBODY, "other_user_process", "ZC_TEST_OTHER_USER", what)
}

/// The process of another user; without the variable there is nothing to do.
#[tokio::test]
async fn other_user_process() {
    let Ok(what) = std::env::var("ZC_TEST_OTHER_USER") else { return };
    let fabric = with(false, Trust::Untrusted).build().unwrap();
    if let Some(uri) = what.strip_prefix("listen ") {
        let mut listener = fabric.listen(uri).await.unwrap();
        println!("uri={}", listener.local_uri());
        // Until the parent is done, or gone.
        let parent = spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        let serving = async {
            let mut connections = Vec::new();
            while let Ok(connection) = listener.accept().await {
                connection.send(connection.report().to_string().into_bytes()).await.unwrap();
                connections.push(connection);
            }
        };
        futures::future::select(std::pin::pin!(serving), parent).await;
        return;
    }
    match fabric.connect(&what).await {
        Ok(mut connection) => {
            println!("\n{}", connection.report());
            let message = connection.recv().await.unwrap().unwrap();
            connection.send(message).await.unwrap();
            connection.drain(GUARD).await.unwrap();
        }
        Err(error) => println!("\n{error}"),
    }
}

#[tokio::test]
async fn another_user_gets_no_descriptors_unless_the_policy_accepts_it() {
    if !has_another_user("a policy that accepts it") {
        return;
    }
    let accepting = Policy::default().prefer(["passed"]).accept_uids([NOBODY]);
    for (server, accepts) in [(passing(), false), (with(false, Trust::Untrusted).policy(accepting), true)] {
        let mut listener = server.build().unwrap().listen(TCP).await.unwrap();
        let child = of_another_user(&listener.local_uri().to_string());
        let mut connection = guarded(listener.accept()).await.unwrap();
        let chosen = connection.report().chosen();
        assert!(if accepts { chosen == "passed" } else { is_stream(chosen) }, "{}", connection.report());
        if !accepts {
            assert_eq!(refused(connection.report()), Unavailable::PeerUid { uid: NOBODY });
            assert_eq!(connection.peer().cred, None);
        } else {
            assert_eq!(connection.peer().cred.unwrap().uid, NOBODY);
        }
        connection.send(&b"ping"[..]).await.unwrap();
        assert_eq!(guarded(connection.recv()).await.unwrap().unwrap(), b"ping"[..]);
        drop(connection);
        let said = guarded(child.rest()).await;
        assert_eq!(said.contains("uid_refused (65534)"), !accepts, "{said}");
    }
}

#[tokio::test]
async fn a_server_of_another_user_gets_no_descriptors() {
    if !has_another_user("a server of another user") {
        return;
    }
    let mut child = of_another_user(&format!("listen {TCP}"));
    let uri = guarded(child.says("uri=")).await;
    let mut connection = guarded(passing().build().unwrap().connect(&uri)).await.unwrap();
    assert!(is_stream(connection.report().chosen()));
    assert_eq!(refused(connection.report()), Unavailable::PeerUid { uid: NOBODY });
    let message = guarded(connection.recv()).await.unwrap().unwrap();
    let bytes: Vec<u8> = message.segments().iter().flat_map(|segment| segment.iter().copied()).collect();
    let theirs = String::from_utf8(bytes).unwrap();
    assert!(theirs.contains("host_not_proved"), "{theirs}");
    child.let_go();
    guarded(child.rest()).await;
}

#[tokio::test]
async fn an_abstract_name_serves_accepted_users_only() {
    if !has_another_user("an abstract name") {
        return;
    }
    let name = |what: &str| format!("zc+unix://@places-{what}-{}", std::process::id());
    // The server refuses, and says so.
    let mut listener = Fabric::auto().unwrap().listen(&name("server")).await.unwrap();
    let child = of_another_user(&name("server"));
    let said = guarded(child.rest()).await;
    assert!(said.contains("no transport carries") && said.contains("peer_uid (65534)"), "{said}");
    assert!(futures::FutureExt::now_or_never(listener.accept()).is_none());

    // A squatter on the name hears nothing.
    let mut squatter = of_another_user(&format!("listen {}", name("squatted")));
    let uri = guarded(squatter.says("uri=")).await;
    let error = guarded(Fabric::auto().unwrap().connect(&uri)).await.err().unwrap();
    let Error::NoTransport(report) = &error else { panic!("{error}") };
    assert_eq!(outcome(report, "tcp"), Outcome::Unavailable(Unavailable::PeerUid { uid: NOBODY }));
    squatter.let_go();
    guarded(squatter.rest()).await;
}

/// The process that leaves its network namespace, which dies with it.
#[tokio::test]
async fn other_namespace_process() {
    let Ok(uri) = std::env::var("ZC_TEST_OTHER_NETNS") else { return };
    let fabric = with_links(Arc::new(Leaving)).build().unwrap();
    match fabric.connect(&uri).await {
        Err(Error::Open { source: LinkError::Io { operation: "unshare", source }, .. }) => {
            println!("\nskipped: no network namespace: {source}");
        }
        connected => {
            let mut connection = connected.unwrap();
            println!("\n{}", connection.report());
            assert!(connection.recv().await.unwrap().is_none());
        }
    }
}

fn with_links(links: Arc<dyn LinkProvider>) -> FabricBuilder {
    let passed = passed::Passed { torn: false, trust: Trust::Cooperative };
    Fabric::builder()
        .links(links)
        .transport(Arc::new(passed))
        .transport(Arc::new(zc_transport_tcp::TcpTransport))
}

#[tokio::test]
async fn another_network_namespace_is_told_apart_from_another_host() {
    let mut listener = passing().build().unwrap().listen(TCP).await.unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "other_namespace_process", "--nocapture"])
        .env("ZC_TEST_OTHER_NETNS", listener.local_uri().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = spawn_blocking(move || child.wait_with_output().unwrap());
    let accepted = async {
        let connection = listener.accept().await.unwrap();
        assert!(is_stream(connection.report().chosen()));
        assert_eq!(refused(connection.report()), Unavailable::DifferentNetns);
        connection.drain(GUARD).await.unwrap();
        futures::future::pending::<()>().await;
    };
    let futures::future::Either::Right((output, _)) =
        guarded(futures::future::select(std::pin::pin!(accepted), said)).await
    else {
        unreachable!("it waits for ever")
    };
    let output = output.unwrap();
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    if let Some((_, why)) = said.split_once("skipped: ") {
        return skipped("another network namespace", why.lines().next().unwrap_or_default());
    }
    assert!(said.contains("different_netns"), "{said}");
}
