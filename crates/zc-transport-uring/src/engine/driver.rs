//! The engine's task: it enters the ring, once per turn of the runtime. In between those who look for something may take what
//! has come ([`Core::look`]); what they leave, and all while nobody looks, is for this task.
//!
//! ```text
//! woken (eventfd, or somebody began an operation)
//!   mask the eventfd -> submit and reap -> unmask -> anything left? -> once more, after the others
//!                                                 -> nothing: sleep
//! ```

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use zc_core::memory::Deferral;
use zc_core::transport::{Reactor, Readiness, Timer};

use super::core::{Core, Stage};
use super::spin::SpinBudget;
use super::{End, Shared};
use crate::limits::{DRAIN_MS, FAREWELL_ROUNDS, LOOKS_PER_TURN, ZCRX_RETRY_MS};
use crate::sys::Settled;

pub(super) struct Driver {
    shared: Arc<Shared>,
    reactor: Arc<dyn Reactor>,
    eventfd: Box<dyn Readiness>,
    /// Everything was cancelled, and nothing new begins.
    closes: bool,
    /// Until when it waits for what is in flight then.
    timer: Option<Box<dyn Timer>>,
    spin: Option<SpinBudget>,
    /// When those who wait for room in the area try again.
    retry: Option<Box<dyn Timer>>,
    has_area: bool,
}

