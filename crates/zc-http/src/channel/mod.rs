//! The client: a service that makes calls over one connection, and opens another when that is gone.

mod back_off;
mod call;
mod connector;
#[cfg(feature = "hyper")]
mod greeted;
#[cfg(feature = "hyper")]
mod http2;
mod siblings;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::{Request, Response};
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tower_service::Service;

use self::call::call;
use self::connector::{Connector, Target, Up};
pub use self::siblings::Siblings;
use crate::body::Body;
use crate::deadline::Due;
use crate::error::{BoxError, Error};
use crate::proto::Limits;

/// The longest that the peer may take for its first frame, unless set.
const DEFAULT_GREETING: Duration = Duration::from_secs(5);

/// Makes calls. Clones share one connection; generated tonic clients take it as their channel.
///
/// It connects with the first call, and again with the first call after the connection was lost: calls
/// that were under way fail and say whether they may have executed, and none is made twice. For
/// several servers put one channel for each behind tower's load balancing, and make them [`Siblings`].
///
/// ```
/// use http_body_util::Empty;
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let listener = fabric.listen("zc+mem://channel").await?;
/// # let hello = tower::service_fn(|request: http::Request<zc_http::Body>| async move {
/// #     Ok::<_, std::convert::Infallible>(http::Response::new(request.into_body()))
/// # });
/// # tokio::spawn(zc_http::Server::new().serve(listener, hello));
/// let channel = zc_http::Channel::new(&fabric, "zc+mem://channel")?;
/// let request = http::Request::get("/").body(Empty::<bytes::Bytes>::new())?;
/// let response = channel.clone().oneshot(request).await?; // clones share the connection
/// assert_eq!(response.status(), http::StatusCode::OK);
/// channel.ping().await?;
/// # Ok(()) }
/// ```
pub struct Channel {
    connector: Arc<Connector>,
    /// While calls are left to siblings. A lock that is never taken: it makes the channel `Sync`.
    readiness: Mutex<Option<BoxFuture<'static, ()>>>,
}

/// What a [`Channel`] speaks with its server.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let channel = zc_http::Channel::new(&zc::Fabric::auto()?, "zc://127.0.0.1:7000")?;
/// if channel.protocol() == Some(zc_http::Protocol::Http2) {
///     println!("an old server:\n{}", channel.report().unwrap_or_default());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// This crate's own.
    ZcHttp,
    /// HTTP/2, which it has fallen back to.
    Http2,
}

/// Sets up a [`Channel`].
///
/// ```
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto()?;
/// let channel = zc_http::Channel::builder()
///     .greeting_timeout(Duration::from_secs(1))
///     .build(&fabric, "zc://127.0.0.1:7000")?;
/// assert!(channel.report().is_none()); // it connects with the first call
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct ChannelBuilder {
    limits: Limits,
    greeting: Option<Duration>,
    siblings: Option<Siblings>,
    #[cfg(feature = "hyper")]
    fall_back: bool,
}

impl ChannelBuilder {
    /// Bounds of the connection.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The longest that the peer may take for its first frame. Default 5 s.
    pub fn greeting_timeout(mut self, timeout: Duration) -> Self {
        self.greeting = Some(timeout);
        self
    }

    /// Makes the channel one of several behind a load balancer: while it can't be reached and another can, it is not ready.
    /// Default: it is always ready, and its calls wait for the connection or fail.
    pub fn siblings(mut self, siblings: &Siblings) -> Self {
        self.siblings = Some(siblings.clone());
        self
    }

    /// Whether the channel makes do with HTTP/2 where the server does not speak zc-http: over zc as a byte stream, or where
    /// that is unknown too, over the plain link. Default: no. [`Channel::report`] says so then, and a fabric with an
    /// authenticator or a policy without a fallback keeps it from the latter.
    #[cfg(feature = "hyper")]
    pub fn fall_back(mut self, fall_back: bool) -> Self {
        self.fall_back = fall_back;
        self
    }

    /// A channel to `uri`; nothing is connected yet.
    ///
    /// # Errors
    /// The URI can't be read.
    pub fn build(self, fabric: &zc::Fabric, uri: &str) -> Result<Channel, zc::UriError> {
        let _: zc::Uri = uri.parse()?;
        let target = Some(Target {
            fabric: fabric.clone(),
            uri: uri.to_owned(),
            #[cfg(feature = "hyper")]
            fall_back: self.fall_back,
        });
        Ok(Channel::of(self.connector(target, None)))
    }

