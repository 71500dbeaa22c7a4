//! Faults that a test turns on and off while it runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use futures::task::AtomicWaker;
use parking_lot::Mutex;

use super::plan::FaultPlan;
use crate::transport::LaneError;

/// Stalls, releases and cuts all lanes of a [`FaultTransport`](super::FaultTransport), present and future.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use zc::testing::{FaultPlan, FaultTransport, fabric_over, mem_transport, pair};
/// use zc::transport::LaneError;
///
/// let transport = FaultTransport::new(mem_transport(), FaultPlan::new(1));
/// let switch = transport.switch();
/// let (mut client, _server) = pair(&fabric_over(Arc::new(transport)).build()?).await?;
/// switch.cut(&LaneError::PeerGone("pulled the plug"));
/// assert!(client.recv().await.is_err());
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct FaultSwitch(Arc<Switch>);

#[derive(Default)]
struct Switch {
    sending: AtomicBool,
    receiving: AtomicBool,
    lanes: Mutex<Vec<Weak<LaneState>>>,
}

impl FaultSwitch {
    /// Nothing leaves until [`FaultSwitch::release`].
    pub fn stall_sending(&self) {
        self.0.sending.store(true, Ordering::SeqCst);
    }

    /// Nothing arrives until [`FaultSwitch::release`].
    pub fn stall_receiving(&self) {
        self.0.receiving.store(true, Ordering::SeqCst);
    }

    /// Ends both stalls.
    pub fn release(&self) {
        self.0.sending.store(false, Ordering::SeqCst);
        self.0.receiving.store(false, Ordering::SeqCst);
        self.lanes().iter().for_each(|lane| lane.wake());
    }

    /// Every lane that is up fails with this error.
    pub fn cut(&self, error: &LaneError) {
        self.lanes().iter().for_each(|lane| lane.fail(error.clone()));
    }

    fn lanes(&self) -> Vec<Arc<LaneState>> {
        self.0.lanes.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// One more lane listens to this switch.
    pub(super) fn watch(&self, fail: &FaultPlan) -> Arc<LaneState> {
        let lane = Arc::new(LaneState {
            switch: self.clone(),
            plan: fail.clone(),
            crossed: Mutex::default(),
            failed: Mutex::default(),
            tx: AtomicWaker::new(),
            rx: AtomicWaker::new(),
        });
        let mut lanes = self.0.lanes.lock();
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&lane));
        lane
    }
}

impl std::fmt::Debug for FaultSwitch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sending, receiving) = (&self.0.sending, &self.0.receiving);
        f.debug_struct("FaultSwitch").field("sending", sending).field("receiving", receiving).finish()
    }
}

/// What the halves of one lane share.
pub(super) struct LaneState {
    switch: FaultSwitch,
    pub(super) plan: FaultPlan,
    /// Data frames and their bytes, both directions.
    crossed: Mutex<(u64, u64)>,
    failed: Mutex<Option<LaneError>>,
    pub(super) tx: AtomicWaker,
    pub(super) rx: AtomicWaker,
}

impl LaneState {
    pub(super) fn check(&self) -> Result<(), LaneError> {
        self.failed.lock().clone().map_or(Ok(()), Err)
    }

    /// The first error stays.
    pub(super) fn fail(&self, error: LaneError) {
        self.failed.lock().get_or_insert(error);
        self.wake();
    }

    fn wake(&self) {
        self.tx.wake();
        self.rx.wake();
    }

    pub(super) fn is_sending_stalled(&self) -> bool {
        self.switch.0.sending.load(Ordering::SeqCst)
    }

    pub(super) fn is_receiving_stalled(&self) -> bool {
        self.switch.0.receiving.load(Ordering::SeqCst)
    }

    /// A data frame wants to cross; the planned failure comes before it.
    pub(super) fn cross(&self, bytes: usize) -> Result<(), LaneError> {
        let (frames, bytes) = {
            let mut crossed = self.crossed.lock();
            *crossed = (crossed.0 + 1, crossed.1 + bytes as u64);
            *crossed
        };
        if let Some((after, error)) = &self.plan.fail
            && after.has_come(frames, bytes)
        {
            self.fail(error.clone());
        }
        self.check()
    }
}
