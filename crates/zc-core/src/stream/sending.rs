//! The sending side: which frames are taken, and what has become of each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Context;

use super::credit::Credit;
use super::limits::{COALESCE_MAX, MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, MAX_QUEUED_RECORD_BYTES};
use super::queue::{Pieces, Plan, Queue, Whole, pop_if};
use crate::memory::{BufPool, CopyLedger, KernelCopied, Message};
use crate::transport::{
    Batch, Frame, FrameKind, LaneError, Piped, PipedFrame, PipedRejected, SendRejected, SendReport, SendToken,
};
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, FrameType, frame_credit_bytes};

/// A send whose end was asked for.
struct Asked {
    token: SendToken,
    /// Stream position at which it is all written.
    end: u64,
    /// The kernel still holds it.
    held: bool,
    copied: bool,
}

/// Frames on their way out.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::{BufPool, CopyLedger, PinnedBuf};
/// use zc_core::stream::{Pieces, Wakers, halves};
/// use zc_core::transport::{Frame, FrameKind, LaneLimits};
/// use zc_core::wire::FRAME_HEADER_BYTES;
///
/// let (pool, wakers) = (BufPool::builder().build(), Arc::new(Wakers::default()));
/// let ledger = Arc::new(CopyLedger::new());
/// let (mut sending, _) = halves(&LaneLimits::default(), pool, &ledger, &wakers);
///
/// sending.check_message(5)?;
/// assert!(sending.may_send());
/// let payload = PinnedBuf::from_static(b"hello").into();
/// let frame = Frame { kind: FrameKind::Data, ack: false, seq: 1, payload };
/// sending.start_send(frame, false, None).map_err(|rejected| rejected.error)?;
///
/// let mut pieces = Pieces::new();
/// sending.plan(false, &mut pieces);
/// let n = pieces.iter().map(|piece| piece.len()).sum(); // An engine that could write all of it.
/// assert_eq!(n, FRAME_HEADER_BYTES + 5);
/// drop(pieces);
/// sending.advance(n, |_| None);
/// assert!(sending.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sending {
    /// Where stages come from.
    pool: BufPool,
    ledger: Arc<CopyLedger>,
    max_message: usize,
    credit: Arc<Credit>,
    queue: Queue,
    asked: VecDeque<Asked>,
    tokens: u64,
    /// Credit.
    spent: u64,
    enqueued: u64,
    written: u64,
    failed: Option<LaneError>,
    shut: bool,
}

impl Sending {
    pub(super) fn new(max_message: u32, pool: BufPool, ledger: Arc<CopyLedger>, credit: Arc<Credit>) -> Self {
        Self {
            pool,
            ledger,
            max_message: max_message as usize,
            credit,
            queue: Queue::default(),
            asked: VecDeque::new(),
            tokens: 0,
            spent: 0,
            enqueued: 0,
            written: 0,
            failed: None,
            shut: false,
        }
    }

    /// What was said to [`fail`](Self::fail).
    ///
    /// # Errors
    /// That.
    #[inline]
    pub fn check(&self) -> Result<(), LaneError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Nothing more goes out: lets go of what is queued. Gives the error back.
    pub fn fail(&mut self, error: LaneError) -> LaneError {
        self.queue.clear();
        self.failed = Some(error.clone());
        error
    }

    /// Our direction of the stream is ended: nothing more is taken.
    pub fn shut(&mut self) {
        self.shut = true;
    }

    /// Whether it is.
    #[inline]
    pub fn is_shut(&self) -> bool {
        self.shut
    }

    /// Whether a message of `len` bytes would ever be taken.
    ///
    /// # Errors
    /// Why not.
    #[inline]
    pub fn check_message(&self, len: usize) -> Result<(), LaneError> {
        self.check()?;
        if self.shut {
            return Err(LaneError::Closed);
        }
        if len > self.max_message {
            let text = format!("a message of {len} bytes; the peer takes {}", self.max_message);
            return Err(LaneError::Other(text));
        }
        Ok(())
    }

