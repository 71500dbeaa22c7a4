//! The transport: stream lanes on the control link's own socket, driven by an engine.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zc_core::memory::BufPool;
use zc_core::stream::COALESCE_MAX;
use zc_core::transport::{
    BoxFuture, Caps, ControlLink, Lane, LinkError, Offer, OfferContext, OneSided, Reactor, Role, Transport,
    Unavailable, WireupError, ZeroCopy,
};

use crate::engine::{EngineOptions, EngineStats, Engines, Kept, Spin, Tenant};
use crate::homes::{Found, Homes};
use crate::ladder::{Flavour, OLDEST};
use crate::lane;
use crate::limits::{
    IDLE_MS, MAX_REGISTERED_REGIONS, MAX_RINGS, MAX_SPILLED_BYTES, MIN_RECV_BUFFER_BYTES, RECV_BUFFER_BYTES,
    RECV_BUFFERS, RECV_POOL_DIVISOR, REFUSED_MS, ZERO_COPY_MIN_BYTES,
};
use crate::probe::{BUFFER_RING, probe};
use crate::zcrx::ZcrxOptions;
use crate::zero_copy::ZeroCopyMode;

/// A reactor for engines alone, for example of a runtime of one thread in a thread of its own: the ring is then for that thread
/// ([`Flavour::OneThread`]), and connections of any runtime use it.
///
/// Others begin operations that the thread submits when it is woken, which takes about as long as waking anybody; what a
/// socket takes at once is sent by the caller. So it suits programs that must not do the kernel's work in their own threads.
///
/// ```
/// use std::sync::Arc;
/// use zc_transport_uring::{EngineThread, UringOptions, UringTransport};
///
/// # fn main() -> std::io::Result<()> {
/// let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// let reactor = Arc::new(zc::TokioReactor::on(runtime.handle().clone()));
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let thread = std::thread::spawn(move || runtime.block_on(stopped));
///
/// let mut options = UringOptions::default();
/// options.thread = Some(EngineThread::of(reactor));
/// let transport = UringTransport::new(options); // for `Fabric::builder().transport(..)`
/// # drop((stop, transport));
/// # let _ = thread.join();
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct EngineThread(Arc<dyn Reactor>);

impl EngineThread {
    /// Engines run on this reactor, whatever the connections' is.
    pub fn of(reactor: Arc<dyn Reactor>) -> Self {
        Self(reactor)
    }
}

impl std::fmt::Debug for EngineThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineThread").finish_non_exhaustive()
    }
}

/// How a [`UringTransport`] works.
///
/// ```
/// use zc_transport_uring::{Flavour, UringOptions, UringTransport};
///
/// let mut options = UringOptions::default();
/// options.flavour = Some(Flavour::ManyThreads); // whatever the runtime says of itself
/// let transport = UringTransport::new(options);
/// # let _ = transport;
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UringOptions {
    /// Who enters the ring; by default as the reactor's tasks run
    pub flavour: Option<Flavour>,
    /// Where the rings are driven; by default where the connection is
    pub thread: Option<EngineThread>,
    /// Receive buffers of each ring; by default `RECV_BUFFERS`, fewer where the pool is small
    pub recv_buffers: Option<u16>,
    /// The length of each, bytes
    pub recv_buffer_bytes: Option<usize>,
    /// Looking for completions instead of sleeping; by default off
    pub spin: Option<Spin>,
    /// Rings of one runtime; by default as [`Engines::rings_for`](crate::Engines::rings_for) says of its threads, and always one
    /// for a runtime of one thread
    pub rings: Option<usize>,
    /// Which payloads are sent out of the memory itself
    pub zero_copy: ZeroCopyMode,
    /// Regions of memory that each ring knows ahead, for sends out of the memory itself
    pub registered_regions: u16,
    /// Bytes of messages that may lie on the heap for all streams of a ring while the pool is exhausted; then connections fail
    pub max_spilled_bytes: usize,
    /// Memory into which a NIC puts what TCP connections receive, see `docs/uring.md`; by default none. It takes a ring for one
    /// thread. Where it can't be had, connections receive as always: [`UringTransport::zero_copy_receive`] says why
    pub zero_copy_receive: Option<ZcrxOptions>,
    /// How long the rings of a runtime are kept after its last connection; with none they go with it
    pub idle: Duration,
}

