//! Alone in their process and one after the other, since the limit is the process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::io::{ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use common::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zc_core::transport::*;
use zc_transport_tcp::{MAX_DESCRIPTORS, StreamLink, StreamLinks};

static LIMIT: Mutex<()> = Mutex::new(());

#[test]
fn a_listener_outlives_a_lack_of_descriptors() {
    let _alone = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
        let mut listener = StreamLinks.bind(&tcp(), &reactor).await.unwrap();
        let client = StreamLinks.connect(&listener.local(), &reactor).await.unwrap();
        let before = getrlimit(Resource::Nofile);
        let mut none = before;
        // The next descriptor would be the lowest free one, which is above the new limit.
        none.current = Some(3);
        setrlimit(Resource::Nofile, none).unwrap();
        let refused = std::future::poll_fn(|cx| listener.poll_accept(cx)).await;
        setrlimit(Resource::Nofile, before).unwrap();
        match refused {
            Err(LinkError::Io { operation: "accept", source }) => {
                assert_eq!(source.raw_os_error(), Some(libc::EMFILE));
            }
            other => panic!("{other:?}"),
        }
        // The connection waited in the kernel.
        std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        drop(client);
    });
}

/// So many descriptors with one byte; the kernel passes no more than 253.
fn send_many(to: impl AsFd, count: usize) {
    let one = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let all = vec![one.as_fd(); count];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&all)));
    let sent = rustix::net::sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::empty());
    assert_eq!(sent, Ok(1));
}

/// A peer that sends more than it may has lied, however few we could open. They are thrown away, and the link goes on.
#[test]
fn too_many_descriptors_are_not_our_shortage() {
    let _alone = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let (peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let io = TokioReactor::new().register(ours.into()).unwrap();
        let mut link = StreamLink::new(io, LinkAddr::UnixAbstract("pair".into()));
        for (max, free) in [(1, 2), (1, 100), (2, 100), (MAX_DESCRIPTORS, MAX_DESCRIPTORS + 1)] {
            send_many(&peer, 253);
            send_many(&peer, 1);
            let before = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(400), ..before }).unwrap();
            let mut taken: Vec<OwnedFd> =
                std::iter::from_fn(|| eventfd(0, EventfdFlags::CLOEXEC).ok()).collect();
            taken.truncate(taken.len() - free);
            let many = std::future::poll_fn(|cx| link.poll_recv_descriptors(cx, max)).await;
            drop(taken);
            setrlimit(Resource::Nofile, before).unwrap();
            let error = many.expect_err("too many");
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{max} of 253, {free} free: {error}");
            let one = std::future::poll_fn(|cx| link.poll_recv_descriptors(cx, max)).await;
            assert_eq!(one.unwrap().len(), 1);
        }
    });
}
