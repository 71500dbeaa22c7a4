//! What one connection knows of one-sided operations. All locks here come after those of its halves.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use zc_core::memory::{BufPool, CopyLedger, Deferral, ExportMemory, Message};
use zc_core::transport::{
    Batch, LaneError, LaneRemote, OneSided, RemoteAtomics, RemoteCompletion, RemoteGrant, RemoteKey,
    RemoteOp, RemoteToken, Revoked, SendToken,
};
use zc_core::wire::{REMOTE_REQUEST_BYTES, RemoteAnswer, RemoteRecord, RemoteRequest};

use super::error::GrantError;
use super::expiry::Expiries;
use super::export::Shared;
use super::target::{Grant, MAX_GRANTS, Target};
use super::window::{Expected, Operation, Window};
use crate::connection::{Place, quietly};

/// So many operations of a lane that is done with each at once; then others on the runtime have their turn.
const OPERATIONS_PER_TURN: u64 = 64;
/// How long a grant that could not be ended when its time had come waits for the next attempt, milliseconds.
pub(crate) const EXPIRE_RETRY_MS: u64 = 100;

pub(crate) struct Remote {
    mode: OneSided,
    pool: BufPool,
    ledger: Arc<CopyLedger>,
    /// Wakes the connection's driver.
    driver: Waker,
    target: Mutex<Target>,
    expiries: Mutex<Expiries>,
    window: Mutex<Window>,
    /// Until the connection has ended.
    native: Mutex<Option<Native>>,
    /// Answers are to be handed over, or reports are awaited. Spares those who send messages the lock.
    serving: AtomicBool,
    /// Somebody waits for an answer. The same.
    asking: AtomicBool,
    /// Grants that the peer may use at any time.
    granted: AtomicUsize,
    /// Requests of either side so far.
    requests: AtomicU64,
    /// How many there were when somebody gave others a turn.
    gave_way_at: AtomicU64,
}

struct Native {
    lane: Box<dyn LaneRemote>,
    under_way: Vec<(RemoteToken, Arc<Operation>)>,
    granted: Vec<(RemoteKey, Weak<Shared>)>,
    /// Nothing more is granted.
    over: bool,
    batch: Batch<RemoteCompletion>,
}

impl Remote {
    pub(crate) fn new(
        mode: OneSided,
        lane: Option<Box<dyn LaneRemote>>,
        pool: BufPool,
        ledger: Arc<CopyLedger>,
        driver: Waker,
    ) -> Arc<Self> {
        let native = |lane| Native {
            lane,
            under_way: Vec::new(),
            granted: Vec::new(),
            over: false,
            batch: Batch::new(),
        };
        Arc::new(Self {
            mode,
            pool,
            ledger,
            driver,
            target: Mutex::default(),
            expiries: Mutex::default(),
            window: Mutex::default(),
            native: Mutex::new(lane.map(native)),
            serving: AtomicBool::new(false),
            asking: AtomicBool::new(false),
            granted: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            gave_way_at: AtomicU64::new(u64::MAX),
        })
    }

    pub(crate) fn mode(&self) -> OneSided {
        self.mode
    }

    /// Whether the peer may send a request at any time, which should not wait for the application.
    pub(crate) fn is_granted(&self) -> bool {
        self.granted.load(Relaxed) > 0
    }

    /// Whether the peer can use memory of ours without our seeing it: then the connection may not be idle.
    pub(crate) fn is_lent(&self) -> bool {
        self.mode == OneSided::Native
            && self.native.lock().as_ref().is_some_and(|native| !native.granted.is_empty())
    }

    /// Requests of either side that were seen so far: a connection that has some is not idle.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Requests of the peer so far.
    pub(crate) fn served(&self) -> u64 {
        self.target.lock().last()
    }

    // The owner's side.

    pub(super) fn grant(&self, grant: impl FnOnce(RemoteKey) -> Grant) -> Result<RemoteKey, GrantError> {
        let mut target = self.target.lock();
        let key = target.grant(grant)?;
        self.granted.store(target.grants(), Relaxed);
        Ok(key)
    }

