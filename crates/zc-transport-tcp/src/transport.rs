//! The transport: lanes on the control link's own bytes.

use zc_core::stream::COALESCE_MAX;
use zc_core::transport::{
    BoxFuture, Caps, ControlLink, Lane, LinkError, Offer, OfferContext, OneSided, Role, Transport,
    Unavailable, WireupError, ZeroCopy,
};

use crate::io::{ByteIo, LinkIo};
use crate::lane;
use crate::limits::ZERO_COPY_MIN;
use crate::link::StreamLink;

/// Messages over the control link: TCP, Unix, or any other [`ControlLink`].
///
/// ```
/// use zc_core::transport::{Transport, ZeroCopy};
/// use zc_transport_tcp::{TcpTransport, ZERO_COPY_MIN};
///
/// let caps = TcpTransport.probe().expect("streams are always there");
/// assert!(TcpTransport.in_band(), "it needs no socket besides the control link's");
/// assert_eq!(caps.zero_copy_min, ZERO_COPY_MIN);
/// assert!(matches!(caps.zero_copy_tx, ZeroCopy::Conditional(_)));
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpTransport;

impl Transport for TcpTransport {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn probe(&self) -> Result<Caps, Unavailable> {
        let mut caps = Caps::stream();
        caps.max_segments = zc_core::memory::MAX_SEGMENTS;
        caps.inline_size = COALESCE_MAX;
        caps.zero_copy_min = ZERO_COPY_MIN;
        caps.zero_copy_tx =
            ZeroCopy::Conditional("TCP, large messages, where the kernel does not copy anyway");
        caps.one_sided = OneSided::Emulated;
        Ok(caps)
    }

    fn in_band(&self) -> bool {
        true
    }

    fn offer(&self, _cx: &OfferContext) -> Result<Offer, Unavailable> {
        Ok(Offer { version: 1, bytes: Vec::new() })
    }

    fn join<'a>(
        &'a self,
        _role: Role,
        _mine: Offer,
        _peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async move {
            let link = link.take().ok_or_else(|| LinkError::Address("the control link is gone".into()))?;
            let mut caps = self.probe()?;
            caps.max_message = cx.limits.send_max_message;
            Ok(lane::start(byte_io(link)?, caps, cx))
        })
    }
}

/// The socket of a link of ours; of any other, the link itself.
fn byte_io(link: Box<dyn ControlLink>) -> Result<ByteIo, LinkError> {
    if !link.as_any().is_some_and(|any| any.is::<StreamLink>()) {
        return Ok(ByteIo::Link(LinkIo::new(link)));
    }
    let stream = link.into_any().downcast::<StreamLink>();
    Ok(stream.map_err(|_| LinkError::Address("the link is not what it says".into()))?.into_io())
}
