//! Accepts connections. Handshakes run side by side in a task of their own, so that a slow peer
//! holds up nobody else, and nobody has to call `accept` for them to go on.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::{AbortHandle, Abortable};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use zc_core::transport::{BoxFuture, ControlLink, LinkAddr, LinkListener, Role, TaskHandle, Timer};

use crate::connection::Connection;
use crate::error::Error;
use crate::event::AcceptFailed;
use crate::uri::Uri;
use crate::wireup::{self, Progress, Prover, Request, Shared, Side};

/// Handshakes of one listener that run at a time. One more ends the one that has been silent the longest.
pub const MAX_HANDSHAKES: usize = 1024;
/// Connections that wait for [`Listener::accept`]. Further ones wait as finished handshakes, of which
/// there are at most [`MAX_HANDSHAKES`]; then no link is accepted.
pub const MAX_READY: usize = 64;
/// Pause after a link could not be accepted, for instance for want of a descriptor.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Links accepted in one turn before handshakes get theirs.
const ACCEPTS_PER_TURN: usize = 32;

/// Accepts connections at one address. Dropping it stops listening and abandons handshakes; the
/// connections it made live on.
pub struct Listener {
    uri: Uri,
    gate: Arc<Gate>,
    _task: Box<dyn TaskHandle>,
}

/// What the listener and its task share.
struct Gate {
    state: Mutex<GateState>,
    failures: AtomicU64,
}

struct GateState {
    /// Away while the task polls it.
    links: Option<Box<dyn LinkListener>>,
    ready: VecDeque<Connection>,
    /// No link is accepted any more.
    closed: bool,
    /// Nothing comes any more.
    done: bool,
    accept: Option<Waker>,
    task: Option<Waker>,
}

impl Listener {
    pub(super) fn start(
        shared: Arc<Shared>,
        links: Box<dyn LinkListener>,
        uri: Uri,
        request: Request,
        prover: Option<Prover>,
    ) -> Result<Self, Error> {
        let local = links.local();
        let no_runtime = |error: std::io::Error| Error::NoRuntime(error.to_string());
        let gate = Arc::new(Gate {
            state: Mutex::new(GateState {
                links: Some(links),
                ready: VecDeque::new(),
                closed: false,
                done: false,
                accept: None,
                task: None,
            }),
            failures: AtomicU64::new(0),
        });
        let mut acceptor = Acceptor {
            retry: shared.reactor.timer().map_err(no_runtime)?,
            shared: shared.clone(),
            gate: gate.clone(),
            local: local.clone(),
            request: Arc::new(request),
            prover: prover.map(Arc::new),
            handshakes: FuturesUnordered::new(),
            live: BTreeMap::new(),
            next: 0,
            finished: VecDeque::new(),
            paused: false,
        };
        let task = shared.reactor.spawn(Box::pin(async move { poll_fn(|cx| acceptor.poll(cx)).await }));
        Ok(Self { uri: uri.with_addr(local), gate, _task: task.map_err(no_runtime)? })
    }

    /// Where it listens, with the real port.
    pub fn local_uri(&self) -> &Uri {
        &self.uri
    }

    /// Handshakes that failed so far; the [`Observer`](crate::Observer) heard of each.
    pub fn failed_handshakes(&self) -> u64 {
        self.gate.failures.load(Ordering::Relaxed)
    }

    /// The next connection that is up. Handshakes go on meanwhile, and one peer's slow or broken
    /// handshake never holds up another's.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`Error::ListenerClosed`]. A handshake that failed is no error here, nor is a link that could not
    /// be accepted: the [`Observer`](crate::Observer) hears of them.
    pub async fn accept(&mut self) -> Result<Connection, Error> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Like [`Listener::accept`], for code that polls.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection, Error>> {
        let mut state = self.gate.state.lock();
        let Some(connection) = state.ready.pop_front() else {
            if state.done {
                return Poll::Ready(Err(Error::ListenerClosed));
            }
            state.accept = Some(cx.waker().clone());
            return Poll::Pending;
        };
        // One more of the finished can come in.
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
        Poll::Ready(Ok(connection))
    }

    /// Stops listening. Handshakes under way end in their own time, and what comes of them can still
    /// be accepted; then `accept` returns [`Error::ListenerClosed`].
    pub fn close(&mut self) {
        self.gate.close();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.gate.close();
        let ready = std::mem::take(&mut self.gate.state.lock().ready);
        drop(ready);
    }
}

impl Gate {
    /// The address is free again when this returns.
    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let (links, task) = (state.links.take(), state.task.take());
        drop(state);
        drop(links);
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Lends the links; `None` once the listener is closed.
    fn take_links(&self) -> Option<Box<dyn LinkListener>> {
        self.state.lock().links.take()
    }

    fn return_links(&self, links: Box<dyn LinkListener>) {
        let mut state = self.state.lock();
        if !state.closed {
            state.links = Some(links);
            return;
        }
        drop(state);
        drop(links);
    }

