//! The wire between two machines: what one's network card sends is handed to the other's. It begins and ends in this process,
//! so nothing of the host's network is used.
//!
//! ```text
//! qemu ──frames──> ours ──(some are lost, if that is wanted)──> ours ──frames──> qemu
//!      <──────────                                                   <──────────
//! ```

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::error::Error;
use super::ports::Inherited;

/// A machine at one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Main,
    Peer,
}

impl End {
    /// The last number of its addresses.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Main => 1,
            Self::Peer => 2,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Main => Self::Peer,
            Self::Peer => Self::Main,
        }
    }
}

/// Longer than any frame that qemu sends.
const FRAME_BYTES: usize = 128 << 10;
/// For how long a machine may have no room for a frame before it is lost to it. One that is busy must not lose any, which
/// would be sent again much later; one that is being switched on must not keep the other's card.
const PATIENCE: Duration = Duration::from_millis(200);
/// What chance begins with, the same for each run.
const SEED: u32 = 0x9E37_79B9;

/// The wire. Machines come and go.
#[derive(Default)]
pub(super) struct Wire {
    ends: [Mutex<Option<Arc<UnixDatagram>>>; 2],
    /// One of so many frames is lost; none, if it is 0.
    one_of: AtomicU32,
    /// Longer frames are lost; none, if it is 0.
    longest: AtomicU32,
    /// How many were.
    lost: AtomicU64,
}

impl Wire {
    /// The end for a machine that is switched on, in place of the one that was there before.
    pub(super) fn plug(self: &Arc<Self>, end: End) -> Result<Inherited, Error> {
        let failed = |error| Error::Io { what: "make a wire".to_owned(), error };
        let (ours, theirs) = UnixDatagram::pair().map_err(failed)?;
        ours.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let ours = Arc::new(ours);
        self.unplug(end);
        *self.end(end) = Some(ours.clone());
        let wire = self.clone();
        thread::spawn(move || wire.carry(&ours, end));
        Inherited::new(theirs)
    }

    /// Ends what carries the frames of that machine. What the other one sends is lost from here on.
    pub(super) fn unplug(&self, end: End) {
        if let Some(ours) = self.end(end).take() {
            // It is connected, so there is nothing that could fail.
            let _ = ours.shutdown(Shutdown::Both);
        }
    }

    /// From here on one of so many frames is lost, at random; 0: none.
    pub(super) fn lose(&self, one_of: u32) {
        self.one_of.store(one_of, Relaxed);
    }

    /// From here on frames of more bytes are lost; 0: none.
    pub(super) fn lose_longer(&self, longest: u32) {
        self.longest.store(longest, Relaxed);
    }

    /// Frames that were lost because that was wanted.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    fn end(&self, end: End) -> MutexGuard<'_, Option<Arc<UnixDatagram>>> {
        self.ends[end as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry(&self, from: &UnixDatagram, end: End) {
        let mut frame = vec![0; FRAME_BYTES];
        let mut chance = SEED ^ u32::from(end.number());
        loop {
            match from.recv(&mut frame) {
                // No frame is empty: it is unplugged.
                Ok(0) => return,
                Ok(len) => {
                    let to = self.end(end.other()).clone();
                    if self.is_lost(len, &mut chance) {
                        self.lost.fetch_add(1, Relaxed);
                    } else if let Some(to) = to {
                        // A machine that is gone, or takes none, loses them.
                        let _ = to.send(&frame[..len]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was still on the way to a qemu that is gone says so once.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(_) => return,
            }
        }
    }

    fn is_lost(&self, len: usize, chance: &mut u32) -> bool {
        let longest = self.longest.load(Relaxed) as usize;
        if longest > 0 && len > longest {
            return true;
        }
        // xorshift.
        *chance ^= *chance << 13;
        *chance ^= *chance >> 17;
        *chance ^= *chance << 5;
        chance.checked_rem(self.one_of.load(Relaxed)) == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn plugged(wire: &Arc<Wire>, end: End) -> UnixDatagram {
        let card = UnixDatagram::from(OwnedFd::from(wire.plug(end).unwrap()));
        // A hang guard.
        card.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        card
    }

    fn received(card: &UnixDatagram) -> Vec<u8> {
        let mut frame = [0; 100];
        let len = card.recv(&mut frame).unwrap();
        Vec::from(&frame[..len])
    }

    #[test]
    fn frames_go_from_one_machine_to_the_other() {
        let wire = Arc::<Wire>::default();
        let (main, peer) = (plugged(&wire, End::Main), plugged(&wire, End::Peer));
        main.send(b"one").unwrap();
        main.send(b"two").unwrap();
        peer.send(b"three").unwrap();
        assert_eq!((received(&peer), received(&peer)), (b"one".into(), b"two".into()));
        assert_eq!(received(&main), b"three");
    }

    #[test]
    fn a_machine_may_go_and_another_one_come() {
        let wire = Arc::<Wire>::default();
        let main = plugged(&wire, End::Main);
        // Nobody is there yet.
        main.send(b"early").unwrap();
        let peer = plugged(&wire, End::Peer);
        main.send(b"one").unwrap();
        // The first one is lost or not, as the threads run.
        while received(&peer) != b"one" {}
        // Killed, and not unplugged.
        drop(peer);
        for _ in 0..20 {
            main.send(b"to nobody").unwrap();
        }
        let peer = plugged(&wire, End::Peer);
        main.send(b"two").unwrap();
        while received(&peer) != b"two" {}
        peer.send(b"back").unwrap();
        assert_eq!(received(&main), b"back");
    }

    #[test]
    fn some_are_lost_if_that_is_wanted() {
        const FRAMES: usize = 1000;
        let wire = Arc::<Wire>::default();
        let (main, peer) = (plugged(&wire, End::Main), plugged(&wire, End::Peer));
        wire.lose(4);
        let sending = thread::spawn(move || {
            (0..FRAMES).for_each(|_| assert_eq!(main.send(b"frame").unwrap(), 5));
            main
        });
        peer.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let arrived = std::iter::from_fn(|| peer.recv(&mut [0; 100]).ok()).count();
        assert!((FRAMES / 2..FRAMES * 7 / 8).contains(&arrived), "{arrived} of {FRAMES}");
        // On a busy machine some are not taken in time, which counts for nothing.
        let lost = wire.lost();
        assert!((FRAMES as u64 / 8..=(FRAMES - arrived) as u64).contains(&lost), "{lost}, {arrived}");
        let main = sending.join().unwrap();
        wire.lose(0);
        wire.lose_longer(6);
        main.send(b"too long").unwrap();
        (0..8).for_each(|_| assert_eq!(main.send(b"frame").unwrap(), 5));
        (0..8).for_each(|_| assert_eq!(received(&peer), b"frame"));
        assert_eq!(wire.lost(), lost + 1);
    }
}
