//! What is behind the engine's lock.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::ThreadId;

use zc_core::memory::{AllocError, Region};

use super::End;
use super::inbox::{Inbox, Next};
use super::parked::Parked;
use super::relief::Relief;
use crate::limits::MAX_SPARE_PARTS;
use crate::slab::Token;
use crate::sys::{Event, Flights, Parts, Request, Settled};

/// For whom a completion is.
pub(crate) enum Tag {
    /// A future, or nobody.
    One(Waiting),
    /// A socket that receives by itself.
    Many(Arc<Inbox>),
    /// Its end.
    End(Arc<Inbox>),
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
            Self::Many(_) | Self::End(_) => None,
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
            // What receives is told.
            Self::End(_) => {}
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

/// Completions of one turn with which those who look still look for themselves: what came, and what was sent for it.
const FEW: usize = 2;

#[allow(clippy::vec_box, reason = "it is the boxes that are used again")]
type SpareParts = Vec<Box<Parts>>;

pub(crate) struct Core {
    pub(crate) flights: Flights<Tag>,
    pub(crate) stage: Stage,
    /// The engine's task, while it sleeps.
    pub(crate) driver: Parked,
    /// The thread that enters the ring, if it is for one; for others the one that came first.
    pub(super) owner: Option<ThreadId>,
    /// Somebody looks again and again: until nobody does, the engine's task does not sleep.
    pub(super) is_looked_at: bool,
    /// The last turn that found something found much: one call for all that there is costs less than one for each that looks.
    is_crowded: bool,
    /// Those who wait for a place in the table, by their number.
    crowd: HashMap<u64, Parked>,
    /// The number of the one who came last.
    last_in_crowd: u64,
    /// Those who wait for the end.
    mourners: Vec<Parked>,
    /// Sockets that are to receive.
    to_arm: Vec<Arc<Inbox>>,
    /// How many do.
    receiving: usize,
    /// How many are watched for their end.
    watching: usize,
    max_operations: usize,
    pub(super) is_for_one_thread: bool,
    spare_parts: SpareParts,
    bundles: bool,
    /// Where pieces go of which too much is lent.
    pub(super) relief: Relief,
    pub(crate) turns: u64,
    /// To be logged where the lock is not held.
    pub(super) no_memory: Option<AllocError>,
}

impl Core {
    pub(crate) fn new(
        flights: Flights<Tag>,
        max_operations: usize,
        bundles: bool,
        is_for_one_thread: bool,
        relief: Relief,
    ) -> Self {
        Self {
            is_for_one_thread,
            flights,
            stage: Stage::Running,
            driver: Parked::default(),
            owner: None,
            is_looked_at: false,
            is_crowded: false,
            crowd: HashMap::new(),
            last_in_crowd: 0,
            mourners: Vec::new(),
            to_arm: Vec::new(),
            receiving: 0,
            watching: 0,
            max_operations,
            spare_parts: SpareParts::new(),
            bundles,
            relief,
            turns: 0,
            no_memory: None,
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

    /// Whether there is a place for another operation. Those of sockets that receive are idle for as long as their peers are, so
    /// they take no place of one that ends.
    pub(crate) fn has_place(&self) -> bool {
        let idle = self.receiving + self.watching;
        self.flights.places_taken() < self.max_operations.saturating_add(idle)
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
        if !self.crowd.is_empty() && self.has_place() {
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
    pub(crate) fn turn(&mut self, cx: &mut Context<'_>, settled: &mut Settled) -> io::Result<usize> {
        self.turns += 1;
        self.flights.settle(self.stage == Stage::Running, settled);
        self.arm(cx);
        let mut count = 0;
        for _ in 0..self.flights.batches().max(1) {
            self.flights.submit()?;
            count += self.reap();
        }
        self.arm(cx);
        if count > 0 {
            self.is_crowded = count > FEW;
        }
        Ok(count)
    }

    /// Whether it is for one thread, which is not this one.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.is_for_one_thread && self.owner.is_some_and(|owner| owner != std::thread::current().id())
    }

    /// Whether this thread may enter the ring.
    fn may_enter(&self) -> bool {
        match self.owner {
            Some(owner) => !self.is_for_one_thread || owner == std::thread::current().id(),
            // The engine's task is to be the first.
            None => false,
        }
    }

    /// Takes what is complete on behalf of somebody who found nothing, so that it need not go by way of the eventfd and the
    /// engine's task; whether there was anything. Not while the task finds much at once. It costs no system call unless there is something, and none at all where
    /// many threads may enter.
    pub(crate) fn look(&mut self) -> bool {
        if self.is_crowded || self.stage != Stage::Running || !self.flights.has_work() || !self.may_enter() {
            return false;
        }
        // What is submitted ends with its thread, and this one need not be of the runtime: only the task submits.
        let submits = self.is_for_one_thread;
        let found = (!submits || self.flights.submit().is_ok()) && self.reap() > 0;
        // The rest is the task's, and errors are, which it finds, too.
        if !found || !self.to_arm.is_empty() || self.flights.has_work() {
            self.driver.wake();
        }
        found
    }

    fn reap(&mut self) -> usize {
        let Self { to_arm, spare_parts: spare, receiving, watching, relief, .. } = self;
        let mut stops: Vec<Token> = Vec::new();
        let count = self.flights.reap(|mut event| {
            match event.tag {
                Tag::Many(inbox) if event.is_short => {
                    event.pieces = relief.copy_out(std::mem::take(&mut event.pieces), inbox.ledger());
                }
                _ => {}
            }
            match event.tag {
                Tag::Many(_) if !event.more => *receiving -= 1,
                Tag::End(_) if !event.more => *watching -= 1,
                _ => {}
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

    /// The owner of an inbox goes.
    pub(crate) fn forsake(&mut self, inbox: &Arc<Inbox>) {
        let (next, watch) = inbox.close();
        if let Some(token) = watch {
            self.flights.cancel(token);
            self.driver.wake();
        }
        self.follow(inbox, next);
    }

    /// Begins to receive for those that are to, as far as there are buffers.
    fn arm(&mut self, cx: &mut Context<'_>) {
        self.to_arm.retain(|inbox| inbox.wants_arming());
        self.refill(cx);
        if self.to_arm.is_empty() {
            return self.flights.stop_waiting();
        }
        if self.stage != Stage::Running {
            return self.to_arm.drain(..).for_each(|inbox| inbox.fail(End::Closed));
        }
        self.arm_into_area();
        if self.to_arm.iter().all(|inbox| inbox.is_into_area()) {
            // They wait for room there.
            return self.flights.stop_waiting();
        }
        let fail = |to_arm: &mut Vec<Arc<Inbox>>, errno| {
            let failed = to_arm.extract_if(.., |inbox| !inbox.is_into_area());
            failed.for_each(|inbox| inbox.fail_os(errno));
        };
        let Some(group) = self.flights.group() else { return fail(&mut self.to_arm, libc::EOPNOTSUPP) };
        if let Poll::Ready(Err(error)) = self.flights.poll_provide(cx) {
            self.no_memory = Some(error);
            return fail(&mut self.to_arm, libc::ENOMEM);
        }
        // Without one the pool wakes the engine when it has memory again.
        if self.flights.buffer_counts().provided == 0 {
            let into_buffers = self.to_arm.iter().filter(|inbox| !inbox.is_into_area());
            return into_buffers.for_each(|inbox| inbox.starve());
        }
        let bundles = self.bundles;
        self.begin(|inbox| (!inbox.is_into_area()).then(|| Request::recv_many(&inbox.file, group, bundles)));
    }

    /// Begins to receive for those who receive into the area, unless there is no room: then the engine tries again in a while.
    fn arm_into_area(&mut self) {
        if !self.to_arm.iter().any(|inbox| inbox.is_into_area()) {
            return;
        }
        self.flights.settle_area();
        let Some(area) = self.flights.area().filter(|area| !area.is_dry()) else { return };
        let id = area.begin();
        self.begin(|inbox| inbox.is_into_area().then(|| Request::recv_into_area(&inbox.file, id)));
    }

    /// Begins what `request` gives, and the watch of that socket.
    fn begin(&mut self, request: impl Fn(&Inbox) -> Option<Request>) {
        let Self { to_arm, flights, receiving, watching, .. } = self;
        to_arm.retain(|inbox| {
            let Some(request) = request(inbox) else { return true };
            let Some(token) = flights.start(false, request, Tag::Many(inbox.clone())) else { return true };
            *receiving += 1;
            if let Next::Stop(token) = inbox.armed(token) {
                flights.cancel(token);
            }
            if inbox.wants_watch()
                && let Some(token) = flights.start(false, Request::end(&inbox.file), Tag::End(inbox.clone()))
            {
                *watching += 1;
                if let Next::Stop(token) = inbox.watched(token) {
                    flights.cancel(token);
                }
            }
            false
        });
    }

    /// Whether somebody waits for room in the area, of which nobody may tell.
    pub(super) fn waits_for_room(&mut self) -> bool {
        let is_dry = self.flights.area().is_some_and(|area| area.is_dry());
        is_dry && self.to_arm.iter().any(|inbox| inbox.is_into_area())
    }

    /// Gives the kernel buffers before it has none left: those that receive then go on, instead of each having to begin anew.
    fn refill(&mut self, cx: &mut Context<'_>) {
        let counts = self.flights.buffer_counts();
        if self.receiving > 0 && counts.provided > 0 && counts.missing >= counts.provided {
            // What it can't give is told when there are none left.
            let _ = self.flights.poll_provide(cx);
        }
    }

    /// The end: the ring is closed, and everybody is told. What comes back is let go of without the lock.
    #[must_use = "other people's code runs when it is let go of"]
    pub(crate) fn end(&mut self, end: End) -> Vec<Region> {
        if let Stage::Ended(_) = self.stage {
            return Vec::new();
        }
        self.stage = Stage::Ended(end);
        let left = self.flights.close();
        for mut tag in left.tags {
            tag.fail(end);
        }
        self.to_arm.drain(..).for_each(|inbox| inbox.fail(end));
        let crowd = self.crowd.drain().map(|(_, waker)| waker);
        crowd.chain(self.mourners.drain(..)).for_each(|mut waker| waker.wake());
        self.driver.wake();
        left.wanted
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
    let Event { tag, result, more, copied, pieces, left, .. } = event;
    if let Tag::Many(inbox) = tag {
        let next = inbox.received(pieces, result, more);
        return Some((inbox.clone(), next));
    }
    if let Tag::End(inbox) = tag {
        return Some((inbox.clone(), inbox.watch_spoke(result)));
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
