//! One connection: its handles, its driver, and how it ends.

mod core;
mod driver;
mod error;
mod handle;
mod receiver;
mod sender;
mod waiters;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use zc_core::memory::{BufPool, CopyLedger, LedgerSnapshot, Message, PinnedBufMut};
use zc_core::transport::{AllocFailure, Caps, ControlLink, Lane, LaneLimits, Reactor, Role};
use zc_core::wire::{CloseCode, Keepalive, SessionRecord};

pub use self::error::{ConnectionError, SendError, TrySendError};
pub use self::receiver::Receiver;
pub use self::sender::{Send, Sender};

use self::core::{Core, Wakers, wake_all};
use self::driver::Driver;
use self::handle::Handle;
use crate::event::Observer;
use crate::identity::PeerIdentity;
use crate::options::ConnectionOptions;
use crate::report::SelectionReport;

/// What wire-up hands over.
pub(crate) struct Parts {
    pub(crate) lane: Lane,
    /// The control link, unless the lane runs on it.
    pub(crate) link: Option<Box<dyn ControlLink>>,
    pub(crate) role: Role,
    pub(crate) reactor: Arc<dyn Reactor>,
    pub(crate) pool: BufPool,
    pub(crate) ledger: Arc<CopyLedger>,
    pub(crate) limits: LaneLimits,
    pub(crate) options: ConnectionOptions,
    pub(crate) report: Arc<SelectionReport>,
    pub(crate) peer: PeerIdentity,
    pub(crate) observer: Arc<dyn Observer>,
}

/// A connection to a peer. Dropping all its handles closes it: what was accepted for sending is still
/// pushed out, within the drain time.
pub struct Connection {
    handle: Handle,
    sender: Sender,
    receiver: Option<Receiver>,
    shared: Arc<Shared>,
}

struct Shared {
    caps: Caps,
    role: Role,
    options: ConnectionOptions,
    report: Arc<SelectionReport>,
    peer: PeerIdentity,
    reactor: Arc<dyn Reactor>,
}

impl Connection {
    pub(crate) fn start(parts: Parts) -> Result<Self, ConnectionError> {
        let core = Core::new(parts.lane.tx, parts.lane.rx, parts.limits, parts.pool, parts.ledger);
        let handle = Handle::new(core.clone());
        core.receiver_taken.store(true, Ordering::Release);
        let connection = Self {
            sender: Sender::new(handle.clone()),
            receiver: Some(Receiver::new(handle.clone(), parts.options.polling)),
            handle,
            shared: Arc::new(Shared {
                caps: parts.lane.caps,
                role: parts.role,
                options: parts.options.clone(),
                report: parts.report,
                peer: parts.peer,
                reactor: parts.reactor.clone(),
            }),
        };
        let no_runtime = |error: std::io::Error| ConnectionError::NoRuntime(error.to_string());
        let options = parts.options;
        let keepalive = (!options.keepalive_interval.is_zero()).then(|| {
            Keepalive::new(options.keepalive_interval, options.keepalive_timeout, parts.reactor.now())
        });
        let driver = Driver {
            core,
            drive: parts.lane.drive,
            link: parts.link,
            timer: parts.reactor.timer().map_err(no_runtime)?,
            reactor: parts.reactor.clone(),
            keepalive,
            options,
            closing: None,
        };
        parts.reactor.spawn(Box::pin(driver)).map_err(no_runtime)?.detach();
        Ok(connection)
    }

    /// The two directions as handles of their own; the connection stays for reports and for closing.
    ///
    /// # Panics
    /// When the receiver was taken before: there is one. [`Connection::sender`] makes more senders.
    pub fn split(&mut self) -> (Sender, Receiver) {
        let Some(receiver) = self.receiver.take() else {
            panic!("the receiver of this connection was taken before")
        };
        (self.sender.clone(), receiver)
    }

    /// One more sender.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// See [`Sender::alloc`].
    ///
    /// # Errors
    /// As there.
    pub async fn alloc(&self, len: usize) -> Result<PinnedBufMut, AllocFailure> {
        self.sender.alloc(len).await
    }

    /// See [`Sender::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&self, message: impl Into<Message>) -> Send<'_> {
        self.sender.send(message)
    }

    /// See [`Receiver::recv`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// After [`Connection::split`].
    pub async fn recv(&mut self) -> Result<Option<Message>, ConnectionError> {
        let Some(receiver) = &mut self.receiver else { panic!("the receiver of this connection was taken") };
        receiver.recv().await
    }

    /// How this transport was chosen, and why not another.
    pub fn report(&self) -> &SelectionReport {
        &self.shared.report
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.shared.peer
    }

    /// What the lane can do.
    pub fn caps(&self) -> &Caps {
        &self.shared.caps
    }

    /// Which end this is.
    pub fn role(&self) -> Role {
        self.shared.role
    }

    /// Payload bytes moved and copied so far, both directions.
    pub fn ledger(&self) -> LedgerSnapshot {
        self.handle.core().ledger.snapshot()
    }

    /// Finishes sending, and waits until the peer has queued everything that was sent.
    /// Receiving goes on. A `deadline` of zero means the connection's drain time.
    ///
    /// # Errors
    /// The connection failed, or [`ConnectionError::Deadline`].
    pub async fn drain(&self, deadline: Duration) -> Result<(), ConnectionError> {
        let deadline = if deadline.is_zero() { self.shared.options.drain } else { deadline };
        let core = self.handle.core();
        self.sender.finish().await?;
        let reactor = &self.shared.reactor;
        let mut timer = reactor.timer().map_err(|error| ConnectionError::NoRuntime(error.to_string()))?;
        timer.reset(reactor.now() + deadline);
        poll_fn(|cx| {
            let mut tx = core.tx.lock();
            if tx.seq.unacked() == 0 {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = tx.failed.clone() {
                return Poll::Ready(Err(error));
            }
            if timer.poll_expired(cx).is_ready() {
                return Poll::Ready(Err(ConnectionError::Deadline));
            }
            if !tx.idle_wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                tx.idle_wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Ends the connection now, both directions, and tells the peer why. Messages that arrived and
    /// were not received are dropped; what was accepted for sending goes out before the CLOSE.
    pub async fn close(self, code: CloseCode, reason: &str) {
        let core = self.handle.core();
        let mut wakers = Wakers::new();
        {
            let mut rx = core.rx.lock();
            let last_seq = rx.seq.last();
            rx.failed.get_or_insert(ConnectionError::ClosedHere);
            let mut tx = core.tx.lock();
            if tx.failed.is_none() {
                let record = SessionRecord::Close { code, last_seq, reason: reason.into() };
                let _ = core.push_record(&mut tx, &record);
                tx.close_sent = true;
                let _ = core.flush(&mut tx);
                let _ = tx.lane.poll_close(&mut Context::from_waker(&core.tx_waker));
                tx.fail(ConnectionError::ClosedHere, &mut wakers);
            }
        }
        wake_all(wakers);
        core.rx_wake.receiver.wake();
        core.driver.0.wake();
    }
}