    /// Hands over as much as there is room for.
    fn hand_over(&self, finished: &mut VecDeque<Connection>, done: bool) {
        let mut state = self.state.lock();
        let before = state.ready.len();
        while state.ready.len() < MAX_READY
            && let Some(connection) = finished.pop_front()
        {
            state.ready.push_back(connection);
        }
        state.done = done && finished.is_empty();
        let accept = if state.ready.len() > before || state.done { state.accept.take() } else { None };
        drop(state);
        if let Some(accept) = accept {
            accept.wake();
        }
    }
}

/// A handshake under way, as its listener sees it.
struct Live {
    progress: Arc<Progress>,
    abort: AbortHandle,
    peer: LinkAddr,
}

/// Ends with the handshake's number; its outcome is `None` when it failed.
type Handshake = BoxFuture<'static, (u64, Option<Connection>)>;

struct Acceptor {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    local: LinkAddr,
    request: Arc<Request>,
    prover: Option<Arc<Prover>>,
    handshakes: FuturesUnordered<Handshake>,
    /// Those that were not evicted, oldest first.
    live: BTreeMap<u64, Live>,
    next: u64,
    finished: VecDeque<Connection>,
    retry: Box<dyn Timer>,
    paused: bool,
}

impl Acceptor {
    /// Ready when the listener is closed and the last handshake has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.gate.state.lock().task = Some(cx.waker().clone());
        let open = self.poll_links(cx);
        self.poll_handshakes(cx);
        let done = !open && self.live.is_empty();
        self.gate.hand_over(&mut self.finished, done);
        if done && self.finished.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Accepts what waits; false once the listener is closed.
    fn poll_links(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(mut links) = self.gate.take_links() else { return false };
        let waiting = self.paused && self.retry.poll_expired(cx).is_pending();
        if !waiting {
            self.paused = false;
            self.accept_some(&mut *links, cx);
        }
        self.gate.return_links(links);
        true
    }

    fn accept_some(&mut self, links: &mut dyn LinkListener, cx: &mut Context<'_>) {
        for _ in 0..ACCEPTS_PER_TURN {
            // Nobody accepts: what is finished is not given up for newcomers, who wait in the kernel's backlog.
            if self.finished.len() >= MAX_HANDSHAKES {
                return;
            }
            match links.poll_accept(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok(link)) => {
                    if self.live.len() + self.finished.len() >= MAX_HANDSHAKES {
                        self.evict();
                    }
                    self.begin(link);
                }
                Poll::Ready(Err(error)) => return self.pause(cx, error.to_string()),
            }
        }
        cx.waker().wake_by_ref();
    }

    fn begin(&mut self, link: Box<dyn ControlLink>) {
        let id = self.next;
        self.next += 1;
        let progress = Arc::<Progress>::default();
        let peer = link.peer();
        let (shared, gate) = (self.shared.clone(), self.gate.clone());
        let (request, prover, reached) = (self.request.clone(), self.prover.clone(), progress.clone());
        let handshake = async move {
            let side =
                Side { role: Role::Server, request: &request, prover: prover.as_deref(), progress: &reached };
            let count = || gate.failures.fetch_add(1, Ordering::Relaxed) + 1;
            wireup::run(&shared, side, link, count).await.ok()
        };
        let (abort, registration) = AbortHandle::new_pair();
        let handshake = Abortable::new(handshake, registration);
        self.handshakes.push(Box::pin(async move { (id, handshake.await.ok().flatten()) }));
        self.live.insert(id, Live { progress, abort, peer });
    }

    /// Gives up the oldest of those that have come the least far: first whoever has said nothing.
    fn evict(&mut self) {
        let stage_of = |live: &Live| live.progress.stage();
        let Some(victim) =
            self.live.iter().min_by_key(|(id, live)| (stage_of(live), **id)).map(|(id, _)| *id)
        else {
            return;
        };
        let Some(live) = self.live.remove(&victim) else { return };
        let error = Error::Evicted { stage: stage_of(&live) };
        let failures = self.gate.failures.fetch_add(1, Ordering::Relaxed) + 1;
        wireup::failed(&self.shared, Role::Server, live.peer, &error, failures);
        live.abort.abort();
    }

    fn pause(&mut self, cx: &mut Context<'_>, reason: String) {
        self.shared.observer.accept_failed(&AcceptFailed { local: self.local.clone(), reason });
        self.retry.reset(self.shared.reactor.now() + ACCEPT_RETRY);
        self.paused = self.retry.poll_expired(cx).is_pending();
        if !self.paused {
            cx.waker().wake_by_ref();
        }
    }

    fn poll_handshakes(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some((id, outcome))) = self.handshakes.poll_next_unpin(cx) {
            self.live.remove(&id);
            self.finished.extend(outcome);
        }
    }
}
