//! HTTP requests and responses over zc connections, without HTTP/2: axum and tonic run on it unchanged.
//!
//! A [`Server`] serves any `tower_service::Service<http::Request<Body>>`, a [`Channel`] is one; between
//! them goes the small protocol of `docs/http.md`. Bodies stream both ways, with trailers, and a
//! body's bytes are the memory that the connection received them in.
//!
//! ```
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fabric = zc::Fabric::auto()?;
//! let listener = fabric.listen("zc+mem://http").await?;
//! let hello = service_fn(|request: http::Request<zc_http::Body>| async move {
//!     Ok::<_, std::convert::Infallible>(http::Response::new(request.into_body()))
//! });
//! tokio::spawn(zc_http::Server::new().serve(listener, hello));
//!
//! let channel = zc_http::Channel::new(&fabric, "zc+mem://http")?;
//! let request = http::Request::post("/echo").body(Full::new(bytes::Bytes::from("hello")))?;
//! let response = channel.oneshot(request).await?;
//! assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");
//! # Ok(()) }
//! ```
//!
//! # Errors
//! A failed call says whether it may have executed ([`Error::executed`]). With the feature `tonic` it
//! also carries the `tonic::Status` that a gRPC caller should see.
//!
//! # Runtimes
//! This crate needs a tokio runtime.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests make their own bytes"))]

mod body;
mod channel;
mod deadline;
mod driver;
mod error;
mod link;
mod listening;
mod proto;
mod send_body;
mod server;
#[cfg(feature = "hyper")]
mod stream;

pub use body::Body;
pub use channel::{Channel, ChannelBuilder, Protocol, ResponseFuture, Siblings};
pub use error::{BoxError, Error, ErrorKind, Executed};
pub use listening::Listening;
pub use proto::{Code, Limits, Violation};
pub use server::{PeerInfo, Server};
#[cfg(feature = "hyper")]
pub use stream::{Connecting, ConnectorIo, ZcConnector, ZcIncoming, ZcStream};
