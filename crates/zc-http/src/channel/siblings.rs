//! Channels behind one load balancer: who can't be reached leaves the calls to the others.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::connector::Connector;

/// The channels behind one load balancer, which then know of each other.
///
/// A channel with a connection is ready. One without is *not ready* as long as another of them has one, so that a
/// balancer chooses among those that can be reached, and not the one that has nothing to do because all its calls fail. Meanwhile
/// it connects in the background, whenever the balancer asks whether it is ready: at most once in a back-off that begins with
/// 100 ms and doubles with every attempt up to 10 s. (A connection that breaks is noticed when the balancer asks its channel.) A channel
/// whose server has refused a call, which looks just as idle, is not ready for a while either: for as long a pause, which doubles until a call is
/// answered again. While none of them takes calls all are ready: calls wait for a connection, under
/// their own deadlines, or fail as those of a single channel.
///
/// ```
/// use zc_http::{Channel, Siblings};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (fabric, siblings) = (zc::Fabric::auto()?, Siblings::new());
/// let channels = ["zc://127.0.0.1:7000", "zc://127.0.0.1:7001"]
///     .map(|uri| Channel::builder().siblings(&siblings).build(&fabric, uri));
/// // Each of them, in tower::load::PendingRequests, goes into tower::balance::p2c::Balance.
/// # let _ = channels;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Siblings {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    members: Mutex<Vec<Weak<Connector>>>,
    changed: Notify,
}

impl Siblings {
    /// Of nobody yet; see [`ChannelBuilder::siblings`](super::ChannelBuilder::siblings).
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn add(&self, connector: &Arc<Connector>) {
        let mut members = self.shared.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(connector));
    }

    /// Whether calls are likely to be taken by one of them.
    pub(super) fn any_takes_calls(&self) -> bool {
        // Out of the lock: the last handle of a member may be dropped here.
        let members: Vec<_> = self.shared.members.lock().iter().filter_map(Weak::upgrade).collect();
        members.iter().any(|member| member.takes_calls())
    }

    /// Somebody came up, was refused, or was dropped. A connection that broke is noticed when its channel is asked whether it is ready.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.shared.changed.notified()
    }

    pub(super) fn notify(&self) {
        self.shared.changed.notify_waiters();
    }
}

impl std::fmt::Debug for Siblings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Siblings").field("members", &self.shared.members.lock().len()).finish()
    }
}
