//! What was received for one socket, and how receiving goes on. No I/O.
//!
//! ```text
//! Quiet -> Queued -> Many --(too much, or a pause)--> Stopping
//!   ^ |                |                                 |
//!   | |                +---- last completion ------------+--> Quiet
//!   +-+-> Direct ------------ taken, or dropped ------------> Quiet
//! ```
//!
//! One operation at a time receives, so the order of bytes is that of completions. What comes for a future that was
//! dropped lands here, so no byte is lost.
//!
//! The end has a watch of its own, one operation for as long as the owner receives. Bytes and an end (or a reset) that follows at
//! once both wake a multishot receive, and the kernel may count both as one: it takes the bytes and waits for ever for
//! more (<https://github.com/axboe/liburing/issues/1549>; the correction in Linux 7.0, "io_uring/poll: fix multishot recv missing EOF
//! on wakeup race", leaves cases). Since the watch has spoken, receiving begins anew after each piece, until it comes to the end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use zc_core::memory::{CopyLedger, PinnedBuf};

use super::End;
use super::parked::Parked;
use super::places::Place;
use super::relief::Ledger;
use crate::limits::{MAX_INBOX_BYTES, MIN_PIECE_BYTES};
use crate::slab::Token;
use crate::sys::Pieces;

/// What receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Quiet,
    /// The engine will begin.
    Queued,
    Many(Token),
    Stopping,
    /// One receive into a buffer of the caller's.
    Direct,
}

/// Why nothing more comes.
#[derive(Debug, Clone, Copy)]
enum Over {
    /// The peer has ended the stream.
    Ended,
    Failed(i32),
    Engine(End),
}

/// What tells of the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    None,
    Begun(Token),
    /// The peer sends no more, or the connection is over; something may be left to receive.
    Spoke,
}

/// What the engine has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Nothing,
    /// Begin to receive.
    Arm,
    /// Look again whether to begin.
    Look,
    /// Cancel this.
    Stop(Token),
}

/// A piece that waits for the reader.
struct Waiting {
    bytes: PinnedBuf,
    /// The receive buffer that it lies in.
    buffer: Option<u64>,
    /// What it counts: the first of several of one buffer for all of it.
    counts: usize,
}

struct State {
    pieces: VecDeque<Waiting>,
    /// What they count, see `MAX_INBOX_BYTES`: at least what all buffers hold that they keep.
    bytes: usize,
    over: Option<Over>,
    mode: Mode,
    /// The owner wants it quiet.
    paused: bool,
    /// The owner is gone.
    closed: bool,
    /// It is queued, and there is nothing to receive into.
    starved: bool,
    watch: Watch,
    reader: Parked,
}

/// Shared by a socket's receiving half and the engine.
pub(crate) struct Inbox {
    pub(crate) file: Arc<OwnedFd>,
    /// The engine has an operation to receive with and one for the end for each inbox.
    _place: Place,
    /// It is received into the engine's area, if it has one, and this is told of what is copied out of there.
    area: Option<Ledger>,
    state: Mutex<State>,
}

impl Inbox {
    pub(super) fn new(file: Arc<OwnedFd>, place: Place, area: Option<Ledger>) -> Arc<Self> {
        let state = State {
            pieces: VecDeque::new(),
            bytes: 0,
            over: None,
            mode: Mode::Quiet,
            paused: false,
            closed: false,
            starved: false,
            watch: Watch::None,
            reader: Parked::default(),
        };
        Arc::new(Self { file, _place: place, area, state: Mutex::new(state) })
    }

    /// Whether it is received into the engine's area.
    pub(crate) fn is_into_area(&self) -> bool {
        self.area.is_some()
    }

    /// Who is told of what is copied out of there.
    pub(super) fn ledger(&self) -> Option<&CopyLedger> {
        self.area.as_ref()?.as_deref()
    }

