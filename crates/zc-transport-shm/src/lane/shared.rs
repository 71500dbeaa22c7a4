//! What the parts of a lane share: the bells, the link, and how it ended.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use futures::task::{ArcWake, AtomicWaker};
use parking_lot::Mutex;
use zc_core::transport::{ControlLink, LaneError};
use zc_core::wire::WireError;

use crate::bell::{Bell, PeerBell};
use crate::limits::MAX_PENDING_DESCRIPTORS;

/// Who waits.
pub(super) struct Wakers {
    pub(super) rx: AtomicWaker,
    pub(super) tx: Arc<AtomicWaker>,
    pub(super) drive: AtomicWaker,
}

/// The waker that the bell and the link know: it wakes both halves, either or both.
struct Halves(Arc<Wakers>);

impl ArcWake for Halves {
    fn wake_by_ref(this: &Arc<Self>) {
        this.0.rx.wake();
        this.0.tx.wake();
    }
}

/// The link on which further arenas are announced, and whose end is the peer's.
#[derive(Default)]
struct Link {
    io: Option<Box<dyn ControlLink>>,
    /// Descriptors that came before their entry in the ring was read.
    fds: VecDeque<OwnedFd>,
}

pub(super) struct Shared {
    pub(super) wakers: Arc<Wakers>,
    pub(super) peer_bell: Arc<PeerBell>,
    /// Unused arenas are to be looked for.
    pub(super) trim: AtomicBool,
    /// Arenas of ours beyond the first.
    pub(super) grown: AtomicUsize,
    bell: Bell,
    halves: Waker,
    link: Mutex<Link>,
    ended: OnceLock<LaneError>,
}

impl Shared {
    pub(super) fn new(bell: Bell, peer_bell: Arc<PeerBell>) -> Arc<Self> {
        let wakers = Arc::new(Wakers {
            rx: AtomicWaker::new(),
            tx: Arc::new(AtomicWaker::new()),
            drive: AtomicWaker::new(),
        });
        Arc::new(Self {
            halves: futures::task::waker(Arc::new(Halves(wakers.clone()))),
            wakers,
            peer_bell,
            trim: AtomicBool::new(false),
            grown: AtomicUsize::new(0),
            bell,
            link: Mutex::default(),
            ended: OnceLock::new(),
        })
    }

    /// Why the lane is at its end, if it is.
    #[inline]
    pub(super) fn ended(&self) -> Option<&LaneError> {
        self.ended.get()
    }

    /// The first reason stays.
    pub(super) fn end(&self, why: LaneError) {
        let _ = self.ended.set(why);
        self.wakers.rx.wake();
        self.wakers.tx.wake();
    }

    /// Ready when our bell rang, which then is silent. The caller has registered its waker before; it
    /// must wake the other half, for which the bell may have rung.
    pub(super) fn poll_rung(&self) -> Poll<()> {
        match self.bell.poll_rung(&mut Context::from_waker(&self.halves)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(error)) => {
                self.end(LaneError::os("wait for the peer's bell", &error));
                Poll::Ready(())
            }
        }
    }

    pub(super) fn adopt(&self, link: Box<dyn ControlLink>) {
        self.link.lock().io = Some(link);
        self.wakers.drive.wake();
        self.wakers.tx.wake();
    }

    pub(super) fn has_link(&self) -> bool {
        self.link.lock().io.is_some()
    }

    /// Sends a descriptor; pending wakes the sending half.
    pub(super) fn poll_send_fd(&self, fd: BorrowedFd<'_>) -> Poll<io::Result<()>> {
        match &mut self.link.lock().io {
            Some(link) => link.poll_send_descriptors(&mut Context::from_waker(&self.halves), &[fd]),
            None => Poll::Pending,
        }
    }

    /// The descriptor that came first, if one did.
    pub(super) fn take_fd(&self) -> Option<OwnedFd> {
        let fd = self.link.lock().fds.pop_front();
        if fd.is_some() {
            // There is room for more: they are read by the driver.
            self.wakers.drive.wake();
        }
        fd
    }

    /// Reads what came on the link; true when there is something new.
    pub(super) fn read_link(&self, cx: &mut Context<'_>) -> bool {
        let mut news = false;
        let end = {
            let mut link = self.link.lock();
            let Link { io, fds } = &mut *link;
            let Some(io) = io else { return false };
            loop {
                // A peer that sends more than it may is not read: its entries must come first.
                if fds.len() >= MAX_PENDING_DESCRIPTORS {
                    return news;
                }
                match io.poll_recv_descriptors(cx, 1) {
                    Poll::Pending => return news,
                    Poll::Ready(Ok(got)) if got.len() == 1 => {
                        fds.extend(got);
                        news = true;
                    }
                    Poll::Ready(Ok(_)) => break LaneError::from(WireError::BadValue { field: "shm link" }),
                    Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {
                        break LaneError::PeerGone("its control link ended");
                    }
                    Poll::Ready(Err(e)) => break LaneError::os("read the control link", &e),
                }
            }
        };
        // Nothing more is expected: the link goes, and with it the peer's watch on us.
        let gone = self.link.lock().io.take();
        drop(gone);
        self.end(end);
        true
    }
}
