//! The receiving side: from bytes to frames.
//!
//! The stream comes in two ways, chosen by what has come lately.
//!
//! **Ahead**, while frames are small: as much as there is, and messages are slices of it.
//!
//! ```text
//! bytes that were fed [ frame | frame | frame | begun... ] --> slices to the application
//!                                                 |
//!                                 body of its own, of the exact length (the begun part is copied)
//! ```
//!
//! **Exactly**, after a large frame and until [`EXACT_FRAMES`] small ones in a row have come: never
//! beyond the next header, so that each payload goes straight into a body of its own.
//!
//! ```text
//! spaces [ rest of the body ][ next header, 16 bytes ]
//! ```
//!
//! An engine to which the kernel hands pieces as they come feeds those also while a body is under way: a long payload
//! becomes a rope of them, a short one is put together by a copy. Around very long ones it takes the stream exactly, too; since it
//! writes while nobody waits, the memory of a body is then [lent](Parser::lend_body) to it (M1).
//!
//! Nothing is guessed: memory is taken when a header has named a length and the credit covers it. A head that is
//! not whole lies in no pool memory, so a connection that waits for bytes holds no block.

use std::sync::Arc;

use super::body::{Body, Store};
use super::credit::Credit;
use super::head::{Front, Head, Scan, scan};
use super::limits::{DIRECT_MIN, EXACT_FRAMES, ROPE_MIN};
use super::wakers::Wakers;
use crate::memory::{
    BufPool, CopyLedger, CopyPlace, KernelCopied, LeaseBudget, Message, PinnedBuf, PinnedBufMut, Pressure,
    copy_payload, lend_from_heap,
};
use crate::transport::{Batch, Frame, FrameKind, LaneError};
use crate::wire::{FrameLimits, FrameType, WireError};

/// What was received and not handed out.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::{BufPool, CopyLedger, PinnedBuf};
/// use zc_core::stream::{Wakers, halves};
/// use zc_core::transport::{Batch, LaneLimits};
/// use zc_core::wire::FrameHeader;
///
/// let (pool, wakers) = (BufPool::builder().build(), Arc::new(Wakers::default()));
/// let ledger = Arc::new(CopyLedger::new());
/// let (_, mut parser) = halves(&LaneLimits::default(), pool.clone(), &ledger, &wakers);
///
/// // An engine that has received this:
/// let bytes = [&FrameHeader::data(5, 1).encode()[..], b"hello"].concat();
/// parser.feed(PinnedBuf::from(bytes));
///
/// let mut frames = Batch::new();
/// while parser.find_head()? {
///     if let Some(len) = parser.body_wanted() {
///         parser.begin_body(pool.try_alloc(len)?); // Not here: the payload came with its header.
///     }
///     if !parser.take_frame(&pool, &mut frames)? {
///         break; // Bytes of the body are missing.
///     }
/// }
/// assert!(frames.drain().all(|frame| frame.payload.segments()[0][..] == *b"hello"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Parser {
    ledger: Arc<CopyLedger>,
    leases: Arc<LeaseBudget>,
    credit: Arc<Credit>,
    wakers: Arc<Wakers>,
    limits: FrameLimits,
    front: Front,
    /// The frame whose head is whole.
    under_way: Option<UnderWay>,
    /// What was fed and not looked at yet.
    unread: PinnedBuf,
    /// Frames for which the stream is taken exactly.
    exact_frames: u32,
    /// Payloads of at least this many bytes begin that.
    exact_min_bytes: usize,
    /// Whether the kernel copies all that comes; otherwise nobody says how much.
    kernel_copies: bool,
    received: u64,
}

struct UnderWay {
    head: Head,
    body: Option<Body>,
}

impl Parser {
    pub(super) fn new(
        max_message: u32,
        ledger: Arc<CopyLedger>,
        leases: Arc<LeaseBudget>,
        credit: Arc<Credit>,
        wakers: Arc<Wakers>,
    ) -> Self {
        Self {
            ledger,
            leases,
            credit,
            wakers,
            limits: FrameLimits { max_message },
            front: Front::default(),
            under_way: None,
            unread: PinnedBuf::empty(),
            exact_frames: 0,
            exact_min_bytes: DIRECT_MIN,
            kernel_copies: true,
            received: 0,
        }
    }

    /// The stream is taken exactly from payloads of this length on; by default [`DIRECT_MIN`].
    pub fn set_exact_min(&mut self, bytes: usize) {
        self.exact_min_bytes = bytes;
    }

