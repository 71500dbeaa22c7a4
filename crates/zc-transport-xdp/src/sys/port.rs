//! A bound socket, its rings, and frames on their way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::xdp::{
    XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING,
};
use smallvec::SmallVec;
use zc_core::memory::{PinnedBuf, PinnedBufMut};

use super::ring::{Consumer, Producer, Torn};
use super::stock::Stock;
use super::{Checksums, Socket, Umem};
use crate::limits::KICKS_PER_FLUSH;

// More of the packet follows in the next descriptor.
const CONTINUED: u32 = 1;
// In front of the frame's bytes lie orders for the device.
const HAS_METADATA: u32 = 1 << 1;
// How many bytes these take.
pub(crate) const TX_METADATA_BYTES: u32 = 24;

/// The segments of one packet.
pub(crate) type Segments = SmallVec<[PinnedBuf; 2]>;

/// How many entries the rings have; powers of two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingSizes {
    pub(crate) rx: u32,
    pub(crate) tx: u32,
    /// And how many frames are set aside for the fill ring.
    pub(crate) fill: u32,
}

impl RingSizes {
    /// Whatever is in flight can complete.
    fn completion(self) -> u32 {
        self.tx * 2
    }
}

/// What was seen that should not be there.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct PortCounters {
    /// Received descriptors of frames that this port did not have.
    pub(crate) unknown_rx: u64,
    /// Completions of frames that were not in flight (M3).
    pub(crate) unknown_completions: u64,
}

/// The rings, and then the socket: their mappings would keep it.
struct Io {
    fill: Producer<1>,
    completion: Consumer<1>,
    rx: Consumer<2>,
    tx: Producer<2>,
    socket: Socket,
}

/// A frame in flight, as often as descriptors of it are.
#[derive(Default)]
struct Flight {
    held: Option<PinnedBuf>,
    count: u32,
}

/// What outlives the socket.
struct Held {
    umem: Umem,
    id: u32,
    /// Frames that the kernel has for receiving, and how many are set aside for that.
    filled: u32,
    reserved: u32,
    /// What it had after the last refill.
    given: u32,
    stock: Stock,
    flights: Box<[Flight]>,
    in_flight: u32,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Somebody may have a copy of the socket, and a device may be in the middle of a frame: what the kernel has is
        // used no more by this memory (M4).
        self.umem.unreserve(self.reserved - self.filled.min(self.reserved));
        if self.in_flight > 0 {
            tracing::debug!(frames = self.in_flight, "frames were in flight when their socket was closed");
            let held = self.flights.iter_mut().filter_map(|flight| flight.held.take());
            self.umem.keep(held);
        }
    }
}

/// See the module's text. The order of the fields is that in which they are dropped.
pub(crate) struct Port {
    io: Io,
    held: Held,
    counters: PortCounters,
    checksums: Checksums,
}

/// One piece of what came in.
pub(crate) enum Received {
    /// A frame: whether more of its packet follows, and whether more frames are out now than may be.
    Frame { frame: PinnedBufMut, continued: bool, is_over: bool },
    /// A frame that the socket did not have; whether more of its packet follows.
    Unknown { continued: bool },
}

/// Why segments were not taken. They are where they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// No room on the ring, or all frames are in flight.
    Full,
    /// A segment lies elsewhere, is empty, or has no room in front for metadata.
    Foreign,
    /// The ring can't be used any more.
    Torn,
}

impl From<Torn> for Unsent {
    fn from(_: Torn) -> Self {
        Self::Torn
    }
}

fn torn(_: Torn) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a ring of the socket was overwritten")
}

