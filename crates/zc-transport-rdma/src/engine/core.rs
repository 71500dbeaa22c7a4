//! Who gets which completion, and receive buffers.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zc_core::memory::{Deferral, PinnedBufMut};

use super::number_hasher::NumberHasher;
use super::parked::Parked;
use super::shares::Shares;
use super::{EndpointEnd, EngineStats, Finished, Shared, Unsent};
use crate::limits::{CLOSING_MS, MAX_SPARE, MAX_UNREAD, POLL_BATCH, TURNS};
use crate::verbs::{AsyncEvent, Completion, PostError, QueueId, QueuePair, Received, Work};

/// A queue pair, as its endpoint and the engine see it.
pub(super) struct Pair {
    pub(super) queue_pair: QueuePair,
    /// Its receive buffers, of the engine's.
    pub(super) share: u32,
    /// Its peer was told how many it may use, and has to keep to that.
    pub(super) is_strict: bool,
    pub(super) state: Mutex<PairState>,
}

#[derive(Default)]
pub(super) struct PairState {
    /// Not handed to the device yet.
    pub(super) staged: VecDeque<Work>,
    /// Handed over, and not come back here: polled is not enough, for who polls takes them to their pairs one after the other.
    under_way: usize,
    pub(super) finished: VecDeque<Finished>,
    pub(super) received: VecDeque<(PinnedBufMut, Received)>,
    pub(super) end: Option<EndpointEnd>,
    pub(super) tx: Parked,
    pub(super) rx: Parked,
    /// Who hears of messages besides `rx`.
    pub(super) beside: Parked,
    /// The longest message that the peer takes, once it is known.
    pub(super) peer_recv_bytes: usize,
    /// Receive buffers that the peer may use, and has not.
    pub(super) promised: u32,
    /// Somebody waits for room, or until nothing is under way.
    pub(super) awaits_sends: bool,
    /// The peer is to be promised more, and too few receive buffers were posted.
    awaits_receives: bool,
    /// It takes no receive buffers any more.
    had_last_receive: bool,
}

impl PairState {
    /// Of a queue pair that receives nothing.
    pub(super) fn one_sided() -> Self {
        Self { had_last_receive: true, ..Self::default() }
    }

    /// Nothing is staged or under way: what there was is in `finished`, or was silent.
    pub(super) fn is_idle(&self) -> bool {
        self.staged.is_empty() && self.under_way == 0
    }
}

impl Pair {
    /// Hands over what is staged, as far as there is room.
    pub(super) fn flush(&self, state: &mut PairState) {
        while !state.staged.is_empty() && state.end.is_none() {
            let staged = state.staged.len();
            let posted = self.queue_pair.post(&mut state.staged);
            // Also of a batch that was refused the device may have some.
            state.under_way += staged - state.staged.len();
            match posted {
                Ok(0) => return,
                Ok(_) => {}
                Err(PostError::Unfit(unfit)) => {
                    // Staging has checked it; its memory was deregistered since.
                    let Some(work) = state.staged.pop_front() else { return };
                    state.finished.push_back(Finished { work, result: Err(unfit.into()) });
                    state.tx.wake();
                }
                Err(PostError::Refused(error)) => self.end(state, EndpointEnd::Refused(error)),
                Err(_) => return,
            }
        }
    }

    /// Nothing more is sent or received; what is under way comes back.
    pub(super) fn end(&self, state: &mut PairState, end: EndpointEnd) {
        if state.end.is_none() {
            tracing::debug!(number = %self.queue_pair.number(), %end, "an endpoint has ended");
            state.end = Some(end.clone());
        }
        if let Err(error) = self.queue_pair.fail() {
            tracing::debug!(%error, "a queue pair can't be failed");
        }
        let unsent = state.staged.drain(..);
        state
            .finished
            .extend(unsent.map(|work| Finished { work, result: Err(Unsent::NotTaken(end.clone())) }));
        state.tx.wake();
        state.rx.wake();
        state.beside.wake();
    }
}

/// A pair whose endpoint is gone.
struct Closing {
    pair: Arc<Pair>,
    until: Instant,
}

/// What came of looking.
struct Turned {
    /// Completions.
    found: usize,
    /// There are too few receive buffers.
    is_low: bool,
    /// What is to be destroyed.
    drained: Vec<Closing>,
}

/// Looked up for each completion. The numbers are the device's and ours, and no peer's.
type ByNumber<K> = HashMap<K, Arc<Pair>, BuildHasherDefault<NumberHasher>>;

pub(super) struct Core {
    pub(super) shares: Shares,
    by_number: ByNumber<u32>,
    by_id: ByNumber<QueueId>,
    closing: Vec<Closing>,
    /// Kept for its room.
    completions: Vec<Completion>,
    /// Receive buffers that nobody needs any more: the next to be posted.
    pub(super) spare: Vec<PinnedBufMut>,
    pub(super) driver: Parked,
    pub(super) end: Option<EndpointEnd>,
    pub(super) sleeps: u64,
    starved: u64,
    /// The pool had no receive buffer when one was wanted last.
    pub(super) is_starving: bool,
}