#[allow(clippy::derivable_impls, reason = "docs/limits.md is made of what stands here")]
impl Default for UringOptions {
    fn default() -> Self {
        Self {
            flavour: None,
            thread: None,
            recv_buffers: None,
            recv_buffer_bytes: None,
            spin: None,
            rings: None,
            zero_copy: ZeroCopyMode::Probe,
            registered_regions: MAX_REGISTERED_REGIONS,
            max_spilled_bytes: MAX_SPILLED_BYTES,
            zero_copy_receive: None,
            idle: Duration::from_millis(IDLE_MS),
        }
    }
}

/// Messages over the control link, if that is a TCP or Unix socket, moved by io_uring. Peers can't tell it from the
/// stream transport that waits for readiness, and need not have the same.
///
/// Connections of one runtime share its [`Engines`], which begin with the first of them and end [a while](UringOptions::idle) after
/// the last. A runtime of one thread that is driven by several in turn (`block_on` here and there) breaks them once; from then on, for
/// as long as its reactor lives, they are of the kind that bears it.
///
/// ```
/// use zc_core::transport::Transport;
/// use zc_transport_uring::UringTransport;
///
/// let transport = UringTransport::default();
/// assert_eq!((transport.name(), transport.wire_name()), ("uring", "tcp"));
/// match transport.probe() {
///     Ok(caps) => assert!(caps.sources.foreign, "any memory is sent as it is"),
///     Err(why) => println!("{why}; {}", why.remedy()),
/// }
/// ```
#[derive(Debug, Default)]
pub struct UringTransport {
    options: UringOptions,
    homes: Homes,
}

impl UringTransport {
    /// With these options.
    pub fn new(options: UringOptions) -> Self {
        Self { options, homes: Homes::default() }
    }

    /// Figures of all engines that lanes of this transport use now, or have used a moment ago.
    ///
    /// ```
    /// assert_eq!(zc_transport_uring::UringTransport::default().stats().rings, 0); // they begin with the first lane
    /// ```
    pub fn stats(&self) -> EngineStats {
        self.homes.stats()
    }

    /// What became of [`UringOptions::zero_copy_receive`], by the engines that lanes of this transport use now: connections over TCP
    /// receive so, or the typed reason why not. `None`: nobody asked for it, or there is no engine.
    ///
    /// ```
    /// assert_eq!(zc_transport_uring::UringTransport::default().zero_copy_receive(), None);
    /// ```
    pub fn zero_copy_receive(&self) -> Option<Result<(), Unavailable>> {
        self.homes.zero_copy_receive()
    }

    /// The engines of this runtime, which are begun if there are none that work.
    fn engines(&self, cx: &OfferContext) -> Result<Tenant, Unavailable> {
        let own = self.options.thread.as_ref().map(|thread| &thread.0);
        let reactor = own.unwrap_or(&cx.reactor);
        let Found { tenant, moved } = self.homes.find(reactor, &cx.pool);
        if let Some(tenant) = tenant {
            return Ok(tenant);
        }
        let rings = self.options.rings.unwrap_or_else(|| Engines::rings_for(reactor.threads()));
        // A runtime of one thread that went on in another one may do so again.
        let moves = moved.load(Relaxed) || !reactor.runs_in_one_thread();
        let options = self.engine_options(&cx.pool, moves, rings.clamp(1, MAX_RINGS));
        // Without a lock: it takes a while, and the reactor is the application's.
        let engines = Engines::start(reactor.clone(), &cx.pool, options, rings)?;
        if !engines.pick().features().has(BUFFER_RING) {
            return Err(Unavailable::KernelTooOld { needed: OLDEST });
        }
        let stays = own.is_some();
        let tenant = Kept::start(engines, cx.pool.clone(), reactor, self.options.idle, moved.clone(), stays);
        Ok(self.homes.settle(reactor, &cx.pool, tenant, moved))
    }

