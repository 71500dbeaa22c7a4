//! Serves a tower service on connections.

mod call;
#[cfg(feature = "hyper")]
mod http;
mod inline;
#[cfg(feature = "hyper")]
mod preface;

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::http::{Request, Response, request};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower_service::Service;

use self::call::{CallTask, Permit};
use self::inline::Inline;
use crate::body::Body;
use crate::driver::{Driver, Handler};
use crate::error::{BoxError, ErrorKind};
use crate::link::Link;
use crate::listening::{Arrived, Listening};
#[cfg(feature = "hyper")]
use crate::proto::is_settings;
use crate::proto::{Code, Key, Limits, Role};
#[cfg(feature = "hyper")]
use crate::stream::ZcStream;

/// Connections served at a time, unless set.
const DEFAULT_MAX_CONNECTIONS: usize = 10_000;
/// The longest that shutting down takes, unless set.
const DEFAULT_SHUTDOWN: Duration = Duration::from_secs(30);

/// Who sent a request: an extension of it, if [`Server::peer_info`] was set.
///
/// ```
/// use zc_http::{Body, PeerInfo};
///
/// /// With `Server::peer_info(true)`.
/// fn user(request: &http::Request<Body>) -> Option<&str> {
///     let info = request.extensions().get::<PeerInfo>()?;
///     info.peer.authenticated.as_deref()
/// }
/// assert_eq!(user(&http::Request::new(Body::empty())), None);
/// ```
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The peer, as far as it is known.
    pub peer: Arc<zc::PeerIdentity>,
    /// How its connection came about.
    pub report: Arc<zc::SelectionReport>,
}

impl PeerInfo {
    pub(crate) fn of(connection: &zc::Connection) -> Self {
        let (peer, report) = (connection.peer().clone(), connection.report().clone());
        Self { peer: Arc::new(peer), report: Arc::new(report) }
    }
}

/// Serves any `Service<http::Request<Body>>`: an axum `Router`, tonic's `Routes`.
///
/// The service is cloned for each call. A call is run where it was received as long as the service is
/// quick, and as a task of its own once it has waited or taken long.
///
/// ```
/// use std::time::Duration;
/// use http::{Request, Response};
/// use zc_http::{Body, Server};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto()?;
/// let listener = fabric.listen("zc://127.0.0.1:0").await?;
/// let echo = tower::service_fn(|request: Request<Body>| async move {
///     Ok::<_, std::convert::Infallible>(Response::new(request.into_body()))
/// });
/// let server = Server::new().concurrency_limit(1000).shutdown_timeout(Duration::from_secs(5));
/// let stop = async {}; // a signal, in a program
/// server.serve_with_shutdown(listener, echo, stop).await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Server {
    limits: Limits,
    max_connections: usize,
    concurrency: Option<usize>,
    shutdown: Duration,
    peer_info: bool,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            max_connections: DEFAULT_MAX_CONNECTIONS,
            concurrency: None,
            shutdown: DEFAULT_SHUTDOWN,
            peer_info: false,
        }
    }
}

impl Server {
    /// With default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bounds of each connection.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Calls run at a time, over all connections; what comes beyond is refused, and the caller told
    /// that it was not executed. Default: no limit but those of each connection.
    pub fn concurrency_limit(mut self, calls: usize) -> Self {
        self.concurrency = Some(calls);
        self
    }

