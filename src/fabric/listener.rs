//! Accepts connections: many handshakes at a time, each under its deadlines.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream};
use zc_core::transport::LinkListener;
use zc_core::wire::Stage;

use crate::connection::Connection;
use crate::error::Error;
use crate::uri::Uri;
use crate::wireup::Shared;

/// Handshakes under way at a time; further links wait in the kernel's backlog.
pub const MAX_HANDSHAKES: usize = 1024;
/// Finished connections that wait for `accept`.
pub const MAX_READY: usize = 64;

/// Listens at one address.
pub struct Listener {
    shared: Arc<Shared>,
    links: Box<dyn LinkListener>,
    uri: Uri,
    handshakes: FuturesUnordered<BoxFuture<'static, Result<Connection, Error>>>,
    ready: VecDeque<Connection>,
    failed: u64,
}

impl Listener {
    pub(super) fn new(shared: Arc<Shared>, links: Box<dyn LinkListener>, uri: Uri) -> Self {
        let uri = uri.with_addr(links.local());
        Self { shared, links, uri, handshakes: FuturesUnordered::new(), ready: VecDeque::new(), failed: 0 }
    }

    /// Where it listens, with the real port.
    pub fn local_uri(&self) -> &Uri {
        &self.uri
    }

    /// Handshakes that failed so far; each was logged with its reason.
    pub fn failed_handshakes(&self) -> u64 {
        self.failed
    }

    /// The next connection. One peer's slow or broken handshake never holds up another's.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// The listening socket failed (such as too many open files); the listener stays usable.
    pub async fn accept(&mut self) -> Result<Connection, Error> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Like [`Listener::accept`], for code that polls.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection, Error>> {
        loop {
            self.poll_handshakes(cx);
            if let Some(connection) = self.ready.pop_front() {
                return Poll::Ready(Ok(connection));
            }
            if self.handshakes.len() >= MAX_HANDSHAKES {
                return Poll::Pending;
            }
            match self.links.poll_accept(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(source)) => {
                    return Poll::Ready(Err(Error::Link { stage: Stage::Connect, source }));
                }
                Poll::Ready(Ok(link)) => {
                    let shared = self.shared.clone();
                    let named = self.uri.transport().map(str::to_owned);
                    self.handshakes
                        .push(Box::pin(async move { shared.server(link, named.as_deref()).await }));
                }
            }
        }
    }

    fn poll_handshakes(&mut self, cx: &mut Context<'_>) {
        while self.ready.len() < MAX_READY {
            match Pin::new(&mut self.handshakes).poll_next(cx) {
                Poll::Ready(Some(Ok(connection))) => self.ready.push_back(connection),
                Poll::Ready(Some(Err(error))) => {
                    self.failed += 1;
                    tracing::debug!(%error, "a handshake failed");
                }
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
    }
}
