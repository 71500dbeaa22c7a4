//! The sending half.
//!
//! What the socket takes at once is written to it directly, by one system call as on any other engine: an operation of the ring
//! would cost that call as well, and its completion a wake-up. Only when the socket is full an operation waits for room: one
//! at a time, which sends what was queued when it began, so that order holds. What is queued while it flies goes after it.
//!
//! ```text
//! queue [ stage | header, payload | stage ... ] --plan---> sendmsg --n bytes--> advance
//!                                            \--full: batch--> SENDMSG --n bytes--> advance
//!                            more is queued behind, in a stage of its own
//! ```
//!
//! A large payload may go out of its own memory (`SEND_ZC`), its header in front of it in the ordinary way. The result of such an
//! operation moves the queue on; the kernel lets go of the memory later, which only its completion waits for ([`ZeroCopy`]).
//! What waits in a pipe is spliced, and where there is no room an operation waits for some.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use futures::task::ArcWake;
use parking_lot::Mutex;
use rustix::net::Shutdown;
use zc_core::memory::{AllocWaiter, BufPool, CopyLedger, Message, PinnedBufMut};
use zc_core::stream::{Life, Pieces, Sending, Wakers};
use zc_core::transport::{
    AllocFailure, Batch, Frame, LaneError, LaneTx, OfferContext, PipedFrame, PipedRejected, Reactor,
    SendRejected, SendReport, SendToken,
};

use super::linger::Linger;
use super::zero_copy::ZeroCopy;
use crate::engine::{Op, SocketTx, Tenant, ZeroCopySend};
use crate::limits::BATCH_BYTES;
use crate::sys::survives_sigpipe;
use crate::zero_copy::{ZeroCopyAttempt, ZeroCopyPolicy};

/// What the sending half and the driver share.
pub(super) struct Shared {
    pub(super) core: Mutex<Core>,
    pub(super) wakers: Arc<Wakers>,
    /// Rings the bell.
    pub(super) waker: Waker,
    pub(super) life: Life,
    /// They end a while after the last lane of the runtime.
    _engines: Tenant,
}

/// Rings when what flies may have landed, or the kernel may have let go of memory: until then nobody asks the engine, which has
/// others to serve.
struct Bell {
    rung: AtomicBool,
    wakers: Arc<Wakers>,
}

impl ArcWake for Bell {
    fn wake_by_ref(this: &Arc<Self>) {
        this.rung.store(true, Ordering::Release);
        ArcWake::wake_by_ref(&this.wakers);
    }
}

impl Shared {
    pub(super) fn new(
        socket: SocketTx,
        policy: ZeroCopyPolicy,
        engines: Tenant,
        cx: &OfferContext,
        sending: Sending,
        wakers: Arc<Wakers>,
    ) -> Arc<Self> {
        let life = Life::default();
        let [bell, release] =
            [(); 2].map(|()| Arc::new(Bell { rung: AtomicBool::new(false), wakers: wakers.clone() }));
        let waker = futures::task::waker(bell.clone());
        let core = Core {
            socket,
            sending,
            bell,
            release_waker: futures::task::waker(release.clone()),
            release,
            zero_copy: ZeroCopy::new(policy),
            reactor: cx.reactor.clone(),
            ledger: cx.ledger.clone(),
            flying: None,
            spare: Message::new(),
            life: life.clone(),
            was_full: false,
        };
        Arc::new(Self { core: Mutex::new(core), wakers, waker, life, _engines: engines })
    }

    fn poll_flush(&self, core: &mut Core, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let done = core.poll_flush(&self.waker);
        if done.is_ready() {
            return done;
        }
        // Only now, so that it costs nothing as a rule; and once more, for a wake-up that came before.
        self.wakers.tx.register(cx.waker());
        core.poll_flush(&self.waker)
    }
}

/// What is under way.
struct Flying {
    flight: Flight,
    bytes: usize,
    /// The engine has it.
    begun: bool,
}

enum Flight {
    /// Frames in the ordinary way.
    Batch(Op<(usize, Message)>),
    /// Nothing is sent: it waits for room.
    Room(Op<()>),
    /// A payload out of its own memory, or a part of it.
    ZeroCopy(ZeroCopySend, SendToken, ZeroCopyAttempt),
}

