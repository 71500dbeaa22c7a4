//! What an application connects and listens with.

mod builder;
mod crowd;
mod group;
mod listener;
mod plain;

use std::sync::Arc;

use zc_core::memory::RegionError;
use zc_core::transport::{Caps, ControlLink, Role, Unavailable};
use zc_core::wire::Stage;

pub use self::builder::FabricBuilder;
pub use self::group::Group;
pub use self::listener::{Incoming, Listener, MAX_HANDSHAKES, MAX_READY, MIN_HANDSHAKE, MixedListener};
pub use self::plain::{
    PLAIN, PLAIN_KEEPALIVE_IDLE, PLAIN_KEEPALIVE_INTERVAL, PLAIN_KEEPALIVE_PROBES, PlainStream,
};

use crate::auth::AuthError;
use crate::connection::Connection;
use crate::error::Error;
use crate::remote::Export;
use crate::report::{Outcome, SelectionReport};
use crate::uri::Uri;
use crate::wireup::{self, Progress, Prover, Shared, Side, deadline};

/// A set of transports with a policy, a pool and options. Cheap to clone.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto()?;
/// for (transport, found) in fabric.probe() {
///     match found {
///         Ok(caps) => println!("{transport}: messages of up to {} bytes", caps.max_message),
///         Err(why) => println!("{transport}: {why}; {}", why.remedy()),
///     }
/// }
/// let mut listener = fabric.listen("zc+mem://fabric").await?;
/// let (client, server) = tokio::try_join!(fabric.connect("zc+mem://fabric"), listener.accept())?;
/// assert_eq!(client.report().chosen(), server.report().chosen());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Fabric {
    shared: Arc<Shared>,
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

    /// An empty builder: only the transports and links that are named are used. With the feature `tcp` a control
    /// link may still carry the data itself when none of them comes up, unless the policy refuses it as `tcp`
    /// (`mem` inside the process).
    pub fn builder() -> FabricBuilder {
        FabricBuilder::default()
    }

    /// Every transport, and what it can do on this machine or why it can't.
    pub fn probe(&self) -> Vec<(&'static str, Result<Caps, Unavailable>)> {
        self.shared.transports.iter().map(|transport| (transport.name(), transport.probe())).collect()
    }

    /// Why it has no transport of this name; `None` if it has.
    ///
    /// ```
    /// let fabric = zc::Fabric::auto()?;
    /// if let Some(why) = fabric.missing("shm") {
    ///     println!("no shared memory: {}", why.remedy());
    /// }
    /// # Ok::<(), zc::Error>(())
    /// ```
    pub fn missing(&self, transport: &str) -> Option<Unavailable> {
        self.shared.missing(transport)
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Memory of `len` bytes for one-sided operations of peers: see [`Export`]. It is made for this, outside of
    /// the pool. Where a transport may share it with other processes, all its pages are made now, which takes the longer the more there
    /// are.
    ///
    /// # Errors
    /// There is no such memory.
    pub fn export(&self, len: usize) -> Result<Export, RegionError> {
        Export::new(len, self.shared.transports.iter().any(|transport| transport.wants_descriptors()))
    }

    /// Connects. Dropping the future abandons the attempt.
    ///
    /// # Errors
    /// The URI can't be read or has a parameter that no transport takes, nobody listens there, a stage
    /// timed out, or no transport carries it: the error names the stage.
    pub async fn connect(&self, uri: &str) -> Result<Connection, Error> {
        let uri: Uri = uri.parse()?;
        let shared = &self.shared;
        let request = shared.request(&uri)?;
        let link = self.open_link(&uri).await?;
        let (progress, no_prover) = (Progress::default(), Err(Unavailable::HostNotProved));
        let side = Side {
            role: Role::Client,
            request: &request,
            prover: no_prover,
            progress: &progress,
            plain: None,
        };
        wireup::run(shared, side, link, || 1).await
    }

    /// Connects to a peer that does not speak zc: the bytes are the caller's, nothing is negotiated, proved
    /// or counted. For falling back to another protocol that the peer is known to speak.
    ///
    /// # Errors
    /// The URI can't be read, has a parameter that no transport takes or names one that is no byte stream, nobody
    /// listens there or only a user that the policy does not accept, it took too long, or this fabric has an
    /// [`Authenticator`](crate::Authenticator) or a policy without a fallback, which rule such links out.
    pub async fn connect_plain(&self, uri: &str) -> Result<PlainStream, Error> {
        let uri: Uri = uri.parse()?;
        let shared = &self.shared;
        if shared.authenticator.is_some() {
            return Err(AuthError::new("nobody proves who they are on a plain link").into());
        }
        let request = shared.request(&uri)?;
        let refused = |why| {
            let mut report = SelectionReport::default();
            report.set(PLAIN, Stage::Connect, Outcome::Unavailable(why));
            Err(Error::NoTransport(Box::new(report)))
        };
        if !shared.allows_plain(uri.addr(), &request) {
            return refused(Unavailable::ForbiddenByPolicy);
        }
        let link = self.open_link(&uri).await?;
        if let Some(why) = wireup::foreign(shared, &*link) {
            return refused(why);
        }
        Ok(PlainStream::new(link, Vec::new(), shared.transports.iter().map(|transport| &**transport)))
    }

    async fn open_link(&self, uri: &Uri) -> Result<Box<dyn ControlLink>, Error> {
        let shared = &self.shared;
        let provider = shared.provider(uri.addr())?;
        let opening = async {
            let link = provider.connect(uri.addr(), &shared.reactor).await;
            link.map_err(|source| Error::Open { at: uri.to_string(), source })
        };
        let opened = deadline(&*shared.reactor, Stage::Connect, shared.deadlines.connect, opening).await;
        opened.inspect_err(|error| {
            wireup::failed(shared, Role::Client, uri.addr().clone(), error, 1);
        })
    }

    /// Listens. If a transport passes descriptors, a listener on TCP also has an abstract Unix socket,
    /// with a random name, where clients prove that they are on this host.
    ///
    /// # Errors
    /// The URI can't be read or has a parameter that no transport takes, the address can't be bound, or
    /// there is no runtime.
    pub async fn listen(&self, uri: &str) -> Result<Listener, Error> {
        self.start_listening(uri, false).await
    }

    /// Like [`Fabric::listen`], for zc and for whatever else the caller speaks at the same address.
    ///
    /// # Errors
    /// See [`Fabric::listen`].
    pub async fn listen_mixed(&self, uri: &str) -> Result<MixedListener, Error> {
        Ok(MixedListener(self.start_listening(uri, true).await?))
    }

    async fn start_listening(&self, uri: &str, mixed: bool) -> Result<Listener, Error> {
        let uri: Uri = uri.parse()?;
        let shared = &self.shared;
        let request = shared.request(&uri)?;
        let provider = shared.provider(uri.addr())?;
        let binding = async {
            let links = provider.bind(uri.addr(), &shared.reactor).await;
            links.map_err(|source| Error::Open { at: uri.to_string(), source })
        };
        // It may have to look up a name.
        let links = deadline(&*shared.reactor, Stage::Connect, shared.deadlines.connect, binding).await?;
        // Without it the transports that need it are refused, with the reason in each report.
        let prover = match shared.wants_proof(uri.addr(), &request) {
            true => Prover::start(shared)
                .await
                .inspect_err(|error| tracing::warn!(%error, "no socket for same-host proofs")),
            false => Err(Unavailable::HostNotProved),
        };
        Listener::start(shared.clone(), links, uri, request, prover, mixed)
    }
}
