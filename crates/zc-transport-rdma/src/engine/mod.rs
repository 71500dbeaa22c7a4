//! One engine per device: completions on the caller's runtime.
//!
//! ```text
//! Endpoint --stage--> its queue --flush: one doorbell--> device
//! device --completions--> whoever looks (an endpoint that is polled, else the engine's task) --> Endpoint's inboxes
//!                                             '--> receive buffers below the watermark: more, out of the pool
//! ```

mod core;
mod driver;
mod endpoint;
mod number_hasher;
mod parked;
mod shares;
mod start;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use zc_core::memory::BufPool;
use zc_core::transport::{Reactor, TaskHandle, Unavailable};

use self::core::Core;
pub use self::endpoint::{Endpoint, EndpointError, Finished, Unsent};
use crate::gid::{DeviceChoice, Gid, GidEntry};
use crate::limits::{
    COMPLETION_ENTRIES, INLINE_BYTES, MIN_EAGER_BYTES, MIN_LANE_DEPTH, RECEIVE_BYTES, SEND_DEPTH,
    SEND_SEGMENTS, SHARED_RECEIVES, SPIN_US,
};
use crate::verbs::{
    CompletionQueue, Context, DeviceCaps, Port, ProtectionDomain, QueuePairCaps, SharedReceiveQueue,
    Showable, VerbsError, WorkError,
};

/// How an engine is set up.
///
/// ```
/// use zc_transport_rdma::RdmaOptions;
///
/// let options = RdmaOptions { recv_buffers: 1024, ..RdmaOptions::default() };
/// assert!(options.send_depth > 0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdmaOptions {
    /// Receive buffers of all connections together, at most.
    pub recv_buffers: u32,
    /// The length of each, bytes. [`RdmaTransport`](crate::RdmaTransport) makes them no shorter than [`MIN_EAGER_BYTES`].
    pub recv_buffer_bytes: usize,
    /// Work requests of one connection under way. [`RdmaTransport`](crate::RdmaTransport) has no fewer than [`MIN_LANE_DEPTH`].
    pub send_depth: u32,
    /// Completions that fit; connections beyond that are refused.
    pub completions: u32,
    /// How long to look for completions before sleeping.
    pub spin: Duration,
}

impl Default for RdmaOptions {
    fn default() -> Self {
        Self {
            recv_buffers: SHARED_RECEIVES,
            recv_buffer_bytes: RECEIVE_BYTES,
            send_depth: SEND_DEPTH,
            completions: COMPLETION_ENTRIES,
            spin: Duration::from_micros(SPIN_US),
        }
    }
}

impl RdmaOptions {
    /// With no less of anything than a lane needs.
    pub(crate) fn for_lanes(self) -> Self {
        Self {
            recv_buffer_bytes: self.recv_buffer_bytes.max(MIN_EAGER_BYTES),
            send_depth: self.send_depth.max(MIN_LANE_DEPTH),
            ..self
        }
    }

    fn caps(&self) -> QueuePairCaps {
        QueuePairCaps { depth: self.send_depth, segments: SEND_SEGMENTS, inline_bytes: INLINE_BYTES }
    }
}

/// Why an endpoint, or all of an engine's, is over.
///
/// ```
/// use zc_transport_rdma::EndpointEnd;
///
/// let another_path_may_work = |end: &EndpointEnd| matches!(end, EndpointEnd::PortDown | EndpointEnd::DeviceGone);
/// assert!(another_path_may_work(&EndpointEnd::PortDown));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointEnd {
    /// Something that was sent failed, and with it all after it.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// The device refused work.
    #[error(transparent)]
    Refused(#[from] VerbsError),
    /// The device says that the queue pair has failed: the peer did what it may not.
    #[error("the queue pair has failed")]
    QueuePairFailed,
    /// The peer sends more than it may.
    #[error("more messages than the peer may send")]
    TooManyUnread,
    /// The peer uses receive buffers that it was not promised.
    #[error("the peer uses more receive buffers than its share")]
    BeyondShare,
    /// The port has no link any more.
    #[error("the port is down")]
    PortDown,
    /// The device was removed or has failed.
    #[error("the device is gone")]
    DeviceGone,
    /// The engine's task is gone, with its runtime or because the engine was dropped.
    #[error("the engine has ended")]
    EngineGone,
}

impl EndpointEnd {
    /// No task looks any more for what the device still has: that comes back when the endpoint goes.
    fn is_of_engine(&self) -> bool {
        matches!(self, Self::DeviceGone | Self::EngineGone)
    }
}

/// Figures of an engine.
///
/// ```
/// use zc_transport_rdma::EngineStats;
///
/// assert_eq!(EngineStats::default().endpoints, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Endpoints that are in use.
    pub endpoints: usize,
    /// Closed ones that wait for their last completions.
    pub closing: usize,
    /// Receive buffers that wait for messages.
    pub posted_receives: u32,
    /// Work requests under way, receive buffers included.
    pub under_way: usize,
    /// Completions that named nothing.
    pub unknown_completions: u64,
    /// Regions of memory that the device knows.
    pub regions: usize,
    /// Times that the engine's task slept.
    pub sleeps: u64,
    /// Times that the pool had no receive buffer.
    pub starved: u64,
}

