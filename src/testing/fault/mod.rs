//! A transport whose lanes misbehave on purpose. They keep the contract of a lane: nothing is lost or
//! reordered unless the lane fails.

mod clock;
mod plan;
mod rx;
mod switch;
mod tx;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;
use std::time::Instant;

pub use self::plan::{After, FaultPlan};
pub use self::switch::FaultSwitch;

use self::clock::Clock;
use self::rx::FaultRx;
use self::switch::LaneState;
use self::tx::FaultTx;
use super::around::{Around, transport_around};
use super::random::Random;
use crate::transport::{
    ControlLink, Lane, LaneDrive, LaneError, LinkError, OfferContext, Role, Transport, WireupError,
};

/// Frames that one direction of a lane holds back at most; at this bound it takes no more from what it wraps.
pub const MAX_HELD_FRAMES: usize = 1024;

/// Wraps a transport; its lanes do what a [`FaultPlan`] and a [`FaultSwitch`] say.
///
/// Only the ends that this transport joins are affected: give it to one fabric for one bad end, to both for
/// two.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use zc::testing::{After, FaultPlan, FaultTransport, fabric_over, mem_transport, pair};
///
/// let broken = FaultTransport::new(mem_transport(), FaultPlan::new(7).drop_after(After::Frames(3)));
/// let (client, mut server) = pair(&fabric_over(Arc::new(broken)).build()?).await?;
/// let mut sent = 0;
/// let error = loop {
///     match client.send(&b"again"[..]).await {
///         Ok(()) => sent += 1,
///         Err(error) => break error,
///     }
/// };
/// assert_eq!(sent, 3);
/// assert_eq!(error.delivery(), zc::Delivery::NotSent);
/// assert!(error.is_retryable());
/// # let _ = server.recv().await;
/// # Ok(()) }
/// ```
pub struct FaultTransport {
    inner: Arc<dyn Transport>,
    plan: FaultPlan,
    switch: FaultSwitch,
    lanes: AtomicU64,
}

impl FaultTransport {
    /// `inner` with the faults of `plan`. It keeps the name of `inner`.
    pub fn new(inner: Arc<dyn Transport>, plan: FaultPlan) -> Self {
        Self { inner, plan, switch: FaultSwitch::default(), lanes: AtomicU64::new(0) }
    }

    /// Turns faults on and off while connections are up.
    pub fn switch(&self) -> FaultSwitch {
        self.switch.clone()
    }
}

impl Around for FaultTransport {
    fn inner(&self) -> &Arc<dyn Transport> {
        &self.inner
    }

    fn wrap(&self, lane: Lane, role: Role, cx: &OfferContext) -> Result<Lane, WireupError> {
        let number = self.lanes.fetch_add(1, Ordering::Relaxed);
        let mut seeds = Random::new(self.plan.seed ^ (number << 1) ^ u64::from(role == Role::Server));
        let no_timer = |source| LinkError::Io { operation: "timer", source };
        let mut clock = |stall| Clock::new(&cx.reactor, Random::new(seeds.next()), stall).map_err(no_timer);
        let state = self.switch.watch(&self.plan);
        let timer = || cx.reactor.timer().map_err(no_timer);
        let tx_clock = clock(self.plan.stall_sending)?;
        let rx_clock = clock(self.plan.stall_receiving)?;
        Ok(Lane {
            tx: Box::new(FaultTx::new(lane.tx, state.clone(), tx_clock, [timer()?, timer()?])),
            rx: Box::new(FaultRx::new(lane.rx, state.clone(), rx_clock, timer()?)),
            drive: lane
                .drive
                .map(|inner| Box::new(FaultDrive { inner: Some(inner), state }) as Box<dyn LaneDrive>),
            ..lane
        })
    }
}

transport_around!(FaultTransport);

/// The background work of a lane ends when the lane fails.
struct FaultDrive {
    inner: Option<Box<dyn LaneDrive>>,
    state: Arc<LaneState>,
}

impl LaneDrive for FaultDrive {
    fn poll_drive(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, LaneError> {
        self.state.check().inspect_err(|_| self.inner = None)?;
        self.inner.as_mut().map_or(Ok(None), |inner| inner.poll_drive(cx, now))
    }

    fn adopt_link(&mut self, link: Box<dyn ControlLink>) -> Option<Box<dyn ControlLink>> {
        match &mut self.inner {
            Some(inner) => inner.adopt_link(link),
            None => Some(link),
        }
    }

    fn heard(&mut self) -> bool {
        self.inner.as_mut().is_some_and(|inner| inner.heard())
    }
}
