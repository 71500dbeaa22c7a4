//! The task of one connection: does what no handle is there for, keeps the peer alive, and closes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use zc_core::memory::Pressure;
use zc_core::transport::{ControlLink, LaneDrive, LaneError, Timer};
use zc_core::wire::{CloseCode, Keepalive, KeepaliveAction, SessionRecord};

use super::core::Core;
use super::error::ConnectionError;
use super::idle::Idle;
use super::ingest::Look;
use super::obituary::Obituary;
use super::sender::finish;
use super::wake::{LOOK_INTERVAL, Section};
use crate::options::ConnectionOptions;

/// Batches read in one turn before other tasks get theirs.
const READS_PER_TURN: usize = 16;
/// How long frames may still come out of a lane after its control link ended.
const LINK_GRACE: Duration = Duration::from_millis(100);
/// Room for messages that an idle connection keeps.
const IDLE_INBOX: usize = 64;

pub(super) struct Driver {
    pub(super) core: Arc<Core>,
    pub(super) drive: Option<Box<dyn LaneDrive>>,
    pub(super) link: Option<Box<dyn ControlLink>>,
    /// The control link ended; the lane is read until then.
    pub(super) link_grace: Option<Instant>,
    pub(super) timer: Box<dyn Timer>,
    /// When the timer goes off.
    pub(super) timer_at: Option<Instant>,
    /// When to look at a lane that was left unarmed.
    pub(super) look_at: Option<Instant>,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) keepalive_at: Option<Instant>,
    /// When the peer last was told that we live although we do not read.
    pub(super) life_sign: Option<Instant>,
    pub(super) idle: Option<Idle>,
    pub(super) options: ConnectionOptions,
    /// When closing: the latest time to give up.
    pub(super) closing: Option<Instant>,
    /// Tells the observer how it ended, when the task ends, however it does.
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
                None
            }
        };
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
        // A runtime that is shut down drops its tasks: nobody shall wait for this one.
        if self.core.lock_tx().failed.is_none() {
            self.core.fail(match self.core.handles.load(Ordering::Acquire) {
                0 => ConnectionError::ClosedHere,
                _ => ConnectionError::NoRuntime("the connection's task was dropped".into()),
            });
        }
        self.core.remote.settle();
        self.obituary.publish(&self.core);
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
        self.read(now);
        if self.core.lock_tx().failed.is_some() {
            return Ok(self.look_at);
        }
        self.watch_link(cx, now)?;
        let mut next = sooner(self.look_at, self.link_grace);
        next = sooner(next, self.keep_alive(now)?);
        next = sooner(next, self.end_idle(now));
        if let Some(drive) = &mut self.drive {
            let _section = Section::enter();
            let polled = drive.poll_drive(&mut Context::from_waker(&self.core.tx_waker), now);
            next = sooner(next, polled?);
        }
        if let Err(error) = self.write() {
            self.core.fail_sending(error);
        }
        Ok(next)
    }

    /// Reads when somebody asked for it, or when the receiver has not come back in time.
    fn read(&mut self, now: Instant) {
        let asked = self.core.watch.take_look();
        let last_chance = due(self.keepalive_at, now) || self.link_grace.is_some();
        if !asked && !due(self.look_at, now) && !last_chance {
            if self.look_at.is_none() && self.core.watch.is_watched() {
                let longest = self.options.keepalive_timeout / 4;
                let interval = if longest.is_zero() { LOOK_INTERVAL } else { longest.min(LOOK_INTERVAL) };
                self.look_at = Some(now + interval);
            }
            return;
        }
        self.look_at = None;
        self.core.watch.unwatch();
        let unused = self.core.handles.load(Ordering::Acquire) == 0;
        for turn in 0.. {
            let mut rx = self.core.lock_rx();
            if unused {
                while let Some(message) = rx.arrived.inbox.pop_front() {
                    rx.lane.release(message.len());
                }
            }
            // An armed lane has nothing new.
            if rx.ended
                || (self.core.watch.is_armed() && !last_chance)
                || self.core.poll_ingest(&mut rx, Look::Armed).is_pending()
            {
                break;
            }
            if rx.waiting && (!rx.arrived.inbox.is_empty() || rx.end().is_some()) {
                self.core.watch.wake_receiver();
            }
            if turn == READS_PER_TURN {
                self.core.watch.look();
                break;
            }
        }
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
        core.push_parked(&mut tx);
        let finished = matches!(tx.finished, Some(ConnectionError::Finished { .. }));
        if !tx.fin_sent && (finished || core.senders.load(Ordering::Acquire) == 0) {
            finish(core, &mut tx)?;
        }
        if core.flush(&mut tx)? {
            tx.queue.wake_flushes();
        }
        tx.collect(&mut Context::from_waker(&core.tx_waker))?;
        tx.queue.wake_first();
        core.rest(&tx);
        Ok(())
    }

    /// The control link of an out-of-band lane lives as long as the peer does. When it ends, what the
    /// peer had put into the lane is read first: its CLOSE may be there.
    fn watch_link(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), ConnectionError> {
        if due(self.link_grace, now) {
            return Err(LaneError::PeerGone("its control link ended").into());
        }
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut byte = [0; 1];
        match link.poll_read(cx, &mut byte) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(0)) => {
                self.link = None;
                self.link_grace = Some(now + LINK_GRACE);
                self.core.watch.look();
                Ok(())
            }
            Poll::Ready(Ok(_)) => {
                Err(ConnectionError::Session("data on the control link after COMMIT".into()))
            }
            Poll::Ready(Err(error)) => Err(LaneError::os("read the control link", &error).into()),
        }
    }

    fn keep_alive(&mut self, now: Instant) -> Result<Option<Instant>, ConnectionError> {
        let heard = self.core.heard.swap(false, Ordering::Relaxed);
        if heard {
            self.core.lock_tx().last_heard = now;
        }
        let Some(keepalive) = &mut self.keepalive else { return Ok(None) };
        if heard {
            keepalive.on_rx(now);
        }
        if let Some(nonce) = self.core.pong.lock().take() {
            keepalive.on_pong(nonce, now);
        }
        if self.core.leases.pressure() == Pressure::Hard {
            // We do not read, so we can't blame the peer for its silence.
            keepalive.on_rx(now);
            self.keepalive_at = None;
            return self.show_life(now).map(Some);
        }
        loop {
            match keepalive.poll(now) {
                KeepaliveAction::Idle(next) => {
                    self.keepalive_at = Some(next);
                    return Ok(Some(next));
                }
                KeepaliveAction::Dead => {
                    let silence = self.options.keepalive_interval + self.options.keepalive_timeout;
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

    /// While the hard lease stops reading, the peer's PINGs lie unread: so that it does not take us for
    /// dead, it hears an old acknowledgement every now and then, which it does not answer.
    fn show_life(&mut self, now: Instant) -> Result<Instant, ConnectionError> {
        let every = self.options.keepalive_interval.min(self.options.keepalive_timeout) / 2;
        let every = every.max(LOOK_INTERVAL);
        let at = self.life_sign.map_or(now, |last| last + every);
        if now < at {
            return Ok(at);
        }
        self.life_sign = Some(now);
        let mut rx = self.core.lock_rx();
        rx.arrived.seq.flush_ack();
        let seq = rx.arrived.seq.last();
        let mut tx = self.core.lock_tx();
        if tx.failed.is_none() && !tx.close_sent {
            self.core.push_record(&mut tx, &SessionRecord::Ack { seq })?;
        }
        Ok(now + every)
    }

    fn end_idle(&mut self, now: Instant) -> Option<Instant> {
        let idle = self.idle.as_mut()?;
        if !idle.is_due(now) {
            return Some(idle.next());
        }
        let received = self.core.lock_rx().arrived.seq.last();
        let sent = self.core.lock_tx().seq.last_sent() + self.core.remote.requests();
        if idle.is_over((received, sent), now) {
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
        let deadline = *self.closing.get_or_insert_with(|| now + self.options.drain);
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