/// What became of it.
enum Landed {
    Sent(usize),
    /// What is next is to be tried again: there is room, or it goes the ordinary way now.
    Again,
}

pub(super) struct Core {
    socket: SocketTx,
    sending: Sending,
    bell: Arc<Bell>,
    /// For what the kernel lets go of.
    release: Arc<Bell>,
    release_waker: Waker,
    zero_copy: ZeroCopy,
    reactor: Arc<dyn Reactor>,
    ledger: Arc<CopyLedger>,
    flying: Option<Flying>,
    /// Room for the pieces of the next one.
    spare: Message,
    life: Life,
    /// The last one was cut short: the next one goes only when the peer's side has taken something.
    was_full: bool,
}

impl Core {
    /// Changes when something went out or came back.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.sending.written_bytes(), self.zero_copy.freed())
    }

    fn fail(&mut self, error: LaneError) -> LaneError {
        // The engine has what is under way until the kernel lets go of it (M2).
        self.flying = None;
        self.zero_copy.abandon();
        self.sending.fail(error)
    }

    pub(super) fn poll_flush(&mut self, waker: &Waker) -> Poll<Result<(), LaneError>> {
        self.sending.check()?;
        let cx = &mut Context::from_waker(waker);
        self.sending.grant(cx);
        let done = self.write_all(cx);
        self.reap();
        done
    }

    fn write_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        loop {
            ready!(self.poll_landed(cx))?;
            if self.sending.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.write_some()?;
        }
    }

    /// Hears what the kernel has let go of.
    fn reap(&mut self) {
        if self.release.rung.swap(false, Ordering::Acquire) {
            self.look_for_released();
        }
    }

    fn look_for_released(&mut self) {
        let Self { zero_copy, sending, ledger, reactor, release_waker, .. } = self;
        let cx = &mut Context::from_waker(release_waker);
        zero_copy.reap(cx, || reactor.now(), ledger, |token, copied| sending.let_go(token, copied));
    }

    /// Writes what the socket takes, or begins an operation; nothing is under way.
    fn write_some(&mut self) -> Result<(), LaneError> {
        if let Some(bytes) = self.sending.in_one_piece() {
            let (written, offered) = (self.socket.try_send(bytes), bytes.len());
            return self.written_now(written, offered, false);
        }
        let Self { sending, zero_copy, reactor, socket, .. } = self;
        let mut allowed = zero_copy.may_begin(|| reactor.now());
        loop {
            let mut pieces = Pieces::new();
            let plan = sending.plan(allowed, &mut pieces);
            if let Some((piped, left)) = plan.pipe {
                let len = left.min(BATCH_BYTES);
                let spliced = socket.try_splice(piped.source().as_fd(), len, plan.more || len < left);
                drop(pieces);
                return self.spliced_now(spliced, len);
            }
            let offered = pieces.iter().map(|piece| piece.len()).sum();
            let Some((token, _)) = plan.zero_copy else {
                let written = socket.try_send_pieces(&pieces, plan.more);
                drop(pieces);
                return self.written_now(written, offered, allowed);
            };
            if let Some(attempt) = zero_copy.attempt(offered, reactor.now()) {
                drop(pieces);
                self.begin_zero_copy(token, attempt);
                return Ok(());
            }
            allowed = false;
        }
    }

    /// What was moved out of a pipe. Whoever drops the lane meanwhile drops the pipe: no operation has it (M2).
    fn spliced_now(&mut self, spliced: io::Result<usize>, offered: usize) -> Result<(), LaneError> {
        match spliced {
            Ok(n) if n > 0 => {
                self.advance(n, offered);
                Ok(())
            }
            Ok(_) => Err(self.fail(LaneError::PeerGone("nothing could be written"))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.was_full = true;
                let flight = Flight::Room(self.socket.writable());
                self.flying = Some(Flying { flight, bytes: 0, begun: false });
                Ok(())
            }
            Err(error) => Err(self.fail(LaneError::os("splice", &error))),
        }
    }

    /// What was written of what was offered; if that is not all an operation goes on.
    fn written_now(
        &mut self,
        written: io::Result<usize>,
        offered: usize,
        zero_copy: bool,
    ) -> Result<(), LaneError> {
        match written {
            Ok(n) if n > 0 => {
                self.advance(n, offered);
                if n < offered {
                    self.begin(zero_copy);
                }
                Ok(())
            }
            Ok(_) => Err(self.fail(LaneError::PeerGone("nothing could be written"))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.was_full = true;
                self.begin(zero_copy);
                Ok(())
            }
            Err(error) => Err(self.fail(LaneError::os("write", &error))),
        }
    }

    fn advance(&mut self, n: usize, offered: usize) {
        // What is only put into the kernel's buffer says nothing about the peer.
        if self.was_full {
            self.life.show();
        }
        self.was_full = n < offered;
        let zero_copy = &mut self.zero_copy;
        self.sending.advance(n, |token| zero_copy.written(token));
    }

    fn begin(&mut self, zero_copy: bool) {
        let mut batch = std::mem::take(&mut self.spare);
        let more = self.sending.batch(BATCH_BYTES, zero_copy, &mut batch);
        let bytes = batch.len();
        let flight = Flight::Batch(self.socket.send_batch(batch, more));
        self.flying = Some(Flying { flight, bytes, begun: false });
    }

    /// The payload at the head of the queue, whose header is out.
    fn begin_zero_copy(&mut self, token: SendToken, attempt: ZeroCopyAttempt) {
        let mut payload = Message::new();
        self.sending.batch(BATCH_BYTES, true, &mut payload);
        let bytes = payload.len();
        let send = match payload.segments() {
            [one] => self.socket.send_zero_copy(one.clone(), false),
            _ => self.socket.send_message_zero_copy(payload, false),
        };
        self.flying = Some(Flying { flight: Flight::ZeroCopy(send, token, attempt), bytes, begun: false });
    }

    /// Ready: nothing is under way. `cx` is the bell's.
    fn poll_landed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let Some(flying) = &mut self.flying else { return Poll::Ready(Ok(())) };
        if flying.begun && !self.bell.rung.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        flying.begun = true;
        let sent = match &mut flying.flight {
            Flight::Batch(op) => ready!(Pin::new(op).poll(cx)).map(|(n, batch)| (n, Some(batch))),
            Flight::Room(op) => ready!(Pin::new(op).poll(cx)).map(|()| (0, None)),
            Flight::ZeroCopy(send, ..) => ready!(send.poll_sent(cx)).map(|n| (n, None)),
        };
        let bytes = flying.bytes;
        let landed = match (sent, self.flying.take().map(|flying| flying.flight)) {
            (Ok((n, None)), Some(Flight::ZeroCopy(send, token, attempt))) => {
                self.zero_copy.sent(send, attempt, token, n);
                Ok(Landed::Sent(n))
            }
            (Err(error), Some(Flight::ZeroCopy(_, _, attempt))) if goes_the_ordinary_way(&error) => {
                let forever = error.raw_os_error() == Some(libc::EOPNOTSUPP);
                self.zero_copy.refused(attempt, forever, self.reactor.now());
                Ok(Landed::Again)
            }
            (Ok(_), Some(Flight::Room(_))) => Ok(Landed::Again),
            (Ok((n, batch)), _) => {
                self.spare = batch.unwrap_or_default();
                self.spare.clear();
                Ok(Landed::Sent(n))
            }
            (Err(error), _) => Err(error),
        };
        Poll::Ready(match landed {
            Ok(Landed::Sent(0)) => Err(self.fail(LaneError::PeerGone("nothing could be written"))),
            Ok(Landed::Sent(n)) => {
                self.advance(n, bytes);
                // Also for the first look, which has us woken.
                if !self.zero_copy.is_at_rest() {
                    self.look_for_released();
                }
                Ok(())
            }
            Ok(Landed::Again) => Ok(()),
            Err(error) => Err(self.fail(LaneError::os("write", &error))),
        })
    }

    /// Ready: a message of `len` bytes will be taken.
    fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        len: usize,
        shared: &Shared,
    ) -> Poll<Result<(), LaneError>> {
        self.sending.check_message(len)?;
        if !self.sending.has_room()
            && let Poll::Ready(Err(e)) = self.poll_flush(&shared.waker)
        {
            return Poll::Ready(Err(e));
        }
        if self.sending.may_send() {
            return Poll::Ready(Ok(()));
        }
        // Registered before the last look: a grant in between wakes us.
        shared.wakers.tx.register(cx.waker());
        // What the peer waits for must be out before we wait for the peer.
        if let Poll::Ready(Err(e)) = self.poll_flush(&shared.waker) {
            return Poll::Ready(Err(e));
        }
        if self.sending.may_send() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Ends our direction; nothing is under way.
    fn shut_down(&mut self) -> Result<(), LaneError> {
        if self.sending.is_shut() {
            return Ok(());
        }
        self.sending.shut();
        match rustix::net::shutdown(&self.socket, Shutdown::Write) {
            // One that is not connected any more counts as shut.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
            Err(errno) => Err(self.fail(LaneError::os("shutdown", &io::Error::from(errno)))),
        }
    }
}