/// Length and options as they lie in a descriptor.
fn join(len: u32, options: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (len.to_ne_bytes(), options.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn split(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

impl Port {
    /// Maps the rings of a socket that is not bound yet. `None`: too few frames are left in the memory.
    pub(crate) fn new(
        socket: Socket,
        umem: &Umem,
        sizes: RingSizes,
        checksums: Checksums,
    ) -> io::Result<Option<Self>> {
        let completion = sizes.completion();
        socket.size_rings(sizes.rx, sizes.tx, sizes.fill, completion)?;
        let at = socket.ring_offsets()?;
        let fd = socket.as_fd();
        let io = Io {
            fill: Producer::new(fd, &at.fr, sizes.fill, XDP_UMEM_PGOFF_FILL_RING)?,
            completion: Consumer::new(fd, &at.cr, completion, XDP_UMEM_PGOFF_COMPLETION_RING)?,
            rx: Consumer::new(fd, &at.rx, sizes.rx, XDP_PGOFF_RX_RING)?,
            tx: Producer::new(fd, &at.tx, sizes.tx, XDP_PGOFF_TX_RING)?,
            socket,
        };
        let Some(id) = umem.reserve(sizes.fill) else { return Ok(None) };
        let flights = (0..umem.count()).map(|_| Flight::default()).collect();
        let stock = Stock::fixed(sizes.fill);
        let held = Held {
            umem: umem.clone(),
            id,
            filled: 0,
            reserved: sizes.fill,
            given: 0,
            stock,
            flights,
            in_flight: 0,
        };
        Ok(Some(Self { io, held, counters: PortCounters::default(), checksums }))
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.io.socket
    }

    pub(crate) fn counters(&self) -> PortCounters {
        self.counters
    }

    /// Who was to compute checksums when the memory was made known.
    pub(crate) fn checksums(&self) -> Checksums {
        self.checksums
    }

    /// Frames on their way out.
    pub(crate) fn in_flight(&self) -> u32 {
        self.held.in_flight
    }

    /// Frames that the kernel has for receiving.
    pub(crate) fn filled(&self) -> u32 {
        self.held.filled
    }

    /// From here on the fill ring has fewer frames than are set aside, for as long as these do.
    pub(crate) fn stock_as_needed(&mut self) {
        self.held.stock = Stock::up_to(self.held.reserved);
    }

    /// Stocks the fill ring; wakes the kernel if it wants that.
    pub(crate) fn refill(&mut self) -> io::Result<()> {
        if self.held.stock.lacking(self.held.filled) > 0 {
            let left = self.io.fill.waiting().map_err(torn)?;
            self.held.stock.saw_taken(self.held.given.saturating_sub(left));
            let lacking = self.held.stock.lacking(self.held.filled);
            let room = self.io.fill.room(lacking).map_err(torn)?.min(lacking);
            let Io { fill, .. } = &mut self.io;
            self.held.filled += self.held.umem.pass_to_port(self.held.id, room, |place| fill.push([place]));
            self.held.given = self.held.stock.of(self.held.filled);
            self.io.fill.publish();
        }
        if self.io.fill.needs_wakeup() { self.io.socket.wake_rx() } else { Ok(()) }
    }

    /// Takes one piece of what came in.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Received>> {
        let Some([place, rest]) = self.io.rx.pop().map_err(torn)? else { return Ok(None) };
        let (len, options) = split(rest);
        let continued = options & CONTINUED != 0;
        Ok(Some(match self.held.umem.take_from_port(self.held.id, place, len) {
            Some((frame, is_over)) => {
                self.held.filled = self.held.filled.saturating_sub(1);
                Received::Frame { frame, continued, is_over }
            }
            None => {
                self.counters.unknown_rx += 1;
                Received::Unknown { continued }
            }
        }))
    }

    /// Gives the places of what was received back to the kernel.
    pub(crate) fn release(&mut self) {
        self.io.rx.release();
    }

    /// Puts the segments of one packet on the ring and keeps them until they are out (M1, M2); the first may have
    /// metadata in front. On success none is left.
    pub(crate) fn send(&mut self, segments: &mut Segments, has_metadata: bool) -> Result<(), Unsent> {
        let count = segments.len() as u32;
        if count == 0 || !segments.iter().all(|segment| self.takes(segment)) {
            return Err(Unsent::Foreign);
        }
        if self.io.tx.room(count)? < count {
            return Err(Unsent::Full);
        }
        let last = segments.len() - 1;
        let mut options = if has_metadata && self.checksums != Checksums::Off { HAS_METADATA } else { 0 };
        for (number, segment) in segments.drain(..).enumerate() {
            let Some((index, place)) = self.held.umem.place_of(&segment) else { continue };
            let more = if number < last { CONTINUED } else { 0 };
            self.io.tx.push([place, join(segment.len() as u32, options | more)]);
            options = 0;
            let flight = &mut self.held.flights[index as usize];
            flight.count += 1;
            flight.held.get_or_insert(segment);
            self.held.in_flight += 1;
        }
        Ok(())
    }

    /// Whether the kernel would take it: what it refuses never completes.
    fn takes(&self, segment: &PinnedBuf) -> bool {
        let Some((_, place)) = self.held.umem.place_of(segment) else { return false };
        let needed = match self.checksums {
            Checksums::Off => 0,
            Checksums::Device => TX_METADATA_BYTES.into(),
        };
        !segment.is_empty() && place % u64::from(self.held.umem.chunk_bytes()) >= needed
    }

    /// Shows the kernel what was sent, and wakes it if it sleeps. False: it takes more later, so call again.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        self.io.tx.publish();
        if !self.io.tx.needs_wakeup() {
            return Ok(true);
        }
        let mut waiting = self.io.tx.waiting().map_err(torn)?;
        for _ in 0..KICKS_PER_FLUSH {
            if waiting == 0 {
                return Ok(true);
            }
            self.io.socket.wake_tx()?;
            let before = std::mem::replace(&mut waiting, self.io.tx.waiting().map_err(torn)?);
            if waiting == before {
                return Ok(false);
            }
        }
        Ok(waiting == 0)
    }

    /// Lets go of frames that are out. How many descriptors completed.
    pub(crate) fn reap(&mut self) -> io::Result<u32> {
        let mut completed = 0;
        while let Some([place]) = self.io.completion.pop().map_err(torn)? {
            let index = place / u64::from(self.held.umem.chunk_bytes());
            let flight = usize::try_from(index).ok().and_then(|index| self.held.flights.get_mut(index));
            match flight {
                Some(flight) if flight.count > 0 => {
                    flight.count -= 1;
                    self.held.in_flight -= 1;
                    completed += 1;
                    if flight.count == 0 {
                        flight.held = None;
                    }
                }
                _ => self.counters.unknown_completions += 1,
            }
        }
        self.io.completion.release();
        Ok(completed)
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.socket.as_fd()
    }
}
