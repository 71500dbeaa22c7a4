//! Packets in and out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use smallvec::SmallVec;
use zc_core::memory::{CopyLedger, CopyPlace, KernelCopied, PinnedBufMut, copy_payload};

use super::{Attachment, Mode, Outgoing, Packet, Umem};
use crate::limits::MAX_PACKET_FRAMES;
use crate::sys::{Checksums, Port, Received, Unsent};

/// One queue of an interface, and the socket on it. Readable ([`AsFd`]) when packets are there; a queue that was found
/// empty by [`receive`](Self::receive) may be waited for.
///
/// Dropping it closes its socket; the interface is the kernel's again when nothing of the device is left.
///
/// A forked child has none of the memory and none of the rings (M8): it may drop a queue, which changes nothing for its
/// parent, but must not use one. As long as it has the descriptors, the queue is not free for others.
///
/// ```
/// use zc_transport_xdp::device::{Packet, Queue};
///
/// /// Sends back what is there.
/// fn turn(queue: &mut Queue, packets: &mut Vec<Packet>) -> std::io::Result<()> {
///     queue.reap()?;
///     queue.receive(64, packets)?;
///     for packet in packets.drain(..) {
///         if let Err(refused) = queue.send(packet) {
///             println!("{} bytes are lost: {}", refused.packet.len(), refused.fault);
///         }
///     }
///     queue.flush().map(drop)
/// }
/// ```
pub struct Queue {
    port: Port,
    umem: Umem,
    attachment: Arc<Attachment>,
    index: u32,
    polls: bool,
    /// The frames of a packet whose last one is not there yet.
    partial: Partial,
    stats: QueueStats,
    ledger: Arc<CopyLedger>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("index", &self.index).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Partial {
    frames: SmallVec<[PinnedBufMut; 1]>,
    is_damaged: bool,
    /// There was no memory for one of them.
    is_lost: bool,
}

/// What a queue has done, and what the kernel says of it.
///
/// ```
/// use zc_transport_xdp::device::QueueStats;
///
/// assert_eq!(QueueStats::default().dropped, 0);
/// ```
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct QueueStats {
    /// Packets that came in.
    pub received: u64,
    /// Packets that were put on the ring.
    pub sent: u64,
    /// Frames of packets that were copied out, because the application had all frames that it may have.
    pub copied_out: u64,
    /// Packets that were dropped because there was no memory to copy them out to either.
    pub dropped: u64,
    /// Packets of too many frames, or with a frame that the kernel did not have: dropped, too.
    pub damaged: u64,
    /// Descriptors of frames that the kernel did not have.
    pub unknown: u64,
    /// Frames on their way out.
    pub in_flight: u32,
    /// Frames that the kernel has to receive into.
    pub filled: u32,
    /// By the kernel's word.
    pub kernel: KernelStats,
}

/// What the kernel counts (`XDP_STATISTICS`).
///
/// ```
/// use zc_transport_xdp::device::KernelStats;
///
/// assert_eq!(KernelStats::default().rx_ring_full, 0);
/// ```
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct KernelStats {
    /// Received packets that were dropped, for other reasons than the ones below.
    pub rx_dropped: u64,
    /// Descriptors on the fill ring that it does not take.
    pub rx_invalid: u64,
    /// Descriptors on the transmit ring that it does not take.
    pub tx_invalid: u64,
    /// Packets that found the receive ring full: the application is too slow.
    pub rx_ring_full: u64,
    /// How often it looked for a frame to receive into, and there was none.
    pub fill_ring_empty: u64,
    /// How often it looked for something to send, and there was nothing.
    pub tx_ring_empty: u64,
}

/// Why a packet was not sent.
///
/// ```
/// use zc_transport_xdp::device::SendFault;
///
/// assert_eq!(SendFault::Full.to_string(), "the ring is full; flush, reap, and try again");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendFault {
    /// For now.
    #[error("the ring is full; flush, reap, and try again")]
    Full,
    /// A segment is empty, or does not lie in a frame of the queue's memory with 24 bytes in front of it if the device
    /// computes checksums.
    #[error("a segment does not lie in the queue's memory")]
    Foreign,
    /// More segments than a packet can have here: [`Report::max_segments`](super::Report::max_segments).
    #[error("a packet can't have so many segments")]
    TooManySegments,
    /// The kernel, or somebody who has the socket, has written nonsense into the ring; it can't be used any more.
    #[error("the ring was overwritten")]
    Torn,
}

/// A packet that was not sent, and why.
///
/// ```
/// use zc_transport_xdp::device::Unsendable;
///
/// fn again(refused: Unsendable) -> zc_transport_xdp::device::Outgoing {
///     println!("{}", refused.fault);
///     refused.packet
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{fault}")]
pub struct Unsendable {
    /// Why.
    pub fault: SendFault,
    /// The packet, as it was, but that its checksum may be there already.
    pub packet: Outgoing,
}

impl Queue {
    pub(super) fn new(port: Port, umem: Umem, attachment: Arc<Attachment>, index: u32, polls: bool) -> Self {
        let (partial, stats) = (Partial::default(), QueueStats::default());
        Self { port, umem, attachment, index, polls, partial, stats, ledger: Arc::default() }
    }

    /// Its number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The memory that it uses.
    pub fn umem(&self) -> &Umem {
        &self.umem
    }

    /// What holds it on its interface.
    pub fn attachment(&self) -> &Arc<Attachment> {
        &self.attachment
    }

