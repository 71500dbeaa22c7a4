//! Authentication: runs before any offer or descriptor leaves.

mod shared_secret;

use zc_core::transport::BoxFuture;

pub use self::shared_secret::{MIN_SECRET_BYTES, SharedSecret};

use crate::identity::PeerIdentity;

/// Authentication did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed: {reason}")]
pub struct AuthError {
    /// Why; it is not told to the peer.
    pub reason: String,
}

impl AuthError {
    /// The error for this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

/// What the server's side says after a message of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthStep {
    /// Send this and wait for the client's next message.
    Continue(Vec<u8>),
    /// The client is who it says, under this name if there is one.
    Accept(Option<String>),
}

/// A method of authentication.
///
/// The client speaks first, then they take turns, at most
/// [`MAX_AUTH_ROUNDS`](zc_core::wire::MAX_AUTH_ROUNDS) messages each, until the server accepts. Until then
/// no offer and no descriptor leaves either side. It proves who the peers are as they connect; what
/// follows on an unencrypted link is not protected by it. [`SharedSecret`] is one.
pub trait Authenticator: Send + Sync + 'static {
    /// The method's name, 1 to [`MAX_AUTH_METHOD`](zc_core::wire::MAX_AUTH_METHOD) bytes; it must be the
    /// same at both ends.
    fn method(&self) -> &str;
    /// One run on the connecting side. Nothing in `peer` is proven yet but `cred`.
    fn client(&self, peer: &PeerIdentity) -> Box<dyn AuthClient>;
    /// One run on the accepting side.
    fn server(&self, peer: &PeerIdentity) -> Box<dyn AuthServer>;
}

/// The connecting side of one run.
pub trait AuthClient: Send {
    /// The next message; `from_server` is `None` for the first.
    ///
    /// # Errors
    /// The server could not prove what it had to.
    fn step<'a>(&'a mut self, from_server: Option<&'a [u8]>) -> BoxFuture<'a, Result<Vec<u8>, AuthError>>;

    /// The server accepted. Returns the server's name, if it proved one.
    ///
    /// # Errors
    /// It accepted too early: before it had proved what it had to.
    fn accepted(&mut self) -> Result<Option<String>, AuthError>;
}

/// The accepting side of one run.
pub trait AuthServer: Send {
    /// Takes a message of the client.
    ///
    /// # Errors
    /// The client is refused.
    fn step<'a>(&'a mut self, from_client: &'a [u8]) -> BoxFuture<'a, Result<AuthStep, AuthError>>;
}
