//! Accepts connections. Handshakes run side by side in a task of their own, so that a slow peer
//! holds up nobody else, and nobody has to call `accept` for them to go on.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::future::{AbortHandle, Abortable, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use rustix::io::Errno;
use zc_core::transport::{
    BoxFuture, ControlLink, LinkAddr, LinkError, LinkListener, Role, TaskHandle, Unavailable,
};
use zc_core::wire::Stage;

use super::crowd::{Crowd, Source};
use super::plain::PlainStream;

use crate::connection::Connection;
use crate::error::Error;
use crate::event::{AcceptFailed, quietly};
use crate::pause::Pause;
use crate::uri::Uri;
use crate::wireup::{self, Progress, Prover, Request, Shared, Side};

/// Handshakes of one listener that run at a time. One more ends the oldest of the source (address, or
/// user) that has the most, once that one has had [`MIN_HANDSHAKE`]; until then it is not accepted.
pub const MAX_HANDSHAKES: usize = 1024;
/// The time that every handshake is given, however many others there are.
pub const MIN_HANDSHAKE: Duration = Duration::from_millis(200);
/// Connections that wait for [`Listener::accept`]. Further ones wait as finished handshakes, of which
/// there are at most [`MAX_HANDSHAKES`]; from half of that on no link is accepted.
pub const MAX_READY: usize = 64;
/// Links accepted in one turn before handshakes get theirs.
const ACCEPTS_PER_TURN: usize = 32;

/// Accepts connections at one address. Dropping it stops listening and abandons handshakes; the
/// connections it made live on.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto()?;
/// let mut listener = fabric.listen("zc://127.0.0.1:0").await?;
/// let uri = listener.local_uri().to_string(); // with the real port
/// let client = tokio::spawn(async move { fabric.connect(&uri).await });
///
/// let conn = listener.accept().await?;
/// println!("{} came, {} failed", conn.peer().addr, listener.failed_handshakes());
/// # drop(client.await??);
/// # Ok(()) }
/// ```
pub struct Listener {
    uri: Uri,
    gate: Arc<Gate>,
    _task: Box<dyn TaskHandle>,
}

/// What a [`MixedListener`] accepts.
///
/// ```
/// fn about(incoming: &zc::Incoming) -> String {
///     match incoming {
///         zc::Incoming::Connection(connection) => format!("zc over {}", connection.report().chosen()),
///         zc::Incoming::Plain(stream) => format!("something else from {}", stream.peer().addr),
///     }
/// }
/// # let _ = about;
/// ```
pub enum Incoming {
    /// A peer that speaks zc.
    Connection(Connection),
    /// One whose first bytes are no HELLO.
    Plain(PlainStream),
}

/// A listener that serves zc and whatever else its user speaks at one address: the first bytes tell them
/// apart, as a rule one. A peer that speaks no zc has proved nothing, whatever the fabric's [`Authenticator`](crate::Authenticator)
/// asks of others: that is for the protocol that it speaks. Made by [`Fabric::listen_mixed`](crate::Fabric::listen_mixed).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto()?;
/// let mut listener = fabric.listen_mixed("zc+mem://mixed").await?;
/// let (client, server) = tokio::try_join!(fabric.connect("zc+mem://mixed"), listener.accept())?;
/// assert!(matches!(server, zc::Incoming::Connection(_)));
/// # drop(client);
/// # Ok(()) }
/// ```
pub struct MixedListener(pub(super) Listener);

impl MixedListener {
    /// The next connection that is up, or link that carries something else.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`Error::ListenerClosed`]; see [`Listener::accept`].
    pub async fn accept(&mut self) -> Result<Incoming, Error> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Like [`MixedListener::accept`], for code that polls.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, Error>> {
        self.0.poll_incoming(cx)
    }

    /// Where it listens, with the real port.
    pub fn local_uri(&self) -> &Uri {
        self.0.local_uri()
    }

    /// Handshakes that failed so far; a link that carries no zc is none.
    pub fn failed_handshakes(&self) -> u64 {
        self.0.failed_handshakes()
    }

    /// Stops listening; see [`Listener::close`].
    pub fn close(&mut self) {
        self.0.close();
    }
}

/// What the listener and its task share.
struct Gate {
    state: Mutex<GateState>,
    failures: AtomicU64,
}

