//! The receiving half.

use std::sync::Arc;
use std::task::{Context, Poll};

use zc_core::memory::Deferral;
use zc_core::transport::{Batch, Frame, LaneError, LaneRx, Received};

use super::core::Shared;

pub(super) struct Rx {
    shared: Arc<Shared>,
}

impl Rx {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Without a context nothing is armed.
    fn recv(
        &mut self,
        cx: Option<&mut Context<'_>>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        let _deferral = Deferral::begin();
        let core = &mut *self.shared.core.lock();
        if let Some(cx) = &cx {
            self.shared.wakers.rx.register(cx.waker());
            core.await_work(false);
            core.endpoint.arm();
        } else {
            core.endpoint.looks_on();
        }
        // The failure is told below, behind what came before it.
        let _ = core.look(cx.as_deref());
        let _ = core.poll_memory(cx);
        let _ = core.pump();
        if std::mem::take(&mut core.tx_news) {
            self.shared.wakers.tx.wake();
        }
        while !out.is_full()
            && !core.is_stopped
            && let Some(frame) = core.next()
        {
            out.push(frame);
        }
        match core.over() {
            _ if !out.is_empty() => Poll::Ready(Ok(Received::Some)),
            Some(over) => Poll::Ready(over.map(|()| Received::Closed)),
            None => Poll::Pending,
        }
    }
}

impl LaneRx for Rx {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        self.recv(Some(cx), out)
    }

    fn release(&mut self, bytes: usize) {
        let _deferral = Deferral::begin();
        let core = &mut *self.shared.core.lock();
        core.credit.take(bytes);
        if core.credit.is_due() {
            // Whatever fails is told by who looks next.
            let _ = core.pump();
        }
    }

    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        match self.recv(None, out) {
            Poll::Ready(done) => done.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    fn stop(&mut self) {
        let _deferral = Deferral::begin();
        let core = &mut *self.shared.core.lock();
        core.stop();
        let _ = core.pump();
    }
}
