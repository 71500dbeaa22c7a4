//! The sending half: stalls, has little room, and tells late how sends ended.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use super::MAX_HELD_FRAMES;
use super::clock::{Clock, poll_until};
use super::switch::LaneState;
use crate::memory::{AllocError, MemoryGroup, PinnedBufMut, RegisterError};
use crate::time::later;
use crate::transport::{
    AllocFailure, Batch, Frame, FrameKind, LaneError, LaneTx, PipedFrame, PipedRejected, SendRejected,
    SendReport, SendToken, Timer,
};

/// A frame, wherever its payload is.
enum Given {
    Frame(Frame),
    Piped(PipedFrame),
}

impl Given {
    fn is_data(&self) -> bool {
        match self {
            Self::Frame(frame) => frame.kind == FrameKind::Data,
            Self::Piped(_) => true,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Frame(frame) => frame.payload.len(),
            Self::Piped(frame) => frame.payload.len(),
        }
    }
}

/// A frame that comes back.
struct Refused {
    given: Given,
    error: LaneError,
}

/// A frame that was taken while nothing could leave.
struct Held {
    given: Given,
    token: Option<SendToken>,
}

pub(super) struct FaultTx {
    /// None once the lane has failed: the peer then sees it end.
    inner: Option<Box<dyn LaneTx>>,
    state: Arc<LaneState>,
    clock: Clock,
    held: VecDeque<Held>,
    data_frames: u64,
    tokens: u64,
    /// The inner lane's names of sends and ours.
    names: VecDeque<(SendToken, SendToken)>,
    late: VecDeque<(Instant, SendToken, SendReport)>,
    late_timer: Box<dyn Timer>,
    reports: Batch<(SendToken, SendReport)>,
    /// When the current stretch of [`FaultPlan::room`](super::FaultPlan::room) ends, and what was used of it.
    room: Option<(Instant, u64)>,
    room_timer: Box<dyn Timer>,
}

impl FaultTx {
    pub(super) fn new(
        inner: Box<dyn LaneTx>,
        state: Arc<LaneState>,
        clock: Clock,
        [late_timer, room_timer]: [Box<dyn Timer>; 2],
    ) -> Self {
        Self {
            inner: Some(inner),
            state,
            clock,
            held: VecDeque::new(),
            data_frames: 0,
            tokens: 0,
            names: VecDeque::new(),
            late: VecDeque::new(),
            late_timer,
            reports: Batch::new(),
            room: None,
            room_timer,
        }
    }

    /// The inner lane, unless this one has failed.
    fn alive(&mut self) -> Result<&mut dyn LaneTx, LaneError> {
        if let Err(error) = self.state.check() {
            self.inner = None;
            self.held.clear();
            return Err(error);
        }
        self.inner.as_deref_mut().map(|inner| inner as _).ok_or(LaneError::Closed)
    }

