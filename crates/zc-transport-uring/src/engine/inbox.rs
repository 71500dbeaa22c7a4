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

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use zc_core::memory::PinnedBuf;

use super::End;
use super::parked::Parked;
use super::places::Place;
use crate::limits::MAX_INBOX_BYTES;
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

struct State {
    pieces: VecDeque<PinnedBuf>,
    /// What they count, see `MAX_INBOX_BYTES`.
    bytes: usize,
    /// What each counts at least.
    min_piece_bytes: usize,
    over: Option<Over>,
    mode: Mode,
    /// The owner wants it quiet.
    paused: bool,
    /// The owner is gone.
    closed: bool,
    reader: Parked,
}

/// Shared by a socket's receiving half and the engine.
pub(crate) struct Inbox {
    pub(crate) file: Arc<OwnedFd>,
    /// The engine has one operation to receive with for each inbox.
    _place: Place,
    state: Mutex<State>,
}

impl Inbox {
    pub(crate) fn new(file: Arc<OwnedFd>, place: Place, min_piece_bytes: usize) -> Arc<Self> {
        let state = State {
            pieces: VecDeque::new(),
            bytes: 0,
            min_piece_bytes,
            over: None,
            mode: Mode::Quiet,
            paused: false,
            closed: false,
            reader: Parked::default(),
        };
        Arc::new(Self { file, _place: place, state: Mutex::new(state) })
    }

    /// The next piece; an empty one is the end. And what the engine has to do for more.
    pub(crate) fn poll_take(&self, cx: Option<&Context<'_>>) -> (Poll<io::Result<PinnedBuf>>, Next) {
        let mut state = self.state.lock();
        if let Some(piece) = state.pieces.pop_front() {
            state.bytes -= state.counts(&piece);
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

    /// Pending while something receives by itself.
    pub(crate) fn poll_quiet(&self, cx: &Context<'_>) -> (Poll<()>, Next) {
        let mut state = self.state.lock();
        state.paused = true;
        let next = match state.mode {
            Mode::Quiet => return (Poll::Ready(()), Next::Nothing),
            Mode::Many(token) => {
                state.mode = Mode::Stopping;
                Next::Stop(token)
            }
            Mode::Queued => Next::Look,
            Mode::Stopping | Mode::Direct => Next::Nothing,
        };
        state.reader.park(cx);
        (Poll::Pending, next)
    }

    /// For a receive into a buffer of the caller's: nothing else may be on its way.
    pub(crate) fn begin_direct(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.mode != Mode::Quiet || !state.pieces.is_empty() {
            let text = "receiving goes on: wait until it is quiet and take what has come";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if let Some(Over::Engine(end)) = state.over {
            return Err(end.into());
        }
        state.mode = Mode::Direct;
        Ok(())
    }

    /// Such a receive is over. Without an owner to tell, its bytes are kept, and its end is noted.
    pub(crate) fn end_direct(&self, left: Option<(i32, Option<PinnedBuf>)>) {
        let mut state = self.state.lock();
        state.mode = Mode::Quiet;
        if let Some((result, bytes)) = left {
            match (result, bytes) {
                (1.., Some(bytes)) => state.put(bytes),
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

    /// It has begun. The owner may have paused or gone since it was asked, so it may be to end at once.
    pub(crate) fn armed(&self, token: Token) -> Next {
        let mut state = self.state.lock();
        if state.may_receive() {
            state.mode = Mode::Many(token);
            return Next::Nothing;
        }
        state.mode = Mode::Stopping;
        Next::Stop(token)
    }

    /// A completion of the operation that receives.
    pub(crate) fn received(&self, pieces: Pieces, result: i32, more: bool) -> Next {
        let mut state = self.state.lock();
        // Behind a failure there is a hole in the stream.
        if state.over.is_none() {
            pieces.into_iter().for_each(|piece| state.put(piece));
        }
        let over = match result {
            1.. => None,
            0 if more => None,
            0 => Some(Over::Ended),
            _ if is_passing(result) => None,
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

    /// The owner goes.
    pub(crate) fn close(&self) -> Next {
        let mut state = self.state.lock();
        state.closed = true;
        state.pieces.clear();
        state.bytes = 0;
        match state.mode {
            Mode::Many(token) => {
                state.mode = Mode::Stopping;
                Next::Stop(token)
            }
            Mode::Queued => Next::Look,
            Mode::Quiet | Mode::Stopping | Mode::Direct => Next::Nothing,
        }
    }
}

/// Errors after which receiving goes on: no buffer left, cancelled (to pause, or with its thread), interrupted.
fn is_passing(result: i32) -> bool {
    [-libc::ENOBUFS, -libc::ECANCELED, -libc::EINTR].contains(&result)
}

impl State {
    fn put(&mut self, piece: PinnedBuf) {
        if self.closed || piece.is_empty() {
            return;
        }
        self.bytes += self.counts(&piece);
        self.pieces.push_back(piece);
        self.reader.wake();
    }

    fn counts(&self, piece: &PinnedBuf) -> usize {
        piece.len().max(self.min_piece_bytes)
    }

    fn may_receive(&self) -> bool {
        !self.closed && !self.paused && self.over.is_none() && self.bytes < MAX_INBOX_BYTES
    }

    fn arm(&mut self) -> Next {
        if self.mode != Mode::Quiet || !self.may_receive() {
            return Next::Nothing;
        }
        self.mode = Mode::Queued;
        Next::Arm
    }

    fn stop_if_unwanted(&mut self) -> Next {
        match self.mode {
            Mode::Many(token) if !self.may_receive() => {
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
    use crate::limits::MIN_PIECE_BYTES;
    use crate::slab::Slab;

    fn inbox() -> (Arc<Inbox>, Token) {
        let (file, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let inbox = Inbox::new(Arc::new(file.into()), Places::new(1).take().unwrap(), MIN_PIECE_BYTES);
        let token = Slab::new(1).insert(false, ()).unwrap();
        assert!(matches!(inbox.poll_take(Some(&cx())), (Poll::Pending, Next::Arm)));
        assert!(inbox.wants_arming());
        (inbox, token)
    }

    fn cx() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
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
        inbox.close();
        assert_eq!(inbox.armed(token), Next::Stop(token));

        let (inbox, token) = self::inbox();
        assert_eq!(inbox.armed(token), Next::Nothing);
    }
    /// A peer that sends single bytes to somebody who does not read takes no more memory than one that sends much.
    #[test]
    fn short_pieces_count_as_what_they_keep() {
        let (inbox, token) = self::inbox();
        assert_eq!(inbox.armed(token), Next::Nothing);
        let receive = || inbox.received(Pieces::from_iter([vec![1].into()]), 1, true);
        let most = MAX_INBOX_BYTES / MIN_PIECE_BYTES;
        assert!((1..most).all(|_| receive() == Next::Nothing));
        assert_eq!(receive(), Next::Stop(token));
        assert_eq!(inbox.received(Pieces::new(), -libc::ECANCELED, false), Next::Nothing);
        // It goes on when half of it is read.
        let nexts = (0..most).map(|_| inbox.poll_take(Some(&cx())).1);
        assert_eq!(nexts.take_while(|next| *next == Next::Nothing).count(), most / 2 - 1);
    }
    /// Bytes were lost although more follows: what came before is there, and then the error, not what follows.
    #[test]
    fn a_hole_in_the_stream_is_an_error() {
        let (inbox, token) = self::inbox();
        assert_eq!(inbox.armed(token), Next::Nothing);
        let piece = |byte| Pieces::from_iter([vec![byte].into()]);
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
