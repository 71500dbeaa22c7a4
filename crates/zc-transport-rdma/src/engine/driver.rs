//! The engine's task: it looks when nobody else does.
//!
//! ```text
//! woken (a signal of the completion queue, an event of the device, an endpoint that is gone, a timer)
//!   take completions -> found any, or still looking? -> once more, after the others
//!                    -> arm -> take completions again -> nothing: sleep
//! ```
//!
//! While somebody looks again and again, signals would only have this task run beside them: it dozes, unarmed, and sees every
//! [`DOZE_MS`] whether they still do. Whoever looks for a while and then sleeps arms by itself ([`Shared::arm`]).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use zc_core::memory::Deferral;
use zc_core::transport::{Interest, Readiness, TaskHandle, Timer};

use super::{EndpointEnd, Shared};
use crate::limits::{DOZE_MS, REFILL_MS};
use crate::verbs::VerbsError;

struct Driver {
    shared: Arc<Shared>,
    signals: Box<dyn Readiness>,
    events: Box<dyn Readiness>,
    timer: Box<dyn Timer>,
    /// How often others had looked when it slept last.
    looks: u64,
    /// Since when it has looked in vain.
    since: Option<Instant>,
    /// Looking is of no use where there is one processor: whoever would complete something could not run.
    may_spin: bool,
}

pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Box<dyn TaskHandle>> {
    let reactor = &shared.reactor;
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    let driver = Driver {
        shared: shared.clone(),
        signals: reactor.register_to_read(shared.completions.signal_fd()?)?,
        events: reactor.register_to_read(shared.context.event_fd()?)?,
        timer: reactor.timer()?,
        looks: 0,
        since: None,
        may_spin: processors > 1 && !shared.options.spin.is_zero(),
    };
    reactor.spawn(Box::pin(driver))
}

/// Something to be read, or a reason to wait for it.
fn would_block(nothing: bool) -> io::Result<usize> {
    if nothing { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(1) }
}

impl Shared {
    /// Asks for a signal with the next completion, unless that was done; says whether it was not. What came before gives none, so
    /// whoever has really asked is to look once more: others may rely on it already.
    pub(super) fn arm(&self) -> Result<bool, VerbsError> {
        if self.armed.swap(true, SeqCst) {
            return Ok(false);
        }
        self.completions.arm().inspect_err(|_| self.armed.store(false, SeqCst))?;
        Ok(true)
    }
}

impl Driver {
    /// Takes what the device says of itself, and waits for more.
    fn hear_events(&self, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            let mut heard = None;
            let mut next = |_: std::os::fd::BorrowedFd<'_>| {
                heard = self.shared.context.next_event().map_err(VerbsError::to_io)?;
                would_block(heard.is_none())
            };
            match self.events.poll_io(cx, Interest::Read, &mut next) {
                Poll::Pending => return Ok(()),
                Poll::Ready(done) => done?,
            };
            if let Some(event) = heard {
                self.shared.event(event);
            }
        }
    }

    /// Takes the signals of completions, and waits for the next.
    fn hear_signals(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let shared = &self.shared;
        let mut take = |_: std::os::fd::BorrowedFd<'_>| {
            would_block(!shared.completions.take_signal().map_err(VerbsError::to_io)?)
        };
        while let Poll::Ready(done) = self.signals.poll_io(cx, Interest::Read, &mut take) {
            done?;
            shared.armed.store(false, SeqCst);
        }
        Ok(())
    }

    /// Whether to look on, having found nothing.
    fn looks_on(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        self.may_spin && now.saturating_duration_since(since) < self.shared.options.spin
    }

    /// When to look again although nothing was heard.
    fn set_timer(&mut self, cx: &mut Context<'_>, now: Instant, dozes: bool) -> bool {
        let _deferral = Deferral::begin();
        let deadline = {
            let mut core = self.shared.core.lock();
            core.driver.park(cx);
            core.sleeps += 1;
            let refill = core.is_starving.then(|| now + Duration::from_millis(REFILL_MS));
            let doze = dozes.then(|| now + Duration::from_millis(DOZE_MS));
            core.next_deadline().into_iter().chain(refill).chain(doze).min()
        };
        let Some(deadline) = deadline else { return false };
        self.timer.reset(deadline.max(now + Duration::from_millis(1)));
        self.timer.poll_expired(cx).is_ready()
    }

    fn step(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        self.hear_events(cx)?;
        self.hear_signals(cx)?;
        let now = self.shared.reactor.now();
        if self.shared.core.lock().end.is_some() {
            return Ok(Poll::Ready(()));
        }
        self.shared.dozing.store(false, SeqCst);
        if self.shared.turn() > 0 {
            self.since = None;
        } else if !self.looks_on(now) {
            let looks = self.shared.looks.load(Relaxed);
            let mut dozes =
                std::mem::replace(&mut self.looks, looks) != looks && !self.shared.armed.load(SeqCst);
            self.shared.dozing.store(dozes, SeqCst);
            // Whoever has gone to sleep since the last time sees that it dozes, or is seen here.
            if self.shared.asked.swap(false, SeqCst) && dozes {
                dozes = false;
                self.shared.dozing.store(false, SeqCst);
            }
            if !dozes {
                self.shared.arm().map_err(VerbsError::to_io)?;
            }
            // What came before it was armed gives no signal.
            if self.shared.turn() == 0 && !self.set_timer(cx, now, dozes) {
                self.since = None;
                return Ok(Poll::Pending);
            }
        }
        self.shared.reactor.yield_now(cx);
        Ok(Poll::Pending)
    }

    fn end(&self, end: &EndpointEnd) {
        let _deferral = Deferral::begin();
        self.shared.core.lock().end_all(end);
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.step(cx) {
            Ok(done) => done,
            Err(error) => {
                // Of a device that was removed, nothing can be read any more.
                tracing::warn!(%error, "an RDMA device is given up");
                self.end(&EndpointEnd::DeviceGone);
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end(&EndpointEnd::EngineGone);
    }
}