struct GateState {
    /// Away while the task polls it.
    links: Option<Box<dyn LinkListener>>,
    ready: VecDeque<Incoming>,
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
        prover: Result<Prover, Unavailable>,
        mixed: bool,
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
            pause: Pause::new(&*shared.reactor).map_err(no_runtime)?,
            shared: shared.clone(),
            gate: gate.clone(),
            local: local.clone(),
            request: Arc::new(request),
            prover: Arc::new(prover),
            mixed,
            handshakes: FuturesUnordered::new(),
            live: HashMap::new(),
            crowd: Crowd::default(),
            next: 0,
            finished: VecDeque::new(),
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
        loop {
            match std::task::ready!(self.poll_incoming(cx))? {
                Incoming::Connection(connection) => return Poll::Ready(Ok(connection)),
                // The listener of a `MixedListener` is asked for zc only.
                Incoming::Plain(stream) => drop(stream),
            }
        }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, Error>> {
        let mut state = self.gate.state.lock();
        let Some(incoming) = state.ready.pop_front() else {
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
        Poll::Ready(Ok(incoming))
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
    /// How many there are with this one.
    fn count_failure(&self) -> u64 {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The address is free again when this returns, or once the task has returned the links that it has.
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

    /// Nothing comes any more, whatever the reason: `accept` says so after what is there.
    fn end(&self, finished: &mut VecDeque<Incoming>) {
        self.close();
        let mut state = self.state.lock();
        state.ready.append(finished);
        state.done = true;
        let accept = state.accept.take();
        drop(state);
        if let Some(accept) = accept {
            accept.wake();
        }
    }

    /// Hands over as much as there is room for.
    fn hand_over(&self, finished: &mut VecDeque<Incoming>, done: bool) {
        let mut state = self.state.lock();
        let before = state.ready.len();
        while state.ready.len() < MAX_READY
            && let Some(incoming) = finished.pop_front()
        {
            state.ready.push_back(incoming);
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
    source: Source,
    since: Instant,
}

/// No handshake can begin now.
struct Full;

/// Ends with the handshake's number; its outcome is `None` when it failed.
type Handshake = BoxFuture<'static, (u64, Option<Incoming>)>;

struct Acceptor {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    local: LinkAddr,
    request: Arc<Request>,
    prover: Arc<Result<Prover, Unavailable>>,
    /// Links that carry no zc are handed out, too.
    mixed: bool,
    handshakes: FuturesUnordered<Handshake>,
    /// Those that were not evicted.
    live: HashMap<u64, Live>,
    crowd: Crowd,
    next: u64,
    finished: VecDeque<Incoming>,
    pause: Pause,
}

impl Acceptor {
    /// Ready when the listener is closed and the last handshake has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.gate.state.lock().task = Some(cx.waker().clone());
        // First, for they make room; and once more, for new ones must begin.
        self.poll_handshakes(cx);
        let open = self.poll_links(cx);
        self.poll_handshakes(cx);
        let done = !open && self.live.is_empty();
        self.gate.hand_over(&mut self.finished, done);
        if done && self.finished.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Accepts what waits; false once the listener is closed.
    fn poll_links(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(mut links) = self.gate.take_links() else { return false };
        if !self.pause.lasts(cx) {
            self.accept_some(&mut *links, cx);
        }
        self.gate.return_links(links);
        true
    }

    fn accept_some(&mut self, links: &mut dyn LinkListener, cx: &mut Context<'_>) {
        for _ in 0..ACCEPTS_PER_TURN {
            // Nobody accepts: what is finished is not given up for newcomers, who wait in the kernel's backlog.
            if self.finished.len() >= MAX_HANDSHAKES / 2 {
                return;
            }
            let Ok(victim) = self.room(cx) else { return };
            match links.poll_accept(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok(link)) => {
                    victim.into_iter().for_each(|victim| self.evict(victim));
                    self.begin(link);
                }
                Poll::Ready(Err(error)) => return self.pause(cx, &error),
            }
        }
        cx.waker().wake_by_ref();
    }

    fn begin(&mut self, link: Box<dyn ControlLink>) {
        let id = self.next;
        self.next += 1;
        let progress = Arc::<Progress>::default();
        let (peer, source) = (link.peer(), Source::of(&*link));
        let (shared, gate, mixed) = (self.shared.clone(), self.gate.clone(), self.mixed);
        let (request, prover, reached) = (self.request.clone(), self.prover.clone(), progress.clone());
        let at = peer.clone();
        let handshake = async move {
            let plain = Mutex::new(None);
            let side = Side {
                role: Role::Server,
                request: &request,
                prover: prover.as_ref().as_ref().map_err(Unavailable::clone),
                progress: &reached,
                plain: mixed.then_some(&plain),
            };
            // What runs in it is the application's in part: a method, a transport, an observer.
            let run = AssertUnwindSafe(wireup::run(&shared, side, link, || gate.count_failure()));
            let up = run.catch_unwind().await.unwrap_or_else(|panic| {
                let error = Error::Panicked { stage: reached.stage(), message: panic_message(&*panic) };
                let failures = gate.count_failure();
                wireup::failed(&shared, Role::Server, at, &error, failures);
                Err(error)
            });
            match up {
                Ok(connection) => Some(Incoming::Connection(connection)),
                Err(_) => plain.into_inner().map(Incoming::Plain),
            }
        };
        let (abort, registration) = AbortHandle::new_pair();
        let handshake = Abortable::new(handshake, registration);
        self.handshakes.push(Box::pin(async move { (id, handshake.await.ok().flatten()) }));
        let since = self.shared.reactor.now();
        self.live.insert(id, Live { progress, abort, peer, source, since });
        self.crowd.insert(source, id);
    }

    /// Who has to go for one more handshake to begin, if anybody; an error if that must wait, after which
    /// the task is woken.
    fn room(&mut self, cx: &mut Context<'_>) -> Result<Option<u64>, Full> {
        if self.live.len() + self.finished.len() < MAX_HANDSHAKES {
            return Ok(None);
        }
        let victim = self.victim().ok_or(Full)?;
        let due = self.live.get(&victim).map(|live| live.since + MIN_HANDSHAKE);
        match due.filter(|due| *due > self.shared.reactor.now()) {
            None => Ok(Some(victim)),
            Some(due) => {
                self.pause.wake_at(cx, due);
                Err(Full)
            }
        }
    }

    fn victim(&self) -> Option<u64> {
        let authenticates = self.shared.authenticator.is_some();
        let stage = |id| self.live.get(&id).map(|live: &Live| live.progress.stage());
        self.crowd.victim(|id| authenticates && stage(id) > Some(Stage::Authenticate))
    }

    fn evict(&mut self, victim: u64) {
        let Some(live) = self.forget(victim) else { return };
        let error = Error::Evicted { stage: live.progress.stage() };
        let failures = self.gate.count_failure();
        wireup::failed(&self.shared, Role::Server, live.peer, &error, failures);
        live.abort.abort();
    }

    fn forget(&mut self, id: u64) -> Option<Live> {
        let live = self.live.remove(&id)?;
        self.crowd.remove(live.source, id);
        Some(live)
    }

    fn pause(&mut self, cx: &mut Context<'_>, error: &LinkError) {
        let event = AcceptFailed { local: self.local.clone(), reason: error.to_string() };
        quietly(|| self.shared.observer.accept_failed(&event));
        let now = self.shared.reactor.now();
        if is_shortage(error) {
            // Links that came to nothing must not keep the descriptors that good ones need.
            for _ in 0..ACCEPTS_PER_TURN {
                let victim = self.victim();
                let old = |live: &Live| now >= live.since + MIN_HANDSHAKE;
                let Some(victim) = victim.filter(|id| self.live.get(id).is_some_and(old)) else { break };
                self.evict(victim);
            }
        }
        self.pause.begin(cx, now);
    }

    fn poll_handshakes(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some((id, outcome))) = self.handshakes.poll_next_unpin(cx) {
            self.forget(id);
            self.finished.extend(outcome);
        }
    }
}

/// Also when the runtime ends, or code of the application panics where nothing catches it.
impl Drop for Acceptor {
    fn drop(&mut self) {
        self.gate.end(&mut self.finished);
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
}

/// The process or the system has no descriptor left.
fn is_shortage(error: &LinkError) -> bool {
    let LinkError::Io { source, .. } = error else { return false };
    [Errno::MFILE, Errno::NFILE].into_iter().any(|errno| Errno::from_io_error(source) == Some(errno))
}