    /// What is fed may have come without a copy by the kernel, which does not say: so the ledger says of it.
    pub fn kernel_may_not_copy(&mut self) {
        self.kernel_copies = false;
    }

    /// Takes the stream exactly for a while, also if frames are small.
    pub fn read_exactly(&mut self) {
        self.exact_frames = EXACT_FRAMES;
    }

    /// What the application holds of this lane's memory.
    #[inline]
    pub fn leases(&self) -> &Arc<LeaseBudget> {
        &self.leases
    }

    /// Lets go of what is not handed out; nothing more is parsed.
    pub fn clear(&mut self) {
        self.front.clear();
        self.under_way = None;
        self.unread = PinnedBuf::empty();
    }

    /// Whether a frame has begun that is not whole.
    #[inline]
    pub fn is_inside_frame(&self) -> bool {
        self.under_way.is_some() || !self.front.is_empty()
    }

    /// Whether the frame under way is a record of the session layer or of one-sided operations: those get through
    /// whatever happens.
    #[inline]
    pub fn is_record(&self) -> bool {
        let kind = self.under_way.as_ref().map(|frame| frame.head.header.kind);
        matches!(kind, Some(FrameType::Session | FrameType::Remote))
    }

    /// Whether to take no more of the stream than [`spaces`](Self::spaces) has room for.
    #[inline]
    pub fn reads_exactly(&self) -> bool {
        self.exact_frames > 0
    }

    /// Sees to it that a frame is under way; false: more bytes are needed.
    ///
    /// # Errors
    /// The peer broke the format, or its promise to send no more than its credit.
    #[inline]
    #[allow(clippy::disallowed_methods, reason = "a head, not payload")]
    pub fn find_head(&mut self) -> Result<bool, WireError> {
        while self.under_way.is_none() {
            let in_front = !self.front.is_empty();
            match scan(if in_front { self.front.filled() } else { &self.unread }, self.limits)? {
                Scan::Head(head) if in_front => {
                    self.front.clear();
                    self.begin(head)?;
                }
                Scan::Head(head) => {
                    self.skip(head.payload_at);
                    self.begin(head)?;
                }
                Scan::Missing(_) if self.unread.is_empty() => return Ok(false),
                Scan::Missing(n) => {
                    // Not in front yet: all of it belongs there, since `n` are missing.
                    let n = if in_front { n.min(self.unread.len()) } else { self.unread.len() };
                    self.front.space(n).copy_from_slice(&self.unread[..n]);
                    self.front.advance(n);
                    self.skip(n);
                }
            }
        }
        Ok(true)
    }

    #[inline]
    fn skip(&mut self, n: usize) {
        bytes::Buf::advance(&mut self.unread, n);
        if self.unread.is_empty() {
            self.unread = PinnedBuf::empty();
        }
    }

    #[inline]
    fn begin(&mut self, head: Head) -> Result<(), WireError> {
        let len = head.payload_bytes();
        if head.header.kind == FrameType::Data {
            self.received = self.credit.receive(self.received, len)?;
        }
        self.exact_frames =
            if len >= self.exact_min_bytes { EXACT_FRAMES } else { self.exact_frames.saturating_sub(1) };
        self.under_way = Some(UnderWay { head, body: None });
        Ok(())
    }

    /// The payload's length, if the frame under way needs memory of its own.
    #[inline]
    pub fn body_wanted(&self) -> Option<usize> {
        let frame = self.under_way.as_ref()?;
        let len = frame.head.payload_bytes();
        let wanted = match &frame.body {
            None => self.unread.len() < len,
            Some(body) => body.is_full_rope() || body.is_spilled() || self.keeps_too_much(body),
        };
        wanted.then_some(len)
    }

    /// Whether a rope that began when little was held is to be put together: that has changed meanwhile.
    #[inline]
    fn keeps_too_much(&self, body: &Body) -> bool {
        body.is_rope() && body.is_begun() && !body.is_whole() && self.leases.pressure() >= Pressure::Soft
    }

    /// Keeps the pieces of the payload under way as they are fed instead of giving it memory, if that is worth it: it is long, and
    /// the application holds little, for a small piece may keep much more than itself.
    #[inline]
    pub fn begin_rope(&mut self) -> bool {
        let Some(len) = self.body_wanted().filter(|len| *len >= ROPE_MIN && !self.is_record()) else {
            return false;
        };
        let goes = self.under_way.as_ref().is_some_and(|frame| frame.body.is_none())
            && self.leases.pressure() == Pressure::None;
        if goes {
            self.begin_in(Body::rope(len));
        }
        goes
    }

