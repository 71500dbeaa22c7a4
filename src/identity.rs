//! Who is at the other end.

use zc_core::transport::{LinkAddr, PeerCred};

/// What is known about a peer. Nothing of it is proven unless `cred` is set: the kernel vouches for that.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerIdentity {
    /// Its address on the control link.
    pub addr: LinkAddr,
    /// On Unix sockets: process, user and group (`SO_PEERCRED`, unix(7)).
    pub cred: Option<PeerCred>,
    /// What its software calls itself.
    pub agent: String,
    /// Chosen at random by each fabric.
    pub instance: [u8; 16],
}
