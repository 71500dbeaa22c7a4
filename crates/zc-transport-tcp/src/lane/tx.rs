//! The sending half.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::{Mutex, MutexGuard};
use zc_core::memory::{AllocWaiter, BufPool, CopyLedger, KernelCopied, Message, PinnedBufMut};
use zc_core::transport::{
    AllocFailure, Batch, Frame, FrameKind, LaneError, LaneTx, OfferContext, Reactor, SendRejected,
    SendReport, SendToken,
};
use zc_core::wire::{FrameHeader, FrameType, frame_credit_bytes};

use super::credit::Credit;
use super::life::Life;
use super::linger::Linger;
use super::pop_if;
use super::queue::{Pieces, Queue, Whole};
use super::wakers::Wakers;
use super::zero_copy::ZeroCopy;
use crate::io::{ByteIo, WriteMode};
use crate::limits::{
    COALESCE_MAX, MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, MAX_QUEUED_RECORD_BYTES, ZERO_COPY_MIN,
};

/// A send whose end was asked for.
struct Asked {
    token: SendToken,
    /// Stream position at which it is all written.
    end: u64,
    /// The kernel still holds it.
    held: bool,
    copied: bool,
}

/// What the sending half and the driver share.
pub(super) struct Shared {
    pub(super) core: Mutex<Core>,
    pub(super) wakers: Arc<Wakers>,
    /// Wakes all of them.
    pub(super) waker: Waker,
    pub(super) life: Life,
}

