//! Who is at the other end.

use zc_core::transport::{LinkAddr, PeerCred};

/// What is known about a peer. Only `cred` and `authenticated` are proven; the rest is what it says.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://identity").await?;
/// # let (client, server) = tokio::try_join!(fabric.connect("zc+mem://identity"), listener.accept())?;
/// let peer = server.peer();
/// println!("{} runs {}", peer.addr, peer.agent); // what it says
/// assert_eq!(peer.authenticated, None); // nobody asked for a proof
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerIdentity {
    /// Its address on the control link.
    pub addr: LinkAddr,
    /// Process, user and group as the kernel says (`SO_PEERCRED`, unix(7)): on Unix sockets, and where a
    /// peer on TCP proved that it is on this host.
    pub cred: Option<PeerCred>,
    /// The name that it proved to the [`Authenticator`](crate::Authenticator).
    pub authenticated: Option<String>,
    /// What its software calls itself.
    pub agent: String,
    /// Chosen at random by each fabric.
    pub instance: [u8; 16],
}

impl PeerIdentity {
    pub(crate) fn unknown(addr: LinkAddr, cred: Option<PeerCred>) -> Self {
        Self { addr, cred, authenticated: None, agent: String::new(), instance: [0; 16] }
    }
}
