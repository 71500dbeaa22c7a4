//! The link once the lane is up: descriptors of further arenas, and how the peer goes.
//!
//! It goes in two steps, since messages outlive the lane that they came by. A byte without a descriptor: the
//! lane is at its end. The end of the stream: nothing that was lent is read any more. A process that dies
//! does the second at once.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use zc_core::transport::{ControlLink, LaneError};

use crate::lie::lie;
use crate::limits::{MAX_LINK_READS, MAX_PENDING_DESCRIPTORS};
use crate::{spare, sys};

/// What came on the link.
#[derive(Debug)]
pub(crate) enum News {
    None,
    Descriptors,
    /// The lane is at its end, for this reason.
    End(LaneError),
}

/// No descriptor has come.
#[derive(Debug)]
pub(crate) struct Missing {
    /// Nor will one: the link was read to the end of the peer's lane, or to a lie.
    pub(crate) is_over: bool,
    /// It is waited for only now.
    pub(crate) is_new: bool,
}

#[derive(Default)]
pub(crate) struct Link {
    state: Mutex<State>,
    /// The peer reads nothing of ours any more. Only the end of its stream says so: neither the end of
    /// its lane nor any failure does.
    readers_gone: AtomicBool,
    /// A descriptor that came can't be opened: there are none left.
    lacks: AtomicBool,
}

#[derive(Default)]
struct State {
    io: Option<Box<dyn ControlLink>>,
    came: Came,
    /// The peer's lane is at its end, or it lied: nothing but the end of its stream matters.
    over: bool,
    /// The peer was told that our lane is at its end.
    told: bool,
    /// Nobody drives the lane any more.
    left: bool,
}

/// Descriptors that came, and who waits for what did not.
#[derive(Default)]
struct Came {
    /// They came before their entry in the ring was read.
    arenas: VecDeque<OwnedFd>,
    /// The receiving half is at an entry whose descriptor has not come.
    wants_arena: bool,
    /// An export that came before its record was read.
    export: Option<OwnedFd>,
    /// It was asked for.
    wants_export: bool,
}

impl Link {
    pub(crate) fn adopt(&self, link: Box<dyn ControlLink>) {
        self.state.lock().io = Some(link);
    }

    pub(crate) fn is_there(&self) -> bool {
        self.state.lock().io.is_some()
    }

    /// Whether nothing that the peer was lent is read any more (M2).
    #[inline]
    pub(crate) fn readers_gone(&self) -> bool {
        self.readers_gone.load(Ordering::Acquire)
    }

