//! The lane of a stream: frames with credit, in both directions.

mod body;
mod credit;
mod drive;
mod head;
mod life;
mod linger;
mod queue;
mod rx;
mod tx;
mod wakers;
mod zero_copy;

use std::sync::Arc;

use zc_core::memory::LeaseBudget;
use zc_core::transport::{Caps, Lane, OfferContext};

use crate::io::ByteIo;

/// A lane over `io`.
pub(crate) fn start(io: ByteIo, caps: Caps, cx: OfferContext) -> Lane {
    let leases = LeaseBudget::new(cx.limits.lease_soft, cx.limits.lease_hard);
    let credit = credit::Credit::new(cx.limits.send_window, cx.limits.recv_window, leases.clone());
    let credit = Arc::new(credit);
    let shared = tx::Shared::new(io.clone(), &cx, credit.clone());
    Lane {
        rx: Box::new(rx::Rx::new(io, &cx, leases.clone(), credit, &shared)),
        drive: Some(Box::new(drive::Drive::new(shared.clone()))),
        tx: Box::new(tx::Tx::new(shared, cx.pool)),
        remote: None,
        caps,
        leases,
    }
}

/// Takes the first item if `wanted` says so.
fn pop_if<T>(items: &mut std::collections::VecDeque<T>, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
    if wanted(items.front()?) { items.pop_front() } else { None }
}
