//! Puts a fabric together.

use std::env::VarError;
use std::sync::Arc;

use zc_core::memory::BufPool;
use zc_core::transport::{LaneLimits, LinkProvider, Reactor, Transport};
use zc_core::wire::MAX_AUTH_METHOD;

use super::Fabric;
use crate::auth::{AuthError, Authenticator};
use crate::error::Error;
use crate::event::{Observer, TracingObserver};
use crate::options::{ConnectionOptions, Deadlines};
use crate::policy::{ENV_TRANSPORTS, Policy};
use crate::uri::is_transport_name;
use crate::wireup::Shared;

/// Names what a [`Fabric`] uses.
///
/// ```
/// use std::time::Duration;
/// use zc::{Deadlines, Fabric, Fallback, Policy};
///
/// let mut deadlines = Deadlines::default();
/// deadlines.connect = Duration::from_secs(1);
/// let fabric = Fabric::auto_builder()
///     .policy(Policy::default().prefer(["tcp"]).fallback(Fallback::Allow))
///     .deadlines(deadlines)
///     .build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Default)]
pub struct FabricBuilder {
    transports: Vec<Arc<dyn Transport>>,
    links: Vec<Arc<dyn LinkProvider>>,
    policy: Policy,
    options: ConnectionOptions,
    deadlines: Deadlines,
    limits: LaneLimits,
    pool: Option<BufPool>,
    reactor: Option<Arc<dyn Reactor>>,
    observer: Option<Arc<dyn Observer>>,
    authenticator: Option<Arc<dyn Authenticator>>,
}

impl FabricBuilder {
    pub(super) fn compiled_in() -> Self {
        let builder = Self::default();
        #[cfg(feature = "shm")]
        let builder = builder.transport(Arc::new(zc_transport_shm::ShmTransport::default()));
        #[cfg(feature = "rdma")]
        let builder = builder.transport(Arc::new(zc_transport_rdma::RdmaTransport::default()));
        #[cfg(feature = "xdp")]
        let builder = builder
            .transport(Arc::new(zc_transport_xdp::XdpTransport::default()))
            .transport(Arc::new(zc_transport_xdp::UdpTransport::default()));
        #[cfg(feature = "uring")]
        let builder = builder.transport(Arc::new(zc_transport_uring::UringTransport::default()));
        #[cfg(feature = "tcp")]
        let builder = {
            let stream: Arc<dyn Transport> = Arc::new(zc_transport_tcp::TcpTransport);
            builder
                .transport(stream.clone())
                .transport(Arc::new(crate::mem::MemTransport::over(stream)))
                .links(Arc::new(zc_transport_tcp::StreamLinks))
                .links(Arc::new(crate::mem::MemLinks))
        };
        builder
    }

    /// Adds a transport; it takes the place of one with the same name.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transports.retain(|known| known.name() != transport.name());
        self.transports.push(transport);
        self
    }

    /// Adds something that opens control links.
    pub fn links(mut self, links: Arc<dyn LinkProvider>) -> Self {
        self.links.push(links);
        self
    }

    /// Ranks and restricts transports.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Options of every connection.
    pub fn options(mut self, options: ConnectionOptions) -> Self {
        self.options = options;
        self
    }

    /// The longest that each stage of wire-up may take.
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Message size, window and lease budget.
    pub fn limits(mut self, limits: LaneLimits) -> Self {
        self.limits = limits;
        self
    }

    /// A pool to share with others. Default: one of its own.
    pub fn pool(mut self, pool: BufPool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// The runtime. Default with the feature `tokio`: the surrounding tokio runtime.
    pub fn reactor(mut self, reactor: Arc<dyn Reactor>) -> Self {
        self.reactor = Some(reactor);
        self
    }

    /// Who is told what happens. Default: [`TracingObserver`].
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// How peers prove who they are. Default: not at all; whoever reaches an address is let in.
    pub fn authenticator(mut self, authenticator: Arc<dyn Authenticator>) -> Self {
        self.authenticator = Some(authenticator);
        self
    }

    /// Makes the fabric; `ZC_TRANSPORTS` overrides the policy.
    ///
    /// # Errors
    /// `ZC_TRANSPORTS` can't be read, a transport or the authenticator's method has no proper name, there is
    /// no reactor, or no random numbers.
    pub fn build(self) -> Result<Fabric, Error> {
        let policy = match std::env::var(ENV_TRANSPORTS) {
            Ok(value) => self.policy.with_override(&value)?,
            Err(VarError::NotPresent) => self.policy,
            // An override that can't be read must not be taken for none.
            Err(VarError::NotUnicode(value)) => self.policy.with_override(&value.to_string_lossy())?,
        };
        if let Some(bad) = self.transports.iter().find(|transport| !is_transport_name(transport.name())) {
            return Err(Error::TransportName(bad.name().to_owned()));
        }
        if let Some(authenticator) = &self.authenticator {
            check_method(authenticator.method())?;
        }
        #[cfg(feature = "tokio")]
        let default = Some(Arc::new(crate::reactor::TokioReactor::new()) as Arc<dyn Reactor>);
        #[cfg(not(feature = "tokio"))]
        let default = None;
        let reactor = self.reactor.or(default);
        let reactor = reactor.ok_or_else(|| Error::NoRuntime("the builder was given no reactor".into()))?;
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).map_err(|error| Error::Random(error.to_string()))?;
        let shared = Shared {
            transports: self.transports,
            links: self.links,
            #[cfg(feature = "tcp")]
            stream: Some(Arc::new(zc_transport_tcp::TcpTransport)),
            #[cfg(not(feature = "tcp"))]
            stream: None,
            authenticator: self.authenticator,
            policy,
            options: self.options,
            deadlines: self.deadlines,
            limits: self.limits,
            pool: self.pool.unwrap_or_else(|| BufPool::builder().build()),
            reactor,
            instance,
            observer: self.observer.unwrap_or_else(|| Arc::new(TracingObserver)),
        };
        Ok(Fabric { shared: Arc::new(shared) })
    }
}

/// An empty name means no authentication on the wire: it must not turn a method off unnoticed.
fn check_method(name: &str) -> Result<(), AuthError> {
    let proper = (1..=MAX_AUTH_METHOD).contains(&name.len()) && !name.chars().any(char::is_control);
    if proper { Ok(()) } else { Err(AuthError::new(format!("{name:?} is no name of a method"))) }
}