impl Core {
    pub(super) fn new(recv_buffers: u32) -> Self {
        Self {
            shares: Shares::new(recv_buffers),
            by_number: ByNumber::default(),
            by_id: ByNumber::default(),
            closing: Vec::new(),
            completions: Vec::new(),
            spare: Vec::new(),
            driver: Parked::default(),
            end: None,
            sleeps: 0,
            starved: 0,
            is_starving: false,
        }
    }

    pub(super) fn insert(&mut self, pair: &Arc<Pair>) {
        self.by_number.insert(pair.queue_pair.number().value(), pair.clone());
        self.by_id.insert(pair.queue_pair.id(), pair.clone());
    }

    fn remove(&mut self, pair: &Pair) {
        self.by_number.remove(&pair.queue_pair.number().value());
        if self.by_id.remove(&pair.queue_pair.id()).is_some() {
            let promised = std::mem::take(&mut pair.state.lock().promised);
            self.shares.release(pair.share, promised);
        }
    }

    /// The endpoint is gone: drained, then destroyed.
    pub(super) fn close(&mut self, pair: &Arc<Pair>, now: Instant) {
        if self.end.is_some() {
            // Nobody would drain it.
            return self.remove(pair);
        }
        let until = now + Duration::from_millis(CLOSING_MS);
        self.closing.push(Closing { pair: pair.clone(), until });
        self.driver.wake();
    }

    /// When the first of those that are drained is destroyed at the latest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.closing.iter().map(|closing| closing.until).min()
    }

    /// Nothing works any more.
    pub(super) fn end_all(&mut self, end: &EndpointEnd) {
        self.end.get_or_insert_with(|| end.clone());
        for pair in self.by_id.values() {
            pair.end(&mut pair.state.lock(), end.clone());
        }
        self.spare.clear();
        // Their endpoints are gone, and nobody will drain them.
        for closing in std::mem::take(&mut self.closing) {
            self.remove(&closing.pair);
        }
    }

    /// Closed ones whose completions have all come, or have had their time: to be destroyed.
    fn take_drained(&mut self, now: Instant) -> Vec<Closing> {
        let over = |closing: &mut Closing| {
            let pair = &closing.pair;
            // A receive buffer that the device still has for it would be lost.
            let is_drained = pair.queue_pair.under_way() == 0 && pair.state.lock().had_last_receive;
            is_drained || now >= closing.until
        };
        let drained: Vec<_> = self.closing.extract_if(.., over).collect();
        drained.iter().for_each(|closing| self.remove(&closing.pair));
        drained
    }

    fn dispatch(&mut self, completion: Completion) {
        match completion {
            Completion::Sent { queue, work, result } => {
                let Some(pair) = self.by_id.get(&queue) else { return };
                let mut state = pair.state.lock();
                state.under_way = state.under_way.saturating_sub(1);
                if let Err(error) = result {
                    pair.end(&mut state, error.into());
                }
                if !work.silent || result.is_err() {
                    let result = result.map_err(|error| Unsent::Ended(error.into()));
                    state.finished.push_back(Finished { work, result });
                    state.tx.wake();
                } else if std::mem::take(&mut state.awaits_sends) {
                    state.tx.wake();
                }
                pair.flush(&mut state);
            }
            Completion::Received { queue_pair, buf, result } => {
                let Some(pair) = self.by_number.get(&queue_pair) else { return };
                let mut state = pair.state.lock();
                if result.is_ok() && pair.is_strict {
                    if state.promised == 0 {
                        return pair.end(&mut state, EndpointEnd::BeyondShare);
                    }
                    state.promised -= 1;
                    self.shares.used();
                }
                match result {
                    Ok(info) if state.received.len() < MAX_UNREAD => {
                        state.received.push_back((buf, info));
                        state.rx.wake();
                        state.beside.wake();
                    }
                    Ok(_) => pair.end(&mut state, EndpointEnd::TooManyUnread),
                    Err(error) => pair.end(&mut state, error.into()),
                }
            }
        }
    }
}

impl Shared {
    /// Takes completions to their endpoints, and posts receive buffers; says how many there were.
    pub(super) fn turn(&self) -> usize {
        // Opened in front of the lock: what is woken may use the engine at once.
        let _deferral = Deferral::begin();
        let turned = self.turn_locked(&mut self.core.lock());
        self.after(turned)
    }

    /// As [`turn`](Self::turn), unless somebody else is at it.
    pub(super) fn try_turn(&self) {
        let _deferral = Deferral::begin();
        let Some(mut core) = self.core.try_lock() else { return };
        let turned = self.turn_locked(&mut core);
        drop(core);
        self.after(turned);
    }

    /// What is done without the lock: devices take their time. Says how many completions there were.
    fn after(&self, turned: Turned) -> usize {
        // The last that hold them: their queue pairs are destroyed here. Nothing of them is anybody's to wake.
        drop(turned.drained);
        if turned.is_low {
            self.refill();
        }
        turned.found
    }