/// Of a send out of the memory itself: the kernel's book-keeping is full (`optmem_max`, `RLIMIT_MEMLOCK`), the thread ended that
/// it was begun in, or the socket can't do that.
fn goes_the_ordinary_way(error: &io::Error) -> bool {
    let errnos = [libc::ENOBUFS, libc::ENOMEM, libc::ECANCELED, libc::EINTR, libc::EOPNOTSUPP];
    error.raw_os_error().is_some_and(|errno| errnos.contains(&errno))
}

impl Drop for Core {
    fn drop(&mut self) {
        let flying = match self.flying.take().map(|flying| flying.flight) {
            Some(Flight::ZeroCopy(send, ..)) => Some(send),
            _ => None,
        };
        let rest = std::mem::replace(&mut self.zero_copy, ZeroCopy::off());
        Linger::start(self.socket.clone(), rest, flying, self.ledger.clone(), self.reactor.clone());
    }
}

/// The sending half.
pub(super) struct Tx {
    shared: Arc<Shared>,
    pool: BufPool,
    waiter: AllocWaiter,
}

impl Tx {
    pub(super) fn new(shared: Arc<Shared>, pool: BufPool) -> Self {
        Self { shared, pool, waiter: AllocWaiter::new() }
    }
}

impl LaneTx for Tx {
    fn poll_alloc(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<PinnedBufMut, AllocFailure>> {
        self.shared.core.lock().sending.check()?;
        self.pool.poll_alloc(len, &mut self.waiter, cx).map_err(AllocFailure::from)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), LaneError>> {
        self.shared.core.lock().poll_room(cx, len, &self.shared)
    }

    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        let mut core = self.shared.core.lock();
        let zero_copy_min = core.zero_copy.min_bytes();
        core.sending.start_send(frame, report, zero_copy_min)
    }

    /// Splicing has no flag that keeps the signal of a broken pipe away, so it is only for processes that do not die of it.
    /// For the moment of the call the socket does not block, also for who has a duplicate of it.
    fn takes_pipes(&self) -> bool {
        survives_sigpipe()
    }

    fn start_send_piped(&mut self, frame: PipedFrame, report: bool) -> Result<SendToken, PipedRejected> {
        self.shared.core.lock().sending.start_send_piped(frame, report)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let mut core = self.shared.core.lock();
        self.shared.poll_flush(&mut core, cx)
    }

    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<(SendToken, SendReport)>,
    ) -> Poll<Result<(), LaneError>> {
        self.shared.wakers.tx.register(cx.waker());
        let mut core = self.shared.core.lock();
        core.reap();
        core.sending.report(out);
        if !out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        core.sending.check()?;
        Poll::Pending
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let mut core = self.shared.core.lock();
        // Under one lock: the driver may put a grant into the queue, and nothing may be left there.
        ready!(self.shared.poll_flush(&mut core, cx))?;
        Poll::Ready(core.shut_down())
    }
}
