//! What the parts of a lane share: the bells, the link, and how it ended.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};

use futures::task::{ArcWake, AtomicWaker};
use rustix::io::Errno;
use zc_core::transport::{ControlLink, LaneError};

use super::link::{Link, Missing, News, Readers};
use crate::bell::{Bell, PeerBell};
use crate::group::Chores;
use crate::remote::Calls;
use crate::sleep::Rang;
use crate::spare::Reserve;
use crate::words::PeerWords;

/// Who waits.
pub(crate) struct Wakers {
    pub(super) rx: AtomicWaker,
    pub(super) tx: Arc<AtomicWaker>,
    pub(super) drive: AtomicWaker,
    pub(crate) remote: Calls<PeerWords>,
    /// An export may have room for a notification.
    room: AtomicBool,
}

impl Wakers {
    /// Whether an export may have room for a notification again since the last call.
    pub(crate) fn take_room(&self) -> bool {
        self.room.load(Ordering::Relaxed) && self.room.swap(false, Ordering::Acquire)
    }

    /// The bell rang, or there is room on the link: for whichever half it was.
    pub(crate) fn wake_all(&self) {
        self.rx.wake();
        self.tx.wake();
        self.remote.wake();
    }
}

/// The waker that the bell and the link know.
struct Halves(Arc<Wakers>);

impl ArcWake for Halves {
    fn wake_by_ref(this: &Arc<Self>) {
        this.0.wake_all();
    }
}

/// What an export wakes when it has room; it may keep this when the lane is gone.
struct OneSided(Weak<Wakers>);

impl ArcWake for OneSided {
    fn wake_by_ref(this: &Arc<Self>) {
        if let Some(wakers) = this.0.upgrade() {
            wakers.room.store(true, Ordering::Release);
            wakers.remote.wake();
        }
    }
}

pub(crate) struct Shared {
    pub(crate) wakers: Arc<Wakers>,
    pub(crate) peer_bell: Arc<PeerBell>,
    /// Unused arenas are to be looked for.
    pub(super) trim: AtomicBool,
    /// There are arenas of ours beyond the first, and not all are known to be in use.
    pub(super) aging: AtomicBool,
    pub(super) chores: Arc<Chores>,
    bell: Bell,
    /// It was silenced since the sending half last looked.
    rang: Rang,
    /// The peer went on with a message in parts.
    heard: AtomicBool,
    halves: Waker,
    /// The link on which further arenas are announced, and whose end is the peer's.
    link: Arc<Link>,
    _reader: Arc<Readers>,
    _reserve: Reserve,
    ended: OnceLock<LaneError>,
}

impl Shared {
    pub(super) fn new(
        bell: Bell,
        peer_bell: Arc<PeerBell>,
        reader: Arc<Readers>,
        remote: Calls<PeerWords>,
        reserve: Reserve,
    ) -> Arc<Self> {
        let wakers = Arc::new(Wakers {
            rx: AtomicWaker::new(),
            tx: Arc::new(AtomicWaker::new()),
            drive: AtomicWaker::new(),
            remote,
            room: AtomicBool::new(false),
        });
        Arc::new(Self {
            halves: futures::task::waker(Arc::new(Halves(wakers.clone()))),
            wakers,
            peer_bell,
            trim: AtomicBool::new(false),
            aging: AtomicBool::new(false),
            chores: Arc::default(),
            bell,
            rang: Rang::new(),
            heard: AtomicBool::new(false),
            link: reader.0.clone(),
            _reader: reader,
            _reserve: reserve,
            ended: OnceLock::new(),
        })
    }

    /// Why the lane is at its end, if it is.
    #[inline]
    pub(crate) fn ended(&self) -> Option<&LaneError> {
        self.ended.get()
    }

    /// Whether nothing that the peer was lent is read any more: only then may it be written again (M2).
    pub(super) fn readers_gone(&self) -> bool {
        self.link.readers_gone()
    }

    /// What the peer's last reader is known by, for buffers that outlive the lane.
    pub(super) fn link(&self) -> Arc<Link> {
        self.link.clone()
    }