    /// What was copied: out of frames by us, and by the kernel unless this is [`Mode::ZeroCopy`].
    pub fn ledger(&self) -> &Arc<CopyLedger> {
        &self.ledger
    }

    /// Takes up to `max` packets that are there, and gives the kernel frames for others. How many there were.
    pub fn receive(&mut self, max: usize, packets: &mut Vec<Packet>) -> io::Result<usize> {
        let (before, mut bytes) = (packets.len(), 0);
        while packets.len() - before < max {
            let Some(received) = self.port.receive()? else { break };
            let Some(packet) = self.gather(received) else { continue };
            bytes += packet.len();
            packets.push(packet);
        }
        let count = packets.len() - before;
        self.port.release();
        self.port.refill()?;
        if self.polls && count == 0 {
            self.port.socket().wake_rx()?;
        }
        self.stats.received += count as u64;
        self.kernel_copied(bytes);
        Ok(count)
    }

    fn kernel_copied(&self, bytes: usize) {
        if bytes > 0 && self.attachment.report().mode != Mode::ZeroCopy {
            self.ledger.kernel_copied(KernelCopied::Known(bytes as u64));
        }
    }

    /// A packet, when its last frame is there.
    fn gather(&mut self, received: Received) -> Option<Packet> {
        let partial = &mut self.partial;
        let continued = match received {
            Received::Frame { frame, continued, is_over } => {
                let frame = if is_over {
                    let copy = copy_out(&frame, &self.umem, &self.ledger);
                    self.stats.copied_out += u64::from(copy.is_some());
                    copy
                } else {
                    Some(frame)
                };
                match frame {
                    Some(frame) if partial.frames.len() < MAX_PACKET_FRAMES => partial.frames.push(frame),
                    Some(_) => partial.is_damaged = true,
                    None => partial.is_lost = true,
                }
                continued
            }
            Received::Unknown { continued } => {
                partial.is_damaged = true;
                continued
            }
        };
        if continued {
            return None;
        }
        let Partial { frames, is_damaged, is_lost } = std::mem::take(partial);
        // One of them counts.
        self.stats.damaged += u64::from(is_damaged);
        self.stats.dropped += u64::from(is_lost && !is_damaged);
        (!is_damaged && !is_lost).then(|| Packet::of(frames))
    }

    /// Puts a packet on the ring; [`flush`](Self::flush) sends what is there. Its memory comes back when the kernel is
    /// done with it, at a later [`reap`](Self::reap), or stays with whoever else has a reference to it.
    ///
    /// # Errors
    /// The packet comes back with the reason.
    pub fn send(&mut self, packet: impl Into<Outgoing>) -> Result<(), Unsendable> {
        let mut packet = packet.into();
        if packet.segments.len() > self.attachment.report().max_segments {
            return Err(Unsendable { fault: SendFault::TooManySegments, packet });
        }
        if !self.is_summed_up() {
            packet.sum_up();
        }
        let bytes = packet.len();
        let fault = match self.port.send(&mut packet.segments, packet.order.is_some()) {
            Ok(()) => {
                self.stats.sent += 1;
                self.kernel_copied(bytes);
                return Ok(());
            }
            Err(Unsent::Full) => SendFault::Full,
            Err(Unsent::Foreign) => SendFault::Foreign,
            Err(Unsent::Torn) => SendFault::Torn,
        };
        Err(Unsendable { fault, packet })
    }

    /// Whether the device computes the checksum of a packet that wants one. It was asked for when the memory was made known;
    /// then the mode may have become another one.
    fn is_summed_up(&self) -> bool {
        self.port.checksums() == Checksums::Device && self.attachment.report().mode == Mode::ZeroCopy
    }

    /// Sends what was put on the ring. False: the kernel has not taken all of it yet; call again after a while.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.port.flush()
    }

    /// Takes back what the kernel is done with. How many frames that were.
    pub fn reap(&mut self) -> io::Result<u32> {
        self.port.reap()
    }

    /// Descriptors that the kernel has not given back.
    pub(crate) fn in_flight(&self) -> u32 {
        self.port.in_flight()
    }

    /// What happened so far.
    pub fn stats(&self) -> io::Result<QueueStats> {
        let (counters, kernel) = (self.port.counters(), self.port.socket().statistics()?);
        Ok(QueueStats {
            unknown: counters.unknown_rx + counters.unknown_completions,
            in_flight: self.port.in_flight(),
            filled: self.port.filled(),
            kernel: KernelStats {
                rx_dropped: kernel.rx_dropped,
                rx_invalid: kernel.rx_invalid_descs,
                tx_invalid: kernel.tx_invalid_descs,
                rx_ring_full: kernel.rx_ring_full.unwrap_or(0),
                fill_ring_empty: kernel.rx_fill_ring_empty_descs.unwrap_or(0),
                tx_ring_empty: kernel.tx_ring_empty_descs.unwrap_or(0),
            },
            ..self.stats
        })
    }
}

/// Into memory that is no frame, so that the kernel has the frame again; with the same room in front, for whoever puts
/// another header there.
fn copy_out(frame: &PinnedBufMut, umem: &Umem, ledger: &CopyLedger) -> Option<PinnedBufMut> {
    let mut copy = umem.spill().try_alloc_with_headroom(frame.len(), frame.headroom()).ok()?;
    copy.set_len(frame.len());
    copy_payload(&mut copy, frame, ledger, CopyPlace::CopyOut);
    Some(copy)
}

/// To wait for packets. A copy of the descriptor is for those who are trusted with this process' memory: the socket's rings
/// can be mapped with it, and say into which frame the kernel writes.
impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}
