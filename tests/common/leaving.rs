//! Links of a process that goes elsewhere.

use std::io;
use std::sync::Arc;

use zc::transport::{BoxFuture, ControlLink, LinkAddr, LinkError, LinkListener, LinkProvider, Reactor};
use zc_transport_tcp::StreamLinks;

/// Moves the thread to a network namespace of its own, in which nothing is up.
pub(crate) fn leave() -> io::Result<()> {
    #[allow(deprecated, reason = "safe for namespaces; what the new one warns of are file tables")]
    let left = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
    Ok(left?)
}

/// Opens its link where we are, and then leaves: the link goes on, and what is found out after it is found elsewhere.
pub(crate) struct Leaving;

impl LinkProvider for Leaving {
    fn accepts(&self, addr: &LinkAddr) -> bool {
        StreamLinks.accepts(addr)
    }
    fn connect<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn ControlLink>, LinkError>> {
        Box::pin(async move {
            let link = StreamLinks.connect(addr, reactor).await?;
            leave().map_err(|source| LinkError::Io { operation: "unshare", source })?;
            Ok(link)
        })
    }
    fn bind<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn LinkListener>, LinkError>> {
        StreamLinks.bind(addr, reactor)
    }
}
