//! The sending half.

use std::sync::Arc;
use std::task::{Context, Poll};

use zc_core::memory::{AllocWaiter, BufPool, PinnedBufMut};
use zc_core::transport::{
    AllocFailure, Batch, Frame, FrameKind, LaneError, LaneTx, SendRejected, SendReport, SendToken,
};

use super::Shared;
use crate::engine::State;
use crate::protocol::{SendError, SendRefused};

pub(super) struct Tx {
    shared: Arc<Shared>,
    pool: BufPool,
    waiter: AllocWaiter,
    next_token: u64,
}

impl Tx {
    pub(super) fn new(shared: Arc<Shared>, pool: BufPool) -> Self {
        Self { shared, pool, waiter: AllocWaiter::new(), next_token: 0 }
    }
}

fn check(state: &State) -> Result<(), LaneError> {
    state.end().map_or(Ok(()), |end| Err(end.clone()))
}

fn refused(state: &State, error: SendError) -> LaneError {
    match error {
        SendError::Ended | SendError::Finished => state.end().cloned().unwrap_or(LaneError::Closed),
        other => LaneError::Other(other.to_string()),
    }
}

impl LaneTx for Tx {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        check(&self.shared.lock().state)?;
        if let Some(frame) = self.shared.engine.alloc(len) {
            return Poll::Ready(Ok(frame));
        }
        self.pool.poll_alloc(len, &mut self.waiter, cx).map_err(AllocFailure::from)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), LaneError>> {
        let mut locked = self.shared.lock();
        for is_settled in [false, true] {
            check(&locked.state)?;
            match locked.state.session.may_send(FrameKind::Data, len) {
                Ok(true) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(refused(&locked.state, error))),
                Ok(false) if is_settled => {}
                // What the peer waits for must be out before we wait for the peer.
                Ok(false) => locked.settle(),
            }
        }
        locked.state.waits.room = Some(len);
        self.shared.conn.tx.register(cx.waker());
        Poll::Pending
    }

    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        let mut locked = self.shared.lock();
        let token = SendToken(self.next_token);
        match locked.state.session.send(frame, report.then_some(token)) {
            Ok(()) => {
                self.next_token += 1;
                Ok(token)
            }
            Err(SendRefused { frame, error }) => {
                Err(SendRejected { frame, error: refused(&locked.state, error) })
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let mut locked = self.shared.lock();
        locked.settle();
        check(&locked.state)?;
        if locked.state.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        locked.state.waits.flush = true;
        self.shared.conn.tx.register(cx.waker());
        Poll::Pending
    }

    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>> {
        let mut locked = self.shared.lock();
        while !out.is_full()
            && let Some(token) = locked.state.session.poll_completion()
        {
            out.push((token, SendReport::Sent));
        }
        if !out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        check(&locked.state)?;
        locked.state.waits.completion = true;
        self.shared.conn.tx.register(cx.waker());
        Poll::Pending
    }

    fn abandon(&mut self, each: &mut dyn FnMut(Frame)) {
        let mut locked = self.shared.lock();
        let back: Vec<_> = match locked.state.end() {
            Some(_) => locked.state.session.abandon().map(|(frame, _)| frame).collect(),
            None => Vec::new(),
        };
        // Whoever gets them may send them by another lane of this engine at once.
        drop(locked);
        back.into_iter().for_each(each);
    }

    /// Ready once the peer has acknowledged everything: who ends its process then loses nothing.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let mut locked = self.shared.lock();
        locked.state.session.finish();
        locked.settle();
        if locked.state.is_finished() {
            return Poll::Ready(Ok(()));
        }
        check(&locked.state)?;
        locked.state.waits.close = true;
        self.shared.conn.tx.register(cx.waker());
        Poll::Pending
    }
}
