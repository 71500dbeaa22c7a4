//! The task of one connection: does what no handle is there for, keeps the peer alive, and closes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use zc_core::transport::{ControlLink, LaneDrive, LaneError, Reactor, Timer};
use zc_core::wire::{CloseCode, Keepalive, KeepaliveAction, SessionRecord};

use super::core::{Core, MAX_INBOX_MESSAGES, Wakers, wake_all};
use super::error::ConnectionError;
use super::sender::finish;
use crate::options::ConnectionOptions;

/// Batches read in one turn before other tasks get theirs.
const READS_PER_TURN: usize = 16;

pub(super) struct Driver {
    pub(super) core: Arc<Core>,
    pub(super) drive: Option<Box<dyn LaneDrive>>,
    pub(super) link: Option<Box<dyn ControlLink>>,
    pub(super) timer: Box<dyn Timer>,
    pub(super) reactor: Arc<dyn Reactor>,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) options: ConnectionOptions,
    /// When closing: the latest time to give up.
    pub(super) closing: Option<Instant>,
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.core.driver.0.register(cx.waker());
        let mut next = match this.turn(cx) {
            Ok(next) => next,
            Err(error) => {
                this.core.fail(error);
                None
            }
        };
        if let Poll::Ready(()) = this.poll_end(&mut next) {
            return Poll::Ready(());
        }
        if let Some(deadline) = next {
            this.timer.reset(deadline);
            ready!(this.timer.poll_expired(cx));
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

fn sooner(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Driver {
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Option<Instant>, ConnectionError> {
        let now = self.reactor.now();
        self.read(cx);
        if self.core.tx.lock().failed.is_some() {
            return Ok(None);
        }
        self.watch_link(cx)?;
        let mut next = self.keep_alive(now)?;
        if let Some(drive) = &mut self.drive {
            let waker = self.core.tx_waker.clone();
            next = sooner(next, drive.poll_drive(&mut Context::from_waker(&waker), now)?);
        }
        if let Err(error) = self.write() {
            self.core.fail_sending(error);
        }
        Ok(next)
    }

    /// Reads while no receiver waits, or when there is none to come.
    fn read(&mut self, cx: &Context<'_>) {
        let core = &self.core;
        let unread = core.handles.load(Ordering::Acquire) == 0;
        for turn in 0.. {
            let mut rx = core.rx.lock();
            if unread {
                while let Some(message) = rx.inbox.pop_front() {
                    rx.lane.release(message.len());
                }
            }
            if rx.ended
                || rx.inbox.len() >= MAX_INBOX_MESSAGES
                || core.poll_ingest(&mut rx, false).is_pending()
            {
                break;
            }
            let woken = !rx.inbox.is_empty() || rx.ended || rx.fin;
            drop(rx);
            if woken {
                core.rx_wake.receiver.wake();
            }
            if turn == READS_PER_TURN {
                cx.waker().wake_by_ref();
                break;
            }
        }
    }

    /// Pushes out what could not go at once and lets the next sender in.
    fn write(&mut self) -> Result<(), ConnectionError> {
        let core = &self.core;
        let mut wakers = Wakers::new();
        let mut tx = core.tx.lock();
        if tx.failed.is_some() {
            return Ok(());
        }
        if core.senders.load(Ordering::Acquire) == 0 {
            finish(core, &mut tx, &mut wakers)?;
        }
        core.flush(&mut tx)?;
        tx.collect(&mut Context::from_waker(&core.tx_waker), &mut wakers)?;
        wakers.extend(tx.queue.first());
        drop(tx);
        wake_all(wakers);
        Ok(())
    }

    /// The control link of an out-of-band lane lives as long as the peer does.
    fn watch_link(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut byte = [0; 1];
        match link.poll_read(cx, &mut byte) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(0)) => Err(LaneError::PeerGone("its control link ended").into()),
            Poll::Ready(Ok(_)) => {
                Err(ConnectionError::Session("data on the control link after COMMIT".into()))
            }
            Poll::Ready(Err(error)) => Err(LaneError::os("read the control link", &error).into()),
        }
    }

    fn keep_alive(&mut self, now: Instant) -> Result<Option<Instant>, ConnectionError> {
        let Some(keepalive) = &mut self.keepalive else { return Ok(None) };
        if self.core.heard.swap(false, Ordering::Relaxed) {
            keepalive.on_rx(now);
        }
        if let Some(nonce) = self.core.pong.lock().take() {
            keepalive.on_pong(nonce, now);
        }
        loop {
            match keepalive.poll(now) {
                KeepaliveAction::Idle(next) => return Ok(Some(next)),
                KeepaliveAction::Dead => {
                    let silence = self.options.keepalive_interval + self.options.keepalive_timeout;
                    return Err(ConnectionError::Dead { silence });
                }
                KeepaliveAction::SendPing(nonce) => {
                    let mut tx = self.core.tx.lock();
                    if tx.failed.is_none() && !tx.close_sent {
                        self.core.push_record(&mut tx, &SessionRecord::Ping { nonce })?;
                    }
                }
            }
        }
    }

    /// Ends the task when the connection has failed or nobody uses it any more: says CLOSE, waits
    /// until it is out and the peer has answered with its own end, or for the drain time.
    fn poll_end(&mut self, next: &mut Option<Instant>) -> Poll<()> {
        let core = self.core.clone();
        let abandoned = core.handles.load(Ordering::Acquire) == 0;
        let mut tx = core.tx.lock();
        let failed = tx.failed.is_some();
        if !abandoned && !failed {
            return Poll::Pending;
        }
        let now = self.reactor.now();
        let deadline = *self.closing.get_or_insert_with(|| now + self.options.drain);
        if abandoned && !failed && !tx.close_sent {
            drop(tx);
            let last_seq = core.rx.lock().seq.last();
            tx = core.tx.lock();
            let close = SessionRecord::Close { code: CloseCode::NORMAL, last_seq, reason: String::new() };
            if core.push_record(&mut tx, &close).is_err() {
                return Poll::Ready(());
            }
            tx.close_sent = true;
        }
        let flushed = tx.lane.poll_close(&mut Context::from_waker(&core.tx_waker));
        drop(tx);
        let peer_ended = core.rx.lock().ended;
        match flushed {
            Poll::Ready(Err(_)) if abandoned => Poll::Ready(()),
            Poll::Ready(_) if peer_ended => Poll::Ready(()),
            _ if now >= deadline => Poll::Ready(()),
            _ => {
                *next = sooner(*next, Some(deadline));
                Poll::Pending
            }
        }
    }
}
