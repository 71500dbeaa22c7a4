//! Operations as futures.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use zc_core::memory::{Deferral, PinnedBufMut};

use super::Handle;
use super::core::{Core, Stage, Tag, Waiting};
use super::inbox::Inbox;
use super::parked::Parked;
use crate::slab::Token;
use crate::sys::Request;

enum State {
    New(Request),
    Flying(Token),
    /// It makes no sense.
    Refused(&'static str),
    /// The result was handed out.
    Done,
}

/// One operation. It begins when it is first polled; dropping it cancels it, and what it owns stays with the engine
/// until the kernel is done.
///
/// ```
/// # async fn example(engine: zc_transport_uring::Engine) -> std::io::Result<()> {
/// let op = engine.nop();
/// op.await?;
/// drop(engine.nop()); // Never began.
/// # Ok(())
/// # }
/// ```
#[must_use = "it begins when it is polled"]
pub struct Op<T> {
    handle: Arc<Handle>,
    state: State,
    /// Its number among those who wait for a place.
    in_crowd: Option<u64>,
    /// The socket that gets what comes too late.
    inbox: Option<Arc<Inbox>>,
    /// It was asked to end early.
    is_cut: bool,
    finish: fn(&mut Request, usize) -> io::Result<T>,
}

impl<T> Op<T> {
    pub(super) fn new(
        handle: &Arc<Handle>,
        request: Request,
        finish: fn(&mut Request, usize) -> io::Result<T>,
    ) -> Self {
        Self {
            handle: handle.clone(),
            state: State::New(request),
            in_crowd: None,
            inbox: None,
            is_cut: false,
            finish,
        }
    }

    pub(super) fn for_inbox(mut self, inbox: Arc<Inbox>) -> Self {
        self.inbox = Some(inbox);
        self
    }

    fn begin(&mut self, core: &mut Core, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let State::New(request) = std::mem::replace(&mut self.state, State::Done) else {
            return Poll::Ready(Ok(()));
        };
        core.check()?;
        if !core.has_place() {
            self.state = State::New(request);
            core.wait_for_place(&mut self.in_crowd, cx);
            return Poll::Pending;
        }
        if let Some(number) = self.in_crowd.take() {
            core.leave_crowd(number);
        }
        let mut waiting = Waiting::default();
        waiting.waker.park(cx);
        let tag = match &self.inbox {
            Some(inbox) => {
                inbox.begin_direct()?;
                Tag::Direct(inbox.clone(), waiting)
            }
            None => Tag::One(waiting),
        };
        let Some(token) = core.flights.start(true, request, tag) else {
            return Poll::Ready(Err(io::ErrorKind::ResourceBusy.into()));
        };
        self.state = State::Flying(token);
        core.driver.wake();
        Poll::Pending
    }

    fn poll_result(&mut self, core: &mut Core, cx: &Context<'_>) -> Poll<io::Result<T>> {
        let token = match self.state {
            State::Flying(token) => token,
            State::Refused(why) => {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidInput, why)));
            }
            State::New(_) | State::Done => {
                return Poll::Ready(Err(io::Error::other("the operation was over")));
            }
        };
        let (mut over, mut parked) = (core.flights.take(token), Parked::default());
        if over.is_none() {
            // Not awaited meanwhile: who finds it here need not be woken for it.
            if let Some(waiting) = core.flights.tag_mut(token).and_then(Tag::waiting) {
                parked = std::mem::take(&mut waiting.waker);
            }
            if core.look() {
                over = core.flights.take(token);
            }
        }
        let Some((mut request, mut tag)) = over else {
            if let Stage::Ended(end) = core.stage {
                self.state = State::Done;
                return Poll::Ready(Err(end.into()));
            }
            if let Some(waiting) = core.flights.tag_mut(token).and_then(Tag::waiting) {
                waiting.waker = parked;
                waiting.waker.park(cx);
            }
            return Poll::Pending;
        };
        self.state = State::Done;
        if let Some(inbox) = &self.inbox {
            inbox.end_direct(None);
        }
        let result = tag.waiting().and_then(|waiting| waiting.result).unwrap_or(-libc::EIO);
        let result = if self.is_cut && is_cut_short(result) { 0 } else { result };
        let done = match usize::try_from(result) {
            Ok(n) => (self.finish)(&mut request, n),
            Err(_) => Err(io::Error::from_raw_os_error(result.saturating_neg())),
        };
        core.keep_parts(request);
        core.call_crowd();
        Poll::Ready(done)
    }
}

/// What a receive says that was cancelled before anything came.
fn is_cut_short(result: i32) -> bool {
    [-libc::ECANCELED, -libc::EINTR].contains(&result)
}

impl Op<PinnedBufMut> {
    /// Ends it early: it comes back soon, with what it has done until then, which may be nothing.
    pub(crate) fn cut(&mut self) {
        if let State::Flying(token) = self.state
            && !self.is_cut
        {
            self.is_cut = true;
            let _deferral = Deferral::begin();
            let mut core = self.handle.shared.core.lock();
            core.flights.cancel(token);
            core.driver.wake();
        }
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// One that fills a buffer.
    pub(super) fn filling(handle: &Arc<Handle>, request: Request) -> Self {
        Self::new(handle, request, fill)
    }

    /// One that fails at once.
    pub(super) fn refused(handle: &Arc<Handle>, why: &'static str) -> Self {
        Self {
            handle: handle.clone(),
            state: State::Refused(why),
            in_crowd: None,
            inbox: None,
            is_cut: false,
            finish: fill,
        }
    }
}

/// Of an operation that fills a buffer, the buffer.
fn fill(request: &mut Request, n: usize) -> io::Result<PinnedBufMut> {
    request.take_filled(n).ok_or_else(|| io::Error::other("the operation fills no buffer"))
}

impl<T> Future for Op<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let this = &mut *self;
        let handle = this.handle.clone();
        let _deferral = Deferral::begin();
        let mut core = handle.shared.core.lock();
        if let State::New(_) = this.state {
            return this
                .begin(&mut core, cx)
                .map(|done| done.and_then(|()| Err(io::ErrorKind::Other.into())));
        }
        this.poll_result(&mut core, cx)
    }
}