    /// A channel on a connection that exists. When it ends, so does the channel.
    ///
    /// # Errors
    /// There is no tokio runtime, or the peer does not speak zc-http.
    pub async fn on(self, connection: zc::Connection) -> Result<Channel, Error> {
        let channel = Channel::of(self.connector(None, Some(connection)));
        channel.connector.up().await?;
        Ok(channel)
    }

    fn connector(self, target: Option<Target>, connection: Option<zc::Connection>) -> Arc<Connector> {
        let (greeting, siblings) = (self.greeting.unwrap_or(DEFAULT_GREETING), self.siblings.clone());
        let connector = Arc::new(Connector::new(target, connection, self.limits, greeting, siblings));
        self.siblings.iter().for_each(|siblings| siblings.add(&connector));
        connector
    }
}

impl Channel {
    /// A channel to `uri`; nothing is connected yet.
    ///
    /// # Errors
    /// The URI can't be read.
    pub fn new(fabric: &zc::Fabric, uri: &str) -> Result<Self, zc::UriError> {
        Self::builder().build(fabric, uri)
    }

    fn of(connector: Arc<Connector>) -> Self {
        Self { connector, readiness: Mutex::new(None) }
    }

    /// With options.
    pub fn builder() -> ChannelBuilder {
        ChannelBuilder::default()
    }

    /// Connects now, if there is no connection.
    ///
    /// # Errors
    /// No connection came up.
    pub async fn connect(&self) -> Result<(), Error> {
        self.connector.up().await.map(drop)
    }

    /// Waits for the other end's answer: its connection is alive and its program serves it. On HTTP/2 it is ready once the
    /// connection takes calls.
    ///
    /// # Errors
    /// No connection came up, or it ended.
    pub async fn ping(&self) -> Result<(), Error> {
        match self.connector.up().await? {
            Up::Zc(link) => connector::ping(&link).await,
            #[cfg(feature = "hyper")]
            Up::Http2(http2) => http2.ready().await,
        }
    }

    /// How the connection came about, if there is one.
    pub fn report(&self) -> Option<zc::SelectionReport> {
        self.connector.current()?.report()
    }

    /// What the calls are spoken in, if there is a connection.
    pub fn protocol(&self) -> Option<Protocol> {
        Some(match self.connector.current()? {
            Up::Zc(_) => Protocol::ZcHttp,
            #[cfg(feature = "hyper")]
            Up::Http2(_) => Protocol::Http2,
        })
    }

    /// What the connection copied, if there is one and it speaks zc-http: the transport, and this layer's small bodies.
    pub fn ledgers(&self) -> Option<(zc::LedgerSnapshot, zc::LedgerSnapshot)> {
        match self.connector.current()? {
            Up::Zc(link) => {
                let connection = link.connection.lock();
                connection.as_ref().map(|connection| (connection.ledger(), link.ledger.snapshot()))
            }
            #[cfg(feature = "hyper")]
            Up::Http2(_) => None,
        }
    }
}

impl Clone for Channel {
    fn clone(&self) -> Self {
        Self::of(self.connector.clone())
    }
}

impl<B> Service<Request<B>> for Channel
where
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let readiness = self.readiness.get_mut();
        // Without siblings a call waits for its connection itself, so that its deadline counts.
        if !self.connector.is_ready() && tokio::runtime::Handle::try_current().is_ok() {
            let waiting = readiness.get_or_insert_with(|| Box::pin(self.connector.clone().ready()));
            ready!(waiting.as_mut().poll(cx));
        }
        *readiness = None;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let due = Due::of(request.headers());
        ResponseFuture(Box::pin(call(self.connector.clone(), request, due)))
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

/// A call under way. Dropping it cancels the call.
///
/// ```
/// use std::time::Duration;
/// use http_body_util::Empty;
/// use tower_service::Service;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto()?;
/// let mut channel = zc_http::Channel::new(&fabric, "zc+mem://nobody-serves")?;
/// let call = channel.call(http::Request::get("/").body(Empty::<bytes::Bytes>::new())?);
/// // When the time is over the call is dropped, and so cancelled.
/// assert!(!matches!(tokio::time::timeout(Duration::from_secs(5), call).await, Ok(Ok(_))));
/// # Ok(()) }
/// ```
pub struct ResponseFuture(Pin<Box<dyn Future<Output = Result<Response<Body>, Error>> + Send>>);

impl Future for ResponseFuture {
    type Output = Result<Response<Body>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl std::fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