    /// The first reason stays.
    pub(crate) fn end(&self, why: LaneError) {
        let _ = self.ended.set(why);
        self.link.tell_end();
        self.wakers.wake_all();
        self.wakers.drive.wake();
    }

    /// Ready when our bell rang, which then is silent. The caller has registered its waker before; it
    /// must wake the others, for which the bell may have rung.
    pub(crate) fn poll_rung(&self) -> Poll<()> {
        match self.bell.poll_rung(&mut Context::from_waker(&self.halves)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                self.rang.set();
                Poll::Ready(())
            }
            Poll::Ready(Err(error)) => {
                self.end(LaneError::os("wait for the peer's bell", &error));
                Poll::Ready(())
            }
        }
    }

    /// Whether the bell rang since this was asked, for whomever.
    pub(super) fn take_rang(&self) -> bool {
        self.rang.take()
    }

    /// The peer went on with a message of which there is no frame yet: it lives.
    pub(super) fn hear(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// Whether it did since this was asked.
    pub(super) fn take_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed) && self.heard.swap(false, Ordering::Relaxed)
    }

    pub(super) fn adopt(&self, link: Box<dyn ControlLink>) {
        self.link.adopt(link);
        self.wakers.drive.wake();
        self.wakers.tx.wake();
        self.wakers.remote.wake();
    }

    pub(super) fn has_link(&self) -> bool {
        self.link.is_there()
    }

    /// Sends a descriptor; pending wakes all halves.
    pub(crate) fn poll_send_fd(&self, fd: BorrowedFd<'_>) -> Poll<io::Result<()>> {
        self.link.poll_send(&mut Context::from_waker(&self.halves), fd)
    }

    /// The descriptor that came first; if none did, the reserve may be spent on it, and after the end it is waited for only so long.
    pub(super) fn take_fd(&self) -> Result<OwnedFd, Missing> {
        self.link.take_fd().inspect_err(|missing| {
            if missing.is_new && (self.lacks_descriptors() || self.ended().is_some()) {
                self.wakers.drive.wake();
            }
        })
    }

    /// Whether the peer was asked for an export.
    pub(crate) fn expect_export(&self, is: bool) {
        if self.link.expect_export(is) {
            self.wakers.drive.wake();
        }
    }

    /// The export that came, if one did.
    pub(crate) fn take_export(&self) -> Option<OwnedFd> {
        self.link.take_export()
    }

    /// For exports that have no room; the one-sided half must be in use.
    pub(crate) fn room_waker(&self) -> Waker {
        futures::task::waker(Arc::new(OneSided(Arc::downgrade(&self.wakers))))
    }

    /// Whether something came for which there is no descriptor.
    pub(super) fn lacks_descriptors(&self) -> bool {
        self.link.lacks_descriptors()
    }

    /// Whether one of the halves waits for it.
    pub(super) fn waits_for_descriptors(&self) -> bool {
        self.link.is_waited_for()
    }

    /// The same while one may still come.
    pub(super) fn may_get_descriptors(&self) -> bool {
        self.link.may_bring_what_is_waited_for()
    }

    /// It is not waited for any more, and what is behind it is read.
    pub(super) fn give_up_descriptors(&self) {
        self.link.give_up();
        self.wakers.drive.wake();
        self.wakers.rx.wake();
    }

    /// Ends the lane for want of descriptors.
    pub(super) fn end_without_descriptors(&self) {
        self.give_up_descriptors();
        let (errno, operation) = (Errno::MFILE.raw_os_error(), "receive memory of the peer");
        self.end(LaneError::Os { errno, operation });
    }

    /// Reads what came on the link; true when there is something new.
    pub(super) fn read_link(&self, cx: &mut Context<'_>) -> bool {
        match self.link.read(cx) {
            News::None => return false,
            News::Descriptors => self.wakers.remote.wake(),
            News::End(why) => self.end(why),
        }
        true
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.link.tell_end();
        self.link.leave();
        crate::abandoned::sweep();
    }
}
