//! The engine: one ring, its task, and what programs do with it.
//!
//! ```text
//! futures, sockets --lock--> core: operations, inboxes <--lock-- driver: the task that submits and reaps
//!     op, socket, file        core, inbox                        driver, spin
//! ```

mod core;
mod direct;
mod driver;
mod engines;
mod file;
mod inbox;
mod kept;
mod op;
mod parked;
mod places;
mod relief;
mod socket;
mod spin;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;

use parking_lot::Mutex;
use zc_core::memory::{BufPool, Deferral, Region, RegisterError};
use zc_core::transport::{Reactor, Unavailable};

use self::core::{Core, Stage};
use self::driver::Driver;
use self::places::Places;
use self::relief::Relief;
use self::spin::SpinBudget;
use crate::ladder::{self, Flavour};
use crate::limits::{
    MAX_HOT_LANES, MAX_LINGERS, MAX_OPERATIONS, MAX_REGISTERED_REGIONS, MAX_SOCKETS, MAX_SPILLED_BYTES,
    RECV_BUFFER_BYTES, RECV_BUFFERS, WHOLE_RECV_BUFFER_BYTES,
};
use crate::probe::{BUFFER_RING, BUNDLES, Features, INCREMENTAL, REPORT_USAGE, SEND_ZC, SENDMSG_ZC};
use crate::steering::Steering;
use crate::sys::{Area, Buffers, Fixed, Flights, Known, Request, Ring};
use crate::zcrx::{self, ZcrxOptions};
use crate::zero_copy::ZeroCopyMode;

pub use direct::{DirectAlignment, DirectError};
pub use engines::Engines;
pub use file::File;
pub(crate) use kept::{Kept, Tenant};
pub use op::{Op, Usage, ZeroCopySend};
pub(crate) use parked::Parked;
pub(crate) use places::{Place, Spilled};
pub use socket::{SocketRx, SocketTx};
pub use spin::Spin;

// The group of an engine's receive buffers; a ring has only one.
const GROUP: u16 = 0;

/// How an engine works.
///
/// ```
/// use zc_transport_uring::{EngineOptions, Flavour};
///
/// let options = EngineOptions::new(Flavour::ManyThreads);
/// assert_eq!(options.max_operations, 64 << 10);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Who enters the ring
    pub flavour: Flavour,
    /// Operations at a time, without those of sockets that receive by themselves; further ones wait for a place
    pub max_operations: usize,
    /// Sockets at a time that may receive; further ones are refused
    pub max_sockets: usize,
    /// Receive buffers of all sockets together, rounded up to a power of two
    pub recv_buffers: u16,
    /// The length of each, bytes; by default `RECV_BUFFER_BYTES` where the kernel fills them bit by bit, else
    /// `WHOLE_RECV_BUFFER_BYTES`
    pub recv_buffer_bytes: Option<usize>,
    /// Whether the kernel fills receive buffers bit by bit, where it can
    pub incremental: bool,
    /// Whether one completion may be for several receive buffers, where the kernel can do that
    pub bundles: bool,
    /// Bytes of messages that may lie on the heap for all streams together while the pool is exhausted; then connections fail
    pub max_spilled_bytes: usize,
    /// Looking for completions instead of sleeping; by default off
    pub spin: Option<Spin>,
    /// Which payloads are sent out of the memory itself, see `SocketTx::zero_copy_policy`
    pub zero_copy: ZeroCopyMode,
    /// Regions of memory that the ring knows ahead, for direct file operations and for sends out of the memory itself
    pub registered_regions: u16,
    /// Memory into which a NIC puts what TCP sockets receive; by default none. Where it can't be had, the engine receives as always,
    /// see [`Engine::zero_copy_receive`]
    pub zero_copy_receive: Option<ZcrxOptions>,
}

impl Default for EngineOptions {
    /// Those that suit every runtime.
    fn default() -> Self {
        Self {
            flavour: Flavour::ManyThreads,
            max_operations: MAX_OPERATIONS,
            max_sockets: MAX_SOCKETS,
            recv_buffers: RECV_BUFFERS,
            recv_buffer_bytes: None,
            incremental: true,
            bundles: true,
            max_spilled_bytes: MAX_SPILLED_BYTES,
            spin: None,
            zero_copy: ZeroCopyMode::Probe,
            registered_regions: MAX_REGISTERED_REGIONS,
            zero_copy_receive: None,
        }
    }
}

impl EngineOptions {
    /// The defaults for this way to enter the ring.
    pub fn new(flavour: Flavour) -> Self {
        Self { flavour, ..Self::default() }
    }
}

/// Why an engine has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Closed,
    RuntimeGone,
    Moved,
    Failed(i32),
}

