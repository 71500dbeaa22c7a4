//! What goes on while the application polls neither half: credit that was withheld, and the control link. Packets are the engine's.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use zc_core::memory::LeaseBudget;
use zc_core::transport::{ControlLink, LaneDrive, LaneError, LinkAddr};

use super::Shared;

pub(super) struct Drive {
    shared: Arc<Shared>,
    leases: Arc<LeaseBudget>,
    /// Ends when the peer does.
    link: Option<Box<dyn ControlLink>>,
    /// Parts of long messages that had come or come through at the last look.
    parts: u64,
}

impl Drive {
    pub(super) fn new(shared: Arc<Shared>, leases: Arc<LeaseBudget>) -> Self {
        Self { shared, leases, link: None, parts: 0 }
    }

    /// What the peer had sent by the time it ended is there when its link's end is seen: it is taken before the end is.
    fn watch_link(&mut self, cx: &mut Context<'_>) {
        let Some(link) = &mut self.link else { return };
        let end = match link.poll_read(cx, &mut [0; 1]) {
            Poll::Pending => return,
            Poll::Ready(Ok(0)) => LaneError::PeerGone("its control link ended"),
            Poll::Ready(Ok(_)) => LaneError::Other("data on the control link after COMMIT".into()),
            Poll::Ready(Err(error)) => LaneError::os("read the control link", &error),
        };
        self.link = None;
        self.shared.engine.look_at_all();
        let mut locked = self.shared.lock();
        locked.state.fail(end);
        locked.settle();
    }
}

impl LaneDrive for Drive {
    fn poll_drive(&mut self, cx: &mut Context<'_>, _now: Instant) -> Result<Option<Instant>, LaneError> {
        self.shared.conn.drive.register(cx.waker());
        self.watch_link(cx);
        let mut locked = self.shared.lock();
        if locked.state.withholds() && self.leases.poll_below_hard(cx).is_ready() {
            locked.state.grant();
            locked.settle();
        }
        // The end is told by the halves: what came before it is delivered first.
        Ok(None)
    }

    fn adopt_link(&mut self, link: Box<dyn ControlLink>) -> Option<Box<dyn ControlLink>> {
        // A Unix socket beside the link is no use to us.
        if !matches!(link.peer(), LinkAddr::Tcp(_)) {
            return Some(link);
        }
        self.link = Some(link);
        None
    }

    fn heard(&mut self) -> bool {
        let parts = self.shared.lock().state.session.parts();
        std::mem::replace(&mut self.parts, parts) != parts
    }
}
