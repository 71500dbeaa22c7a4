//! The transport "mem": a stream transport's framing on a link in memory.

use std::sync::Arc;

use zc_core::transport::{
    BoxFuture, Caps, ControlLink, Lane, Offer, OfferContext, OneSided, Role, Scope, Transport, Unavailable,
    WireupError,
};

/// Runs an in-band transport on links inside one process, under the name "mem".
///
/// ```
/// use std::sync::Arc;
/// use zc::MemTransport;
/// use zc::transport::{Scope, Transport};
///
/// let mem = MemTransport::over(Arc::new(zc_transport_tcp::TcpTransport));
/// assert_eq!(mem.probe().unwrap().scope, Scope::Process);
/// ```
#[derive(Clone)]
pub struct MemTransport {
    stream: Arc<dyn Transport>,
}

impl MemTransport {
    /// `stream` must be in-band and able to run on any [`ControlLink`].
    pub fn over(stream: Arc<dyn Transport>) -> Self {
        Self { stream }
    }
}

impl Transport for MemTransport {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn probe(&self) -> Result<Caps, Unavailable> {
        let mut caps = Caps::stream();
        caps.scope = Scope::Process;
        caps.one_sided = OneSided::Emulated;
        Ok(caps)
    }

    fn in_band(&self) -> bool {
        true
    }

    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        self.stream.offer(cx)
    }

    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        self.stream.join(role, mine, peer, link, cx)
    }
}
