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
//! # Which transport
//! Cargo features decide what is compiled in: by default `tcp` (TCP, Unix sockets, links inside one process) and `shm` (shared
//! memory between processes of one host), besides `uring` (the same streams by io_uring, where the kernel has it), `rdma`
//! (queue pairs of RDMA devices, with a library that is loaded at run time) and `xdp` (messages by AF_XDP, where the address
//! names an interface, or by UDP).
//! [`Fabric::auto`] uses all of it, [`Fabric::builder`] only
//! the transports that are named, and the control link itself when none comes up. A `zc://` address lets the [`Policy`] choose, `zc+tcp://` and the like name one
//! ([`Uri`]); `ZC_TRANSPORTS=tcp` or `^shm` in the environment has the last word. The
//! [`SelectionReport`] holds each candidate with the typed reason why it was not taken, and a
//! remedy; nothing falls back in silence ([`Fallback`]).
//!
//! # Memory
//! [`Connection::alloc`] gives memory that this connection sends without a copy, [`Group::alloc`] such for
//! many connections. `Bytes` convert to and from [`PinnedBuf`] without a copy and can be sent, too; what
//! a transport must copy is counted in [`Connection::ledger`]. A received [`Message`] is lent: hold it as long as you
//! like. Past the lease budget ([`transport::LaneLimits`]) messages are copied out, then this connection waits; no other does.
//!
//! # Sending and receiving
//! [`Sender`]s are cloned, one for each task, and take turns; the [`Receiver`] is one. A send is done when the lane
//! owns the message, or later, if a [`Completion`] asks for it. Every future may be dropped at any point: no message is
//! lost, none is sent by half. [`Connection::drain`] waits until the peer has all, [`Connection::close`] says why it
//! ends, [`ByteStream`] is for code that wants bytes. A connection never reconnects by itself.
//!
//! # Errors
//! Every failed send answers [`SendError::delivery`]: whether the peer may have the message. An
//! [`Error`] of connecting names the stage that it stopped at.
//!
//! # What happens
//! An [`Observer`] is told; [`TracingObserver`] is the default, `MetricsObserver` (feature `metrics`) hands it to the crate
//! `metrics`. [`Connection::stats`] and [`Connection::ledger`] are for a look in between.
//!
//! # Security
//! Links are not encrypted and, without an [`Authenticator`], not authenticated. Peers are taken for hostile in
//! everything that they say. Processes of our own user and user namespace may lend us memory that they could still write;
//! [`Policy::trust_nobody`] has it copied out.
//!
//! # Runtimes
//! With the feature `tokio` (default) everything runs on the caller's tokio runtime; outside of one,
//! operations return a typed error. Any other loop implements [`transport::Reactor`].
//!
//! # Testing
//! With the feature `testing`, `zc::testing::pair` makes two connected ends, and lanes can be made slow, stalled or
//! broken on purpose, the same way each time under tokio's paused clock.

mod auth;
mod connection;
mod cpus;
mod error;
mod event;
mod fabric;
mod identity;
#[cfg(feature = "tcp")]
mod mem;
#[cfg(feature = "metrics")]
mod metrics;
mod options;
mod pause;
mod policy;
mod reactor;
mod remote;
mod report;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
mod uri;
mod user_namespace;
mod wireup;

pub use auth::{AuthClient, AuthError, AuthServer, AuthStep, Authenticator, MIN_SECRET_BYTES, SharedSecret};
pub use connection::{
    BYTE_STREAM_MESSAGE, ByteStream, Connection, ConnectionError, ConnectionStats, FILE_CHUNK_BYTES,
    FileFault, FileSent, FileWay, INBOX_SLACK, MAX_FILE_READS, MAX_FILE_THREADS, MAX_PIPES,
    MAX_PIPES_PER_FILE, MAX_REMOTE_READ, Permit, Receiver, RemoteMemory, SPLICE_MIN_BYTES, Send, SendError,
    SendFile, SendFileError, SendFileOptions, Sender, TrySendError,
};
pub use error::Error;
pub use event::{AcceptFailed, Closed, Connected, FellBack, HandshakeFailed, Observer, TracingObserver};
pub use fabric::{
    Fabric, FabricBuilder, Group, Incoming, Listener, MAX_HANDSHAKES, MAX_READY, MIN_HANDSHAKE,
    MixedListener, PLAIN, PLAIN_KEEPALIVE_IDLE, PLAIN_KEEPALIVE_INTERVAL, PLAIN_KEEPALIVE_PROBES,
    PlainStream,
};
pub use identity::PeerIdentity;
#[cfg(feature = "tcp")]
pub use mem::{MEM_BACKLOG, MemLinks, MemTransport};
#[cfg(feature = "metrics")]
pub use metrics::MetricsObserver;
pub use options::{
    ConnectionOptions, DEFAULT_DRAIN, DEFAULT_KEEPALIVE_INTERVAL, DEFAULT_KEEPALIVE_TIMEOUT, DEFAULT_SPIN,
    DEFAULT_STAGE, DEFAULT_TOTAL, Deadlines, FIRST_SPIN, Polling,
};
pub use pause::ACCEPT_RETRY;
pub use policy::{DEFAULT_ORDER, ENV_TRANSPORTS, Fallback, Policy, PolicyError};
#[cfg(feature = "tokio")]
pub use reactor::TokioReactor;
pub use remote::{
    Export, GrantError, MAX_GRANTS, MAX_NOTIFICATIONS, MAX_NOTIFICATIONS_PER_CONNECTION, Notification,
    RemoteError, RemoteFault,
};
pub use report::{Candidate, Outcome, SelectionReport};
pub use uri::{MAX_URI, Uri, UriError};
pub use wireup::MAX_HALF_PROOFS;
pub use zc_core::memory::{BufPool, LedgerSnapshot, Message, PinnedBuf, PinnedBufMut};
pub use zc_core::transport::{Access, Completion, RemoteKey};
pub use zc_core::wire::{CloseCode, Delivery, Stage};
pub use zc_core::{memory, transport, wire};