    /// The next piece; an empty one is the end. And what the engine has to do for more.
    pub(crate) fn poll_take(&self, cx: Option<&Context<'_>>) -> (Poll<io::Result<PinnedBuf>>, Next) {
        let mut state = self.state.lock();
        if let Some(piece) = state.take() {
            // What is left of a pause is over when half of it is read, so that it is not stopped again at once.
            let next =
                if state.bytes <= MAX_INBOX_BYTES / 2 && cx.is_some() { state.arm() } else { Next::Nothing };
            return (Poll::Ready(Ok(piece)), next);
        }
        match state.over {
            Some(Over::Ended) => return (Poll::Ready(Ok(PinnedBuf::empty())), Next::Nothing),
            Some(Over::Failed(errno)) => {
                return (Poll::Ready(Err(io::Error::from_raw_os_error(errno))), Next::Nothing);
            }
            Some(Over::Engine(end)) => return (Poll::Ready(Err(end.into())), Next::Nothing),
            None => {}
        }
        let Some(cx) = cx else { return (Poll::Pending, Next::Nothing) };
        state.reader.park(cx);
        state.paused = false;
        (Poll::Pending, state.arm())
    }

    /// Whether something receives, and nothing has come that the reader has not taken. He is not woken then until he waits
    /// once more, which he does after a look for more.
    pub(crate) fn is_awaited(&self) -> bool {
        let mut state = self.state.lock();
        let is_awaited = state.pieces.is_empty()
            && state.over.is_none()
            && matches!(state.mode, Mode::Many(_) | Mode::Stopping | Mode::Direct);
        if is_awaited {
            // Let go of where no lock is held, see `Parked`.
            drop(std::mem::take(&mut state.reader));
        }
        is_awaited
    }

    /// Pending while something receives by itself.
    pub(crate) fn poll_quiet(&self, cx: &Context<'_>) -> (Poll<()>, Next) {
        let mut state = self.state.lock();
        let next = state.pause();
        if state.mode == Mode::Quiet {
            return (Poll::Ready(()), next);
        }
        state.reader.park(cx);
        (Poll::Pending, next)
    }

    /// Nothing is to receive by itself until somebody waits for something.
    pub(crate) fn pause(&self) -> Next {
        self.state.lock().pause()
    }

    /// Nothing receives, all that came is taken, and nothing is known of an end: who reads the socket itself misses that.
    pub(crate) fn is_quiet(&self) -> bool {
        let state = self.state.lock();
        state.over.is_none() && state.check_quiet().is_ok()
    }

    /// For a receive into a buffer of the caller's: nothing else may be on its way.
    pub(crate) fn begin_direct(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_quiet()?;
        state.mode = Mode::Direct;
        Ok(())
    }

    /// For a read past the engine: the same.
    pub(crate) fn check_quiet(&self) -> io::Result<()> {
        self.state.lock().check_quiet()
    }

    /// Such a receive is over. Without an owner to tell, its bytes are kept, and its end is noted.
    pub(crate) fn end_direct(&self, left: Option<(i32, Option<PinnedBuf>)>) {
        let mut state = self.state.lock();
        state.mode = Mode::Quiet;
        if let Some((result, bytes)) = left {
            match (result, bytes) {
                (1.., Some(bytes)) => state.put(bytes, None),
                (0, _) => state.over = Some(Over::Ended),
                (n, _) if n == -libc::ECANCELED || n == -libc::EINTR => {}
                (n, _) if n < 0 => state.over = Some(Over::Failed(n.saturating_neg())),
                _ => {}
            }
        }
        state.reader.wake();
    }

    /// Whether the engine is to begin; it then tells with [`armed`](Self::armed).
    pub(crate) fn wants_arming(&self) -> bool {
        let mut state = self.state.lock();
        if state.mode == Mode::Queued && !state.may_receive() {
            state.mode = Mode::Quiet;
            state.reader.wake();
        }
        state.mode == Mode::Queued
    }

