//! The sending half.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use zc_core::memory::{AllocWaiter, BufPool, Deferral, PinnedBufMut};
use zc_core::transport::{
    AllocFailure, Batch, Frame, LaneError, LaneTx, SendRejected, SendReport, SendToken,
};

use super::core::{Core, Shared};
use super::outbound::Out;

pub(super) struct Tx {
    shared: Arc<Shared>,
    pool: BufPool,
    waiter: AllocWaiter,
}

impl Tx {
    pub(super) fn new(shared: Arc<Shared>, pool: BufPool) -> Self {
        Self { shared, pool, waiter: AllocWaiter::new() }
    }

    /// Ready: `is_so`. Looked at again once whoever ends it would wake us.
    fn poll_until(
        &self,
        cx: &mut Context<'_>,
        mut is_so: impl FnMut(&mut Core) -> Result<bool, LaneError>,
    ) -> Poll<Result<(), LaneError>> {
        let _deferral = Deferral::begin();
        let core = &mut *self.shared.core.lock();
        core.pump()?;
        if is_so(core)? {
            return Poll::Ready(Ok(()));
        }
        self.shared.wakers.tx.register(cx.waker());
        core.await_work(true);
        core.endpoint.arm();
        core.look(None)?;
        core.pump()?;
        if is_so(core)? { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl LaneTx for Tx {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        self.shared.core.lock().check()?;
        self.pool.poll_alloc(len, &mut self.waiter, cx).map_err(AllocFailure::from)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), LaneError>> {
        {
            let core = self.shared.core.lock();
            core.check_message(len)?;
            if core.may_send() {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_until(cx, |core| {
            core.check()?;
            Ok(core.may_send())
        })
    }

    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        let mut core = self.shared.core.lock();
        match core.check_frame(frame.kind, frame.payload.len()) {
            Ok(()) => Ok(core.enqueue(frame, report)),
            Err(error) => Err(SendRejected { frame, error }),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.poll_until(cx, |core| {
            core.check()?;
            Ok(core.is_flushed())
        })
    }

    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>> {
        let _deferral = Deferral::begin();
        let core = &mut *self.shared.core.lock();
        self.shared.wakers.tx.register(cx.waker());
        core.await_work(false);
        core.endpoint.arm();
        core.look(None)?;
        core.pump()?;
        core.reports.take(core.check().is_err(), out);
        if !out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        core.check()?;
        Poll::Pending
    }

    /// The peer has all in its memory when this is ready: nothing of ours is needed any more.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        {
            let mut core = self.shared.core.lock();
            core.check()?;
            if !core.is_shut {
                core.is_shut = true;
                core.push(Out::End);
            }
        }
        ready!(self.poll_until(cx, |core| {
            core.check()?;
            Ok(core.is_at_rest())
        }))?;
        Poll::Ready(Ok(()))
    }
}