    fn engine_options(&self, pool: &BufPool, moves: bool, rings: usize) -> EngineOptions {
        let fits = if moves { Flavour::ManyThreads } else { Flavour::OneThread };
        let mut options = EngineOptions::new(self.options.flavour.unwrap_or(fits));
        let rings = if options.flavour == Flavour::OneThread { 1 } else { rings };
        (options.recv_buffers, options.recv_buffer_bytes) = fitting(pool, rings);
        options.recv_buffers = self.options.recv_buffers.unwrap_or(options.recv_buffers);
        options.recv_buffer_bytes = self.options.recv_buffer_bytes.or(options.recv_buffer_bytes);
        options.spin = self.options.spin;
        options.zero_copy = self.options.zero_copy;
        options.registered_regions = self.options.registered_regions;
        options.max_spilled_bytes = self.options.max_spilled_bytes;
        options.zero_copy_receive.clone_from(&self.options.zero_copy_receive);
        options
    }

    fn lane(&self, socket: OwnedFd, cx: OfferContext) -> Result<Lane, WireupError> {
        let engines = self.engines(&cx)?;
        let scratch = lane::Scratch::new(&cx.pool).map_err(|error| {
            let remedy = format!("give the pool more memory: {error}");
            Unavailable::Other { code: "no_memory", remedy }
        })?;
        let failed = |source| LinkError::Io { operation: "a socket of io_uring", source };
        // From here on it waits in the kernel, also for who has the link: nothing may fail any more.
        let socket = engines.pick().socket_of(socket, Some(cx.ledger.clone())).map_err(failed)?;
        let mut caps = caps();
        if socket.1.kernel_copies().is_none() {
            caps.zero_copy_rx = RECEIVES;
        }
        caps.max_message = cx.limits.send_max_message;
        Ok(lane::start(socket, engines, scratch, caps, cx))
    }
}

const RECEIVES: ZeroCopy = ZeroCopy::Conditional(
    "what comes by the NIC's queue, in messages of at most so many pieces as a rope has",
);

/// How many receive buffers a pool can do without for each of so many rings, and how long they are if they must be shorter
/// than usual.
fn fitting(pool: &BufPool, rings: usize) -> (u16, Option<usize>) {
    let room = pool.max_bytes() / RECV_POOL_DIVISOR / rings;
    let count = (room / RECV_BUFFER_BYTES).min(RECV_BUFFERS.into());
    match count {
        // The engine rounds up to a power of two.
        2.. => ((count / 2 + 1).next_power_of_two() as u16, None),
        _ => (2, Some((room / 2).max(MIN_RECV_BUFFER_BYTES))),
    }
}

/// What the machine said. What was found stays; most of what was missing does so for a while.
struct Answer(Mutex<Option<Result<(), (Unavailable, Instant)>>>);

impl Answer {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn or_ask(&self, now: Instant, ask: impl FnOnce() -> Result<(), Unavailable>) -> Result<(), Unavailable> {
        let last = self.0.lock().clone();
        match last {
            Some(Ok(())) => return Ok(()),
            Some(Err((why, at))) if now.saturating_duration_since(at) < REFUSED => return Err(why),
            _ => {}
        }
        let answer = ask();
        *self.0.lock() = match &answer {
            Ok(()) => Some(Ok(())),
            Err(why) if stays(why) => Some(Err((why.clone(), now))),
            Err(_) => None,
        };
        answer
    }
}