impl End {
    fn of(error: &io::Error) -> Self {
        Self::Failed(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<End> for io::Error {
    fn from(end: End) -> Self {
        let text = match end {
            End::Closed => "the io_uring engine was shut down",
            End::RuntimeGone => "the runtime of the io_uring engine has ended",
            End::Moved => "the runtime of an io_uring engine for one thread went on in another thread",
            End::Failed(errno) => return Self::from_raw_os_error(errno),
        };
        Self::new(io::ErrorKind::NotConnected, text)
    }
}

/// What the engine's task and everybody else share.
pub(crate) struct Shared {
    pub(crate) core: Mutex<Core>,
    /// Nothing can begin any more. It is asked for each socket that is accepted, so without the lock.
    has_ended: AtomicBool,
}

impl Shared {
    /// See [`Core::look`]; whoever has the lock looks anyway. One who looks again and again `stays`: that the eventfd keeps
    /// quiet meanwhile.
    pub(crate) fn look(&self, stays: bool) -> bool {
        let Some(mut core) = self.core.try_lock() else { return false };
        core.is_looked_at |= stays && core.is_for_one_thread;
        core.look()
    }
}

/// The last one ends the engine.
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    features: Features,
    sockets: Places,
    /// For streams that are gone, and wait for the kernel to let go of what they sent.
    lingers: Places,
    /// For lanes that read past the ring.
    hot: Places,
    /// Bytes of messages on the heap, for want of memory.
    spilled: Places,
    zero_copy: Sends,
    fixed: Option<Arc<Fixed>>,
    /// `None`: nobody asked for it.
    zero_copy_receive: Option<Result<(), Unavailable>>,
    /// There is no NIC behind the area.
    area_is_copied: bool,
    steering: Option<Steering>,
}

/// What the kernel and the options have of sends out of the memory itself.
#[derive(Debug, Clone, Copy)]
struct Sends {
    bytes: bool,
    messages: bool,
    mode: ZeroCopyMode,
}

impl Sends {
    fn of(features: &Features, mode: ZeroCopyMode) -> Self {
        let tells = features.has(REPORT_USAGE);
        let [bytes, messages] = [SEND_ZC, SENDMSG_ZC].map(|name| tells && features.has(name));
        Self { bytes, messages, mode }
    }
}

impl Handle {
    /// Where the ring knows the memory of an operation. With `gains` the operation is faster then, so that all of the
    /// region is made known for the next ones.
    fn known(&self, region: Option<&Region>, gains: bool) -> Known {
        let fixed = self.fixed.as_ref()?;
        let place = fixed.place_of(region);
        if place.is_none() && gains {
            fixed.want(region);
        }
        place
    }

    fn close(&self) {
        let _deferral = Deferral::begin();
        let mut core = self.shared.core.lock();
        if core.stage == Stage::Running {
            core.stage = Stage::Closing;
            self.shared.has_ended.store(true, Relaxed);
            core.driver.wake();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

/// What an engine does at this moment.
///
/// ```
/// let stats = zc_transport_uring::EngineStats::default();
/// assert_eq!((stats.in_flight, stats.unknown), (0, 0));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Rings that work.
    pub rings: usize,
    /// Operations that the kernel works on.
    pub in_flight: usize,
    /// Sockets that may receive: until the receiving half is dropped, and nothing is received any more.
    pub sockets: usize,
    /// Receive buffers that the kernel can choose from.
    pub recv_buffers: usize,
    /// Completions that named no operation.
    pub unknown: u64,
    /// Operations that were begun anew because the thread had ended that submitted them.
    pub repeated: u64,
    /// Turns of the engine's task.
    pub turns: u64,
    /// Regions of memory that the ring knows ahead.
    pub registered_regions: usize,
    /// The bytes of these, all of which are locked.
    pub registered_bytes: u64,
    /// Operations on such memory.
    pub registered_operations: u64,
    /// Pieces that came in memory into which a NIC receives.
    pub area_pieces: u64,
    /// Pages of that memory that are lent.
    pub area_lent_pages: usize,
    /// Bytes that were copied out of it because so much of it was lent.
    pub area_copied_bytes: u64,
    /// Receives that found no room in it, and began anew.
    pub area_full: u64,
}

impl EngineStats {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            rings: self.rings + other.rings,
            in_flight: self.in_flight + other.in_flight,
            sockets: self.sockets + other.sockets,
            recv_buffers: self.recv_buffers + other.recv_buffers,
            unknown: self.unknown + other.unknown,
            repeated: self.repeated + other.repeated,
            turns: self.turns + other.turns,
            registered_regions: self.registered_regions + other.registered_regions,
            registered_bytes: self.registered_bytes + other.registered_bytes,
            registered_operations: self.registered_operations + other.registered_operations,
            area_pieces: self.area_pieces + other.area_pieces,
            area_lent_pages: self.area_lent_pages + other.area_lent_pages,
            area_copied_bytes: self.area_copied_bytes + other.area_copied_bytes,
            area_full: self.area_full + other.area_full,
        }
    }
}

/// An io_uring that works inside of the caller's runtime.
///
/// Cloning gives another handle. Sockets, files and operations keep the engine; with the last of all these it ends.
/// Operations begin when they are first polled; dropping one cancels it.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::BufPool;
/// use zc_transport_uring::{Engine, EngineOptions, Flavour};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let pool = BufPool::builder().build();
/// let options = EngineOptions::new(Flavour::OneThread);
/// match Engine::start(Arc::new(zc::TokioReactor::new()), &pool, options) {
///     Ok(engine) => {
///         engine.nop().await?;
///         engine.shutdown().await;
///     }
///     Err(why) => println!("without io_uring: {why}"),
/// }
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Engine {
    pub(crate) handle: Arc<Handle>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("setup", &self.features().setup()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Sets a ring up, as well as this machine can, and spawns its task on the reactor. What sockets receive lies in
    /// memory of `pool`.
    ///
    /// # Errors
    /// The typed reason why there is no io_uring here, with a remedy.
    pub fn start(
        reactor: Arc<dyn Reactor>,
        pool: &BufPool,
        options: EngineOptions,
    ) -> Result<Self, Unavailable> {
        let opened = options.zero_copy_receive.as_ref().map(|wanted| zcrx::open(options.flavour, wanted));
        let (ring, rung, area, zero_copy_receive) = match opened {
            Some(Ok((ring, rung, area))) => (ring, rung, Some(area), Some(Ok(()))),
            refused => {
                let (ring, rung) = ladder::open(options.flavour)?;
                (ring, rung, None, refused.and_then(Result::err).map(Err))
            }
        };
        let features = Features::of(&ring, rung.name);
        let is_for_one_thread = ring.setup().single_issuer;
        let os = |operation: &'static str| move |error: io::Error| Unavailable::os(operation, &error);
        let eventfd = ring.eventfd().try_clone_to_owned().map_err(os("eventfd"))?;
        let eventfd = reactor.register_to_read(eventfd).map_err(os("watching the eventfd"))?;
        let buffers = buffers(&ring, pool, &features, &options).map_err(os("io_uring_register"))?;
        let max_operations = options.max_operations.max(1);
        // A socket has one operation at a time that receives by itself, and one for its end, so these always find a place.
        let max_flights = max_operations.saturating_add(options.max_sockets.saturating_mul(2));
        let fixed = Fixed::new(&ring, options.registered_regions.min(MAX_REGISTERED_REGIONS));
        let steering = match options.zero_copy_receive.as_ref().filter(|_| area.is_some()) {
            Some(wanted) => Steering::of(wanted)?,
            None => None,
        };
        let (has_area, area_is_copied) = (area.is_some(), area.as_ref().is_some_and(Area::is_copied));
        let flights = Flights::new(ring, buffers, max_flights).with_fixed(fixed.clone()).with_area(area);
        let bundles = options.bundles && features.has(BUNDLES);
        let relief = Relief::new(pool, options.max_spilled_bytes);
        let core = Mutex::new(Core::new(flights, max_operations, bundles, is_for_one_thread, relief));
        let shared = Arc::new(Shared { core, has_ended: AtomicBool::new(false) });
        let spin = options.spin.map(SpinBudget::new);
        let driver = Driver::new(shared.clone(), reactor.clone(), eventfd, spin, has_area);
        let task = reactor.spawn(Box::pin(driver)).map_err(os("spawning the engine's task"))?;
        task.detach();
        let sockets = Places::new(options.max_sockets);
        let (lingers, hot) = (Places::new(MAX_LINGERS), Places::new(MAX_HOT_LANES));
        let spilled = Places::new(options.max_spilled_bytes);
        let zero_copy = Sends::of(&features, options.zero_copy);
        let handle = Handle {
            shared,
            features,
            sockets,
            lingers,
            hot,
            spilled,
            zero_copy,
            fixed,
            zero_copy_receive,
            area_is_copied,
            steering,
        };
        Ok(Self { handle: Arc::new(handle) })
    }

    fn sockets(&self) -> usize {
        self.handle.sockets.taken()
    }

    /// Whether nothing can begin any more: it was shut down, its runtime has gone or moved to another thread, or the
    /// ring has failed.
    pub fn has_ended(&self) -> bool {
        self.handle.shared.has_ended.load(Relaxed)
    }

    /// Whether it is for one thread, which is not this one.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.handle.shared.core.lock().is_elsewhere()
    }

    /// Why it has ended, or ends, if so.
    pub(crate) fn end(&self) -> Option<End> {
        match self.handle.shared.core.lock().stage {
            Stage::Running => None,
            Stage::Closing => Some(End::Closed),
            Stage::Ended(end) => Some(end),
        }
    }

    /// What became of [`EngineOptions::zero_copy_receive`]: TCP sockets receive so, or the typed reason why not. `None`: nobody
    /// asked for it.
    pub fn zero_copy_receive(&self) -> Option<Result<(), Unavailable>> {
        self.handle.zero_copy_receive.clone()
    }

    /// Why the last connection that was to come by the NIC's queue ([`ZcrxOptions::steers`](crate::ZcrxOptions::steers)) and does not
    /// could not be sent there: the kernel copies what it receives to where it belongs.
    pub fn not_steered(&self) -> Option<Unavailable> {
        self.handle.steering.as_ref()?.why_not()
    }

    /// What was found here.
    pub fn features(&self) -> &Features {
        &self.handle.features
    }

    /// Figures.
    pub fn stats(&self) -> EngineStats {
        let known = self.handle.fixed.as_ref().map(|fixed| fixed.counts()).unwrap_or_default();
        let core = self.handle.shared.core.lock();
        let area = core.flights.area_counts();
        EngineStats {
            rings: usize::from(core.check().is_ok()),
            in_flight: core.flights.flying(),
            sockets: self.sockets(),
            recv_buffers: core.flights.buffer_counts().provided,
            unknown: core.flights.unknown(),
            repeated: core.flights.repeated(),
            turns: core.turns,
            registered_regions: known.regions,
            registered_bytes: known.bytes,
            registered_operations: core.flights.on_fixed(),
            area_pieces: area.received,
            area_lent_pages: area.lent_pages,
            area_copied_bytes: core.relief.copied_bytes,
            area_full: area.full,
        }
    }

    /// Makes a region known to the ring, in the next turn of the engine's task: ahead of the first operation that would
    /// gain by it. The kernel then locks all pages of it, touched or not. It is forgotten when the region goes.
    ///
    /// # Errors
    /// Memory that is read-only, not ours, a group's or longer than [`MAX_REGION_BYTES`](crate::MAX_REGION_BYTES) is left out,
    /// and so is what no place is left for, or no locked memory. Operations on it go on in the ordinary way. What the
    /// kernel refuses shows in [`not_registered`](Self::not_registered).
    pub fn register(&self, region: &Region) -> Result<(), RegisterError> {
        match &self.handle.fixed {
            Some(fixed) => fixed.register(region),
            None => Err(RegisterError::Unsupported("this ring knows no memory ahead")),
        }
    }

    /// Why the last region that could not be made known to the ring could not.
    pub fn not_registered(&self) -> Option<Unavailable> {
        self.handle.fixed.as_ref()?.why_not()
    }

    /// Does nothing, through the ring.
    pub fn nop(&self) -> Op<()> {
        Op::new(&self.handle, Request::nop(), |_, _| Ok(()))
    }

    /// Closes a descriptor through the ring. Dropped before it was polled, the descriptor is closed at once.
    pub fn close(&self, file: OwnedFd) -> Op<()> {
        Op::new(&self.handle, Request::close(file), |_, _| Ok(()))
    }

    /// Ends the engine: everything in flight is cancelled, and awaited for [`DRAIN_MS`](crate::DRAIN_MS). What the
    /// kernel holds longer is kept until it lets go.
    pub async fn shutdown(&self) {
        self.handle.close();
        poll_fn(|cx| {
            let _deferral = Deferral::begin();
            let mut core = self.handle.shared.core.lock();
            if let Stage::Ended(_) = core.stage {
                return Poll::Ready(());
            }
            core.wait_for_end(cx);
            Poll::Pending
        })
        .await;
    }
}

/// The ring of receive buffers, where the kernel has such.
fn buffers(
    ring: &Ring,
    pool: &BufPool,
    features: &Features,
    options: &EngineOptions,
) -> io::Result<Option<Buffers>> {
    if !features.has(BUFFER_RING) {
        return Ok(None);
    }
    let incremental = options.incremental && features.has(INCREMENTAL);
    let default = if incremental { RECV_BUFFER_BYTES } else { WHOLE_RECV_BUFFER_BYTES };
    let bytes = options.recv_buffer_bytes.unwrap_or(default).max(1);
    let pool = pool.with_origin("uring rx");
    Buffers::new(ring, &pool, GROUP, options.recv_buffers, bytes, incremental).map(Some)
}
