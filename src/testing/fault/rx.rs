//! The receiving half: frames arrive late, one by one, or not for a while.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::MAX_HELD_FRAMES;
use super::clock::{Clock, poll_until};
use super::switch::LaneState;
use crate::time::later;
use crate::transport::{Batch, Frame, FrameKind, LaneError, LaneRx, Received, Timer};

pub(super) struct FaultRx {
    /// None once the lane has failed: the peer then sees it end.
    inner: Option<Box<dyn LaneRx>>,
    state: Arc<LaneState>,
    clock: Clock,
    /// Frames on their way, with the time of their arrival.
    held: VecDeque<(Instant, Frame)>,
    /// How the inner lane ended; it takes effect once nothing is held any more.
    end: Option<Result<Received, LaneError>>,
    timer: Box<dyn Timer>,
    batch: Batch<Frame>,
    data_frames: u64,
}

impl FaultRx {
    pub(super) fn new(
        inner: Box<dyn LaneRx>,
        state: Arc<LaneState>,
        clock: Clock,
        timer: Box<dyn Timer>,
    ) -> Self {
        Self {
            inner: Some(inner),
            state,
            clock,
            held: VecDeque::new(),
            end: None,
            timer,
            batch: Batch::new(),
            data_frames: 0,
        }
    }

    fn check(&mut self) -> Result<(), LaneError> {
        self.state.check().inspect_err(|_| {
            self.inner = None;
            self.held.clear();
        })
    }

    /// Takes in what the inner lane has, until it has nothing or enough is held. Without a context
    /// nothing is armed.
    fn take_in(&mut self, mut cx: Option<&mut Context<'_>>) {
        while self.end.is_none() && self.held.len() + Batch::<Frame>::CAPACITY <= MAX_HELD_FRAMES {
            let Some(inner) = &mut self.inner else { return };
            let found = match &mut cx {
                Some(cx) => match inner.poll_recv(cx, &mut self.batch) {
                    Poll::Pending => return,
                    Poll::Ready(found) => found,
                },
                None => match inner.try_recv(&mut self.batch).transpose() {
                    None => return,
                    Some(found) => found,
                },
            };
            match found {
                Ok(Received::Some) => self.hold_batch(),
                end => self.end = Some(end),
            }
        }
    }

    fn hold_batch(&mut self) {
        let (least, most) = self.state.plan.delay;
        let now = self.clock.now();
        for frame in self.batch.drain() {
            let delay = match most.is_zero() {
                true => Duration::ZERO,
                false => {
                    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                    Duration::from_nanos(self.clock.random.between(nanos(least), nanos(most)))
                }
            };
            let after = self.held.back().map_or(now, |(due, _)| *due);
            self.held.push_back((later(now, delay).max(after), frame));
        }
    }

    fn hand_out(&mut self, out: &mut Batch<Frame>) -> Result<(), LaneError> {
        let now = self.clock.now();
        let most = match self.state.plan.batch {
            0 => Batch::<Frame>::CAPACITY,
            n => n.min(Batch::<Frame>::CAPACITY),
        };
        while out.len() < most && !self.clock.is_stalled() {
            if self.held.front().is_none_or(|(due, _)| *due > now) {
                break;
            }
            let Some((_, frame)) = self.held.pop_front() else { break };
            if frame.kind == FrameKind::Data {
                // What came in front of the failure is handed out first.
                if let Err(error) = self.state.cross(frame.payload.len()) {
                    return if out.is_empty() { Err(error) } else { Ok(()) };
                }
                self.data_frames += 1;
                self.clock.crossed(self.data_frames);
            }
            out.push(frame);
        }
        Ok(())
    }

    fn found(&mut self, out: &mut Batch<Frame>) -> Poll<Result<Received, LaneError>> {
        self.hand_out(out)?;
        match &self.end {
            _ if !out.is_empty() => Poll::Ready(Ok(Received::Some)),
            Some(end) if self.held.is_empty() => Poll::Ready(end.clone()),
            _ => Poll::Pending,
        }
    }
}

impl LaneRx for FaultRx {
    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<Frame>,
    ) -> Poll<Result<Received, LaneError>> {
        // Registered before it is asked: a release in between wakes us.
        self.state.rx.register(cx.waker());
        self.check()?;
        if self.state.is_receiving_stalled() {
            return Poll::Pending;
        }
        ready!(self.clock.poll_running(cx));
        ready!(self.clock.poll_early(cx, self.state.plan.pending_one_in));
        self.take_in(Some(cx));
        if let Poll::Ready(found) = self.found(out) {
            return Poll::Ready(found);
        }
        if let Some(&(due, _)) = self.held.front()
            && poll_until(&mut self.timer, self.clock.now(), due, cx).is_ready()
        {
            cx.waker().wake_by_ref();
        }
        if self.clock.is_stalled() && self.clock.poll_running(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn release(&mut self, bytes: usize) {
        if let Some(inner) = &mut self.inner {
            inner.release(bytes);
        }
    }

    fn try_recv(&mut self, out: &mut Batch<Frame>) -> Result<Option<Received>, LaneError> {
        self.check()?;
        if self.state.is_receiving_stalled() || self.clock.is_stalled() {
            return Ok(None);
        }
        self.take_in(None);
        match self.found(out) {
            Poll::Pending => Ok(None),
            Poll::Ready(found) => found.map(Some),
        }
    }

    fn stop(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.stop();
        }
        self.held.clear();
        self.end.get_or_insert(Err(LaneError::Closed));
    }
}
