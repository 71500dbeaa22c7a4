//! The one-sided half of a lane.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use zc_core::memory::{Deferral, ExportMemory};
use zc_core::transport::{
    Batch, LaneError, LaneRemote, RemoteAtomics, RemoteCompletion, RemoteGrant, RemoteKey, RemoteOp,
    RemoteToken, Revoked,
};

use crate::lane::core::Shared;

pub(in crate::lane) struct Half {
    shared: Arc<Shared>,
}

impl Half {
    pub(in crate::lane) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl LaneRemote for Half {
    fn grant(&mut self, grant: RemoteGrant) -> Result<RemoteKey, LaneError> {
        let _deferral = Deferral::begin();
        self.shared.core.lock().grant_remote(grant)
    }

    fn atomics(&mut self, memory: &ExportMemory) -> Result<RemoteAtomics, LaneError> {
        let _deferral = Deferral::begin();
        self.shared.core.lock().remote_atomics(memory)
    }

    fn revoke(&mut self, key: &RemoteKey) -> Revoked {
        let _deferral = Deferral::begin();
        self.shared.core.lock().revoke_remote(key)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        if self.shared.core.lock().takes_operation()? {
            return Poll::Ready(Ok(()));
        }
        // There is room when a completion is taken.
        self.shared.wakers.remote.register(cx.waker());
        Poll::Pending
    }

    fn start(&mut self, key: &RemoteKey, offset: u64, op: RemoteOp) -> Result<RemoteToken, LaneError> {
        let _deferral = Deferral::begin();
        self.shared.core.lock().start_operation(key, offset, op)
    }

    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<RemoteCompletion>,
    ) -> Poll<Result<(), LaneError>> {
        let _deferral = Deferral::begin();
        let core = &mut *self.shared.core.lock();
        if cx.waker().will_wake(Waker::noop()) {
            // Whoever wants nobody woken looks again.
            core.peek_remote();
        } else {
            self.shared.wakers.remote.register(cx.waker());
            let Some(mut awaited) = core.await_remote() else { return Poll::Pending };
            loop {
                // A failure is told below, behind what was done before it.
                let _ = core.look(None).and_then(|()| core.pump());
                // Queue pairs may have come up meanwhile: what happened on them before they were awaited woke nobody.
                match core.await_remote() {
                    Some(now) if now != awaited => awaited = now,
                    _ => break,
                }
            }
        }
        if std::mem::take(&mut core.tx_news) {
            self.shared.wakers.tx.wake();
        }
        core.operations_done(out);
        if !out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        core.check()?;
        Poll::Pending
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        let _deferral = Deferral::begin();
        self.shared.core.lock().shut_remote();
    }
}
