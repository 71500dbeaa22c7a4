//! One end of a connection.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use parking_lot::Mutex;
use zc_core::memory::{Deferral, ExportMemory, PinnedBuf, PinnedBufMut, Region, RegisterError};

use super::core::{Pair, PairState};
use super::{EndpointEnd, Handle};
use crate::gid::GidEntry;
use crate::limits::{BIND_DEPTH, KEPT_FACTOR, MAX_READS, MIN_SHARE, RECEIVE_BYTES};
use crate::verbs::{
    Context as DeviceContext, DeviceCaps, Operation, Path, QueuePair, QueuePairCaps, Received, RemoteAccess,
    RemotePlace, Showable, Unfit, VerbsError, WindowId, Work,
};
use crate::wire::{End, Psn, QueuePairNumber};

/// Why there is no endpoint, or why it was not connected.
///
/// ```
/// use zc_transport_rdma::{EndpointEnd, EndpointError};
///
/// assert!(EndpointError::Ended(EndpointEnd::DeviceGone).to_string().contains("device"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The device refused.
    #[error(transparent)]
    Verbs(#[from] VerbsError),
    /// The engine or the endpoint is over.
    #[error(transparent)]
    Ended(#[from] EndpointEnd),
    /// All receive buffers belong to other connections, or the pool has no memory for them.
    #[error("no receive buffers are left for one more connection")]
    NoReceiveBuffers,
    /// No random numbers.
    #[error("the system has no random numbers")]
    NoRandomness,
}

/// Why work was not done.
///
/// ```
/// use zc_transport_rdma::{EndpointEnd, Unsent};
///
/// assert_eq!(Unsent::from(EndpointEnd::PortDown), Unsent::Ended(EndpointEnd::PortDown));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsent {
    /// This endpoint can't do it.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// More is staged, or over and not taken, than the endpoint keeps.
    #[error("too much work is staged, or over and was not taken")]
    Full,
    /// The endpoint is over, and the device had it.
    #[error(transparent)]
    Ended(#[from] EndpointEnd),
    /// The endpoint was over before the device had it. The reason is that of the endpoint, and none of this work's.
    #[error("not handed over: {0}")]
    NotTaken(#[source] EndpointEnd),
}

/// Work that is over, with its memory.
///
/// ```
/// use zc_transport_rdma::Finished;
///
/// /// The memory of what was sent can be used again now, whatever came of it.
/// fn tag_of(finished: Finished) -> u64 {
///     finished.work.tag
/// }
/// # let _ = tag_of;
/// ```
#[derive(Debug)]
pub struct Finished {
    /// As it was staged.
    pub work: Work,
    /// How it ended.
    pub result: Result<(), Unsent>,
}

/// A queue pair of an engine. Dropping it ends the connection: what is under way is drained, then it is destroyed.
///
/// ```
/// use zc_core::memory::Message;
/// use zc_transport_rdma::{End, Engine, RemoteAccess, Work};
///
/// fn greet(engine: &Engine, their_bytes: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
///     let endpoint = engine.endpoint()?;
///     let _my_bytes = endpoint.describe().encode(); // They travel over a control link.
///     endpoint.connect(&End::decode(their_bytes)?, RemoteAccess::default())?;
///     endpoint.stage(Work::send(1, Message::from(&b"hello"[..]))).map_err(|(_work, why)| why)?;
///     endpoint.flush();
///     Ok(())
/// }
/// # let _ = greet;
/// ```
pub struct Endpoint {
    pair: Arc<Pair>,
    engine: Arc<Handle>,
    psn: Psn,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("queue_pair", &self.pair.queue_pair).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Another one of the same engine, over which nothing is received: for reads, writes and atomics of ours, or of the peer's
    /// on memory that it `shows`.
    pub(crate) fn one_sided(&self, shows: bool) -> Result<Self, EndpointError> {
        let shared = &self.engine.shared;
        let psn = Psn::new(getrandom::u32().map_err(|_| EndpointError::NoRandomness)?);
        let caps = shared.options.caps();
        let caps = if shows { QueuePairCaps { depth: BIND_DEPTH, ..caps } } else { caps };
        let queue_pair = || QueuePair::one_sided(&shared.domain, &shared.completions, caps);
        let queue_pair = queue_pair().or_else(|_| {
            // As below: that of the last round has room which nobody has looked for.
            shared.turn();
            queue_pair()
        })?;
        let mut core = shared.core.lock();
        if let Some(end) = &core.end {
            let end = end.clone();
            drop(core);
            return Err(end.into());
        }
        let state = Mutex::new(PairState::one_sided());
        let pair = Arc::new(Pair { queue_pair, share: 0, is_strict: true, state });
        core.insert(&pair);
        drop(core);
        Ok(Self { pair, engine: self.engine.clone(), psn })
    }

    pub(super) fn new(engine: &Arc<Handle>, is_strict: bool) -> Result<Self, EndpointError> {
        let shared = &engine.shared;
        let psn = Psn::new(getrandom::u32().map_err(|_| EndpointError::NoRandomness)?);
        let queue_pair = || QueuePair::new(&shared.domain, &shared.receives, shared.options.caps());
        let queue_pair = queue_pair().or_else(|_| {
            // Room of those that are gone comes back when their completions have been looked for.
            shared.turn();
            queue_pair()
        })?;
        let pair = {
            let mut core = shared.core.lock();
            if let Some(end) = &core.end {
                return Err(end.clone().into());
            }
            let share = core.shares.reserve().ok_or(EndpointError::NoReceiveBuffers)?;
            let pair =
                Arc::new(Pair { queue_pair, share, is_strict, state: Mutex::new(PairState::default()) });
            core.insert(&pair);
            pair
        };
        shared.receivers.fetch_add(1, Relaxed);
        let endpoint = Self { pair, engine: engine.clone(), psn };
        shared.refill();
        let promised = shared.promise(&endpoint.pair, endpoint.pair.share);
        if promised < MIN_SHARE { Err(EndpointError::NoReceiveBuffers) } else { Ok(endpoint) }
    }

    /// What the peer has to know.
    pub fn describe(&self) -> End {
        let shared = &self.engine.shared;
        End {
            number: self.pair.queue_pair.number(),
            psn: self.psn,
            gid: shared.local.gid,
            recv_bytes: shared.options.recv_buffer_bytes as u32,
            recv_count: self.pair.state.lock().promised,
            inline_bytes: self.inline_bytes().min(RECEIVE_BYTES) as u32,
            mtu: shared.port.mtu,
            reads: shared.limits.reads_served.min(MAX_READS),
        }
    }

    /// Connects it to the peer, which does the same with [what is said of this one](Self::describe). The peer may do so much with
    /// memory whose key it knows: that of the engine's [`ExportedMemory`](crate::ExportedMemory), whoever that was exported for.
    ///
    /// # Errors
    /// The endpoint is connected already, or the device refused.
    pub fn connect(&self, peer: &End, access: RemoteAccess) -> Result<(), EndpointError> {
        let (shared, mine, queue_pair) = (&self.engine.shared, self.describe(), &self.pair.queue_pair);
        queue_pair.init(shared.port.number, access)?;
        let path = Path {
            local: shared.local,
            gid: peer.gid,
            number: peer.number,
            psn: peer.psn,
            mtu: mine.mtu.min(peer.mtu),
            reads: mine.reads,
        };
        queue_pair.receive(&path)?;
        self.pair.state.lock().peer_recv_bytes = peer.recv_bytes as usize;
        queue_pair.send(self.psn, peer.reads.min(shared.limits.reads_begun))?;
        Ok(())
    }

    /// Up to how many bytes are sent out of the work request itself: such memory need not be registered.
    pub fn inline_bytes(&self) -> usize {
        self.pair.queue_pair.caps().inline_bytes as usize
    }

    /// Work requests that may be under way.
    pub(crate) fn depth(&self) -> u32 {
        self.pair.queue_pair.caps().depth
    }

    /// How many pieces of memory a message may have.
    pub fn segments(&self) -> usize {
        self.pair.queue_pair.caps().segments as usize
    }

    /// The longest message that the port sends.
    pub(crate) fn message_bytes(&self) -> u32 {
        self.engine.shared.port.message_bytes
    }

    /// How many more can be handed to the device.
    pub fn room(&self) -> usize {
        (self.pair.queue_pair.room() as usize).saturating_sub(self.pair.state.lock().staged.len())
    }

    /// Takes up work, for the next [`flush`](Self::flush). Memory that is not registered is. There is room for
    /// as much as the device takes, and as much again.
    ///
    /// # Errors
    /// The work, and why it can't be done.
    pub fn stage(&self, work: Work) -> Result<(), (Work, Unsent)> {
        if let Err(unfit) = self.pair.queue_pair.prepare(&work) {
            return Err((work, unfit.into()));
        }
        let mut state = self.pair.state.lock();
        if let Some(end) = &state.end {
            let end = end.clone();
            drop(state);
            return Err((work, Unsent::NotTaken(end)));
        }
        let of_port = self.engine.shared.port.message_bytes as usize;
        let is_send = matches!(work.operation, Operation::Send { .. });
        let (len, max) = (work.bytes(), if is_send { of_port.min(state.peer_recv_bytes) } else { of_port });
        if len > max {
            drop(state);
            return Err((work, Unfit::TooLong { len, max }.into()));
        }
        let kept = state.staged.len() + state.finished.len();
        if kept >= KEPT_FACTOR * self.pair.queue_pair.caps().depth as usize {
            drop(state);
            return Err((work, Unsent::Full));
        }
        state.staged.push_back(work);
        Ok(())
    }

    /// Hands over what is staged, with one doorbell for up to [`POST_BATCH`](crate::POST_BATCH) requests. What finds no room follows
    /// by itself.
    pub fn flush(&self) {
        let _deferral = Deferral::begin();
        self.pair.flush(&mut self.pair.state.lock());
    }

    /// Work that is over, in order. An end that is ours comes after all of it.
    ///
    /// # Errors
    /// Why the endpoint is over, once all work has come back.
    pub fn poll_finished(
        &self,
        cx: &mut Context<'_>,
        out: &mut Vec<Finished>,
    ) -> Poll<Result<(), EndpointEnd>> {
        self.poll(cx, |state, cx, is_empty| {
            state.tx.park(cx);
            let found = !state.finished.is_empty();
            out.extend(state.finished.drain(..));
            (found, is_empty)
        })
    }

    /// Messages, in order.
    ///
    /// # Errors
    /// Why the endpoint is over, once all that had come in was taken.
    pub fn poll_received(
        &self,
        cx: &mut Context<'_>,
        out: &mut Vec<(PinnedBuf, Received)>,
    ) -> Poll<Result<(), EndpointEnd>> {
        self.poll(cx, |state, cx, _| {
            state.rx.park(cx);
            let found = !state.received.is_empty();
            out.extend(state.received.drain(..).map(|(buf, info)| (buf.freeze(), info)));
            (found, true)
        })
    }

    /// For the lane: takes what there is, and says whether it is over. With a context, that one is woken when there is a message,
    /// and all that has happened until now is seen.
    pub(crate) fn look(
        &self,
        cx: Option<&Context<'_>>,
        finished: &mut Vec<Finished>,
        received: &mut VecDeque<(PinnedBufMut, Received)>,
    ) -> Option<EndpointEnd> {
        let _deferral = Deferral::begin();
        let shared = &self.engine.shared;
        if cx.is_some() {
            shared.turn();
        } else {
            shared.try_turn();
        }
        let mut state = self.pair.state.lock();
        if let Some(cx) = cx {
            state.rx.park(cx);
        }
        finished.extend(state.finished.drain(..));
        received.extend(state.received.drain(..));
        state.end.clone()
    }

    /// Whoever looks now without being woken does so again soon: signals would only have the engine's task run beside it. Where other
    /// connections use the engine, they are for those; whoever sleeps on this one [asks](Self::arm) for one.
    pub(crate) fn looks_on(&self) {
        let shared = &self.engine.shared;
        if shared.receivers.load(Relaxed) == 1 {
            shared.looks.fetch_add(1, Relaxed);
        }
    }

    /// Has `cx` woken when work is over that is not silent; or any work, if `sends`.
    pub(crate) fn await_work(&self, cx: &Context<'_>, sends: bool) {
        let _deferral = Deferral::begin();
        let mut state = self.pair.state.lock();
        state.tx.park(cx);
        state.awaits_sends |= sends;
    }

    /// Nothing is staged or under way: what there was can be collected.
    pub(crate) fn is_idle(&self) -> bool {
        self.pair.state.lock().is_idle()
    }

    /// Receive buffers of this connection.
    pub(crate) fn share(&self) -> u32 {
        self.pair.share
    }

    /// Lets the peer use so many receive buffers more; says how many it may.
    pub(crate) fn promise(&self, wanted: u32) -> u32 {
        let _deferral = Deferral::begin();
        self.engine.shared.promise(&self.pair, wanted)
    }

    /// Takes a receive buffer back.
    pub(crate) fn recycle(&self, buf: PinnedBufMut) {
        self.engine.shared.recycle(buf);
    }

    /// Takes what is over, without looking for more; says whether all is.
    pub(crate) fn collect(&self, finished: &mut Vec<Finished>) -> Option<EndpointEnd> {
        let mut state = self.pair.state.lock();
        finished.extend(state.finished.drain(..));
        state.end.clone()
    }

    /// For one who looks and comes back at once: takes completions to whose they are, unless somebody does so now.
    pub(crate) fn peek(&self) {
        let _deferral = Deferral::begin();
        let shared = &self.engine.shared;
        shared.looks.fetch_add(1, Relaxed);
        shared.try_turn();
    }

    pub(crate) fn number(&self) -> QueuePairNumber {
        self.pair.queue_pair.number()
    }

    /// It takes no more work.
    pub(crate) fn has_ended(&self) -> bool {
        self.pair.state.lock().end.is_some()
    }

    /// There is something to be taken, or it is over.
    pub(crate) fn has_news(&self) -> bool {
        let state = self.pair.state.lock();
        !state.finished.is_empty() || !state.received.is_empty() || state.end.is_some()
    }

    /// One who has looked, perhaps, is going to sleep: if the engine's task relies on that, completions wake it from here on. To be
    /// looked at again afterwards. A task that only then would begin to doze does not.
    pub(crate) fn arm(&self) {
        let shared = &self.engine.shared;
        if !shared.asked.load(SeqCst) {
            shared.asked.store(true, SeqCst);
        }
        if !shared.dozing.load(SeqCst) {
            return;
        }
        match shared.arm() {
            Ok(true) => drop(shared.turn()),
            Ok(false) => {}
            // The task hears it, too, and ends.
            Err(error) => tracing::debug!(%error, "a completion queue can't be armed"),
        }
    }

    /// Has `cx` woken with the next message, whoever is to take that.
    pub(crate) fn await_message(&self, cx: &Context<'_>) {
        let _deferral = Deferral::begin();
        self.pair.state.lock().beside.park(cx);
    }

    /// Looks for all that is complete by now, of whomever.
    pub(crate) fn turn(&self) {
        self.engine.shared.turn();
    }

    /// The device and the address that it uses of it.
    pub(crate) fn device(&self) -> (&Arc<DeviceContext>, GidEntry) {
        (&self.engine.shared.context, self.engine.shared.local)
    }

    /// What the device can do.
    pub(crate) fn limits(&self) -> &DeviceCaps {
        &self.engine.shared.limits
    }

    /// A range of exported memory for windows of this engine's queue pairs, registered if it is not yet.
    pub(crate) fn showable(
        &self,
        memory: &ExportMemory,
        range: &Range<u64>,
    ) -> Result<Arc<Showable>, RegisterError> {
        // Held while it is registered: others that want the same one find it.
        let mut all = self.engine.shared.showable.lock();
        all.retain(|known| known.strong_count() > 0);
        let known = all.iter().filter_map(Weak::upgrade).find(|known| known.is(memory, range));
        if let Some(known) = known {
            return Ok(known);
        }
        let new = Arc::new(Showable::register(&self.engine.shared.domain, memory, range.clone())?);
        all.push(Arc::downgrade(&new));
        Ok(new)
    }

    /// What the peer may do with that memory, once the window is [bound](Operation::Bind).
    pub(crate) fn open_window(
        &self,
        memory: Arc<Showable>,
        access: RemoteAccess,
    ) -> Result<(WindowId, RemotePlace), VerbsError> {
        self.pair.queue_pair.open_window(memory, access)
    }

    /// Ends that at once. It is not being bound.
    pub(crate) fn close_window(&self, window: WindowId) -> Result<(), VerbsError> {
        self.pair.queue_pair.close_window(window)
    }

    pub(crate) fn add_window(&self) -> Result<WindowId, VerbsError> {
        self.pair.queue_pair.add_window()
    }

    pub(crate) fn aim(&self, window: WindowId, memory: PinnedBuf) -> Result<RemotePlace, Unfit> {
        self.pair.queue_pair.aim(window, memory)
    }

    pub(crate) fn let_go(&self, window: WindowId) -> Option<PinnedBuf> {
        self.pair.queue_pair.let_go(window)
    }

    /// Has a message's memory registered; false if it can't be.
    pub(crate) fn knows(&self, memory: &PinnedBuf) -> bool {
        memory.region().is_some_and(|region| self.engine.shared.domain.lkey(region).is_ok())
    }

    /// The same for memory of a pool.
    pub(crate) fn register(&self, memory: Option<&Region>) -> Result<(), RegisterError> {
        let region = memory.ok_or(RegisterError::Unsupported("memory of no region"))?;
        self.engine.shared.domain.lkey(region).map(|_| ())
    }

    pub(crate) fn now(&self) -> Instant {
        self.engine.shared.reactor.now()
    }

    /// Nothing more is sent or received.
    pub(crate) fn fail(&self, end: EndpointEnd) {
        let _deferral = Deferral::begin();
        self.pair.end(&mut self.pair.state.lock(), end);
    }

    /// Looks, has the engine look, and looks again. `take` says whether it found something, and whether an end counts; it is
    /// told whether the device has nothing of this endpoint's any more.
    fn poll(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut PairState, &Context<'_>, bool) -> (bool, bool),
    ) -> Poll<Result<(), EndpointEnd>> {
        let _deferral = Deferral::begin();
        for look in 0..2 {
            if look == 1 {
                let shared = &self.engine.shared;
                shared.try_turn();
            }
            let mut state = self.pair.state.lock();
            let is_empty = state.is_idle();
            match take(&mut state, cx, is_empty) {
                (true, _) => return Poll::Ready(Ok(())),
                (false, counts) => match &state.end {
                    Some(end) if counts || end.is_of_engine() => return Poll::Ready(Err(end.clone())),
                    _ => {}
                },
            }
        }
        Poll::Pending
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _deferral = Deferral::begin();
        {
            let mut state = self.pair.state.lock();
            state.staged.clear();
            self.pair.end(&mut state, EndpointEnd::EngineGone);
        }
        let shared = &self.engine.shared;
        if self.pair.share > 0 {
            shared.receivers.fetch_sub(1, Relaxed);
        }
        let now = shared.reactor.now();
        shared.core.lock().close(&self.pair, now);
    }
}