/// A device in use, with a task on a [`Reactor`] that looks after it.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::BufPool;
/// use zc_transport_rdma::{DeviceChoice, Engine, RdmaOptions};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (reactor, pool) = (Arc::new(zc::TokioReactor::new()), BufPool::builder().build());
/// match Engine::start(reactor, &pool, &DeviceChoice::default(), RdmaOptions::default()) {
///     Ok(engine) => println!("{} at {}", engine.context().name(), engine.local().gid),
///     Err(why) => println!("without RDMA: {why}"),
/// }
/// # });
/// ```
#[derive(Clone)]
pub struct Engine(Arc<Handle>);

/// Finds an engine as long as somebody uses it.
pub(crate) struct WeakEngine(Weak<Handle>);

impl WeakEngine {
    pub(crate) fn upgrade(&self) -> Option<Engine> {
        self.0.upgrade().map(Engine)
    }
}

/// All who use the engine hold this; with the last of them its task goes.
struct Handle {
    shared: Arc<Shared>,
    _task: Box<dyn TaskHandle>,
}

struct Shared {
    reactor: Arc<dyn Reactor>,
    context: Arc<Context>,
    domain: Arc<ProtectionDomain>,
    completions: Arc<CompletionQueue>,
    receives: Arc<SharedReceiveQueue>,
    pool: BufPool,
    local: GidEntry,
    port: Port,
    limits: DeviceCaps,
    options: RdmaOptions,
    core: Mutex<Core>,
    /// Whoever posts receive buffers.
    refilling: Mutex<()>,
    /// A signal was asked for, and not heard.
    armed: AtomicBool,
    /// The task sleeps without one, for others look.
    dozing: AtomicBool,
    /// Somebody who has looked has gone to sleep.
    asked: AtomicBool,
    /// Counts looks of those who look again at once.
    looks: AtomicU64,
    /// Endpoints that receive.
    receivers: AtomicUsize,
    /// Exported memory that its windows show, as long as any does.
    showable: Mutex<Vec<Weak<Showable>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shared = &self.0.shared;
        f.debug_struct("Engine").field("context", &shared.context).field("local", &shared.local).finish()
    }
}

impl Engine {
    /// Opens the device that is chosen, posts its receive buffers and starts its task.
    ///
    /// # Errors
    /// The typed reason why there is no RDMA for this.
    pub fn start(
        reactor: Arc<dyn Reactor>,
        pool: &BufPool,
        choice: &DeviceChoice,
        options: RdmaOptions,
    ) -> Result<Self, Unavailable> {
        let shared = Arc::new(start::open(&reactor, pool, choice, options)?);
        let task = driver::start(&shared).map_err(|error| Unavailable::os("reactor", &error))?;
        Ok(Self(Arc::new(Handle { shared, _task: task })))
    }

    /// A queue pair that is not connected yet.
    ///
    /// # Errors
    /// The device or the engine's completion queue has no room for one more, or the engine has ended.
    pub fn endpoint(&self) -> Result<Endpoint, EndpointError> {
        Endpoint::new(&self.0, false)
    }

    /// One whose peer keeps to what it is promised of the receive buffers, or is cut off.
    pub(crate) fn strict_endpoint(&self) -> Result<Endpoint, EndpointError> {
        Endpoint::new(&self.0, true)
    }

    /// Why it works no more, if so.
    pub(crate) fn end(&self) -> Option<EndpointEnd> {
        self.0.shared.core.lock().end.clone()
    }

    /// All addresses of the device.
    pub(crate) fn has_gid(&self, gid: Gid) -> bool {
        self.context().gids().is_ok_and(|all| all.iter().any(|entry| entry.gid == gid))
    }

    /// Reads and atomics that one queue pair has under way at a time.
    pub(crate) fn reads_begun(&self) -> u8 {
        self.0.shared.limits.reads_begun
    }

    /// Whether its queue pairs can show memory to one peer alone.
    pub(crate) fn has_windows(&self) -> bool {
        self.0.shared.limits.windows
    }

    pub(crate) fn downgrade(&self) -> WeakEngine {
        WeakEngine(Arc::downgrade(&self.0))
    }

    /// The device.
    pub fn context(&self) -> &Arc<Context> {
        &self.0.shared.context
    }

    /// The domain that its queue pairs and their memory belong to.
    pub fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.0.shared.domain
    }

    /// The address that it uses.
    pub fn local(&self) -> GidEntry {
        self.0.shared.local
    }

    /// The same as an address of the network.
    pub fn local_ip(&self) -> IpAddr {
        self.0.shared.local.gid.ip()
    }

    /// Figures.
    pub fn stats(&self) -> EngineStats {
        self.0.shared.stats()
    }
}
