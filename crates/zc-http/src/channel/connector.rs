//! The channel's connection: made on demand, once for all who wait.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
#[cfg(feature = "hyper")]
use http::uri::Authority;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::back_off::{BackOff, Refusals};
#[cfg(feature = "hyper")]
use super::http2::{Http2, Under};
use super::siblings::Siblings;
use crate::driver::{Driver, NoHandler};
use crate::error::{Error, ErrorKind, Executed};
use crate::link::Link;
use crate::proto::{Code, Limits, Role};

type Connecting = Shared<BoxFuture<'static, Result<Up, Error>>>;

enum Current {
    None,
    Connecting(Connecting),
    Up(Up),
}

/// What carries the calls.
#[derive(Clone)]
pub(super) enum Up {
    Zc(Arc<Link>),
    #[cfg(feature = "hyper")]
    Http2(Arc<Http2>),
}

impl Up {
    fn is_closed(&self) -> bool {
        match self {
            Self::Zc(link) => link.is_closed(),
            #[cfg(feature = "hyper")]
            Self::Http2(http2) => http2.is_closed(),
        }
    }

    pub(super) fn report(&self) -> Option<zc::SelectionReport> {
        match self {
            Self::Zc(link) => link.connection.lock().as_ref().map(|connection| connection.report().clone()),
            #[cfg(feature = "hyper")]
            Self::Http2(http2) => Some((*http2.info.report).clone()),
        }
    }
}

/// Where a channel goes.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) fabric: zc::Fabric,
    pub(super) uri: String,
    /// To HTTP/2, if the server does not speak zc-http.
    #[cfg(feature = "hyper")]
    pub(super) fall_back: bool,
}

#[cfg(feature = "hyper")]
impl Target {
    /// What requests without a server's name call it.
    pub(super) fn authority(&self) -> Authority {
        let uri = self.uri.parse::<zc::Uri>().ok();
        let authority = uri.and_then(|uri| match uri.addr() {
            zc::transport::LinkAddr::Tcp(at) => at.parse().ok(),
            _ => None,
        });
        authority.unwrap_or_else(|| Authority::from_static("localhost"))
    }
}

pub(super) struct Connector {
    /// None: the channel lives as long as its first connection.
    target: Option<Target>,
    limits: Limits,
    greeting: Duration,
    first: Mutex<Option<zc::Connection>>,
    current: Mutex<Current>,
    back_off: Mutex<BackOff>,
    refusals: Refusals,
    siblings: Option<Siblings>,
}

impl Connector {
    pub(super) fn new(
        target: Option<Target>,
        first: Option<zc::Connection>,
        limits: Limits,
        greeting: Duration,
        siblings: Option<Siblings>,
    ) -> Self {
        let (first, current, back_off) = (Mutex::new(first), Mutex::new(Current::None), Mutex::default());
        let refusals = Refusals::default();
        Self { target, limits, greeting, first, current, back_off, refusals, siblings }
    }

    /// Whether a lost connection is replaced.
    pub(super) fn reconnects(&self) -> bool {
        self.target.is_some()
    }

    pub(super) fn current(&self) -> Option<Up> {
        self.settle();
        match &*self.current.lock() {
            Current::Up(up) => Some(up.clone()),
            _ => None,
        }
    }

    /// Whether it has a connection.
    fn is_up(&self) -> bool {
        self.settle();
        matches!(&*self.current.lock(), Current::Up(up) if !up.is_closed())
    }

    /// Whether calls are likely to be taken: it has a connection, and its server has not refused one lately.
    pub(super) fn takes_calls(&self) -> bool {
        self.is_up() && self.refusals.rest(Instant::now()).is_none()
    }

    /// How a call has ended, for the balancer's sake.
    pub(super) fn heard<T>(&self, result: &Result<T, Error>) {
        let Some(siblings) = &self.siblings else { return };
        match result {
            Ok(_) => self.refusals.answered(Instant::now()),
            Err(error) if error.is_refusal() => {
                if self.refusals.refused(Instant::now()) {
                    // Who leaves its calls to this one may be the better choice now.
                    siblings.notify();
                }
            }
            Err(_) => {}
        }
    }

    /// Takes over what connecting has come to: who waited for it may be gone.
    fn settle(&self) {
        let mut current = self.current.lock();
        let Current::Connecting(connecting) = &*current else { return };
        let Some(result) = connecting.clone().now_or_never() else { return };
        *current = result.map_or(Current::None, Current::Up);
        drop(current);
        self.siblings.iter().for_each(Siblings::notify);
    }

    /// Whether calls need not be left to siblings, as far as that is known without waiting.
    pub(super) fn is_ready(&self) -> bool {
        self.siblings.is_none() || self.takes_calls()
    }

    /// Waits as long as it takes no calls while a sibling does, and connects meanwhile if need be.
    pub(super) async fn ready(self: Arc<Self>) {
        let Some(siblings) = &self.siblings else { return };
        loop {
            let mut changed = std::pin::pin!(siblings.changed());
            changed.as_mut().enable();
            if self.takes_calls() {
                return;
            }
            if !siblings.any_takes_calls() {
                // So the others need not wait either.
                return siblings.notify();
            }
            tokio::select! {
                () = changed => {}
                () = self.recover() => {}
            }
        }
    }

    /// Until it may be worth another look.
    async fn recover(&self) {
        if !self.is_up() {
            return self.connect_after_pause().await;
        }
        if let Some(until) = self.refusals.rest(Instant::now()) {
            tokio::time::sleep_until(until).await;
        }
    }

