//! Memory of a lane's own: what it sends without a copy where that is not any pool's.

use std::sync::Arc;
use std::task::{Context, Poll};

use zc_core::memory::PinnedBufMut;
use zc_core::transport::{AllocFailure, LaneError};

use super::core::Core;
use super::waiters::Place;

/// A wait for such memory, in turn: a lane keeps one waker, the driver's, which wakes whoever is first.
pub(super) struct LaneAlloc<'a> {
    core: &'a Arc<Core>,
    place: Option<Place>,
}

impl<'a> LaneAlloc<'a> {
    pub(super) fn new(core: &'a Arc<Core>) -> Self {
        Self { core, place: None }
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        len: usize,
    ) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        let core = self.core;
        let mut tx = core.lock_tx();
        let polled = if tx.failed.is_some() {
            Poll::Ready(Err(LaneError::Closed.into()))
        } else if tx.allocs.may_go(self.place) {
            tx.lane.poll_alloc(&mut Context::from_waker(&core.tx_waker), len)
        } else {
            Poll::Pending
        };
        if polled.is_pending() {
            tx.allocs.wait(&mut self.place, cx.waker());
            core.watch.need();
        } else {
            core.leave_allocs(&mut tx, &mut self.place);
        }
        polled
    }
}

impl Drop for LaneAlloc<'_> {
    fn drop(&mut self) {
        if self.place.is_some() {
            self.core.leave_allocs(&mut self.core.lock_tx(), &mut self.place);
        }
    }
}

/// Memory of the lane if there is some now, for those who must not wait in the queue.
pub(super) fn try_lane_alloc(core: &Core, len: usize) -> Option<PinnedBufMut> {
    if !core.own_memory {
        return None;
    }
    let mut tx = core.lock_tx();
    if tx.failed.is_some() || !tx.allocs.is_empty() {
        return None;
    }
    match tx.lane.poll_alloc(&mut Context::from_waker(&core.tx_waker), len) {
        Poll::Ready(Ok(buf)) => Some(buf),
        _ => None,
    }
}