    /// The engine can't begin for want of memory.
    pub(crate) fn starve(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.starved, true) {
            state.reader.wake();
        }
    }

    pub(crate) fn is_starved(&self) -> bool {
        let state = self.state.lock();
        state.starved && state.mode == Mode::Queued
    }

    /// It has begun. The owner may have paused or gone since it was asked, so it may be to end at once.
    pub(crate) fn armed(&self, token: Token) -> Next {
        let mut state = self.state.lock();
        state.starved = false;
        if state.may_receive() {
            state.mode = Mode::Many(token);
            return Next::Nothing;
        }
        state.mode = Mode::Stopping;
        Next::Stop(token)
    }

    /// Whether the watch is to begin.
    pub(crate) fn wants_watch(&self) -> bool {
        let state = self.state.lock();
        state.watch == Watch::None && !state.closed
    }

    /// It has begun; what the engine has to do is as for [`armed`](Self::armed).
    pub(crate) fn watched(&self, token: Token) -> Next {
        let mut state = self.state.lock();
        if state.closed {
            return Next::Stop(token);
        }
        state.watch = Watch::Begun(token);
        Next::Nothing
    }

    /// The watch is over.
    pub(crate) fn watch_spoke(&self, result: i32) -> Next {
        let mut state = self.state.lock();
        if result < 0 {
            // The engine ends, or the kernel had no memory for it: the next receive begins another one.
            state.watch = Watch::None;
            return Next::Nothing;
        }
        state.watch = Watch::Spoke;
        state.stop_if_unwanted()
    }

    /// A completion of the operation that receives.
    pub(crate) fn received(&self, pieces: Pieces, result: i32, more: bool) -> Next {
        let mut state = self.state.lock();
        // Behind a failure there is a hole in the stream.
        if state.over.is_none() {
            pieces.into_iter().for_each(|piece| state.put(piece.bytes, Some(piece.buffer)));
        }
        let over = match result {
            1.. => None,
            0 if more => None,
            0 => Some(Over::Ended),
            _ if is_passing(result) || self.is_into_area() && is_passing_in_area(result) => None,
            _ => Some(Over::Failed(result.saturating_neg())),
        };
        if state.over.is_none() {
            state.over = over;
        }
        if more {
            return state.stop_if_unwanted();
        }
        state.mode = Mode::Quiet;
        state.reader.wake();
        state.arm()
    }

    /// The engine ends.
    pub(crate) fn fail(&self, end: End) {
        let mut state = self.state.lock();
        state.mode = Mode::Quiet;
        state.over.get_or_insert(Over::Engine(end));
        state.reader.wake();
    }

    /// The engine could not go on.
    pub(crate) fn fail_os(&self, errno: i32) {
        let mut state = self.state.lock();
        state.mode = Mode::Quiet;
        state.over.get_or_insert(Over::Failed(errno));
        state.reader.wake();
    }

    /// The owner goes, and with it the watch.
    pub(crate) fn close(&self) -> (Next, Option<Token>) {
        let mut state = self.state.lock();
        let watch = if let Watch::Begun(token) = state.watch { Some(token) } else { None };
        state.closed = true;
        state.pieces.clear();
        state.bytes = 0;
        let next = match state.mode {
            Mode::Many(token) => {
                state.mode = Mode::Stopping;
                Next::Stop(token)
            }
            Mode::Queued => Next::Look,
            Mode::Quiet | Mode::Stopping | Mode::Direct => Next::Nothing,
        };
        (next, watch)
    }
}

/// Errors after which receiving goes on: no buffer left, cancelled (to pause, or with its thread), interrupted.
fn is_passing(result: i32) -> bool {
    [-libc::ENOBUFS, -libc::ECANCELED, -libc::EINTR].contains(&result)
}

/// Of the area: no room in it, or in the queue of completions. The engine knows when to begin anew.
fn is_passing_in_area(result: i32) -> bool {
    [-libc::ENOMEM, -libc::ENOSPC].contains(&result)
}