impl Shared {
    pub(super) fn new(io: ByteIo, cx: &OfferContext, credit: Arc<Credit>) -> Arc<Self> {
        let (wakers, life) = (Arc::new(Wakers::default()), Life::default());
        let core = Core {
            reactor: cx.reactor.clone(),
            zero_copy: ZeroCopy::new(&io),
            io,
            pool: cx.pool.with_origin("tcp tx"),
            ledger: cx.ledger.clone(),
            max_message: cx.limits.send_max_message as usize,
            credit,
            queue: Queue::default(),
            asked: VecDeque::new(),
            tokens: 0,
            spent: 0,
            enqueued: 0,
            written: 0,
            failed: None,
            shut: false,
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
        if core.shut {
            return Poll::Ready(Ok(()));
        }
        self.wakers.tx.register(cx.waker());
        let done = ready!(core.io.poll_shutdown(&mut Context::from_waker(&self.waker)));
        core.shut = true;
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
    pool: BufPool,
    ledger: Arc<CopyLedger>,
    max_message: usize,
    credit: Arc<Credit>,
    queue: Queue,
    zero_copy: ZeroCopy,
    asked: VecDeque<Asked>,
    tokens: u64,
    /// Credit.
    spent: u64,
    enqueued: u64,
    written: u64,
    failed: Option<LaneError>,
    shut: bool,
    /// The driver looks after what the kernel holds.
    reaping: bool,
    life: Life,
    /// The last write was cut short: the next one goes only when the peer's side has taken something.
    was_full: bool,
}

impl Core {
    pub(super) fn check(&self) -> Result<(), LaneError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

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
        (self.written, self.zero_copy.freed())
    }

    fn fail(&mut self, error: LaneError) -> LaneError {
        self.queue.clear();
        self.zero_copy.abandon();
        self.failed = Some(error.clone());
        error
    }

    fn has_room(&self) -> bool {
        self.queue.len() < MAX_QUEUED_FRAMES
            && self.queue.bytes() < MAX_QUEUED_BYTES
            && self.asked.len() < MAX_QUEUED_FRAMES
    }

    fn enqueue(&mut self, header: FrameHeader, payload: Message, report: bool) -> SendToken {
        self.tokens += 1;
        let token = SendToken(self.tokens);
        let len = payload.len();
        let (is_data, counted) = (header.kind == FrameType::Data, header.kind.is_payload());
        let is_record = header.kind == FrameType::Session;
        let header = header.encode();
        self.enqueued += (header.len() + len) as u64;
        self.spent += if is_data { frame_credit_bytes(len) } else { 0 };
        let ledger = if counted { Some(&*self.ledger) } else { None };
        if len <= COALESCE_MAX && self.queue.stage(&header, &payload, is_record, &self.pool, ledger) {
            if counted {
                self.ledger.kernel_copied(KernelCopied::Known(len as u64));
            }
        } else {
            let zero_copy = self.zero_copy.is_enabled() && len >= ZERO_COPY_MIN;
            self.queue.push(Whole { header, payload, token, zero_copy, counted, is_record });
        }
        if report {
            self.asked.push_back(Asked { token, end: self.enqueued, held: false, copied: false });
        }
        token
    }

    pub(super) fn poll_flush(&mut self, waker: &Waker) -> Poll<Result<(), LaneError>> {
        self.check()?;
        let cx = &mut Context::from_waker(waker);
        if !self.shut
            && let Some(total) = self.credit.due(cx)
        {
            self.enqueue(FrameHeader::credit(total), Message::new(), false);
        }
        let done = self.write_all(cx);
        // Also when the socket is full: completions that nobody takes would wake us again and again.
        self.reap();
        done
    }

    fn write_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        while !self.queue.is_empty() {
            match ready!(self.write_some(cx)) {
                Ok((n, offered)) if n > 0 => {
                    // What is only put into the kernel's buffer says nothing about the peer.
                    if self.was_full {
                        self.life.show();
                    }
                    self.was_full = n < offered;
                    self.advance(n);
                }
                Ok(_) => return Poll::Ready(Err(self.fail(LaneError::PeerGone("nothing could be written")))),
                Err(e) => return Poll::Ready(Err(self.fail(LaneError::os("write", &e)))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Bytes written, and those that were offered.
    fn write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(usize, usize)>> {
        let Self { queue, io, zero_copy, .. } = self;
        if let Some(bytes) = queue.in_one_piece() {
            return io.poll_write_one(cx, bytes).map_ok(|n| (n, bytes.len()));
        }
        let mut allowed = zero_copy.may_send();
        loop {
            let mut pieces = Pieces::new();
            let plan = queue.plan(allowed, &mut pieces);
            let offered = io.offers(&pieces);
            let mode = WriteMode { more: plan.more, zero_copy: plan.zero_copy.is_some() };
            let done = ready!(io.poll_write(cx, &pieces, mode));
            match (done, plan.zero_copy) {
                // The kernel's book-keeping is full (optmem_max, RLIMIT_MEMLOCK): this once it copies.
                (Err(e), Some(_)) if e.raw_os_error() == Some(libc::ENOBUFS) => allowed = false,
                (Ok(n), Some(whole)) if n > 0 => {
                    zero_copy.sent(whole.token, &whole.payload, n);
                    return Poll::Ready(Ok((n, offered)));
                }
                (done, _) => return Poll::Ready(done.map(|n| (n, offered))),
            }
        }
    }

    fn advance(&mut self, n: usize) {
        self.written += n as u64;
        let Self { queue, zero_copy, asked, ledger, .. } = self;
        queue.written(n, |whole| {
            let uncopied = zero_copy.written(whole.token);
            if uncopied.is_some()
                && let Some(a) = asked.iter_mut().find(|a| a.token == whole.token)
            {
                a.held = true;
            }
            if whole.counted {
                let copied = whole.payload.len() as u64 - uncopied.unwrap_or(0);
                ledger.kernel_copied(KernelCopied::Known(copied));
            }
        });
    }

    pub(super) fn reap(&mut self) {
        let Self { zero_copy, asked, io, ledger, .. } = self;
        let ByteIo::Socket { io, .. } = io else { return };
        if !zero_copy.is_idle() {
            zero_copy.reap(io.fd(), ledger, |token, copied| {
                if let Some(a) = asked.iter_mut().find(|a| a.token == token) {
                    (a.held, a.copied) = (false, copied);
                }
            });
        }
    }

    /// Room in the queue, and credit.
    fn may_send(&self) -> bool {
        self.has_room() && self.credit.may_send(self.spent)
    }

    /// Ready: a message of `len` bytes will be taken.
    fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        len: usize,
        shared: &Shared,
    ) -> Poll<Result<(), LaneError>> {
        self.check()?;
        if self.shut {
            return Poll::Ready(Err(LaneError::Closed));
        }
        if len > self.max_message {
            let text = format!("a message of {len} bytes; the peer takes {}", self.max_message);
            return Poll::Ready(Err(LaneError::Other(text)));
        }
        if !self.has_room()
            && let Poll::Ready(Err(e)) = self.poll_flush(&shared.waker)
        {
            return Poll::Ready(Err(e));
        }
        if self.may_send() {
            return Poll::Ready(Ok(()));
        }
        // Registered before the last look: a grant in between wakes us.
        shared.wakers.tx.register(cx.waker());
        // What the peer waits for must be out before we wait for the peer.
        if let Poll::Ready(Err(e)) = self.poll_flush(&shared.waker) {
            return Poll::Ready(Err(e));
        }
        if self.may_send() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn report(&mut self, out: &mut Batch<(SendToken, SendReport)>) {
        while !out.is_full() {
            let (written, failed) = (self.written, self.failed.is_some());
            let Some(a) = pop_if(&mut self.asked, |a| failed || (a.end <= written && !a.held)) else { break };
            let sent = a.end <= written && !a.held;
            let report = match (sent, a.copied) {
                (false, _) => SendReport::Failed,
                (true, true) => SendReport::SentCopied,
                (true, false) => SendReport::Sent,
            };
            out.push((a.token, report));
        }
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
        self.shared.core.lock().check()?;
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
        let len = frame.payload.len();
        let max = frame.kind.max_bytes(core.max_message);
        let mut header = match frame.kind {
            FrameKind::Data => FrameHeader::data(len as u32, frame.seq),
            FrameKind::Session => FrameHeader::session(len as u32),
            FrameKind::Remote => FrameHeader::remote(len as u32),
        };
        let refusal = if let Err(error) = core.check() {
            Some(error)
        } else if core.shut {
            Some(LaneError::Closed)
        } else if len > max {
            Some(LaneError::Other(format!("a frame of {len} bytes; at most {max} are taken")))
        } else if core.queue.len() >= 2 * MAX_QUEUED_FRAMES {
            Some(LaneError::Other("the queue is full".into()))
        } else if frame.kind == FrameKind::Session && core.queue.record_bytes() >= MAX_QUEUED_RECORD_BYTES {
            Some(LaneError::Other("the peer does not read: too many records wait for it".into()))
        } else {
            None
        };
        if let Some(error) = refusal {
            return Err(SendRejected { frame, error });
        }
        header.flags.ack_requested = frame.ack && frame.kind == FrameKind::Data;
        Ok(core.enqueue(header, frame.payload, report))
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
        core.report(out);
        if !out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        core.check()?;
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