    /// Ready when something may leave and everything held has left.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        // Registered before it is asked: a release in between wakes us.
        self.state.tx.register(cx.waker());
        self.alive()?;
        if self.state.is_sending_stalled() {
            return Poll::Pending;
        }
        ready!(self.clock.poll_running(cx));
        ready!(self.clock.poll_early(cx, self.state.plan.pending_one_in));
        while let Some(held) = self.held.front() {
            let (is_data, len) = (held.given.is_data(), held.given.len());
            let inner = self.alive()?;
            if is_data {
                ready!(inner.poll_ready(cx, len))?;
            }
            if let Some(held) = self.held.pop_front()
                && let Err(refused) = self.pass_on(held.given, held.token)
            {
                // It was taken, so it can't be given back: the lane has failed.
                self.state.fail(refused.error.clone());
                return Poll::Ready(Err(refused.error));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn pass_on(&mut self, given: Given, token: Option<SendToken>) -> Result<(), Refused> {
        let inner = match self.alive() {
            Ok(inner) => inner,
            Err(error) => return Err(Refused { given, error }),
        };
        let taken = match given {
            Given::Frame(frame) => inner
                .start_send(frame, token.is_some())
                .map_err(|SendRejected { frame, error }| Refused { given: Given::Frame(frame), error }),
            Given::Piped(frame) => inner
                .start_send_piped(frame, token.is_some())
                .map_err(|PipedRejected { frame, error }| Refused { given: Given::Piped(frame), error }),
        };
        let name = taken?;
        self.names.extend(token.map(|token| (name, token)));
        Ok(())
    }

    /// Passes a frame on, holds it back, or fails as planned.
    fn take(&mut self, given: Given, report: bool) -> Result<SendToken, Refused> {
        let is_data = given.is_data();
        let crossed = match self.alive() {
            Ok(_) if is_data => self.state.cross(given.len()),
            checked => checked.map(drop),
        };
        let full = LaneError::Other("too much is held back".into());
        let crossed = if self.held.len() < MAX_HELD_FRAMES { crossed } else { Err(full) };
        if let Err(error) = crossed {
            return Err(Refused { given, error });
        }
        self.tokens += 1;
        let token = SendToken(self.tokens);
        let named = report.then_some(token);
        let stalled = self.state.is_sending_stalled() || self.clock.is_stalled();
        if stalled || !self.held.is_empty() {
            self.held.push_back(Held { given, token: named });
        } else {
            self.pass_on(given, named)?;
        }
        if is_data {
            self.data_frames += 1;
            self.clock.crossed(self.data_frames);
            self.room = self.room.map(|(end, used)| (end, used + 1));
        }
        Ok(token)
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((frames, per)) = self.state.plan.room else { return Poll::Ready(()) };
        let now = self.clock.now();
        let (end, used) = *self.room.get_or_insert((later(now, per), 0));
        if now < end && used >= frames {
            ready!(poll_until(&mut self.room_timer, now, end, cx));
        }
        if now >= end || used >= frames {
            self.room = Some((later(now, per), 0));
        }
        Poll::Ready(())
    }
}

impl LaneTx for FaultTx {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        if self.clock.random.one_in(self.state.plan.refuse_alloc_one_in) {
            return Poll::Ready(Err(AllocError::Exhausted { need: len, in_use: 0, max: 0 }.into()));
        }
        self.alive()?.poll_alloc(cx, len)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), LaneError>> {
        ready!(self.poll_open(cx))?;
        ready!(self.poll_room(cx));
        self.alive()?.poll_ready(cx, len)
    }

    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        self.take(Given::Frame(frame), report).map_err(|Refused { given, error }| {
            let Given::Frame(frame) = given else { unreachable!("the one that was given comes back") };
            SendRejected { frame, error }
        })
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        ready!(self.poll_open(cx))?;
        self.alive()?.poll_flush(cx)
    }

    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>> {
        self.state.tx.register(cx.waker());
        self.alive()?;
        if let Some(inner) = &mut self.inner
            && let Poll::Ready(done) = inner.poll_completions(cx, &mut self.reports)
        {
            done?;
            let due = later(self.clock.now(), self.state.plan.late_reports);
            for (name, report) in self.reports.drain() {
                if let Some(at) = self.names.iter().position(|(inner, _)| *inner == name)
                    && let Some((_, token)) = self.names.remove(at)
                {
                    self.late.push_back((due, token, report));
                }
            }
        }
        let now = self.clock.now();
        while let Some(&(due, token, report)) = self.late.front()
            && due <= now
            && !out.is_full()
        {
            self.late.pop_front();
            out.push((token, report));
        }
        if !out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if let Some(&(due, ..)) = self.late.front()
            && poll_until(&mut self.late_timer, now, due, cx).is_ready()
        {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        ready!(self.poll_open(cx))?;
        self.alive()?.poll_close(cx)
    }

    fn join_group(&mut self, group: &MemoryGroup) -> Result<(), RegisterError> {
        // A lane that has failed sends nothing, of whatever memory.
        self.alive().map_or(Ok(()), |inner| inner.join_group(group))
    }

    fn leave_group(&mut self, group: &MemoryGroup) {
        if let Ok(inner) = self.alive() {
            inner.leave_group(group);
        }
    }

    fn abandon(&mut self, each: &mut dyn FnMut(Frame)) {
        if let Some(inner) = &mut self.inner {
            inner.abandon(each);
        }
    }

    fn takes_pipes(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.takes_pipes())
    }

    fn start_send_piped(&mut self, frame: PipedFrame, report: bool) -> Result<SendToken, PipedRejected> {
        self.take(Given::Piped(frame), report).map_err(|Refused { given, error }| {
            let Given::Piped(frame) = given else { unreachable!("the one that was given comes back") };
            PipedRejected { frame, error }
        })
    }
}