    fn turn_locked(&self, core: &mut Core) -> Turned {
        let (mut found, mut turns, mut is_empty) = (0, TURNS, false);
        let mut drained = Vec::new();
        // Whoever looks does so again and again, and the clock may be a device that is slow to read.
        let now = core.next_deadline().map(|until| (self.reactor.now(), until));
        if now.is_some_and(|(now, until)| now >= until) {
            // All that is there now: only then may one be destroyed that is not drained.
            turns = self.completions.entries() / POLL_BATCH as u32 + 1;
        }
        for _ in 0..turns {
            let mut completions = std::mem::take(&mut core.completions);
            let polled = self.completions.poll(&mut completions);
            completions.drain(..).for_each(|completion| core.dispatch(completion));
            core.completions = completions;
            match polled {
                Ok(some) => found += some,
                Err(error) => {
                    tracing::warn!(%error, "a completion queue can't be polled");
                    core.end_all(&EndpointEnd::DeviceGone);
                }
            }
            if !matches!(polled, Ok(POLL_BATCH)) {
                is_empty = true;
                break;
            }
        }
        if let Some((now, _)) = now
            && is_empty
        {
            // Else what is still in the queue would be taken for that of a later one of the same number, or be lost.
            drained = core.take_drained(now);
        }
        let is_low = core.end.is_none() && core.shares.is_low(self.receives.posted());
        Turned { found, is_low, drained }
    }

    /// Posts receive buffers, as many as the shares need. No lock is held while memory is registered.
    pub(super) fn refill(&self) {
        let _deferral = Deferral::begin();
        let _one_at_a_time = self.refilling.lock();
        let (mut buffers, wanted) = {
            let mut core = self.core.lock();
            core.is_starving = false;
            if core.end.is_some() {
                return;
            }
            let wanted = core.shares.target().saturating_sub(self.receives.posted()) as usize;
            let spare = core.spare.len();
            (core.spare.split_off(spare.saturating_sub(wanted)), wanted)
        };
        let mut is_starving = false;
        while buffers.len() < wanted {
            match self.pool.try_alloc_sparing(self.options.recv_buffer_bytes) {
                Ok(buf) => buffers.push(buf),
                Err(error) => {
                    tracing::debug!(%error, "no receive buffer");
                    is_starving = true;
                    break;
                }
            }
        }
        if let Err(error) = self.receives.post(&mut buffers) {
            tracing::warn!(%error, "receive buffers can't be posted");
        }
        let mut core = self.core.lock();
        core.starved += u64::from(is_starving);
        // Some may do later.
        core.is_starving = is_starving || !buffers.is_empty();
        if core.is_starving {
            core.driver.wake();
        }
        // Whoever has promised too little goes on.
        for pair in core.by_id.values() {
            let state = &mut *pair.state.lock();
            if std::mem::take(&mut state.awaits_receives) {
                state.rx.wake();
                state.tx.wake();
            }
        }
    }

    /// Lets the peer of an endpoint use so many receive buffers more, if they are posted; says how many it may.
    pub(super) fn promise(&self, pair: &Pair, wanted: u32) -> u32 {
        let mut core = self.core.lock();
        let mut state = pair.state.lock();
        let wanted = wanted.min(pair.share - state.promised);
        let some = core.shares.promise(wanted, self.receives.posted());
        state.promised += some;
        state.awaits_receives = some < wanted;
        some
    }

    /// Takes a receive buffer back whose content was taken out.
    pub(super) fn recycle(&self, buf: PinnedBufMut) {
        let mut core = self.core.lock();
        let is_ours = buf.capacity() + buf.headroom() >= self.options.recv_buffer_bytes && core.end.is_none();
        if is_ours && core.spare.len() < MAX_SPARE {
            core.spare.push(buf);
        } else {
            drop(core);
            drop(buf);
        }
    }

    pub(super) fn event(&self, event: AsyncEvent) {
        let _deferral = Deferral::begin();
        let mut core = self.core.lock();
        match event {
            AsyncEvent::DeviceGone | AsyncEvent::QueueFailed => core.end_all(&EndpointEnd::DeviceGone),
            AsyncEvent::PortDown(port) if port == self.port.number => {
                for pair in core.by_id.values() {
                    pair.end(&mut pair.state.lock(), EndpointEnd::PortDown);
                }
            }
            AsyncEvent::QueuePairFailed(number) => {
                if let Some(pair) = core.by_number.get(&number) {
                    pair.end(&mut pair.state.lock(), EndpointEnd::QueuePairFailed);
                }
            }
            AsyncEvent::LastReceive(number) => {
                if let Some(pair) = core.by_number.get(&number) {
                    pair.state.lock().had_last_receive = true;
                }
            }
            other => tracing::debug!(?other, "an event of the device"),
        }
    }

    pub(super) fn stats(&self) -> EngineStats {
        let core = self.core.lock();
        EngineStats {
            endpoints: core.by_id.len() - core.closing.len(),
            closing: core.closing.len(),
            posted_receives: self.receives.posted(),
            under_way: self.completions.under_way(),
            unknown_completions: self.completions.unknown(),
            regions: self.domain.regions(),
            sleeps: core.sleeps,
            starved: core.starved,
        }
    }
}