    pub(super) fn grant_native(
        &self,
        grant: RemoteGrant,
        export: &Arc<Shared>,
    ) -> Result<RemoteKey, GrantError> {
        quietly(|| {
            let mut native = self.native.lock();
            let native = native.as_mut().filter(|native| !native.over).ok_or(GrantError::Ended)?;
            if native.granted.len() >= MAX_GRANTS {
                return Err(GrantError::TooMany { max: MAX_GRANTS });
            }
            let key = native.lane.grant(grant)?;
            native.granted.push((key, Arc::downgrade(export)));
            // From now on it is woken for what the peer asks, whoever looks at the lane besides.
            Deferral::wake(self.driver.clone());
            Ok(key)
        })
    }

    /// With what the atomics of this connection's peer on that memory are atomic together.
    pub(super) fn native_atomics(&self, memory: &ExportMemory) -> Result<RemoteAtomics, GrantError> {
        let mut native = self.native.lock();
        let native = native.as_mut().filter(|native| !native.over).ok_or(GrantError::Ended)?;
        Ok(native.lane.atomics(memory)?)
    }

    /// Has a grant end by itself.
    pub(crate) fn expires(&self, at: Instant, key: RemoteKey, export: Weak<Shared>) {
        self.expiries.lock().add(at, key, export);
    }

