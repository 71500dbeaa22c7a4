//! What is behind the engine's lock.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::End;
use super::inbox::{Inbox, Next};
use super::parked::Parked;
use crate::limits::MAX_SPARE_PARTS;
use crate::slab::Token;
use crate::sys::{Event, Flights, Parts, Request};

/// For whom a completion is.
pub(crate) enum Tag {
    /// A future, or nobody.
    One(Waiting),
    /// A socket that receives by itself.
    Many(Arc<Inbox>),
    /// A future, else the socket whose bytes they are.
    Direct(Arc<Inbox>, Waiting),
}

/// What a future waits for.
#[derive(Default)]
pub(crate) struct Waiting {
    pub(crate) waker: Parked,
    pub(crate) result: Option<i32>,
    /// Of a zero-copy send: whether the kernel copied.
    pub(crate) copied: Option<bool>,
}

impl Tag {
    pub(crate) fn waiting(&mut self) -> Option<&mut Waiting> {
        match self {
            Self::One(waiting) | Self::Direct(_, waiting) => Some(waiting),
            Self::Many(_) => None,
        }
    }

    /// An operation that nobody waits for is over.
    pub(super) fn left(&self, result: i32, mut request: Request) {
        if let Self::Direct(inbox, _) = self {
            let n = usize::try_from(result).unwrap_or(0);
            // What was in the buffer before is the caller's, and no part of the stream.
            let bytes = request.take_filled(n).map(|buf| {
                let begin = buf.len() - n;
                buf.freeze().slice(begin..)
            });
            inbox.end_direct(Some((result, bytes)));
        }
    }

    fn fail(&mut self, end: End) {
        match self {
            Self::One(waiting) => waiting.waker.wake(),
            Self::Many(inbox) => inbox.fail(end),
            Self::Direct(inbox, waiting) => {
                inbox.fail(end);
                waiting.waker.wake();
            }
        }
    }
}

/// How far the engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    /// Nothing new begins.
    Closing,
    Ended(End),
}

#[allow(clippy::vec_box, reason = "it is the boxes that are used again")]
type SpareParts = Vec<Box<Parts>>;

pub(crate) struct Core {
    pub(crate) flights: Flights<Tag>,
    pub(crate) stage: Stage,
    /// The engine's task, while it sleeps.
    pub(crate) driver: Parked,
    /// Those who wait for a place in the table, by their number.
    crowd: HashMap<u64, Parked>,
    /// The number of the one who came last.
    last_in_crowd: u64,
    /// Those who wait for the end.
    mourners: Vec<Parked>,
    /// Sockets that are to receive.
    to_arm: Vec<Arc<Inbox>>,
    /// How many do. They are idle for as long as their peers are, so they take no place of an operation that ends.
    receiving: usize,
    max_operations: usize,
    spare_parts: SpareParts,
    bundles: bool,
    pub(crate) turns: u64,
}

impl Core {
    pub(crate) fn new(flights: Flights<Tag>, max_operations: usize, bundles: bool) -> Self {
        Self {
            flights,
            stage: Stage::Running,
            driver: Parked::default(),
            crowd: HashMap::new(),
            last_in_crowd: 0,
            mourners: Vec::new(),
            to_arm: Vec::new(),
            receiving: 0,
            max_operations,
            spare_parts: SpareParts::new(),
            bundles,
            turns: 0,
        }
    }