    /// There is no memory for the payload under way. Who waits for some with pieces in hand may wait for ever, for others do the
    /// same: so it goes on as the pieces that come, which takes none, and if it is a rope already, what has come
    /// [waits on the heap](Self::is_spilled).
    pub fn go_on_without_memory(&mut self) {
        let Self { under_way: Some(frame), ledger, .. } = self else { return };
        let counted = frame.head.header.kind.is_payload();
        match &mut frame.body {
            None => frame.body = Some(Body::rope(frame.head.payload_bytes())),
            Some(body) => body.spill(if counted { Some(&**ledger) } else { None }),
        }
        self.absorb();
    }

    /// Whether what has come of the payload under way lies on the heap. It still [wants](Self::body_wanted) memory, and
    /// what is fed meanwhile goes there, too.
    #[inline]
    pub fn is_spilled(&self) -> bool {
        let body = self.under_way.as_ref().and_then(|frame| frame.body.as_ref());
        body.is_some_and(Body::is_spilled)
    }

    /// How many bytes of it that are.
    #[inline]
    pub fn spilled_bytes(&self) -> usize {
        let body = self.under_way.as_ref().and_then(|frame| frame.body.as_ref());
        body.map_or(0, Body::spilled_bytes)
    }

    /// Gives the frame under way the memory that it wants.
    ///
    /// # Panics
    /// If `buf` has less room than [`body_wanted`](Self::body_wanted) says.
    #[inline]
    pub fn begin_body(&mut self, buf: PinnedBufMut) {
        if let Some(len) = self.body_wanted() {
            match self.under_way.as_mut().and_then(|frame| frame.body.as_mut()) {
                Some(rope) => {
                    rope.gather(buf, Some(&self.ledger));
                    self.absorb();
                }
                None => self.begin_in(Body::in_pool(buf, len)),
            }
        }
    }

    /// How many bytes of the body under way have not come; 0 if there is none.
    #[inline]
    pub fn body_missing(&self) -> usize {
        let body = self.under_way.as_ref().and_then(|frame| frame.body.as_ref());
        body.map_or(0, Body::missing_bytes)
    }

    /// Whether the body under way consists of the pieces that came.
    #[inline]
    pub fn is_rope(&self) -> bool {
        let body = self.under_way.as_ref().and_then(|frame| frame.body.as_ref());
        body.is_some_and(Body::is_rope)
    }

    /// The pool memory of the body under way, if it has such and is not whole: what comes next belongs into what is unfilled
    /// of it, at most [`body_missing`](Self::body_missing) bytes. It has to [come back](Self::return_body).
    #[inline]
    pub fn lend_body(&mut self) -> Option<PinnedBufMut> {
        let body = self.under_way.as_mut().and_then(|frame| frame.body.as_mut());
        body.filter(|body| !body.is_whole()).and_then(Body::lend)
    }

    /// What was [lent](Self::lend_body), with what has come.
    #[inline]
    pub fn return_body(&mut self, buf: PinnedBufMut) {
        if let Some(body) = self.under_way.as_mut().and_then(|frame| frame.body.as_mut()) {
            body.give_back(buf);
        }
    }

    /// Gives the frame under way memory that is not the pool's: for a [record](Self::is_record), while the pool is
    /// exhausted.
    pub fn begin_body_on_heap(&mut self) {
        if let Some(len) = self.body_wanted() {
            self.begin_in(Body::on_heap(len));
        }
    }

    #[inline]
    fn begin_in(&mut self, body: Body) {
        if let Some(frame) = &mut self.under_way {
            frame.body = Some(body);
            self.absorb();
        }
    }

    /// The body under way takes what was fed.
    #[inline]
    fn absorb(&mut self) {
        let Self { under_way: Some(frame), unread, ledger, .. } = self else { return };
        let counted = frame.head.header.kind.is_payload();
        if let Some(body) = &mut frame.body
            && !unread.is_empty()
        {
            body.absorb(unread, if counted { Some(&**ledger) } else { None });
        }
    }

    fn has_body_space(&mut self) -> bool {
        let body = self.under_way.as_mut().and_then(|frame| frame.body.as_mut());
        body.is_some_and(|body| !body.space().is_empty())
    }