/// What comes after a turn.
enum After {
    /// Another turn.
    Again,
    Sleep,
    Over,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        reactor: Arc<dyn Reactor>,
        eventfd: Box<dyn Readiness>,
        spin: Option<SpinBudget>,
        has_area: bool,
    ) -> Self {
        Self { shared, reactor, eventfd, closes: false, timer: None, spin, retry: None, has_area }
    }

    /// Takes the signal, if there is one, and waits for the next.
    fn hear(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut read = |fd: std::os::fd::BorrowedFd<'_>| {
            let mut count = [0; 8];
            if self.eventfd.tells_each_signal() {
                return Ok((count.len(), true));
            }
            // One read takes all of it.
            Ok((rustix::io::read(fd, &mut count)?, true))
        };
        while let Poll::Ready(done) = self.eventfd.poll_read_stream(cx, &mut read) {
            done?;
        }
        Ok(())
    }

    /// Whether this thread may enter the ring; the first one that comes owns it, if it is for one alone.
    fn may_enter(core: &mut Core) -> Result<(), End> {
        let here = std::thread::current().id();
        match core.owner {
            Some(owner) if owner == here => Ok(()),
            Some(_) if core.is_for_one_thread => Err(End::Moved),
            Some(_) => Ok(()),
            None => {
                let enabled = core.flights.ring().map_or(Ok(()), |ring| ring.enable());
                enabled.map_err(|error| End::of(&error))?;
                core.owner = Some(here);
                Ok(())
            }
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<After, End> {
        // Opened in front of the lock: what is woken may use the engine at once.
        let shared = self.shared.clone();
        let now = self.spin.as_ref().map(|_| self.reactor.now());
        let _deferral = Deferral::begin();
        let mut settled = Settled::default();
        let mut core = shared.core.lock();
        let after = self.turn_locked(&mut core, &mut settled, now, cx);
        let no_memory = core.no_memory.take();
        drop(core);
        if let Some(error) = no_memory {
            tracing::warn!(%error, "no memory to receive into");
        }
        after
    }

    fn turn_locked(
        &mut self,
        core: &mut Core,
        settled: &mut Settled,
        now: Option<Instant>,
        cx: &mut Context<'_>,
    ) -> Result<After, End> {
        if let Stage::Ended(end) = core.stage {
            return Err(end);
        }
        Self::may_enter(core)?;
        if let Some(ring) = core.flights.ring() {
            ring.mask();
        }
        if core.stage == Stage::Closing && !std::mem::replace(&mut self.closes, true) {
            core.flights.cancel_all();
        }
        let found = core.turn(cx, settled).map_err(|error| End::of(&error))?;
        if core.stage == Stage::Closing && core.flights.flying() == 0 {
            return Ok(After::Over);
        }
        if self.closes && self.timer.is_none() {
            return Ok(After::Again);
        }
        Ok(self.after(core, found, now, cx))
    }

    fn after(&mut self, core: &mut Core, found: usize, now: Option<Instant>, cx: &Context<'_>) -> After {
        let is_looked_at = std::mem::take(&mut core.is_looked_at);
        if core.flights.has_work() || is_looked_at || self.looks_on(core, found, now) {
            return After::Again;
        }
        if let Some(ring) = core.flights.ring() {
            ring.unmask();
        }
        // What came while the eventfd was masked has not signalled, and who has memory for the ring takes no lock.
        core.flights.park(cx);
        if core.flights.has_work() {
            return After::Again;
        }
        core.driver.park(cx);
        After::Sleep
    }

    /// Looks for completions a while, if that is wanted; the eventfd stays masked.
    fn looks_on(&mut self, core: &mut Core, found: usize, now: Option<Instant>) -> bool {
        let Some((spin, now)) = self.spin.as_mut().zip(now) else { return false };
        if found > 0 {
            spin.stop(now);
        }
        if core.flights.flying() == 0 || !spin.may_look(now) {
            spin.stop(now);
            return false;
        }
        for _ in 0..LOOKS_PER_TURN {
            if core.flights.has_work() {
                break;
            }
            std::hint::spin_loop();
        }
        true
    }

    /// While the engine closes: whether it has waited long enough. The runtime is asked without the lock.
    fn is_out_of_time(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.closes {
            return false;
        }
        if self.timer.is_none() {
            // Without a timer there is no waiting.
            let Ok(mut timer) = self.reactor.timer() else { return true };
            timer.reset(self.reactor.now() + Duration::from_millis(DRAIN_MS));
            self.timer = Some(timer);
        }
        self.timer.as_mut().is_some_and(|timer| timer.poll_expired(cx).is_ready())
    }

    /// While somebody waits for room in the area: returns what nobody is told of are looked for again and again. The runtime is
    /// asked without the lock. Ready: it is time.
    fn poll_retry(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.shared.core.lock().waits_for_room() {
            self.retry = None;
            return Poll::Pending;
        }
        if self.retry.is_none() {
            // Without a timer it is the next turn that finds out.
            let Ok(mut timer) = self.reactor.timer() else { return Poll::Pending };
            timer.reset(self.reactor.now() + Duration::from_millis(ZCRX_RETRY_MS));
            self.retry = Some(timer);
        }
        let expired = self.retry.as_mut().map_or(Poll::Pending, |timer| timer.poll_expired(cx));
        if expired.is_ready() {
            self.retry = None;
            if let Some(area) = self.shared.core.lock().flights.area() {
                area.try_again();
            }
        }
        expired
    }

    fn end(&self, end: End) {
        let _deferral = Deferral::begin();
        self.shared.has_ended.store(true, Relaxed);
        let left = self.shared.core.lock().end(end);
        drop(left);
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_out_of_time(cx) {
            self.end(End::Closed);
            return Poll::Ready(());
        }
        let heard = self.hear(cx).map_err(|error| End::of(&error));
        let after = heard.and_then(|()| self.turn(cx));
        // Also while somebody looks again and again, and it does not sleep.
        let tries_again = self.has_area && after.is_ok() && self.poll_retry(cx).is_ready();
        match after {
            Ok(After::Sleep) if !tries_again => Poll::Pending,
            Ok(After::Sleep | After::Again) => {
                self.reactor.yield_now(cx);
                Poll::Pending
            }
            Ok(After::Over) => {
                self.end(End::Closed);
                Poll::Ready(())
            }
            Err(end) => {
                self.end(end);
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Driver {
    /// The runtime goes, perhaps with operations in flight.
    fn drop(&mut self) {
        let shared = self.shared.clone();
        let _deferral = Deferral::begin();
        let mut settled = Settled::default();
        let mut core = shared.core.lock();
        if let Stage::Ended(_) = core.stage {
            return;
        }
        shared.has_ended.store(true, Relaxed);
        // Nothing new; most of what is in flight ends at once when it is cancelled.
        core.stage = Stage::Closing;
        if Self::may_enter(&mut core).is_ok() {
            core.flights.cancel_all();
            for _ in 0..FAREWELL_ROUNDS {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                if core.turn(&mut cx, &mut settled).is_err() || core.flights.flying() == 0 {
                    break;
                }
            }
        }
        let left = core.end(End::RuntimeGone);
        drop(core);
        drop(left);
    }
}
