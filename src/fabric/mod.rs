//! What an application connects and listens with.

mod builder;
mod listener;

use std::sync::Arc;

use zc_core::transport::{Caps, LinkAddr, LinkProvider, Unavailable};
use zc_core::wire::Stage;

pub use self::builder::FabricBuilder;
pub use self::listener::{Listener, MAX_HANDSHAKES, MAX_READY};

use crate::connection::Connection;
use crate::error::Error;
use crate::uri::Uri;
use crate::wireup::Shared;

/// A set of transports with a policy, a pool and options. Cheap to clone.
#[derive(Clone)]
pub struct Fabric {
    shared: Arc<Shared>,
    links: Arc<[Arc<dyn LinkProvider>]>,
}

impl Fabric {
    /// Everything that is compiled in, with default options; `ZC_TRANSPORTS` is heeded.
    ///
    /// # Errors
    /// `ZC_TRANSPORTS` can't be read, or the system has no random numbers.
    #[cfg(feature = "tokio")]
    pub fn auto() -> Result<Self, Error> {
        Self::auto_builder().build()
    }

    /// A builder with everything that is compiled in.
    pub fn auto_builder() -> FabricBuilder {
        FabricBuilder::compiled_in()
    }

    /// An empty builder: only what is named is used.
    pub fn builder() -> FabricBuilder {
        FabricBuilder::default()
    }

    /// Every transport, and what it can do on this machine or why it can't.
    pub fn probe(&self) -> Vec<(&'static str, Result<Caps, Unavailable>)> {
        self.shared.transports.iter().map(|transport| (transport.name(), transport.probe())).collect()
    }

    /// Connects. Dropping the future abandons the attempt.
    ///
    /// # Errors
    /// The URI can't be read, nobody listens there, a stage timed out, or no transport carries it: the
    /// error names the stage.
    pub async fn connect(&self, uri: &str) -> Result<Connection, Error> {
        let uri: Uri = uri.parse()?;
        let provider = self.provider(uri.addr())?;
        let shared = &self.shared;
        let mut timer = shared.reactor.timer().map_err(|error| Error::NoRuntime(error.to_string()))?;
        timer.reset(shared.reactor.now() + shared.deadlines.connect);
        let connect = provider.connect(uri.addr(), &shared.reactor);
        let expired = std::future::poll_fn(|cx| timer.poll_expired(cx));
        let link = match futures::future::select(connect, std::pin::pin!(expired)).await {
            futures::future::Either::Left((link, _)) => {
                link.map_err(|source| Error::Link { stage: Stage::Connect, source })?
            }
            futures::future::Either::Right(_) => return Err(Error::Timeout { stage: Stage::Connect }),
        };
        shared.client(link, uri.transport()).await
    }

    /// Listens.
    ///
    /// # Errors
    /// The URI can't be read, or the address can't be bound.
    pub async fn listen(&self, uri: &str) -> Result<Listener, Error> {
        let uri: Uri = uri.parse()?;
        let provider = self.provider(uri.addr())?;
        let links = provider
            .bind(uri.addr(), &self.shared.reactor)
            .await
            .map_err(|source| Error::Link { stage: Stage::Connect, source })?;
        Ok(Listener::new(self.shared.clone(), links, uri))
    }

    fn provider(&self, addr: &LinkAddr) -> Result<&Arc<dyn LinkProvider>, Error> {
        let found = self.links.iter().find(|links| links.accepts(addr));
        found.ok_or_else(|| Error::NoLinks(addr.to_string()))
    }
}
