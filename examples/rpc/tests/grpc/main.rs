//! gRPC as tonic speaks it, over zc instead of HTTP/2.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

mod balance;
mod calls;
mod connected;
mod copies;
mod limits;
mod middleware;
mod services;
mod shutdown;
mod world;
