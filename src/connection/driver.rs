//! The task of one connection: does what no handle is there for, keeps the peer alive, and closes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use zc_core::memory::Deferral;
use zc_core::transport::{ControlLink, LaneDrive, LaneError, Timer};
use zc_core::wire::{CloseCode, Keepalive, KeepaliveAction, MAX_KEEPALIVE, MIN_KEEPALIVE, SessionRecord};

use super::core::{Core, READS_PER_TURN};
use super::end::Obituary;
use super::error::ConnectionError;
use super::idle::Idle;
use super::ingest::Look;
use super::sender::finish;
use super::wake::LOOK_INTERVAL;
use crate::options::ConnectionOptions;
use crate::time::later;

/// Room for messages that an idle connection keeps.
const IDLE_INBOX: usize = 64;

pub(super) struct Driver {
    pub(super) core: Arc<Core>,
    pub(super) drive: Option<Box<dyn LaneDrive>>,
    pub(super) link: Option<Box<dyn ControlLink>>,
    /// How the control link ended.
    pub(super) link_end: Option<LaneError>,
    pub(super) timer: Box<dyn Timer>,
    /// When the timer goes off.
    pub(super) timer_at: Option<Instant>,
    /// When to look at a lane that was left unarmed.
    pub(super) look_at: Option<Instant>,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) keepalive_at: Option<Instant>,
    pub(super) idle: Option<Idle>,
    /// A message that is no frame yet has gone on since the last look whether the connection is idle.
    pub(super) went_on: bool,
    pub(super) options: ConnectionOptions,
    /// When closing: the latest time to give up.
    pub(super) closing: Option<Instant>,
    /// Tells how it ended, when the task ends, however it does.
    pub(super) obituary: Obituary,
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.core.watch.driver.register(cx.waker());
        let now = this.core.reactor.now();
        let mut next = match this.turn(cx, now) {
            Ok(next) => next,
            Err(error) => {
                this.core.fail(error);
                // A peer that we have lost has no access from here on, however long the rest takes.
                this.core.remote.settle();
                None
            }
        };
        this.obituary.announce();
        if let Poll::Ready(()) = this.poll_end(now, &mut next) {
            return Poll::Ready(());
        }
        if let Some(deadline) = next {
            // A timer that goes off too early costs a turn; moving it at every turn costs more.
            if this.timer_at.is_none_or(|at| at > deadline) {
                this.timer.reset(deadline);
                this.timer_at = Some(deadline);
            }
        }
        if this.timer_at.is_some() && this.timer.poll_expired(cx).is_ready() {
            this.timer_at = None;
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Also when a runtime that is shut down drops its tasks: nobody shall wait for this one.
        let known = self.core.lock_tx().failed.clone();
        if known.is_none() || !self.core.lock_rx().ended {
            self.core.fail(known.unwrap_or_else(|| match self.core.handles.load(Ordering::Acquire) {
                0 => ConnectionError::ClosedHere,
                _ => ConnectionError::NoRuntime("the connection's task was dropped".into()),
            }));
        }
        self.core.remote.settle();
    }
}

fn sooner(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| now >= at)
}