    /// Sends a descriptor.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>, fd: BorrowedFd<'_>) -> Poll<io::Result<()>> {
        match &mut self.state.lock().io {
            Some(io) => io.poll_send_descriptors(cx, &[fd]),
            None => Poll::Pending,
        }
    }

    /// The descriptor that came first; if none did, it is waited for.
    pub(crate) fn take_fd(&self) -> Result<OwnedFd, Missing> {
        let State { came, over, .. } = &mut *self.state.lock();
        came.arenas.pop_front().ok_or_else(|| Missing {
            is_over: *over,
            is_new: !std::mem::replace(&mut came.wants_arena, true),
        })
    }

    /// Whether the peer was asked for an export; true: look again, now that it was.
    pub(crate) fn expect_export(&self, is: bool) -> bool {
        let came = &mut self.state.lock().came;
        let before = std::mem::replace(&mut came.wants_export, is);
        is && !before && self.lacks_descriptors()
    }

    /// The export that came, if one did.
    pub(crate) fn take_export(&self) -> Option<OwnedFd> {
        self.state.lock().came.export.take()
    }

    /// Whether one of the halves can't go on without a descriptor that has not come.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.state.lock().came.is_waited_for()
    }

    /// The same while one may still come.
    pub(crate) fn may_bring_what_is_waited_for(&self) -> bool {
        let state = self.state.lock();
        !state.over && state.came.is_waited_for()
    }

    /// Whether a descriptor came that can't be opened. It is not lost: read again after a while.
    pub(crate) fn lacks_descriptors(&self) -> bool {
        self.lacks.load(Ordering::Acquire)
    }

    /// What could not be opened is not waited for any more; nothing but the end of the peer's stream matters.
    pub(crate) fn give_up(&self) {
        self.state.lock().over = true;
        self.lacks.store(false, Ordering::Release);
    }

    /// Reads what came; a bounded part of it, and then wakes `cx` for the rest.
    pub(crate) fn read(&self, cx: &mut Context<'_>) -> News {
        let mut news = News::None;
        for _ in 0..MAX_LINK_READS {
            match self.read_one(cx) {
                Poll::Ready(Ok(News::None)) => {}
                Poll::Ready(Ok(found)) => news = found,
                // The first reason stays.
                Poll::Ready(Err(_)) if matches!(news, News::End(_)) => return news,
                Poll::Ready(Err(last)) => return last,
                Poll::Pending => return news,
            }
        }
        cx.waker().wake_by_ref();
        news
    }

    /// `Err` is the last thing that is said for now.
    fn read_one(&self, cx: &mut Context<'_>) -> Poll<Result<News, News>> {
        let mut state = self.state.lock();
        let State { io: Some(io), came: kept, over, .. } = &mut *state else { return Poll::Pending };
        if self.readers_gone() {
            return Poll::Pending;
        }
        let came = match receive(&mut **io, cx, *over, kept.is_waited_for()) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(came) => came,
        };
        let lacks = came.as_ref().is_err_and(sys::is_out_of_descriptors);
        self.lacks.store(lacks, Ordering::Release);
        if lacks {
            // Who drives the lane comes again.
            return Poll::Pending;
        }
        let end = match came {
            Err(error) if is_end(&error) => {
                self.readers_gone.store(true, Ordering::Release);
                *over = true;
                return Poll::Ready(Err(News::End(LaneError::PeerGone("its control link ended"))));
            }
            // It had descriptors, which nobody wants any more.
            Err(error) if *over && error.kind() == io::ErrorKind::InvalidData => {
                return Poll::Ready(Ok(News::None));
            }
            Err(_) if *over => return Poll::Pending,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => lie("shm link: descriptors").into(),
            Err(error) => LaneError::os("read the control link", &error),
            Ok(_) if *over => return Poll::Ready(Ok(News::None)),
            Ok(got) if got.is_empty() => LaneError::PeerGone("its lane ended"),
            Ok(got) => match got.into_iter().try_for_each(|fd| kept.keep(fd)) {
                Ok(()) => return Poll::Ready(Ok(News::Descriptors)),
                Err(error) => error,
            },
        };
        *over = true;
        Poll::Ready(Ok(News::End(end)))
    }

    /// Tells the peer that our lane is at its end; messages of it may still be read here.
    pub(crate) fn tell_end(&self) {
        let mut state = self.state.lock();
        let State { io: Some(io), told, .. } = &mut *state else { return };
        if !std::mem::replace(told, true) {
            // There is room: the peer reads all that may be under way (MAX_PENDING_DESCRIPTORS). One that does not
            // hears of the end by the connection's own link.
            let _ = io.poll_send_descriptors(&mut Context::from_waker(Waker::noop()), &[]);
        }
    }

    /// Nobody drives the lane any more: whoever wants to know of the peer's end asks. Descriptors are nobody's.
    pub(crate) fn leave(&self) {
        let mut state = self.state.lock();
        (state.left, state.over) = (true, true);
        let came = std::mem::take(&mut state.came);
        drop(state);
        drop(came);
        // One of them may have taken its place.
        spare::restock();
    }

    /// Looks whether the peer's last reader is gone, if no drive does.
    pub(crate) fn look_for_end(&self) {
        if self.state.lock().left {
            let _ = self.read(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// The next byte, and its descriptor: none is opened when the lane is `over`. If there is no room for one that somebody waits for,
/// what is in reserve makes some; a peer that sends what it never names has no hold on that.
fn receive(
    io: &mut dyn ControlLink,
    cx: &mut Context<'_>,
    over: bool,
    waited_for: bool,
) -> Poll<io::Result<Vec<OwnedFd>>> {
    match io.poll_recv_descriptors(cx, if over { 0 } else { 1 }) {
        Poll::Ready(Err(error)) if waited_for && sys::is_out_of_descriptors(&error) => {
            spare::restock();
            if spare::give_up() { io.poll_recv_descriptors(cx, 1) } else { Poll::Ready(Err(error)) }
        }
        done => done,
    }
}

impl Came {
    fn is_waited_for(&self) -> bool {
        self.wants_arena || self.wants_export && self.export.is_none()
    }

    /// Keeps a descriptor for who will ask for it: an arena's, or an export's.
    fn keep(&mut self, fd: OwnedFd) -> Result<(), LaneError> {
        if sys::is_export(&fd) {
            // An honest peer sends one when it is asked, and is asked again when that is there.
            if !self.wants_export || self.export.is_some() {
                return Err(lie("shm link: exports").into());
            }
            self.export = Some(fd);
            return Ok(());
        }
        // An honest peer waits until we have read the entries in the ring.
        if self.arenas.len() >= MAX_PENDING_DESCRIPTORS {
            return Err(lie("shm link: descriptors").into());
        }
        self.arenas.push_back(fd);
        self.wants_arena = false;
        Ok(())
    }
}

/// An end with bytes that were not read is a reset.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// Held by the lane and by all that the peer has lent us: with the last of them our stream to the peer ends.
pub(crate) struct Readers(pub(crate) Arc<Link>);

impl Drop for Readers {
    fn drop(&mut self) {
        if let Some(io) = &mut self.0.state.lock().io {
            let _ = io.poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;
    use std::os::fd::AsFd;

    use super::*;
    use crate::common::{links, run};

    /// The reserve is not spent on what nobody will take, nor is the end missed behind it.
    #[test]
    fn a_link_that_was_left_opens_nothing() {
        run(async {
            let (mut peer, ours) = links().await;
            let link = Link::default();
            link.adopt(ours);
            let region = sys::create(4096).unwrap();
            for _ in 0..2 {
                poll_fn(|cx| peer.poll_send_descriptors(cx, &[region.fd().unwrap().as_fd()])).await.unwrap();
            }
            poll_fn(|cx| link.read_one(cx)).await.unwrap();
            link.leave();
            drop(peer);
            while !link.readers_gone() {
                tokio::task::yield_now().await;
                link.look_for_end();
            }
            assert!(link.take_fd().is_err());
        });
    }

    /// What came before the end is there when the end is known, and is taken before it.
    #[test]
    fn the_end_is_told_when_nothing_is_left() {
        run(async {
            let (mut peer, ours) = links().await;
            let link = Link::default();
            link.adopt(ours);
            assert!(!link.take_fd().unwrap_err().is_over);
            let region = sys::create(4096).unwrap();
            poll_fn(|cx| peer.poll_send_descriptors(cx, &[region.fd().unwrap().as_fd()])).await.unwrap();
            drop(peer);
            while !link.readers_gone() {
                let _ = poll_fn(|cx| link.read_one(cx)).await;
            }
            assert!(link.take_fd().is_ok());
            assert!(link.take_fd().unwrap_err().is_over);
        });
    }
}