// Nothing in it is pinned: what the kernel uses lies in the engine.
impl<T> Unpin for Op<T> {}

impl<T> Drop for Op<T> {
    fn drop(&mut self) {
        if let State::Flying(token) = self.state {
            leave(&self.handle, token, true);
        }
        if let Some(number) = self.in_crowd {
            let _deferral = Deferral::begin();
            self.handle.shared.core.lock().leave_crowd(number);
        }
    }
}

/// The owner of an operation goes.
fn leave(handle: &Handle, token: Token, cancel: bool) {
    let _deferral = Deferral::begin();
    let mut core = handle.shared.core.lock();
    match core.flights.release(token, cancel) {
        Some((request, mut tag)) => {
            let result = tag.waiting().and_then(|waiting| waiting.result).unwrap_or(0);
            if let Tag::Direct(..) = tag {
                tag.left(result, request);
            } else {
                core.keep_parts(request);
            }
            core.call_crowd();
        }
        None => core.driver.wake(),
    }
}

/// What became of the memory of a zero-copy send.
///
/// ```
/// use zc_transport_uring::Usage;
///
/// let goes_on = |usage| usage == Usage::ZeroCopy;
/// assert!(!goes_on(Usage::Copied));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// The device read it.
    ZeroCopy,
    /// The kernel copied after all, which costs more than an ordinary send.
    Copied,
    /// It was not sent.
    Unused,
}

/// A send out of the memory itself: first its result, later the kernel lets go of the memory. Dropping it after the
/// result leaves the memory with the engine until then.
///
/// ```
/// # async fn example(mut send: zc_transport_uring::ZeroCopySend) -> std::io::Result<()> {
/// use std::future::poll_fn;
///
/// let n = poll_fn(|cx| send.poll_sent(cx)).await?;
/// let usage = poll_fn(|cx| send.poll_released(cx)).await?; // Later: nobody waits for this to go on.
/// # let _ = (n, usage);
/// # Ok(())
/// # }
/// ```
#[must_use = "it begins when it is polled"]
pub struct ZeroCopySend {
    op: Op<()>,
    sent: Option<i32>,
}

impl ZeroCopySend {
    pub(super) fn new(handle: &Arc<Handle>, request: Request) -> Self {
        Self { op: Op::new(handle, request, |_, _| Ok(())), sent: None }
    }

    /// How many bytes went out.
    ///
    /// # Errors
    /// The system's.
    pub fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let handle = self.op.handle.clone();
        let _deferral = Deferral::begin();
        let mut core = handle.shared.core.lock();
        if let State::New(_) = self.op.state {
            return self.op.begin(&mut core, cx).map(|done| done.map(|()| 0));
        }
        if self.sent.is_none()
            && let State::Flying(token) = self.op.state
        {
            let Some(waiting) = core.flights.tag_mut(token).and_then(Tag::waiting) else {
                let error = core.check().err().unwrap_or_else(|| io::Error::other("the operation was over"));
                return Poll::Ready(Err(error));
            };
            waiting.waker.park(cx);
            self.sent = waiting.result;
        }
        match self.sent {
            Some(n @ 0..) => Poll::Ready(Ok(n as usize)),
            Some(errno) => Poll::Ready(Err(io::Error::from_raw_os_error(errno.saturating_neg()))),
            // It never began; that was told already.
            None if matches!(self.op.state, State::Done) => {
                Poll::Ready(Err(io::Error::other("the operation was over")))
            }
            None => Poll::Pending,
        }
    }

    /// Ready when the kernel has let go of the memory; only after [`poll_sent`](Self::poll_sent) was.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn poll_released(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Usage>> {
        let handle = self.op.handle.clone();
        let _deferral = Deferral::begin();
        let mut core = handle.shared.core.lock();
        let State::Flying(token) = self.op.state else {
            return Poll::Ready(Err(io::Error::other("the operation was over")));
        };
        let Some((request, mut tag)) = core.flights.take(token) else {
            if let Stage::Ended(end) = core.stage {
                return Poll::Ready(Err(end.into()));
            }
            if let Some(waiting) = core.flights.tag_mut(token).and_then(Tag::waiting) {
                waiting.waker.park(cx);
            }
            return Poll::Pending;
        };
        self.op.state = State::Done;
        core.keep_parts(request);
        core.call_crowd();
        let copied = tag.waiting().and_then(|waiting| waiting.copied);
        Poll::Ready(Ok(match (self.sent, copied) {
            (Some(0..), Some(false)) => Usage::ZeroCopy,
            // Without a notification it was an ordinary one.
            (Some(0..), Some(true) | None) => Usage::Copied,
            // The notification of a send that failed says something, too.
            _ => Usage::Unused,
        }))
    }
}

impl Drop for ZeroCopySend {
    fn drop(&mut self) {
        if let State::Flying(token) = self.op.state
            && self.sent.is_some()
        {
            self.op.state = State::Done;
            leave(&self.op.handle, token, false);
        }
    }
}