impl Driver {
    fn turn(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, ConnectionError> {
        self.watch_link(cx)?;
        let driven = self.drive(now);
        let is_empty = self.read(now);
        if is_empty && let Some(end) = &self.link_end {
            return Err(end.clone().into());
        }
        // Also while it closes: that is up to the peer for as long as `drain`, and its device is let in all the time.
        let mut next = sooner(self.look_at, self.core.remote.expire(now));
        if self.core.lock_tx().failed.is_some() {
            // Receiving goes on as long as the lane lets it: it tells its end by itself.
            return Ok(sooner(next, driven.unwrap_or_default()));
        }
        next = sooner(next, driven?);
        next = sooner(next, self.keep_alive(now)?);
        next = sooner(next, self.end_idle(now));
        if let Err(error) = self.dismiss().and_then(|()| self.write()) {
            self.core.fail_sending(error);
        }
        Ok(next)
    }

    /// Polls the drive: in front of reading, since a message may need what it takes in, and also when sending has failed. After an
    /// error of its own it is polled no more.
    fn drive(&mut self, now: Instant) -> Result<Option<Instant>, LaneError> {
        let Some(drive) = &mut self.drive else { return Ok(None) };
        let deferral = Deferral::begin();
        let driven = drive.poll_drive(&mut Context::from_waker(&self.core.tx_waker), now);
        drop(deferral);
        if driven.is_err() {
            self.drive = None;
        }
        driven
    }

    /// Reads when somebody asked for it, or when the receiver has not come back in time. True if the lane
    /// was seen to hold nothing.
    fn read(&mut self, now: Instant) -> bool {
        let watch = &self.core.watch;
        let asked = watch.take_look();
        let last_chance = due(self.keepalive_at, now) || self.link_end.is_some();
        if !asked && !due(self.look_at, now) && !last_chance {
            if self.look_at.is_none() && watch.is_watched() {
                let longest = self.options.keepalive_timeout / 4;
                let interval = if longest.is_zero() { LOOK_INTERVAL } else { longest.min(LOOK_INTERVAL) };
                self.look_at = Some(now + interval);
            }
            return false;
        }
        self.look_at = None;
        watch.unwatch();
        for _ in 0..READS_PER_TURN {
            let mut rx = self.core.lock_rx();
            // An armed lane has nothing new.
            if rx.ended
                || (watch.is_armed() && !last_chance)
                || self.core.poll_ingest(&mut rx, Look::Armed).is_pending()
            {
                // One that has called us at once goes on later.
                return !rx.ended && watch.is_armed();
            }
            if rx.waiting && (!rx.arrived.inbox.is_empty() || rx.end().is_some()) {
                watch.wake_receiver();
            }
        }
        watch.look();
        false
    }

    /// Pushes out what could not go at once and lets the next sender in.
    fn write(&mut self) -> Result<(), ConnectionError> {
        let core = &self.core;
        let mut tx = core.lock_tx();
        tx.driver_turns += 1;
        if tx.failed.is_some() {
            return Ok(());
        }
        core.remote.collect_native()?;
        // In front of what would take its room each time.
        core.push_ack(&mut tx)?;
        core.push_parked(&mut tx);
        let finished = matches!(tx.finished, Some(ConnectionError::Finished { .. }));
        if !tx.fin_sent && (finished || core.senders.load(Ordering::Acquire) == 0) {
            finish(core, &mut tx)?;
        }
        core.flush(&mut tx)?;
        tx.collect(&mut Context::from_waker(&core.tx_waker))?;
        tx.queue.wake_first();
        tx.allocs.wake_first();
        core.rest(&tx);
        Ok(())
    }

    /// The control link of an out-of-band lane lives as long as the peer does. What the peer had put into
    /// the lane by then is there when the link's end is seen, so one look at the lane after that tells
    /// whether anything is still to come, its CLOSE perhaps.
    fn watch_link(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let end = match link.poll_read(cx, &mut [0; 1]) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(0)) => LaneError::PeerGone("its control link ended"),
            Poll::Ready(Ok(_)) => {
                return Err(ConnectionError::Session("data on the control link after COMMIT".into()));
            }
            // A process that was killed with bytes unread resets its links.
            Poll::Ready(Err(error)) => LaneError::os("read the control link", &error),
        };
        (self.link, self.link_end) = (None, Some(end));
        Ok(())
    }

    /// Tells the peer when nobody receives any more.
    fn dismiss(&mut self) -> Result<(), ConnectionError> {
        let rx = self.core.lock_rx();
        if rx.received || rx.go_away_sent || self.core.handles.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        drop(rx);
        self.core.go_away(CloseCode::GOING_AWAY, "nobody receives messages any more")
    }

    fn keep_alive(&mut self, now: Instant) -> Result<Option<Instant>, ConnectionError> {
        let goes_on = self.drive.as_mut().is_some_and(|drive| drive.heard());
        self.went_on |= goes_on;
        let mut rx = self.core.lock_rx();
        let heard = std::mem::take(&mut rx.arrived.heard) || goes_on;
        if heard {
            rx.arrived.last_heard = now;
        }
        let pong = rx.arrived.pong.take();
        drop(rx);
        let Some(keepalive) = &mut self.keepalive else { return Ok(None) };
        if heard {
            keepalive.on_rx(now);
        }
        if let Some(nonce) = pong {
            keepalive.on_pong(nonce, now);
        }
        loop {
            match keepalive.poll(now) {
                KeepaliveAction::Idle(next) => {
                    self.keepalive_at = Some(next);
                    return Ok(Some(next));
                }
                KeepaliveAction::Dead => {
                    let times = [self.options.keepalive_interval, self.options.keepalive_timeout];
                    let silence = times.map(|time| time.clamp(MIN_KEEPALIVE, MAX_KEEPALIVE)).iter().sum();
                    return Err(ConnectionError::Dead { silence });
                }
                KeepaliveAction::SendPing(nonce) => {
                    let mut tx = self.core.lock_tx();
                    if tx.failed.is_none() && !tx.close_sent {
                        self.core.push_record(&mut tx, &SessionRecord::Ping { nonce })?;
                    }
                    drop(tx);
                    let mut rx = self.core.lock_rx();
                    if rx.arrived.inbox.is_empty() && rx.arrived.inbox.capacity() > IDLE_INBOX {
                        rx.arrived.inbox.shrink_to(IDLE_INBOX);
                    }
                }
            }
        }
    }

    fn end_idle(&mut self, now: Instant) -> Option<Instant> {
        let idle = self.idle.as_mut()?;
        if !idle.is_due(now) {
            return Some(idle.next());
        }
        let received = self.core.lock_rx().arrived.seq.last();
        let sent = self.core.lock_tx().seq.last_sent() + self.core.remote.requests();
        let unseen = self.core.remote.is_lent() | std::mem::take(&mut self.went_on);
        if idle.is_over((received, sent), unseen, now) {
            let error = ConnectionError::Idle { idle: idle.after() };
            self.core.close(CloseCode::IDLE, "no messages", error);
        }
        Some(idle.next())
    }

    /// Ends the task when the connection has failed or nobody uses it any more: says CLOSE, waits
    /// until it is out and the peer has answered with its own end, or for the drain time.
    fn poll_end(&mut self, now: Instant, next: &mut Option<Instant>) -> Poll<()> {
        let core = self.core.clone();
        let abandoned = core.handles.load(Ordering::Acquire) == 0;
        let failed = core.lock_tx().failed.is_some();
        if !abandoned && !failed {
            return Poll::Pending;
        }
        let rx = core.lock_rx();
        let (last_seq, peer_ended) = (rx.arrived.seq.last(), rx.ended);
        drop(rx);
        let mut tx = core.lock_tx();
        let deadline = *self.closing.get_or_insert_with(|| later(now, self.options.drain));
        if !failed && tx.queue.parked() > 0 && now < deadline {
            *next = sooner(*next, Some(deadline));
            return Poll::Pending;
        }
        if !failed {
            let close = SessionRecord::Close { code: CloseCode::NORMAL, last_seq, reason: String::new() };
            core.push_close(&mut tx, close);
        }
        let flushed = tx.lane.poll_close(&mut Context::from_waker(&core.tx_waker));
        drop(tx);
        match flushed {
            Poll::Ready(Err(_)) if abandoned => Poll::Ready(()),
            Poll::Ready(_) if peer_ended => Poll::Ready(()),
            _ if now >= deadline => Poll::Ready(()),
            _ => {
                *next = sooner(*next, Some(deadline));
                if !peer_ended {
                    core.watch.hand_on();
                }
                Poll::Pending
            }
        }
    }
}