    /// Whether operations may begin.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.stage {
            Stage::Running => Ok(()),
            Stage::Closing => Err(End::Closed.into()),
            Stage::Ended(end) => Err(end.into()),
        }
    }

    /// Whether there is a place for another operation.
    pub(crate) fn has_place(&self) -> bool {
        self.flights.places_taken() < self.max_operations.saturating_add(self.receiving)
    }

    /// Waits until an operation has ended, under a number of its own, which is the same from the second call on. Who
    /// waits no more leaves.
    pub(crate) fn wait_for_place(&mut self, number: &mut Option<u64>, cx: &Context<'_>) {
        let last = &mut self.last_in_crowd;
        let number = *number.get_or_insert_with(|| {
            *last += 1;
            *last
        });
        self.crowd.entry(number).or_default().park(cx);
    }

    /// See [`wait_for_place`](Self::wait_for_place).
    pub(crate) fn leave_crowd(&mut self, number: u64) {
        self.crowd.remove(&number);
    }

    /// Waits until the engine has ended.
    pub(crate) fn wait_for_end(&mut self, cx: &Context<'_>) {
        join(&mut self.mourners, cx);
    }

    /// There may be a place: operations have ended, or an owner took a result.
    pub(crate) fn call_crowd(&mut self) {
        if self.has_place() {
            self.crowd.drain().for_each(|(_, mut waker)| waker.wake());
        }
    }

    pub(crate) fn spare_parts(&mut self) -> Option<Box<Parts>> {
        self.spare_parts.pop()
    }

    pub(crate) fn keep_parts(&mut self, request: Request) {
        if let Some(parts) = request.into_parts()
            && self.spare_parts.len() < MAX_SPARE_PARTS
        {
            self.spare_parts.push(parts);
        }
    }

    /// Does what an inbox asks for, in the next turn.
    pub(crate) fn follow(&mut self, inbox: &Arc<Inbox>, next: Next) {
        match (next, self.check()) {
            (Next::Nothing, _) => return,
            // It may wait for memory, and with it the engine sleeps.
            (Next::Look, _) => {}
            (Next::Stop(token), _) => self.flights.cancel(token),
            (Next::Arm, Ok(())) => self.to_arm.push(inbox.clone()),
            (Next::Arm, Err(_)) => {
                let end = if let Stage::Ended(end) = self.stage { end } else { End::Closed };
                inbox.fail(end);
            }
        }
        self.driver.wake();
    }

    /// One turn: whatever is queued goes to the kernel, with one call as a rule, and what is complete is handed out.
    pub(crate) fn turn(&mut self, cx: &mut Context<'_>) -> io::Result<usize> {
        self.turns += 1;
        self.arm(cx);
        let mut count = 0;
        for _ in 0..self.flights.batches().max(1) {
            self.flights.submit()?;
            count += self.reap();
        }
        self.arm(cx);
        Ok(count)
    }

    fn reap(&mut self) -> usize {
        let (to_arm, spare, receiving) = (&mut self.to_arm, &mut self.spare_parts, &mut self.receiving);
        let mut stops: Vec<Token> = Vec::new();
        let count = self.flights.reap(|event| {
            if matches!(event.tag, Tag::Many(_)) && !event.more {
                *receiving -= 1;
            }
            match tell(event, spare) {
                Some((inbox, Next::Arm)) => to_arm.push(inbox),
                Some((_, Next::Stop(token))) => stops.push(token),
                Some((_, Next::Look | Next::Nothing)) | None => {}
            }
        });
        for token in stops {
            self.flights.cancel(token);
        }
        self.call_crowd();
        count
    }

    /// Begins to receive for those that are to, as far as there are buffers.
    fn arm(&mut self, cx: &mut Context<'_>) {
        self.to_arm.retain(|inbox| inbox.wants_arming());
        if self.to_arm.is_empty() {
            return self.flights.stop_waiting();
        }
        if self.stage != Stage::Running {
            return self.to_arm.drain(..).for_each(|inbox| inbox.fail(End::Closed));
        }
        let Some(group) = self.flights.group() else {
            return self.to_arm.drain(..).for_each(|inbox| inbox.fail_os(libc::EOPNOTSUPP));
        };
        if let Poll::Ready(Err(error)) = self.flights.poll_provide(cx) {
            tracing::warn!(%error, "no memory to receive into");
            return self.to_arm.drain(..).for_each(|inbox| inbox.fail_os(libc::ENOMEM));
        }
        // Without one the pool wakes the engine when it has memory again.
        if self.flights.buffer_counts().provided == 0 {
            return;
        }
        let Self { to_arm, flights, receiving, bundles, .. } = self;
        to_arm.retain(|inbox| {
            let request = Request::recv_many(&inbox.file, group, *bundles);
            let Some(token) = flights.start(false, request, Tag::Many(inbox.clone())) else { return true };
            *receiving += 1;
            if let Next::Stop(token) = inbox.armed(token) {
                flights.cancel(token);
            }
            false
        });
    }

    /// The end: the ring is closed, and everybody is told.
    pub(crate) fn end(&mut self, end: End) {
        if let Stage::Ended(_) = self.stage {
            return;
        }
        self.stage = Stage::Ended(end);
        for mut tag in self.flights.close().tags {
            tag.fail(end);
        }
        self.to_arm.drain(..).for_each(|inbox| inbox.fail(end));
        let crowd = self.crowd.drain().map(|(_, waker)| waker);
        crowd.chain(self.mourners.drain(..)).for_each(|mut waker| waker.wake());
        self.driver.wake();
    }
}

fn join(queue: &mut Vec<Parked>, cx: &Context<'_>) {
    if !queue.iter().any(|waker| waker.is_for(cx)) {
        let mut waker = Parked::default();
        waker.park(cx);
        queue.push(waker);
    }
}

/// Hands a completion to whom it is for.
fn tell(event: Event<'_, Tag>, spare: &mut SpareParts) -> Option<(Arc<Inbox>, Next)> {
    let Event { tag, result, more, copied, pieces, left } = event;
    if let Tag::Many(inbox) = tag {
        let next = inbox.received(pieces, result, more);
        return Some((inbox.clone(), next));
    }
    if let Some(request) = left {
        if let Tag::Direct(..) = tag {
            tag.left(result, request);
        } else if let Some(parts) = request.into_parts()
            && spare.len() < MAX_SPARE_PARTS
        {
            spare.push(parts);
        }
        return None;
    }
    if let Some(waiting) = tag.waiting() {
        match copied {
            Some(copied) => waiting.copied = Some(copied),
            None => waiting.result = Some(result),
        }
        waiting.waker.wake();
    }
    None
}
