//! The lane of a stream: [`zc_core::stream`] over sockets that tell when they are ready.

mod drive;
mod linger;
mod rx;
mod tx;
mod zero_copy;

use std::sync::Arc;

use zc_core::stream::{self, Wakers};
use zc_core::transport::{Caps, Lane, OfferContext};

use crate::io::ByteIo;

/// A lane over `io`.
pub(crate) fn start(io: ByteIo, caps: Caps, cx: OfferContext) -> Lane {
    let (wakers, stages) = (Arc::new(Wakers::default()), cx.pool.with_origin("tcp tx"));
    let (sending, parser) = stream::halves(&cx.limits, stages, &cx.ledger, &wakers);
    let leases = parser.leases().clone();
    let shared = tx::Shared::new(io.clone(), &cx, sending, wakers);
    Lane {
        rx: Box::new(rx::Rx::new(io, &cx, parser, &shared)),
        drive: Some(Box::new(drive::Drive::new(shared.clone()))),
        tx: Box::new(tx::Tx::new(shared, cx.pool)),
        remote: None,
        caps,
        leases,
    }
}
