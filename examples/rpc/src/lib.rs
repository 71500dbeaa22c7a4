//! What the examples share: the generated service, its implementation, and what a benchmark needs.
//!
#![doc = include_str!("../../../docs/tonic.md")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "programs")]

pub mod bench;
pub mod cli;
pub mod counted;
pub mod echo;
pub mod grpc;
pub mod inproc;
pub mod items;
pub mod process;
pub mod raw;

/// What the service's `.proto` generates.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod pb {
    tonic::include_proto!("zc.examples.echo.v1");

    /// For the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.bin"));
}

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