/// Locked memory and descriptors are free again in a moment; these are not.
fn stays(why: &Unavailable) -> bool {
    use Unavailable::{KernelTooOld, Seccomp, SysctlDisabled};
    matches!(why, KernelTooOld { .. } | Seccomp { .. } | SysctlDisabled { .. })
}

const REFUSED: Duration = Duration::from_millis(REFUSED_MS);

fn caps() -> Caps {
    let mut caps = Caps::stream();
    caps.max_segments = zc_core::memory::MAX_SEGMENTS;
    caps.inline_size = COALESCE_MAX;
    caps.zero_copy_min = ZERO_COPY_MIN_BYTES;
    caps.zero_copy_tx =
        ZeroCopy::Conditional("TCP to another host, large messages, where the kernel is found not to copy");
    caps.one_sided = OneSided::Emulated;
    caps
}

impl Transport for UringTransport {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn wire_name(&self) -> &'static str {
        "tcp"
    }

    fn suits(&self, cx: &OfferContext) -> Result<(), Unavailable> {
        if !cx.socket {
            return Err(Unavailable::NotApplicable { needs: "a bare socket as the control link" });
        }
        Ok(())
    }

    fn probe(&self) -> Result<Caps, Unavailable> {
        static ANSWER: Answer = Answer::new();
        ANSWER.or_ask(Instant::now(), || match probe()?.has(BUFFER_RING) {
            true => Ok(()),
            false => Err(Unavailable::KernelTooOld { needed: OLDEST }),
        })?;
        Ok(caps())
    }

    fn in_band(&self) -> bool {
        true
    }

    fn offer(&self, _: &OfferContext) -> Result<Offer, Unavailable> {
        Ok(Offer { version: 1, bytes: Vec::new() })
    }

    fn join<'a>(
        &'a self,
        _role: Role,
        _mine: Offer,
        _peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async move {
            let socket = link.as_deref().and_then(|link| link.socket());
            let socket = socket.ok_or(Unavailable::NotApplicable { needs: "a socket" })?.try_clone_to_owned();
            let socket = socket.map_err(|source| LinkError::Io { operation: "dup", source })?;
            let lane = self.lane(socket, cx)?;
            // The lane has the socket; the reactor watches it no more.
            *link = None;
            Ok(lane)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal that lasts is not looked into for each connection; one that may pass is.
    #[test]
    fn refusals_are_kept_for_a_while() {
        let (answer, start) = (Answer::new(), Instant::now());
        let no = || Err(Unavailable::Seccomp { syscall: "io_uring_setup" });
        assert_eq!(answer.or_ask(start, no), no());
        let soon = start + REFUSED - Duration::from_nanos(1);
        assert_eq!(answer.or_ask(soon, || panic!("asked again")), no());
        let short = Err(Unavailable::Memlock { need: 1, soft: 0, hard: 0 });
        for _ in 0..2 {
            assert_eq!(answer.or_ask(start + REFUSED, || short.clone()), short);
        }
        assert_eq!(answer.or_ask(start + REFUSED, || Ok(())), Ok(()));
        assert_eq!(answer.or_ask(start + 9 * REFUSED, || panic!("asked again")), Ok(()));
    }

    #[test]
    fn receive_buffers_leave_most_of_a_pool() {
        for shift in 16..32 {
            let pool = BufPool::builder().max_bytes(1 << shift).build();
            for rings in [1, 2, 3, MAX_RINGS] {
                let (count, bytes) = fitting(&pool, rings);
                let one = usize::from(count) * bytes.unwrap_or(RECV_BUFFER_BYTES);
                assert!(count.is_power_of_two() && (2..=RECV_BUFFERS).contains(&count), "{count}");
                let most = ((1 << shift) / RECV_POOL_DIVISOR).max(2 * rings * MIN_RECV_BUFFER_BYTES);
                assert!(rings * one <= most, "{rings} times {one} of 2^{shift}");
            }
        }
    }
}
