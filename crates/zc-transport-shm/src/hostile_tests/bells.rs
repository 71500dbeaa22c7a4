//! Bells that are none, that would block, and that end.

use std::os::fd::OwnedFd;
use std::task::{Context, Waker};

use zc_core::transport::*;

use super::{join, send_own};
use crate::bell::PeerBell;
use crate::common::{body, data, run};

#[test]
fn bells_of_the_wrong_kind_are_refused() {
    use crate::bell::BellKind;
    let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(PeerBell::new(file(), BellKind::Eventfd).is_none());
    assert!(PeerBell::new(file(), BellKind::Socket).is_none());
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    assert!(PeerBell::new(pipe, BellKind::Eventfd).is_none());
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    assert!(PeerBell::new(bell, BellKind::Eventfd).is_some());
}

/// Only of a Unix socket do we know what a call does at worst.
#[test]
fn bells_that_are_other_sockets_are_refused() {
    use crate::bell::BellKind;
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(PeerBell::new(tcp.into(), BellKind::Socket).is_none());
    let (datagrams, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(PeerBell::new(datagrams.into(), BellKind::Socket).is_none());
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(PeerBell::new(stream.into(), BellKind::Socket).is_some());
}

/// A peer that clears `O_NONBLOCK` on our bell can't make us block.
#[test]
fn a_bell_never_blocks_its_owner() {
    run(async {
        for kind in [crate::bell::BellKind::Eventfd, crate::bell::BellKind::Socket] {
            let (bell, theirs) = crate::bell::Bell::new(kind, &crate::common::TokioReactor::new()).unwrap();
            let copy = rustix::io::fcntl_dupfd_cloexec(&theirs, 0).unwrap();
            let peer = PeerBell::new(theirs, kind).unwrap();
            peer.ring();
            std::future::poll_fn(|cx| bell.poll_rung(cx)).await.unwrap();
            rustix::fs::fcntl_setfl(&copy, rustix::fs::OFlags::empty()).unwrap();
            peer.ring();
            std::future::poll_fn(|cx| bell.poll_rung(cx)).await.unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            assert!(bell.poll_rung(&mut cx).is_pending());
        }
    });
}

/// So it is when a stranger's bell ends.
#[test]
fn a_bell_that_ends_is_the_end_of_the_lane() {
    run(async {
        let (mut good, mut evil) = join(Trust::Untrusted).await;
        let keep = send_own(&mut good, 4000).await;
        evil.theirs.clear();
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::PeerGone(_)), "{error}");
        assert!(good.send(data(2, body(9, 0))).await.is_err());
        assert!(keep.try_into_mut().is_err(), "writable while the peer reads it");
    });
}
