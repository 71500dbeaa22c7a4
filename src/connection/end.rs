//! How the end of a connection is told.

use std::sync::Arc;

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use zc_core::wire::CloseCode;

use super::core::Core;
use super::error::ConnectionError;
use crate::event::{Closed, Connected, Observer, quietly};

/// Resolves with the reason of the end.
pub(super) type Ending = Shared<oneshot::Receiver<ConnectionError>>;

/// Tells the observer of the beginning and, when it is dropped, of the end; and those who wait for it.
pub(super) struct Obituary {
    core: Arc<Core>,
    observer: Arc<dyn Observer>,
    connected: Connected,
    ending: Option<oneshot::Sender<ConnectionError>>,
}

impl Obituary {
    pub(super) fn new(
        core: Arc<Core>,
        observer: Arc<dyn Observer>,
        connected: Connected,
        ending: oneshot::Sender<ConnectionError>,
    ) -> Self {
        observer.connected(&connected);
        Self { core, observer, connected, ending: Some(ending) }
    }

    /// Tells those who wait, if it has come to an end.
    pub(super) fn announce(&mut self) {
        if self.ending.is_some()
            && let Some(reason) = self.core.reason()
            && let Some(ending) = self.ending.take()
        {
            let _ = ending.send(reason);
        }
    }
}

impl Drop for Obituary {
    fn drop(&mut self) {
        let reason = self.core.reason().unwrap_or(ConnectionError::ClosedHere);
        let told = Closed {
            role: self.connected.role,
            peer: self.connected.peer.clone(),
            transport: self.connected.report.chosen().to_owned(),
            reason: if is_orderly(&reason) { None } else { Some(reason.to_string()) },
            ledger: self.core.ledger.snapshot(),
            lifetime: self.core.reactor.now().saturating_duration_since(self.core.started),
        };
        if let Some(ending) = self.ending.take() {
            let _ = ending.send(reason);
        }
        quietly(|| self.observer.closed(&told));
    }
}

fn is_orderly(reason: &ConnectionError) -> bool {
    use ConnectionError::{ClosedByPeer, ClosedHere, Idle};
    let code = CloseCode::NORMAL;
    matches!(reason, ClosedHere | Idle { .. } | ClosedByPeer { code: CloseCode::IDLE, .. })
        || matches!(reason, ClosedByPeer { code: other, .. } if *other == code)
}

impl Core {
    /// Ready when the connection has ended. It does not keep it open.
    pub(super) fn closed(&self) -> impl Future<Output = ConnectionError> + Send + use<> {
        self.ending.clone().map(|reason| reason.unwrap_or(ConnectionError::ClosedHere))
    }

    /// Why it has ended, if it has: nothing can be sent, and the peer's last word is in, or ours is out.
    fn reason(&self) -> Option<ConnectionError> {
        let rx = self.lock_rx();
        let tx = self.lock_tx();
        let failed = tx.failed.as_ref().filter(|_| rx.ended || tx.close_sent)?;
        // A write that failed says less than the CLOSE that was read after it.
        Some(rx.failed.as_ref().unwrap_or(failed).clone())
    }
}
