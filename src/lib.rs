//! Messages in pinned buffers over a connection, whatever carries them.
//!
//! A [`Fabric`] connects and listens; a [`Connection`] moves [`Message`]s. Which transport it uses is
//! decided per connection and explained by its [`SelectionReport`].
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fabric = zc::Fabric::auto()?;
//! let mut listener = fabric.listen("zc+mem://manual").await?;
//! let server = tokio::spawn(async move {
//!     let mut conn = listener.accept().await.unwrap();
//!     while let Ok(Some(message)) = conn.recv().await {
//!         conn.send(message).await.unwrap();
//!     }
//! });
//!
//! let mut conn = fabric.connect("zc+mem://manual").await?;
//! let mut buf = conn.alloc(64).await?; // memory that this connection sends without a copy
//! buf.put_slice(b"hello");
//! conn.send(buf.freeze()).await?;
//! assert_eq!(conn.recv().await?.unwrap(), b"hello"[..]);
//! drop(conn);
//! server.await?;
//! # Ok(()) }
//! ```
//!
//! # Errors
//! Every failed send answers [`SendError::delivery`]: whether the peer may have the message. An
//! [`Error`] of connecting names the stage that it stopped at.
//!
//! # Runtimes
//! With the feature `tokio` (default) everything runs on the caller's tokio runtime; outside of one,
//! operations return a typed error. Any other loop implements [`transport::Reactor`].

mod auth;
mod connection;
mod error;
mod event;
mod fabric;
mod identity;
#[cfg(feature = "tcp")]
mod mem;
#[cfg(feature = "metrics")]
mod metrics;
mod options;
mod policy;
mod reactor;
mod report;
#[cfg(feature = "testing")]
pub mod testing;
mod uri;
mod wireup;

pub use auth::{AuthClient, AuthError, AuthServer, AuthStep, Authenticator, MIN_SECRET_BYTES, SharedSecret};
pub use connection::{
    BYTE_STREAM_MESSAGE, ByteStream, Connection, ConnectionError, ConnectionStats, INBOX_SLACK, Permit,
    Receiver, Send, SendError, Sender, TrySendError,
};
pub use error::Error;
pub use event::{AcceptFailed, Closed, Connected, FellBack, HandshakeFailed, Observer, TracingObserver};
pub use fabric::{
    ACCEPT_RETRY, Fabric, FabricBuilder, Group, Listener, MAX_HANDSHAKES, MAX_READY, MIN_HANDSHAKE,
};
pub use identity::PeerIdentity;
#[cfg(feature = "tcp")]
pub use mem::{MEM_BACKLOG, MemLinks, MemTransport};
#[cfg(feature = "metrics")]
pub use metrics::MetricsObserver;
pub use options::{
    ConnectionOptions, DEFAULT_DRAIN, DEFAULT_KEEPALIVE_INTERVAL, DEFAULT_KEEPALIVE_TIMEOUT, DEFAULT_SPIN,
    DEFAULT_STAGE, DEFAULT_TOTAL, Deadlines, Polling,
};
pub use policy::{DEFAULT_ORDER, ENV_TRANSPORTS, Fallback, Policy, PolicyError};
#[cfg(feature = "tokio")]
pub use reactor::TokioReactor;
pub use report::{Candidate, Outcome, SelectionReport};
pub use uri::{MAX_URI, Uri, UriError};
pub use wireup::MAX_HALF_PROOFS;
pub use zc_core::memory::{BufPool, LedgerSnapshot, Message, PinnedBuf, PinnedBufMut};
pub use zc_core::transport::Completion;
pub use zc_core::wire::{CloseCode, Delivery, Stage};
pub use zc_core::{memory, transport, wire};
