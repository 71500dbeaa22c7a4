//! Binding, connecting, names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;
#[path = "../../../tests/common/skipped.rs"]
mod skipped;

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::Arc;

use common::*;
use skipped::skipped;
use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

fn reactor() -> Arc<dyn Reactor> {
    Arc::new(TokioReactor::new())
}

#[test]
fn a_dead_socket_file_is_replaced_and_a_live_one_is_not() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let addr = LinkAddr::UnixPath(path.clone());
        // Dropping a std listener leaves its file behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let mut live = StreamLinks.bind(&addr, &reactor()).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = StreamLinks.bind(&addr, &reactor()).await;
        assert!(
            matches!(second, Err(LinkError::Io { operation: "bind", source }) if source.kind() == ErrorKind::AddrInUse)
        );
        // The probe left a connection behind at most; the listener still works.
        let _client = StreamLinks.connect(&addr, &reactor()).await.unwrap();
        std::future::poll_fn(|cx| live.poll_accept(cx)).await.unwrap();
        // A file that took its place is not removed with the listener.
        std::fs::remove_file(&path).unwrap();
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(live);
        assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
        drop(other);
    });
}

#[test]
fn an_ordinary_file_is_never_removed() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, "precious").unwrap();
        assert!(StreamLinks.bind(&LinkAddr::UnixPath(path.clone()), &reactor()).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    });
}

#[test]
fn names_are_looked_up_off_the_reactor() {
    run(async {
        let mut listener = StreamLinks.bind(&LinkAddr::Tcp("localhost:0".into()), &reactor()).await.unwrap();
        let LinkAddr::Tcp(at) = listener.local() else { panic!("not TCP") };
        let port = at.rsplit(':').next().unwrap().to_owned();
        // More at a time than there are threads to look them up.
        let addr = LinkAddr::Tcp(format!("localhost:{port}"));
        let reactor = reactor();
        let many = futures::future::join_all((0..40).map(|_| StreamLinks.connect(&addr, &reactor)));
        let accepted = async {
            for _ in 0..40 {
                std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
            }
        };
        let (links, ()) = futures::future::join(many, accepted).await;
        assert!(links.into_iter().all(|link| link.is_ok()));
        for bad in ["localhost", "localhost:http-not", "no..name:80", ""] {
            let result = StreamLinks.connect(&LinkAddr::Tcp(bad.into()), &reactor).await;
            assert!(matches!(result, Err(LinkError::Address(_))), "{bad}: {:?}", result.err());
        }
    });
}

#[test]
fn nobody_there_is_an_error() {
    run(async {
        // Taken, and nobody listens.
        let taken = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        taken.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let nobody = taken.local_addr().unwrap().as_socket().unwrap();
        let refused = StreamLinks.connect(&LinkAddr::Tcp(nobody.to_string()), &reactor()).await;
        assert!(
            matches!(refused, Err(LinkError::Io { source, .. }) if source.kind() == ErrorKind::ConnectionRefused)
        );
        let nowhere = LinkAddr::UnixAbstract(format!("zc-nobody-{}", std::process::id()));
        assert!(StreamLinks.connect(&nowhere, &reactor()).await.is_err());
    });
}

/// Asks a child in a process namespace of its own who we are: we are not visible there.
#[test]
fn a_peer_in_another_process_namespace_has_no_pid() {
    const PATH: &str = "ZC_TEST_OTHER_NAMESPACE";
    if let Some(path) = std::env::var_os(PATH) {
        return run(async {
            let link = StreamLinks.connect(&LinkAddr::UnixPath(path.into()), &reactor()).await.unwrap();
            assert_eq!(link.peer_cred().expect("the kernel knows who listens").pid, 0);
        });
    }
    let unshare = || {
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-current-user", "--pid", "--fork", "--kill-child"]);
        command
    };
    if !unshare().arg("true").output().is_ok_and(|done| done.status.success()) {
        return skipped("a peer in another process namespace", "none can be made here");
    }
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = StreamLinks.bind(&LinkAddr::UnixPath(path.clone()), &reactor()).await.unwrap();
        let mut child = unshare();
        child.arg(std::env::current_exe().unwrap()).env(PATH, path);
        let done =
            child.args(["--exact", "a_peer_in_another_process_namespace_has_no_pid"]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    });
}

#[test]
fn a_socket_that_was_never_connected_has_no_peer() {
    run(async {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None);
        let io = reactor().register(socket.unwrap()).unwrap();
        let link = zc_transport_tcp::StreamLink::new(io, LinkAddr::UnixAbstract("nobody".into()));
        assert_eq!(link.peer_cred(), None);
    });
}
