//! One connection: its handles, its driver, and how it ends.

mod byte_stream;
mod core;
mod drained;
mod driver;
mod end;
mod error;
mod file;
mod handle;
mod idle;
mod ingest;
mod lane_alloc;
mod permit;
mod polled;
mod receiver;
mod remote;
#[cfg(all(test, feature = "tokio"))]
mod scripted_tests;
mod send;
mod sender;
mod sink;
mod stats;
mod tracked;
mod turn;
mod tx_state;
mod waiters;
mod waiting;
mod wake;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::channel::oneshot;
use zc_core::memory::{
    BufPool, CopyLedger, LedgerSnapshot, MemoryGroup, Message, PinnedBufMut, RegisterError,
};
use zc_core::transport::{AllocFailure, Caps, ControlLink, Lane, LaneLimits, OneSided, Reactor, Role};
use zc_core::wire::{CloseCode, Keepalive};

pub use self::byte_stream::{BYTE_STREAM_MESSAGE, ByteStream};
pub use self::core::INBOX_SLACK;
pub(crate) use self::core::control_bytes;
pub use self::error::{ConnectionError, SendError, TrySendError};
pub use self::file::{
    FILE_CHUNK_BYTES, FileFault, FileSent, FileWay, MAX_FILE_READS, MAX_FILE_THREADS, MAX_PIPES,
    MAX_PIPES_PER_FILE, SPLICE_MIN_BYTES, SendFile, SendFileError, SendFileOptions,
};
pub use self::permit::Permit;
pub use self::receiver::Receiver;
pub use self::remote::{MAX_REMOTE_READ, RemoteMemory};
pub use self::send::Send;
pub use self::sender::Sender;
pub use self::stats::ConnectionStats;
pub(crate) use self::waiters::{FairQueue, Place};
pub(crate) use self::wake::{quietly, renew};

use self::core::{Core, Halves};
use self::drained::Drained;
use self::driver::Driver;
use self::end::Obituary;
use self::handle::Handle;
use self::idle::Idle;
use crate::event::{Connected, Observer};
use crate::identity::PeerIdentity;
use crate::options::ConnectionOptions;
use crate::report::SelectionReport;
use crate::time::later;

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
    /// The peer takes REMOTE frames.
    pub(crate) peer_remote: bool,
    pub(crate) options: ConnectionOptions,
    pub(crate) report: Arc<SelectionReport>,
    pub(crate) peer: PeerIdentity,
    pub(crate) observer: Arc<dyn Observer>,
    /// When the control link was open.
    pub(crate) began: Instant,
}

/// A connection to a peer. Dropping all its handles closes it: what was accepted for sending is still
/// pushed out, within the drain time.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://connection").await?;
/// # let (mut client, mut server) = tokio::try_join!(fabric.connect("zc+mem://connection"), listener.accept())?;
/// println!("{}", client.report()); // which transport, and why not another
/// client.send(&b"ping"[..]).await?;
/// assert_eq!(server.recv().await?.unwrap(), b"ping"[..]);
/// server.send(&b"pong"[..]).await?;
/// assert_eq!(client.recv().await?.unwrap(), b"pong"[..]);
///
/// client.drain(std::time::Duration::from_secs(1)).await?; // the peer has queued all of it
/// assert!(server.recv().await?.is_none());
/// # Ok(()) }
/// ```
pub struct Connection {
    sender: Sender,
    receiver: Option<Receiver>,
    caps: Box<Caps>,
    role: Role,
    drain: Duration,
    report: Arc<SelectionReport>,
    peer: PeerIdentity,
}

impl Connection {
    /// Tells the observer that it is up, before anything can end it.
    pub(crate) fn start(parts: Parts) -> Result<Self, ConnectionError> {
        let no_runtime = |error: std::io::Error| ConnectionError::NoRuntime(error.to_string());
        let Parts { lane, link, role, reactor, options, report, peer, .. } = parts;
        let timer = reactor.timer().map_err(no_runtime)?;
        let (ended, ending) = oneshot::channel();
        let mut caps = lane.caps;
        caps.one_sided = match (&lane.remote, caps.one_sided) {
            (Some(_), _) => OneSided::Native,
            (None, OneSided::Emulated) if parts.peer_remote => OneSided::Emulated,
            _ => OneSided::None,
        };
        let mut limits = parts.limits;
        // What the lane can't carry is refused like what the peer does not take.
        limits.send_max_message = limits.send_max_message.min(caps.max_message);
        let core = Core::new(Halves {
            tx: lane.tx,
            rx: lane.rx,
            leases: lane.leases,
            remote: (caps.one_sided, lane.remote),
            own_memory: caps.sources.connection && !caps.sources.pool,
            limits,
            pool: parts.pool,
            ledger: parts.ledger,
            reactor: reactor.clone(),
            ending: ending.shared(),
            polling: options.polling,
        });
        let now = core.started;
        let keepalive = (!options.keepalive_interval.is_zero())
            .then(|| Keepalive::new(options.keepalive_interval, options.keepalive_timeout, now));
        let connected = Connected {
            role,
            peer: peer.clone(),
            report: report.clone(),
            elapsed: now.saturating_duration_since(parts.began),
        };
        let handle = Handle::new(core.clone());
        let driver = Driver {
            drive: lane.drive,
            link,
            link_end: None,
            timer,
            timer_at: None,
            look_at: None,
            keepalive,
            keepalive_at: None,
            idle: options.idle.map(|after| Idle::new(after, now)),
            went_on: false,
            options: options.clone(),
            closing: None,
            obituary: Obituary::new(core.clone(), parts.observer, connected, ended),
            core,
        };
        // In front of the driver, which ends what nobody uses.
        let connection = Self {
            sender: Sender::new(handle.clone()),
            receiver: Some(Receiver::new(handle, options.polling, &caps)),
            caps: Box::new(caps),
            role,
            drain: options.drain,
            report,
            peer,
        };
        // Nobody looks at the lane yet.
        connection.sender.core().watch.look();
        reactor.spawn(Box::pin(driver)).map_err(no_runtime)?.detach();
        Ok(connection)
    }

