//! Sends that the kernel still reads from when their lane is gone (M2, M4). The engine has the memory until then; a peer that
//! does not read must not let that last for ever.
//!
//! ```text
//! lane dropped -> FIN -> wait for the notifications -> reset the connection -> wait a little
//!                        at most RELEASE_MS                                     RESET_MS
//! ```
//!
//! So the socket and what it sent last may outlive the lane by 11 s, for at most [`MAX_LINGERS`](crate::MAX_LINGERS) lanes of an engine at a
//! time; the connections of further ones are reset at once.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::Shutdown;
use zc_core::memory::{CopyLedger, KernelCopied};
use zc_core::transport::{Reactor, Timer};

use super::zero_copy::ZeroCopy;
use crate::engine::{Place, SocketTx, ZeroCopySend};
use crate::limits::{RELEASE_MS, RESET_MS};

/// The socket and what it holds; dropping it ends both at once.
pub(super) struct Linger {
    socket: SocketTx,
    zero_copy: ZeroCopy,
    /// What was under way.
    flying: Option<ZeroCopySend>,
    ledger: Arc<CopyLedger>,
    reactor: Arc<dyn Reactor>,
    _place: Option<Place>,
    released: bool,
}

impl Linger {
    /// Lets a task of the reactor wait for the kernel, if there is anything to wait for.
    pub(super) fn start(
        socket: SocketTx,
        mut zero_copy: ZeroCopy,
        flying: Option<ZeroCopySend>,
        ledger: Arc<CopyLedger>,
        reactor: Arc<dyn Reactor>,
    ) {
        zero_copy.abandon();
        if zero_copy.is_idle() && flying.is_none() {
            return;
        }
        // What waits for room ends by that, too.
        let _ = rustix::net::shutdown(&socket, Shutdown::Write);
        let (place, released) = (socket.linger_place(), false);
        let may_wait = place.is_some();
        let rest =
            Self { socket, zero_copy, flying, ledger, reactor: reactor.clone(), _place: place, released };
        // Without a place, or a reactor, `rest` is dropped here.
        let (true, Ok(timer)) = (may_wait, reactor.timer()) else { return };
        if let Ok(task) = reactor.spawn(Box::pin(rest.wait(timer))) {
            task.detach();
        }
    }

    async fn wait(mut self, mut timer: Box<dyn Timer>) {
        if !self.wait_for(RELEASE_MS, &mut *timer).await {
            self.abort();
            self.wait_for(RESET_MS, &mut *timer).await;
        }
    }

    async fn wait_for(&mut self, most_ms: u64, timer: &mut dyn Timer) -> bool {
        timer.reset(self.reactor.now() + Duration::from_millis(most_ms));
        poll_fn(|cx| match self.poll_released(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => timer.poll_expired(cx).map(|()| false),
        })
        .await
    }

    fn poll_released(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { zero_copy, reactor, ledger, .. } = self;
        zero_copy.reap(cx, || reactor.now(), ledger, |_, _| {});
        if let Some(send) = &mut self.flying {
            // Whatever it sent is a part of a frame that will never be whole.
            let _ = ready!(send.poll_sent(cx));
            let _ = ready!(send.poll_released(cx));
            self.flying = None;
        }
        self.released = self.zero_copy.is_idle();
        if self.released { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Resets the connection: the kernel drops what it has not sent, and says so.
    fn abort(&self) {
        let _ = rustix::net::connect_unspec(&self.socket);
    }
}

impl Drop for Linger {
    fn drop(&mut self) {
        if !self.released {
            self.abort();
            self.ledger.kernel_copied(KernelCopied::Unknown);
        }
    }
}