    /// Where to put what comes next in the stream: the rest of a body, then of a head. With `ahead` there is memory for
    /// what follows, so no head needs room before it has begun.
    #[inline]
    pub fn spaces(&mut self, ahead: bool) -> [&mut [u8]; 2] {
        let mut missing = 0;
        if self.body_missing() > 0 && !self.has_body_space() {
            // What comes next belongs to a body that has no memory for it: nothing may go past that.
            return [&mut [], &mut []];
        }
        // A whole head is taken out at once and a bad one ends the lane, so some bytes are missing.
        if (!ahead || !self.front.is_empty())
            && let Ok(Scan::Missing(n)) = scan(self.front.filled(), self.limits)
        {
            missing = n;
        }
        let body = self.under_way.as_mut().and_then(|frame| frame.body.as_mut());
        [body.map_or(&mut [], Body::space), self.front.space(missing)]
    }

    /// `n` bytes of the stream are read, the first of them into the last [`spaces`](Self::spaces); how many are not
    /// there. Those are to be [fed](Self::feed).
    #[inline]
    pub fn filled(&mut self, n: usize) -> usize {
        let mut rest = n;
        if let Some(body) = self.under_way.as_mut().and_then(|frame| frame.body.as_mut()) {
            let of_body = body.missing_bytes().min(rest);
            body.advance(of_body);
            rest -= of_body;
        }
        rest - self.front.advance(rest)
    }

    /// The bytes that come next in the stream, in memory that the lane lends: it counts as [leased](Self::leases)
    /// already. A body under way takes its part. Nothing that was fed before is left.
    ///
    /// # Panics
    /// Something is: it would be lost.
    #[inline]
    pub fn feed(&mut self, bytes: PinnedBuf) {
        assert!(!self.has_unread(), "what was fed before is not all taken");
        self.unread = bytes;
        self.absorb();
    }

    /// Whether something that was fed is not taken: nothing more may be fed until it is.
    #[inline]
    pub fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Hands out the frame under way if its payload is whole and there is room for it. True: there may be another one.
    ///
    /// # Errors
    /// The peer took credit back.
    #[inline]
    pub fn take_frame(&mut self, pool: &BufPool, out: &mut Batch<Frame>) -> Result<bool, LaneError> {
        if out.is_full() {
            return Ok(false);
        }
        let fed = self.unread.len();
        let is_whole = |frame: &mut UnderWay| {
            frame.body.as_ref().map_or(frame.head.payload_bytes() <= fed, Body::is_whole)
        };
        let Some(UnderWay { head, body }) = self.under_way.take_if(is_whole) else { return Ok(false) };
        let len = head.payload_bytes();
        let is_payload = head.header.kind.is_payload();
        let payload: Message = match body.map(Body::into_store) {
            Some(Store::Pool(mut buf)) => {
                if is_payload {
                    buf.attach_lease(self.leases.clone());
                }
                buf.freeze().into()
            }
            Some(Store::Spilled(bytes)) if is_payload => lend_from_heap(bytes, self.leases.clone()).into(),
            Some(Store::Heap(bytes) | Store::Spilled(bytes)) => bytes.into(),
            Some(Store::Rope(rope)) => rope,
            // A body that is away is not whole.
            Some(Store::Away) => Message::new(),
            None => {
                let shared = self.unread.split_to(len);
                if is_payload { self.lend(shared, pool).into() } else { shared.into() }
            }
        };
        let kind = match head.header.kind {
            FrameType::Credit => {
                self.credit.granted(head.header.seq)?;
                self.wakers.tx.wake();
                return Ok(true);
            }
            FrameType::Session => FrameKind::Session,
            FrameType::Data => FrameKind::Data,
            FrameType::Remote => FrameKind::Remote,
        };
        if is_payload {
            let known = KernelCopied::Known(len as u64);
            self.ledger.kernel_copied(if self.kernel_copies { known } else { KernelCopied::Unknown });
        }
        let ack = head.header.flags.ack_requested;
        out.push(Frame { kind, ack, seq: head.header.seq, payload });
        Ok(true)
    }

    /// Lends a slice of what was fed, or copies it out when too much is lent already.
    #[inline]
    fn lend(&self, payload: PinnedBuf, pool: &BufPool) -> PinnedBuf {
        let len = payload.len();
        if len > 0
            && len < DIRECT_MIN
            && self.leases.pressure() >= Pressure::Soft
            && let Ok(mut own) = pool.try_alloc(len)
        {
            copy_payload(&mut own.unfilled_mut()[..len], &payload, &self.ledger, CopyPlace::CopyOut);
            own.advance(len);
            own.attach_lease(self.leases.clone());
            return own.freeze();
        }
        payload
    }

    /// The application took a message of so many bytes.
    #[inline]
    pub fn release(&mut self, payload_bytes: usize) {
        if self.credit.take(payload_bytes) {
            self.wakers.drive.wake();
        }
    }
}