    /// The two directions as handles of their own; the connection stays for reports and for closing.
    ///
    /// # Panics
    /// When the receiver was taken before: there is one. That is a mistake in the program's text, whatever a peer
    /// does, so it is no error that every caller would have to handle. Code that can't know takes
    /// [`Connection::sender`] and [`Connection::take_receiver`].
    pub fn split(&mut self) -> (Sender, Receiver) {
        let Some(receiver) = self.take_receiver() else {
            panic!("the receiver of this connection was taken before")
        };
        (self.sender(), receiver)
    }

    /// The receiver, once. This handle can't receive any more.
    pub fn take_receiver(&mut self) -> Option<Receiver> {
        self.receiver.take()
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

    /// Lets the lane send memory of a group without a copy.
    pub(crate) fn join_group(&self, group: &MemoryGroup) -> Result<(), RegisterError> {
        self.sender.core().lock_tx().lane.join_group(group)
    }

    /// Ends that.
    pub(crate) fn leave_group(&self, group: &MemoryGroup) {
        self.sender.core().lock_tx().lane.leave_group(group);
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
    /// As there; [`ConnectionError::ReceiverTaken`] after [`Connection::split`].
    pub async fn recv(&mut self) -> Result<Option<Message>, ConnectionError> {
        match &mut self.receiver {
            Some(receiver) => receiver.recv().await,
            None => Err(ConnectionError::ReceiverTaken),
        }
    }

    /// [`Receiver::try_recv`].
    ///
    /// # Errors
    /// As there; [`ConnectionError::ReceiverTaken`] after [`Connection::split`].
    pub fn try_recv(&mut self) -> Result<Option<Message>, ConnectionError> {
        self.receiver.as_mut().ok_or(ConnectionError::ReceiverTaken)?.try_recv()
    }

    /// The connection as a stream of bytes, for code that knows nothing of messages.
    ///
    /// # Errors
    /// [`ConnectionError::ReceiverTaken`] after [`Connection::split`].
    pub fn into_byte_stream(mut self) -> Result<ByteStream, ConnectionError> {
        let receiver = self.receiver.take().ok_or(ConnectionError::ReceiverTaken)?;
        Ok(ByteStream::new(self, receiver))
    }

    /// What the connection has done so far, in numbers.
    pub fn stats(&self) -> ConnectionStats {
        self.sender.core().stats()
    }

    /// Tells the peer that no message beyond those that have arrived is taken (GOAWAY), for instance because
    /// this side is about to stop: what is under way is finished, and nothing new comes.
    ///
    /// What had arrived is still received and acknowledged; after it, `recv` returns `None`. This side goes
    /// on sending. At the peer, sends that came too late and all later ones fail with
    /// [`ConnectionError::PeerGoesAway`] and [`Delivery::NotSent`](zc_core::wire::Delivery::NotSent), so that it can
    /// repeat them on another connection; it goes on receiving. Saying it again changes nothing.
    ///
    /// # Errors
    /// The connection had failed.
    pub fn go_away(&self, reason: &str) -> Result<(), ConnectionError> {
        self.sender.core().go_away(CloseCode::GOING_AWAY, reason)
    }

    /// How this transport was chosen, and why not another.
    pub fn report(&self) -> &SelectionReport {
        &self.report
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// What the lane can do.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Which end this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Payload bytes moved and copied so far, both directions.
    pub fn ledger(&self) -> LedgerSnapshot {
        self.sender.core().ledger.snapshot()
    }

    /// Finishes sending, and waits until the peer has queued everything that was sent.
    /// Receiving goes on. A `deadline` of zero means the connection's drain time.
    ///
    /// # Errors
    /// The connection failed, [`ConnectionError::Deadline`], or [`ConnectionError::PeerGoesAway`]: the peer has all
    /// that it takes, which is not all that was sent.
    pub async fn drain(&self, deadline: Duration) -> Result<(), ConnectionError> {
        let deadline = if deadline.is_zero() { self.drain } else { deadline };
        let core = self.sender.core();
        self.sender.finish().await?;
        let mut timer =
            core.reactor.timer().map_err(|error| ConnectionError::NoRuntime(error.to_string()))?;
        timer.reset(later(core.reactor.now(), deadline));
        let mut drained = Drained { core, ticket: None };
        poll_fn(|cx| match drained.poll(cx) {
            Poll::Pending => timer.poll_expired(cx).map(|()| Err(ConnectionError::Deadline)),
            ready => ready,
        })
        .await
    }

    /// Waits for the end of the connection, whoever ends it and however, and says why.
    ///
    /// The future costs nothing until then, may be cloned off as often as needed, and does not keep the connection
    /// open. What arrived before the end can still be received.
    pub fn closed(&self) -> impl Future<Output = ConnectionError> + std::marker::Send + use<> {
        self.sender.closed()
    }

    /// Ends the connection now, both directions, and tells the peer why. What the lane has accepted goes out
    /// before the CLOSE; messages that sinks and permits had sent without room, and that still wait for it, do not.
    ///
    /// Messages that had arrived are `Delivered` for the peer. They are dropped with this handle, unless the receiver was
    /// split off: that one returns them first, and then [`ConnectionError::ClosedHere`]. Messages that come
    /// after this call are dropped, and `NotSent` for the peer.
    pub async fn close(self, code: CloseCode, reason: &str) {
        self.sender.core().close(code, reason, ConnectionError::ClosedHere);
    }
}