    /// Room in the queue.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.queue.len() < MAX_QUEUED_FRAMES
            && self.queue.bytes() < MAX_QUEUED_BYTES
            && self.asked.len() < MAX_QUEUED_FRAMES
    }

    /// Room in the queue, and credit.
    #[inline]
    pub fn may_send(&self) -> bool {
        self.has_room() && self.credit.may_send(self.spent)
    }

    /// Takes a frame; its end is [reported](Self::report) if `report` says so. A payload of at least
    /// `zero_copy_min` bytes is [planned](Self::plan) to be sent without a copy.
    ///
    /// # Errors
    /// The frame comes back, and why.
    #[inline]
    pub fn start_send(
        &mut self,
        frame: Frame,
        report: bool,
        zero_copy_min: Option<usize>,
    ) -> Result<SendToken, SendRejected> {
        let len = frame.payload.len();
        let mut header = match frame.kind {
            FrameKind::Data => FrameHeader::data(len as u32, frame.seq),
            FrameKind::Session => FrameHeader::session(len as u32),
            FrameKind::Remote => FrameHeader::remote(len as u32),
        };
        if let Err(error) = self.check_frame(frame.kind, len) {
            return Err(SendRejected { frame, error });
        }
        header.flags.ack_requested = frame.ack && frame.kind == FrameKind::Data;
        let zero_copy = zero_copy_min.is_some_and(|min| len >= min);
        Ok(self.enqueue(header, frame.payload, report, zero_copy))
    }

    /// The same for a payload that waits in a pipe, for engines that can move it to their stream.
    ///
    /// # Errors
    /// The frame comes back, and why.
    pub fn start_send_piped(&mut self, frame: PipedFrame, report: bool) -> Result<SendToken, PipedRejected> {
        let len = frame.payload.len();
        if let Err(error) = self.check_frame(FrameKind::Data, len) {
            return Err(PipedRejected { frame, error });
        }
        let mut header = FrameHeader::data(len as u32, frame.seq);
        header.flags.ack_requested = frame.ack;
        let token = self.count(header, len, report);
        self.queue.push_piped(header.encode(), frame.payload);
        Ok(token)
    }

    #[inline]
    fn check_frame(&self, kind: FrameKind, len: usize) -> Result<(), LaneError> {
        let max = kind.max_bytes(self.max_message);
        self.check()?;
        if self.shut {
            Err(LaneError::Closed)
        } else if len > max {
            Err(LaneError::Other(format!("a frame of {len} bytes; at most {max} are taken")))
        } else if self.queue.len() >= 2 * MAX_QUEUED_FRAMES {
            Err(LaneError::Other("the queue is full".into()))
        } else if kind == FrameKind::Session && self.queue.record_bytes() >= MAX_QUEUED_RECORD_BYTES {
            Err(LaneError::Other("the peer does not read: too many records wait for it".into()))
        } else {
            Ok(())
        }
    }

    /// A frame that is put into the queue.
    #[inline]
    fn count(&mut self, header: FrameHeader, len: usize, report: bool) -> SendToken {
        self.tokens += 1;
        let token = SendToken(self.tokens);
        self.enqueued += (FRAME_HEADER_BYTES + len) as u64;
        self.spent += if header.kind == FrameType::Data { frame_credit_bytes(len) } else { 0 };
        if report {
            self.asked.push_back(Asked { token, end: self.enqueued, held: false, copied: false });
        }
        token
    }

    #[inline]
    fn enqueue(&mut self, header: FrameHeader, payload: Message, report: bool, zero_copy: bool) -> SendToken {
        let len = payload.len();
        let token = self.count(header, len, report);
        let (counted, is_record) = (header.kind.is_payload(), header.kind == FrameType::Session);
        let header = header.encode();
        let ledger = if counted { Some(&*self.ledger) } else { None };
        if len <= COALESCE_MAX && self.queue.stage(&header, &payload, is_record, &self.pool, ledger) {
            if counted {
                self.ledger.kernel_copied(KernelCopied::Known(len as u64));
            }
        } else {
            self.queue.push(Whole { header, payload, token, zero_copy, counted, is_record });
        }
        token
    }

    /// Queues the credit that the peer is due. If it is withheld, `cx` is woken when the application holds less.
    #[inline]
    pub fn grant(&mut self, cx: &mut Context<'_>) {
        if !self.shut
            && self.failed.is_none()
            && let Some(total) = self.credit.due(cx)
        {
            self.enqueue(FrameHeader::credit(total), Message::new(), false, false);
        }
    }

    /// Nothing is left to be written.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// All there is to write, if it lies in one piece: the common case of small messages.
    #[inline]
    pub fn in_one_piece(&self) -> Option<&[u8]> {
        self.queue.in_one_piece()
    }

    /// The next write, if there is anything left. `zero_copy`: whether it is allowed now.
    #[inline]
    pub fn plan<'a>(&'a self, zero_copy: bool, pieces: &mut Pieces<'a>) -> Plan<'a> {
        self.queue.plan(zero_copy, pieces)
    }

    /// The next write in memory that can be given away, for an engine that writes while nobody waits (M1): into `batch`, which
    /// is empty, about `max_bytes` at most. One batch at a time: what was written of it is told by
    /// [`advance`](Self::advance), and until then the same bytes come again. More is queued meanwhile. `zero_copy`: whether
    /// that is allowed now; a payload that is to be sent so is then alone in its batches, as [`plan`](Self::plan) tells. Whether more
    /// follows at once: the batch ends with the header of what goes out by itself.
    #[inline]
    pub fn batch(&mut self, max_bytes: usize, zero_copy: bool, batch: &mut Message) -> bool {
        self.queue.batch(max_bytes.max(1), zero_copy, &self.pool, batch)
    }

    /// `n` bytes of what was planned are written. `held` is asked for each frame by reference that is all out how
    /// many of its bytes the kernel still uses where they lie, if any; [`let_go`](Self::let_go) ends that. A write that ends
    /// after the lane has failed counts no more.
    #[inline]
    pub fn advance(&mut self, n: usize, mut held: impl FnMut(SendToken) -> Option<u64>) {
        if self.failed.is_some() {
            return;
        }
        self.written += n as u64;
        let Self { queue, asked, ledger, .. } = self;
        let whole = |whole: Whole| {
            let uncopied = held(whole.token);
            if uncopied.is_some()
                && let Some(a) = asked.iter_mut().find(|a| a.token == whole.token)
            {
                a.held = true;
            }
            if whole.counted {
                let copied = (whole.payload.len() as u64).saturating_sub(uncopied.unwrap_or(0));
                ledger.kernel_copied(KernelCopied::Known(copied));
            }
        };
        let emptied = |payload: Piped| {
            // Pages go out by reference where the socket and the device can; nothing tells.
            ledger.kernel_copied(KernelCopied::Unknown);
            payload.emptied();
        };
        queue.written(n, whole, emptied);
    }

    /// The kernel let go of a message, and may have copied it after all.
    #[inline]
    pub fn let_go(&mut self, token: SendToken, copied: bool) {
        if let Some(a) = self.asked.iter_mut().find(|a| a.token == token) {
            (a.held, a.copied) = (false, copied);
        }
    }

    /// Bytes written, in total.
    #[inline]
    pub fn written_bytes(&self) -> u64 {
        self.written
    }

    /// The sends that are over, of those that were asked for, in order.
    #[inline]
    pub fn report(&mut self, out: &mut Batch<(SendToken, SendReport)>) {
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
