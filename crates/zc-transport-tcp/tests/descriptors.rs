//! Alone in its process, since the limit is the process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::sync::Arc;

use common::*;
use rustix::process::{Resource, getrlimit, setrlimit};
use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

#[test]
fn a_listener_outlives_a_lack_of_descriptors() {
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
