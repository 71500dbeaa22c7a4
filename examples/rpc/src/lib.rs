//! What the examples share: the generated service, its implementation, and what a benchmark needs.
//!
//! # From tonic on TCP to tonic on zc in five lines
//! The `.proto`, the generated code, the service and its callers stay as they are. The lines that
//! differ, marked with `+`:
//!
//! ```
//! use zc_examples_rpc::echo;
//! use zc_examples_rpc::pb::{Payload, echo_client::EchoClient};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // - Server::builder().add_service(echo::service()).serve(address).await?;
//! let fabric = zc::Fabric::auto()?;                                           // +
//! let listener = fabric.listen("zc://127.0.0.1:0").await?;                    // +
//! # let uri = listener.local_uri().to_string();
//! tokio::spawn(zc_http::Server::new().serve(listener, echo::service()));      // +
//!
//! // - let channel = Endpoint::from_shared(uri)?.connect().await?;
//! let fabric = zc::Fabric::auto()?;                                           // +
//! let channel = zc_http::Channel::new(&fabric, &uri)?;                        // +
//! let mut client = EchoClient::new(channel);
//! let answer = client.unary(Payload { data: "hello".into() }).await?;
//! assert_eq!(answer.into_inner().data, "hello");
//! # Ok(()) }
//! ```
//!
//! With several services, pass `tonic::service::Routes`. `grpc-timeout` is honoured at both ends.
//!
//! # Old and new side by side
//! With `listen_mixed` in place of `listen`, the same port also serves clients on plain HTTP/2, and with
//! `Channel::builder().fall_back(true)` the client also calls servers that speak nothing else:
//!
//! ```
//! # use zc_examples_rpc::echo;
//! # use zc_examples_rpc::pb::{Payload, echo_client::EchoClient};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fabric = zc::Fabric::auto()?;
//! let listener = fabric.listen_mixed("zc+tcp://127.0.0.1:0").await?;
//! let uri = listener.local_uri().to_string();
//! tokio::spawn(zc_http::Server::new().serve(listener, echo::service()));
//!
//! // An old client knows nothing of zc.
//! let old = tonic::transport::Endpoint::from_shared(uri.replace("zc+tcp", "http"))?.connect().await?;
//! let new = zc_http::Channel::builder().fall_back(true).build(&fabric, &uri)?;
//! let payload = Payload { data: "hello".into() };
//! assert_eq!(EchoClient::new(old).unary(payload.clone()).await?.into_inner(), payload);
//! assert_eq!(EchoClient::new(new.clone()).unary(payload.clone()).await?.into_inner(), payload);
//! assert_eq!(new.protocol(), Some(zc_http::Protocol::ZcHttp));
//! # Ok(()) }
//! ```
//!
//! Who wants tonic's own server and channel on zc takes `zc_http::ZcIncoming` for `serve_with_incoming` and
//! `zc_http::ZcConnector` for `connect_with_connector`: HTTP/2 over zc, with all its copies.
//!
//! # What is copied where
//! zc-http hands body bytes on as they are, both ways; only a body of up to 1 KiB is put behind its
//! headers, and counted. What tonic does is the same whatever carries it: its codec encodes each message
//! into a buffer of its own, and gathers what arrives into another before decoding. A service that wants
//! neither copy takes messages from the connection itself, as `grpc_echo_raw` does.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "programs")]

pub mod bench;
pub mod cli;
pub mod counted;
pub mod echo;
pub mod grpc;
pub mod items;
pub mod process;

/// What the service's `.proto` generates.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod pb {
    tonic::include_proto!("zc.examples.echo.v1");

    /// For the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.bin"));
}

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
