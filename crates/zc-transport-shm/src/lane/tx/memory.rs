//! Memory of the sending half: blocks, and arenas that come and go.

use std::io;
use std::sync::atomic::Ordering;
use std::task::Poll;

use rustix::io::Errno;
use zc_core::memory::{PinnedBuf, PinnedBufMut, Region};
use zc_core::transport::LaneError;

use super::Tx;
use crate::abandoned;
use crate::group::{Place, Planned};
use crate::layout::{Head, Kind};
use crate::limits::{MAX_PENDING_DESCRIPTORS, REAP_BATCH, REAP_BATCH_MAX_BYTES};

impl Tx {
    /// A block of the arena, which grows if it must and can.
    #[inline]
    pub(super) fn memory(&mut self, len: usize) -> io::Result<Option<PinnedBufMut>> {
        self.taken += 1;
        if self.taken < REAP_BATCH
            && len <= REAP_BATCH_MAX_BYTES
            && let Some(buf) = self.arena.take(len)
        {
            return Ok(Some(buf));
        }
        self.taken = 0;
        // A lie has ended the lane: whoever asks next is told.
        if self.reap().is_err() {
            return Ok(None);
        }
        loop {
            if let Some(buf) = self.arena.take(len) {
                return Ok(Some(buf));
            }
            match self.grow(len) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                // What the peer gives back will do as well.
                Err(error) if is_shortage(&error) && self.arena.holds_any() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes and announces a further arena; false while that is not possible.
    fn grow(&mut self, len: usize) -> io::Result<bool> {
        if !self.shared.has_link() || !self.may_announce() {
            return Ok(false);
        }
        let before = self.arena.grown();
        let made = self.make(len);
        if self.arena.grown() != before {
            self.count_arenas();
        }
        if !made? { Ok(false) } else { self.hand_over() }
    }

    /// Whether the peer takes another descriptor: it has read the entries of earlier ones.
    pub(super) fn may_announce(&mut self) -> bool {
        let read = self.ring.consumed();
        while self.announced.front().is_some_and(|at| *at < read) {
            self.announced.pop_front();
        }
        self.announced.len() < MAX_PENDING_DESCRIPTORS && self.ring.free() > 0
    }

    /// Makes a further arena; idle ones make room for it. False when there is none.
    fn make(&mut self, len: usize) -> io::Result<bool> {
        if self.new_slab.is_none() {
            self.new_slab = self.arena.prepare(len)?;
        }
        while self.new_slab.is_none() && self.ring.free() > 1 {
            let Some(at) = self.arena.retire(false) else { break };
            self.announce(Kind::Retire, &[at.into()]);
            self.new_slab = self.arena.prepare(len)?;
        }
        Ok(self.new_slab.is_some())
    }

    /// Sends the new arena's descriptor and then its entry.
    fn hand_over(&mut self) -> io::Result<bool> {
        let Some(new) = self.new_slab.take() else { return Ok(false) };
        let fd = new.region.fd().ok_or(io::ErrorKind::InvalidData)?;
        let sent = self.shared.poll_send_fd(fd);
        if let Poll::Ready(Ok(())) = sent {
            self.announced.push_back(self.ring.count());
            self.announce(Kind::Grow, &new.entry.pack());
            self.arena.install(new);
            self.count_arenas();
            return Ok(true);
        }
        self.new_slab = Some(new);
        match sent {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.shared.end(LaneError::PeerGone("its control link ended"));
                Ok(false)
            }
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(false),
        }
    }

    /// Where the peer finds a buffer of a group, which it is told of if it has not been yet; `None` if it is to be
    /// copied.
    pub(super) fn show(&mut self, buf: &PinnedBuf, planned: &Planned) -> Option<Place> {
        let place = self.shown.place_of(buf, planned)?;
        let told =
            self.shown.is_announced(place.region) || self.announce_region(buf.region()?, &place, planned);
        told.then_some(place)
    }

    /// Sends the descriptor of a region of a group and then its entry; false while that is not possible.
    #[cold]
    fn announce_region(&mut self, region: &Region, place: &Place, planned: &Planned) -> bool {
        // Nobody else may look at what the peer has read as long as there is room in the ring.
        if !self.shared.has_link() || !(self.may_announce() || self.refresh().is_ok() && self.may_announce())
        {
            return false;
        }
        // At least one slot stays. What the same message names must not go: it is not lent yet.
        if planned.is_empty() {
            self.tell_gone();
        }
        let Some(share) = self.shown.tell(place.region) else { return false };
        let sent = region.fd().map(|fd| self.shared.poll_send_fd(fd));
        // If the link is at its end, the drive will say so.
        if !matches!(sent, Some(Poll::Ready(Ok(())))) {
            self.shown.take_word_back(place.region);
            return false;
        }
        self.announced.push_back(self.ring.count());
        self.announce(Kind::Share, &share.pack());
        self.shown.set_announced(place.region);
        true
    }

    /// Tells the peer which regions of groups are gone.
    fn tell_gone(&mut self) {
        while self.ring.free() > 1
            && let Some(region) = self.shown.take_gone()
        {
            self.announce(Kind::Retire, &[region.into()]);
        }
    }

    pub(super) fn announce(&mut self, kind: Kind, payload: &[u64]) {
        self.ring.push(Head::new(kind, 0, payload.len() * 8), 0, payload);
        self.published = true;
    }

    /// There is a further arena, or one less: the drive looks for unused ones as long as there are any.
    pub(super) fn count_arenas(&mut self) {
        self.look_later(self.arena.grown() > 0);
    }

    /// Something of a further arena came back: it may be unused from now on.
    #[cold]
    pub(super) fn stir(&mut self) {
        if self.resting {
            self.look_later(true);
        }
    }

    fn look_later(&mut self, is: bool) {
        self.resting = false;
        if !self.shared.aging.swap(is, Ordering::AcqRel) && is {
            self.shared.wakers.drive.wake();
        }
    }

    /// Nobody needs to look while each further arena has a block out: what comes back says so. That costs an idle lane
    /// nothing, and a busy one a ring per look.
    fn rest(&mut self) {
        // From here on it is noticed; what came before is seen.
        self.arena.wait_for_grown();
        if self.shared.take_rang() {
            // A ring of before is none for what comes.
            self.sleeper.disarm();
        }
        let any_idle = self.arena.any_idle();
        self.look_later(any_idle);
        self.resting = self.arena.grown() > 0 && !self.shared.aging.load(Ordering::Relaxed);
    }

    /// Gives back arenas that were not used since the last look.
    #[cold]
    pub(super) fn trim(&mut self) -> Result<(), LaneError> {
        self.shared.trim.store(false, Ordering::Release);
        // There may be room in the ring that nobody has seen.
        self.refresh()?;
        self.reap()?;
        while self.ring.free() > 1 {
            let Some(at) = self.arena.retire(true) else { break };
            self.announce(Kind::Retire, &[at.into()]);
        }
        self.arena.age();
        if self.shown.look() {
            self.tell_gone();
            self.shown.rest();
            abandoned::sweep_at_times();
        }
        self.rest();
        Ok(())
    }
}

/// Whether there may be enough later.
fn is_shortage(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| {
        use Errno as E;
        [E::MFILE, E::NFILE, E::NOMEM, E::NOBUFS, E::NOSPC, E::AGAIN, E::TOOMANYREFS].contains(&errno)
    })
}