impl State {
    fn check_quiet(&self) -> io::Result<()> {
        if self.mode != Mode::Quiet || !self.pieces.is_empty() {
            let text = "receiving goes on: wait until it is quiet and take what has come";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        match self.over {
            Some(Over::Engine(end)) => Err(end.into()),
            _ => Ok(()),
        }
    }

    fn pause(&mut self) -> Next {
        self.paused = true;
        match self.mode {
            Mode::Many(token) => {
                self.mode = Mode::Stopping;
                Next::Stop(token)
            }
            Mode::Queued => Next::Look,
            Mode::Quiet | Mode::Stopping | Mode::Direct => Next::Nothing,
        }
    }

    fn put(&mut self, bytes: PinnedBuf, buffer: Option<u64>) {
        if self.closed || bytes.is_empty() {
            return;
        }
        let goes_on = buffer.is_some() && self.pieces.back().is_some_and(|last| last.buffer == buffer);
        let kept = if goes_on { 0 } else { bytes.kept_bytes().max(bytes.len()) };
        let counts = kept.max(MIN_PIECE_BYTES);
        self.bytes += counts;
        self.pieces.push_back(Waiting { bytes, buffer, counts });
        self.reader.wake();
    }

    fn take(&mut self) -> Option<PinnedBuf> {
        let first = self.pieces.pop_front()?;
        let mut counts = first.counts;
        if let Some(next) = self.pieces.front_mut()
            && next.buffer.is_some()
            && next.buffer == first.buffer
        {
            // From here on this one keeps the buffer.
            std::mem::swap(&mut counts, &mut next.counts);
        }
        self.bytes -= counts;
        Some(first.bytes)
    }

    fn may_receive(&self) -> bool {
        !self.closed && !self.paused && self.over.is_none() && self.bytes < MAX_INBOX_BYTES
    }

    fn arm(&mut self) -> Next {
        if self.mode != Mode::Quiet || !self.may_receive() {
            return Next::Nothing;
        }
        // Asked anew: there may be memory again.
        (self.mode, self.starved) = (Mode::Queued, false);
        Next::Arm
    }

    fn stop_if_unwanted(&mut self) -> Next {
        match self.mode {
            Mode::Many(token) if !self.may_receive() || self.watch == Watch::Spoke => {
                self.mode = Mode::Stopping;
                Next::Stop(token)
            }
            _ => Next::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::Places;
    use super::*;
    use crate::limits::RECV_BUFFER_BYTES;
    use crate::slab::Slab;
    use crate::sys::Piece;
    use zc_core::memory::BufPool;

    fn inbox() -> (Arc<Inbox>, Token) {
        let (file, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let inbox = Inbox::new(Arc::new(file.into()), Places::new(1).take().unwrap(), None);
        let token = Slab::new(1).insert(false, ()).unwrap();
        assert!(matches!(inbox.poll_take(Some(&cx())), (Poll::Pending, Next::Arm)));
        assert!(inbox.wants_arming());
        (inbox, token)
    }

    fn cx() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    /// Who reads the socket itself would not hear of it.
    #[test]
    fn what_is_known_of_the_end_is_told_before_anybody_reads_past_the_ring() {
        for (result, expected) in [(-libc::ECONNRESET, Err(libc::ECONNRESET)), (0, Ok(0))] {
            let (inbox, token) = inbox();
            assert_eq!(inbox.armed(token), Next::Nothing);
            assert!(matches!(inbox.pause(), Next::Stop(_)));
            assert!(!inbox.is_quiet());
            assert_eq!(inbox.received(Pieces::new(), result, false), Next::Nothing);
            assert!(!inbox.is_quiet());
            let (told, _) = inbox.poll_take(None);
            let Poll::Ready(told) = told else { panic!("nothing is told") };
            assert_eq!(told.map(|piece| piece.len()).map_err(|e| e.raw_os_error().unwrap()), expected);
        }
    }

    /// The owner stops while the engine is about to begin: what has begun then ends.
    #[test]
    fn a_stop_while_receiving_begins_is_not_lost() {
        let (inbox, token) = self::inbox();
        let (paused, _) = inbox.poll_quiet(&cx());
        assert!(paused.is_pending());
        assert_eq!(inbox.armed(token), Next::Stop(token));
        assert_eq!(inbox.received(Pieces::new(), -libc::ECANCELED, false), Next::Nothing);
        assert!(inbox.poll_quiet(&cx()).0.is_ready());

        let (inbox, token) = self::inbox();
        let _ = inbox.close();
        assert_eq!(inbox.armed(token), Next::Stop(token));

        let (inbox, token) = self::inbox();
        assert_eq!(inbox.armed(token), Next::Nothing);
    }

    /// Who received by other means while there was no memory, and asks again later, is told anew.
    #[test]
    fn want_of_memory_is_not_remembered() {
        let (inbox, token) = self::inbox();
        for _ in 0..2 {
            assert!(!inbox.is_starved());
            inbox.starve();
            assert!(inbox.is_starved());
            assert!(inbox.poll_quiet(&cx()).0.is_pending() && !inbox.wants_arming());
            assert!(inbox.poll_quiet(&cx()).0.is_ready());
            assert!(matches!(inbox.poll_take(Some(&cx())), (Poll::Pending, Next::Arm)));
        }
        assert!(inbox.wants_arming() && !inbox.is_starved());
        assert_eq!(inbox.armed(token), Next::Nothing);
    }

    /// A peer that sends single bytes to somebody who does not read takes no more memory than one that sends much, also
    /// if each byte keeps a buffer whose other bytes were of sockets that are read.
    #[test]
    fn short_pieces_count_as_what_they_keep() {
        let (inbox, token) = self::inbox();
        assert_eq!(inbox.armed(token), Next::Nothing);
        let pool = BufPool::builder().max_bytes(2 * MAX_INBOX_BYTES).build();
        let receive = |buffer| {
            let mut bytes = pool.try_alloc(RECV_BUFFER_BYTES).unwrap();
            bytes.put_slice(&[1]);
            inbox.received(Pieces::from_iter([Piece { bytes: bytes.freeze(), buffer }]), 1, true)
        };
        let most = MAX_INBOX_BYTES / RECV_BUFFER_BYTES;
        assert!((1..most as u64).all(|n| receive(n) == Next::Nothing));
        assert_eq!(receive(0), Next::Stop(token));
        assert_eq!(inbox.received(Pieces::new(), -libc::ECANCELED, false), Next::Nothing);
        // It goes on when half of it is read.
        let nexts = (0..most).map(|_| inbox.poll_take(Some(&cx())).1);
        assert_eq!(nexts.take_while(|next| *next == Next::Nothing).count(), most / 2 - 1);
    }
    /// Pieces of one buffer count it once, as long as one of them is left.
    #[test]
    fn pieces_of_one_buffer_count_it_once() {
        let (inbox, token) = self::inbox();
        assert_eq!(inbox.armed(token), Next::Nothing);
        let pool = BufPool::builder().max_bytes(MAX_INBOX_BYTES).build();
        let [one, other] = [(); 2].map(|()| {
            let mut whole = pool.try_alloc(RECV_BUFFER_BYTES).unwrap();
            whole.set_len(RECV_BUFFER_BYTES);
            whole.freeze()
        });
        let counted = || inbox.state.lock().bytes;
        for n in 0..10 {
            let piece = Piece { bytes: one.slice(n..n + 1), buffer: 7 };
            assert_eq!(inbox.received(Pieces::from_iter([piece]), 1, true), Next::Nothing);
            assert_eq!(counted(), RECV_BUFFER_BYTES + n * MIN_PIECE_BYTES);
        }
        let piece = Piece { bytes: other, buffer: 8 };
        assert_eq!(inbox.received(Pieces::from_iter([piece]), 1, true), Next::Nothing);
        for left in (0..10).rev() {
            let first = if left > 0 { RECV_BUFFER_BYTES + (left - 1) * MIN_PIECE_BYTES } else { 0 };
            assert!(inbox.poll_take(None).0.is_ready());
            assert_eq!(counted(), first + RECV_BUFFER_BYTES);
        }
        assert!(inbox.poll_take(None).0.is_ready());
        assert_eq!(counted(), 0);
    }
    /// The watch speaks while something receives: that begins anew after each piece, until it finds the end.
    #[test]
    fn an_end_that_the_watch_saw_is_looked_for_until_it_is_found() {
        let (inbox, token) = self::inbox();
        let watch = Slab::new(1).insert(false, ()).unwrap();
        assert_eq!(inbox.armed(token), Next::Nothing);
        assert!(inbox.wants_watch());
        assert_eq!(inbox.watched(watch), Next::Nothing);
        assert!(!inbox.wants_watch());
        assert_eq!(inbox.watch_spoke(libc::POLLRDHUP.into()), Next::Stop(token));
        let piece = || Pieces::from_iter([Piece { bytes: vec![1].into(), buffer: 1 }]);
        // Stopped, it begins anew, finds something, and is stopped again.
        for _ in 0..3 {
            assert_eq!(inbox.received(Pieces::new(), -libc::ECANCELED, false), Next::Arm);
            assert!(inbox.wants_arming() && inbox.armed(token) == Next::Nothing);
            assert_eq!(inbox.received(piece(), 1, true), Next::Stop(token));
        }
        assert_eq!(inbox.received(Pieces::new(), 0, false), Next::Nothing);
        let pieces = std::iter::from_fn(|| match inbox.poll_take(None).0 {
            Poll::Ready(Ok(piece)) if !piece.is_empty() => Some(piece.len()),
            _ => None,
        });
        assert_eq!(pieces.sum::<usize>(), 3);
        assert!(matches!(inbox.poll_take(None).0, Poll::Ready(Ok(end)) if end.is_empty()));
    }

    /// It stops nothing but what receives by itself, and goes with its owner.
    #[test]
    fn a_watch_goes_with_its_owner() {
        let (inbox, token) = self::inbox();
        let watch = Slab::new(1).insert(false, ()).unwrap();
        assert_eq!((inbox.armed(token), inbox.watched(watch)), (Next::Nothing, Next::Nothing));
        assert_eq!(inbox.close(), (Next::Stop(token), Some(watch)));
        assert!(!inbox.wants_watch());

        let (inbox, _) = self::inbox();
        assert_eq!(inbox.watch_spoke(libc::POLLHUP.into()), Next::Nothing);
        assert_eq!(inbox.close(), (Next::Look, None));
        // The owner went while it began.
        let (inbox, _) = self::inbox();
        let _ = inbox.close();
        assert_eq!(inbox.watched(watch), Next::Stop(watch));
        // Where the kernel could not watch there is another one next time.
        let (inbox, _) = self::inbox();
        assert_eq!(inbox.watched(watch), Next::Nothing);
        assert_eq!(inbox.watch_spoke(-libc::ENOMEM), Next::Nothing);
        assert!(inbox.wants_watch());
    }

    /// Bytes were lost although more follows: what came before is there, and then the error, not what follows.
    #[test]
    fn a_hole_in_the_stream_is_an_error() {
        let (inbox, token) = self::inbox();
        assert_eq!(inbox.armed(token), Next::Nothing);
        let piece = |byte| Pieces::from_iter([Piece { bytes: vec![byte].into(), buffer: byte.into() }]);
        assert_eq!(inbox.received(piece(1), 1, true), Next::Nothing);
        assert_eq!(inbox.received(Pieces::new(), -libc::EIO, true), Next::Stop(token));
        assert_eq!(inbox.received(piece(3), 1, true), Next::Nothing);
        assert_eq!(inbox.received(Pieces::new(), 0, false), Next::Nothing);
        let take = || match inbox.poll_take(Some(&cx())).0 {
            Poll::Ready(done) => done,
            Poll::Pending => panic!("neither bytes nor an end"),
        };
        assert_eq!(take().unwrap()[..], [1]);
        assert_eq!(take().unwrap_err().raw_os_error(), Some(libc::EIO));
    }
}
