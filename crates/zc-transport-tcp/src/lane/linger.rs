//! Sends that the kernel still reads from when their lane is gone (M2, M4).
//!
//! ```text
//! lane dropped -> FIN -> wait for the completions -> abort the connection -> wait a little -> leak
//!                        at most LINGER_MS                                   ABORT_MS
//! ```

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::Shutdown;
use zc_core::memory::CopyLedger;
use zc_core::transport::{Reactor, Readiness, Timer};

use super::zero_copy::ZeroCopy;
use crate::limits::{ABORT_MS, LINGER_MS, LINGER_PAUSE_MS, REAP_INTERVAL_MS};

/// The socket and what it holds; dropping it ends both at once.
pub(super) struct Linger {
    io: Arc<dyn Readiness>,
    zero_copy: ZeroCopy,
    ledger: Arc<CopyLedger>,
}

impl Linger {
    /// Lets a task of the reactor wait for the kernel, if there is anything to wait for.
    pub(super) fn start(
        io: Arc<dyn Readiness>,
        mut zero_copy: ZeroCopy,
        ledger: Arc<CopyLedger>,
        reactor: Arc<dyn Reactor>,
    ) {
        zero_copy.abandon();
        let mut rest = Self { io, zero_copy, ledger };
        if rest.is_done() {
            return;
        }
        let _ = crate::io::shutdown(&*rest.io, Shutdown::Write);
        // Without a reactor `rest` is dropped here.
        let Ok(timer) = reactor.timer() else { return };
        let waiting = Box::pin(rest.wait(timer, reactor.clone()));
        if let Ok(task) = reactor.spawn(waiting) {
            task.detach();
        }
    }

    fn is_done(&mut self) -> bool {
        self.zero_copy.reap(self.io.fd(), &self.ledger, |_, _| {});
        self.zero_copy.is_idle()
    }

    async fn wait(mut self, mut timer: Box<dyn Timer>, reactor: Arc<dyn Reactor>) {
        if !self.wait_for(LINGER_MS, &mut *timer, &*reactor).await {
            self.abort();
            self.wait_for(ABORT_MS, &mut *timer, &*reactor).await;
        }
    }

    async fn wait_for(&mut self, most_ms: u64, timer: &mut dyn Timer, reactor: &dyn Reactor) -> bool {
        let deadline = reactor.now() + Duration::from_millis(most_ms);
        let mut pause = Duration::from_millis(REAP_INTERVAL_MS);
        while !self.is_done() {
            let now = reactor.now();
            if now >= deadline {
                return false;
            }
            timer.reset(deadline.min(now + pause));
            poll_fn(|cx| timer.poll_expired(cx)).await;
            pause = (2 * pause).min(Duration::from_millis(LINGER_PAUSE_MS));
        }
        true
    }

    /// Resets the connection: the kernel drops what it has not sent, and says so.
    fn abort(&self) {
        let _ = rustix::net::connect_unspec(self.io.fd());
    }
}

impl Drop for Linger {
    fn drop(&mut self) {
        if !self.is_done() {
            self.abort();
            self.is_done();
            self.zero_copy.leak();
        }
    }
}
