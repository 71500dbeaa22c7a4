//! A device, with all its queues, as a port.
//!
//! A packet goes out of a frame of its own, into which headers and payload are copied: where the kernel copies anyway, or payload lies
//! elsewhere, that is all there is to it. Where the device itself reads the frames, payload in frames stays where it is, behind
//! headers in a frame of their own. What comes in is lent where it lies.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use zc_core::memory::{CopyPlace, PinnedBuf, PinnedBufMut, copy_payload};
use zc_core::transport::{Interest, Reactor, Readiness};

use super::{XdpOptions, closing};
use crate::device::{Device, Mode, Outgoing, Packet, Queue, SendFault, Umem, Unsendable};
use crate::engine::{Datagram, Destination, Headers, MAX_HEADER_BYTES, Port, Sink, udp_payload};
use crate::limits::{DEVICE_AGAIN_MS, DEVICE_RECEIVES_PER_CALL, IN_PLACE_MIN_BYTES, REAPED_IN_FLIGHT};
use crate::protocol::Transmit;

/// In front of a packet: what orders for a checksum take, rounded up.
const HEADROOM: usize = 64;
/// In front of payload in a frame, as in front of what comes in.
const PAYLOAD_HEADROOM: usize = 256;

/// The longest datagram that fits a frame of so many bytes, in either direction.
pub(super) fn datagram_bytes(frame_bytes: usize) -> usize {
    // A VLAN tag besides.
    frame_bytes - PAYLOAD_HEADROOM - MAX_HEADER_BYTES - 4
}

struct QueueIo {
    queue: Mutex<Queue>,
    /// The task's. None: the runtime is not told of what comes, which costs whoever sends it something for each packet.
    readable: Mutex<Option<Box<dyn Readiness>>>,
    /// The kernel has not taken all that was put on the ring.
    unflushed: AtomicBool,
    /// The runtime was to tell of what comes, and could not be made to.
    is_deaf: AtomicBool,
}

impl QueueIo {
    fn watched(queue: &Queue, reactor: &dyn Reactor) -> io::Result<Box<dyn Readiness>> {
        reactor.register_to_read(queue.as_fd().try_clone_to_owned()?)
    }

    /// Has the runtime told of what comes again. Not every runtime tells of what is there by then.
    fn watch(&self, readable: &mut Option<Box<dyn Readiness>>, reactor: &dyn Reactor) {
        let watched = Self::watched(&self.queue.lock(), reactor);
        // The timer does until then.
        let watched = watched.inspect_err(|error| tracing::debug!(%error, "an AF_XDP socket is not watched"));
        self.is_deaf.store(watched.is_err(), Relaxed);
        *readable = watched.ok();
    }

    fn flush_again(&self) -> io::Result<()> {
        if self.unflushed.load(Relaxed) {
            let mut queue = self.queue.lock();
            queue.reap()?;
            self.unflushed.store(!queue.flush()?, Relaxed);
        }
        Ok(())
    }
}

pub(super) struct DevicePort {
    queues: Box<[QueueIo]>,
    umem: Umem,
    /// Payload in frames stays where it is.
    in_place: bool,
    max_segments: usize,
    port: u16,
    stays_for: Duration,
    reactor: Arc<dyn Reactor>,
    /// Whoever receives.
    receiving: Mutex<Vec<Packet>>,
    /// So that nobody else gets the port.
    reserved: Option<OwnedFd>,
    /// The last to go: when it is gone, the interface is the kernel's again.
    open: Arc<()>,
}

/// To close the sockets and to take the program off takes milliseconds, under a lock that the whole network shares.
impl Drop for DevicePort {
    fn drop(&mut self) {
        // The runtime is not told of anything any more, before somebody else gets these descriptors.
        self.leave_it();
        let queues = std::mem::take(&mut self.queues);
        // In this order.
        closing::elsewhere((queues, self.umem.clone(), self.reserved.take(), self.open.clone()));
    }
}

