//! gRPC as tonic speaks it, over zc instead of HTTP/2.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

mod balance;
mod calls;
mod connected;
mod copies;
mod middleware;
mod services;
mod world;