    /// Connections at a time; others wait to be accepted. Default 10,000.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// The longest that calls may go on after shutting down began. Default 30 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown = timeout;
        self
    }

    /// Whether each request carries a [`PeerInfo`] in its extensions. Default: no.
    pub fn peer_info(mut self, peer_info: bool) -> Self {
        self.peer_info = peer_info;
        self
    }

    /// Serves what `listener` accepts, until the future is dropped: that ends all calls. If the listener itself ends,
    /// it returns after the calls under way, like [`Server::serve_with_shutdown`].
    pub async fn serve<S, B>(self, listener: impl Into<Listening>, service: S)
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
    {
        self.serve_with_shutdown(listener, service, std::future::pending()).await;
    }

    /// Like [`Server::serve`], until `signal`: then no call is taken any more, those under way are
    /// finished, within the time for shutting down.
    pub async fn serve_with_shutdown<S, B>(
        self,
        listener: impl Into<Listening>,
        service: S,
        signal: impl Future<Output = ()>,
    ) where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
    {
        let mut listener = listener.into();
        let (stop, stopping) = watch::channel(());
        let running = Arc::new(AtomicUsize::new(0));
        let mut connections = JoinSet::new();
        let mut signal = std::pin::pin!(signal);
        loop {
            let full = connections.len() >= self.max_connections;
            tokio::select! {
                biased;
                () = &mut signal => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = listener.accept(), if !full => match accepted {
                    Ok(arrived) => {
                        let (service, running) = (service.clone(), running.clone());
                        connections.spawn(self.clone().attend(arrived, service, stopping.clone(), running));
                    }
                    // Failures to accept are the listener's business: this is its end.
                    Err(error) => {
                        tracing::warn!(%error, "accepting ended");
                        break;
                    }
                }
            }
        }
        drop(listener);
        drop(stop);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(self.shutdown, all).await.is_err() {
            tracing::warn!(connections = connections.len(), "calls outlived the time for shutting down");
        }
    }

    /// Serves one connection until it ends; the reason is in the answer.
    pub async fn serve_connection<S, B>(&self, connection: zc::Connection, service: S) -> ErrorKind
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
    {
        let (_stop, stopping) = watch::channel(());
        self.drive(connection, None, service, stopping, Arc::default()).await
    }

    /// Serves what came in, whatever it speaks.
    async fn attend<S, B>(
        self,
        arrived: Arrived,
        service: S,
        stopping: watch::Receiver<()>,
        running: Arc<AtomicUsize>,
    ) -> ErrorKind
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
    {
        #[cfg(not(feature = "hyper"))]
        let (Arrived::Zc(connection), first) = (arrived, None);
        #[cfg(feature = "hyper")]
        let (connection, first) = match arrived {
            Arrived::Plain(stream) => {
                return self.serve_stream(stream.into(), service, stopping, running).await;
            }
            Arrived::Zc(connection) => (connection, None),
            Arrived::Any(mut connection) => match first_message(&mut connection, stopping.clone()).await {
                Err(ended) => return ended,
                Ok(first) if is_settings(&first) => (connection, Some(first)),
                Ok(first) => match ZcStream::after(Some(first), connection) {
                    Ok(stream) => return self.serve_stream(stream, service, stopping, running).await,
                    Err(error) => return ErrorKind::Connection(error),
                },
            },
        };
        self.drive(connection, first, service, stopping, running).await
    }

    #[cfg(feature = "hyper")]
    async fn serve_stream<S, B>(
        self,
        stream: ZcStream,
        service: S,
        stopping: watch::Receiver<()>,
        running: Arc<AtomicUsize>,
    ) -> ErrorKind
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
    {
        let info = self.peer_info.then(|| stream.info().clone());
        let concurrency = self.concurrency.unwrap_or(usize::MAX);
        let calls = http::Calls { service, running, concurrency, info };
        http::serve(stream, &self.limits, calls, stopping).await
    }

    fn drive<S, B>(
        &self,
        mut connection: zc::Connection,
        first: Option<zc::Message>,
        service: S,
        mut stopping: watch::Receiver<()>,
        running: Arc<AtomicUsize>,
    ) -> impl Future<Output = ErrorKind> + Send + 'static
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
    {
        let (sender, receiver) = connection.split();
        let info = self.peer_info.then(|| PeerInfo::of(&connection));
        let link = Link::new(Role::Server, self.limits.clone(), connection);
        let handler = Dispatch {
            service,
            inline: Inline::default(),
            running,
            concurrency: self.concurrency.unwrap_or(usize::MAX),
            max_held: 2 * self.limits.max_calls as usize,
            info,
            body: PhantomData,
        };
        let mut driver = Driver::new(link.clone(), Role::Server, sender, receiver, handler).after(first);
        async move {
            tokio::select! {
                biased;
                // The sender's end is the signal.
                _ = stopping.changed() => link.go_away(Code::DONE, "shutting down"),
                cause = &mut driver => return cause,
            }
            driver.await
        }
    }
}

/// The first message tells what the peer speaks; the reason if none comes.
#[cfg(feature = "hyper")]
async fn first_message(
    connection: &mut zc::Connection,
    mut stopping: watch::Receiver<()>,
) -> Result<zc::Message, ErrorKind> {
    tokio::select! {
        biased;
        _ = stopping.changed() => Err(ErrorKind::Closed),
        first = connection.recv() => match first {
            Ok(Some(first)) => Ok(first),
            Ok(None) => Err(ErrorKind::Closed),
            Err(error) => Err(ErrorKind::Connection(error)),
        },
    }
}

struct Dispatch<S, B> {
    /// Cloned for each call.
    service: S,
    inline: Inline,
    running: Arc<AtomicUsize>,
    concurrency: usize,
    /// Calls, ended ones that handlers still hold included.
    max_held: usize,
    info: Option<PeerInfo>,
    body: PhantomData<fn() -> B>,
}

// Nothing in it is ever pinned.
impl<S, B> Unpin for Dispatch<S, B> {}

impl<S, B> Dispatch<S, B> {
    fn permit(&self, link: &Link) -> Option<Permit> {
        let held = link.with(|state| state.endpoint.held_calls());
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        let permit = Permit(self.running.clone());
        (before < self.concurrency && held <= self.max_held).then_some(permit)
    }
}

impl<S, B> Handler for Dispatch<S, B>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data: Into<Bytes>, Error: Into<BoxError>> + Send + 'static,
{
    fn handle(&mut self, link: &Arc<Link>, key: Key, parts: request::Parts) {
        let Some(permit) = self.permit(link) else {
            link.with(|state| {
                state.endpoint.cancel(key, Code::REFUSED);
                state.endpoint.release_tx(key);
                state.endpoint.release_rx(key);
            });
            return;
        };
        let body = Body::incoming(link.clone(), key);
        let mut request = Request::from_parts(parts, body);
        if let Some(info) = &self.info {
            request.extensions_mut().insert(info.clone());
        }
        let task = CallTask::new(link.clone(), key, self.service.clone(), request, permit);
        self.inline.run(Box::pin(task));
    }
}