    async fn connect_after_pause(&self) {
        let not_before = self.back_off.lock().not_before();
        let connecting = matches!(&*self.current.lock(), Current::Connecting(_));
        if let Some(at) = not_before
            && !connecting
        {
            tokio::time::sleep_until(at).await;
        }
        if let Err(error) = self.up().await {
            tracing::debug!(%error, "still not reached");
        }
    }

    /// The connection; made now if there is none that takes calls.
    pub(super) async fn up(&self) -> Result<Up, Error> {
        let connecting = {
            let mut current = self.current.lock();
            match &*current {
                Current::Up(up) if !up.is_closed() => return Ok(up.clone()),
                Current::Connecting(connecting) => connecting.clone(),
                Current::Up(_) | Current::None => {
                    let connecting = self.begin()?;
                    *current = Current::Connecting(connecting.clone());
                    connecting
                }
            }
        };
        let result = connecting.clone().await;
        let mut current = self.current.lock();
        if matches!(&*current, Current::Connecting(other) if other.ptr_eq(&connecting)) {
            *current = match &result {
                Ok(up) => Current::Up(up.clone()),
                Err(_) => Current::None,
            };
            drop(current);
            self.siblings.iter().for_each(Siblings::notify);
        }
        result
    }

    /// Starts connecting, as a task: who asked first may go away.
    fn begin(&self) -> Result<Connecting, Error> {
        self.back_off.lock().attempt(Instant::now());
        let no_runtime = |_| Error::new(ErrorKind::NoRuntime, Executed::No);
        let runtime = tokio::runtime::Handle::try_current().map_err(no_runtime)?;
        let (target, first) = (self.target.clone(), self.first.lock().take());
        let (limits, greeting) = (self.limits.clone(), self.greeting);
        let task = runtime.spawn(async move {
            match (first, target) {
                (Some(connection), _) => greet(connection, limits, greeting).await.map(Up::Zc),
                (None, Some(target)) => connect(target, limits, greeting).await,
                (None, None) => Err(Error::new(ErrorKind::Closed, Executed::No)),
            }
        });
        let joined =
            async { task.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Closed, Executed::No))) };
        Ok(joined.boxed().shared())
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // Calls under way go on; then the connection ends.
        if let Current::Up(Up::Zc(link)) = &*self.current.lock() {
            link.go_away(Code::DONE, "the channel was dropped");
        }
        self.siblings.iter().for_each(Siblings::notify);
    }
}

/// zc-http first, then what else the channel may use.
async fn connect(target: Target, limits: Limits, greeting: Duration) -> Result<Up, Error> {
    let connected = match target.fabric.connect(&target.uri).await {
        Ok(connection) => greet(connection, limits.clone(), greeting).await,
        Err(error) => Err(Error::new(ErrorKind::Connect(Arc::new(error)), Executed::No)),
    };
    #[cfg(feature = "hyper")]
    if let Err(error) = &connected
        && target.fall_back
        && let Some(under) = speaks_less(error)
    {
        let http2 = Http2::connect(&target, under, &limits, greeting).await;
        // The first error says more than that HTTP/2 is not spoken either.
        return http2.map(|http2| Up::Http2(Arc::new(http2))).map_err(|other| {
            tracing::debug!(error = %other, "no HTTP/2 either");
            error.clone()
        });
    }
    connected.map(Up::Zc)
}

/// Whether a failure looks like that of a server which is there and does not speak zc-http, or no zc at all.
#[cfg(feature = "hyper")]
fn speaks_less(error: &Error) -> Option<Under> {
    match error.kind() {
        // It took our HELLO for something broken, or answered in its own words.
        ErrorKind::Connect(error) => match &**error {
            zc::Error::Wire { source: zc::wire::WireError::BadMagic { .. }, .. }
            | zc::Error::Link { stage: zc::Stage::Hello, .. }
            | zc::Error::Timeout { stage: zc::Stage::Hello } => Some(Under::Plain),
            _ => None,
        },
        ErrorKind::Violation(_) | ErrorKind::Connection(_) | ErrorKind::NoGreeting => Some(Under::Zc),
        _ => None,
    }
}

/// Starts the driver and waits for the peer's first frame.
async fn greet(
    mut connection: zc::Connection,
    limits: Limits,
    greeting: Duration,
) -> Result<Arc<Link>, Error> {
    let (sender, receiver) = connection.split();
    let link = Link::new(Role::Client, limits, connection);
    let driver = Driver::new(link.clone(), Role::Client, sender, receiver, NoHandler);
    tokio::spawn(driver);
    let greeted = poll_fn(|cx| {
        link.with(|state| {
            if state.ready {
                return Poll::Ready(Ok(()));
            }
            if let Some(cause) = state.cause.clone() {
                return Poll::Ready(Err(Error::new(cause, Executed::No)));
            }
            state.watch(cx);
            Poll::Pending
        })
    });
    match tokio::time::timeout(greeting, greeted).await {
        Ok(Ok(())) => Ok(link),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            link.go_away(Code::DONE, "no first frame in time");
            Err(Error::new(ErrorKind::NoGreeting, Executed::No))
        }
    }
}

pub(super) async fn ping(link: &Link) -> Result<(), Error> {
    let nonce = link.with(|state| {
        state.pinged += 1;
        state.endpoint.ping(state.pinged);
        state.pinged
    });
    poll_fn(|cx| {
        link.with(|state| {
            if state.pong >= nonce {
                return Poll::Ready(Ok(()));
            }
            if let Some(cause) = state.cause.clone() {
                return Poll::Ready(Err(Error::new(cause, Executed::No)));
            }
            state.watch(cx);
            Poll::Pending
        })
    })
    .await
}
