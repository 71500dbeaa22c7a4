//! The sending half.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::{Mutex, MutexGuard};
use zc_core::memory::{AllocWaiter, BufPool, CopyLedger, PinnedBufMut};
use zc_core::stream::{Life, Pieces, Sending, Wakers};
use zc_core::transport::{
    AllocFailure, Batch, Frame, LaneError, LaneTx, OfferContext, PipedFrame, PipedRejected, Reactor,
    SendRejected, SendReport, SendToken,
};

use super::linger::Linger;
use super::zero_copy::ZeroCopy;
use crate::io::{ByteIo, WriteMode};
use crate::limits::ZERO_COPY_MIN;

/// What the sending half and the driver share.
pub(super) struct Shared {
    pub(super) core: Mutex<Core>,
    pub(super) wakers: Arc<Wakers>,
    /// Wakes all of them.
    pub(super) waker: Waker,
    pub(super) life: Life,
}

impl Shared {
    pub(super) fn new(io: ByteIo, cx: &OfferContext, sending: Sending, wakers: Arc<Wakers>) -> Arc<Self> {
        let life = Life::default();
        let core = Core {
            reactor: cx.reactor.clone(),
            zero_copy: ZeroCopy::new(&io),
            io,
            ledger: cx.ledger.clone(),
            sending,
            reaping: false,
            life: life.clone(),
            was_full: false,
        };
        let waker = futures::task::waker(wakers.clone());
        Arc::new(Self { core: Mutex::new(core), wakers, waker, life })
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

    fn poll_shutdown(&self, core: &mut Core, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        if core.sending.is_shut() {
            return Poll::Ready(Ok(()));
        }
        self.wakers.tx.register(cx.waker());
        let done = ready!(core.io.poll_shutdown(&mut Context::from_waker(&self.waker)));
        core.sending.shut();
        Poll::Ready(done.map_err(|e| core.fail(LaneError::os("shutdown", &e))))
    }

    /// Ends a use of the core by the sending half. No readiness tells when the kernel gives buffers back: the
    /// driver must know that there is something to wait for.
    fn leave(&self, mut core: MutexGuard<'_, Core>) {
        let news = core.holds_buffers() && !core.reaping;
        core.reaping |= news;
        drop(core);
        if news {
            self.wakers.drive.wake();
        }
    }
}

pub(super) struct Core {
    io: ByteIo,
    reactor: Arc<dyn Reactor>,
    ledger: Arc<CopyLedger>,
    sending: Sending,
    zero_copy: ZeroCopy,
    /// The driver looks after what the kernel holds.
    reaping: bool,
    life: Life,
    /// The last write was cut short: the next one goes only when the peer's side has taken something.
    was_full: bool,
}

impl Core {
    fn holds_buffers(&self) -> bool {
        !self.zero_copy.is_idle()
    }

    /// For the driver: whether it has to look again soon.
    pub(super) fn goes_on_reaping(&mut self) -> bool {
        self.reaping = self.holds_buffers();
        self.reaping
    }

    /// Changes when something went out or came back.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.sending.written_bytes(), self.zero_copy.freed())
    }

    fn fail(&mut self, error: LaneError) -> LaneError {
        self.zero_copy.abandon();
        self.sending.fail(error)
    }

    pub(super) fn poll_flush(&mut self, waker: &Waker) -> Poll<Result<(), LaneError>> {
        self.sending.check()?;
        let cx = &mut Context::from_waker(waker);
        self.sending.grant(cx);
        let done = self.write_all(cx);
        // Also when the socket is full: completions that nobody takes would wake us again and again.
        self.reap();
        done
    }

    fn write_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        while !self.sending.is_empty() {
            match ready!(self.write_some(cx)) {
                Ok((n, offered)) if n > 0 => {
                    // What is only put into the kernel's buffer says nothing about the peer.
                    if self.was_full {
                        self.life.show();
                    }
                    self.was_full = n < offered;
                    let zero_copy = &mut self.zero_copy;
                    self.sending.advance(n, |token| zero_copy.written(token));
                }
                Ok(_) => return Poll::Ready(Err(self.fail(LaneError::PeerGone("nothing could be written")))),
                Err(e) => return Poll::Ready(Err(self.fail(LaneError::os("write", &e)))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Bytes written, and those that were offered.
    fn write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(usize, usize)>> {
        let Self { sending, io, zero_copy, .. } = self;
        if let Some(bytes) = sending.in_one_piece() {
            return io.poll_write_one(cx, bytes).map_ok(|n| (n, bytes.len()));
        }
        let mut allowed = zero_copy.may_send();
        loop {
            let mut pieces = Pieces::new();
            let plan = sending.plan(allowed, &mut pieces);
            if let Some((piped, len)) = plan.pipe {
                return io.poll_splice(cx, piped, len, plan.more).map_ok(|n| (n, len));
            }
            let offered = io.offers(&pieces);
            let mode = WriteMode { more: plan.more, zero_copy: plan.zero_copy.is_some() };
            let done = ready!(io.poll_write(cx, &pieces, mode));
            match (done, plan.zero_copy) {
                // The kernel's book-keeping is full (optmem_max, RLIMIT_MEMLOCK): this once it copies.
                (Err(e), Some(_)) if e.raw_os_error() == Some(libc::ENOBUFS) => allowed = false,
                (Ok(n), Some((token, payload))) if n > 0 => {
                    zero_copy.sent(token, payload, n);
                    return Poll::Ready(Ok((n, offered)));
                }
                (done, _) => return Poll::Ready(done.map(|n| (n, offered))),
            }
        }
    }

    pub(super) fn reap(&mut self) {
        let Self { zero_copy, sending, io, ledger, .. } = self;
        let ByteIo::Socket { io, .. } = io else { return };
        if !zero_copy.is_idle() {
            zero_copy.reap(io.fd(), ledger, |token, copied| sending.let_go(token, copied));
        }
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
}

impl Drop for Core {
    fn drop(&mut self) {
        if let ByteIo::Socket { io, .. } = &self.io
            && !self.zero_copy.is_idle()
        {
            let rest = std::mem::take(&mut self.zero_copy);
            Linger::start(io.clone(), rest, self.ledger.clone(), self.reactor.clone());
        }
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
        let mut core = self.shared.core.lock();
        let room = core.poll_room(cx, len, &self.shared);
        self.shared.leave(core);
        room
    }

    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        let mut core = self.shared.core.lock();
        let zero_copy_min = core.zero_copy.is_enabled().then_some(ZERO_COPY_MIN);
        core.sending.start_send(frame, report, zero_copy_min)
    }

    fn takes_pipes(&self) -> bool {
        self.shared.core.lock().io.can_splice()
    }

    fn start_send_piped(&mut self, frame: PipedFrame, report: bool) -> Result<SendToken, PipedRejected> {
        self.shared.core.lock().sending.start_send_piped(frame, report)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let mut core = self.shared.core.lock();
        let done = self.shared.poll_flush(&mut core, cx);
        self.shared.leave(core);
        done
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
        let done = match self.shared.poll_flush(&mut core, cx) {
            Poll::Ready(Ok(())) => self.shared.poll_shutdown(&mut core, cx),
            not_yet => not_yet,
        };
        self.shared.leave(core);
        done
    }
}
