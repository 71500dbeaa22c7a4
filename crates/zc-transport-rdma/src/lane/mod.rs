//! The lane: messages over a reliable connected queue pair.
//!
//! ```text
//! short: SEND --------------------------------> a receive buffer of the peer's, one of the share we were promised
//! long:  bind a window, SEND its announcement -> READ into memory of its length -> STATE: read
//!        <- made invalid, memory free <-------------------------------------------'
//! ```
//!
//! One-sided operations have queue pairs of their own (`remote`).
//!
//! `record`, `slots`, `credit`, `inbound`, `outbound` and `starving` do no I/O; `core` has the endpoint and drives them.

mod core;
mod credit;
mod drive;
mod inbound;
mod outbound;
mod record;
mod remote;
mod rx;
mod slots;
mod starving;
mod tx;

use std::sync::Arc;

use parking_lot::Mutex;
use zc_core::transport::{Caps, Lane, OfferContext};

pub(crate) use self::core::Terms;
use self::core::{Core, Shared, Wakers};
use crate::engine::Endpoint;
use crate::wire::End;

/// A lane over an endpoint that is connected.
pub(crate) fn start(endpoint: Endpoint, terms: Terms, peer: End, caps: Caps, cx: &OfferContext) -> Lane {
    let wakers = Arc::new(Wakers::default());
    let core = Core::new(endpoint, terms, peer, wakers.clone(), cx);
    let leases = core.leases.clone();
    let shared = Arc::new(Shared { core: Mutex::new(core), wakers });
    Lane {
        tx: Box::new(tx::Tx::new(shared.clone(), cx.pool.clone())),
        rx: Box::new(rx::Rx::new(shared.clone())),
        drive: Some(Box::new(drive::Drive::new(shared.clone()))),
        remote: Some(Box::new(remote::Half::new(shared))),
        caps,
        leases,
    }
}
