//! The sending half.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use zc_core::memory::{AllocWaiter, BufPool, CopyLedger, KernelCopied, Message, PinnedBufMut};
use zc_core::transport::{
    AllocFailure, Batch, Frame, FrameKind, LaneError, LaneTx, OfferContext, SendRejected, SendReport,
    SendToken,
};
use zc_core::wire::{FrameHeader, MAX_RECORD, frame_credit_bytes};

use super::credit::Credit;
use super::pop_if;
use super::queue::{Queue, Whole};
use super::wakers::Wakers;
use super::zero_copy::ZeroCopy;
use crate::io::{ByteIo, WriteMode};
use crate::limits::{COALESCE_MAX, MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, ZERO_COPY_MIN};

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
}

impl Shared {
    pub(super) fn new(io: ByteIo, cx: &OfferContext, credit: Arc<Credit>) -> Arc<Self> {
        let wakers = Arc::new(Wakers::default());
        let core = Core {
            zero_copy: ZeroCopy::new(&io),
            io,
            pool: cx.pool.with_origin("tcp tx"),
            ledger: cx.ledger.clone(),
            max_message: cx.limits.send_max_message as usize,
            credit,
            waker: futures::task::waker(wakers.clone()),
            queue: Queue::default(),
            asked: VecDeque::new(),
            tokens: 0,
            spent: 0,
            enqueued: 0,
            written: 0,
            failed: None,
            shut: false,
        };
        Arc::new(Self { core: Mutex::new(core), wakers })
    }
}

pub(super) struct Core {
    io: ByteIo,
    pool: BufPool,
    ledger: Arc<CopyLedger>,
    max_message: usize,
    credit: Arc<Credit>,
    waker: Waker,
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
}

impl Core {
    pub(super) fn check(&self) -> Result<(), LaneError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    pub(super) fn holds_buffers(&self) -> bool {
        !self.zero_copy.is_idle()
    }

    /// Changes when something went out or came back.
    pub(super) fn progress(&self) -> (u64, bool) {
        (self.written, self.zero_copy.is_idle())
    }

    fn fail(&mut self, error: LaneError) -> LaneError {
        self.queue.clear();
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
        let is_data = header.kind == zc_core::wire::FrameType::Data;
        let header = header.encode();
        self.enqueued += (header.len() + len) as u64;
        self.spent += if is_data { frame_credit_bytes(len) } else { 0 };
        let ledger = if is_data { Some(&*self.ledger) } else { None };
        if len <= COALESCE_MAX && self.queue.stage(&header, &payload, &self.pool, ledger) {
            if is_data {
                self.ledger.kernel_copied(KernelCopied::Known(len as u64));
            }
        } else {
            let zero_copy = self.zero_copy.is_enabled() && len >= ZERO_COPY_MIN;
            self.queue.push(Whole { header, payload, token, zero_copy, counted: is_data });
        }
        if report {
            self.asked.push_back(Asked { token, end: self.enqueued, held: false, copied: false });
        }
        token
    }

    pub(super) fn poll_flush(&mut self) -> Poll<Result<(), LaneError>> {
        self.check()?;
        if !self.shut
            && let Some(total) = self.credit.due()
        {
            self.enqueue(FrameHeader::credit(total), Message::new(), false);
        }
        let waker = self.waker.clone();
        let mut cx = Context::from_waker(&waker);
        let mut plain_once = false;
        while !self.queue.is_empty() {
            let allowed = !plain_once && self.zero_copy.is_enabled() && self.zero_copy.has_room();
            let plan = self.queue.plan(allowed);
            let mode = WriteMode { more: plan.more, zero_copy: plan.zero_copy.is_some() };
            match ready!(self.io.poll_write(&mut cx, &plan.pieces[..plan.count], mode)) {
                Ok(n) if n > 0 => {
                    if let Some(whole) = plan.zero_copy {
                        self.zero_copy.sent(whole.token, &whole.payload);
                    }
                    plain_once = false;
                    self.advance(n);
                }
                Err(e) if mode.zero_copy && e.raw_os_error() == Some(libc::ENOBUFS) => plain_once = true,
                Ok(_) => return Poll::Ready(Err(self.fail(LaneError::PeerGone("nothing could be written")))),
                Err(e) => return Poll::Ready(Err(self.fail(LaneError::os("write", &e)))),
            }
        }
        self.reap();
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, n: usize) {
        self.written += n as u64;
        let Self { queue, zero_copy, asked, ledger, .. } = self;
        queue.written(n, |whole| {
            let len = whole.payload.len();
            let held = zero_copy.written(whole.token);
            if held && let Some(a) = asked.iter_mut().find(|a| a.token == whole.token) {
                a.held = true;
            }
            if whole.counted && !held {
                ledger.kernel_copied(KernelCopied::Known(len as u64));
            }
        });
    }

    pub(super) fn reap(&mut self) {
        let Self { zero_copy, asked, .. } = self;
        zero_copy.reap(&self.io, &self.ledger, |token, copied| {
            if let Some(a) = asked.iter_mut().find(|a| a.token == token) {
                (a.held, a.copied) = (false, copied);
            }
        });
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
        self.zero_copy.tear_down(&self.io);
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
        core.check()?;
        if core.shut {
            return Poll::Ready(Err(LaneError::Closed));
        }
        if len > core.max_message {
            let text = format!("a message of {len} bytes; the peer takes {}", core.max_message);
            return Poll::Ready(Err(LaneError::Other(text)));
        }
        // Registered before it is asked: a grant in between wakes us.
        self.shared.wakers.tx.register(cx.waker());
        if !core.has_room()
            && let Poll::Ready(Err(e)) = core.poll_flush()
        {
            return Poll::Ready(Err(e));
        }
        if core.has_room() && core.credit.may_send(core.spent) {
            return Poll::Ready(Ok(()));
        }
        // What the peer waits for must be out before we wait for the peer.
        if let Poll::Ready(Err(e)) = core.poll_flush() {
            return Poll::Ready(Err(e));
        }
        Poll::Pending
    }

    fn start_send(&mut self, frame: Frame, report: bool) -> Result<SendToken, SendRejected> {
        let mut core = self.shared.core.lock();
        let len = frame.payload.len();
        let (max, header) = match frame.kind {
            FrameKind::Data => (core.max_message, FrameHeader::data(len as u32, frame.seq)),
            FrameKind::Session => (MAX_RECORD, FrameHeader::session(len as u32)),
        };
        let refusal = if let Err(error) = core.check() {
            Some(error)
        } else if core.shut {
            Some(LaneError::Closed)
        } else if len > max {
            Some(LaneError::Other(format!("a frame of {len} bytes; at most {max} are taken")))
        } else if core.queue.len() >= 2 * MAX_QUEUED_FRAMES {
            Some(LaneError::Other("the queue is full".into()))
        } else {
            None
        };
        if let Some(error) = refusal {
            return Err(SendRejected { frame, error });
        }
        let mut header = header;
        header.flags.ack_requested = frame.ack && frame.kind == FrameKind::Data;
        Ok(core.enqueue(header, frame.payload, report))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.shared.wakers.tx.register(cx.waker());
        self.shared.core.lock().poll_flush()
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
        self.shared.wakers.tx.register(cx.waker());
        let mut core = self.shared.core.lock();
        ready!(core.poll_flush())?;
        if !core.shut {
            let waker = core.waker.clone();
            let done = ready!(core.io.poll_shutdown(&mut Context::from_waker(&waker)));
            core.shut = true;
            done.map_err(|e| core.fail(LaneError::os("shutdown", &e)))?;
        }
        Poll::Ready(Ok(()))
    }
}
