//! Authentication: runs before any offer or descriptor leaves.

mod shared_secret;

use zc_core::transport::BoxFuture;

pub use self::shared_secret::{MIN_SECRET_BYTES, SharedSecret};

use crate::identity::PeerIdentity;

/// Authentication did not succeed.
///
/// ```
/// let refused = zc::AuthError::new("unknown key");
/// assert_eq!(refused.to_string(), "authentication failed: unknown key");
/// ```
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
///
/// ```
/// use zc::AuthStep;
///
/// match AuthStep::Accept(Some("orders".into())) {
///     AuthStep::Continue(bytes) => println!("{} bytes for the client", bytes.len()),
///     AuthStep::Accept(name) => assert_eq!(name.as_deref(), Some("orders")),
/// }
/// ```
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
///
/// ```
/// use zc::transport::BoxFuture;
/// use zc::{AuthClient, AuthError, AuthServer, AuthStep, Authenticator, PeerIdentity};
///
/// /// Shows a token, which says nothing about the server: a lesson, not a method to use.
/// struct Token;
///
/// impl Authenticator for Token {
///     fn method(&self) -> &str {
///         "token"
///     }
///     fn client(&self, _: &PeerIdentity) -> Box<dyn AuthClient> {
///         Box::new(Token)
///     }
///     fn server(&self, _: &PeerIdentity) -> Box<dyn AuthServer> {
///         Box::new(Token)
///     }
/// }
///
/// impl AuthClient for Token {
///     fn step<'a>(&'a mut self, _: Option<&'a [u8]>) -> BoxFuture<'a, Result<Vec<u8>, AuthError>> {
///         Box::pin(async { Ok(b"friend".to_vec()) })
///     }
///     fn accepted(&mut self) -> Result<Option<String>, AuthError> {
///         Ok(None)
///     }
/// }
///
/// impl AuthServer for Token {
///     fn step<'a>(&'a mut self, token: &'a [u8]) -> BoxFuture<'a, Result<AuthStep, AuthError>> {
///         Box::pin(async move {
///             match token {
///                 b"friend" => Ok(AuthStep::Accept(Some("a friend".into()))),
///                 _ => Err(AuthError::new("not a friend's token")),
///             }
///         })
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto_builder().authenticator(std::sync::Arc::new(Token)).build()?;
/// # let mut listener = fabric.listen("zc+mem://authenticator").await?;
/// # let (_client, server) = tokio::try_join!(fabric.connect("zc+mem://authenticator"), listener.accept())?;
/// assert_eq!(server.peer().authenticated.as_deref(), Some("a friend"));
/// # Ok(()) }
/// ```
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
///
/// ```
/// use zc::transport::BoxFuture;
/// use zc::{AuthClient, AuthError};
///
/// struct Quotes(String);
///
/// impl AuthClient for Quotes {
///     fn step<'a>(&'a mut self, from_server: Option<&'a [u8]>) -> BoxFuture<'a, Result<Vec<u8>, AuthError>> {
///         Box::pin(async move {
///             match from_server {
///                 None => Ok(self.0.clone().into_bytes()),
///                 Some(_) => Err(AuthError::new("the server has nothing to ask")),
///             }
///         })
///     }
///     fn accepted(&mut self) -> Result<Option<String>, AuthError> {
///         Ok(None) // the server has proved nothing
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// assert_eq!(Quotes("sesame".into()).step(None).await.unwrap(), b"sesame");
/// # }
/// ```
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
///
/// ```
/// use zc::transport::BoxFuture;
/// use zc::{AuthError, AuthServer, AuthStep};
///
/// struct Expects(&'static [u8]);
///
/// impl AuthServer for Expects {
///     fn step<'a>(&'a mut self, from_client: &'a [u8]) -> BoxFuture<'a, Result<AuthStep, AuthError>> {
///         let known = from_client == self.0;
///         let step = if known { Ok(AuthStep::Accept(None)) } else { Err(AuthError::new("wrong word")) };
///         Box::pin(async { step })
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// assert!(Expects(b"sesame").step(b"barley").await.is_err());
/// # }
/// ```
pub trait AuthServer: Send {
    /// Takes a message of the client.
    ///
    /// # Errors
    /// The client is refused.
    fn step<'a>(&'a mut self, from_client: &'a [u8]) -> BoxFuture<'a, Result<AuthStep, AuthError>>;
}