impl DevicePort {
    pub(super) fn new(
        device: Device,
        umem: Umem,
        options: &XdpOptions,
        (reserved, port): (OwnedFd, u16),
        reactor: Arc<dyn Reactor>,
    ) -> io::Result<(Self, Weak<()>)> {
        let report = device.report();
        let stays_for = options.stays_for;
        let in_place = options.in_place.unwrap_or(report.mode == Mode::ZeroCopy) && report.max_segments > 1;
        let max_segments = report.max_segments;
        // First, since what fails here closes the interface in this thread, before anybody tries it again.
        let watched = |queue: Queue| {
            let readable = Mutex::new(Some(QueueIo::watched(&queue, &*reactor)?));
            let (unflushed, is_deaf) = Default::default();
            Ok(QueueIo { queue: Mutex::new(queue), readable, unflushed, is_deaf })
        };
        let queues = device.into_queues().into_iter().map(watched).collect::<io::Result<_>>()?;
        let (reserved, receiving, open) = (Some(reserved), Mutex::default(), Arc::new(()));
        let is_open = Arc::downgrade(&open);
        let port = Self {
            queues,
            umem,
            in_place,
            max_segments,
            port,
            stays_for,
            reactor,
            receiving,
            reserved,
            open,
        };
        Ok((port, is_open))
    }

