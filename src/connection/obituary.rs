//! The event that ends a connection.

use std::sync::Arc;

use zc_core::transport::Role;
use zc_core::wire::CloseCode;

use super::core::Core;
use super::error::ConnectionError;
use crate::event::{Closed, Observer};
use crate::identity::PeerIdentity;

/// Tells the observer, once.
pub(super) struct Obituary {
    pub(super) observer: Option<Arc<dyn Observer>>,
    pub(super) role: Role,
    pub(super) peer: PeerIdentity,
    pub(super) transport: String,
}

impl Obituary {
    pub(super) fn publish(&mut self, core: &Core) {
        let Some(observer) = self.observer.take() else { return };
        let reason = core.lock_tx().failed.as_ref().and_then(reason);
        observer.closed(&Closed {
            role: self.role,
            peer: self.peer.clone(),
            transport: self.transport.clone(),
            reason,
            ledger: core.ledger.snapshot(),
            lifetime: core.reactor.now().saturating_duration_since(core.started),
        });
    }
}

/// What made it fail, if it did not end in order.
fn reason(error: &ConnectionError) -> Option<String> {
    match error {
        ConnectionError::ClosedHere | ConnectionError::Idle { .. } => None,
        ConnectionError::ClosedByPeer { code: CloseCode::NORMAL | CloseCode::IDLE, .. } => None,
        error => Some(error.to_string()),
    }
}
