//! The lane of a stream: [`zc_core::stream`] over a socket that an engine drives.
//!
//! What can be done at once is done by a plain system call; what has to wait is an operation of the engine's.

mod drive;
mod hot;
mod linger;
mod rx;
#[cfg(test)]
mod tests;
mod tx;
mod zero_copy;

use std::sync::Arc;

use zc_core::memory::{AllocError, BufPool, PinnedBufMut};
use zc_core::stream::{self, Wakers};
use zc_core::transport::{Caps, Lane, OfferContext};

use crate::engine::{SocketRx, SocketTx, Tenant};
use crate::limits::SCRATCH_BYTES;
use crate::zero_copy::ZeroCopyPolicy;

/// The little memory that a lane always has.
pub(crate) struct Scratch(PinnedBufMut);

impl Scratch {
    pub(crate) fn new(pool: &BufPool) -> Result<Self, AllocError> {
        pool.with_origin("uring rx").try_alloc(SCRATCH_BYTES).map(Self)
    }
}

/// A lane over the halves of a socket.
pub(crate) fn start(
    halves: (SocketTx, SocketRx),
    engines: Tenant,
    scratch: Scratch,
    caps: Caps,
    cx: OfferContext,
) -> Lane {
    let policy = halves.0.zero_copy_policy();
    start_with(halves, policy, engines, scratch, caps, cx)
}

fn start_with(
    (socket_tx, socket_rx): (SocketTx, SocketRx),
    policy: ZeroCopyPolicy,
    engines: Tenant,
    Scratch(scratch): Scratch,
    caps: Caps,
    cx: OfferContext,
) -> Lane {
    let (wakers, stages) = (Arc::new(Wakers::default()), cx.pool.with_origin("uring tx"));
    let (sending, parser) = stream::halves(&cx.limits, stages, &cx.ledger, &wakers);
    let leases = parser.leases().clone();
    let shared = tx::Shared::new(socket_tx, policy, engines, &cx, sending, wakers);
    Lane {
        rx: Box::new(rx::Rx::new(socket_rx, &cx, parser, scratch, shared.life.clone())),
        drive: Some(Box::new(drive::Drive::new(shared.clone()))),
        tx: Box::new(tx::Tx::new(shared, cx.pool)),
        remote: None,
        caps,
        leases,
    }
}
