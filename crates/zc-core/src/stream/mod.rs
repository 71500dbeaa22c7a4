//! The stream lane without I/O: frames with credit over any stream of bytes.
//!
//! Whatever moves the bytes, both ends speak the same protocol, so each picks its own engine. [`Sending`] queues
//! frames and says what to write next; [`Parser`] finds them in what was read. An engine brings the reads and
//! writes, the memory for them, and the lane's traits.
//!
//! ```text
//! frame -> Sending -> Pieces --engine--> bytes ... bytes --engine--> Parser -> frame
//!             ^ what the peer grants            what the application took |
//!             +---------------------- Credit, Wakers ---------------------+
//! ```

mod body;
mod credit;
mod head;
mod life;
mod limits;
mod parser;
mod queue;
mod sending;
mod wakers;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use life::Life;
pub use limits::{
    COALESCE_MAX, DIRECT_MIN, MAX_IOV, MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, MAX_QUEUED_RECORD_BYTES,
    ROPE_KEEPS, ROPE_MIN, ROPE_MIN_BLOCKS, STAGE_BYTES,
};
pub use parser::Parser;
pub use queue::{Pieces, Plan};
pub use sending::Sending;
pub use wakers::Wakers;

use crate::memory::{BufPool, CopyLedger, LeaseBudget};
use crate::transport::LaneLimits;

/// Both directions of one lane. `stages` is the pool in which small frames are put together.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::{BufPool, CopyLedger};
/// use zc_core::stream::{Wakers, halves};
/// use zc_core::transport::LaneLimits;
///
/// let (pool, wakers) = (BufPool::builder().build(), Arc::new(Wakers::default()));
/// let ledger = Arc::new(CopyLedger::new());
/// let (sending, parser) = halves(&LaneLimits::default(), pool, &ledger, &wakers);
/// assert!(sending.is_empty() && !parser.is_inside_frame());
/// ```
pub fn halves(
    limits: &LaneLimits,
    stages: BufPool,
    ledger: &Arc<CopyLedger>,
    wakers: &Arc<Wakers>,
) -> (Sending, Parser) {
    let leases = LeaseBudget::new(limits.lease_soft, limits.lease_hard);
    let credit = credit::Credit::new(limits.send_window, limits.recv_window, leases.clone());
    let credit = Arc::new(credit);
    let sending = Sending::new(limits.send_max_message, stages, ledger.clone(), credit.clone());
    let parser = Parser::new(limits.recv_max_message, ledger.clone(), leases, credit, wakers.clone());
    (sending, parser)
}