    /// Ends what has had its time; says when to call again. No lock of the connection is held.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let due = self.expiries.lock().due(now);
        for (key, export) in due {
            // Of an export that is gone all keys are.
            let ended = export.upgrade().map_or(Ok(()), |export| export.revoke(&key));
            match ended {
                Ok(()) => self.forget_expiry(&key),
                Err(error) => {
                    tracing::warn!(%error, "a grant can't be ended yet");
                    self.expiries.lock().postpone(&key, now + Duration::from_millis(EXPIRE_RETRY_MS));
                }
            }
        }
        self.expiries.lock().next()
    }

    /// The key has ended for good: not only its window, which is gone before the memory that the peer may have kept is replaced.
    pub(super) fn forget_expiry(&self, key: &RemoteKey) {
        self.expiries.lock().forget(key);
    }

    /// Ends a grant. Requests are served under the same lock, so none is at work afterwards.
    pub(super) fn revoke(&self, key: &RemoteKey) -> Revoked {
        if self.mode == OneSided::Native {
            return quietly(|| match &mut *self.native.lock() {
                Some(native) => native.revoke(key),
                // `settle` has ended all grants.
                None => Revoked::Done,
            });
        }
        let mut target = self.target.lock();
        let grant = target.revoke(key);
        self.granted.store(target.grants(), Relaxed);
        drop(target);
        drop(grant);
        Revoked::Done
    }

    // Records. The caller holds the receiving half.

    /// A REMOTE frame came in. An error is the peer's fault.
    pub(crate) fn arrived(&self, mut record: Message) -> Result<(), String> {
        if self.mode != OneSided::Emulated {
            return Err("a remote record, which was not agreed on".into());
        }
        // Parsed from a private copy (M6).
        let front: SmallVec<[u8; REMOTE_REQUEST_BYTES]> = record
            .segments()
            .iter()
            .flat_map(|segment| segment.iter().copied())
            .take(REMOTE_REQUEST_BYTES)
            .collect();
        let parsed = RemoteRecord::decode(&front, record.len()).map_err(|error| error.to_string())?;
        drop(record.split_to(parsed.front_bytes()));
        match parsed {
            RemoteRecord::Request(request) => self.requested(request, record),
            RemoteRecord::Answer(answer) => self.answered(&answer, record),
        }
    }

    fn requested(&self, request: RemoteRequest, payload: Message) -> Result<(), String> {
        self.requests.fetch_add(1, Relaxed);
        let mut target = self.target.lock();
        self.serving.store(true, Relaxed);
        target.take_in(request, payload, &self.pool, &self.ledger)
    }

    fn answered(&self, answer: &RemoteAnswer, payload: Message) -> Result<(), String> {
        let mut window = self.window.lock();
        let operation = window.on_answer(answer)?;
        self.asking.store(!window.is_quiet(), Relaxed);
        drop(window);
        if let Some(operation) = operation {
            self.ledger.moved(payload.len());
            operation.answered(answer, payload, &self.pool, &self.ledger);
        }
        Ok(())
    }

    // Answers. The caller holds the sending half.

    /// Whether there is anything to do with answers.
    pub(crate) fn is_serving(&self) -> bool {
        self.serving.load(Relaxed)
    }

    pub(crate) fn next_answer(&self) -> Option<Message> {
        let mut target = self.target.lock();
        self.serving.store(!target.is_done(), Relaxed);
        target.next_answer()
    }

    pub(crate) fn handed_over(&self, token: SendToken) {
        let mut target = self.target.lock();
        target.handed_over(token);
        self.serving.store(true, Relaxed);
    }

    pub(crate) fn awaits_reports(&self) -> bool {
        self.is_serving() && self.target.lock().awaits_reports()
    }

    /// Whether the lane should be asked for its reports now.
    pub(crate) fn wants_reports(&self) -> bool {
        let target = self.target.lock();
        target.is_waiting() || target.is_half_full()
    }

    /// The lane's report on an answer, or on something else. Requests that wait for it are the driver's.
    pub(crate) fn reported(&self, token: SendToken) {
        if !self.is_serving() {
            return;
        }
        let mut target = self.target.lock();
        target.reported(token);
        if target.is_waiting() {
            drop(target);
            Deferral::wake(self.driver.clone());
        }
    }

    pub(crate) fn serve_waiting(&self) -> bool {
        self.target.lock().serve_waiting(&self.pool, &self.ledger)
    }

    // Our own requests. The caller holds the sending half.

    pub(crate) fn may_begin(&self, place: Option<Place>) -> bool {
        self.window.lock().may_begin(place)
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.window.lock().next_id()
    }

    pub(crate) fn begun(&self, operation: &Arc<Operation>, expected: Expected) {
        self.requests.fetch_add(1, Relaxed);
        let mut window = self.window.lock();
        window.begun(operation, expected);
        self.asking.store(true, Relaxed);
    }

    pub(crate) fn wait(&self, place: &mut Option<Place>, waker: &Waker) {
        let mut window = self.window.lock();
        window.wait(place, waker);
        self.asking.store(true, Relaxed);
    }

    /// Gives a place up. The caller then sees whether anybody is still in need (`Core::rest`).
    pub(crate) fn leave(&self, place: &mut Option<Place>) {
        if place.is_some() {
            let mut window = self.window.lock();
            window.leave(place);
            self.asking.store(!window.is_quiet(), Relaxed);
        }
    }

    /// Nobody waits for an answer.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.asking.load(Relaxed)
    }

    // Operations that the lane does itself.

    /// Whether this one waits until others on the runtime have had a turn: who does nothing else would never wait for anything.
    pub(crate) fn gives_way(&self) -> bool {
        let requests = self.requests();
        requests % OPERATIONS_PER_TURN == OPERATIONS_PER_TURN - 1
            && self.gave_way_at.swap(requests, Relaxed) != requests
    }

    /// Begins an operation if the lane takes one now.
    pub(crate) fn begin_native(
        &self,
        key: &RemoteKey,
        offset: u64,
        op: impl FnOnce() -> Option<RemoteOp>,
        operation: &Arc<Operation>,
    ) -> Poll<Result<(), LaneError>> {
        let mut native = self.native.lock();
        let Some(native) = &mut *native else { return Poll::Ready(Err(LaneError::Closed)) };
        std::task::ready!(native.lane.poll_ready(&mut Context::from_waker(&self.driver)))?;
        let Some(op) = op() else { return Poll::Ready(Err(LaneError::Closed)) };
        let token = native.lane.start(key, offset, op)?;
        operation.begun();
        native.under_way.push((token, operation.clone()));
        self.requests.fetch_add(1, Relaxed);
        Poll::Ready(Ok(()))
    }

    /// Hands on what has ended, and lets the next one begin.
    pub(crate) fn collect_native(&self) -> Result<(), LaneError> {
        self.collect(None)
    }

    /// The same for one who looks on for the end of this one, and collects when it no longer does: if nobody else depends on the lane,
    /// the driver need not be woken for what is found here at once.
    pub(crate) fn look_native(&self, operation: &Arc<Operation>) -> Result<(), LaneError> {
        self.collect(Some(operation))
    }

    fn collect(&self, looks_on: Option<&Arc<Operation>>) -> Result<(), LaneError> {
        if self.mode != OneSided::Native {
            return Ok(());
        }
        // Operations of any task end here, under the lane's lock: those are woken after it.
        quietly(|| self.collect_quietly(looks_on))
    }

    fn collect_quietly(&self, looks_on: Option<&Arc<Operation>>) -> Result<(), LaneError> {
        let mut found = false;
        while let Some(native) = &mut *self.native.lock() {
            let is_ours =
                |(_, other): &(_, Arc<Operation>)| looks_on.is_some_and(|ours| Arc::ptr_eq(ours, other));
            let is_alone = native.granted.is_empty()
                && native.under_way.len() == 1
                && native.under_way.iter().all(is_ours);
            let waker = if is_alone { Waker::noop() } else { &self.driver };
            let polled = native.lane.poll_completions(&mut Context::from_waker(waker), &mut native.batch)?;
            if polled.is_pending() || native.batch.is_empty() {
                break;
            }
            found = true;
            native.hand_on(&self.pool, &self.ledger);
            if is_alone && native.under_way.is_empty() {
                // Nobody is to be woken for anything.
                break;
            }
        }
        if found || looks_on.is_none() || !self.is_quiet() {
            self.window.lock().wake_first();
        }
        Ok(())
    }

    /// The connection has ended: nothing is granted any more, and everybody who waits is to look at why.
    pub(crate) fn end(&self) {
        let leftovers = self.target.lock().end();
        self.granted.store(0, Relaxed);
        drop(leftovers);
        if self.mode != OneSided::Native {
            // Else `settle` ends them.
            self.expiries.lock().clear();
        }
        self.window.lock().end();
        if let Some(native) = &mut *self.native.lock() {
            native.over = true;
            native.under_way.drain(..).for_each(|(_, operation)| operation.wake());
        }
    }

    /// The connection's task has ended: takes back what the lane itself had granted, and lets go of it. Memory is
    /// copied where a peer could keep it, so the lane's lock is only held for one key at a time.
    pub(crate) fn settle(&self) {
        while let Some((key, export)) = self.last_granted() {
            // As the owner would, who may be about to: whoever is second finds that it is done.
            if let Some(export) = export.upgrade()
                && let Err(error) = export.revoke(&key)
            {
                tracing::error!(%error, "no memory for a copy of an export: a peer that is gone may still write it");
            }
            // The export is gone, or it knows the key no more.
            self.revoke(&key);
        }
        let native = self.native.lock().take();
        drop(native);
    }

    fn last_granted(&self) -> Option<(RemoteKey, Weak<Shared>)> {
        let mut native = self.native.lock();
        let native = native.as_mut()?;
        native.over = true;
        native.granted.last().cloned()
    }
}

impl Native {
    /// Tells those whose operations have ended.
    fn hand_on(&mut self, pool: &BufPool, ledger: &CopyLedger) {
        for done in self.batch.drain() {
            // An unknown token is nobody's (M3).
            let Some(at) = self.under_way.iter().position(|(token, _)| *token == done.token) else {
                continue;
            };
            let (_, operation) = self.under_way.remove(at);
            if done.in_part {
                operation.ended_in_part();
            }
            let len = done.read.as_ref().map_or(0, |read| read.len());
            let answer = RemoteAnswer { id: 0, status: done.status, len: len as u32, value: done.value };
            let read = done.read.map_or_else(Message::new, Message::from);
            ledger.moved(len);
            operation.answered(&answer, read, pool, ledger);
        }
    }

    fn revoke(&mut self, key: &RemoteKey) -> Revoked {
        let Some(at) = self.granted.iter().position(|(granted, _)| granted == key) else {
            return Revoked::Done;
        };
        self.granted.swap_remove(at);
        self.lane.revoke(key)
    }
}
