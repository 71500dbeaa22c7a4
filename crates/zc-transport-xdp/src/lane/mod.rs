//! The lane: two halves and a drive on one session of an engine.

mod drive;
mod rx;
#[cfg(test)]
mod tests;
mod tx;

use std::sync::Arc;

use parking_lot::MutexGuard;
use zc_core::memory::{Deferral, LeaseBudget};
use zc_core::transport::{Caps, Lane, OfferContext};

use crate::engine::{Conn, Engine, State};

/// What all parts of a lane have. With the last of them the session ends.
pub(super) struct Shared {
    engine: Arc<Engine>,
    conn: Arc<Conn>,
}

impl Shared {
    /// The session. Opens a deferral, in which it is locked.
    fn lock(&self) -> Locked<'_> {
        let deferral = Deferral::begin();
        Locked { state: self.conn.state.lock(), shared: self, _deferral: deferral }
    }

    fn wake_drive(&self) {
        if let Some(waker) = self.conn.drive.take() {
            Deferral::wake(waker);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Whoever looked by this lane does no more.
        self.engine.rest();
        self.engine.detach(&self.conn);
    }
}

/// A session that is locked.
struct Locked<'a> {
    // Dropped in this order: first unlocked, then left.
    state: MutexGuard<'a, State>,
    shared: &'a Shared,
    _deferral: Deferral,
}

impl Locked<'_> {
    /// Sends what may be sent now.
    fn settle(&mut self) {
        let Shared { engine, conn } = self.shared;
        engine.settle(conn, &mut self.state, engine.now());
    }
}

/// A lane on a session.
pub(crate) fn start(engine: Arc<Engine>, conn: Arc<Conn>, mut caps: Caps, cx: &OfferContext) -> Lane {
    let leases = LeaseBudget::new(cx.limits.lease_soft, cx.limits.lease_hard);
    let shared = Arc::new(Shared { engine, conn });
    caps.max_message = cx.limits.send_max_message;
    Lane {
        tx: Box::new(tx::Tx::new(shared.clone(), cx.pool.with_origin("xdp tx"))),
        rx: Box::new(rx::Rx::new(shared.clone(), leases.clone(), cx)),
        drive: Some(Box::new(drive::Drive::new(shared, leases.clone()))),
        remote: None,
        caps,
        leases,
    }
}
