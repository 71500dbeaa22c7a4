//! Who waits for room to write: the sending half and the driver, either or both.

use std::sync::Arc;

use futures::task::{ArcWake, AtomicWaker};

/// The wakers behind the one that the socket knows.
#[derive(Default)]
pub(super) struct Wakers {
    pub(super) tx: AtomicWaker,
    pub(super) drive: AtomicWaker,
}

impl ArcWake for Wakers {
    fn wake_by_ref(this: &Arc<Self>) {
        this.tx.wake();
        this.drive.wake();
    }
}
