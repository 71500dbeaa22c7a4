//! Who waits for room to write: the sending half and the driver, either or both.

use std::sync::Arc;

use futures::task::{ArcWake, AtomicWaker};

/// The wakers behind the one that the socket knows.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::stream::Wakers;
///
/// let wakers = Arc::new(Wakers::default());
/// let of_the_socket = futures::task::waker(wakers.clone());
/// wakers.tx.register(std::task::Waker::noop());
/// of_the_socket.wake_by_ref(); // whoever waits, the sending half, the driver or both
/// assert!(wakers.tx.take().is_none());
/// ```
#[derive(Debug, Default)]
pub struct Wakers {
    /// The sending half's.
    pub tx: AtomicWaker,
    /// The driver's.
    pub drive: AtomicWaker,
}

impl ArcWake for Wakers {
    fn wake_by_ref(this: &Arc<Self>) {
        this.tx.wake();
        this.drive.wake();
    }
}