    /// Takes what has come at a queue; `WouldBlock`: nothing.
    fn take(&self, io: &QueueIo, packets: &mut Vec<Packet>) -> io::Result<usize> {
        let mut queue = io.queue.lock();
        if queue.in_flight() > 0 {
            queue.reap()?;
        }
        match queue.receive(DEVICE_RECEIVES_PER_CALL, packets)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn hand_out(&self, packets: &mut Vec<Packet>, sink: &mut Sink<'_>) {
        for packet in packets.drain(..) {
            // Nobody was told that he may send longer ones.
            let mut frames = packet.into_frames();
            let (Some(frame), None) = (frames.next(), frames.next()) else { continue };
            let Some(payload) = udp_payload(&frame, self.port) else { continue };
            match self.are_out(1, 2) {
                true => sink(Datagram::Shown(&frame[payload])),
                false => sink(Datagram::Lent(frame.freeze().slice(payload))),
            }
        }
    }

    /// Whether this part of the frames is out that may be. Past a half nothing more is lent, so that those who keep much leave others
    /// the frames to send with.
    fn are_out(&self, part: u32, of: u32) -> bool {
        let stats = self.umem.stats();
        u64::from(stats.out) * u64::from(of) >= u64::from(stats.max_out) * u64::from(part)
    }

    /// A packet as it goes on the ring; `None`: there is no frame for it.
    fn outgoing(&self, headers: &Headers, packet: &Transmit) -> Option<Outgoing> {
        let (bytes, order) = headers.write(packet.len());
        let mut frame = self.umem.allocate(HEADROOM)?;
        frame.put_slice(&bytes);
        frame.put_slice(packet.head());
        let in_place = self.stays_in_place(packet.payload());
        if !in_place {
            for slice in packet.payload() {
                let at = frame.len();
                frame.set_len(at + slice.len());
                copy_payload(&mut frame[at..], slice, &headers.ledger, CopyPlace::Foreign);
            }
        }
        let mut outgoing = match order {
            None => Outgoing::from(frame),
            Some((start, offset)) => Outgoing::with_checksum(frame, start, offset)?,
        };
        if in_place {
            packet.payload().iter().for_each(|slice| outgoing.push(slice.clone()));
        }
        Some(outgoing)
    }

    fn stays_in_place(&self, payload: &[PinnedBuf]) -> bool {
        let ours = |slice: &PinnedBuf| {
            slice.len() >= IN_PLACE_MIN_BYTES
                && slice.region().is_some_and(|region| region.id() == self.umem.region().id())
        };
        self.in_place && payload.len() < self.max_segments && payload.iter().all(ours)
    }

    /// False: there is no room.
    fn send_one(&self, queue: &mut Queue, headers: &Headers, packet: &Transmit) -> io::Result<bool> {
        for is_reaped in [false, true] {
            let fault = match self.outgoing(headers, packet) {
                None => SendFault::Full,
                Some(outgoing) => match queue.send(outgoing) {
                    Ok(()) => return Ok(true),
                    Err(Unsendable { fault, .. }) => fault,
                },
            };
            match fault {
                SendFault::Full if is_reaped => {}
                SendFault::Full => {
                    queue.flush()?;
                    queue.reap()?;
                }
                SendFault::Torn => return Err(io::Error::other(fault)),
                // It counts as lost.
                SendFault::Foreign | SendFault::TooManySegments => return Ok(true),
            }
        }
        Ok(false)
    }
}

impl Port for DevicePort {
    fn receive(&self, patient: bool, sink: &mut Sink<'_>) -> io::Result<bool> {
        let packets = if patient { Some(self.receiving.lock()) } else { self.receiving.try_lock() };
        let Some(mut packets) = packets else { return Ok(false) };
        let mut came = false;
        for io in &self.queues {
            io.flush_again()?;
            match self.take(io, &mut packets) {
                Ok(_) => came = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            self.hand_out(&mut packets, sink);
        }
        Ok(came)
    }

    fn poll_receive(&self, cx: &mut Context<'_>, sink: &mut Sink<'_>) -> Poll<io::Result<()>> {
        let mut packets = self.receiving.lock();
        let mut came = Poll::Pending;
        for io in &self.queues {
            // Whether or not anything can be read: the timer brings us here for this.
            io.flush_again()?;
            let mut readable = io.readable.lock();
            let was_watched = readable.is_some();
            if !was_watched {
                io.watch(&mut readable, &*self.reactor);
            }
            let mut take = || self.take(io, &mut packets);
            let taken = match &*readable {
                Some(readable) if was_watched => readable.poll_io(cx, Interest::Read, &mut |_| take()),
                // Once more, then with those who tell.
                watched => match take() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && watched.is_none() => {
                        Poll::Pending
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Ready(Ok(0)),
                    taken => Poll::Ready(taken),
                },
            };
            if let Poll::Ready(taken) = taken {
                taken?;
                came = Poll::Ready(Ok(()));
            }
            self.hand_out(&mut packets, sink);
        }
        came
    }

    fn leave_it(&self) {
        self.queues.iter().for_each(|io| *io.readable.lock() = None);
    }

    fn send(&self, to: &Destination, packets: &[Transmit]) -> io::Result<usize> {
        let Destination::Frame(headers) = to else { return Err(io::ErrorKind::InvalidInput.into()) };
        let Some(io) = self.queues.get(headers.queue) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut queue = io.queue.lock();
        if queue.in_flight() >= REAPED_IN_FLIGHT {
            queue.reap()?;
        }
        let mut sent = 0;
        while sent < packets.len() && self.send_one(&mut queue, headers, &packets[sent])? {
            sent += 1;
        }
        io.unflushed.store(!queue.flush()?, Relaxed);
        if sent == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(sent) }
    }

    /// Nobody tells when there is a frame again.
    fn poll_send(
        &self,
        _cx: &mut Context<'_>,
        send: &mut dyn FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        match send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            done => Poll::Ready(done),
        }
    }

    fn alloc(&self, len: usize) -> Option<PinnedBufMut> {
        let fits = self.in_place && len <= self.umem.frame_bytes() - PAYLOAD_HEADROOM && !self.are_out(3, 4);
        if fits { self.umem.allocate(PAYLOAD_HEADROOM) } else { None }
    }

    fn again_in(&self, someone_waits: bool) -> Option<Duration> {
        let is_due = |io: &QueueIo| io.unflushed.load(Relaxed) || io.is_deaf.load(Relaxed);
        let waits = someone_waits || self.queues.iter().any(is_due);
        waits.then_some(Duration::from_millis(DEVICE_AGAIN_MS))
    }

    fn stays_for(&self) -> Duration {
        self.stays_for
    }
}
