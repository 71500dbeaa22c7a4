//! Peers that mean no good: servers to a channel, and clients on HTTP/2 to the port that serves both. Clients on zc-http
//! are in `zc-http`'s own tests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

mod http2;
mod server;

use std::time::Duration;

const HANG: Duration = Duration::from_secs(60);
