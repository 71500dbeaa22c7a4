//! The channel's connection: made on demand, once for all who wait.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use parking_lot::Mutex;

use crate::driver::{Driver, NoHandler};
use crate::error::{Error, ErrorKind, Executed};
use crate::link::Link;
use crate::proto::{Code, Limits, Role};

type Connecting = Shared<BoxFuture<'static, Result<Arc<Link>, Error>>>;

enum Current {
    None,
    Connecting(Connecting),
    Up(Arc<Link>),
}

pub(super) struct Connector {
    /// None: the channel lives as long as its first connection.
    target: Option<(zc::Fabric, String)>,
    limits: Limits,
    greeting: Duration,
    first: Mutex<Option<zc::Connection>>,
    current: Mutex<Current>,
}

impl Connector {
    pub(super) fn new(
        target: Option<(zc::Fabric, String)>,
        first: Option<zc::Connection>,
        limits: Limits,
        greeting: Duration,
    ) -> Self {
        Self { target, limits, greeting, first: Mutex::new(first), current: Mutex::new(Current::None) }
    }

    /// Whether a lost connection is replaced.
    pub(super) fn reconnects(&self) -> bool {
        self.target.is_some()
    }

    pub(super) fn current(&self) -> Option<Arc<Link>> {
        match &*self.current.lock() {
            Current::Up(link) => Some(link.clone()),
            _ => None,
        }
    }

    /// The connection; made now if there is none that takes calls.
    pub(super) async fn link(&self) -> Result<Arc<Link>, Error> {
        let connecting = {
            let mut current = self.current.lock();
            match &*current {
                Current::Up(link) if !link.is_closed() => return Ok(link.clone()),
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
                Ok(link) => Current::Up(link.clone()),
                Err(_) => Current::None,
            };
        }
        result
    }

    /// Starts connecting, as a task: who asked first may go away.
    fn begin(&self) -> Result<Connecting, Error> {
        let no_runtime = |_| Error::new(ErrorKind::NoRuntime, Executed::No);
        let runtime = tokio::runtime::Handle::try_current().map_err(no_runtime)?;
        let (target, first) = (self.target.clone(), self.first.lock().take());
        let (limits, greeting) = (self.limits.clone(), self.greeting);
        let task = runtime.spawn(async move {
            let connection = match (first, target) {
                (Some(connection), _) => connection,
                (None, Some((fabric, uri))) => {
                    let connected = fabric.connect(&uri).await;
                    connected
                        .map_err(|error| Error::new(ErrorKind::Connect(Arc::new(error)), Executed::No))?
                }
                (None, None) => return Err(Error::new(ErrorKind::Closed, Executed::No)),
            };
            greet(connection, limits, greeting).await
        });
        let joined =
            async { task.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Closed, Executed::No))) };
        Ok(joined.boxed().shared())
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // Calls under way go on; then the connection ends.
        if let Current::Up(link) = &*self.current.lock() {
            link.go_away(Code::DONE, "the channel was dropped");
        }
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
